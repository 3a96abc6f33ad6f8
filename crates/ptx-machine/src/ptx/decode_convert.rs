//! Moves, conversions, comparisons and selections.

use super::decode_alu::round;
use super::op::{Cmp, Cvt, NONE, Op, PredOp, R, Round, Setp, Testp, Ty};
use super::operands::{Decoded, Decoder, Parts};
use super::parse::{Arg, Class};

/// Decodes an instruction of this file.
pub fn decode<'a>(decoder: &mut Decoder<'_, 'a>, parts: &Parts<'_, 'a>) -> Decoded<Op> {
    match parts.parts[0] {
        "mov" => mov(decoder, parts),
        "cvt" => cvt(decoder, parts),
        "setp" => Ok(Op::Setp(Box::new(setp(decoder, parts)?))),
        "set" => set(decoder, parts),
        "selp" => {
            parts.only(&[])?;
            parts.count(4..=4)?;
            let ty = parts.ty()?;
            let (a, b) = (decoder.source(parts.arg(1)?, ty)?, decoder.source(parts.arg(2)?, ty)?);
            let (p, not) = decoder.pred(parts.arg(3)?)?;
            Ok(Op::Selp { long: ty.bits() == 64, d: decoder.dest(parts.arg(0)?, ty)?, a, b, p, not })
        }
        "slct" => {
            parts.only(&["ftz"])?;
            parts.count(4..=4)?;
            let [ty, by] = parts.types()[..] else { return Err("two types are due".into()) };
            let (a, b) = (decoder.source(parts.arg(1)?, ty)?, decoder.source(parts.arg(2)?, ty)?);
            let c = decoder.word(parts.arg(3)?, by)?;
            let d = decoder.dest(parts.arg(0)?, ty)?;
            Ok(Op::Slct { long: ty.bits() == 64, float: by == Ty::F32, ftz: parts.has("ftz"), d, a, b, c })
        }
        _ => testp(decoder, parts),
    }
}

fn testp<'a>(decoder: &mut Decoder<'_, 'a>, parts: &Parts<'_, 'a>) -> Decoded<Op> {
    let f = match parts.parts.get(1).copied() {
        Some("finite") => Testp::Finite,
        Some("infinite") => Testp::Infinite,
        Some("number") => Testp::Number,
        Some("notanumber") => Testp::NotANumber,
        Some("normal") => Testp::Normal,
        Some("subnormal") => Testp::Subnormal,
        _ => return Err("this test".into()),
    };
    let ty = parts.ty()?;
    let a = decoder.source(parts.arg(1)?, ty)?;
    Ok(Op::Testp { f, long: ty == Ty::F64, p: decoder.dest(parts.arg(0)?, Ty::Pred)?, a })
}

fn mov<'a>(decoder: &mut Decoder<'_, 'a>, parts: &Parts<'_, 'a>) -> Decoded<Op> {
    parts.only(&[])?;
    parts.count(2..=2)?;
    let ty = parts.ty()?;
    let (to, from) = (parts.arg(0)?, parts.arg(1)?);
    match (to, from) {
        (Arg::Vector(list), _) => {
            let (bits, places) = vector(decoder, list, ty, true)?;
            let a = decoder.source(from, ty)?;
            Ok(Op::Unpack { bits, count: list.len() as u8, long: ty.bits() == 64, a, parts: places })
        }
        (_, Arg::Vector(list)) => {
            let (bits, places) = vector(decoder, list, ty, false)?;
            let d = decoder.dest(to, ty)?;
            Ok(Op::Pack { bits, count: list.len() as u8, long: ty.bits() == 64, d, parts: places })
        }
        (_, Arg::Symbol("%clock" | "%clock_hi" | "%globaltimer_lo")) => {
            Ok(Op::Clock { long: false, d: decoder.dest_in(to, 0)? })
        }
        (_, Arg::Symbol("%clock64" | "%globaltimer")) => {
            Ok(Op::Clock { long: true, d: decoder.dest_in(to, 1)? })
        }
        _ if ty == Ty::Pred => {
            let (a, not) = decoder.pred(from)?;
            let d = decoder.dest(to, ty)?;
            Ok(Op::Pred { f: if not { PredOp::Not } else { PredOp::Mov }, d, a, b: a })
        }
        _ if ty.bits() == 64 => Ok(Op::MovLong { d: decoder.dest(to, ty)?, a: decoder.long(from, ty)? }),
        _ => Ok(Op::Mov { d: decoder.dest(to, ty)?, a: decoder.word(from, ty)? }),
    }
}

