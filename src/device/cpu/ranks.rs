//! Products of rows with adapters' A over all threads.

use super::kernels::ranks::{BLOCK, padded, rank_products};
use super::memory::Lines;
use super::{Cpu, Pool, SharedMut, with_scratch};
use crate::element::{Element, ElementType};
use half::{bf16, f16};
use std::ops::Range;

/// Most rows of a task.
const ROWS: usize = 64;

/// Rows of x, widened where they are not f32.
pub(crate) struct Wide<'a> {
    own: Lines<f32>,
    given: &'a [f32],
    stride: usize,
    inner: usize,
}

impl<'a> Wide<'a> {
    /// `rows` rows of `inner` elements, `stride` elements apart.
    pub(crate) fn new<X: Element>(
        cpu: &Cpu,
        x: &'a [X],
        (rows, inner, stride): (usize, usize, usize),
    ) -> Self {
        if X::TYPE == ElementType::F32 {
            return Self { own: Lines::default(), given: bytemuck::cast_slice(x), stride, inner };
        }
        let mut own = Lines::zeroed(rows * inner);
        let place = SharedMut::new(&mut own);
        cpu.each(rows, |row| {
            // SAFETY: every row is one task's.
            cpu.widen(&x[row * stride..][..inner], unsafe { place.part(row * inner, inner) });
        });
        Self { own, given: &[], stride: inner, inner }
    }

    fn row(&self, row: usize) -> &[f32] {
        let all = if self.own.is_empty() { self.given } else { &*self.own };
        &all[row * self.stride..][..self.inner]
    }
}

/// Rows that meet one adapter.
pub(crate) struct Group {
    /// Its slot.
    pub(crate) slot: usize,
    pub(crate) rows: usize,
}

/// Some rows of a group.
struct Task {
    group: usize,
    rows: Range<usize>,
}

impl Cpu {
    /// Hands `put(group, i, x_row(group, i) A^T)` the products of every group's rows with its adapter's A, from all threads.
    ///
    /// A product is a sum over blocks of the inner dimension, in their order, whatever the other rows.
    pub(crate) fn rank_products(
        &self,
        pool: &Pool,
        x: &Wide,
        groups: &[Group],
        x_row: impl Fn(usize, usize) -> usize + Sync,
        put: impl Fn(usize, usize, &[f32]) + Sync,
    ) {
        let mut tasks = Vec::new();
        for (group, &Group { rows, .. }) in groups.iter().enumerate() {
            let parts = rows.div_ceil(ROWS);
            tasks.extend((0..parts).map(|i| Task { group, rows: rows * i / parts..rows * (i + 1) / parts }));
        }
        if tasks.is_empty() {
            return;
        }
        let run = |task: &Task, blocks: Range<usize>, out: &mut [f32], stride: usize| {
            let mut xs = [[].as_slice(); ROWS];
            xs.iter_mut().zip(task.rows.clone()).for_each(|(xs, i)| *xs = x.row(x_row(task.group, i)));
            let (xs, slot) = (&xs[..task.rows.len()], groups[task.group].slot);
            match pool.slots().sizes().element {
                ElementType::F32 => rank_products(self.level, xs, pool.a::<f32>(slot), blocks, out, stride),
                ElementType::F16 => rank_products(self.level, xs, pool.a::<f16>(slot), blocks, out, stride),
                ElementType::Bf16 => rank_products(self.level, xs, pool.a::<bf16>(slot), blocks, out, stride),
            }
        };
        let rank = |task: &Task| pool.slots().slots()[groups[task.group].slot].rank as usize;
        let blocks = x.inner.div_ceil(BLOCK);
        // A few tasks are cut along the inner dimension, one block's sums each in a place of its own.
        let cuts = (2 * self.threads()).div_ceil(tasks.len()).min(blocks);
        if cuts <= 1 || self.threads() == 1 {
            return self.each(tasks.len(), |i| {
                let (task, stride) = (&tasks[i], padded(self.level, rank(&tasks[i])));
                with_scratch(|[out, _]| {
                    let out = out.at_least(task.rows.len() * stride);
                    run(task, 0..blocks, out, stride);
                    for (i, out) in task.rows.clone().zip(out.chunks(stride)) {
                        put(task.group, i, &out[..rank(task)]);
                    }
                });
            });
        }
        let width = padded(self.level, tasks.iter().map(rank).max().unwrap_or(0));
        let most = tasks.iter().map(|task| task.rows.len()).max().unwrap_or(0);
        let one = most * width;
        let mut sums = Lines::zeroed(tasks.len() * blocks * one);
        let place = SharedMut::new(&mut sums);
        self.each(tasks.len() * cuts, |i| {
            let (task, cut) = (i / cuts, i % cuts);
            for block in blocks * cut / cuts..blocks * (cut + 1) / cuts {
                // SAFETY: every (task, block) is one task's.
                let out = unsafe { place.part((task * blocks + block) * one, one) };
                run(&tasks[task], block..block + 1, out, width);
            }
        });
        for (task, sums) in tasks.iter().zip(sums.chunks_mut(blocks * one)) {
            let (first, rest) = sums.split_at_mut(one);
            for block in rest.chunks(one) {
                first.iter_mut().zip(block).for_each(|(sum, v)| *sum += v);
            }
            for (i, out) in task.rows.clone().zip(first.chunks(width)) {
                put(task.group, i, &out[..rank(task)]);
            }
        }
    }
}
