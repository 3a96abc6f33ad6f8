//! The product with a frozen weight: rows cut into blocks and columns into groups of panels, one of each a task.
//!
//! ```text
//! for every block of the inner dimension          its part of the rows stays in the second-level cache
//!   for every panel of the group                  the block of the panel stays in the first-level cache
//!     for every tile of rows                      sums in registers, added to the task's c
//! ```
//!
//! The task's c is then whatever the operation makes of it: experts are added, y is rounded once and stored.

use super::kernels::panel::{BLOCK, Block, block};
use super::kernels::routes::Place;
use super::memory::Lines;
use super::pool::B_COLUMNS;
use super::rows::Tiles;
use super::{Cpu, Pool, SharedMut, Weight};
use crate::element::Element;
use std::cell::RefCell;
use std::ops::Range;

/// Most rows of a task: with [`SUMS`] and a block of these rows a core's second-level cache of 1 MiB holds what is reused.
const ROWS_AT_ONCE: usize = 512;

/// Most sums of a task.
const SUMS: usize = 1 << 16;

/// Sums between one row's and the next one's: a cache line, so that rows do not meet in few places of a cache.
const APART: usize = 16;

/// Tasks a thread should have where there are columns enough: what one thread lacks another takes.
pub(crate) const TASKS_A_THREAD: usize = 8;

thread_local! {
    static SCRATCH: RefCell<[Lines<f32>; 2]> = RefCell::default();
}

/// Runs `task` with this thread's memory for sums, which keeps what it has grown to; not within another such task.
pub(crate) fn with_scratch<R>(task: impl FnOnce(&mut [Lines<f32>; 2]) -> R) -> R {
    SCRATCH.with_borrow_mut(task)
}

/// A part of a product: tiles of rows and panels of columns.
#[derive(Debug, Clone)]
pub(crate) struct Part {
    pub(crate) tiles: Range<usize>,
    pub(crate) panels: Range<usize>,
}

/// Sums of a part, before they are rounded.
pub(crate) struct Sums<'a> {
    /// Packed rows.
    pub(crate) rows: Range<usize>,
    /// Columns of the product, the first that of the part's first panel.
    pub(crate) columns: Range<usize>,
    c: &'a mut [f32],
    stride: usize,
}

impl Sums<'_> {
    /// The sums of one packed row, all of its columns.
    pub(crate) fn row(&mut self, row: usize) -> &mut [f32] {
        &mut self.c[(row - self.rows.start) * self.stride..][..self.columns.len()]
    }

    /// Where some rows lie, from a column on.
    pub(super) fn place(&mut self, rows: Range<usize>, column: usize) -> Place {
        let first = (rows.start - self.rows.start) * self.stride + column - self.columns.start;
        Place { start: self.c[first..].as_mut_ptr(), stride: self.stride, rows }
    }

    /// The sums of one packed row over some of its columns.
    pub(crate) fn part(&mut self, row: usize, columns: &Range<usize>) -> &mut [f32] {
        let first = columns.start - self.columns.start;
        &mut self.row(row)[first..first + columns.len()]
    }
}

/// Where a product ends.
pub(crate) struct Out<'a, Y> {
    /// Elements from one row of y to the next.
    pub(crate) stride: usize,
    pub(crate) bias: Option<&'a [Y]>,
    pub(crate) y: SharedMut<'a, Y>,
}

impl Cpu {
    /// `y = x weight^T (+ bias)` over all threads, rounded once after `then` has added to the sums; of a pool, `ahead` is
    /// what `then` will read.
    pub(crate) fn products<X: Element>(
        &self,
        weight: &Weight<X>,
        x: &Tiles,
        out: &Out<X>,
        ahead: Option<&Pool>,
        then: impl Fn(&Part, &mut Sums) + Sync,
    ) {
        let parts = self.parts(x, 0..x.tiles(), 0..weight.panels(), TASKS_A_THREAD * self.threads());
        self.each(parts.len(), |i| {
            with_scratch(|[scratch, _]| {
                let panel = self.level.columns();
                let columns = parts[i].panels.start * panel..parts[i].panels.end * panel;
                // Few rows wait for memory already.
                let ahead = ahead.filter(|_| x.tiles() > 1).map_or(Vec::new(), |pool| pool.ahead(columns));
                let mut sums = self.sums(weight, x, &parts[i], &ahead, scratch);
                then(&parts[i], &mut sums);
                for row in sums.rows.clone() {
                    let columns = sums.columns.clone();
                    // SAFETY: rows lie at least their width apart, and every (row, column) is one part's.
                    let y = unsafe { out.y.part(row * out.stride + columns.start, columns.len()) };
                    self.store_row(sums.row(row), out.bias.map(|bias| &bias[columns]), y);
                }
            });
        });
    }

