//! Expand: `y_t (+)= sum_n w_n scaling_{p(n)} B_{p(n)} h_n` over the routes n of token t, or one row per route.
//!
//! `y [tokens, out_features]` for `Sum` and `RankSum` (whose h has one row per token), `z [routes,
//! out_features]` without the weights for `PerRoute`. Adds to y or overwrites it; a row without an expert is
//! left alone when adding and set to 0 when overwriting. y is rounded once.

use super::{Expert, Output, check_equal, check_len, check_rows, plan::Plan};
use crate::device::cpu::{Cpu, Pool};
use crate::element::{Element, ElementType};
use crate::error::Result;
use half::{bf16, f16};

const OP: &str = "expand";

/// Sizes of an expand.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Sizes {
    /// Tokens.
    pub tokens: usize,
    /// Routes per token.
    pub top_k: usize,
    /// Columns of y; rows of every `lora_b`.
    pub out_features: usize,
    /// Elements from one row of h to the next; at least the largest rank in use.
    pub h_stride: usize,
    /// Elements from one row of y to the next.
    pub y_stride: usize,
    /// What the rows of h and y are.
    pub output: Output,
    /// Add to y instead of overwriting it.
    pub accumulate: bool,
}

impl Sizes {
    /// Refuses lengths that do not fit; lengths in elements, `max_rank` over the pool's live slots.
    pub fn check(
        &self,
        plan: &super::plan::Sizes,
        max_rank: usize,
        h: usize,
        topk_weights: usize,
        y: usize,
    ) -> Result<()> {
        check_equal(OP, "plan.tokens", self.tokens, plan.tokens)?;
        check_equal(OP, "plan.top_k", self.top_k, plan.top_k)?;
        check_rows(OP, "h", (self.output.h_rows(self.tokens, self.top_k), max_rank, self.h_stride), h)?;
        check_len(OP, "topk_weights", self.tokens * self.top_k, topk_weights)?;
        let rows = self.output.y_rows(self.tokens, self.top_k);
        check_rows(OP, "y", (rows, self.out_features, self.y_stride), y)
    }

    /// Which routes end in row `row` of y.
    pub(crate) fn routes_of_row(&self, row: usize) -> std::ops::Range<usize> {
        match self.output {
            Output::PerRoute => row..row + 1,
            Output::Sum | Output::RankSum => row * self.top_k..(row + 1) * self.top_k,
        }
    }

    /// Which row of h route n reads.
    pub(crate) const fn h_row(&self, n: usize) -> usize {
        match self.output {
            Output::RankSum => n / self.top_k,
            Output::Sum | Output::PerRoute => n,
        }
    }
}

/// The definition: three loops, every sum in f64, rounded to the element once.
pub fn definition<Y: Element, A: Element>(
    sizes: &Sizes,
    plan: &Plan,
    experts: &[Expert<A>],
    h: &[f32],
    topk_weights: &[f32],
    y: &mut [Y],
) -> Result<()> {
    let max_rank = experts.iter().map(|e| e.rank).max().unwrap_or(0);
    sizes.check(plan.sizes(), max_rank, h.len(), topk_weights.len(), y.len())?;
    for row in 0..sizes.output.y_rows(sizes.tokens, sizes.top_k) {
        let routes: Vec<usize> = sizes.routes_of_row(row).filter(|&n| plan.topk_ids()[n] >= 0).collect();
        if routes.is_empty() && sizes.accumulate {
            continue;
        }
        for o in 0..sizes.out_features {
            let place = &mut y[row * sizes.y_stride + o];
            let mut sum = if sizes.accumulate { f64::from(place.to_f32()) } else { 0.0 };
            for &n in &routes {
                let expert = &experts[plan.topk_ids()[n] as usize];
                let weight = if sizes.output == Output::PerRoute { 1.0 } else { f64::from(topk_weights[n]) };
                for r in 0..expert.rank {
                    let (b, h) =
                        (expert.lora_b[o * expert.rank + r].to_f32(), h[sizes.h_row(n) * sizes.h_stride + r]);
                    sum += weight * f64::from(expert.scaling) * f64::from(b) * f64::from(h);
                }
            }
            *place = Y::from_f32(sum as f32);
        }
    }
    Ok(())
}

impl Cpu {
    /// See the [module](self). Sums run over the routes in slot order, then over the ranks: batch-invariant.
    pub fn expand<Y: Element>(
        &self,
        sizes: &Sizes,
        plan: &Plan,
        pool: &Pool,
        h: &[f32],
        topk_weights: &[f32],
        y: &mut [Y],
    ) -> Result<()> {
        let slots = pool.slots();
        check_equal(OP, "out_features", slots.sizes().out_features, sizes.out_features)?;
        sizes.check(plan.sizes(), slots.max_rank(), h.len(), topk_weights.len(), y.len())?;
        plan.check_pool(OP, pool)?;
        match slots.sizes().element {
            ElementType::F32 => self.expand_rows::<Y, f32>(sizes, plan, pool, h, topk_weights, y),
            ElementType::F16 => self.expand_rows::<Y, f16>(sizes, plan, pool, h, topk_weights, y),
            ElementType::Bf16 => self.expand_rows::<Y, bf16>(sizes, plan, pool, h, topk_weights, y),
        }
        Ok(())
    }

    fn expand_rows<Y: Element, B: Element>(
        &self,
        sizes: &Sizes,
        plan: &Plan,
        pool: &Pool,
        h: &[f32],
        topk_weights: &[f32],
        y: &mut [Y],
    ) {
        let rows = sizes.output.y_rows(sizes.tokens, sizes.top_k);
        let shape = (rows, sizes.out_features, sizes.y_stride);
        self.each_block(y, shape, |terms: &mut Vec<(f32, &[B])>, column, row, part| {
            terms.clear();
            for n in sizes.routes_of_row(row).filter(|&n| plan.topk_ids()[n] >= 0) {
                let slot = &pool.slots().slots()[plan.topk_ids()[n] as usize];
                let weight = if sizes.output == Output::PerRoute { 1.0 } else { topk_weights[n] };
                let h = &h[sizes.h_row(n) * sizes.h_stride..][..slot.rank as usize];
                terms.extend(h.iter().enumerate().map(|(r, &h)| {
                    (weight * slot.scaling * h, &pool.b_row::<B>(slot, r)[column..][..part.len()])
                }));
            }
            if !(terms.is_empty() && sizes.accumulate) {
                self.add_rows(terms, part, sizes.accumulate);
            }
        });
    }
}
