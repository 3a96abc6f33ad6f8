//! Weighted sums of rows, and the one rounding to y.

use super::{Kernel, run};
use crate::device::cpu::simd::{Level, Simd};
use crate::element::Element;

/// Rows of one matrix with their factors.
#[derive(Clone, Copy)]
pub(crate) struct Terms<'a, B> {
    /// Factor and row.
    pub(crate) list: &'a [(f32, u32)],
    /// The matrix, `stride` elements from one row to the next.
    pub(crate) rows: &'a [B],
    pub(crate) stride: usize,
    /// First column that counts.
    pub(crate) column: usize,
}

/// `c[j] += sum over the terms of factor * rows[row][column + j]`.
///
/// The terms are added in their order, from zero, for every column alike.
pub(crate) fn add_terms<B: Element>(level: Level, terms: Terms<B>, c: &mut [f32]) {
    let Some(last) = terms.list.iter().map(|term| term.1).max() else { return };
    assert!(terms.rows.len() >= last as usize * terms.stride + terms.column + c.len(), "rows as long as c");
    // SAFETY: the assertion above is the kernel's contract; `Level::detect` found the instruction set.
    unsafe { run(level, AddTerms { terms, c }) }
}

struct AddTerms<'a, B> {
    terms: Terms<'a, B>,
    c: &'a mut [f32],
}

impl<B: Element> Kernel for AddTerms<'_, B> {
    /// Eight vectors of columns at a time stay in registers over all terms.
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        const VECTORS: usize = 8;
        let mut column = 0;
        // SAFETY: columns stay below c's length, which every row has behind its first column.
        unsafe {
            while self.c.len() - column >= VECTORS * S::LANES {
                add_columns::<S, B, VECTORS>(&self.terms, column, &mut self.c[column..]);
                column += VECTORS * S::LANES;
            }
            while self.c.len() - column >= S::LANES {
                add_columns::<S, B, 1>(&self.terms, column, &mut self.c[column..]);
                column += S::LANES;
            }
            let (count, first) =
                (self.c.len() - column, self.terms.rows.as_ptr().add(self.terms.column + column));
            if count > 0 {
                let mut sum = S::splat(0.0);
                for &(factor, row) in self.terms.list {
                    let row = first.add(row as usize * self.terms.stride);
                    sum = S::fma(S::splat(factor), S::load_part(row, count), sum);
                }
                let c = self.c[column..].as_mut_ptr();
                S::store_part(c, S::add(S::load_part(c, count), sum), count);
            }
        }
    }
}

#[inline(always)]
unsafe fn add_columns<S: Simd, B: Element, const N: usize>(terms: &Terms<B>, column: usize, c: &mut [f32]) {
    // SAFETY: N vectors from `column` are within every row and within c, by the caller's promise.
    unsafe {
        let first = terms.rows.as_ptr().add(terms.column + column);
        let mut sums = [S::splat(0.0); N];
        for &(factor, row) in terms.list {
            let (factor, row) = (S::splat(factor), first.add(row as usize * terms.stride));
            for (n, sum) in sums.iter_mut().enumerate() {
                *sum = S::fma(factor, S::load(row.add(n * S::LANES)), *sum);
            }
        }
        for (n, sum) in sums.into_iter().enumerate() {
            let place = c.as_mut_ptr().add(n * S::LANES);
            S::store_f32(place, S::add(S::load_f32(place), sum));
        }
    }
}

/// `y[j] = c[j] (+ bias[j])`, rounded once.
pub(crate) fn store_row<Y: Element>(level: Level, c: &[f32], bias: Option<&[Y]>, y: &mut [Y]) {
    assert!(c.len() == y.len() && bias.is_none_or(|bias| bias.len() == y.len()), "rows of one length");
    // SAFETY: the assertion above is the kernel's contract; `Level::detect` found the instruction set.
    unsafe { run(level, StoreRow { c, bias, y }) }
}

struct StoreRow<'a, Y> {
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
