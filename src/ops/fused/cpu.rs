//! Fused on the CPU.

use super::{OP, Sizes, cost};
use crate::adapter::LinearRouter;
use crate::device::cpu::{Cpu, Pool, Weight};
use crate::element::Element;
use crate::error::{Error, Result};
use crate::ops::{plan::Plan, route::Weighting};

impl Cpu {
    /// What the cost model knows of this CPU.
    pub fn fused_limits(&self, problem: &cost::Problem) -> cost::Limits {
        let _ = problem;
        cost::Limits {
            bandwidth: 2e10,
            rate: 1.5e11,
            launch_s: 1e-5,
            tile_tokens: 1,
            rank_step: 1,
            few_tokens: 0,
            few_launches: 2,
            plan_launches: 0,
            dense_rows: 0,
            dense_experts: 0,
            sparse: false,
            batch_invariant: false,
        }
    }

    /// Base and the experts of `plan` in one pass; `h` is [`Cpu::shrink`]'s. See the [module](super).
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
        let _ = (sizes, plan, pool, weight, bias, x, h, topk_weights, y);
        Err(missing())
    }

    /// The dense form's first product: `z[t, r] = gate * <x_t, A_r>` for every row r of the pool up to
    /// [`used_rows`](crate::adapter::slots::Slots::used_rows), gate = weight * scaling where r belongs to a chosen expert,
    /// and 0, whatever x holds, elsewhere. With a router its scores ride in the same product and ids and weights are
    /// written; without one they are read. z may be columns of x's own rows behind `in_features`.
    #[expect(clippy::too_many_arguments, reason = "sizes, pool, inputs, outputs: the order on every device")]
    pub fn fused_gate<X: Element, Z: Element>(
        &self,
        sizes: &Sizes,
        pool: &Pool,
        router: Option<(&LinearRouter, Weighting)>,
        x: &[X],
        topk_ids: &mut [i32],
        topk_weights: &mut [f32],
        z: &mut [Z],
    ) -> Result<()> {
        let _ = (sizes, pool, router, x, topk_ids, topk_weights, z);
        Err(missing())
    }

    /// The dense form's second product, `y = [x | z] [weight | B_all]^T (+ bias)`.
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
        let _ = (sizes, pool, weight, bias, x, z, y);
        Err(missing())
    }

    /// Base and experts of a handful of tokens straight from their ids; `h` is scratch.
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
        let _ = (sizes, pool, weight, bias, x, topk_ids, topk_weights, h, y);
        Err(missing())
    }
}

fn missing() -> Error {
    Error::argument(OP, "form", "a form that the device has", "one that it has not")
}
