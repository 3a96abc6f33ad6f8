//! Rows times rows: scores and shrink.

use super::{Kernel, run};
use crate::device::cpu::shared::Span;
use crate::device::cpu::simd::{Level, Simd};
use crate::element::Element;
use std::ops::Range;

/// Elements of the inner dimension that a block of a [`Matrix`] has: its rows of one tile stay in the first-level cache.
pub(crate) const INNER: usize = 256;

/// Rows cut into blocks of [`INNER`] elements: block b of row r starts at `r * row + b * block`.
#[derive(Clone, Copy)]
pub(crate) struct Matrix<'a, W> {
    pub(crate) data: Span<'a, W>,
    pub(crate) row: usize,
    pub(crate) block: usize,
}

impl<'a, W> Matrix<'a, W> {
    /// Whole rows, one every `row` elements.
    pub(crate) fn rows(data: &'a [W], row: usize) -> Self {
        Self { data: data.into(), row, block: INNER }
    }
}

/// `out[m * rows.len() + n] = <xs[m], w[rows.start + n]>`; all rows have the length of those of x.
///
/// In every block lane l of a product adds the elements l, l + LANES, .. in order, then the lanes are summed in a fixed
/// order, then the blocks: the same bits in every tile.
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
    let last = (k - 1) / INNER;
    let end = (rows.end - 1) * w.row + last * w.block + (k - last * INNER);
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
    /// Cuts the block into register tiles: 4 x 4 (16 accumulators, 8 loads a step), thin ones at the edges.
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Self { k, xs, w, rows, out } = self;
        let columns = rows.len();
        for block in 0..k.div_ceil(INNER) {
            let count = INNER.min(k - block * INNER);
            let mut m = 0;
            while m < xs.len() {
                let height = if xs.len() - m >= 4 { 4 } else { 1 };
                let mut n = 0;
                while n < columns {
                    // SAFETY: the tile's rows are within both operands, by `dot_rows`' assertions.
                    n += unsafe {
                        let w = w.data.as_ptr().add((rows.start + n) * w.row + block * w.block);
                        let tile = Tile { k: count, xs: &xs[m..], first: block * INNER, w, row: self.w.row };
                        let out = &mut out[m * columns + n..];
                        match (height, columns - n) {
                            (4, 4..) => tile.run::<S, 4, 4>(out, columns),
                            (4, _) => tile.run::<S, 4, 1>(out, columns),
                            (_, 8..) => tile.run::<S, 1, 8>(out, columns),
                            _ => tile.run::<S, 1, 1>(out, columns),
                        }
                    };
                }
                m += height;
            }
        }
    }
}

/// A register tile in one block.
struct Tile<'a, X, W> {
    k: usize,
    xs: &'a [&'a [X]],
    first: usize,
    w: *const W,
    row: usize,
}

impl<X: Element, W: Element> Tile<'_, X, W> {
    /// Adds the block's part to `out`; returns the tile's columns.
    #[inline(always)]
    unsafe fn run<S: Simd, const M: usize, const N: usize>(self, out: &mut [f32], stride: usize) -> usize {
        let (k, whole) = (self.k, self.k / S::LANES * S::LANES);
        // SAFETY: every load is within the block of a row: whole vectors below `whole`, the tail from padded copies.
        unsafe {
            let x: [*const X; M] = std::array::from_fn(|m| self.xs[m].as_ptr().add(self.first));
            let w: [*const W; N] = std::array::from_fn(|n| self.w.add(n * self.row));
            let mut sums = [[S::splat(0.0); N]; M];
            let mut i = 0;
            while i < whole {
                let wv: [S::V; N] = std::array::from_fn(|n| S::load(w[n].add(i)));
                for m in 0..M {
                    let xv = S::load(x[m].add(i));
                    for n in 0..N {
                        sums[m][n] = S::fma(xv, wv[n], sums[m][n]);
                    }
                }
                i += S::LANES;
            }
            if whole < k {
                let wv: [S::V; N] = std::array::from_fn(|n| S::load_part(w[n].add(whole), k - whole));
                for m in 0..M {
                    let xv = S::load_part(x[m].add(whole), k - whole);
                    for n in 0..N {
                        sums[m][n] = S::fma(xv, wv[n], sums[m][n]);
                    }
                }
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
