//! Routes of one adapter times its rows of B, added to the rows that they belong to.
//!
//! ```text
//! for every tile of routes of an adapter          at most 6, whose rows differ
//!   for every few vectors of the panel's columns
//!     sums = 0
//!     for every rank                              a row of B, a broadcast of h a route
//!       sums[route] += h[rank, route] B[rank]
//!     c[row of the route] += sums[route]
//! ```
//!
//! A tile of 6 routes and 4 vectors has 24 multiply-adds for 10 loads. The rows of B of an adapter stay in the first-level
//! cache from tile to tile, each of which asks for its share of the rows that the next adapter has.

use super::Kernel;
use crate::device::cpu::pool::B_COLUMNS;
use crate::device::cpu::shared::Span;
use crate::device::cpu::simd::{Level, Simd};
use crate::element::Element;
use std::ops::Range;

/// Bytes of B to read, at least, until what a tile asks for is needed.
const AHEAD: usize = 16384;

/// Most routes of a tile.
pub(crate) const ROUTES: usize = 6;

/// An adapter with routes.
#[derive(Debug)]
pub(crate) struct Adapter {
    /// Its first row of B, and how many it has.
    pub(crate) b_row: usize,
    pub(crate) rank: usize,
    pub(crate) tiles: Range<usize>,
}

/// Routes of one adapter.
#[derive(Debug)]
pub(crate) struct Tile {
    /// The routes' places in [`Routes::rows`], at most [`ROUTES`].
    pub(crate) routes: Range<usize>,
    /// Where `[rank, routes]` of [`Routes::h`] starts.
    pub(crate) h: usize,
}

/// Tiles of routes, adapter by adapter, the rows of each ascending.
#[derive(Debug, Default)]
pub(crate) struct Routes {
    pub(crate) adapters: Vec<Adapter>,
    pub(crate) tiles: Vec<Tile>,
    /// The row of every route; different within a tile.
    pub(crate) rows: Vec<u32>,
    /// Rows of h with all their factors, k-major within a tile.
    pub(crate) h: Vec<f32>,
}

/// Columns of a panel of B, `[rank_capacity, B_COLUMNS]`.
#[derive(Clone, Copy)]
pub(crate) struct Panel<'a, B> {
    pub(crate) b: Span<'a, B>,
    pub(crate) column: usize,
    pub(crate) columns: usize,
}

/// Where sums lie: some rows, `stride` elements apart, of which the panel's columns come first.
#[derive(Clone)]
pub(crate) struct Place {
    pub(crate) start: *mut f32,
    pub(crate) stride: usize,
    pub(crate) rows: Range<usize>,
}

/// `c[row of n][j] += sum over r of h[r, n] B[r][column + j]` for every route n whose row is one of the place's.
///
/// A route's sum starts from zero and is added as one: the same bits in every tile. Adapters follow each other in the order
/// of the tiles.
///
/// # Safety
/// The panel's columns of every row of the place are the caller's alone.
pub(crate) unsafe fn add_routes<B: Element>(level: Level, routes: &Routes, panel: Panel<B>, place: &Place) {
    assert!(panel.column + panel.columns <= B_COLUMNS, "columns within a panel");
    // SAFETY: the caller's promise; `Level::detect` found the instruction set.
    unsafe { B::add_routes(level, AddRoutes { routes, panel, place }) }
}

pub struct AddRoutes<'a, B> {
    routes: &'a Routes,
    panel: Panel<'a, B>,
    place: &'a Place,
}

impl<B: Element> Kernel for AddRoutes<'_, B> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Routes { adapters, tiles, rows, .. } = self.routes;
        let (place, b) = (&self.place.rows, self.panel.b);
        for (i, adapter) in adapters.iter().enumerate() {
            // Rows ascend: the tiles that have some of the place are neighbours.
            let tiles = &tiles[adapter.tiles.clone()];
            let start = tiles.partition_point(|tile| (rows[tile.routes.end - 1] as usize) < place.start);
            let tiles = &tiles[start..];
            let tiles =
                &tiles[..tiles.partition_point(|tile| (rows[tile.routes.start] as usize) < place.end)];
            // After the last adapter comes the first one in the next panel.
            let row_bytes = B_COLUMNS * size_of::<B>();
            let next = i + AHEAD.div_ceil(adapter.rank * row_bytes);
            let (further, next) = (next / adapters.len(), &adapters[next % adapters.len()]);
            let next_row = b.as_ptr().wrapping_add(further * b.len() + next.b_row * B_COLUMNS).cast::<u8>();
            let lines = next.rank * row_bytes / 64;
            for (t, tile) in tiles.iter().enumerate() {
                let own = &rows[tile.routes.clone()];
                let first = own.partition_point(|&row| (row as usize) < place.start);
                let end = own.partition_point(|&row| (row as usize) < place.end);
                let (from, to) = (lines * t / tiles.len(), lines * (t + 1) / tiles.len());
                let ahead = Ahead {
                    line: next_row.wrapping_add(64 * from),
                    a_rank: (to - from).div_ceil(adapter.rank),
                };
                // SAFETY: passed on.
                unsafe {
                    match end - first {
                        0 => (),
                        1 => self.tile::<S, 1>(adapter, tile, first, ahead),
                        2 => self.tile::<S, 2>(adapter, tile, first, ahead),
                        3 => self.tile::<S, 3>(adapter, tile, first, ahead),
                        4 => self.tile::<S, 4>(adapter, tile, first, ahead),
                        5 => self.tile::<S, 5>(adapter, tile, first, ahead),
                        _ => self.tile::<S, 6>(adapter, tile, first, ahead),
                    }
                }
            }
        }
    }
}

