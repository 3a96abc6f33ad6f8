//! Arithmetic on integers, floats and halves.

use super::op::{FloatOp, IntOp, MixOp, Narrow, Op, PredOp, R, Round, Ty};
use super::operands::{Decoded, Decoder, Parts};

/// Decodes an arithmetic instruction.
pub fn decode<'a>(decoder: &mut Decoder<'_, 'a>, parts: &Parts<'_, 'a>) -> Decoded<Op> {
    let ty = parts.ty()?;
    let name = parts.parts[0];
    match (name, ty) {
        ("and" | "or" | "xor" | "not", Ty::Pred) => preds(decoder, parts),
        (_, Ty::F32 | Ty::F64) => float(decoder, parts, ty),
        (_, Ty::F16 | Ty::F16x2 | Ty::Bf16 | Ty::Bf16x2) => half(decoder, parts, ty),
        ("lop3" | "bfi" | "dp4a" | "prmt", _) => bits(decoder, parts, ty),
        ("bfe" | "shl" | "shr" | "clz" | "popc" | "bfind", Ty::B64 | Ty::U64 | Ty::S64) => {
            mixed(decoder, parts, ty)
        }
        _ if parts.has("wide") => wide(decoder, parts, ty),
        _ if parts.has("cc") || matches!(name, "addc" | "subc" | "madc") => carry(decoder, parts, ty),
        _ => integer(decoder, parts, ty),
    }
}

/// Places of the sources behind the destination; those that are missing stand at the first's.
fn sources<'a>(
    decoder: &mut Decoder<'_, 'a>,
    parts: &Parts<'_, 'a>,
    ty: Ty,
    count: usize,
) -> Decoded<[R; 3]> {
    parts.count(count + 1..=count + 1)?;
    let first = decoder.source(parts.arg(1)?, ty)?;
    let mut out = [first; 3];
    for (index, place) in out.iter_mut().enumerate().take(count).skip(1) {
        *place = decoder.source(parts.arg(index + 1)?, ty)?;
    }
    Ok(out)
}

fn preds<'a>(decoder: &mut Decoder<'_, 'a>, parts: &Parts<'_, 'a>) -> Decoded<Op> {
    parts.only(&[])?;
    let f = match parts.parts[0] {
        "and" => PredOp::And,
        "or" => PredOp::Or,
        "xor" => PredOp::Xor,
        _ => PredOp::Not,
    };
    let d = decoder.dest(parts.arg(0)?, Ty::Pred)?;
    let (a, not_a) = decoder.pred(parts.arg(1)?)?;
    let (b, not_b) = if f == PredOp::Not { (a, false) } else { decoder.pred(parts.arg(2)?)? };
    if not_a || not_b {
        return Err("a negated predicate".into());
    }
    Ok(Op::Pred { f, d, a, b })
}

/// Rounding that an opcode names.
pub fn round(parts: &Parts<'_, '_>) -> Option<Round> {
    parts.parts[1..].iter().find_map(|part| match *part {
        "rn" | "rni" => Some(Round::Nearest),
        "rz" | "rzi" => Some(Round::Zero),
        "rm" | "rmi" => Some(Round::Down),
        "rp" | "rpi" => Some(Round::Up),
        "rna" => Some(Round::Away),
        _ => None,
    })
}

fn float_op(parts: &Parts<'_, '_>) -> Decoded<(FloatOp, usize)> {
    let nan = parts.has("NaN");
    Ok(match parts.parts[0] {
        "add" => (FloatOp::Add, 2),
        "sub" => (FloatOp::Sub, 2),
        "mul" => (FloatOp::Mul, 2),
        "fma" | "mad" => (FloatOp::Fma, 3),
        "div" => (FloatOp::Div, 2),
        "min" => (if nan { FloatOp::MinNan } else { FloatOp::Min }, 2),
        "max" => (if nan { FloatOp::MaxNan } else { FloatOp::Max }, 2),
        "neg" => (FloatOp::Neg, 1),
        "abs" => (FloatOp::Abs, 1),
        "copysign" => (FloatOp::Copysign, 2),
        "rcp" => (FloatOp::Rcp, 1),
        "sqrt" => (FloatOp::Sqrt, 1),
        "rsqrt" => (FloatOp::Rsqrt, 1),
        "ex2" => (FloatOp::Ex2, 1),
        "lg2" => (FloatOp::Lg2, 1),
        "sin" => (FloatOp::Sin, 1),
        "cos" => (FloatOp::Cos, 1),
        "tanh" => (FloatOp::Tanh, 1),
        other => return Err(format!("`{other}` is not known")),
    })
}

