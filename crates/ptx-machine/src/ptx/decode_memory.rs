//! Loads, stores, atomics, asynchronous copies, fences and address conversions.

use super::op::{Access, AtomOp, IntOp, NONE, Op, R, SourceBytes, Space, Ty};
use super::operands::{Decoded, Decoder, Parts, space};
use super::parse::{Arg, Class};
use crate::memory::{Order, SHARED_WINDOW, Scope};

/// Parts that say how caches treat an access; nothing here depends on them.
const CACHE: [&str; 27] = [
    "ca",
    "cg",
    "cs",
    "lu",
    "cv",
    "wb",
    "wt",
    "nc",
    "weak",
    "volatile",
    "relaxed",
    "acquire",
    "release",
    "acq_rel",
    "cta",
    "cluster",
    "gpu",
    "sys",
    "global",
    "shared",
    "shared::cta",
    "param",
    "const",
    "local",
    "v2",
    "v4",
    "param::entry",
];

/// Decodes an instruction of this file.
pub fn decode<'a>(decoder: &mut Decoder<'_, 'a>, parts: &Parts<'_, 'a>) -> Decoded<Op> {
    match parts.parts[0] {
        "ld" | "ldu" => Ok(Op::Load(Box::new(access(decoder, parts, true)?))),
        "st" => Ok(Op::Store(Box::new(access(decoder, parts, false)?))),
        "atom" | "red" => atom(decoder, parts),
        "cp" => copy(decoder, parts),
        "cvta" => cvta(decoder, parts),
        _ => fence(parts),
    }
}

fn order(parts: &Parts<'_, '_>, default: Order) -> Order {
    let found = parts.parts[1..].iter().find_map(|part| match *part {
        "nc" => Some(Order::ReadOnly),
        "weak" => Some(Order::Weak),
        "relaxed" | "volatile" => Some(Order::Relaxed),
        "acquire" => Some(Order::Acquire),
        "release" => Some(Order::Release),
        "acq_rel" | "sc" => Some(Order::AcquireRelease),
        _ => None,
    });
    found.unwrap_or(default)
}

fn scope(parts: &Parts<'_, '_>) -> Scope {
    if parts.has("cta") { Scope::Block } else { Scope::Device }
}

fn access<'a>(decoder: &mut Decoder<'_, 'a>, parts: &Parts<'_, 'a>, load: bool) -> Decoded<Access> {
    let hints = |part: &&str| part.starts_with("L1::") || part.starts_with("L2::");
    let unknown = parts.parts[1..]
        .iter()
        .find(|part| Ty::named(part).is_none() && !CACHE.contains(part) && !hints(part));
    if let Some(part) = unknown {
        return Err(format!("`.{part}` is not known"));
    }
    let ty = parts.ty()?;
    if parts.types().len() != 1 || matches!(ty, Ty::Pred) {
        return Err("this type".into());
    }
    parts.count(2..=2)?;
    let (value, address) = if load { (parts.arg(0)?, parts.arg(1)?) } else { (parts.arg(1)?, parts.arg(0)?) };
    let single = std::slice::from_ref(value);
    let list = match value {
        Arg::Vector(list) => &list[..],
        _ => single,
    };
    let due = if parts.has("v4") { 4 } else { 1 + usize::from(parts.has("v2")) };
    if list.len() != due || due as u32 * ty.bits() > 128 {
        return Err("a vector of this size".into());
    }
    let class = list.iter().find_map(|arg| decoder.class(arg));
    let long = match class {
        Some(class) => class == Class::Long,
        None => ty.bits() == 64,
    };
    let mut regs = [NONE; 4];
    for (arg, place) in list.iter().zip(&mut regs) {
        *place = match (load, arg) {
            (true, Arg::Sink) => NONE,
            (true, _) => decoder.dest_in(arg, usize::from(long))?,
            (false, _) if long => decoder.long(arg, ty)?,
            (false, _) => decoder.word(arg, ty)?,
        };
    }
    let register_bits = match class {
        Some(Class::Word(bits)) => bits,
        _ => 64,
    };
    if ty.bits() > u32::from(register_bits) {
        return Err("a register of the wrong size".into());
    }
    let (mut space, addr) = (space(parts), decoder.addr(address)?);
    // A named variable says where it stands by its address.
    if space == Space::Global && addr.base == NONE {
        space = Space::Generic;
    }
    let (order, scope) = (order(parts, Order::Weak), scope(parts));
    Ok(Access { space, ty, count: due as u8, long, register_bits, regs, addr, order, scope })
}

fn atom_op(parts: &Parts<'_, '_>, ty: Ty) -> Decoded<AtomOp> {
    for part in &parts.parts[1..] {
        return Ok(match (*part, ty) {
            ("add", Ty::F32) => AtomOp::AddF32,
            ("add", Ty::F64) => AtomOp::AddF64,
            ("add", Ty::F16) => AtomOp::AddF16,
            ("add", Ty::Bf16) => AtomOp::AddBf16,
            ("add", Ty::F16x2) => AtomOp::AddF16x2,
            ("add", Ty::Bf16x2) => AtomOp::AddBf16x2,
            ("add" | "min" | "max" | "inc" | "dec", _) if ty.float() => return Err("this type".into()),
            ("add", _) => AtomOp::Add,
            ("min", _) if ty.signed() => AtomOp::MinS,
            ("min", _) => AtomOp::MinU,
            ("max", _) if ty.signed() => AtomOp::MaxS,
            ("max", _) => AtomOp::MaxU,
            ("and", _) => AtomOp::And,
            ("or", _) => AtomOp::Or,
            ("xor", _) => AtomOp::Xor,
            ("exch", _) => AtomOp::Exch,
            ("cas", _) => AtomOp::Cas,
            ("inc", _) => AtomOp::Inc,
            ("dec", _) => AtomOp::Dec,
            _ => continue,
        });
    }
    Err("no operation".into())
}

