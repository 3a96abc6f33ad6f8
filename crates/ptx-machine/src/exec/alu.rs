//! Moves, predicates, selections and bits; integers and comparisons by way of their files.

use super::compare::{combined, compare, compare_upper};
use super::int::{bfi, int, long, mix, narrow_int};
use super::lanes::{each, holds, put, put_long, two_versions};
use super::registers::{Long, Warp, Word};
use crate::ptx::op::{NONE, Narrow, Op, PredOp, Testp, Ty};

two_versions!(
    /// Executes an instruction of this file.
    run, run_fast, body, (op: &Op, warp: &mut Warp, mask: u32)
);

#[inline(always)]
fn body(op: &Op, warp: &mut Warp, mask: u32) {
    match *op {
        Op::Mov { d, a } => {
            let value = warp.words[usize::from(a)];
            put(&mut warp.words[usize::from(d)], &value, mask);
        }
        Op::MovLong { d, a } => {
            let value = warp.longs[usize::from(a)];
            put_long(&mut warp.longs[usize::from(d)], &value, mask);
        }
        Op::Int { f, narrow, d, a, b, c } => {
            let [a, b, c] = [a, b, c].map(|place| &warp.words[usize::from(place)]);
            let value = if narrow == Narrow::No { int(f, a, b, c) } else { narrow_int(f, narrow, a, b, c) };
            put(&mut warp.words[usize::from(d)], &value, mask);
        }
        Op::Long { f, d, a, b, c } => {
            let [a, b, c] = [a, b, c].map(|place| &warp.longs[usize::from(place)]);
            let value = long(f, a, b, c);
            put_long(&mut warp.longs[usize::from(d)], &value, mask);
        }
        Op::Mix { .. } => mix(op, warp, mask),
        Op::Lop3 { table, d, a, b, c } => {
            let [a, b, c] = [a, b, c].map(|place| &warp.words[usize::from(place)]);
            let value = lop3(table, a, b, c);
            put(&mut warp.words[usize::from(d)], &value, mask);
        }
        Op::Setp(ref test) => {
            let found = compare(test, warp);
            let (yes, mut no) = combined(test, warp, found);
            if matches!(test.ty, Ty::F16x2 | Ty::Bf16x2) {
                no = combined(test, warp, compare_upper(test, warp)).0;
            }
            set_pred(warp, test.p, yes, mask);
            if test.q != NONE {
                set_pred(warp, test.q, no, mask);
            }
        }
        Op::Selp { long: false, d, a, b, p, not } => {
            let p = warp.preds[usize::from(p)] ^ if not { u32::MAX } else { 0 };
            let mut value = warp.words[usize::from(b)];
            put(&mut value, &warp.words[usize::from(a)], p);
            put(&mut warp.words[usize::from(d)], &value, mask);
        }
        Op::Selp { long: true, d, a, b, p, not } => {
            let p = warp.preds[usize::from(p)] ^ if not { u32::MAX } else { 0 };
            let mut value = warp.longs[usize::from(b)];
            put_long(&mut value, &warp.longs[usize::from(a)], p);
            put_long(&mut warp.longs[usize::from(d)], &value, mask);
        }
        Op::Pred { f, d, a, b } => {
            let (a, b) = (warp.preds[usize::from(a)], warp.preds[usize::from(b)]);
            let value = match f {
                PredOp::And => a & b,
                PredOp::Or => a | b,
                PredOp::Xor => a ^ b,
                PredOp::Not => !a,
                PredOp::Mov => a,
            };
            set_pred(warp, d, value, mask);
        }
        Op::Pack { .. } | Op::Unpack { .. } => pack(op, warp, mask),
        _ => rare(op, warp, mask),
    }
}

fn set_pred(warp: &mut Warp, d: u16, value: u32, mask: u32) {
    let pred = &mut warp.preds[usize::from(d)];
    *pred = *pred & !mask | value & mask;
}

