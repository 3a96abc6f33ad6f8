//! Rows times packed columns: a block of the inner dimension of one panel, `Simd::VECTORS` vectors of columns wide, with all
//! rows of a list of tiles.
//!
//! A register tile holds up to `Simd::ROWS` rows of these vectors; for every k it loads the vectors of the panel and
//! broadcasts one x a row: with two vectors `2 ROWS` multiply-adds for `ROWS + 2` loads. The rows' tiles follow each other over the same block,
//! which stays in the first-level cache, while the next block is asked for in even steps, as is, for the second-level cache, the
//! rows' own next block, which lies behind the one in use.

use super::Kernel;
use crate::device::cpu::rows::Tiles;
use crate::device::cpu::simd::{Level, Simd};
use crate::element::Element;
use std::ops::Range;

/// Inner dimension of a block. Every block's sums start from zero and are then added to `c`, whatever the tile: one order
/// of summation for every number of rows, and shorter chains of roundings.
pub(crate) const BLOCK: usize = 256;

/// Steps of k between two times at which a tile asks for what comes next.
const STEP: usize = 8;

/// Bytes ahead of a stream that is read once.
const AHEAD: usize = 4096;

/// One call of [`block`].
pub(crate) struct Block<'a, W> {
    /// Columns of one k behind each other, `w_stride` elements from one k to the next.
    pub(crate) w: &'a [W],
    pub(crate) w_stride: usize,
    /// Which part of the rows' inner dimension meets `w`; at most [`BLOCK`].
    pub(crate) inner: Range<usize>,
    /// What is read next; may be anything.
    pub(crate) next: *const W,
    /// Which of how many panels this is that meet the same block of the rows, one after another: each asks for its part of the
    /// rows' next block.
    pub(crate) pass: (usize, usize),
    /// What is read after the product; asked for in even parts before every tile.
    pub(crate) ahead: &'a [u8],
    /// Rows.
    pub(crate) x: &'a Tiles,
    pub(crate) tiles: Range<usize>,
    /// Whether `c` holds sums already.
    pub(crate) add: bool,
}

/// `c[m][..columns] (+)= sum over k of x[m][inner.start + k] w[k][..columns]` for all rows m of the tiles, `c_stride` elements
/// from one row of c to the next; `columns` is [`Level::columns`].
pub(crate) fn block<W: Element>(level: Level, args: &Block<W>, c: &mut [f32], c_stride: usize) {
    let (columns, k) = (level.columns(), args.inner.len());
    let rows = args.x.rows_of(args.tiles.clone()).len();
    if rows == 0 || k == 0 {
        return;
    }
    assert!(args.inner.end <= args.x.inner() && args.w.len() >= (k - 1) * args.w_stride + columns);
    assert!(c.len() >= (rows - 1) * c_stride + columns && args.x.max_rows() <= level.rows());
    // SAFETY: the assertions above are the kernel's contract; `Level::detect` found the instruction set.
    unsafe { W::blocks(level, Blocks { args, c: c.as_mut_ptr(), c_stride }) }
}

pub struct Blocks<'a, W> {
    args: &'a Block<'a, W>,
    c: *mut f32,
    c_stride: usize,
}

impl<W: Element> Kernel for Blocks<'_, W> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Self { args, c, c_stride } = self;
        let first = args.x.rows_of(args.tiles.clone()).start;
        let k = args.inner.len();
        let (tiles, steps) = (args.tiles.len(), (k / STEP).max(1));
        let lines = (k * S::VECTORS * S::LANES * size_of::<W>()).div_ceil(64);
        let ahead = args.ahead.len().div_ceil(tiles).next_multiple_of(64);
        for (i, tile) in args.tiles.clone().enumerate() {
            let mut line = i * ahead;
            while line < args.ahead.len().min((i + 1) * ahead) {
                // SAFETY: a prefetch never faults.
                unsafe { S::prefetch(args.ahead.as_ptr().wrapping_add(line)) };
                line += 64;
            }
            let rows = args.x.rows_of(tile..tile + 1);
            let x = args.x.tile(tile)[args.inner.start * rows.len()..].as_ptr();
            // One tile reads its panel once, from memory: a little ahead in the same stream. Several share a block that lies
            // in the first-level cache, and ask for the next one together, and each for its own next rows.
            let (next_w, next_x) = if tiles == 1 {
                let stream = args.w.as_ptr().cast::<u8>().wrapping_add(AHEAD);
                (Ahead::part(stream, lines, (0, 1), steps), Ahead::part(x, 0, (0, 1), steps))
            } else {
                let own = (rows.len() * k * size_of::<f32>()).div_ceil(64);
                let next_x = Ahead::part(x.wrapping_add(rows.len() * k), own, args.pass, steps);
                (Ahead::part(args.next, lines, (i, tiles), steps), next_x)
            };
            let tile = Tile {
                k,
                x,
                w: args.w.as_ptr(),
                w_stride: args.w_stride,
                next_w,
                next_x,
                add: args.add,
                c_stride,
            };
            // SAFETY: the tile's rows of c and x, and k steps of w, are there by `block`'s assertions.
            unsafe {
                let c = c.add((rows.start - first) * c_stride);
                match rows.len() {
                    1 => tile.run::<S, 1>(c),
                    2 => tile.run::<S, 2>(c),
                    3 => tile.run::<S, 3>(c),
                    4 => tile.run::<S, 4>(c),
                    5 => tile.run::<S, 5>(c),
                    6 => tile.run::<S, 6>(c),
                    7 => tile.run::<S, 7>(c),
                    8 => tile.run::<S, 8>(c),
                    9 => tile.run::<S, 9>(c),
                    10 => tile.run::<S, 10>(c),
                    11 => tile.run::<S, 11>(c),
                    12 => tile.run::<S, 12>(c),
                    13 => tile.run::<S, 13>(c),
                    _ => tile.run::<S, 14>(c),
                }
            }
        }
    }
}

