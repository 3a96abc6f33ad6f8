//! Rows into the order in which [`panel`](super::panel) reads them.

use super::Kernel;
use crate::device::cpu::simd::{Level, MAX_LANES, Simd};
use crate::element::Element;

/// `out[k * rows + m] = rows[m][k]`, widened; all rows have one length.
pub(crate) fn pack_rows<X: Element>(level: Level, rows: &[&[X]], out: &mut [f32]) {
    let k = rows.first().map_or(0, |row| row.len());
    assert!(rows.iter().all(|row| row.len() == k) && out.len() == k * rows.len(), "rows of one length");
    // SAFETY: the assertion above is the kernel's contract; `Level::detect` found the instruction set.
    unsafe { X::pack(level, Pack { rows, k, out }) }
}

pub struct Pack<'a, X> {
    rows: &'a [&'a [X]],
    k: usize,
    out: &'a mut [f32],
}

impl<X: Element> Kernel for Pack<'_, X> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Self { rows, k, out } = self;
        let (m, whole) = (rows.len(), k / S::LANES * S::LANES);
        for k in (0..whole).step_by(S::LANES) {
            let to = out[k * m..(k + S::LANES) * m].as_mut_ptr();
            // SAFETY: a vector of every row, and m values at each of its lanes' places.
            unsafe {
                match m {
                    1 => S::store_f32(to, S::load(rows[0].as_ptr().add(k))),
                    2 | 3 => {
                        for (i, row) in rows.iter().enumerate() {
                            store_apart::<S>(S::load(row.as_ptr().add(k)), S::LANES, to.add(i), m);
                        }
                    }
                    _ => {
                        // Four rows at once, some of the last four once more.
                        for first in (0..m).step_by(4) {
                            let first = first.min(m - 4);
                            let mut four = [S::splat(0.0); 4];
                            for i in 0..4 {
                                four[i] = S::load(rows[first + i].as_ptr().add(k));
                            }
                            S::store_lanes(to.add(first), m, four);
                        }
                    }
                }
            }
        }
        if whole < k {
            let to = out[whole * m..k * m].as_mut_ptr();
            for (i, row) in rows.iter().enumerate() {
                let left = &row[whole..k];
                // SAFETY: as many elements as are left of the row, and of m values each as many places.
                unsafe {
                    store_apart::<S>(S::load_part(left.as_ptr(), left.len()), left.len(), to.add(i), m)
                };
            }
        }
    }
}

/// Stores the first `count` lanes, `stride` elements apart.
#[inline(always)]
unsafe fn store_apart<S: Simd>(v: S::V, count: usize, to: *mut f32, stride: usize) {
    let mut wide = [0f32; MAX_LANES];
    // SAFETY: `wide` holds a vector of any level; the places are the caller's promise.
    unsafe {
        S::store_f32(wide.as_mut_ptr(), v);
        for (lane, &v) in wide[..count].iter().enumerate() {
            *to.add(lane * stride) = v;
        }
    }
}
