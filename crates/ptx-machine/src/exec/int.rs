//! Integer operations, 32 lanes at a time where that pays.

use super::lanes::{each, put, put_long};
use super::registers::{Long, Warp, Word};
use crate::ptx::op::{IntOp, MixOp, Narrow, Op};

#[inline(always)]
pub fn int(f: IntOp, a: &Word, b: &Word, c: &Word) -> Word {
    match f {
        IntOp::Add => each!(x in a, y in b => x.wrapping_add(y)),
        IntOp::Sub => each!(x in a, y in b => x.wrapping_sub(y)),
        IntOp::Mul => each!(x in a, y in b => x.wrapping_mul(y)),
        IntOp::Mad => each!(x in a, y in b, z in c => x.wrapping_mul(y).wrapping_add(z)),
        IntOp::And => each!(x in a, y in b => x & y),
        IntOp::Or => each!(x in a, y in b => x | y),
        IntOp::Xor => each!(x in a, y in b => x ^ y),
        IntOp::Not => each!(x in a => !x),
        // Shifts by the width or more give 0, or the sign.
        IntOp::Shl => each!(x in a, y in b => if y > 31 { 0_u32 } else { x << (y & 31) }),
        IntOp::ShrU => each!(x in a, y in b => if y > 31 { 0_u32 } else { x >> (y & 31) }),
        IntOp::ShrS => each!(x in a, y in b => (x as i32 >> y.min(31)) as u32),
        IntOp::MinU => each!(x in a, y in b => x.min(y)),
        IntOp::MaxU => each!(x in a, y in b => x.max(y)),
        IntOp::MinS => each!(x in a, y in b => (x as i32).min(y as i32) as u32),
        IntOp::MaxS => each!(x in a, y in b => (x as i32).max(y as i32) as u32),
        IntOp::Neg => each!(x in a => x.wrapping_neg()),
        IntOp::MulHiU => each!(x in a, y in b => ((u64::from(x) * u64::from(y)) >> 32) as u32),
        _ => rare_int(f, a, b, c),
    }
}

#[inline(never)]
fn rare_int(f: IntOp, a: &Word, b: &Word, c: &Word) -> Word {
    each!(x in a, y in b, z in c => one_int(f, x, y, z))
}

/// One lane of the operations that are not worth a loop of their own.
fn one_int(f: IntOp, x: u32, y: u32, z: u32) -> u32 {
    let (sx, sy, sz) = (x as i32, y as i32, z as i32);
    let hi_s = || ((i64::from(sx) * i64::from(sy)) >> 32) as u32;
    let hi_u = || ((u64::from(x) * u64::from(y)) >> 32) as u32;
    let both = u64::from(y) << 32 | u64::from(x);
    match f {
        IntOp::MulHiS => hi_s(),
        IntOp::MadHiU => hi_u().wrapping_add(z),
        IntOp::MadHiS => hi_s().wrapping_add(z),
        IntOp::Mul24U => (x & 0xff_ffff).wrapping_mul(y & 0xff_ffff),
        IntOp::Mul24S => (sx << 8 >> 8).wrapping_mul(sy << 8 >> 8) as u32,
        IntOp::MadWideS16 => (i32::from(x as i16) * i32::from(y as i16)).wrapping_add(sz) as u32,
        IntOp::DivU => x.checked_div(y).unwrap_or(u32::MAX),
        IntOp::RemU => x.checked_rem(y).unwrap_or(x),
        IntOp::DivS => {
            if sy == 0 {
                u32::MAX
            } else {
                sx.wrapping_div(sy) as u32
            }
        }
        IntOp::RemS => {
            if sy == 0 {
                x
            } else {
                sx.wrapping_rem(sy) as u32
            }
        }
        IntOp::Cnot => u32::from(x == 0),
        IntOp::Abs => sx.wrapping_abs() as u32,
        IntOp::SadU => z.wrapping_add(x.abs_diff(y)),
        IntOp::SadS => z.wrapping_add(sx.abs_diff(sy)),
        IntOp::ShfLWrap => (both << (z & 31) >> 32) as u32,
        IntOp::ShfLClamp => (both << z.min(32) >> 32) as u32,
        IntOp::ShfRWrap => (both >> (z & 31)) as u32,
        IntOp::ShfRClamp => (both >> z.min(32)) as u32,
        IntOp::BfeU => bfe(u64::from(x), y, z, 32, false) as u32,
        IntOp::BfeS => bfe(i64::from(sx) as u64, y, z, 32, true) as u32,
        IntOp::Clz => x.leading_zeros(),
        IntOp::Popc => x.count_ones(),
        IntOp::Brev => x.reverse_bits(),
        IntOp::BfindU => 31_u32.wrapping_sub(x.leading_zeros()),
        IntOp::BfindS => 31_u32.wrapping_sub((x ^ (sx >> 31) as u32).leading_zeros()),
        IntOp::BfindShiftU => {
            if x == 0 {
                u32::MAX
            } else {
                x.leading_zeros()
            }
        }
        IntOp::BfindShiftS => match x ^ (sx >> 31) as u32 {
            0 => u32::MAX,
            bits => bits.leading_zeros(),
        },
        IntOp::Prmt => prmt(both, z),
        IntOp::AddSatS => sx.saturating_add(sy) as u32,
        IntOp::SubSatS => sx.saturating_sub(sy) as u32,
        _ => 0,
    }
}

