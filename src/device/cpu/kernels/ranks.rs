//! Rows times an adapter's A: the ranks lie in lanes, and x is broadcast from where it lies.
//!
//! ```text
//! for every block of the inner dimension          its part of A and of the rows stays in the first-level cache
//!   for every few vectors of ranks
//!     for every tile of rows                      sums in registers, added to out
//! ```
//!
//! A tile of 8 rows and 2 vectors has 16 multiply-adds for 10 loads and nothing to add up across lanes. A is `[inner, rank]`
//! without padding: where a vector is longer than what is left of a k's ranks, its last lanes hold the next k's and are
//! not used.

use super::Kernel;
use crate::device::cpu::shared::Span;
use crate::device::cpu::simd::{Level, Simd};
use crate::element::Element;
use std::ops::Range;

/// Inner dimension of a block. Every block's sums start from zero and are then added to what was there: one order of
/// summation for every number of rows.
pub(crate) const BLOCK: usize = 128;

/// Bytes ahead of A's stream where only one tile reads it.
const AHEAD: usize = 4096;

/// Steps of k between two times at which a tile asks for what comes next.
const STEPS: usize = 8;

/// An adapter's A, `[inner, rank]`.
#[derive(Clone, Copy)]
pub(crate) struct Factor<'a, A> {
    pub(crate) data: Span<'a, A>,
    pub(crate) inner: usize,
    pub(crate) rank: usize,
}

/// `out[m][r] = sum over the blocks' k of xs[m][k] a[k][r]`, `stride` elements from one row of `out` to the next: at least
/// [`padded`]; what lies behind the last rank is left over.
pub(crate) fn rank_products<A: Element>(
    level: Level,
    xs: &[&[f32]],
    a: Factor<A>,
    blocks: Range<usize>,
    out: &mut [f32],
    stride: usize,
) {
    let end = a.inner.min(blocks.end * BLOCK);
    if xs.is_empty() || a.rank == 0 {
        return;
    }
    assert!(stride >= padded(level, a.rank) && out.len() >= xs.len() * stride, "room for every product");
    if blocks.start * BLOCK >= end {
        return out[..xs.len() * stride].fill(0.0);
    }
    assert!(a.data.len() >= a.inner * a.rank && xs.iter().all(|x| x.len() >= end), "as many elements as k");
    // SAFETY: the assertions above are the kernel's contract; `Level::detect` found the instruction set.
    unsafe { A::ranks(level, Ranks { xs, a, blocks, out: out.as_mut_ptr(), stride }) }
}

/// Elements that a row of products takes.
pub(crate) fn padded(level: Level, rank: usize) -> usize {
    rank.next_multiple_of(level.columns() / 2)
}

pub struct Ranks<'a, A> {
    xs: &'a [&'a [f32]],
    a: Factor<'a, A>,
    blocks: Range<usize>,
    out: *mut f32,
    stride: usize,
}

impl<A: Element> Kernel for Ranks<'_, A> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Self { xs, a, blocks, out, stride } = self;
        let (vectors, most) = (a.rank.div_ceil(S::LANES), S::ROWS.min(8));
        let tiles = xs.len().div_ceil(most);
        let rows_of = |tile: usize| xs.len() * tile / tiles..xs.len() * (tile + 1) / tiles;
        for block in blocks.clone() {
            let inner = block * BLOCK..a.inner.min((block + 1) * BLOCK);
            let end = a.data.as_ptr().wrapping_add(inner.end * a.rank).cast::<u8>();
            let mut vector = 0;
            while vector < vectors {
                // Few rows take A from memory: all of a line at once.
                let wide = match vectors - vector {
                    4.. if xs.len() <= 4 && S::ROWS >= 12 => 4,
                    2.. => 2,
                    _ => 1,
                };
                // The tiles of a block ask for an equal share of the next block of A each.
                let lines = (STEPS * a.rank.min(wide * S::LANES) * size_of::<A>()).div_ceil(64 * tiles);
                for tile in 0..tiles {
                    let rows = rows_of(tile);
                    let part = ((vector * S::LANES * BLOCK * size_of::<A>()) / 64
                        + tile * lines * (BLOCK / STEPS))
                        * 64;
                    let (next_x, next_k) = match tile + 1 {
                        _ if vector > 0 => (0..0, 0),
                        next if next < tiles => (rows_of(next), inner.start),
                        _ => (rows_of(0), inner.end),
                    };
                    let tile = Tile {
                        xs: &xs[rows.clone()],
                        a,
                        inner: inner.clone(),
                        first: vector * S::LANES,
                        next_a: if tiles == 1 && vectors <= wide {
                            a.data
                                .as_ptr()
                                .wrapping_add(inner.start * a.rank)
                                .cast::<u8>()
                                .wrapping_add(AHEAD)
                        } else {
                            end.wrapping_add(part)
                        },
                        lines,
                        next_x: &xs[next_x],
                        next_k,
                        add: block > blocks.start,
                        // SAFETY: within `out` by `rank_products`' assertion.
                        out: unsafe { out.add(rows.start * stride + vector * S::LANES) },
                        stride,
                    };
                    // SAFETY: as many rows as the tile is made for; all else by `rank_products`' assertions.
                    unsafe {
                        match wide {
                            4 => tile.of_vectors::<S, 4>(),
                            2 => tile.of_vectors::<S, 2>(),
                            _ => tile.of_vectors::<S, 1>(),
                        }
                    }
                }
                vector += wide;
            }
        }
    }
}