    /// Cuts the tiles and panels of a product into tasks: as many as are wanted where there are panels enough, more where
    /// the sums of one would outgrow the cache.
    pub(crate) fn parts(
        &self,
        x: &Tiles,
        tiles: Range<usize>,
        panels: Range<usize>,
        wanted: usize,
    ) -> Vec<Part> {
        let rows = x.rows_of(tiles.clone()).len();
        if rows == 0 || panels.is_empty() {
            return Vec::new();
        }
        let blocks = rows.div_ceil(ROWS_AT_ONCE);
        let most = (SUMS / self.level.columns() / rows.div_ceil(blocks)).max(1);
        let group = most.min(panels.len().div_ceil(wanted.max(1))).max(1);
        let groups = panels.len().div_ceil(group);
        let cut = |range: &Range<usize>, parts: usize, i: usize| {
            range.start + range.len() * i / parts..range.start + range.len() * (i + 1) / parts
        };
        let part =
            |i| Part { tiles: cut(&tiles, blocks, i % blocks), panels: cut(&panels, groups, i / blocks) };
        (0..groups * blocks).map(part).collect()
    }

    /// The part's sums `x weight^T`, on this thread.
    pub(crate) fn sums<'a, X: Element>(
        &self,
        weight: &Weight<X>,
        x: &Tiles,
        part: &Part,
        ahead: &[&[u8]],
        scratch: &'a mut Lines<f32>,
    ) -> Sums<'a> {
        let (columns, rows) = (self.level.columns(), x.rows_of(part.tiles.clone()));
        let stride = columns * part.panels.len() + APART;
        let panels = |inner: Range<usize>| part.panels.clone().map(move |panel| (inner.clone(), panel));
        let at = |(inner, panel): &(Range<usize>, usize)| {
            &weight.panel(*panel)[inner.start * columns..inner.end * columns]
        };
        let c = scratch.at_least(rows.len() * stride);
        if x.inner() == 0 {
            c.fill(0.0);
        }
        // Every step asks for its share of what comes after the product.
        let count = (part.panels.len() * x.inner().div_ceil(BLOCK)).max(1);
        let each = ahead.iter().map(|part| part.len()).sum::<usize>().div_ceil(count).next_multiple_of(64);
        let mut ahead = ahead.iter().flat_map(|part| part.chunks(each.max(64)));
        let mut steps = blocks_of(x.inner()).flat_map(panels).peekable();
        while let Some(step) = steps.next() {
            let (w, (inner, panel)) = (at(&step), step);
            let next = steps.peek().map_or(w, at).as_ptr();
            let (tiles, add, ahead) = (part.tiles.clone(), inner.start > 0, ahead.next().unwrap_or_default());
            let pass = (panel - part.panels.start, part.panels.len());
            let args = Block { w, w_stride: columns, inner, next, pass, ahead, x, tiles, add };
            block(self.level, &args, &mut c[pass.0 * columns..], stride);
        }
        let columns = part.panels.start * columns..weight.out_features().min(part.panels.end * columns);
        Sums { rows, columns, c, stride }
    }

    /// Adds `z B` to sums, where column k of z belongs to row k of a pool of one slice: the inner loop runs on.
    pub(crate) fn extend<B: Element>(&self, z: &Tiles, pool: &Pool, part: &Part, sums: &mut Sums) {
        let columns = self.level.columns();
        for panel in part.panels.clone() {
            let (c, column) = (&mut sums.c[(panel - part.panels.start) * columns..], panel * columns);
            // A panel of B holds whole panels of the weight, zeros behind the last column.
            for (_, rows) in pool.whole_b_panels::<B>(column..column + 1) {
                for inner in blocks_of(z.inner()) {
                    let w = &rows[inner.start * B_COLUMNS + column % B_COLUMNS..];
                    let (tiles, next) = (part.tiles.clone(), w.as_ptr());
                    let pass = (panel - part.panels.start, part.panels.len());
                    let (ahead, add) = (&[][..], true);
                    let args = Block { w, w_stride: B_COLUMNS, inner, next, pass, ahead, x: z, tiles, add };
                    block(self.level, &args, c, sums.stride);
                }
            }
        }
    }
}

