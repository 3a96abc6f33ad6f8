//! `cvt`: the common conversions as loops over lanes, the others a lane at a time.

use super::float::{self, NAN, flush, to_format, to_integer};
use super::half::{clamp, f16_to_f32, f32_to_bf16, f32_to_f16, narrow, widen};
use super::lanes::{each, put, put_long, two_versions};
use super::registers::{Warp, Word};
use crate::ptx::op::{Cvt, Round, Ty};

two_versions!(
    /// Executes a conversion.
    run, run_fast, body, (cvt: &Cvt, warp: &mut Warp, mask: u32)
);

#[inline(always)]
fn body(cvt: &Cvt, warp: &mut Warp, mask: u32) {
    let (a, d) = (usize::from(cvt.a), usize::from(cvt.d));
    let plain = !cvt.sat && !cvt.ftz && !cvt.relu && !cvt.integer;
    let near = matches!(cvt.round, None | Some(Round::Nearest));
    if !plain || cvt.long_a || (cvt.long_d && cvt.to.bits() != 64) {
        return rare(cvt, warp, mask);
    }
    let x = &warp.words[a];
    let value: Word = match (cvt.from, cvt.to) {
        (Ty::U32 | Ty::B32, Ty::U64 | Ty::S64 | Ty::B64) => {
            let value = each!(x in x => u64::from(x));
            return put_long(&mut warp.longs[d], &value, mask);
        }
        (Ty::S32, Ty::U64 | Ty::S64 | Ty::B64) => {
            let value = each!(x in x => i64::from(x as i32) as u64);
            return put_long(&mut warp.longs[d], &value, mask);
        }
        (Ty::S32, Ty::F32) if near => each!(x in x => (x as i32 as f32).to_bits()),
        (Ty::U32, Ty::F32) if near => each!(x in x => (x as f32).to_bits()),
        (Ty::F32, Ty::F16) if near => each!(x in x => u32::from(f32_to_f16(f32::from_bits(x)))),
        (Ty::F32, Ty::Bf16) if near => each!(x in x => u32::from(f32_to_bf16(f32::from_bits(x)))),
        (Ty::F16, Ty::F32) => each!(x in x => quiet(f16_to_f32(x as u16))),
        (Ty::Bf16, Ty::F32) => each!(x in x => quiet(f32::from_bits(x << 16))),
        (Ty::U16 | Ty::B16, Ty::U32 | Ty::S32 | Ty::B32) => each!(x in x => x & 0xffff),
        (Ty::U32 | Ty::S32 | Ty::B32, Ty::U16 | Ty::B16) => each!(x in x => x & 0xffff),
        _ => return rare(cvt, warp, mask),
    };
    put(&mut warp.words[d], &value, mask);
}

fn quiet(value: f32) -> u32 {
    if value.is_nan() { NAN } else { value.to_bits() }
}

#[inline(never)]
fn rare(cvt: &Cvt, warp: &mut Warp, mask: u32) {
    for lane in (0..32_usize).filter(|lane| mask >> lane & 1 != 0) {
        let source = match cvt.long_a {
            true => warp.longs[usize::from(cvt.a)][lane],
            false => u64::from(warp.words[usize::from(cvt.a)][lane]),
        };
        let value = convert(cvt, source);
        match cvt.long_d {
            true => warp.longs[usize::from(cvt.d)][lane] = value,
            false => {
                let bits = u32::from(cvt.register_bits);
                warp.words[usize::from(cvt.d)][lane] = value as u32 & (u32::MAX >> (32 - bits.min(32)));
            }
        }
    }
}

