//! The dense form.

use crate::device::wgpu::{self as device, View, Wgpu};
use crate::element::Element;
use crate::error::{Error, Result};
use crate::ops::fused::{OP, Sizes};
use crate::ops::route::{Weighting, WgpuRouter};

impl Wgpu {
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
}

fn missing() -> Error {
    Error::argument(OP, "form", "a form that the device has", "one that it has not")
}