fn atom<'a>(decoder: &mut Decoder<'_, 'a>, parts: &Parts<'_, 'a>) -> Decoded<Op> {
    parts.only(&[
        "relaxed",
        "acquire",
        "release",
        "acq_rel",
        "cta",
        "cluster",
        "gpu",
        "sys",
        "global",
        "shared",
        "shared::cta",
        "noftz",
        "add",
        "min",
        "max",
        "and",
        "or",
        "xor",
        "exch",
        "cas",
        "inc",
        "dec",
    ])?;
    let ty = parts.ty()?;
    let f = atom_op(parts, ty)?;
    let reduce = usize::from(parts.parts[0] == "red");
    let operands = 3 - reduce + usize::from(f == AtomOp::Cas);
    parts.count(operands..=operands)?;
    if ty.bits() < 16 {
        return Err("this type".into());
    }
    let d = if reduce == 1 { NONE } else { decoder.dest(parts.arg(0)?, ty)? };
    let addr = decoder.addr(parts.arg(1 - reduce)?)?;
    let b = decoder.source(parts.arg(2 - reduce)?, ty)?;
    let c = if f == AtomOp::Cas { decoder.source(parts.arg(3 - reduce)?, ty)? } else { b };
    let (order, scope) = (order(parts, Order::Relaxed), scope(parts));
    Ok(Op::Atom { space: space(parts), f, bytes: ty.bits() as u8 / 8, d, addr, b, c, order, scope })
}

fn immediate(arg: &Arg<'_>) -> Decoded<u32> {
    match arg {
        Arg::Int(value) => u32::try_from(*value).map_err(|_| "a number too large".into()),
        _ => Err("an operand that is no number".into()),
    }
}

fn copy<'a>(decoder: &mut Decoder<'_, 'a>, parts: &Parts<'_, 'a>) -> Decoded<Op> {
    match parts.parts[1..] {
        ["async", "commit_group"] => return Ok(Op::CommitGroup),
        ["async", "wait_all"] => return Ok(Op::WaitGroup { keep: 0, all: true }),
        ["async", "wait_group"] => return Ok(Op::WaitGroup { keep: immediate(parts.arg(0)?)?, all: false }),
        ["async", "ca" | "cg", "shared" | "shared::cta", "global", ref rest @ ..]
            if rest.iter().all(|part| part.starts_with("L2::") && *part != "L2::cache_hint") => {}
        _ => return Err("this copy".into()),
    }
    parts.count(3..=4)?;
    let (to, from) = (decoder.addr(parts.arg(0)?)?, decoder.addr(parts.arg(1)?)?);
    let bytes = immediate(parts.arg(2)?)?;
    if !matches!((bytes, parts.has("cg")), (16, _) | (4 | 8, false)) {
        return Err("a copy of this size".into());
    }
    let source = match parts.args.get(3) {
        None => SourceBytes::All,
        Some(arg) if decoder.class(arg) == Some(Class::Pred) => {
            let (pred, not) = decoder.pred(arg)?;
            if not {
                return Err("a negated predicate".into());
            }
            SourceBytes::Ignore(pred)
        }
        Some(arg) => SourceBytes::Word(decoder.word(arg, Ty::U32)?),
    };
    Ok(Op::CpAsync { to, from, bytes: bytes as u8, source })
}

fn cvta<'a>(decoder: &mut Decoder<'_, 'a>, parts: &Parts<'_, 'a>) -> Decoded<Op> {
    parts.only(&["to", "global", "shared", "shared::cta", "const", "local", "param", "param::entry"])?;
    parts.count(2..=2)?;
    if parts.ty()?.bits() != 64 {
        return Err("this type".into());
    }
    let (d, a): (R, R) = (decoder.dest(parts.arg(0)?, Ty::U64)?, decoder.long(parts.arg(1)?, Ty::U64)?);
    if space(parts) != Space::Shared {
        return Ok(Op::MovLong { d, a });
    }
    let b = decoder.long_constant(SHARED_WINDOW)?;
    let f = if parts.has("to") { IntOp::Sub } else { IntOp::Add };
    Ok(Op::Long { f, d, a, b, c: a })
}

fn fence(parts: &Parts<'_, '_>) -> Decoded<Op> {
    match parts.parts[..] {
        ["membar", "cta"] => Ok(Op::Fence { order: Order::AcquireRelease, scope: Scope::Block }),
        ["membar", "gl" | "sys"] => Ok(Op::Fence { order: Order::AcquireRelease, scope: Scope::Device }),
        ["fence", "acq_rel" | "sc" | "acquire" | "release", "cta" | "cluster" | "gpu" | "sys"]
        | ["fence", "cta" | "gpu" | "sys"] => {
            Ok(Op::Fence { order: order(parts, Order::AcquireRelease), scope: scope(parts) })
        }
        _ => Err("this fence".into()),
    }
}
