//! Fused: `y = x weight^T (+ bias) + sum_n w_n scaling_{p(n)} B_{p(n)} A_{p(n)} x`, base and experts in one f32 accumulator,
//! y rounded once and never read back.
//!
//! Several exact ways to compute it ([`Form`]); [`cost`] chooses one and says why:
//!
//! - sparse: `h_n = A_{p(n)} x_t` by [`shrink`](super::shrink), then [`Cpu::fused_sparse`](crate::Cpu::fused_sparse): the base product whose inner loop
//!   runs on, per tile of tokens, over the experts that the tile uses;
//! - dense: `Z = (x A_all^T) * gate` ([`Cpu::fused_gate`](crate::Cpu::fused_gate), the router's columns in the same product), then
//!   `y = [x | Z] [weight | B_all]^T` ([`Cpu::fused_dense`](crate::Cpu::fused_dense)): no plan, no gather;
//! - few: a handful of tokens straight from their ids, without a plan ([`Cpu::fused_few`](crate::Cpu::fused_few)).
//!
//! Packed outputs: where the pool has slices (q, k and v; gate and up), the experts' part of a slice adds to the slice's
//! columns; h holds the ranks of all slices behind each other.

pub mod cost;
mod cpu;
#[cfg(feature = "cuda")]
pub mod cuda;
#[cfg(feature = "cuda")]
pub mod few_cuda;
#[cfg(feature = "cuda")]
pub mod gate_cuda;
#[cfg(feature = "wgpu")]
pub mod wgpu;

use super::{Expert, Output, check_equal, check_experts, check_len, check_rows, plan::Plan};
use crate::adapter::slots::Slots;
use crate::element::{Element, ElementType};
use crate::error::{Error, Result};

const OP: &str = "fused";

/// The ways to compute a fused layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Form {
    /// Separate products: base, shrink, expand, which reads y back and rounds it again.
    Beside,
    /// Shrink of the routes, then the base product extended by the experts that each tile uses.
    Sparse,
    /// All adapters' A as one product, then the base product extended by all gated ranks.
    Dense,
    /// A handful of tokens straight from their ids.
    Few,
}

impl Form {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Beside, Self::Sparse, Self::Dense, Self::Few];

    /// The name in case strings and reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Beside => "beside",
            Self::Sparse => "sparse",
            Self::Dense => "dense",
            Self::Few => "few",
        }
    }
}

/// Sizes of a fused layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Sizes {
    /// Rows of x and y.
    pub tokens: usize,
    /// Routes per token.
    pub top_k: usize,
    /// Columns of x, of the weight and of every `lora_a`.
    pub in_features: usize,
    /// Columns of y, rows of the weight.
    pub out_features: usize,
    /// Elements from one row of x to the next.
    pub x_stride: usize,
    /// Elements from one row of y to the next.
    pub y_stride: usize,
    /// Elements from one row of h to the next (sparse, few) or of z (dense).
    pub h_stride: usize,
    /// `Sum`, or `RankSum` (sparse only), whose h has one row per token.
    pub output: Output,
}

impl Sizes {
    /// Routes, live or not.
    pub const fn routes(&self) -> usize {
        self.tokens.saturating_mul(self.top_k)
    }

    /// Which row of h route n reads.
    pub const fn h_row(&self, n: usize) -> usize {
        match self.output {
            Output::RankSum => n / self.top_k,
            Output::Sum | Output::PerRoute => n,
        }
    }

    /// Refuses what every form refuses; lengths in elements.
    pub fn check(&self, slots: &Slots, weight: usize, bias: Option<usize>, x: usize, y: usize) -> Result<()> {
        check_equal(OP, "in_features", slots.sizes().in_features, self.in_features)?;
        check_equal(OP, "out_features", slots.sizes().out_features, self.out_features)?;
        if self.output == Output::RankSum && slots.is_packed() {
            // A token's ranks would have to be equal in every slice, which no plan checks.
            let expected = "sum for a packed pool";
            return Err(Error::argument(OP, "output", expected, self.output.name()));
        }
        self.check_lens(weight, bias, x, y)
    }

    /// What of this is no matter of the pool.
    fn check_lens(&self, weight: usize, bias: Option<usize>, x: usize, y: usize) -> Result<()> {
        super::check_routes(OP, self.tokens, self.top_k)?;
        if self.output == Output::PerRoute {
            let expected = "sum or rank_sum (per_route has no row to add to)";
            return Err(Error::argument(OP, "output", expected, self.output.name()));
        }
        let expected = self.out_features.checked_mul(self.in_features).ok_or_else(|| {
            let got = format!("{} * {}", self.out_features, self.in_features);
            Error::argument(OP, "out_features * in_features", "a size that fits memory", got)
        })?;
        check_len(OP, "weight", expected, weight)?;
        if let Some(bias) = bias {
            check_len(OP, "bias", self.out_features, bias)?;
        }
        check_rows(OP, "x", (self.tokens, self.in_features, self.x_stride), x)?;
        check_rows(OP, "y", (self.tokens, self.out_features, self.y_stride), y)
    }

    /// Refuses an h (sparse, few) that does not hold the routes' ranks, and a plan of other sizes.
    pub fn check_h(
        &self,
        plan: Option<&super::plan::Sizes>,
        max_rank: usize,
        h: usize,
        topk_weights: usize,
    ) -> Result<()> {
        if let Some(plan) = plan {
            check_equal(OP, "plan.tokens", self.tokens, plan.tokens)?;
            check_equal(OP, "plan.top_k", self.top_k, plan.top_k)?;
        }
        check_rows(OP, "h", (self.output.h_rows(self.tokens, self.top_k), max_rank, self.h_stride), h)?;
        check_len(OP, "topk_weights", self.routes(), topk_weights)
    }

