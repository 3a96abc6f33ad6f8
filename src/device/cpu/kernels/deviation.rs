//! How far a row's values lie from their mean.

use super::Kernel;
use crate::device::cpu::simd::{Level, Simd};
use crate::element::Element;

/// `sqrt(variance + epsilon)` of a row: the mean first, then the squares about it, each in one fixed order.
pub(crate) fn deviation<X: Element>(level: Level, row: &[X], epsilon: f32) -> f32 {
    if row.is_empty() {
        return epsilon.sqrt();
    }
    let (n, mut sum) = (row.len() as f32, 0.0);
    // SAFETY: `Level::detect` found the instruction set.
    unsafe { X::moment(level, Moment { row, mean: None, sum: &mut sum }) };
    let mean = Some(sum / n);
    // SAFETY: as above.
    unsafe { X::moment(level, Moment { row, mean, sum: &mut sum }) };
    (sum / n + epsilon).sqrt()
}

/// The sum of a row, or of the squares of its distances from a mean.
pub struct Moment<'a, X> {
    row: &'a [X],
    mean: Option<f32>,
    sum: &'a mut f32,
}

impl<X: Element> Kernel for Moment<'_, X> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Self { row, mean, sum } = self;
        let whole = row.len() / (4 * S::LANES) * 4 * S::LANES;
        let tail = row[whole..].iter().map(|v| v.to_f32());
        // SAFETY: four vectors from every place below `whole` are within the row.
        unsafe {
            let mut sums = [S::splat(0.0); 4];
            let minus = S::splat(-mean.unwrap_or(0.0));
            for i in (0..whole).step_by(4 * S::LANES) {
                for (n, sum) in sums.iter_mut().enumerate() {
                    let v = S::load(row.as_ptr().add(i + n * S::LANES));
                    *sum = match mean {
                        None => S::add(*sum, v),
                        Some(_) => {
                            let distance = S::add(v, minus);
                            S::fma(distance, distance, *sum)
                        }
                    };
                }
            }
            let [a, b, c, d] = S::sums(sums);
            *sum = (a + b) + (c + d);
        }
        *sum += match mean {
            None => tail.sum::<f32>(),
            Some(mean) => tail.map(|v| (v - mean) * (v - mean)).sum::<f32>(),
        };
    }
}
