//! Rows times rows: what is neither packed nor an adapter's.

use super::{Kernel, run};
use crate::device::cpu::simd::{Level, Simd};
use crate::element::Element;
use std::ops::Range;

/// Elements of the inner dimension in a block: what a tile has of it stays in the first-level cache, and the next block is
/// asked for meanwhile.
const INNER: usize = 256;

/// Blocks whose products stay in registers together: adding up lanes costs as much as some 100 multiply-adds, and more of x
/// than this would not stay in the first-level cache.
const SPAN: usize = 4;

/// Rows of one length, one every `stride` elements.
#[derive(Clone, Copy)]
pub(crate) struct Matrix<'a, W> {
    pub(crate) data: &'a [W],
    pub(crate) stride: usize,
}

/// `out[m * rows.len() + n] = <xs[m], w[rows.start + n]>`; all rows have the length of those of x.
///
/// In every [`SPAN`] of blocks lane l of a product adds the elements l, l + LANES, .. in order, then the lanes are summed in a
/// fixed order, then the spans: the same bits in every tile.
pub(crate) fn dot_rows<X: Element, W: Element>(
    level: Level,
    xs: &[&[X]],
    w: Matrix<W>,
    rows: Range<usize>,
    out: &mut [f32],
) {
    let k = xs.first().map_or(0, |x| x.len());
    let out = &mut out[..xs.len() * rows.len()];
    out.fill(0.0);
    if out.is_empty() || k == 0 {
        return;
    }
    let end = (rows.end - 1) * w.stride + k;
    assert!(xs.iter().all(|x| x.len() == k) && end <= w.data.len(), "rows of one length");
    // SAFETY: the assertion above is the kernel's contract; `Level::detect` found the instruction set.
    unsafe { run(level, Dots { k, xs, w, rows, out }) }
}

struct Dots<'a, X, W> {
    k: usize,
    xs: &'a [&'a [X]],
    w: Matrix<'a, W>,
    rows: Range<usize>,
    out: &'a mut [f32],
}

impl<X: Element, W: Element> Kernel for Dots<'_, X, W> {
    /// Cuts the products into register tiles: 6 x 4 (24 sums, 10 loads a step) where there are registers for it, else 6 x 2,
    /// and thinner ones at the edges.
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Self { k, xs, w, rows, out } = self;
        let columns = rows.len();
        for first in (0..k).step_by(SPAN * INNER) {
            let mut m = 0;
            while m < xs.len() {
                let height = match (xs.len() - m).min(S::ROWS) {
                    6.. => 6,
                    4 | 5 => 4,
                    2 | 3 => 2,
                    _ => 1,
                };
                let mut n = 0;
                while n < columns {
                    // SAFETY: the tile's rows are within both operands, by `dot_rows`' assertions.
                    n += unsafe {
                        let start = w.data.as_ptr().add((rows.start + n) * w.stride + first);
                        // The first rows bring the matrix, the others find it in a cache.
                        let (k, ahead) = ((SPAN * INNER).min(k - first), m == 0);
                        let tile = Tile { k, xs: &xs[m..], first, w: start, stride: w.stride, ahead };
                        let out = &mut out[m * columns + n..];
                        let wide = if S::ROWS * S::VECTORS >= 6 * 4 { 4 } else { 2 };
                        match (height, columns - n >= wide) {
                            (6, true) if wide == 4 => tile.run::<S, 6, 4>(out, columns),
                            (6, true) => tile.run::<S, 6, 2>(out, columns),
                            (6, false) => tile.run::<S, 6, 1>(out, columns),
                            (4, true) if wide == 4 => tile.run::<S, 4, 4>(out, columns),
                            (4, true) => tile.run::<S, 4, 2>(out, columns),
                            (4, false) => tile.run::<S, 4, 1>(out, columns),
                            (2, true) if wide == 4 => tile.run::<S, 2, 4>(out, columns),
                            (2, true) => tile.run::<S, 2, 2>(out, columns),
                            (2, false) => tile.run::<S, 2, 1>(out, columns),
                            _ if columns - n >= 8 => tile.run::<S, 1, 8>(out, columns),
                            _ => tile.run::<S, 1, 1>(out, columns),
                        }
                    };
                }
                m += height;
            }
        }
    }
}

/// A register tile in one span of blocks.
struct Tile<'a, X, W> {
    k: usize,
    xs: &'a [&'a [X]],
    first: usize,
    w: *const W,
    stride: usize,
    ahead: bool,
}

impl<X: Element, W: Element> Tile<'_, X, W> {
    /// Adds the span's part to `out`; returns the tile's columns.
    #[inline(always)]
    unsafe fn run<S: Simd, const M: usize, const N: usize>(self, out: &mut [f32], stride: usize) -> usize {
        // SAFETY: every load is within the span of a row: whole vectors, the tail from padded copies.
        unsafe {
            let mut sums = [[S::splat(0.0); N]; M];
            let (mut x, mut w) = ([self.xs[0].as_ptr(); M], [self.w; N]);
            for m in 0..M {
                x[m] = self.xs[m].as_ptr().add(self.first);
            }
            for n in 0..N {
                w[n] = w[n].add(n * self.stride);
            }
            let mut left = self.k;
            while left > 0 {
                let count = INNER.min(left);
                let whole = count / S::LANES * S::LANES;
                let mut i = 0;
                while i < whole {
                    // Short vectors ask once a line.
                    let bytes = S::LANES * size_of::<W>();
                    if self.ahead && (bytes > 16 || (i * size_of::<W>()).is_multiple_of(64)) {
                        for n in 0..N {
                            S::prefetch(w[n].wrapping_add(i + INNER).cast());
                        }
                    }
                    let mut columns = [S::splat(0.0); N];
                    for n in 0..N {
                        columns[n] = S::load(w[n].add(i));
                    }
                    for m in 0..M {
                        let x = S::load(x[m].add(i));
                        for n in 0..N {
                            sums[m][n] = S::fma(x, columns[n], sums[m][n]);
                        }
                    }
                    i += S::LANES;
                }
                if whole < count {
                    for m in 0..M {
                        let x = S::load_part(x[m].add(whole), count - whole);
                        for n in 0..N {
                            let w = S::load_part(w[n].add(whole), count - whole);
                            sums[m][n] = S::fma(x, w, sums[m][n]);
                        }
                    }
                }
                x = x.map(|x| x.wrapping_add(count));
                w = w.map(|w| w.wrapping_add(count));
                left -= count;
            }
            for m in 0..M {
                let mut n = 0;
                while n < N {
                    let at = |i: usize| if n + i < N { n + i } else { n };
                    let four = S::sums([sums[m][at(0)], sums[m][at(1)], sums[m][at(2)], sums[m][at(3)]]);
                    for i in 0..4 {
                        if n + i < N {
                            out[m * stride + n + i] += four[i];
                        }
                    }
                    n += 4;
                }
            }
        }
        N
    }
}
