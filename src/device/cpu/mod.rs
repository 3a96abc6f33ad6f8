//! The CPU: SIMD chosen at run time, all cores, adapters packed once when they come.

mod extension;
mod kernels;
mod memory;
mod pool;
mod product;
mod ranks;
mod rows;
mod shared;
mod simd;
mod team;
mod weight;

pub(crate) use extension::Extension;
pub(crate) use kernels::Kernels;
pub(crate) use kernels::dot::Matrix;
pub(crate) use kernels::terms::Terms;
pub(crate) use memory::Lines;
pub(crate) use pool::B_COLUMNS;
pub use pool::Pool;
pub(crate) use product::{Out, Part, Sums, TASKS_A_THREAD, with_scratch};
pub(crate) use ranks::{Group, Wide};
pub(crate) use rows::Tiles;
pub use weight::Weight;

use crate::element::Element;
use crate::error::{Error, Result};
use simd::Level;
use std::ops::Range;
use std::sync::Arc;
use team::Team;

/// The CPU as a device. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Cpu {
    level: Level,
    team: Arc<Team>,
}

/// Rows that one kernel call multiplies with rows: enough to reuse what is in cache, few enough for a stack.
pub(crate) const DOT_ROWS: usize = 32;

fn no_threads(error: std::io::Error) -> Error {
    Error::Device { device: "cpu".into(), reason: error.to_string() }
}

impl Cpu {
    /// The CPU with the widest SIMD that it has and the process's threads, one for every processor, which all handles made
    /// by this share. A call that finds them taken by another runs on its own thread alone.
    pub fn new() -> Result<Self> {
        Ok(Self { level: Level::detect(), team: Team::of_process().map_err(no_threads)? })
    }

    /// The CPU with `threads` threads of its own, the caller's among them; 0: one for every processor.
    pub fn with_threads(threads: usize) -> Result<Self> {
        Ok(Self { level: Level::detect(), team: Arc::new(Team::new(threads).map_err(no_threads)?) })
    }

    /// The SIMD in use and the number of threads.
    pub fn describe(&self) -> String {
        format!("{}, {} threads", self.level.name(), self.threads())
    }

    /// The number of threads.
    pub(crate) fn threads(&self) -> usize {
        self.team.threads()
    }

    /// Most rows of a tile.
    pub(crate) fn tile_rows(&self) -> usize {
        self.level.rows()
    }

    /// Columns of a packed panel.
    pub(crate) fn panel_columns(&self) -> usize {
        self.level.columns()
    }

    /// Runs `task(0..tasks)` on all threads.
    pub(crate) fn each(&self, tasks: usize, task: impl Fn(usize) + Send + Sync) {
        self.team.each(tasks, &task);
    }

