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
        let m = self.rows.len();
        let mut wide = [0f32; MAX_LANES];
        for k in (0..self.k).step_by(S::LANES) {
            let count = S::LANES.min(self.k - k);
            let out = &mut self.out[k * m..(k + count) * m];
            for (i, row) in self.rows.iter().enumerate() {
                let from = &row[k..k + count];
                // SAFETY: `from` holds `count` elements, `wide` a vector of any level.
                let v = unsafe {
                    if count == S::LANES {
                        S::load(from.as_ptr())
                    } else {
                        S::load_part(from.as_ptr(), count)
                    }
                };
                // SAFETY: as above.
                unsafe { S::store_f32(wide.as_mut_ptr(), v) };
                if count == S::LANES {
                    let first = out[i..].as_mut_ptr();
                    for (lane, &v) in wide[..S::LANES].iter().enumerate() {
                        // SAFETY: `out` holds `count` rows of m, and i is below m.
                        unsafe { *first.add(lane * m) = v };
                    }
                } else {
                    out[i..].iter_mut().step_by(m).zip(&wide).for_each(|(place, &v)| *place = v);
                }
            }
        }
    }
}
