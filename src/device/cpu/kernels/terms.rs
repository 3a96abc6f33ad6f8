//! Weighted sums of rows, and the one rounding to y.

use super::{Kernel, run};
use crate::device::cpu::pool::B_COLUMNS;
use crate::device::cpu::simd::{Level, Simd};
use crate::element::Element;

/// Rows of one matrix with their factors.
#[derive(Clone, Copy)]
pub(crate) struct Terms<'a> {
    /// Factor and row.
    pub(crate) list: &'a [(f32, u32)],
    /// The matrix, `stride` elements from one row to the next.
    pub(crate) rows: &'a [f32],
    pub(crate) stride: usize,
}

/// `c[j] += sum over the terms of factor * rows[row][j]`.
///
/// Every fourth term goes to one of four sums from zero, in their order, for every column alike.
pub(crate) fn add_terms(level: Level, terms: Terms, c: &mut [f32]) {
    let Some(last) = terms.list.iter().map(|term| term.1).max() else { return };
    assert!(terms.rows.len() >= last as usize * terms.stride + c.len(), "rows as long as c");
    // SAFETY: the assertion above is the kernel's contract; `Level::detect` found the instruction set.
    unsafe { run(level, AddTerms { terms, c }) }
}

struct AddTerms<'a> {
    terms: Terms<'a>,
    c: &'a mut [f32],
}

impl Kernel for AddTerms<'_> {
    /// Four vectors of columns at a time stay in registers over all terms.
    #[inline(always)]
    unsafe fn run<S: Simd>(mut self) {
        const VECTORS: usize = 4;
        let mut column = 0;
        // SAFETY: columns stay below c's length, which no row is shorter than.
        unsafe {
            while self.c.len() - column >= VECTORS * S::LANES {
                self.add_columns::<S, VECTORS>(column, S::LANES);
                column += VECTORS * S::LANES;
            }
            while column < self.c.len() {
                self.add_columns::<S, 1>(column, S::LANES.min(self.c.len() - column));
                column += S::LANES;
            }
        }
    }
}

impl AddTerms<'_> {
    /// N vectors of columns, or `count` columns where N is 1: four chains of sums, one for every fourth term, so that a
    /// sum does not wait for the one before it.
    #[inline(always)]
    unsafe fn add_columns<S: Simd, const N: usize>(&mut self, column: usize, count: usize) {
        let Terms { list, rows, stride } = self.terms;
        let whole = count == S::LANES;
        // SAFETY: the columns are within every row and within c, by the caller's promise.
        unsafe {
            let first = rows.as_ptr().add(column);
            let mut chains = [[S::splat(0.0); N]; 4];
            let (fours, rest) = list.as_chunks::<4>();
            for four in fours {
                for i in 0..4 {
                    let row = first.add(four[i].1 as usize * stride);
                    add_row::<S, N>(four[i].0, row, count, &mut chains[i]);
                }
            }
            for i in 0..3 {
                if i < rest.len() {
                    let row = first.add(rest[i].1 as usize * stride);
                    add_row::<S, N>(rest[i].0, row, count, &mut chains[i]);
                }
            }
            let [a, b, c, d] = chains;
            for n in 0..N {
                let sum = S::add(S::add(a[n], b[n]), S::add(c[n], d[n]));
                let place = self.c.as_mut_ptr().add(column + n * S::LANES);
                if whole {
                    S::store_f32(place, S::add(S::load_f32(place), sum));
                } else {
                    S::store_part(place, S::add(S::load_part(place, count), sum), count);
                }
            }
        }
    }
}

/// `sums += factor * row`, whole vectors where `count` is a vector's.
#[inline(always)]
unsafe fn add_row<S: Simd, const N: usize>(factor: f32, row: *const f32, count: usize, sums: &mut [S::V; N]) {
    // SAFETY: passed on.
    unsafe {
        let factor = S::splat(factor);
        for (n, sum) in sums.iter_mut().enumerate() {
            let from = row.add(n * S::LANES);
            let b = if N > 1 || count == S::LANES { S::load_f32(from) } else { S::load_part(from, count) };
            *sum = S::fma(factor, b, *sum);
        }
    }
}

/// `y[j] = c[j]`, or `y[j] + c[j]` where it is added, rounded once; c lies in panels of [`B_COLUMNS`] columns, `panel` elements
/// apart. Asks for as many elements of what comes `next`.
pub(crate) fn add_to_row<Y: Element>(
    level: Level,
    c: &[f32],
    panel: usize,
    y: &mut [Y],
    accumulate: bool,
    next: *const Y,
) {
    let Some(last) = y.len().checked_sub(1) else { return };
    assert!(last / B_COLUMNS * panel + last % B_COLUMNS < c.len(), "a sum for every element");
    // SAFETY: the assertion above is the kernel's contract; `Level::detect` found the instruction set.
    unsafe { Y::add_row(level, AddRow { c, panel, y, accumulate, next }) }
}

pub struct AddRow<'a, Y> {
    c: &'a [f32],
    panel: usize,
    y: &'a mut [Y],
    accumulate: bool,
    next: *const Y,
}

impl<Y: Element> Kernel for AddRow<'_, Y> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        for column in (0..self.y.len()).step_by(S::LANES) {
            let count = S::LANES.min(self.y.len() - column);
            // SAFETY: `count` columns of both slices, a vector's all in one panel; whole vectors where they are LANES. A
            // prefetch never faults.
            unsafe {
                S::prefetch(self.next.wrapping_add(column).cast());
                let c = self.c.as_ptr().add(column / B_COLUMNS * self.panel + column % B_COLUMNS);
                let y = self.y.as_mut_ptr().add(column);
                let whole = count == S::LANES;
                let mut sum = if whole { S::load_f32(c) } else { S::load_part(c, count) };
                if self.accumulate {
                    sum = S::add(if whole { S::load(y) } else { S::load_part(y, count) }, sum);
                }
                if whole { S::store(y, sum) } else { S::store_part(y, sum, count) }
            }
        }
    }
}

/// `y[j] = c[j] (+ bias[j])`, rounded once.
pub(crate) fn store_row<Y: Element>(level: Level, c: &[f32], bias: Option<&[Y]>, y: &mut [Y]) {
    assert!(c.len() == y.len() && bias.is_none_or(|bias| bias.len() == y.len()), "rows of one length");
    // SAFETY: the assertion above is the kernel's contract; `Level::detect` found the instruction set.
    unsafe { Y::store_row(level, StoreRow { c, bias, y }) }
}

pub struct StoreRow<'a, Y> {
    c: &'a [f32],
    bias: Option<&'a [Y]>,
    y: &'a mut [Y],
}

impl<Y: Element> Kernel for StoreRow<'_, Y> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        for column in (0..self.c.len()).step_by(S::LANES) {
            let count = S::LANES.min(self.c.len() - column);
            // SAFETY: `count` columns of every slice; whole vectors where they are LANES.
            unsafe {
                let (c, y) = (self.c.as_ptr().add(column), self.y.as_mut_ptr().add(column));
                let mut sum = if count == S::LANES { S::load_f32(c) } else { S::load_part(c, count) };
                if let Some(bias) = self.bias {
                    let bias = bias.as_ptr().add(column);
                    let bias = if count == S::LANES { S::load(bias) } else { S::load_part(bias, count) };
                    sum = S::add(sum, bias);
                }
                if count == S::LANES { S::store(y, sum) } else { S::store_part(y, sum, count) }
            }
        }
    }
}