#[inline(always)]
fn lop3(table: u8, a: &Word, b: &Word, c: &Word) -> Word {
    let mut out = [0; 32];
    for minterm in (0..8).filter(|minterm| table >> minterm & 1 != 0) {
        let flip = |bit: u32| if minterm & bit != 0 { 0 } else { u32::MAX };
        let (fa, fb, fc) = (flip(4), flip(2), flip(1));
        for lane in 0..32 {
            out[lane] |= (a[lane] ^ fa) & (b[lane] ^ fb) & (c[lane] ^ fc);
        }
    }
    out
}

#[inline(always)]
fn pack(op: &Op, warp: &mut Warp, mask: u32) {
    match *op {
        Op::Pack { bits: 32, d, parts, .. } => {
            let (low, high) = (&warp.words[usize::from(parts[0])], &warp.words[usize::from(parts[1])]);
            let value = each!(x in low, y in high => u64::from(x) | u64::from(y) << 32);
            put_long(&mut warp.longs[usize::from(d)], &value, mask);
        }
        Op::Pack { bits, count, long, d, parts } => {
            let mut value: Long = [0; 32];
            for (index, &part) in parts[..usize::from(count)].iter().enumerate() {
                let cut = (1_u64 << bits) - 1;
                for (value, &part) in value.iter_mut().zip(&warp.words[usize::from(part)]) {
                    *value |= (u64::from(part) & cut) << (index * usize::from(bits));
                }
            }
            if long {
                put_long(&mut warp.longs[usize::from(d)], &value, mask);
            } else {
                put(&mut warp.words[usize::from(d)], &each!(x in value => x as u32), mask);
            }
        }
        Op::Unpack { bits, count, long, a, parts } => {
            let value: Long = match long {
                true => warp.longs[usize::from(a)],
                false => each!(x in warp.words[usize::from(a)] => u64::from(x)),
            };
            let cut = ((1_u64 << bits) - 1) as u32;
            for (index, &part) in parts[..usize::from(count)].iter().enumerate() {
                if part != NONE {
                    let shift = index as u32 * u32::from(bits);
                    let piece = each!(x in value => (x >> shift) as u32 & cut);
                    put(&mut warp.words[usize::from(part)], &piece, mask);
                }
            }
        }
        _ => {}
    }
}

