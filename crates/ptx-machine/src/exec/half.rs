//! f16 and bf16, alone and in pairs.
//!
//! Sums and products of two halves are exact in f64, and so are their sums rounded to odd, so each result is rounded once.

use super::float::{self, to_format};
use super::lanes::{put, two_versions};
use super::registers::{Warp, Word};
use crate::ptx::op::{FloatOp, Op, Round, Ty};
use half::{bf16, f16};

/// The NaN of both formats.
const NAN: u16 = 0x7fff;

/// The value of a 16-bit or 32-bit float.
#[inline(always)]
pub fn widen(ty: Ty, bits: u32) -> f32 {
    match ty {
        Ty::F16 | Ty::F16x2 => f16_to_f32(bits as u16),
        Ty::Bf16 | Ty::Bf16x2 => f32::from_bits(bits << 16),
        _ => f32::from_bits(bits),
    }
}

/// f16 to f32, without branches so that loops over lanes stay loops of vectors.
#[inline(always)]
pub fn f16_to_f32(bits: u16) -> f32 {
    let magnitude = u32::from(bits & 0x7fff);
    // The exponent's bias is 112 less; a product moves subnormals to where they belong.
    let scaled = f32::from_bits(magnitude << 13) * f32::from_bits((254 - 15) << 23);
    let special = if magnitude >= 0x7c00 { 0x7f80_0000 } else { 0 };
    f32::from_bits(scaled.to_bits() | special | u32::from(bits & 0x8000) << 16)
}

/// f32 to bf16, to nearest even.
#[inline(always)]
pub fn f32_to_bf16(value: f32) -> u16 {
    let bits = value.to_bits();
    let rounded = (bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16) as u16;
    if value.is_nan() { NAN } else { rounded }
}

/// f32 to f16, to nearest even.
#[inline(always)]
pub fn f32_to_f16(value: f32) -> u16 {
    if value.is_nan() { NAN } else { f16::from_f32(value).to_bits() }
}

/// Any value to a half, rounded once.
pub fn narrow(value: f64, is_bf16: bool, round: Round) -> u16 {
    if value.is_nan() {
        return NAN;
    }
    // What a format holds, f32 holds too: the conversions behind the rounding are exact.
    match is_bf16 {
        true => bf16::from_f32(to_format(value, float::BF16, round) as f32).to_bits(),
        false => f16::from_f32(to_format(value, float::F16, round) as f32).to_bits(),
    }
}

two_versions!(
    /// Executes an instruction on halves, or one that packs them.
    run, run_fast, body, (op: &Op, warp: &mut Warp, mask: u32)
);

#[inline(always)]
fn body(op: &Op, warp: &mut Warp, mask: u32) {
    match *op {
        Op::CvtPack { bf16, round: Round::Nearest, relu: false, sat: false, d, a, b } => {
            let (a, b) = (&warp.words[usize::from(a)], &warp.words[usize::from(b)]);
            let mut value: Word = [0; 32];
            for lane in 0..32 {
                let (high, low) = (f32::from_bits(a[lane]), f32::from_bits(b[lane]));
                value[lane] = match bf16 {
                    true => u32::from(f32_to_bf16(high)) << 16 | u32::from(f32_to_bf16(low)),
                    false => u32::from(f32_to_f16(high)) << 16 | u32::from(f32_to_f16(low)),
                };
            }
            put(&mut warp.words[usize::from(d)], &value, mask);
        }
        Op::CvtPack { bf16, round, relu, sat, d, a, b } => {
            let (a, b) = (warp.words[usize::from(a)], warp.words[usize::from(b)]);
            let one =
                |bits: u32| u32::from(narrow(clamp(f64::from(f32::from_bits(bits)), sat, relu), bf16, round));
            let value = std::array::from_fn(|lane| one(a[lane]) << 16 | one(b[lane]));
            put(&mut warp.words[usize::from(d)], &value, mask);
        }
        _ => arithmetic(op, warp, mask),
    }
}

/// What `.sat` and `.relu` make of a value.
pub fn clamp(value: f64, sat: bool, relu: bool) -> f64 {
    match (sat, relu) {
        (true, _) => {
            if value > 0.0 {
                value.min(1.0)
            } else {
                0.0
            }
        }
        (_, true) if value < 0.0 => 0.0,
        _ => value,
    }
}

#[inline(never)]
fn arithmetic(op: &Op, warp: &mut Warp, mask: u32) {
    let Op::Half { f, bf16, packed, ftz, sat, relu, d, a, b, c } = *op else { return };
    let [a, b, c] = [a, b, c].map(|place| warp.words[usize::from(place)]);
    let one = |x: u32, y: u32, z: u32| {
        let sign = match f {
            FloatOp::Neg => Some(x & 0xffff ^ 0x8000),
            FloatOp::Abs => Some(x & 0x7fff),
            _ => None,
        };
        if let Some(bits) = sign.filter(|_| !ftz) {
            return bits;
        }
        let wide = |bits: u32| {
            let value = if bf16 { f32::from_bits(bits << 16) } else { f16_to_f32(bits as u16) };
            f64::from(if ftz { flush(value, bf16) } else { value })
        };
        let value = clamp(exact(f, wide(x), wide(y), wide(z)), sat, relu);
        let bits = narrow(value, bf16, Round::Nearest);
        let least = if bf16 { 0x80 } else { 0x400 };
        u32::from(if ftz && bits & 0x7fff < least { bits & 0x8000 } else { bits })
    };
    let value = std::array::from_fn(|lane| {
        let (x, y, z) = (a[lane], b[lane], c[lane]);
        let low = one(x & 0xffff, y & 0xffff, z & 0xffff);
        if packed { low | one(x >> 16, y >> 16, z >> 16) << 16 } else { low }
    });
    put(&mut warp.words[usize::from(d)], &value, mask);
}

/// A subnormal of a half becomes a zero of its sign.
pub fn flush(value: f32, is_bf16: bool) -> f32 {
    let least = if is_bf16 { f32::MIN_POSITIVE } else { 6.103_515_6e-5 };
    if value.abs() < least { 0.0_f32.copysign(value) } else { value }
}

/// A result that only the conversion to a half still rounds.
fn exact(f: FloatOp, x: f64, y: f64, z: f64) -> f64 {
    let number = |first: bool| match (x.is_nan(), y.is_nan()) {
        (true, _) => y,
        (_, true) => x,
        _ => {
            if first {
                x
            } else {
                y
            }
        }
    };
    match f {
        FloatOp::Add => float::sum_to_odd(x, y, Round::Nearest),
        FloatOp::Sub => float::sum_to_odd(x, -y, Round::Nearest),
        FloatOp::Mul => x * y,
        FloatOp::Fma => float::sum_to_odd(x * y, z, Round::Nearest),
        FloatOp::Min => number(x < y || (x == y && x.is_sign_negative())),
        FloatOp::Max => number(x > y || (x == y && x.is_sign_positive())),
        FloatOp::MinNan | FloatOp::MaxNan if x.is_nan() || y.is_nan() => f64::NAN,
        FloatOp::MinNan => number(x < y || (x == y && x.is_sign_negative())),
        FloatOp::MaxNan => number(x > y || (x == y && x.is_sign_positive())),
        FloatOp::Neg => -x,
        FloatOp::Abs => x.abs(),
        FloatOp::Ex2 => x.exp2(),
        FloatOp::Lg2 => x.log2(),
        FloatOp::Sin => x.sin(),
        FloatOp::Cos => x.cos(),
        FloatOp::Tanh => x.tanh(),
        _ => f64::NAN,
    }
}
