//! f32 and f64, 32 lanes at a time.
//!
//! Arithmetic is IEEE's, with one rounding. NaN results of f32 are PTX's one NaN. The approximate functions (`ex2`, `lg2`,
//! `sin`, `cos`, `tanh`, `rsqrt` and so on) are computed as exactly as the standard library does: closer than hardware.

use super::lanes::{each, put, put_long, two_versions};
use super::registers::{Warp, Word};
use crate::ptx::op::{FloatOp, Op, Round};

/// f32's NaN.
pub const NAN: u32 = 0x7fff_ffff;

two_versions!(
    /// Executes an instruction on f32 or f64.
    run, run_fast, body, (op: &Op, warp: &mut Warp, mask: u32)
);

type Floats = [f32; 32];

#[inline(always)]
fn floats(word: &Word) -> Floats {
    each!(x in word => f32::from_bits(x))
}

/// A subnormal becomes a zero of its sign.
#[inline(always)]
pub fn flush(value: f32) -> f32 {
    if value.abs() < f32::MIN_POSITIVE { f32::from_bits(value.to_bits() & 1 << 31) } else { value }
}

#[inline(always)]
fn body(op: &Op, warp: &mut Warp, mask: u32) {
    let Op::F32 { f, round, ftz, sat, d, a, b, c } = *op else { return double(op, warp, mask) };
    let [mut a, mut b, mut c] = [a, b, c].map(|place| floats(&warp.words[usize::from(place)]));
    if ftz {
        [a, b, c] = [each!(x in a => flush(x)), each!(x in b => flush(x)), each!(x in c => flush(x))];
    }
    let mut value: Floats = match f {
        _ if round != Round::Nearest => directed(f, round, &a, &b, &c),
        FloatOp::Add => each!(x in a, y in b => x + y),
        FloatOp::Sub => each!(x in a, y in b => x - y),
        FloatOp::Mul => each!(x in a, y in b => x * y),
        FloatOp::Fma => each!(x in a, y in b, z in c => x.mul_add(y, z)),
        FloatOp::Div => each!(x in a, y in b => x / y),
        FloatOp::Min => each!(x in a, y in b => min(x, y)),
        FloatOp::Max => each!(x in a, y in b => max(x, y)),
        FloatOp::Neg => each!(x in a => -x),
        FloatOp::Abs => each!(x in a => x.abs()),
        FloatOp::Rcp => each!(x in a => 1.0 / x),
        FloatOp::Sqrt => each!(x in a => x.sqrt()),
        _ => rare(f, &a, &b),
    };
    if ftz {
        value = each!(x in value => flush(x));
    }
    if sat {
        // NaN saturates to 0.
        value = each!(x in value => if x > 0.0 { if x < 1.0 { x } else { 1.0 } } else { 0.0 });
    }
    let moves = matches!(f, FloatOp::Neg | FloatOp::Abs | FloatOp::Copysign);
    let bits: Word = match moves {
        true => each!(x in value => x.to_bits()),
        false => each!(x in value => if x.is_nan() { NAN } else { x.to_bits() }),
    };
    put(&mut warp.words[usize::from(d)], &bits, mask);
}

/// The number, where one operand is NaN; -0 is below +0.
#[inline(always)]
fn min(x: f32, y: f32) -> f32 {
    let less = x < y || (x == y && x.is_sign_negative());
    if less || y.is_nan() { x } else { y }
}

#[inline(always)]
fn max(x: f32, y: f32) -> f32 {
    let more = x > y || (x == y && x.is_sign_positive());
    if more || y.is_nan() { x } else { y }
}

#[inline(never)]
fn rare(f: FloatOp, a: &Floats, b: &Floats) -> Floats {
    let wide = |x: f32, function: fn(f64) -> f64| function(f64::from(x)) as f32;
    each!(x in a, y in b => match f {
        FloatOp::MinNan => if x.is_nan() || y.is_nan() { f32::NAN } else { min(x, y) },
        FloatOp::MaxNan => if x.is_nan() || y.is_nan() { f32::NAN } else { max(x, y) },
        // copysign.f32 d, a, b: b with the sign of a.
        FloatOp::Copysign => y.copysign(x),
        FloatOp::Rsqrt => wide(x, |x| 1.0 / x.sqrt()),
        FloatOp::Ex2 => wide(x, f64::exp2),
        FloatOp::Lg2 => wide(x, f64::log2),
        FloatOp::Sin => wide(x, f64::sin),
        FloatOp::Cos => wide(x, f64::cos),
        FloatOp::Tanh => wide(x, f64::tanh),
        _ => f32::NAN,
    })
}

