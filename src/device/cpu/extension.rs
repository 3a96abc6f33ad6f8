//! The experts' part of a product: every adapter's routes in tiles, with their rows of h scaled, slice by slice.

use super::kernels::routes::{Adapter, Panel, Place, ROUTES, Routes, Tile};
use super::{B_COLUMNS, Cpu, Pool, SharedMut, Sums, with_scratch};
use crate::adapter::slots::{Slot, Slots};
use crate::element::{Element, ElementType};
use half::{bf16, f16};
use std::ops::Range;

/// Most rows at once: what their columns take stays in a core's second-level cache.
const ROWS_AT_ONCE: usize = 512;

/// Routes of an adapter that should follow each other. Fewer rows at once stay in the first-level cache, but what an
/// adapter has of B is then read more often.
const ROUTES_AT_ONCE: usize = 32;

/// Most sums of a task of [`Extension::add_to`].
const SUMS: usize = 1 << 16;

/// Tasks a thread should have there.
const TASKS_A_THREAD: usize = 4;

/// Routes of rows, adapters ascending: a row's sums are its own, then its adapters' in that order, then whatever follows.
pub(crate) struct Extension {
    /// One for every slice of the output.
    slices: Vec<Routes>,
    /// Whether a row has a route.
    touched: Vec<bool>,
}

/// A route of a row: a slot that holds an adapter, its weight, and its row of h.
pub(crate) type Route<'a> = (usize, f32, &'a [f32]);

impl Extension {
    /// Sorts the rows' routes by adapter and packs them.
    pub(crate) fn new<'a, R: Iterator<Item = Route<'a>>>(
        slots: &Slots,
        rows: usize,
        routes: impl Fn(usize) -> R,
    ) -> Self {
        let mut ends = vec![0; slots.slots().len() + 1];
        let mut touched = vec![false; rows];
        for (row, touched) in touched.iter_mut().enumerate() {
            for (id, ..) in routes(row) {
                ends[id + 1] += 1;
                *touched = true;
            }
        }
        (1..ends.len()).for_each(|id| ends[id] += ends[id - 1]);
        let nothing: (u32, f32, &[f32]) = (0, 0.0, &[]);
        let mut sorted = vec![nothing; ends[ends.len() - 1]];
        // Starts move on to the ends as routes come.
        let mut starts = ends;
        for row in 0..rows {
            for (id, weight, h) in routes(row) {
                sorted[starts[id]] = (row as u32, weight, h);
                starts[id] += 1;
            }
        }
        let slice = |slice: usize| {
            let (mut tiles, mut start) = (Routes::default(), 0);
            for (id, &end) in starts[..slots.slots().len()].iter().enumerate() {
                if end > start {
                    tiles.push(&slots.slots()[id], &slots.parts(slice)[id], &sorted[start..end]);
                }
                start = end;
            }
            tiles
        };
        Self { slices: (0..slots.slices().len()).map(slice).collect(), touched }
    }

    /// Adds them to sums, whose rows are this extension's and whose column `origin` is the pool's first.
    pub(crate) fn add(&self, cpu: &Cpu, pool: &Pool, sums: &mut Sums, origin: usize) {
        let (all, mut first) = (sums.columns.clone(), origin);
        for (routes, &width) in self.slices.iter().zip(pool.slots().slices()) {
            let columns =
                all.start.clamp(first, first + width) - first..all.end.clamp(first, first + width) - first;
            let at_once = self.rows_at_once(routes);
            let rows = if columns.is_empty() { 0..0 } else { sums.rows.clone() };
            for row in rows.clone().step_by(at_once) {
                let place = sums.place(row..rows.end.min(row + at_once), first + columns.start);
                // SAFETY: the sums are borrowed exclusively.
                unsafe { cpu.add_routes(pool, routes, columns.clone(), &place) };
            }
            first += width;
        }
    }

    /// Rows whose routes are added one after another.
    fn rows_at_once(&self, routes: &Routes) -> usize {
        let enough = ROUTES_AT_ONCE * routes.adapters.len() * self.touched.len();
        enough.div_ceil(routes.rows.len().max(1)).clamp(64, ROWS_AT_ONCE)
    }