/// Instructions that are seldom executed.
#[inline(never)]
fn rare(op: &Op, warp: &mut Warp, mask: u32) {
    match *op {
        Op::Bfi { long: false, d, a, b, c, e } => {
            let [a, b, c, e] = [a, b, c, e].map(|place| warp.words[usize::from(place)]);
            let value =
                each!(x in a, y in b, z in c, w in e => bfi(u64::from(x), u64::from(y), z, w, 32) as u32);
            put(&mut warp.words[usize::from(d)], &value, mask);
        }
        Op::Bfi { long: true, d, a, b, c, e } => {
            let [a, b] = [a, b].map(|place| warp.longs[usize::from(place)]);
            let [c, e] = [c, e].map(|place| warp.words[usize::from(place)]);
            let value = each!(x in a, y in b, z in c, w in e => bfi(x, y, z, w, 64));
            put_long(&mut warp.longs[usize::from(d)], &value, mask);
        }
        Op::Dp4a { signed_a, signed_b, d, a, b, c } => {
            let [a, b, c] = [a, b, c].map(|place| warp.words[usize::from(place)]);
            let byte = |x: u32, index: u32, signed: bool| {
                let byte = (x >> (8 * index)) as u8;
                if signed { i32::from(byte as i8) } else { i32::from(byte) }
            };
            let value = each!(x in a, y in b, z in c => (0..4).fold(z, |sum, index| {
                sum.wrapping_add((byte(x, index, signed_a) * byte(y, index, signed_b)) as u32)
            }));
            put(&mut warp.words[usize::from(d)], &value, mask);
        }
        Op::Slct { long, float, ftz, d, a, b, c } => {
            let c = &warp.words[usize::from(c)];
            let first = match float {
                // Flushed, a negative subnormal is -0, which counts as not negative.
                true if ftz => holds!(z in c => super::float::flush(f32::from_bits(z)) >= 0.0),
                true => holds!(z in c => f32::from_bits(z) >= 0.0),
                false => holds!(z in c => z as i32 >= 0),
            };
            let [d, a, b] = [d, a, b].map(usize::from);
            if long {
                let mut value = warp.longs[b];
                put_long(&mut value, &warp.longs[a], first);
                put_long(&mut warp.longs[d], &value, mask);
            } else {
                let mut value = warp.words[b];
                put(&mut value, &warp.words[a], first);
                put(&mut warp.words[d], &value, mask);
            }
        }
        Op::Set { ref test, yes, packed } => {
            let low = combined(test, warp, compare(test, warp)).0;
            let high = if packed { combined(test, warp, compare_upper(test, warp)).0 } else { low };
            let pick = |mask: u32, lane: usize, bits: u32| if mask >> lane & 1 != 0 { bits } else { 0 };
            let halves = |lane: usize| pick(low, lane, yes & 0xffff) | pick(high, lane, yes & 0xffff_0000);
            put(&mut warp.words[usize::from(test.p)], &std::array::from_fn(halves), mask);
        }
        Op::Testp { f, long, p, a } => {
            let value: [f64; 32] = std::array::from_fn(|lane| match long {
                true => f64::from_bits(warp.longs[usize::from(a)][lane]),
                false => f64::from(f32::from_bits(warp.words[usize::from(a)][lane])),
            });
            let least = if long { f64::MIN_POSITIVE } else { f64::from(f32::MIN_POSITIVE) };
            let found = holds!(x in value => match f {
                Testp::Finite => x.is_finite(),
                Testp::Infinite => x.is_infinite(),
                Testp::Number => !x.is_nan(),
                Testp::NotANumber => x.is_nan(),
                Testp::Normal => x.is_finite() && x.abs() >= least,
                Testp::Subnormal => x != 0.0 && x.abs() < least,
            });
            set_pred(warp, p, found, mask);
        }
        Op::Activemask { d } => put(&mut warp.words[usize::from(d)], &[mask; 32], mask),
        Op::Carry { .. } | Op::MadCarry { .. } => carry(op, warp, mask),
        _ => {}
    }
}

/// Sums and differences with the carry flag, which is the borrow of a difference.
fn carry(op: &Op, warp: &mut Warp, mask: u32) {
    for lane in (0..32_usize).filter(|lane| mask >> lane & 1 != 0) {
        let flag = u128::from(warp.carry >> lane & 1);
        let value = |long: bool, place: u16| match long {
            true => warp.longs[usize::from(place)][lane],
            false => u64::from(warp.words[usize::from(place)][lane]),
        };
        let (long, sets, d, sum) = match *op {
            Op::Carry { long, subtract, reads, sets, d, a, b } => {
                let (a, b) = (u128::from(value(long, a)), u128::from(value(long, b)));
                let flag = if reads { flag } else { 0 };
                (long, sets, d, if subtract { a.wrapping_sub(b).wrapping_sub(flag) } else { a + b + flag })
            }
            Op::MadCarry { long, high, signed, reads, sets, d, a, b, c } => {
                let (a, b, c) = (value(long, a), value(long, b), u128::from(value(long, c)));
                let product = match (long, signed) {
                    (false, true) => (i64::from(a as i32) * i64::from(b as i32)) as u64 as u128,
                    (true, true) => (i128::from(a as i64) * i128::from(b as i64)) as u128,
                    (_, false) => u128::from(a) * u128::from(b),
                };
                let (bits, cut) = if long { (64, u128::from(u64::MAX)) } else { (32, u128::from(u32::MAX)) };
                let half = if high { product >> bits & cut } else { product & cut };
                (long, sets, d, half + c + if reads { flag } else { 0 })
            }
            _ => return,
        };
        let out = (sum >> if long { 64 } else { 32 } & 1) as u32;
        if sets {
            warp.carry = warp.carry & !(1 << lane) | out << lane;
        }
        match long {
            true => warp.longs[usize::from(d)][lane] = sum as u64,
            false => warp.words[usize::from(d)][lane] = sum as u32,
        }
    }
}