#[inline(never)]
fn directed(f: FloatOp, round: Round, a: &Floats, b: &Floats, c: &Floats) -> Floats {
    each!(x in a, y in b, z in c => {
        let (x, y, z) = (f64::from(x), f64::from(y), f64::from(z));
        // Quotients and roots of f32 keep farther from f32's numbers than f64 rounds.
        let (product, addend) = match f {
            FloatOp::Div => (x / y, 0.0_f64.copysign(x / y)),
            FloatOp::Rcp => (1.0 / x, 0.0_f64.copysign(x)),
            FloatOp::Sqrt => (x.sqrt(), 0.0_f64.copysign(x)),
            FloatOp::Add => (x, y),
            FloatOp::Sub => (x, -y),
            // A zero of the product's sign leaves a zero product as it is.
            FloatOp::Mul => (x * y, 0.0_f64.copysign(x * y)),
            _ => (x * y, z),
        };
        to_format(sum_to_odd(product, addend, round), F32, round) as f32
    })
}

/// A sum that a second rounding to half its bits or fewer turns into the exact sum's: an inexact one is made odd.
pub fn sum_to_odd(x: f64, y: f64, round: Round) -> f64 {
    let sum = x + y;
    if !sum.is_finite() {
        return sum;
    }
    if sum == 0.0 {
        let opposite = x.is_sign_negative() != y.is_sign_negative();
        return if opposite && round == Round::Down { -0.0 } else { sum };
    }
    let part = sum - x;
    let error = (x - (sum - part)) + (y - part);
    if error == 0.0 || sum.to_bits() & 1 == 1 {
        return sum;
    }
    // One step towards the exact sum.
    let away = (error > 0.0) == (sum > 0.0);
    f64::from_bits(if away { sum.to_bits() + 1 } else { sum.to_bits() - 1 })
}

/// A floating-point format: bits of the fraction, exponent of the least normal number, greatest number.
#[derive(Clone, Copy)]
pub struct Format {
    pub fraction: i32,
    pub least: i32,
    pub most: f64,
}

pub const F32: Format = Format { fraction: 23, least: -126, most: f32::MAX as f64 };
pub const F16: Format = Format { fraction: 10, least: -14, most: 65504.0 };
pub const BF16: Format = Format { fraction: 7, least: -126, most: 3.389_531_389_251_535_5e38 };

/// Rounds to an integer.
pub fn to_integer(value: f64, round: Round) -> f64 {
    match round {
        Round::Nearest => value.round_ties_even(),
        Round::Zero => value.trunc(),
        Round::Down => value.floor(),
        Round::Up => value.ceil(),
        Round::Away => value.round(),
    }
}

/// The nearest number of a format, in this direction.
pub fn to_format(value: f64, format: Format, round: Round) -> f64 {
    if value == 0.0 || !value.is_finite() {
        return value;
    }
    let exponent = (value.to_bits() >> 52 & 0x7ff) as i32 - 1023;
    let unit = exponent.max(format.least) - format.fraction;
    let power = |exponent: i32| f64::from_bits(((exponent + 1023) as u64) << 52);
    let rounded = to_integer(value * power(-unit), round) * power(unit);
    let out = if rounded == 0.0 { 0.0_f64.copysign(value) } else { rounded };
    if out.abs() <= format.most {
        return out;
    }
    let stays = match round {
        Round::Nearest | Round::Away => false,
        Round::Zero => true,
        Round::Down => out > 0.0,
        Round::Up => out < 0.0,
    };
    if stays { format.most.copysign(out) } else { f64::INFINITY.copysign(out) }
}

#[inline(never)]
fn double(op: &Op, warp: &mut Warp, mask: u32) {
    let Op::F64 { f, d, a, b, c, .. } = *op else { return };
    let [a, b, c] = [a, b, c].map(|place| warp.longs[usize::from(place)].map(f64::from_bits));
    let pick = |x: f64, y: f64, less: bool| {
        let first = if less { x < y } else { x > y };
        let equal = x == y && x.is_sign_negative() == less;
        if first || equal || y.is_nan() { x } else { y }
    };
    let value = each!(x in a, y in b, z in c => match f {
        FloatOp::Add => x + y,
        FloatOp::Sub => x - y,
        FloatOp::Mul => x * y,
        FloatOp::Fma => x.mul_add(y, z),
        FloatOp::Div => x / y,
        FloatOp::Min => pick(x, y, true),
        FloatOp::Max => pick(x, y, false),
        FloatOp::Neg => -x,
        FloatOp::Abs => x.abs(),
        FloatOp::Copysign => y.copysign(x),
        FloatOp::Rcp => 1.0 / x,
        FloatOp::Sqrt => x.sqrt(),
        FloatOp::Rsqrt => 1.0 / x.sqrt(),
        _ => f64::NAN,
    });
    put_long(&mut warp.longs[usize::from(d)], &each!(x in value => x.to_bits()), mask);
}
