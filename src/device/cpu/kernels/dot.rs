//! Rows times rows: scores and shrink.

use super::{Kernel, run};
use crate::device::cpu::simd::{Level, Simd};
use crate::element::Element;
use std::ops::Range;

/// `out[m * ws.len() + n] = <xs[m], ws[n]>`; all rows have one length.
///
/// In every 1024 elements lane l of a product adds the elements l, l + LANES, .. in order, then the lanes are summed
/// in a fixed order, then the parts: the same bits in every tile.
pub(crate) fn dot_rows<X: Element, W: Element>(level: Level, xs: &[&[X]], ws: &[&[W]], out: &mut [f32]) {
    let k = xs.first().map_or(0, |x| x.len());
    assert!(xs.iter().all(|x| x.len() == k) && ws.iter().all(|w| w.len() == k), "rows of one length");
    assert!(out.len() >= xs.len() * ws.len(), "a place for every product");
    // SAFETY: the assertions above are the kernel's contract; `Level::detect` found the instruction set.
    unsafe { run(level, Dots { k, xs, ws, out }) }
}

struct Dots<'a, X, W> {
    k: usize,
    xs: &'a [&'a [X]],
    ws: &'a [&'a [W]],
    out: &'a mut [f32],
}

impl<X: Element, W: Element> Kernel for Dots<'_, X, W> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        // SAFETY: passed on.
        unsafe { dot_tiles::<S, X, W>(self.k, self.xs, self.ws, self.out) }
    }
}

/// Elements of the inner dimension whose rows of one register tile stay in the first-level cache (8 rows of 4 KiB).
const INNER: usize = 1024;

/// Cuts the block into register tiles: 4 x 4 (16 accumulators, 8 loads a step), thin ones at the edges.
#[inline(always)]
unsafe fn dot_tiles<S: Simd, X: Element, W: Element>(k: usize, xs: &[&[X]], ws: &[&[W]], out: &mut [f32]) {
    let stride = ws.len();
    out[..xs.len() * stride].fill(0.0);
    for inner in (0..k).step_by(INNER) {
        let columns = inner..k.min(inner + INNER);
        let mut m = 0;
        while m < xs.len() {
            let rows = if xs.len() - m >= 4 { 4 } else { 1 };
            let mut n = 0;
            while n < ws.len() {
                let left = ws.len() - n;
                let (place, k) = (&mut out[m * stride + n..], columns.clone());
                // SAFETY: the tile's rows are within both lists, all of length k, by the caller's promise.
                n += unsafe {
                    match (rows, left) {
                        (4, 4..) => dot_tile::<S, X, W, 4, 4>(k, &xs[m..], &ws[n..], place, stride),
                        (4, _) => dot_tile::<S, X, W, 4, 1>(k, &xs[m..], &ws[n..], place, stride),
                        (_, 8..) => dot_tile::<S, X, W, 1, 8>(k, &xs[m..], &ws[n..], place, stride),
                        _ => dot_tile::<S, X, W, 1, 1>(k, &xs[m..], &ws[n..], place, stride),
                    }
                };
            }
            m += rows;
        }
    }
}

/// Adds the columns' part of one register tile to `out`; returns the tile's columns.
#[inline(always)]
unsafe fn dot_tile<S: Simd, X: Element, W: Element, const M: usize, const N: usize>(
    columns: Range<usize>,
    xs: &[&[X]],
    ws: &[&[W]],
    out: &mut [f32],
    stride: usize,
) -> usize {
    let (k, whole) = (columns.len(), columns.len() / S::LANES * S::LANES);
    // SAFETY: every load is within the columns of a row: whole vectors below `whole`, the tail from padded copies.
    unsafe {
        let x: [*const X; M] = std::array::from_fn(|m| xs[m].as_ptr().add(columns.start));
        let w: [*const W; N] = std::array::from_fn(|n| ws[n].as_ptr().add(columns.start));
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
            for n in 0..N {
                out[m * stride + n] += S::sum(sums[m][n]);
            }
        }
    }
    N
}
