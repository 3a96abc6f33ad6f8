//! Instructions among lanes: shuffles, votes, barriers, matrices.

use super::op::{BarrierMode, IntOp, Mma, MmaTy, NONE, Op, R, ShflMode, Ty, VoteMode};
use super::operands::{Decoded, Decoder, Parts};
use super::parse::Arg;

/// Decodes an instruction of this file.
pub fn decode<'a>(decoder: &mut Decoder<'_, 'a>, parts: &Parts<'_, 'a>) -> Decoded<Op> {
    match parts.parts[0] {
        "shfl" => shfl(decoder, parts),
        "vote" => vote(decoder, parts),
        "match" => matching(decoder, parts),
        "activemask" => Ok(Op::Activemask { d: decoder.dest(parts.arg(0)?, Ty::B32)? }),
        "elect" => {
            let (d, p) = pair(decoder, parts.arg(0)?, Ty::B32)?;
            Ok(Op::Elect { d, p, mask: decoder.word(parts.arg(1)?, Ty::B32)? })
        }
        "redux" => redux(decoder, parts),
        "bar" if parts.has("warp") => Ok(Op::WarpSync { mask: decoder.word(parts.arg(0)?, Ty::B32)? }),
        "bar" | "barrier" => barrier(decoder, parts),
        _ => matrix(decoder, parts),
    }
}

/// `d|p`, or `d` alone.
fn pair<'a>(decoder: &mut Decoder<'_, 'a>, arg: &Arg<'a>, ty: Ty) -> Decoded<(R, R)> {
    match arg {
        Arg::Pair(pair) => Ok((decoder.dest(&pair.0, ty)?, decoder.dest(&pair.1, Ty::Pred)?)),
        one => Ok((decoder.dest(one, ty)?, NONE)),
    }
}

fn shfl<'a>(decoder: &mut Decoder<'_, 'a>, parts: &Parts<'_, 'a>) -> Decoded<Op> {
    let mode = match parts.parts[1..] {
        ["sync", "up", "b32"] => ShflMode::Up,
        ["sync", "down", "b32"] => ShflMode::Down,
        ["sync", "bfly", "b32"] => ShflMode::Bfly,
        ["sync", "idx", "b32"] => ShflMode::Idx,
        _ => return Err("this shuffle".into()),
    };
    parts.count(5..=5)?;
    let (d, p) = pair(decoder, parts.arg(0)?, Ty::B32)?;
    let mut word = |index: usize| decoder.word(parts.arg(index)?, Ty::B32);
    Ok(Op::Shfl { mode, d, p, a: word(1)?, b: word(2)?, c: word(3)?, mask: word(4)? })
}

fn vote<'a>(decoder: &mut Decoder<'_, 'a>, parts: &Parts<'_, 'a>) -> Decoded<Op> {
    let (mode, ty) = match parts.parts[1..] {
        ["sync", "all", "pred"] => (VoteMode::All, Ty::Pred),
        ["sync", "any", "pred"] => (VoteMode::Any, Ty::Pred),
        ["sync", "uni", "pred"] => (VoteMode::Uni, Ty::Pred),
        ["sync", "ballot", "b32"] => (VoteMode::Ballot, Ty::B32),
        _ => return Err("this vote".into()),
    };
    parts.count(3..=3)?;
    let d = decoder.dest(parts.arg(0)?, ty)?;
    let (a, not) = decoder.pred(parts.arg(1)?)?;
    Ok(Op::Vote { mode, d, a, not, mask: decoder.word(parts.arg(2)?, Ty::B32)? })
}

fn matching<'a>(decoder: &mut Decoder<'_, 'a>, parts: &Parts<'_, 'a>) -> Decoded<Op> {
    let (all, ty) = match parts.parts[1..] {
        ["any", "sync", ty] => (false, ty),
        ["all", "sync", ty] => (true, ty),
        _ => return Err("this match".into()),
    };
    let ty = Ty::named(ty).filter(|ty| matches!(ty, Ty::B32 | Ty::B64)).ok_or("this type")?;
    parts.count(3..=3)?;
    let (d, p) = pair(decoder, parts.arg(0)?, Ty::B32)?;
    let a = decoder.source(parts.arg(1)?, ty)?;
    let mask = decoder.word(parts.arg(2)?, Ty::B32)?;
    Ok(Op::Match { all, long: ty == Ty::B64, d, p, a, mask })
}

fn redux<'a>(decoder: &mut Decoder<'_, 'a>, parts: &Parts<'_, 'a>) -> Decoded<Op> {
    let f = match parts.parts[1..] {
        ["sync", "add", "u32" | "s32"] => IntOp::Add,
        ["sync", "min", "u32"] => IntOp::MinU,
        ["sync", "min", "s32"] => IntOp::MinS,
        ["sync", "max", "u32"] => IntOp::MaxU,
        ["sync", "max", "s32"] => IntOp::MaxS,
        ["sync", "and", "b32"] => IntOp::And,
        ["sync", "or", "b32"] => IntOp::Or,
        ["sync", "xor", "b32"] => IntOp::Xor,
        _ => return Err("this reduction".into()),
    };
    parts.count(3..=3)?;
    let a = decoder.word(parts.arg(1)?, Ty::B32)?;
    let mask = decoder.word(parts.arg(2)?, Ty::B32)?;
    Ok(Op::Redux { f, d: decoder.dest(parts.arg(0)?, Ty::B32)?, a, mask })
}

