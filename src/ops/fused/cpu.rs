//! Fused on the CPU.

use super::{OP, Sizes, check_concat, check_gate_router, cost};
use crate::device::cpu::{B_COLUMNS, Cpu, Extension, Group, Out, Pool, SharedMut, Tiles, Weight, Wide};
use crate::element::{Element, ElementType};
use crate::error::{Error, Result};
use crate::ops::plan::{self, Plan};
use crate::ops::route::{self, CpuRouter, Rule, Weighting};
use crate::ops::{Output, check_rows, row, shrink};
use half::{bf16, f16};

impl Cpu {
    /// What the cost model knows of this CPU: rates of one core with AVX-512 (measured: 75e9 multiply-adds and 11e9 bytes a
    /// second, of two cores together 150e9 and 20e9 to 28e9), times its threads. Sparse is the fastest form at every size
    /// measured: the dense form multiplies all rows of the pool, and [`Cpu::fused_few`] has nothing to save.
    pub fn fused_limits(&self, problem: &cost::Problem) -> cost::Limits {
        let _ = problem;
        let threads = self.threads() as f64;
        cost::Limits {
            bandwidth: 1e10 * threads,
            rate: 7e10 * threads,
            launch_s: 1e-5,
            tile_tokens: 1,
            rank_step: 1,
            few_tokens: 16,
            // The plan counts as one: nothing is saved.
            few_launches: 3,
            plan_launches: 0,
            dense_rows: 1024,
            dense_refused: None,
            // A token's bits depend on neither its batch nor the form that its size would choose.
            dense_on_demand: Some("its sums have an order of their own"),
            dense_experts: 0,
            sparse: true,
            batch_invariant: false,
        }
    }