/// A field of `len` bits from `pos`, zero- or sign-extended; bits above the top repeat the sign, or are 0.
fn bfe(value: u64, pos: u32, len: u32, width: u32, signed: bool) -> u64 {
    let (pos, len) = (pos & 0xff, len & 0xff);
    let value = if width == 32 && !signed { value & 0xffff_ffff } else { value };
    if len == 0 {
        return 0;
    }
    let shifted = match (pos >= width, signed) {
        (true, true) => (value as i64 >> 63) as u64,
        (true, false) => 0,
        (false, true) => (value as i64 >> pos) as u64,
        (false, false) => value >> pos,
    };
    if len >= width {
        return shifted;
    }
    let unused = 64 - len;
    if signed { ((shifted << unused) as i64 >> unused) as u64 } else { shifted << unused >> unused }
}

pub fn bfi(field: u64, base: u64, pos: u32, len: u32, width: u32) -> u64 {
    let (pos, len) = (pos & 0xff, len & 0xff);
    if len == 0 || pos >= width {
        return base;
    }
    let ones = if len >= 64 { u64::MAX } else { (1 << len) - 1 };
    base & !(ones << pos) | (field & ones) << pos
}

/// Four bytes picked by nibbles; a nibble's top bit asks for the byte's sign instead.
fn prmt(bytes: u64, selector: u32) -> u32 {
    (0..4).fold(0, |out, index| {
        let nibble = selector >> (4 * index) & 15;
        let byte = (bytes >> (8 * (nibble & 7))) as u8;
        let byte = if nibble & 8 == 0 { byte } else { (byte as i8 >> 7) as u8 };
        out | u32::from(byte) << (8 * index)
    })
}

/// 16 bits: operands extended, the result cut.
#[inline(never)]
pub fn narrow_int(f: IntOp, narrow: Narrow, a: &Word, b: &Word, c: &Word) -> Word {
    let shift = matches!(f, IntOp::Shl | IntOp::ShrU | IntOp::ShrS);
    let extend = |x: u32| if narrow == Narrow::S16 { i32::from(x as i16) as u32 } else { x & 0xffff };
    let (x, z): (Word, Word) = (each!(x in a => extend(x)), each!(x in c => extend(x)));
    let y = if shift { *b } else { each!(y in b => extend(y)) };
    let value = match f {
        IntOp::MulHiU | IntOp::MulHiS => each!(p in x, q in y => p.wrapping_mul(q) >> 16),
        IntOp::MadHiU | IntOp::MadHiS => {
            each!(p in x, q in y, r in z => (p.wrapping_mul(q) >> 16).wrapping_add(r))
        }
        _ => int(f, &x, &y, &z),
    };
    each!(v in value => v & 0xffff)
}

#[inline(always)]
pub fn long(f: IntOp, a: &Long, b: &Long, c: &Long) -> Long {
    match f {
        IntOp::Add => each!(x in a, y in b => x.wrapping_add(y)),
        IntOp::Sub => each!(x in a, y in b => x.wrapping_sub(y)),
        IntOp::And => each!(x in a, y in b => x & y),
        IntOp::Or => each!(x in a, y in b => x | y),
        IntOp::Xor => each!(x in a, y in b => x ^ y),
        IntOp::Mul => each!(x in a, y in b => x.wrapping_mul(y)),
        IntOp::Mad => each!(x in a, y in b, z in c => x.wrapping_mul(y).wrapping_add(z)),
        _ => rare_long(f, a, b, c),
    }
}