/// What a tile asks for while it works.
#[derive(Clone, Copy)]
struct Ahead {
    line: *const u8,
    /// Lines at every rank.
    a_rank: usize,
}

impl<B: Element> AddRoutes<'_, B> {
    /// M routes of a tile from the `first` on.
    #[inline(always)]
    unsafe fn tile<S: Simd, const M: usize>(
        &self,
        adapter: &Adapter,
        tile: &Tile,
        first: usize,
        ahead: Ahead,
    ) {
        let rows = &self.routes.rows[tile.routes.clone()][first..first + M];
        let (h_stride, &Adapter { b_row, rank, .. }) = (tile.routes.len(), adapter);
        let h = &self.routes.h[tile.h..tile.h + rank * h_stride];
        let Panel { b, column, columns } = self.panel;
        assert!((b_row + rank) * B_COLUMNS <= b.len(), "rows within the panel");
        let mut c = [self.place.start; M];
        for m in 0..M {
            c[m] = c[m].wrapping_add((rows[m] as usize - self.place.rows.start) * self.place.stride);
        }
        // SAFETY: the tile's rows of B and of h are there by the assertions; the rows are the place's.
        unsafe {
            let mut strip = Strip {
                h: h.as_ptr().add(first),
                h_stride,
                b: b.as_ptr().add(b_row * B_COLUMNS + column),
                rank,
                ahead,
                c,
            };
            let mut left = columns;
            while left > 0 {
                let vectors = if left >= 4 * S::LANES && S::ROWS * S::VECTORS >= 4 * ROUTES {
                    strip.add::<S, 4>(S::LANES);
                    4
                } else if left >= 2 * S::LANES {
                    strip.add::<S, 2>(S::LANES);
                    2
                } else {
                    strip.add::<S, 1>(left.min(S::LANES));
                    1
                };
                left = left.saturating_sub(vectors * S::LANES);
                strip.ahead.a_rank = 0;
                strip.b = strip.b.wrapping_add(vectors * S::LANES);
                for m in 0..M {
                    strip.c[m] = strip.c[m].wrapping_add(vectors * S::LANES);
                }
            }
        }
    }
}

/// M routes and some vectors of columns.
struct Strip<B, const M: usize> {
    h: *const f32,
    h_stride: usize,
    b: *const B,
    rank: usize,
    ahead: Ahead,
    c: [*mut f32; M],
}

impl<B: Element, const M: usize> Strip<B, M> {
    /// N vectors, or the first `count` lanes of one.
    #[inline(always)]
    unsafe fn add<S: Simd, const N: usize>(&self, count: usize) {
        let whole = N > 1 || count == S::LANES;
        // SAFETY: `rank` rows of B and of h, and `count` columns of M rows of c, by the caller's promise.
        unsafe {
            let mut sums = [[S::splat(0.0); N]; M];
            let (mut h, mut b, mut ahead) = (self.h, self.b, self.ahead.line);
            for _ in 0..self.rank {
                for _ in 0..self.ahead.a_rank {
                    S::prefetch(ahead);
                    ahead = ahead.wrapping_add(64);
                }
                let mut columns = [S::splat(0.0); N];
                for n in 0..N {
                    let from = b.wrapping_add(n * S::LANES);
                    columns[n] = if whole { S::load(from) } else { S::load_part(from, count) };
                }
                S::add_products(h, columns, &mut sums);
                (h, b) = (h.wrapping_add(self.h_stride), b.wrapping_add(B_COLUMNS));
            }
            // All are read before any is written: rows a multiple of 4 KiB apart would wait for each other.
            for m in 0..M {
                for n in 0..N {
                    let place = self.c[m].wrapping_add(n * S::LANES);
                    let old = if whole { S::load_f32(place) } else { S::load_part(place, count) };
                    sums[m][n] = S::add(old, sums[m][n]);
                }
            }
            for m in 0..M {
                for n in 0..N {
                    let place = self.c[m].wrapping_add(n * S::LANES);
                    if whole {
                        S::store_f32(place, sums[m][n]);
                    } else {
                        S::store_part(place, sums[m][n], count);
                    }
                }
            }
        }
    }
}