    /// Base and the experts of `plan` in one pass; `h` is [`Cpu::shrink`]'s. See the [module](super).
    ///
    /// A token's sums are the base's, then its adapters', ascending, then the bias: its bits do not depend on its batch.
    #[expect(
        clippy::too_many_arguments,
        reason = "sizes, plan, pool, inputs, output: the order on every device"
    )]
    pub fn fused_sparse<X: Element>(
        &self,
        sizes: &Sizes,
        plan: &Plan,
        pool: &Pool,
        weight: &Weight<X>,
        bias: Option<&[X]>,
        x: &[X],
        h: &[f32],
        topk_weights: &[f32],
        y: &mut [X],
    ) -> Result<()> {
        let slots = pool.slots();
        self.check_fused(sizes, pool, weight, bias, x, y)?;
        sizes.check_h(Some(plan.sizes()), slots.max_rank(), h.len(), topk_weights.len())?;
        plan.check_weights(OP, topk_weights)?;
        plan.check_pool(OP, pool)?;
        let routes = |t: usize| {
            let live = (t * sizes.top_k..(t + 1) * sizes.top_k).filter(|&n| plan.topk_ids()[n] >= 0);
            live.map(|n| {
                let id = plan.topk_ids()[n] as usize;
                let h = &h[sizes.h_row(n) * sizes.h_stride..][..slots.slots()[id].rank as usize];
                (id, topk_weights[n], h)
            })
        };
        let extension = Extension::new(slots, sizes.tokens, routes);
        let x = self.fused_tiles(sizes, x);
        let out = Out { stride: sizes.y_stride, bias, y: SharedMut::new(y) };
        self.products(weight, &x, &out, Some(pool), |_, sums| extension.add(self, pool, sums, 0));
        Ok(())
    }

    /// The dense form's first product: `z[t, r] = gate * <x_t, A_r>` for every row r of the pool up to
    /// [`used_rows`](crate::adapter::slots::Slots::used_rows), gate = weight * scaling where r belongs to a chosen expert,
    /// and 0, whatever x holds, elsewhere. With a router ids and weights are written first, [`Cpu::route`]'s; without one
    /// they are read. z may be columns of x's own rows behind `in_features`, where an engine keeps `[x | z]` for a product of
    /// its own (see [`Cpu::fused_concat`]): it then passes a copy of x, or computes z into a place of its own and copies.
    #[expect(clippy::too_many_arguments, reason = "sizes, pool, inputs, outputs: the order on every device")]
    pub fn fused_gate<X: Element, Z: Element>(
        &self,
        sizes: &Sizes,
        pool: &Pool,
        router: Option<(&CpuRouter, Weighting)>,
        x: &[X],
        topk_ids: &mut [i32],
        topk_weights: &mut [f32],
        z: &mut [Z],
    ) -> Result<()> {
        let slots = pool.slots();
        slots.check_not_view(OP)?;
        let Sizes { tokens, top_k, in_features, x_stride, .. } = *sizes;
        crate::ops::check_equal(OP, "in_features", slots.sizes().in_features, in_features)?;
        crate::ops::check_routes(OP, tokens, top_k)?;
        check_rows(OP, "x", (tokens, in_features, x_stride), x.len())?;
        sizes.check_z(slots, z.len(), topk_ids.len(), topk_weights.len())?;
        if let Some((router, weighting)) = router {
            let (experts, rule) = (router.linear().experts(), Rule::top_k(top_k, weighting));
            check_gate_router(&rule, router.linear())?;
            let routing = route::Sizes { tokens, in_features, x_stride, experts, rule };
            self.route(&routing, router, x, None, topk_ids, topk_weights)?;
        }
        plan::Sizes { tokens, top_k, experts: slots.sizes().experts }.check_ids(topk_ids)?;
        plan::check_live(OP, slots, top_k, topk_ids)?;
        plan::check_weights(OP, top_k, topk_ids, topk_weights)?;
        self.gated(sizes, pool, x, (topk_ids, topk_weights), z);
        Ok(())
    }

    fn gated<X: Element, Z: Element>(
        &self,
        sizes: &Sizes,
        pool: &Pool,
        x: &[X],
        (topk_ids, topk_weights): (&[i32], &[f32]),
        z: &mut [Z],
    ) {
        let (slots, tokens) = (pool.slots(), sizes.tokens);
        let rows = slots.used_rows();
        if rows == 0 {
            return;
        }
        (0..tokens).for_each(|t| z[t * sizes.h_stride..][..rows].fill(Z::zeroed()));
        let gate = |t: usize, slot: usize| {
            let routes = t * sizes.top_k..(t + 1) * sizes.top_k;
            let mut chosen = routes.filter(|&n| topk_ids[n] == slot as i32).peekable();
            chosen.peek()?;
            Some(chosen.map(|n| topk_weights[n] * slots.slots()[slot].scaling).sum::<f32>())
        };
        let live = slots.slots().iter().enumerate().filter(|(_, slot)| slot.rank > 0);
        let groups: Vec<Group> = live.map(|(slot, _)| Group { slot, rows: tokens }).collect();
        let x = Wide::new(self, x, (tokens, sizes.in_features, sizes.x_stride));
        let place = SharedMut::new(z);
        self.rank_products(
            pool,
            &x,
            &groups,
            |_, t| t,
            |group, t, products| {
                let slot = groups[group].slot;
                if let Some(gate) = gate(t, slot) {
                    let first = t * sizes.h_stride + slots.slots()[slot].row as usize;
                    // SAFETY: every (token, slot) has ranks of its own, and is put once.
                    let z = unsafe { place.part(first, products.len()) };
                    z.iter_mut().zip(products).for_each(|(z, &v)| *z = Z::from_f32(gate * v));
                }
            },
        );
    }

    /// The dense form's second product, `y = [x | z] [weight | B_all]^T (+ bias)`: the base's sums, then all rows of z.
    #[expect(clippy::too_many_arguments, reason = "sizes, pool, inputs, output: the order on every device")]
    pub fn fused_dense<X: Element, Z: Element>(
        &self,
        sizes: &Sizes,
        pool: &Pool,
        weight: &Weight<X>,
        bias: Option<&[X]>,
        x: &[X],
        z: &[Z],
        y: &mut [X],
    ) -> Result<()> {
        let slots = pool.slots();
        slots.check_not_view(OP)?;
        self.check_fused(sizes, pool, weight, bias, x, y)?;
        sizes.check_z(slots, z.len(), sizes.routes(), sizes.routes())?;
        let rows = slots.used_rows();
        let x = self.fused_tiles(sizes, x);
        let z = Tiles::new(self, [sizes.tokens], rows, |t| row(z, t, rows, sizes.h_stride));
        let out = Out { stride: sizes.y_stride, bias, y: SharedMut::new(y) };
        self.products(weight, &x, &out, Some(pool), |part, sums| match slots.sizes().element {
            ElementType::F32 => self.extend::<f32>(&z, pool, part, sums),
            ElementType::F16 => self.extend::<f16>(&z, pool, part, sums),
            ElementType::Bf16 => self.extend::<bf16>(&z, pool, part, sums),
        });
        Ok(())
    }

    /// Base and experts of a handful of tokens straight from their ids; `h` is scratch.
    ///
    /// On the CPU a plan of a handful of routes costs next to nothing: this is plan, shrink and [`Cpu::fused_sparse`] in one
    /// call, with their bits, there for engines that treat all devices alike.
    #[expect(clippy::too_many_arguments, reason = "sizes, pool, inputs, output: the order on every device")]
    pub fn fused_few<X: Element>(
        &self,
        sizes: &Sizes,
        pool: &Pool,
        weight: &Weight<X>,
        bias: Option<&[X]>,
        x: &[X],
        topk_ids: &[i32],
        topk_weights: &[f32],
        h: &mut [f32],
        y: &mut [X],
    ) -> Result<()> {
        let Sizes { tokens, top_k, in_features, x_stride, h_stride, output, .. } = *sizes;
        self.check_fused(sizes, pool, weight, bias, x, y)?;
        if output != Output::Sum {
            return Err(Error::argument(OP, "output", "sum for the few form", output.name()));
        }
        sizes.check_h(None, pool.slots().max_rank(), h.len(), topk_weights.len())?;
        let experts = pool.slots().sizes().experts;
        let plan = self.plan(&plan::Sizes { tokens, top_k, experts }, pool, topk_ids)?;
        plan.check_weights(OP, topk_weights)?;
        let shrink = shrink::Sizes { tokens, top_k, in_features, x_stride, h_stride, output };
        self.shrink(&shrink, &plan, pool, x, topk_weights, h)?;
        self.fused_sparse(sizes, &plan, pool, weight, bias, x, h, topk_weights, y)
    }

    /// `[weight | B_all]` as rows `[out_features, in_features + used_rows]`, `row_stride` elements apart: with rows `[x | z]` of
    /// the engine's own ([`Cpu::fused_gate`]'s z behind x), `[x | z] [weight | B_all]^T` is the fused layer in one plain product.
    ///
    /// The better choice only where the engine's GEMM beats [`Cpu::base`] (other instructions than AVX-512, AVX2 or NEON can
    /// give, such as a matrix unit) and its adapters seldom change: the rows must be made anew whenever one comes or goes.
    ///
    /// # Errors
    /// Sizes that do not fit, a packed pool, adapters of another element type than the weight's.
    pub fn fused_concat<X: Element>(
        &self,
        pool: &Pool,
        weight: &[X],
        row_stride: usize,
        concat: &mut [X],
    ) -> Result<()> {
        let slots = pool.slots();
        check_concat(slots, X::TYPE, weight.len(), row_stride, concat.len())?;
        slots.check_not_view(OP)?;
        let inputs = slots.sizes().in_features;
        for (o, (row, from)) in concat.chunks_mut(row_stride).zip(weight.chunks(inputs)).enumerate() {
            row[..inputs].copy_from_slice(from);
            column(pool, o, &mut row[inputs..][..slots.used_rows()]);
        }
        Ok(())
    }

    fn check_fused<X: Element>(
        &self,
        sizes: &Sizes,
        pool: &Pool,
        weight: &Weight<X>,
        bias: Option<&[X]>,
        x: &[X],
        y: &[X],
    ) -> Result<()> {
        weight.check(OP, self, sizes.out_features, sizes.in_features)?;
        sizes.check(pool.slots(), weight.len(), bias.map(<[X]>::len), x.len(), y.len())
    }

    fn fused_tiles<X: Element>(&self, sizes: &Sizes, x: &[X]) -> Tiles {
        let row = |t: usize| &x[t * sizes.x_stride..][..sizes.in_features];
        Tiles::new(self, [sizes.tokens], sizes.in_features, row)
    }
}

/// Column o of B transposed, of a pool of X's elements.
fn column<X: Element>(pool: &Pool, o: usize, to: &mut [X]) {
    for (_, panel) in pool.whole_b_panels::<X>(o..o + 1) {
        let values = panel[o % B_COLUMNS..].iter().step_by(B_COLUMNS);
        to.iter_mut().zip(values).for_each(|(to, b)| *to = *b);
    }
}

#[cfg(test)]
mod tests;