/// Places of a vector that is as wide as `ty`, and the bits of each.
fn vector<'a>(decoder: &mut Decoder<'_, 'a>, list: &[Arg<'a>], ty: Ty, dest: bool) -> Decoded<(u8, [R; 4])> {
    let bits = ty.bits() as u8 / (list.len() as u8).max(1);
    let element = match bits {
        8 => Ty::B8,
        16 => Ty::B16,
        32 => Ty::B32,
        _ => return Err("a vector of this size".into()),
    };
    if !matches!(list.len(), 2 | 4) {
        return Err("a vector of this size".into());
    }
    let mut out = [NONE; 4];
    for (arg, place) in list.iter().zip(&mut out) {
        if matches!(decoder.class(arg), Some(Class::Word(own)) if own != bits) {
            return Err("a vector of registers of the wrong size".into());
        }
        *place = match (dest, arg) {
            (true, Arg::Sink) => NONE,
            (true, _) => decoder.dest(arg, element)?,
            (false, _) => decoder.word(arg, element)?,
        };
    }
    Ok((bits, out))
}

fn cvt<'a>(decoder: &mut Decoder<'_, 'a>, parts: &Parts<'_, 'a>) -> Decoded<Op> {
    const KNOWN: [&str; 12] =
        ["rn", "rz", "rm", "rp", "rna", "rni", "rzi", "rmi", "rpi", "ftz", "sat", "relu"];
    parts.only(&KNOWN)?;
    let [to, from] = parts.types()[..] else { return Err("two types are due".into()) };
    let (sat, ftz, relu) = (parts.has("sat"), parts.has("ftz"), parts.has("relu"));
    if matches!(to, Ty::F16x2 | Ty::Bf16x2) {
        parts.count(3..=3)?;
        if from != Ty::F32 {
            return Err("this source".into());
        }
        let round = round(parts).ok_or("no rounding")?;
        let (a, b) = (decoder.word(parts.arg(1)?, from)?, decoder.word(parts.arg(2)?, from)?);
        let d = decoder.dest(parts.arg(0)?, to)?;
        return Ok(Op::CvtPack { bf16: to == Ty::Bf16x2, round, relu, sat, d, a, b });
    }
    parts.count(2..=2)?;
    if matches!(from, Ty::F16x2 | Ty::Bf16x2 | Ty::Tf32 | Ty::Pred) || to == Ty::Pred {
        return Err("this source".into());
    }
    let integer = ["rni", "rzi", "rmi", "rpi"].iter().any(|name| parts.has(name));
    let (arg_d, arg_a) = (parts.arg(0)?, parts.arg(1)?);
    let long_d = decoder.class(arg_d) == Some(Class::Long);
    let long_a = match decoder.class(arg_a) {
        Some(class) => class == Class::Long,
        None => from.bits() == 64,
    };
    let register_bits = match decoder.class(arg_d) {
        Some(Class::Word(bits)) => bits,
        _ => 64,
    };
    if u32::from(register_bits) < to.bits() || (from.bits() == 64 && !long_a) {
        return Err("a register of the wrong size".into());
    }
    let a = if long_a { decoder.long(arg_a, from)? } else { decoder.word(arg_a, from)? };
    let d = decoder.dest_in(arg_d, usize::from(long_d))?;
    let round = round(parts);
    if round == Some(Round::Away) && to != Ty::Tf32 {
        return Err("this rounding".into());
    }
    Ok(Op::Cvt(Box::new(Cvt {
        to,
        from,
        round,
        integer,
        sat,
        ftz,
        relu,
        long_d,
        long_a,
        register_bits,
        d,
        a,
    })))
}