/// Cache lines that will be read, asked for in even steps.
struct Ahead {
    line: *const u8,
    left: usize,
    each: usize,
}

impl Ahead {
    /// One of so many parts of the `lines` from `start` on.
    #[inline(always)]
    fn part<T>(start: *const T, lines: usize, (part, parts): (usize, usize), steps: usize) -> Self {
        let (first, end) = (lines * part / parts, lines * (part + 1) / parts);
        let line = start.cast::<u8>().wrapping_add(64 * first);
        Self { line, left: end - first, each: (end - first).div_ceil(steps) }
    }

    /// The next step's lines: the first, and how many.
    #[inline(always)]
    fn step(&mut self) -> (*const u8, usize) {
        let (line, count) = (self.line, self.each.min(self.left));
        (self.line, self.left) = (line.wrapping_add(64 * count), self.left - count);
        (line, count)
    }
}

/// One register tile.
struct Tile<W> {
    k: usize,
    x: *const f32,
    w: *const W,
    w_stride: usize,
    next_w: Ahead,
    next_x: Ahead,
    add: bool,
    c_stride: usize,
}

impl<W: Element> Tile<W> {
    #[inline(always)]
    unsafe fn run<S: Simd, const M: usize>(self, c: *mut f32) {
        // SAFETY: passed on.
        unsafe {
            match S::VECTORS {
                _ if M > S::ROWS => (),
                2 => self.columns::<S, M, 2>(c),
                4 => self.columns::<S, M, 4>(c),
                _ => unreachable!("2 or 4 vectors"),
            }
        }
    }

    #[inline(always)]
    unsafe fn columns<S: Simd, const M: usize, const N: usize>(self, c: *mut f32) {
        let (mut x, mut w) = (self.x, self.w);
        let (mut next_w, mut next_x) = (self.next_w, self.next_x);
        // SAFETY: k steps of w and x and M rows of c, by the caller's promise.
        unsafe {
            let mut sums = [[S::splat(0.0); N]; M];
            for _ in 0..self.k / STEP {
                let (line, count) = next_w.step();
                for n in 0..count {
                    S::prefetch(line.wrapping_add(64 * n));
                }
                let (line, count) = next_x.step();
                for n in 0..count {
                    S::prefetch_far(line.wrapping_add(64 * n));
                }
                for _ in 0..STEP {
                    step::<S, W, M, N>(x, w, &mut sums);
                    (x, w) = (x.add(M), w.wrapping_add(self.w_stride));
                }
            }
            for _ in 0..self.k % STEP {
                step::<S, W, M, N>(x, w, &mut sums);
                (x, w) = (x.add(M), w.wrapping_add(self.w_stride));
            }
            for (m, sums) in sums.into_iter().enumerate() {
                for (v, sum) in sums.into_iter().enumerate() {
                    let place = c.add(m * self.c_stride + v * S::LANES);
                    let old = if self.add { S::load_f32(place) } else { S::splat(0.0) };
                    S::store_f32(place, S::add(old, sum));
                }
            }
        }
    }
}

#[inline(always)]
unsafe fn step<S: Simd, W: Element, const M: usize, const N: usize>(
    x: *const f32,
    w: *const W,
    sums: &mut [[S::V; N]; M],
) {
    // SAFETY: N vectors of w and M elements of x, by the caller's promise.
    unsafe {
        let columns: [S::V; N] = std::array::from_fn(|n| S::load(w.add(n * S::LANES)));
        S::add_products(x, columns, sums);
    }
}