/// One lane: the destination register's bits.
fn convert(cvt: &Cvt, source: u64) -> u64 {
    match (cvt.from.float(), cvt.to.float()) {
        (false, false) => extend(cvt.to, saturated(cvt, integer(cvt.from, source))),
        (false, true) => {
            let value = integer(cvt.from, source);
            let round = cvt.round.unwrap_or(Round::Nearest);
            if cvt.to == Ty::F64 {
                return to_f64(value, round).to_bits();
            }
            float_bits(cvt, clamp(odd(value), cvt.sat, cvt.relu), round)
        }
        (true, false) => extend(cvt.to, from_float(cvt, source)),
        (true, true) => {
            let value = float_value(cvt, source);
            let value =
                if cvt.integer { to_integer(value, cvt.round.unwrap_or(Round::Nearest)) } else { value };
            let value = clamp(value, cvt.sat, cvt.relu);
            let round = cvt.round.filter(|_| !cvt.integer).unwrap_or(Round::Nearest);
            float_bits(cvt, value, round)
        }
    }
}

/// The integer that a register holds in a type.
fn integer(ty: Ty, bits: u64) -> i128 {
    let unused = 64 - ty.bits();
    match ty.signed() {
        true => i128::from((bits << unused) as i64 >> unused),
        false => i128::from(bits << unused >> unused),
    }
}

fn range(ty: Ty) -> (i128, i128) {
    match ty.signed() {
        true => (-(1 << (ty.bits() - 1)), (1 << (ty.bits() - 1)) - 1),
        false => (0, (1 << ty.bits()) - 1),
    }
}

fn saturated(cvt: &Cvt, value: i128) -> i128 {
    let (least, most) = range(cvt.to);
    if cvt.sat { value.clamp(least, most) } else { value }
}

/// An integer cut to a type and extended to the register.
fn extend(ty: Ty, value: i128) -> u64 {
    integer(ty, value as u64) as u64
}

/// An integer as f64, odd where it does not fit, so that a rounding to fewer bits is the only one.
fn odd(value: i128) -> f64 {
    let near = value as f64;
    let back = near as i128;
    if back == value || near.to_bits() & 1 == 1 {
        return near;
    }
    let larger = (value > back) == (value > 0);
    f64::from_bits(if larger { near.to_bits() + 1 } else { near.to_bits() - 1 })
}

fn to_f64(value: i128, round: Round) -> f64 {
    let near = value as f64;
    let back = near as i128;
    let step = |up: bool| if up { near.next_up() } else { near.next_down() };
    match round {
        Round::Down if back > value => step(false),
        Round::Up if back < value => step(true),
        Round::Zero if back.abs() > value.abs() => step(value < 0),
        _ => near,
    }
}

fn float_value(cvt: &Cvt, source: u64) -> f64 {
    if cvt.from == Ty::F64 {
        return f64::from_bits(source);
    }
    let value = widen(cvt.from, source as u32);
    f64::from(if cvt.ftz && cvt.from == Ty::F32 { flush(value) } else { value })
}

/// Floats to integers clamp to the type's range.
fn from_float(cvt: &Cvt, source: u64) -> i128 {
    let value = float_value(cvt, source);
    let (least, most) = range(cvt.to);
    if value.is_nan() {
        let long = cvt.from == Ty::F64 || cvt.to.bits() == 64;
        return if long { 1 << (cvt.to.bits() - 1) } else { 0 };
    }
    (to_integer(value, cvt.round.unwrap_or(Round::Zero)) as i128).clamp(least, most)
}

/// A value in the destination's format.
fn float_bits(cvt: &Cvt, value: f64, round: Round) -> u64 {
    match cvt.to {
        Ty::F64 => value.to_bits(),
        Ty::F16 => u64::from(narrow(value, false, round)),
        Ty::Bf16 => u64::from(narrow(value, true, round)),
        Ty::Tf32 => {
            let tf32 = float::Format { fraction: 10, ..float::F32 };
            u64::from(quiet(to_format(value, tf32, round) as f32))
        }
        _ => {
            let value = to_format(value, float::F32, round) as f32;
            u64::from(quiet(if cvt.ftz { flush(value) } else { value }))
        }
    }
}
