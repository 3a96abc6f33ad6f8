//! Integers, predicates, moves and comparisons, 32 lanes at a time.
//!
//! Bodies are compiled twice: for any processor, and with AVX2 and FMA, which is what makes the loops over lanes fast.

use super::warp::{Long, Warp, Word};
use crate::ptx::op::{Cmp, IntOp, MixOp, NONE, Narrow, Op, PredOp, Setp, Testp, Ty};

/// Does the processor have what the fast versions need?
pub fn fast() -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("bmi1")
            && is_x86_feature_detected!("bmi2")
            && is_x86_feature_detected!("lzcnt")
            && is_x86_feature_detected!("popcnt")
    }
    #[cfg(not(target_arch = "x86_64"))]
    false
}

/// A function in two versions out of one body.
macro_rules! two_versions {
    ($(#[$doc:meta])* $name:ident, $fast:ident, $body:ident, ($($arg:ident: $ty:ty),*)) => {
        $(#[$doc])*
        pub fn $name(fast: bool, $($arg: $ty),*) {
            #[cfg(target_arch = "x86_64")]
            if fast {
                // SAFETY: `fast` comes from `alu::fast`, which asks the processor for these features.
                return unsafe { $fast($($arg),*) };
            }
            let _ = fast;
            $body($($arg),*);
        }

        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = "avx2,fma,bmi1,bmi2,lzcnt,popcnt")]
        fn $fast($($arg: $ty),*) {
            $body($($arg),*);
        }
    };
}
pub(super) use two_versions;

/// An expression of each lane.
macro_rules! each {
    ($($name:ident in $lanes:expr),+ => $value:expr) => {{
        let mut out = [Default::default(); 32];
        for lane in 0..32 {
            $(let $name = $lanes[lane];)+
            out[lane] = $value;
        }
        out
    }};
}
pub(super) use each;

/// Lanes for which a condition holds.
macro_rules! holds {
    ($($name:ident in $lanes:expr),+ => $value:expr) => {{
        let mut out = 0_u32;
        for lane in 0..32 {
            $(let $name = $lanes[lane];)+
            out |= if $value { 1_u32 << lane } else { 0 };
        }
        out
    }};
}

/// Writes the lanes of a mask.
#[inline(always)]
pub fn put(to: &mut Word, from: &Word, mask: u32) {
    if mask == u32::MAX {
        *to = *from;
        return;
    }
    for lane in 0..32 {
        to[lane] = if mask >> lane & 1 != 0 { from[lane] } else { to[lane] };
    }
}