    /// `y (+)= the experts' sums` over all threads, rounded once, where the pool has one slice; with `accumulate` rows without
    /// a route are left alone, without it they are zeros.
    pub(crate) fn add_to<Y: Element>(
        &self,
        cpu: &Cpu,
        pool: &Pool,
        y: &mut [Y],
        (width, stride): (usize, usize),
        accumulate: bool,
    ) {
        let rows = self.touched.len();
        let routes = &self.slices[0];
        let at_once = self.rows_at_once(routes);
        let blocks = rows.div_ceil(at_once);
        let wanted = (TASKS_A_THREAD * cpu.threads()).div_ceil(blocks.max(1));
        let group = width.div_ceil(wanted).min(SUMS / at_once).next_multiple_of(B_COLUMNS);
        let groups = width.div_ceil(group);
        let shared = SharedMut::new(y);
        cpu.each(groups * blocks, |task| {
            let (block, group_at) = (task % blocks, task / blocks);
            let own = rows * block / blocks..rows * (block + 1) / blocks;
            let columns = group_at * group..width.min((group_at + 1) * group);
            with_scratch(|[sums, _]| {
                // Sums of their own, panel by panel: rows of y lie so that they would meet in few places of a cache.
                let (count, panel) = (columns.len(), own.len() * B_COLUMNS);
                let sums = sums.at_least(count.div_ceil(B_COLUMNS) * panel);
                sums.fill(0.0);
                for (sums, first) in sums.chunks_mut(panel).zip(columns.clone().step_by(B_COLUMNS)) {
                    let columns = first..columns.end.min(first + B_COLUMNS);
                    let place = Place { start: sums.as_mut_ptr(), stride: B_COLUMNS, rows: own.clone() };
                    // SAFETY: the sums are this task's.
                    unsafe { cpu.add_routes(pool, routes, columns, &place) };
                }
                for (row, first) in own.clone().zip((0..).step_by(B_COLUMNS)) {
                    if self.touched[row] || !accumulate {
                        // SAFETY: rows lie at least their width apart, and every (row, column) is one task's.
                        let part = unsafe { shared.part(row * stride + columns.start, count) };
                        let next = part.as_ptr().wrapping_add(stride);
                        cpu.add_row(&sums[first..], panel, part, accumulate, next);
                    }
                }
            });
        });
    }
}

impl Routes {
    /// Packs one adapter's routes, whose rows ascend.
    fn push(&mut self, slot: &Slot, part: &Slot, routes: &[(u32, f32, &[f32])]) {
        if part.rank == 0 {
            return;
        }
        let (rank, skip) = (part.rank as usize, (part.row - slot.row) as usize);
        // Tiles of nearly equal height, cut where a row comes again.
        let tiles = routes.len().div_ceil(ROUTES);
        let first_tile = self.tiles.len();
        for i in 0..tiles {
            let tile = &routes[routes.len() * i / tiles..routes.len() * (i + 1) / tiles];
            for tile in tile.chunk_by(|a, b| a.0 != b.0) {
                let (first, h) = (self.rows.len(), self.h.len());
                self.rows.extend(tile.iter().map(|route| route.0));
                for r in skip..skip + rank {
                    self.h.extend(tile.iter().map(|(_, weight, h)| weight * part.scaling * h[r]));
                }
                self.tiles.push(Tile { routes: first..self.rows.len(), h });
            }
        }
        self.adapters.push(Adapter { b_row: part.row as usize, rank, tiles: first_tile..self.tiles.len() });
    }
}

impl Cpu {
    /// Adds routes to the columns of a pool's slice that a place has, on this thread.
    ///
    /// # Safety
    /// The columns of every row of the place are the caller's alone.
    unsafe fn add_routes(&self, pool: &Pool, routes: &Routes, columns: Range<usize>, place: &Place) {
        // SAFETY: passed on.
        unsafe {
            match pool.slots().sizes().element {
                ElementType::F32 => self.add_panels::<f32>(pool, routes, columns, place),
                ElementType::F16 => self.add_panels::<f16>(pool, routes, columns, place),
                ElementType::Bf16 => self.add_panels::<bf16>(pool, routes, columns, place),
            }
        }
    }

    unsafe fn add_panels<B: Element>(
        &self,
        pool: &Pool,
        routes: &Routes,
        columns: Range<usize>,
        place: &Place,
    ) {
        let first = columns.start;
        for (own, b) in pool.b_panels::<B>(columns) {
            let start = place.start.wrapping_add(own.start - first);
            let panel = Panel { b, column: own.start % B_COLUMNS, columns: own.len() };
            let place = Place { start, ..place.clone() };
            // SAFETY: passed on.
            unsafe { super::kernels::routes::add_routes(self.level, routes, panel, &place) };
        }
    }
}
