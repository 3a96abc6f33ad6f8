//! Two kernels carry every operation on the CPU: rows times rows (scores, shrink, base) and a weighted sum of
//! rows (expand).

#[cfg(target_arch = "x86_64")]
use super::simd::{Avx2, Avx512};
use super::simd::{Level, Portable, Simd};
use crate::element::Element;
use std::ops::Range;

/// Longest vector of any level, for tails.
const MAX_LANES: usize = 16;

/// `out[m * ws.len() + n] = <xs[m], ws[n]>`; all rows have one length.
///
/// In every 1024 elements lane l of a product adds the elements l, l + LANES, .. in order, then the lanes are summed
/// in a fixed order, then the parts: the same bits in every tile.
pub(super) fn dot_rows<X: Element, W: Element>(level: Level, xs: &[&[X]], ws: &[&[W]], out: &mut [f32]) {
    let k = xs.first().map_or(0, |x| x.len());
    assert!(xs.iter().all(|x| x.len() == k) && ws.iter().all(|w| w.len() == k), "rows of one length");
    assert!(out.len() >= xs.len() * ws.len(), "a place for every product");
    // SAFETY: the assertions above are the kernels' contract; `Level::detect` found the instruction set.
    unsafe {
        match level {
            Level::Portable => dot_tiles::<Portable, X, W>(k, xs, ws, out),
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => dot_rows_avx2(k, xs, ws, out),
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 => dot_rows_avx512(k, xs, ws, out),
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn dot_rows_avx2<X: Element, W: Element>(k: usize, xs: &[&[X]], ws: &[&[W]], out: &mut [f32]) {
    // SAFETY: passed on.
    unsafe { dot_tiles::<Avx2, X, W>(k, xs, ws, out) }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
unsafe fn dot_rows_avx512<X: Element, W: Element>(k: usize, xs: &[&[X]], ws: &[&[W]], out: &mut [f32]) {
    // SAFETY: passed on.
    unsafe { dot_tiles::<Avx512, X, W>(k, xs, ws, out) }
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
            let wv: [S::V; N] = std::array::from_fn(|n| load_part::<S, W>(w[n].add(whole), k - whole));
            for m in 0..M {
                let xv = load_part::<S, X>(x[m].add(whole), k - whole);
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

/// Loads `count < LANES` elements, zeros behind them.
#[inline(always)]
unsafe fn load_part<S: Simd, E: Element>(from: *const E, count: usize) -> S::V {
    let mut part = [E::zeroed(); MAX_LANES];
    // SAFETY: `count` elements are readable by the caller's promise and fit the copy.
    unsafe {
        std::ptr::copy_nonoverlapping(from, part.as_mut_ptr(), count);
        S::load(part.as_ptr())
    }
}

/// `y (+)= sum_j coefficient_j row_j`, one rounding to Y; every row is as long as y.
///
/// The terms are added in their order, in f32, for every column alike.
pub(super) fn add_rows<Y: Element, B: Element>(
    level: Level,
    terms: &[(f32, &[B])],
    y: &mut [Y],
    accumulate: bool,
) {
    assert!(terms.iter().all(|(_, row)| row.len() == y.len()), "rows as long as y");
    // SAFETY: the assertion above is the kernels' contract; `Level::detect` found the instruction set.
    unsafe {
        match level {
            Level::Portable => add_columns::<Portable, Y, B>(terms, y, accumulate),
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => add_rows_avx2(terms, y, accumulate),
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 => add_rows_avx512(terms, y, accumulate),
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn add_rows_avx2<Y: Element, B: Element>(terms: &[(f32, &[B])], y: &mut [Y], accumulate: bool) {
    // SAFETY: passed on.
    unsafe { add_columns::<Avx2, Y, B>(terms, y, accumulate) }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
unsafe fn add_rows_avx512<Y: Element, B: Element>(terms: &[(f32, &[B])], y: &mut [Y], accumulate: bool) {
    // SAFETY: passed on.
    unsafe { add_columns::<Avx512, Y, B>(terms, y, accumulate) }
}

/// Eight vectors of columns at a time stay in registers over all terms.
#[inline(always)]
unsafe fn add_columns<S: Simd, Y: Element, B: Element>(terms: &[(f32, &[B])], y: &mut [Y], accumulate: bool) {
    const VECTORS: usize = 8;
    let mut sums = [0f32; VECTORS * MAX_LANES];
    let mut column = 0;
    // SAFETY: columns stay below y's length, which is every row's; `sums` holds VECTORS vectors of any level.
    unsafe {
        while y.len() - column >= S::LANES {
            let wide = y.len() - column >= VECTORS * S::LANES;
            let columns = if wide { VECTORS * S::LANES } else { S::LANES };
            if wide {
                sum_terms::<S, B, VECTORS>(terms, column, &mut sums);
            } else {
                sum_terms::<S, B, 1>(terms, column, &mut sums);
            }
            finish(&sums[..columns], &mut y[column..column + columns], accumulate);
            column += columns;
        }
        if column < y.len() {
            let count = y.len() - column;
            let mut acc = S::splat(0.0);
            for &(coefficient, row) in terms {
                acc = S::fma(S::splat(coefficient), load_part::<S, B>(row.as_ptr().add(column), count), acc);
            }
            S::store_f32(sums.as_mut_ptr(), acc);
            finish(&sums[..count], &mut y[column..], accumulate);
        }
    }
}

#[inline(always)]
unsafe fn sum_terms<S: Simd, B: Element, const N: usize>(
    terms: &[(f32, &[B])],
    column: usize,
    sums: &mut [f32],
) {
    // SAFETY: N vectors from `column` are within every row, and `sums` holds them, by the caller's promise.
    unsafe {
        let mut acc = [S::splat(0.0); N];
        for &(coefficient, row) in terms {
            let (coefficient, row) = (S::splat(coefficient), row.as_ptr().add(column));
            for (n, sum) in acc.iter_mut().enumerate() {
                *sum = S::fma(coefficient, S::load(row.add(n * S::LANES)), *sum);
            }
        }
        for (n, sum) in acc.into_iter().enumerate() {
            S::store_f32(sums.as_mut_ptr().add(n * S::LANES), sum);
        }
    }
}

#[inline(always)]
fn finish<Y: Element>(sums: &[f32], y: &mut [Y], accumulate: bool) {
    for (place, &sum) in y.iter_mut().zip(sums) {
        *place = Y::from_f32(if accumulate { place.to_f32() + sum } else { sum });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use half::{bf16, f16};

    fn values<E: Element>(seed: u32, len: usize) -> Vec<E> {
        (0..len as u32).map(|i| E::from_f32(((i * 37 + seed * 101) % 64) as f32 / 32.0 - 1.0)).collect()
    }

    fn check<X: Element, W: Element>() {
        for level in Level::all() {
            for (m, n, k) in
                [(1, 1, 1), (1, 9, 7), (3, 4, 16), (5, 5, 33), (4, 13, 64), (9, 3, 100), (5, 9, 2050)]
            {
                let (x, w): (Vec<X>, Vec<W>) = (values(1, m * k), values(2, n * k));
                let (xs, ws): (Vec<&[X]>, Vec<&[W]>) = (x.chunks(k).collect(), w.chunks(k).collect());
                let mut out = vec![f32::NAN; m * n];
                dot_rows(level, &xs, &ws, &mut out);
                for i in 0..m {
                    for j in 0..n {
                        // Multiples of 1/32 below 1: every partial sum is exact in f32.
                        let exact: f32 = (0..k).map(|c| xs[i][c].to_f32() * ws[j][c].to_f32()).sum();
                        assert_eq!(out[i * n + j], exact, "{} {m}x{n}x{k} [{i}, {j}]", level.name());
                    }
                }
                let terms: Vec<(f32, &[W])> =
                    ws.iter().enumerate().map(|(j, &w)| (j as f32 - 1.5, w)).collect();
                for accumulate in [false, true] {
                    let mut y: Vec<f32> = values(3, k);
                    add_rows(level, &terms, &mut y, accumulate);
                    for (c, &got) in y.iter().enumerate() {
                        let old = if accumulate { values::<f32>(3, k)[c] } else { 0.0 };
                        let exact = old + terms.iter().map(|(f, row)| f * row[c].to_f32()).sum::<f32>();
                        assert_eq!(got, exact, "{} {n} terms [{c}]", level.name());
                    }
                }
            }
        }
    }

    #[test]
    fn every_level_and_element_is_exact_on_exact_inputs() {
        check::<f32, f32>();
        check::<f32, f16>();
        check::<f16, bf16>();
        check::<bf16, bf16>();
    }
}