/// Writes the lanes of a mask.
#[inline(always)]
pub fn put_long(to: &mut Long, from: &Long, mask: u32) {
    if mask == u32::MAX {
        *to = *from;
        return;
    }
    for lane in 0..32 {
        to[lane] = if mask >> lane & 1 != 0 { from[lane] } else { to[lane] };
    }
}

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
            let (yes, no) = combined(test, warp, found);
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
fn int(f: IntOp, a: &Word, b: &Word, c: &Word) -> Word {
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

fn bfi(field: u64, base: u64, pos: u32, len: u32, width: u32) -> u64 {
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
fn narrow_int(f: IntOp, narrow: Narrow, a: &Word, b: &Word, c: &Word) -> Word {
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
fn long(f: IntOp, a: &Long, b: &Long, c: &Long) -> Long {
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
fn mix(op: &Op, warp: &mut Warp, mask: u32) {
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

/// Lanes for which a comparison holds.
#[inline(always)]
fn compare(test: &Setp, warp: &Warp) -> u32 {
    let (a, b) = (usize::from(test.a), usize::from(test.b));
    match test.ty {
        Ty::S32 => {
            let (a, b) = (&warp.words[a], &warp.words[b]);
            match test.cmp {
                Cmp::Eq => holds!(x in a, y in b => x == y),
                Cmp::Ne => holds!(x in a, y in b => x != y),
                Cmp::Lt => holds!(x in a, y in b => (x as i32) < y as i32),
                Cmp::Le => holds!(x in a, y in b => x as i32 <= y as i32),
                Cmp::Gt => holds!(x in a, y in b => x as i32 > y as i32),
                _ => holds!(x in a, y in b => x as i32 >= y as i32),
            }
        }
        Ty::U32 | Ty::B32 | Ty::U16 | Ty::B16 => {
            let (a, b) = (&warp.words[a], &warp.words[b]);
            match test.cmp {
                Cmp::Eq => holds!(x in a, y in b => x == y),
                Cmp::Ne => holds!(x in a, y in b => x != y),
                Cmp::Lt => holds!(x in a, y in b => x < y),
                Cmp::Le => holds!(x in a, y in b => x <= y),
                Cmp::Gt => holds!(x in a, y in b => x > y),
                _ => holds!(x in a, y in b => x >= y),
            }
        }
        Ty::F32 if !test.ftz => {
            let a: [f32; 32] = each!(x in warp.words[a] => f32::from_bits(x));
            let b: [f32; 32] = each!(x in warp.words[b] => f32::from_bits(x));
            match test.cmp {
                Cmp::Eq => holds!(x in a, y in b => x == y),
                Cmp::Ne => holds!(x in a, y in b => x != y && !x.is_nan() && !y.is_nan()),
                Cmp::Lt => holds!(x in a, y in b => x < y),
                Cmp::Le => holds!(x in a, y in b => x <= y),
                Cmp::Gt => holds!(x in a, y in b => x > y),
                Cmp::Ge => holds!(x in a, y in b => x >= y),
                Cmp::Equ => !holds!(x in a, y in b => x != y && !x.is_nan() && !y.is_nan()),
                Cmp::Neu => !holds!(x in a, y in b => x == y),
                Cmp::Ltu => !holds!(x in a, y in b => x >= y),
                Cmp::Leu => !holds!(x in a, y in b => x > y),
                Cmp::Gtu => !holds!(x in a, y in b => x <= y),
                Cmp::Geu => !holds!(x in a, y in b => x < y),
                Cmp::Num => holds!(x in a, y in b => !x.is_nan() && !y.is_nan()),
                Cmp::Nan => holds!(x in a, y in b => x.is_nan() || y.is_nan()),
            }
        }
        _ => rare_compare(test, warp),
    }
}

#[inline(never)]
fn rare_compare(test: &Setp, warp: &Warp) -> u32 {
    let (a, b) = (usize::from(test.a), usize::from(test.b));
    let order = |lane: usize| -> Option<std::cmp::Ordering> {
        let float = |bits: u32| {
            let value = super::half::widen(test.ty, bits);
            f64::from(if test.ftz { super::float::flush(value) } else { value })
        };
        match test.ty {
            Ty::F32 | Ty::F16 | Ty::Bf16 => {
                float(warp.words[a][lane]).partial_cmp(&float(warp.words[b][lane]))
            }
            Ty::F64 => f64::from_bits(warp.longs[a][lane]).partial_cmp(&f64::from_bits(warp.longs[b][lane])),
            Ty::S64 => Some((warp.longs[a][lane] as i64).cmp(&(warp.longs[b][lane] as i64))),
            Ty::U64 | Ty::B64 => Some(warp.longs[a][lane].cmp(&warp.longs[b][lane])),
            _ => Some((warp.words[a][lane] as i16).cmp(&(warp.words[b][lane] as i16))),
        }
    };
    (0..32).fold(0, |mask, lane| mask | u32::from(decides(test.cmp, order(lane))) << lane)
}

/// What a comparison says of an order; none where an operand is NaN.
fn decides(cmp: Cmp, order: Option<std::cmp::Ordering>) -> bool {
    match (cmp, order) {
        (Cmp::Num, _) => order.is_some(),
        (Cmp::Nan, _) => order.is_none(),
        (Cmp::Equ | Cmp::Neu | Cmp::Ltu | Cmp::Leu | Cmp::Gtu | Cmp::Geu, None) => true,
        (_, None) => false,
        (Cmp::Eq | Cmp::Equ, Some(order)) => order.is_eq(),
        (Cmp::Ne | Cmp::Neu, Some(order)) => order.is_ne(),
        (Cmp::Lt | Cmp::Ltu, Some(order)) => order.is_lt(),
        (Cmp::Le | Cmp::Leu, Some(order)) => order.is_le(),
        (Cmp::Gt | Cmp::Gtu, Some(order)) => order.is_gt(),
        (Cmp::Ge | Cmp::Geu, Some(order)) => order.is_ge(),
    }
}

/// The result and that of the negated comparison, each combined with the third operand.
fn combined(test: &Setp, warp: &Warp, found: u32) -> (u32, u32) {
    let Some((f, c, not)) = test.combine else { return (found, !found) };
    let c = warp.preds[usize::from(c)] ^ if not { u32::MAX } else { 0 };
    match f {
        PredOp::And => (found & c, !found & c),
        PredOp::Or => (found | c, !found | c),
        _ => (found ^ c, !found ^ c),
    }
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
        Op::Slct { long, float, d, a, b, c } => {
            let c = &warp.words[usize::from(c)];
            let first = match float {
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
        Op::Set { ref test, float } => {
            let found = combined(test, warp, compare(test, warp)).0;
            let yes = if float { 1.0_f32.to_bits() } else { u32::MAX };
            let value = std::array::from_fn(|lane| if found >> lane & 1 != 0 { yes } else { 0 });
            put(&mut warp.words[usize::from(test.p)], &value, mask);
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