/// One register tile in one block.
struct Tile<'a, A> {
    xs: &'a [&'a [f32]],
    a: Factor<'a, A>,
    inner: Range<usize>,
    /// First rank.
    first: usize,
    /// What comes next of A, and how many lines of it are asked for at a time.
    next_a: *const u8,
    lines: usize,
    /// The rows that come next, and from which k on.
    next_x: &'a [&'a [f32]],
    next_k: usize,
    add: bool,
    out: *mut f32,
    stride: usize,
}

impl<A: Element> Tile<'_, A> {
    #[inline(always)]
    unsafe fn of_vectors<S: Simd, const N: usize>(self) {
        // SAFETY: passed on.
        unsafe {
            match self.xs.len() {
                1 => self.run::<S, 1, N>(),
                2 => self.run::<S, 2, N>(),
                3 => self.run::<S, 3, N>(),
                4 => self.run::<S, 4, N>(),
                5 if N <= 2 => self.run::<S, 5, N>(),
                6 if N <= 2 => self.run::<S, 6, N>(),
                7 if N <= 2 && S::ROWS > 6 => self.run::<S, 7, N>(),
                8 if N <= 2 && S::ROWS > 6 => self.run::<S, 8, N>(),
                _ => unreachable!("a tile's rows"),
            }
        }
    }

    #[inline(always)]
    unsafe fn run<S: Simd, const M: usize, const N: usize>(self) {
        let Factor { data, inner, rank } = self.a;
        // SAFETY: k below `inner`; whole vectors of A where they end within it, parts of vectors elsewhere.
        unsafe {
            let mut x = [self.xs[0].as_ptr(); M];
            for m in 0..M {
                x[m] = self.xs[m].as_ptr();
            }
            let mut sums = [[S::splat(0.0); N]; M];
            // The last k's vectors would end behind A.
            let (all, reach) = (inner * rank, self.first + N * S::LANES);
            let whole = if all < reach { 0 } else { (all - reach) / rank + 1 };
            let whole = whole.clamp(self.inner.start, self.inner.end);
            let mut k = self.inner.start;
            let mut a = data.as_ptr().add(k * rank + self.first);
            let (mut next_a, mut next_k) = (self.next_a, self.next_k);
            while k + STEPS <= whole {
                for _ in 0..self.lines {
                    S::prefetch(next_a);
                    next_a = next_a.wrapping_add(64);
                }
                // A line has 16 elements of x: every other time.
                if k.is_multiple_of(2 * STEPS) {
                    for x in self.next_x {
                        S::prefetch(x.as_ptr().wrapping_add(next_k).cast());
                    }
                    next_k += 2 * STEPS;
                }
                for i in k..k + STEPS {
                    step::<S, A, M, N>(&x, i, a, &mut sums);
                    a = a.wrapping_add(rank);
                }
                k += STEPS;
            }
            while k < whole {
                step::<S, A, M, N>(&x, k, a, &mut sums);
                a = a.wrapping_add(rank);
                k += 1;
            }
            while k < self.inner.end {
                let mut ranks = [S::splat(0.0); N];
                for n in 0..N {
                    let at = k * rank + self.first + n * S::LANES;
                    ranks[n] = S::load_part(data.as_ptr().add(at), S::LANES.min(all - at));
                }
                for m in 0..M {
                    let x = S::splat(*x[m].add(k));
                    for n in 0..N {
                        sums[m][n] = S::fma(x, ranks[n], sums[m][n]);
                    }
                }
                k += 1;
            }
            for m in 0..M {
                for n in 0..N {
                    let place = self.out.add(m * self.stride + n * S::LANES);
                    let old = if self.add { S::load_f32(place) } else { S::splat(0.0) };
                    S::store_f32(place, S::add(old, sums[m][n]));
                }
            }
        }
    }
}

#[inline(always)]
unsafe fn step<S: Simd, A: Element, const M: usize, const N: usize>(
    x: &[*const f32; M],
    k: usize,
    a: *const A,
    sums: &mut [[S::V; N]; M],
) {
    // SAFETY: N vectors of A and the k-th element of M rows, by the caller's promise.
    unsafe {
        let mut ranks = [S::splat(0.0); N];
        for n in 0..N {
            ranks[n] = S::load(a.add(n * S::LANES));
        }
        for m in 0..M {
            let x = S::splat(*x[m].add(k));
            for n in 0..N {
                sums[m][n] = S::fma(x, ranks[n], sums[m][n]);
            }
        }
    }
}
