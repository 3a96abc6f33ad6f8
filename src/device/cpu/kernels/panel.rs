//! Rows times packed columns: a block of the inner dimension of one panel, `Simd::VECTORS` vectors of columns wide, with all
//! rows of a list of tiles.
//!
//! A register tile holds up to `Simd::ROWS` rows of these vectors; for every k it loads the vectors of the panel and
//! broadcasts one x a row: with two vectors `2 ROWS` multiply-adds for `ROWS + 2` loads. The rows' tiles follow each other over the same block,
//! which stays in the first-level cache, while the next block is asked for, as is, for the second-level cache, the
//! rows' own next block, which lies behind the one in use. A tile asks in every step of k for a line or two: asked for eight
//! steps at once they fill the few places for lines on their way, and loads wait (8 rows: 1.19 times as long, 500 rows: 1.1).

use super::Kernel;
use crate::device::cpu::rows::Tiles;
use crate::device::cpu::simd::{Level, Simd};
use crate::element::Element;
use std::ops::Range;

/// Inner dimension of a block. Every block's sums start from zero and are then added to `c`, whatever the tile: one order
/// of summation for every number of rows, and shorter chains of roundings. One of f32, the next one and a tile's rows fit a
/// first-level cache of 48 KiB together.
pub(crate) const BLOCK: usize = 128;

/// How many k ahead a panel that is read once is asked for in the first-level cache, and in the second-level one.
const AHEAD: [usize; 2] = [16, 128];

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
        let (tiles, step) = (args.tiles.len(), args.w_stride * size_of::<W>());
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
            let (near, far) = if tiles == 1 {
                let stream = |k| Ahead { at: args.w.as_ptr().cast::<u8>().wrapping_add(k * step), step };
                (stream(AHEAD[0]), stream(AHEAD[1]))
            } else {
                let next_x = x.wrapping_add(rows.len() * k);
                let row = rows.len() * size_of::<f32>();
                (Ahead::part(args.next, step, (i, tiles), k), Ahead::part(next_x, row, args.pass, k))
            };
            let tile = Tile {
                k,
                x,
                w: args.w.as_ptr(),
                w_stride: args.w_stride,
                near,
                far,
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

/// Memory that will be read, so many bytes of it asked for in every step of k.
#[derive(Clone, Copy)]
struct Ahead {
    at: *const u8,
    step: usize,
}

impl Ahead {
    /// One of so many parts of the `k * bytes` from `start` on.
    #[inline(always)]
    fn part<T>(start: *const T, bytes: usize, (part, parts): (usize, usize), k: usize) -> Self {
        let step = bytes.div_ceil(parts);
        Self { at: start.cast::<u8>().wrapping_add(part * k * step), step }
    }
}

/// One register tile.
struct Tile<W> {
    k: usize,
    x: *const f32,
    w: *const W,
    w_stride: usize,
    /// For the first-level cache.
    near: Ahead,
    /// For the second-level cache.
    far: Ahead,
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
        let (mut x, mut w, mut near, mut far) = (self.x, self.w, self.near, self.far);
        let lines = (N * S::LANES * size_of::<W>()).div_ceil(64);
        // SAFETY: k steps of w and x and M rows of c, by the caller's promise.
        unsafe {
            let mut sums = [[S::splat(0.0); N]; M];
            for _ in 0..self.k {
                for line in 0..lines {
                    S::prefetch(near.at.wrapping_add(64 * line));
                    S::prefetch_far(far.at.wrapping_add(64 * line));
                }
                step::<S, W, M, N>(x, w, &mut sums);
                (x, w) = (x.add(M), w.wrapping_add(self.w_stride));
                (near.at, far.at) = (near.at.wrapping_add(near.step), far.at.wrapping_add(far.step));
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