    /// `out[m * stride + n] = finish(m, n, <x_m, w_n>)` for all rows m of x and the first `w_rows` n of w, in tiles over all
    /// threads.
    ///
    /// Every product is one chain of fused multiply-adds per lane and one fixed sum of the lanes, whatever the
    /// tile and the other rows: batch-invariant. All rows have one length.
    pub(crate) fn dot_rows<'a, X: Element, W: Element, T: Send>(
        &self,
        (x_rows, w_rows): (usize, usize),
        x: impl Fn(usize) -> &'a [X] + Sync,
        w: Matrix<'a, W>,
        (out, stride): (&mut [T], usize),
        finish: impl Fn(usize, usize, f32) -> T + Sync,
    ) {
        let place = SharedMut::new(out);
        // Few rows of x: w is read once, so thin tiles of w are the tasks. Many: a tile of x stays in cache.
        let (x_tile, w_tile) = (DOT_ROWS, if x_rows <= DOT_ROWS { 8 } else { DOT_ROWS });
        let w_tiles = w_rows.div_ceil(w_tile);
        self.each(x_rows.div_ceil(x_tile) * w_tiles, |task| {
            let (x0, w0) = (task / w_tiles * x_tile, task % w_tiles * w_tile);
            let (rows, columns) = (x_tile.min(x_rows - x0), w0..w_rows.min(w0 + w_tile));
            let write = |m, n, v| {
                // SAFETY: `stride >= w_rows` by the operations' checks, so every product has its own place.
                unsafe { place.part((x0 + m) * stride + w0 + n, 1)[0] = finish(x0 + m, w0 + n, v) };
            };
            self.dot_tile(rows, |m| x(x0 + m), w, columns, write);
        });
    }

    /// One tile of [`Self::dot_rows`] on this thread: at most [`DOT_ROWS`] rows of each.
    pub(crate) fn dot_tile<'a, X: Element, W: Element>(
        &self,
        x_rows: usize,
        x: impl Fn(usize) -> &'a [X],
        w: Matrix<W>,
        w_rows: Range<usize>,
        mut out: impl FnMut(usize, usize, f32),
    ) {
        let mut xs = [[].as_slice(); DOT_ROWS];
        (0..x_rows).for_each(|m| xs[m] = x(m));
        let (columns, mut products) = (w_rows.len(), [0f32; DOT_ROWS * DOT_ROWS]);
        kernels::dot::dot_rows(self.level, &xs[..x_rows], w, w_rows, &mut products);
        for m in 0..x_rows {
            for n in 0..columns {
                out(m, n, products[m * columns + n]);
            }
        }
    }

    /// `c += sum of the terms` on this thread.
    pub(crate) fn add_terms(&self, terms: Terms, c: &mut [f32]) {
        kernels::terms::add_terms(self.level, terms, c);
    }

    /// `y = c (+ bias)` on this thread, rounded once.
    pub(crate) fn store_row<Y: Element>(&self, c: &[f32], bias: Option<&[Y]>, y: &mut [Y]) {
        kernels::terms::store_row(self.level, c, bias, y);
    }

    /// `y = c`, or `y + c` where it is added, rounded once, on this thread; c lies in panels of [`B_COLUMNS`] columns, `panel`
    /// elements apart. Asks for as much of what comes `next`.
    pub(crate) fn add_row<Y: Element>(
        &self,
        c: &[f32],
        panel: usize,
        y: &mut [Y],
        accumulate: bool,
        next: *const Y,
    ) {
        kernels::terms::add_to_row(self.level, c, panel, y, accumulate, next);
    }

    /// `sqrt(variance + epsilon)` of a row, on this thread.
    pub(crate) fn deviation<X: Element>(&self, row: &[X], epsilon: f32) -> f32 {
        kernels::deviation::deviation(self.level, row, epsilon)
    }

    /// `c = row` on this thread.
    pub(crate) fn widen<Y: Element>(&self, row: &[Y], c: &mut [f32]) {
        kernels::pack::pack_rows(self.level, &[row], c);
    }
}

/// A slice that several threads write at places which never overlap.
pub(crate) struct SharedMut<'a, T> {
    start: *mut T,
    len: usize,
    _slice: std::marker::PhantomData<&'a mut [T]>,
}

// SAFETY: `part` is unsafe and demands disjoint places, so sharing the pointer moves no data race in.
unsafe impl<T: Send> Sync for SharedMut<'_, T> {}

impl<'a, T> SharedMut<'a, T> {
    /// Borrows the slice for as long as the parts live.
    pub(crate) fn new(slice: &'a mut [T]) -> Self {
        Self { start: slice.as_mut_ptr(), len: slice.len(), _slice: std::marker::PhantomData }
    }

    /// Elements of the slice.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// One part.
    ///
    /// # Safety
    /// No other part in use overlaps it.
    #[expect(clippy::mut_from_ref, reason = "disjointness is the caller's promise")]
    pub(crate) unsafe fn part(&self, first: usize, count: usize) -> &mut [T] {
        assert!(first.checked_add(count).is_some_and(|end| end <= self.len), "part within the slice");
        // SAFETY: within the slice by the assertion, disjoint by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(first), count) }
    }
}