fn blocks_of(inner: usize) -> impl Iterator<Item = Range<usize>> + Clone {
    (0..inner).step_by(BLOCK).map(move |k| k..inner.min(k + BLOCK))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::cpu::simd::Level;
    use half::{bf16, f16};

    /// Multiples of 1/8 below 1: every partial sum is exact in f32.
    fn values<E: Element>(seed: u32, len: usize) -> Vec<E> {
        (0..len as u32)
            .map(|i| E::from_f32(((i * 37 + i / 7 + seed * 101) % 16) as f32 / 8.0 - 1.0))
            .collect()
    }

    fn product<X: Element>(cpu: &Cpu, (t, i, o): (usize, usize, usize), x: &[X], weight: &[X]) -> Vec<X> {
        let weight = cpu.pack(o, i, weight).unwrap();
        let x = Tiles::new(cpu, [t], i, |row| &x[row * i..][..i]);
        let mut y = vec![X::from_f32(f32::NAN); t * o];
        let out = Out { stride: o, bias: None, y: SharedMut::new(&mut y) };
        cpu.products(&weight, &x, &out, None, |_, _| ());
        y
    }

    fn check<X: Element>(level: Level) {
        let cpu = Cpu { level, ..Cpu::new().unwrap() };
        let (rows, columns) = (level.rows(), level.columns());
        for tokens in [1, rows - 1, rows, rows + 1, 3 * rows + 2] {
            for (inner, out) in [
                (1, 1),
                (7, columns - 1),
                (8, columns),
                (BLOCK - 1, 2),
                (BLOCK, columns + 1),
                (BLOCK + 9, 3 * columns),
            ] {
                let (x, w): (Vec<X>, Vec<X>) = (values(1, tokens * inner), values(2, out * inner));
                let y = product(&cpu, (tokens, inner, out), &x, &w);
                for (at, &got) in y.iter().enumerate() {
                    let (x, w) = (&x[at / out * inner..][..inner], &w[at % out * inner..][..inner]);
                    let exact: f32 = x.iter().zip(w).map(|(x, w)| x.to_f32() * w.to_f32()).sum();
                    let case = format!("{} {tokens}x{inner}x{out} [{at}]", level.name());
                    assert_eq!(got, X::from_f32(exact), "{case}");
                }
            }
        }
    }

    #[test]
    fn every_level_and_element_is_exact_on_exact_inputs() {
        for level in Level::all() {
            check::<f32>(level);
            check::<f16>(level);
            check::<bf16>(level);
        }
    }

    #[test]
    fn a_row_alone_has_the_bits_that_it_has_in_a_batch() {
        let noise =
            |seed: f32, len: usize| -> Vec<f32> { (0..len).map(|i| (i as f32 * seed).sin()).collect() };
        for level in Level::all() {
            let cpu = Cpu { level, ..Cpu::new().unwrap() };
            let (tokens, inner, out) = (ROWS_AT_ONCE + 41, 2 * BLOCK + 77, 2 * level.columns() + 3);
            let (x, w) = (noise(0.37, tokens * inner), noise(0.73, out * inner));
            let all = product(&cpu, (tokens, inner, out), &x, &w);
            for row in [0, 1, 13, ROWS_AT_ONCE, tokens - 1] {
                let alone = product(&cpu, (1, inner, out), &x[row * inner..][..inner], &w);
                assert_eq!(alone, all[row * out..][..out], "{} row {row}", level.name());
            }
        }
    }

    #[test]
    fn parts_cover_every_row_and_column_once() {
        let cpu = Cpu::new().unwrap();
        for (tokens, panels) in [(1, 1), (1, 300), (15, 7), (513, 64), (2048, 3)] {
            let x = Tiles::new(&cpu, [tokens], 1, |_| &[1f32]);
            let mut seen = vec![0; x.tiles() * panels];
            for part in cpu.parts(&x, 0..x.tiles(), 0..panels, 16) {
                assert!(x.rows_of(part.tiles.clone()).len() <= 2 * ROWS_AT_ONCE);
                for tile in part.tiles.clone() {
                    part.panels.clone().for_each(|panel| seen[tile * panels + panel] += 1);
                }
            }
            assert!(seen.iter().all(|&times| times == 1), "{tokens} x {panels}");
        }
    }
}
