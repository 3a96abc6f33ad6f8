//! Fused on CUDA: z has the element type of x.

use super::{OP, Sizes, cost};
use crate::device::cuda::{self as device, Cuda, View, ViewMut};
use crate::element::Element;
use crate::error::{Error, Result};

impl Cuda {
    /// What the cost model knows of this device.
    pub fn fused_limits(&self, problem: &cost::Problem) -> cost::Limits {
        cost::Limits {
            bandwidth: 2e12,
            rate: 2e14,
            launch_s: 3e-6,
            tile_tokens: 128,
            rank_step: 16,
            few_tokens: super::few_cuda::most_tokens(problem.top_k),
            few_launches: 1,
            plan_launches: 1,
            dense_rows: 0,
            dense_experts: 0,
            sparse: false,
            batch_invariant: self.offer().batch_invariant,
        }
    }

    /// Base and the experts of `plan` in one pass; `h` is [`Cuda::shrink`]'s.
    #[expect(
        clippy::too_many_arguments,
        reason = "sizes, plan, pool, inputs, output: the order on every device"
    )]
    pub fn fused_sparse<X: Element>(
        &self,
        sizes: &Sizes,
        plan: &device::Plan,
        pool: &device::Pool,
        weight: &View<X>,
        bias: Option<&View<X>>,
        x: &View<X>,
        h: &View<f32>,
        topk_weights: &View<f32>,
        y: &mut ViewMut<X>,
    ) -> Result<()> {
        let _ = (sizes, plan, pool, weight, bias, x, h, topk_weights, y);
        Err(missing())
    }

    /// The dense form's second product, `y = [x | z] [weight | B_all]^T (+ bias)`.
    #[expect(clippy::too_many_arguments, reason = "sizes, pool, inputs, output: the order on every device")]
    pub fn fused_dense<X: Element>(
        &self,
        sizes: &Sizes,
        pool: &device::Pool,
        weight: &View<X>,
        bias: Option<&View<X>>,
        x: &View<X>,
        z: &View<X>,
        live_tokens: Option<&View<u32>>,
        y: &mut ViewMut<X>,
    ) -> Result<()> {
        let _ = (sizes, pool, weight, bias, x, z, live_tokens, y);
        Err(missing())
    }
}

fn missing() -> Error {
    Error::argument(OP, "form", "a form that the device has", "one that it has not")
}
