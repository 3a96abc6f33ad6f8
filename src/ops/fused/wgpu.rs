//! Fused on WebGPU.

use super::{OP, Sizes, cost};
use crate::device::wgpu::{self as device, View, Wgpu};
use crate::element::Element;
use crate::error::{Error, Result};
use crate::ops::route::{Weighting, WgpuRouter};

impl Wgpu {
    /// What the cost model knows of this device.
    pub fn fused_limits(&self, problem: &cost::Problem) -> cost::Limits {
        let _ = problem;
        cost::Limits {
            bandwidth: 5e11,
            rate: 5e12,
            launch_s: 1e-5,
            tile_tokens: 64,
            rank_step: 1,
            few_tokens: 0,
            few_launches: 2,
            plan_launches: 3,
            dense_rows: 0,
            dense_experts: 0,
            sparse: false,
            batch_invariant: self.is_batch_invariant(),
        }
    }

    /// Base and the experts of `plan` in one pass; `h` is [`Wgpu::shrink`]'s. Records into `encoder`.
    #[expect(
        clippy::too_many_arguments,
        reason = "sizes, plan, pool, inputs, output: the order on every device"
    )]
    pub fn fused_sparse<X: Element>(
        &self,
        encoder: &mut wgpu::CommandEncoder,
        sizes: &Sizes,
        plan: &device::Plan,
        pool: &device::Pool,
        weight: View<X>,
        bias: Option<View<X>>,
        x: View<X>,
        h: View<f32>,
        topk_weights: View<f32>,
        y: View<X>,
    ) -> Result<()> {
        let _ = (encoder, sizes, plan, pool, weight, bias, x, h, topk_weights, y);
        Err(missing())
    }

    /// The dense form's first product; see [`Cpu::fused_gate`](crate::Cpu::fused_gate). z may not be x's own buffer.
    #[expect(clippy::too_many_arguments, reason = "sizes, pool, inputs, outputs: the order on every device")]
    pub fn fused_gate<X: Element, Z: Element>(
        &self,
        encoder: &mut wgpu::CommandEncoder,
        sizes: &Sizes,
        pool: &device::Pool,
        router: Option<(&WgpuRouter, Weighting)>,
        x: View<X>,
        topk_ids: View<i32>,
        topk_weights: View<f32>,
        z: View<Z>,
    ) -> Result<()> {
        let _ = (encoder, sizes, pool, router, x, topk_ids, topk_weights, z);
        Err(missing())
    }

    /// The dense form's second product, `y = [x | z] [weight | B_all]^T (+ bias)`.
    #[expect(clippy::too_many_arguments, reason = "sizes, pool, inputs, output: the order on every device")]
    pub fn fused_dense<X: Element, Z: Element>(
        &self,
        encoder: &mut wgpu::CommandEncoder,
        sizes: &Sizes,
        pool: &device::Pool,
        weight: View<X>,
        bias: Option<View<X>>,
        x: View<X>,
        z: View<Z>,
        y: View<X>,
    ) -> Result<()> {
        let _ = (encoder, sizes, pool, weight, bias, x, z, y);
        Err(missing())
    }

    /// Base and experts of a handful of tokens straight from their ids; `h` is scratch.
    #[expect(clippy::too_many_arguments, reason = "sizes, pool, inputs, output: the order on every device")]
    pub fn fused_few<X: Element>(
        &self,
        encoder: &mut wgpu::CommandEncoder,
        sizes: &Sizes,
        pool: &device::Pool,
        weight: View<X>,
        bias: Option<View<X>>,
        x: View<X>,
        topk_ids: View<i32>,
        topk_weights: View<f32>,
        h: View<f32>,
        y: View<X>,
    ) -> Result<()> {
        let _ = (encoder, sizes, pool, weight, bias, x, topk_ids, topk_weights, h, y);
        Err(missing())
    }
}

fn missing() -> Error {
    Error::argument(OP, "form", "a form that the device has", "one that it has not")
}
