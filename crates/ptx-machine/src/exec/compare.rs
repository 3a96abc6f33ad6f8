//! Comparisons.

use super::lanes::{each, holds};
use super::registers::Warp;
use crate::ptx::op::{Cmp, PredOp, Setp, Ty};

/// Lanes for which a comparison holds.
#[inline(always)]
pub fn compare(test: &Setp, warp: &Warp) -> u32 {
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
        _ => rare_compare(test, warp, 0),
    }
}

#[inline(never)]
fn rare_compare(test: &Setp, warp: &Warp, shift: u32) -> u32 {
    let (a, b) = (usize::from(test.a), usize::from(test.b));
    let order = |lane: usize| -> Option<std::cmp::Ordering> {
        let float = |bits: u32| {
            let value = super::half::widen(test.ty, bits >> shift);
            let half = !matches!(test.ty, Ty::F32);
            let bf16 = matches!(test.ty, Ty::Bf16 | Ty::Bf16x2);
            f64::from(match test.ftz {
                true if half => super::half::flush(value, bf16),
                true => super::float::flush(value),
                false => value,
            })
        };
        match test.ty {
            Ty::F32 | Ty::F16 | Ty::Bf16 | Ty::F16x2 | Ty::Bf16x2 => {
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

/// Lanes for which a comparison of upper halves holds.
pub fn compare_upper(test: &Setp, warp: &Warp) -> u32 {
    rare_compare(test, warp, 16)
}

/// The result and that of the negated comparison, each combined with the third operand.
pub fn combined(test: &Setp, warp: &Warp, found: u32) -> (u32, u32) {
    let Some((f, c, not)) = test.combine else { return (found, !found) };
    let c = warp.preds[usize::from(c)] ^ if not { u32::MAX } else { 0 };
    match f {
        PredOp::And => (found & c, !found & c),
        PredOp::Or => (found | c, !found | c),
        _ => (found ^ c, !found ^ c),
    }
}