    /// Refuses a z (dense) that does not hold `used_rows` columns, ids or weights of other sizes, and pools or outputs that
    /// the dense form does not take.
    pub fn check_z(&self, slots: &Slots, z: usize, topk_ids: usize, topk_weights: usize) -> Result<()> {
        slots.check_not_packed(OP)?;
        if self.output != Output::Sum {
            return Err(Error::argument(OP, "output", "sum for the dense form", self.output.name()));
        }
        check_rows(OP, "z", (self.tokens, slots.used_rows(), self.h_stride), z)?;
        check_len(OP, "topk_ids", self.routes(), topk_ids)?;
        check_len(OP, "topk_weights", self.routes(), topk_weights)
    }
}

/// Refuses what [`Cpu::fused_concat`](crate::Cpu::fused_concat) refuses on every device; lengths in elements.
fn check_concat(
    slots: &Slots,
    x: ElementType,
    weight: usize,
    row_stride: usize,
    concat: usize,
) -> Result<()> {
    slots.check_not_packed(OP)?;
    if slots.sizes().element != x {
        let expected = format!("{x}, the weight's");
        return Err(Error::argument(OP, "pool's element", expected, slots.sizes().element));
    }
    let (inputs, outputs) = (slots.sizes().in_features, slots.sizes().out_features);
    check_len(OP, "weight", inputs.saturating_mul(outputs), weight)?;
    let width = inputs.saturating_add(slots.used_rows());
    if row_stride < width {
        return Err(Error::argument(OP, "row_stride", format!("at least {width}"), row_stride));
    }
    check_rows(OP, "concat", (outputs, width, row_stride), concat)
}

/// The definition, for a pool of one slice: three loops, every sum in f64, rounded to the element once.
#[expect(
    clippy::too_many_arguments,
    reason = "sizes, plan, experts, inputs, output: the order of every room"
)]
pub fn definition<X: Element, A: Element>(
    sizes: &Sizes,
    plan: &Plan,
    experts: &[Expert<A>],
    weight: &[X],
    bias: Option<&[X]>,
    x: &[X],
    topk_weights: &[f32],
    y: &mut [X],
) -> Result<()> {
    check_experts(OP, plan, experts, sizes.in_features, |e| e.lora_a.len())?;
    check_experts(OP, plan, experts, sizes.out_features, |e| e.lora_b.len())?;
    sizes.check_lens(weight.len(), bias.map(<[X]>::len), x.len(), y.len())?;
    check_equal(OP, "plan.tokens", sizes.tokens, plan.sizes().tokens)?;
    check_equal(OP, "plan.top_k", sizes.top_k, plan.sizes().top_k)?;
    check_len(OP, "topk_weights", sizes.routes(), topk_weights.len())?;
    plan.check_weights(OP, topk_weights)?;
    for t in 0..sizes.tokens {
        let x = &x[t * sizes.x_stride..][..sizes.in_features];
        let dot = |row: &[f64]| -> f64 { x.iter().zip(row).map(|(x, w)| f64::from(x.to_f32()) * w).sum() };
        let live: Vec<usize> =
            (t * sizes.top_k..(t + 1) * sizes.top_k).filter(|&n| plan.topk_ids()[n] >= 0).collect();
        let expert = |n: usize| &experts[plan.topk_ids()[n] as usize];
        let mut h: Vec<Vec<f64>> = Vec::new();
        for &n in &live {
            let wide = |row: &[A]| row.iter().map(|a| f64::from(a.to_f32())).collect::<Vec<f64>>();
            h.push(expert(n).lora_a.chunks(sizes.in_features).map(|row| dot(&wide(row))).collect());
        }
        if sizes.output == Output::RankSum {
            super::shrink::check_equal_ranks(plan, |id| experts[id].rank)?;
            let rank = live.first().map_or(0, |&n| expert(n).rank);
            let weighted =
                |r: usize| live.iter().zip(&h).map(|(&n, h)| f64::from(topk_weights[n]) * h[r]).sum();
            let sum: Vec<f64> = (0..rank).map(weighted).collect();
            h.fill(sum);
        }
        for o in 0..sizes.out_features {
            let row = &weight[o * sizes.in_features..][..sizes.in_features];
            let mut sum = dot(&row.iter().map(|w| f64::from(w.to_f32())).collect::<Vec<f64>>());
            sum += bias.map_or(0.0, |b| f64::from(b[o].to_f32()));
            for (&n, h) in live.iter().zip(&h) {
                let factor = f64::from(topk_weights[n]) * f64::from(expert(n).scaling);
                let b = &expert(n).lora_b[o * expert(n).rank..][..expert(n).rank];
                sum += b.iter().zip(h).map(|(b, h)| factor * f64::from(b.to_f32()) * h).sum::<f64>();
            }
            y[t * sizes.y_stride + o] = X::from_f32(sum as f32);
        }
    }
    Ok(())
}

/// The first product of the dense form makes plain choices of linear scores; others come from `route`, before it.
pub(crate) fn check_gate_router(
    rule: &super::route::Rule,
    router: &crate::adapter::LinearRouter,
) -> Result<()> {
    if rule.is_plain() && router.is_linear() {
        return Ok(());
    }
    let expected = "a softmax over the best of linear scores (others: route first, and give ids)";
    Err(Error::argument(OP, "router", expected, rule.weighting.name()))
}