fn barrier<'a>(decoder: &mut Decoder<'_, 'a>, parts: &Parts<'_, 'a>) -> Decoded<Op> {
    parts.only(&["cta", "sync", "arrive", "red", "popc", "and", "or", "aligned"])?;
    let aligned = parts.parts[0] == "bar" || parts.has("aligned");
    let mode = match () {
        () if parts.has("sync") => BarrierMode::Sync,
        () if parts.has("arrive") => BarrierMode::Arrive,
        () if parts.has("popc") => BarrierMode::RedPopc,
        () if parts.has("and") => BarrierMode::RedAnd,
        () if parts.has("or") => BarrierMode::RedOr,
        () => return Err("this barrier".into()),
    };
    let red = !matches!(mode, BarrierMode::Sync | BarrierMode::Arrive);
    let first = usize::from(red);
    parts.count(1 + 2 * first..=2 + 2 * first)?;
    let (d, a, not) = match red {
        true => {
            let ty = if mode == BarrierMode::RedPopc { Ty::U32 } else { Ty::Pred };
            let (a, not) = decoder.pred(parts.arg(parts.args.len() - 1)?)?;
            (decoder.dest(parts.arg(0)?, ty)?, a, not)
        }
        false => (NONE, NONE, false),
    };
    let id = decoder.word(parts.arg(first)?, Ty::U32)?;
    let counted = parts.args.len() == 2 + 2 * first;
    let count = if counted { decoder.word(parts.arg(first + 1)?, Ty::U32)? } else { NONE };
    if mode == BarrierMode::Arrive && !counted {
        return Err("an arrival with no count".into());
    }
    Ok(Op::Barrier { mode, aligned, id, count, d, a, not })
}

/// Places of a vector of 32-bit registers.
fn vector<'a>(decoder: &mut Decoder<'_, 'a>, arg: &Arg<'a>, count: usize, dest: bool) -> Decoded<Vec<R>> {
    let single = std::slice::from_ref(arg);
    let list = match arg {
        Arg::Vector(list) => &list[..],
        _ => single,
    };
    if list.len() != count {
        return Err(format!("{} registers where {count} are due", list.len()));
    }
    let ty = Ty::B32;
    list.iter().map(|arg| if dest { decoder.dest(arg, ty) } else { decoder.word(arg, ty) }).collect()
}

fn matrix<'a>(decoder: &mut Decoder<'_, 'a>, parts: &Parts<'_, 'a>) -> Decoded<Op> {
    match parts.parts[..] {
        ["ldmatrix", "sync", "aligned", "m8n8", number, ref rest @ ..] => {
            let count = match number {
                "x1" => 1,
                "x2" => 2,
                "x4" => 4,
                _ => return Err("this number".into()),
            };
            let (trans, rest) = match rest {
                ["trans", rest @ ..] => (true, rest),
                rest => (false, rest),
            };
            if !matches!(rest, ["b16"] | ["shared" | "shared::cta", "b16"]) {
                return Err("this form".into());
            }
            let mut d = [NONE; 4];
            d[..count].copy_from_slice(&vector(decoder, parts.arg(0)?, count, true)?);
            Ok(Op::Ldmatrix { count: count as u8, trans, d, addr: decoder.addr(parts.arg(1)?)? })
        }
        ["movmatrix", "sync", "aligned", "m8n8", "trans", "b16"] => {
            let a = decoder.word(parts.arg(1)?, Ty::B32)?;
            Ok(Op::Movmatrix { d: decoder.dest(parts.arg(0)?, Ty::B32)?, a })
        }
        ["mma", "sync", "aligned", shape, "row", "col", d, a, b, c] => {
            mma(decoder, parts, shape, [d, a, b, c])
        }
        _ => Err(format!("`{}` is not known", parts.parts.join("."))),
    }
}

fn mma<'a>(
    decoder: &mut Decoder<'_, 'a>,
    parts: &Parts<'_, 'a>,
    shape: &str,
    types: [&str; 4],
) -> Decoded<Op> {
    let (ty, half_d, half_c) = match types {
        ["f32", "f16", "f16", "f32"] => (MmaTy::F16, false, false),
        ["f16", "f16", "f16", "f16"] => (MmaTy::F16, true, true),
        ["f16", "f16", "f16", "f32"] => (MmaTy::F16, true, false),
        ["f32", "f16", "f16", "f16"] => (MmaTy::F16, false, true),
        ["f32", "bf16", "bf16", "f32"] => (MmaTy::Bf16, false, false),
        ["f32", "tf32", "tf32", "f32"] => (MmaTy::Tf32, false, false),
        _ => return Err("these types".into()),
    };
    let k = match (shape, ty) {
        ("m16n8k16", MmaTy::F16 | MmaTy::Bf16) => 16,
        ("m16n8k8", _) => 8,
        ("m16n8k4", MmaTy::Tf32) => 4,
        _ => return Err("this shape".into()),
    };
    // 16 x k elements of A and k x 8 of B over 32 lanes, one or two a register.
    let packed = if ty == MmaTy::Tf32 { 1 } else { 2 };
    let (count_a, count_b) = (16 * k as usize / 32 / packed, 8 * k as usize / 32 / packed);
    parts.count(4..=4)?;
    let d = vector(decoder, parts.arg(0)?, if half_d { 2 } else { 4 }, true)?;
    let a = vector(decoder, parts.arg(1)?, count_a, false)?;
    let b = vector(decoder, parts.arg(2)?, count_b, false)?;
    let c = vector(decoder, parts.arg(3)?, if half_c { 2 } else { 4 }, false)?;
    Ok(Op::Mma(Box::new(Mma { k, ty, half_d, half_c, d, a, b, c })))
}