#[inline(never)]
fn rare_long(f: IntOp, a: &Long, b: &Long, c: &Long) -> Long {
    each!(x in a, y in b, z in c => one_long(f, x, y, z))
}

fn one_long(f: IntOp, x: u64, y: u64, z: u64) -> u64 {
    let (sx, sy) = (x as i64, y as i64);
    let hi_s = || ((i128::from(sx) * i128::from(sy)) >> 64) as u64;
    let hi_u = || ((u128::from(x) * u128::from(y)) >> 64) as u64;
    match f {
        IntOp::Not => !x,
        IntOp::Cnot => u64::from(x == 0),
        IntOp::Neg => x.wrapping_neg(),
        IntOp::Abs => sx.wrapping_abs() as u64,
        IntOp::MinU => x.min(y),
        IntOp::MaxU => x.max(y),
        IntOp::MinS => sx.min(sy) as u64,
        IntOp::MaxS => sx.max(sy) as u64,
        IntOp::MulHiU => hi_u(),
        IntOp::MulHiS => hi_s(),
        IntOp::MadHiU => hi_u().wrapping_add(z),
        IntOp::MadHiS => hi_s().wrapping_add(z),
        IntOp::DivU => x.checked_div(y).unwrap_or(u64::MAX),
        IntOp::RemU => x.checked_rem(y).unwrap_or(x),
        IntOp::DivS => {
            if sy == 0 {
                u64::MAX
            } else {
                sx.wrapping_div(sy) as u64
            }
        }
        IntOp::RemS => {
            if sy == 0 {
                x
            } else {
                sx.wrapping_rem(sy) as u64
            }
        }
        IntOp::SadU => z.wrapping_add(x.abs_diff(y)),
        IntOp::SadS => z.wrapping_add(sx.abs_diff(sy)),
        IntOp::Brev => x.reverse_bits(),
        _ => 0,
    }
}

#[inline(always)]
pub fn mix(op: &Op, warp: &mut Warp, mask: u32) {
    let Op::Mix { f, d, a, b, c } = *op else { return };
    let [d, a, b, c] = [d, a, b, c].map(usize::from);
    let (words, longs) = (&mut warp.words, &mut warp.longs);
    let signed = |x: u32| i64::from(x as i32);
    let value: Long = match f {
        MixOp::MulWideU => each!(x in words[a], y in words[b] => u64::from(x) * u64::from(y)),
        MixOp::MulWideS => each!(x in words[a], y in words[b] => (signed(x) * signed(y)) as u64),
        MixOp::MadWideU => {
            each!(x in words[a], y in words[b], z in longs[c] => (u64::from(x) * u64::from(y)).wrapping_add(z))
        }
        MixOp::MadWideS => {
            each!(x in words[a], y in words[b], z in longs[c] => ((signed(x) * signed(y)) as u64).wrapping_add(z))
        }
        MixOp::Shl => each!(x in longs[a], y in words[b] => if y > 63 { 0 } else { x << (y & 63) }),
        MixOp::ShrU => each!(x in longs[a], y in words[b] => if y > 63 { 0 } else { x >> (y & 63) }),
        MixOp::ShrS => each!(x in longs[a], y in words[b] => (x as i64 >> y.min(63)) as u64),
        MixOp::BfeU => each!(x in longs[a], y in words[b], z in words[c] => bfe(x, y, z, 64, false)),
        MixOp::BfeS => each!(x in longs[a], y in words[b], z in words[c] => bfe(x, y, z, 64, true)),
        MixOp::ExtendU => each!(x in words[a] => u64::from(x)),
        MixOp::ExtendS => each!(x in words[a] => signed(x) as u64),
        MixOp::Clz | MixOp::Popc | MixOp::BfindU | MixOp::BfindS | MixOp::Truncate => {
            let x = &longs[a];
            let value = match f {
                MixOp::Clz => each!(x in x => x.leading_zeros()),
                MixOp::Popc => each!(x in x => x.count_ones()),
                MixOp::BfindU => each!(x in x => 63_u32.wrapping_sub(x.leading_zeros())),
                MixOp::BfindS => {
                    each!(x in x => 63_u32.wrapping_sub((x ^ (x as i64 >> 63) as u64).leading_zeros()))
                }
                _ => each!(x in x => x as u32),
            };
            return put(&mut words[d], &value, mask);
        }
    };
    put_long(&mut longs[d], &value, mask);
}