fn cmp(name: &str, ty: Ty) -> Option<Cmp> {
    Some(match name {
        "eq" => Cmp::Eq,
        "ne" => Cmp::Ne,
        "lt" | "lo" => Cmp::Lt,
        "le" | "ls" => Cmp::Le,
        "gt" | "hi" => Cmp::Gt,
        "ge" | "hs" => Cmp::Ge,
        _ if !ty.float() => return None,
        "equ" => Cmp::Equ,
        "neu" => Cmp::Neu,
        "ltu" => Cmp::Ltu,
        "leu" => Cmp::Leu,
        "gtu" => Cmp::Gtu,
        "geu" => Cmp::Geu,
        "num" => Cmp::Num,
        "nan" => Cmp::Nan,
        _ => return None,
    })
}

/// The comparison, without its destinations.
fn comparison<'a>(decoder: &mut Decoder<'_, 'a>, parts: &Parts<'_, 'a>, combine_at: usize) -> Decoded<Setp> {
    let ty = parts.ty()?;
    if matches!(ty, Ty::Tf32 | Ty::Pred) || ty.bits() < 16 {
        return Err("this type".into());
    }
    let (mut cmp_found, mut combine, mut ftz) = (None, None, false);
    for part in &parts.parts[1..] {
        match *part {
            "and" => combine = Some(PredOp::And),
            "or" => combine = Some(PredOp::Or),
            "xor" => combine = Some(PredOp::Xor),
            "ftz" => ftz = true,
            _ if Ty::named(part).is_some() => {}
            name => cmp_found = Some(cmp(name, ty).ok_or_else(|| format!("`.{name}` is not known"))?),
        }
    }
    let (a, b) = (decoder.source(parts.arg(1)?, ty)?, decoder.source(parts.arg(2)?, ty)?);
    let combine = match combine {
        Some(f) => {
            let (c, not) = decoder.pred(parts.arg(combine_at)?)?;
            Some((f, c, not))
        }
        None => None,
    };
    parts.count(3 + usize::from(combine.is_some())..=3 + usize::from(combine.is_some()))?;
    Ok(Setp { ty, cmp: cmp_found.ok_or("no comparison")?, ftz, a, b, p: NONE, q: NONE, combine })
}

fn setp<'a>(decoder: &mut Decoder<'_, 'a>, parts: &Parts<'_, 'a>) -> Decoded<Setp> {
    let mut out = comparison(decoder, parts, 3)?;
    match parts.arg(0)? {
        Arg::Pair(pair) => {
            out.p = decoder.dest(&pair.0, Ty::Pred)?;
            out.q = decoder.dest(&pair.1, Ty::Pred)?;
        }
        one => out.p = decoder.dest(one, Ty::Pred)?,
    }
    if matches!(out.ty, Ty::F16x2 | Ty::Bf16x2) && out.q == NONE {
        return Err("one predicate for two comparisons".into());
    }
    Ok(out)
}

fn set<'a>(decoder: &mut Decoder<'_, 'a>, parts: &Parts<'_, 'a>) -> Decoded<Op> {
    let mut test = comparison(decoder, parts, 3)?;
    let [to, from] = parts.types()[..] else { return Err("two types are due".into()) };
    let packed = matches!(from, Ty::F16x2 | Ty::Bf16x2);
    let yes = match to {
        Ty::F32 => 1.0_f32.to_bits(),
        Ty::F16 => 0x3c00,
        Ty::F16x2 => 0x3c00_3c00,
        Ty::Bf16 => 0x3f80,
        Ty::Bf16x2 => 0x3f80_3f80,
        Ty::U16 | Ty::S16 => 0xffff,
        Ty::U32 | Ty::S32 => u32::MAX,
        _ => return Err("this type".into()),
    };
    if packed && to.bits() != 32 {
        return Err("this type".into());
    }
    test.p = decoder.dest(parts.arg(0)?, to)?;
    Ok(Op::Set { test: Box::new(test), yes, packed })
}