fn float<'a>(decoder: &mut Decoder<'_, 'a>, parts: &Parts<'_, 'a>, ty: Ty) -> Decoded<Op> {
    parts.only(&["rn", "rz", "rm", "rp", "ftz", "sat", "approx", "full", "NaN"])?;
    if parts.types().len() != 1 {
        return Err("an operation of mixed types".into());
    }
    let (f, count) = float_op(parts)?;
    let count = if matches!(f, FloatOp::Min | FloatOp::Max) && parts.args.len() == 4 { 3 } else { count };
    if count == 3 && f != FloatOp::Fma {
        return Err("three operands".into());
    }
    let round = round(parts).unwrap_or(Round::Nearest);
    let directed = matches!(
        f,
        FloatOp::Add
            | FloatOp::Sub
            | FloatOp::Mul
            | FloatOp::Fma
            | FloatOp::Div
            | FloatOp::Rcp
            | FloatOp::Sqrt
    );
    if round != Round::Nearest && (!directed || ty == Ty::F64) {
        return Err("this rounding".into());
    }
    let [a, b, c] = sources(decoder, parts, ty, count)?;
    let d = decoder.dest(parts.arg(0)?, ty)?;
    if ty == Ty::F64 {
        return Ok(Op::F64 { f, round, d, a, b, c });
    }
    Ok(Op::F32 { f, round, ftz: parts.has("ftz"), sat: parts.has("sat"), d, a, b, c })
}

fn half<'a>(decoder: &mut Decoder<'_, 'a>, parts: &Parts<'_, 'a>, ty: Ty) -> Decoded<Op> {
    parts.only(&["rn", "ftz", "sat", "approx", "relu", "NaN"])?;
    let (f, count) = float_op(parts)?;
    let known =
        !matches!(f, FloatOp::Div | FloatOp::Copysign | FloatOp::Rcp | FloatOp::Sqrt | FloatOp::Rsqrt);
    if !known || parts.types().len() != 1 {
        return Err("an operation of mixed types".into());
    }
    let [a, b, c] = sources(decoder, parts, ty, count)?;
    let d = decoder.dest(parts.arg(0)?, ty)?;
    let bf16 = matches!(ty, Ty::Bf16 | Ty::Bf16x2);
    let packed = matches!(ty, Ty::F16x2 | Ty::Bf16x2);
    let (ftz, sat, relu) = (parts.has("ftz"), parts.has("sat"), parts.has("relu"));
    Ok(Op::Half { f, bf16, packed, ftz, sat, relu, d, a, b, c })
}

fn pick(ty: Ty, unsigned: IntOp, signed: IntOp) -> IntOp {
    if ty.signed() { signed } else { unsigned }
}

fn int_op(parts: &Parts<'_, '_>, ty: Ty) -> Decoded<(IntOp, usize)> {
    let (hi, sat) = (parts.has("hi"), parts.has("sat"));
    if sat && !(ty == Ty::S32 && matches!(parts.parts[0], "add" | "sub")) {
        return Err("`.sat`".into());
    }
    let clamp = parts.has("clamp");
    Ok(match parts.parts[0] {
        "add" if sat => (IntOp::AddSatS, 2),
        "sub" if sat => (IntOp::SubSatS, 2),
        "add" => (IntOp::Add, 2),
        "sub" => (IntOp::Sub, 2),
        "mul" if hi => (pick(ty, IntOp::MulHiU, IntOp::MulHiS), 2),
        "mul" => (IntOp::Mul, 2),
        "mad" if hi => (pick(ty, IntOp::MadHiU, IntOp::MadHiS), 3),
        "mad" => (IntOp::Mad, 3),
        "mul24" if !hi => (pick(ty, IntOp::Mul24U, IntOp::Mul24S), 2),
        "sad" => (pick(ty, IntOp::SadU, IntOp::SadS), 3),
        "div" => (pick(ty, IntOp::DivU, IntOp::DivS), 2),
        "rem" => (pick(ty, IntOp::RemU, IntOp::RemS), 2),
        "min" => (pick(ty, IntOp::MinU, IntOp::MinS), 2),
        "max" => (pick(ty, IntOp::MaxU, IntOp::MaxS), 2),
        "and" => (IntOp::And, 2),
        "or" => (IntOp::Or, 2),
        "xor" => (IntOp::Xor, 2),
        "not" => (IntOp::Not, 1),
        "cnot" => (IntOp::Cnot, 1),
        "abs" => (IntOp::Abs, 1),
        "neg" => (IntOp::Neg, 1),
        "brev" => (IntOp::Brev, 1),
        "clz" => (IntOp::Clz, 1),
        "popc" => (IntOp::Popc, 1),
        "bfind" if parts.has("shiftamt") => (pick(ty, IntOp::BfindShiftU, IntOp::BfindShiftS), 1),
        "bfind" => (pick(ty, IntOp::BfindU, IntOp::BfindS), 1),
        "bfe" => (pick(ty, IntOp::BfeU, IntOp::BfeS), 3),
        "shl" => (IntOp::Shl, 2),
        "shr" => (pick(ty, IntOp::ShrU, IntOp::ShrS), 2),
        "shf" if parts.has("l") => (if clamp { IntOp::ShfLClamp } else { IntOp::ShfLWrap }, 3),
        "shf" => (if clamp { IntOp::ShfRClamp } else { IntOp::ShfRWrap }, 3),
        other => return Err(format!("`{other}` is not known")),
    })
}

