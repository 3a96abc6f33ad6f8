//! Grouped on the CPU: the rows of every base expert gathered as the plan sorts them, times that expert's panels.

use super::{Lens, OP, Rows, Sizes, check_pool};
use crate::device::cpu::{
    Cpu, Extension, Lines, Part, Pool, SharedMut, Sums, TASKS_A_THREAD, Terms, Tiles, Weight, with_scratch,
};
use crate::element::Element;
use crate::error::Result;
use crate::ops::check_equal;
use crate::ops::plan::Plan;
use std::ops::Range;

/// Sums of a task of a combined product, over all routes.
const COMBINED_SUMS: usize = 1 << 18;

/// What a grouped product reads.
struct Call<'a, X> {
    cpu: &'a Cpu,
    sizes: &'a Sizes,
    plan: &'a Plan,
    pool: &'a Pool,
    weight: &'a Weight<X>,
    /// Rows of x in the plan's order, every expert's in tiles of their own.
    x: Tiles,
    extension: Extension,
}

impl Cpu {
    /// See the [module](super). `plan` is the base experts', `loras` and `h` are [`Cpu::shrink`]'s of the LoRA pool; `weight` is
    /// packed as `[experts * out_features, in_features]`. A route's row is one sum in one order, whatever the batch.
    #[expect(
        clippy::too_many_arguments,
        reason = "sizes, plan, pool, inputs, output: the order on every device"
    )]
    pub fn grouped<X: Element>(
        &self,
        sizes: &Sizes,
        plan: &Plan,
        pool: &Pool,
        loras: &Plan,
        weight: &Weight<X>,
        x: &[X],
        h: &[f32],
        topk_weights: &[f32],
        y: &mut [X],
    ) -> Result<()> {
        let slots = pool.slots();
        let lens = Lens {
            weight: weight.len(),
            x: x.len(),
            h: h.len(),
            loras: loras.sizes().routes(),
            topk_weights: topk_weights.len(),
            y: y.len(),
        };
        sizes.check(slots.max_rank(), &lens)?;
        check_pool(sizes, slots)?;
        weight.check(OP, self, sizes.experts * sizes.out_features, sizes.in_features)?;
        check_equal(OP, "plan.tokens", sizes.tokens, plan.sizes().tokens)?;
        check_equal(OP, "plan.top_k", sizes.top_k, plan.sizes().top_k)?;
        check_equal(OP, "plan.experts", sizes.experts, plan.sizes().experts)?;
        loras.check_pool(OP, pool)?;
        if sizes.rows == Rows::Combined {
            plan.check_weights(OP, topk_weights)?;
        }
        let routes = plan.sorted_routes();
        let extension = Extension::new(slots, routes.len(), |row| {
            let n = routes[row] as usize;
            let id = usize::try_from(loras.topk_ids()[n]).ok();
            let h = |id: usize| &h[n * sizes.h_stride..][..slots.slots()[id].rank as usize];
            id.map(|id| (id, 1.0, h(id))).into_iter()
        });
        let counts = (0..sizes.experts).map(|e| plan.routes_of(e).len());
        let row = |row: usize| &x[sizes.x_row(routes[row] as usize) * sizes.x_stride..][..sizes.in_features];
        let x = Tiles::new(self, counts, sizes.in_features, row);
        let call = Call { cpu: self, sizes, plan, pool, weight, x, extension };
        match sizes.rows {
            Rows::Plain | Rows::Gated => call.per_route(y),
            Rows::Combined => call.combined(topk_weights, y),
        }
        Ok(())
    }
}

