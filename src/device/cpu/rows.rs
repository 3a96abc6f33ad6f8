//! Rows of x made ready for a product: cut into tiles of nearly equal height, widened, k-major within a tile.

use super::kernels::pack::pack_rows;
use super::memory::Lines;
use super::{Cpu, SharedMut};
use crate::element::Element;
use std::cell::Cell;
use std::ops::Range;

/// Most elements whose memory a thread keeps: 32 MiB, so that a long prompt leaves nothing behind.
const KEPT: usize = 1 << 23;

/// Elements below which one thread packs faster than several wake up.
const ALONE: usize = 1 << 13;

thread_local! {
    /// Memory of rows that are gone: fresh memory would be zeroed and mapped anew in every call.
    static SPARE: Cell<Lines<f32>> = Cell::default();
}

/// Rows in tiles.
pub(crate) struct Tiles {
    /// First row of every tile, and the end.
    bounds: Vec<usize>,
    inner: usize,
    data: Lines<f32>,
}

impl Tiles {
    /// Packs `row(0..)`, each of `inner` elements; every group of rows, given by its length, starts a tile.
    pub(crate) fn new<'a, X: Element>(
        cpu: &Cpu,
        groups: impl IntoIterator<Item = usize>,
        inner: usize,
        row: impl Fn(usize) -> &'a [X] + Send + Sync,
    ) -> Self {
        let mut bounds = vec![0];
        for rows in groups {
            let (start, tiles) = (bounds[bounds.len() - 1], rows.div_ceil(cpu.level.rows()));
            bounds.extend((1..=tiles).map(|i| start + rows * i / tiles));
        }
        let mut packed = Self { data: SPARE.take(), inner, bounds };
        let (tiles, len) = (packed.tiles(), packed.bounds[packed.tiles()] * inner);
        let place = SharedMut::new(packed.data.at_least(len));
        let pack = |tile: usize| {
            let rows = packed.bounds[tile]..packed.bounds[tile + 1];
            let mut from = [[].as_slice(); MAX_ROWS];
            from.iter_mut().zip(rows.clone()).for_each(|(from, m)| *from = row(m));
            // SAFETY: every tile is one task's.
            let out = unsafe { place.part(rows.start * inner, rows.len() * inner) };
            pack_rows(cpu.level, &from[..rows.len()], out);
        };
        if place.len() <= ALONE {
            (0..tiles).for_each(pack)
        } else {
            cpu.each(tiles, pack)
        }
        packed
    }

    /// Tiles.
    pub(crate) fn tiles(&self) -> usize {
        self.bounds.len() - 1
    }

    /// The tile that starts with this row, which must start one.
    pub(crate) fn tile_at(&self, row: usize) -> usize {
        self.bounds.binary_search(&row).expect("a group's first row")
    }

    /// Rows of consecutive tiles.
    pub(crate) fn rows_of(&self, tiles: Range<usize>) -> Range<usize> {
        self.bounds[tiles.start]..self.bounds[tiles.end]
    }

    /// Most rows of a tile.
    pub(crate) fn max_rows(&self) -> usize {
        self.bounds.windows(2).map(|w| w[1] - w[0]).max().unwrap_or(0)
    }

    /// Elements of a row.
    pub(crate) fn inner(&self) -> usize {
        self.inner
    }

    /// One tile, `[inner, rows]`.
    pub(crate) fn tile(&self, tile: usize) -> &[f32] {
        &self.data[self.bounds[tile] * self.inner..self.bounds[tile + 1] * self.inner]
    }
}

impl Drop for Tiles {
    fn drop(&mut self) {
        if self.data.len() > KEPT {
            return;
        }
        // The larger is kept. A thread that ends keeps none.
        let _ = SPARE.try_with(|spare| {
            let other = spare.take();
            spare.set(if other.len() > self.data.len() { other } else { std::mem::take(&mut self.data) });
        });
    }
}

/// Most rows of a tile on any level.
const MAX_ROWS: usize = 14;