fn integer<'a>(decoder: &mut Decoder<'_, 'a>, parts: &Parts<'_, 'a>, ty: Ty) -> Decoded<Op> {
    parts.only(&["lo", "hi", "sat", "shiftamt", "l", "r", "wrap", "clamp"])?;
    if parts.types().len() != 1 || ty.bits() < 16 {
        return Err("this type".into());
    }
    let (f, count) = int_op(parts, ty)?;
    let d = decoder.dest(parts.arg(0)?, ty)?;
    if ty.bits() == 64 {
        let [a, b, c] = sources(decoder, parts, ty, count)?;
        return Ok(Op::Long { f, d, a, b, c });
    }
    let narrow = match (ty.bits(), ty.signed()) {
        (16, false) => Narrow::U16,
        (16, true) => Narrow::S16,
        _ => Narrow::No,
    };
    if matches!(f, IntOp::Shl | IntOp::ShrU | IntOp::ShrS) {
        // The amount is 32-bit whatever the type.
        let (a, b) = (decoder.word(parts.arg(1)?, ty)?, decoder.word(parts.arg(2)?, Ty::U32)?);
        return Ok(Op::Int { f, narrow, d, a, b, c: a });
    }
    let wide_known = !matches!(f, IntOp::Clz | IntOp::Popc | IntOp::Brev | IntOp::BfeU | IntOp::BfeS);
    if narrow != Narrow::No && !wide_known {
        return Err("this type".into());
    }
    let [a, b, c] = sources(decoder, parts, ty, count)?;
    Ok(Op::Int { f, narrow, d, a, b, c })
}

/// 64-bit operations with 32-bit amounts or results.
fn mixed<'a>(decoder: &mut Decoder<'_, 'a>, parts: &Parts<'_, 'a>, ty: Ty) -> Decoded<Op> {
    parts.only(&[])?;
    let (f, amounts) = match (parts.parts[0], ty.signed()) {
        ("shl", _) => (MixOp::Shl, 1),
        ("shr", false) => (MixOp::ShrU, 1),
        ("shr", true) => (MixOp::ShrS, 1),
        ("clz", _) => (MixOp::Clz, 0),
        ("popc", _) => (MixOp::Popc, 0),
        ("bfind", false) => (MixOp::BfindU, 0),
        ("bfind", true) => (MixOp::BfindS, 0),
        (_, false) => (MixOp::BfeU, 2),
        (_, true) => (MixOp::BfeS, 2),
    };
    parts.count(amounts + 2..=amounts + 2)?;
    let d = decoder.dest(parts.arg(0)?, if amounts == 0 { Ty::U32 } else { ty })?;
    let a = decoder.long(parts.arg(1)?, ty)?;
    let b = if amounts > 0 { decoder.word(parts.arg(2)?, Ty::U32)? } else { a };
    let c = if amounts > 1 { decoder.word(parts.arg(3)?, Ty::U32)? } else { a };
    Ok(Op::Mix { f, d, a, b, c })
}