impl<X: Element> Call<'_, X> {
    /// One expert's tiles.
    fn tiles(&self, e: usize) -> Range<usize> {
        let offsets = self.plan.expert_offsets();
        self.x.tile_at(offsets[e] as usize)..self.x.tile_at(offsets[e + 1] as usize)
    }

    /// The sums of an expert's rows over `columns` of its own, and a few beside them where panels do not end there.
    fn sums<'a>(
        &self,
        e: usize,
        tiles: Range<usize>,
        columns: &Range<usize>,
        scratch: &'a mut Lines<f32>,
    ) -> Sums<'a> {
        let (origin, panel) = (e * self.sizes.out_features, self.cpu.panel_columns());
        let panels = (origin + columns.start) / panel..(origin + columns.end).div_ceil(panel);
        let mut sums = self.cpu.sums(self.weight, &self.x, &Part { tiles, panels }, &[], scratch);
        self.extension.add(self.cpu, self.pool, &mut sums, origin);
        sums
    }

    /// Plain and gated: every route has a row of y.
    fn per_route(&self, y: &mut [X]) {
        let (sizes, panel) = (self.sizes, self.cpu.panel_columns());
        let (width, live) = (sizes.width(), self.plan.live_experts().count());
        let wanted = (TASKS_A_THREAD * self.cpu.threads()).div_ceil(live.max(1));
        let mut tasks = Vec::new();
        for e in self.plan.live_experts() {
            for part in self.cpu.parts(&self.x, self.tiles(e), 0..width.div_ceil(panel), wanted) {
                let columns = part.panels.start * panel..width.min(part.panels.end * panel);
                tasks.push((e, part.tiles, columns));
            }
        }
        let (place, routes) = (SharedMut::new(y), self.plan.sorted_routes());
        self.cpu.each(tasks.len(), |task| {
            let (e, tiles, columns) = &tasks[task];
            let origin = e * sizes.out_features;
            let own = origin + columns.start..origin + columns.end;
            with_scratch(|[gate, up]| {
                let mut sums = self.sums(*e, tiles.clone(), columns, gate);
                let mut ups = (sizes.rows == Rows::Gated)
                    .then(|| self.sums(*e, tiles.clone(), &(width + columns.start..width + columns.end), up));
                for row in sums.rows.clone() {
                    let sums = sums.part(row, &own);
                    if let Some(ups) = &mut ups {
                        let up = ups.part(row, &(width + own.start..width + own.end));
                        sums.iter_mut()
                            .zip(up)
                            .for_each(|(gate, up)| *gate = *gate / (1.0 + (-*gate).exp()) * *up);
                    }
                    let first = routes[row] as usize * sizes.y_stride + columns.start;
                    // SAFETY: rows lie at least their width apart, and every (route, column) is one task's.
                    self.cpu.store_row(sums, None, unsafe { place.part(first, columns.len()) });
                }
            });
        });
    }

    /// Combined: a task owns columns of all tokens, so that the routes of a token are added in slot order by one thread.
    fn combined(&self, topk_weights: &[f32], y: &mut [X]) {
        let (sizes, plan, panel) = (self.sizes, self.plan, self.cpu.panel_columns());
        let routes = plan.sorted_routes();
        let mut lists = Vec::with_capacity(routes.len());
        let mut starts = vec![0; sizes.tokens + 1];
        let mut row_of = vec![u32::MAX; sizes.routes()];
        routes.iter().zip(0..).for_each(|(&n, row)| row_of[n as usize] = row);
        for t in 0..sizes.tokens {
            let own = (t * sizes.top_k..(t + 1) * sizes.top_k).filter(|&n| row_of[n] != u32::MAX);
            lists.extend(own.map(|n| (topk_weights[n], row_of[n])));
            starts[t + 1] = lists.len();
        }
        let width = sizes.out_features;
        let most = (COMBINED_SUMS / routes.len().max(1) / panel).max(1);
        let group = width.div_ceil(panel * TASKS_A_THREAD * self.cpu.threads()).clamp(1, most) * panel;
        let place = SharedMut::new(y);
        self.cpu.each(width.div_ceil(group), |task| {
            let columns = task * group..width.min((task + 1) * group);
            let count = columns.len();
            with_scratch(|[scratch, rows]| {
                let rows = rows.at_least(routes.len() * count);
                for e in plan.live_experts() {
                    let origin = e * sizes.out_features;
                    for tile in self.row_blocks(self.tiles(e)) {
                        let mut sums = self.sums(e, tile, &columns, scratch);
                        for row in sums.rows.clone() {
                            let own = sums.part(row, &(origin + columns.start..origin + columns.end));
                            rows[row * count..][..count].copy_from_slice(own);
                        }
                    }
                }
                let mut sum = vec![0f32; count];
                for t in 0..sizes.tokens {
                    let list = &lists[starts[t]..starts[t + 1]];
                    sum.fill(0.0);
                    self.cpu.add_terms(Terms { list, rows, stride: count }, &mut sum);
                    // SAFETY: rows lie at least their width apart, and every (token, column) is one task's.
                    let y = unsafe { place.part(t * sizes.y_stride + columns.start, count) };
                    self.cpu.store_row(&sum, None, y);
                }
            });
        });
    }

    /// Tiles of as many rows as a core's cache holds at once.
    fn row_blocks(&self, tiles: Range<usize>) -> impl Iterator<Item = Range<usize>> {
        let parts = self.cpu.parts(&self.x, tiles, 0..1, 1);
        parts.into_iter().map(|part| part.tiles)
    }
}

#[cfg(test)]
mod tests;