fn wide<'a>(decoder: &mut Decoder<'_, 'a>, parts: &Parts<'_, 'a>, ty: Ty) -> Decoded<Op> {
    parts.only(&["wide"])?;
    let add = match parts.parts[0] {
        "mul" => false,
        "mad" => true,
        other => return Err(format!("`{other}.wide` is not known")),
    };
    parts.count(if add { 4..=4 } else { 3..=3 })?;
    let (a, b) = (decoder.word(parts.arg(1)?, ty)?, decoder.word(parts.arg(2)?, ty)?);
    match ty {
        Ty::U32 | Ty::S32 => {
            let d = decoder.dest(parts.arg(0)?, Ty::U64)?;
            let c = if add { decoder.long(parts.arg(3)?, Ty::U64)? } else { a };
            let f = match (add, ty.signed()) {
                (false, false) => MixOp::MulWideU,
                (false, true) => MixOp::MulWideS,
                (true, false) => MixOp::MadWideU,
                (true, true) => MixOp::MadWideS,
            };
            Ok(Op::Mix { f, d, a, b, c })
        }
        Ty::U16 | Ty::S16 => {
            let d = decoder.dest(parts.arg(0)?, Ty::U32)?;
            let c = if add { decoder.word(parts.arg(3)?, Ty::U32)? } else { decoder.word_constant(0)? };
            // The product of unsigned 16-bit numbers fits, so a plain 32-bit one is it.
            let f = if ty.signed() { IntOp::MadWideS16 } else { IntOp::Mad };
            Ok(Op::Int { f, narrow: Narrow::No, d, a, b, c })
        }
        _ => Err("this type".into()),
    }
}

/// `add.cc`, `addc`, `sub.cc`, `subc`, `mad.cc`, `madc`.
fn carry<'a>(decoder: &mut Decoder<'_, 'a>, parts: &Parts<'_, 'a>, ty: Ty) -> Decoded<Op> {
    parts.only(&["cc", "lo", "hi"])?;
    let long = ty.bits() == 64;
    let (sets, reads) = (parts.has("cc"), parts.parts[0].ends_with('c'));
    let d = decoder.dest(parts.arg(0)?, ty)?;
    if ty.bits() < 32 {
        return Err("this type".into());
    }
    match parts.parts[0] {
        "add" | "addc" | "sub" | "subc" => {
            let [a, b, _] = sources(decoder, parts, ty, 2)?;
            Ok(Op::Carry { long, subtract: parts.parts[0].starts_with("sub"), reads, sets, d, a, b })
        }
        "mad" | "madc" => {
            let [a, b, c] = sources(decoder, parts, ty, 3)?;
            let (high, signed) = (parts.has("hi"), ty.signed());
            Ok(Op::MadCarry { long, high, signed, reads, sets, d, a, b, c })
        }
        other => Err(format!("`{other}.cc` is not known")),
    }
}

fn bits<'a>(decoder: &mut Decoder<'_, 'a>, parts: &Parts<'_, 'a>, ty: Ty) -> Decoded<Op> {
    parts.only(&[])?;
    match parts.parts[0] {
        "lop3" => {
            parts.count(5..=5)?;
            let super::parse::Arg::Int(table) = parts.arg(4)? else {
                return Err("a table that is no number".into());
            };
            let (d, a) = (decoder.dest(parts.arg(0)?, ty)?, decoder.word(parts.arg(1)?, ty)?);
            let (b, c) = (decoder.word(parts.arg(2)?, ty)?, decoder.word(parts.arg(3)?, ty)?);
            Ok(Op::Lop3 { table: *table as u8, d, a, b, c })
        }
        "bfi" => {
            parts.count(5..=5)?;
            let (a, b) = (decoder.source(parts.arg(1)?, ty)?, decoder.source(parts.arg(2)?, ty)?);
            let c = decoder.word(parts.arg(3)?, Ty::U32)?;
            let e = decoder.word(parts.arg(4)?, Ty::U32)?;
            Ok(Op::Bfi { long: ty.bits() == 64, d: decoder.dest(parts.arg(0)?, ty)?, a, b, c, e })
        }
        "dp4a" => {
            let types = parts.types();
            let [ta, tb] = types[..] else { return Err("two types are due".into()) };
            let [a, b, c] = sources(decoder, parts, Ty::U32, 3)?;
            let d = decoder.dest(parts.arg(0)?, Ty::U32)?;
            Ok(Op::Dp4a { signed_a: ta.signed(), signed_b: tb.signed(), d, a, b, c })
        }
        "prmt" => {
            let [a, b, c] = sources(decoder, parts, Ty::B32, 3)?;
            Ok(Op::Int { f: IntOp::Prmt, narrow: Narrow::No, d: decoder.dest(parts.arg(0)?, ty)?, a, b, c })
        }
        other => Err(format!("`{other}` is not known")),
    }
}
