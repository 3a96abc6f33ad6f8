//! A SwiGLU mixture of experts whose experts are the base (Mixtral, Qwen3-MoE), with a LoRA per (adapter, expert):
//!
//! ```text
//! y_t = sum over its routes n of w_n down_e (silu(gate_e x_t) * (up_e x_t))          e = topk_ids[n]
//! ```
//!
//! every product with the LoRA of slot `lora_ids[n]`, an engine's `adapter * experts + e`. In the order in which data flows:
//!
//! ```text
//! topk_ids -> plan (experts)        lora_ids -> plan (LoRAs of gate and up), plan (LoRAs of down)
//! x -> shrink -> h -> grouped, gated -> act -> shrink -> h -> grouped, combined -> y
//! ```
//!
//! After the plans these are 4 launches on GPUs: on WebGPU the second shrink rides with down's rows and combining is a dispatch
//! of its own, on CUDA the last to bring a token's row combines.

#[cfg(feature = "cuda")]
pub mod cuda;
#[cfg(feature = "wgpu")]
pub mod wgpu;

use super::{OP, Place};
use crate::adapter::slots::Slots;
use crate::device::cpu::{self, Cpu, Weight};
use crate::element::Element;
use crate::error::{Error, Result};
use crate::ops::{Output, check_equal, check_rows, grouped, plan, shrink};

/// The block on device D: the LoRAs of its experts. The engine lends the experts' weights with each call.
#[derive(Debug)]
pub struct MoeBlock<D: Place> {
    pub(super) device: D,
    pub(super) experts: usize,
    /// Two slices, gate and up.
    pub(super) gate_up: D::Pool,
    pub(super) down: D::Pool,
    /// What the plan of the base experts is made for.
    pub(super) markers: D::Pool,
}

/// The experts' weights.
#[derive(Debug, Clone, Copy)]
pub struct BlockWeights<W> {
    /// `[experts, 2 width, hidden]`: an expert's gate rows, then its up rows.
    pub gate_up: W,
    /// `[experts, hidden, width]`.
    pub down: W,
}

/// The rows of one call of a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct BlockRows {
    /// Rows of x and y.
    pub tokens: usize,
    /// Experts per token.
    pub top_k: usize,
    /// Elements from one row of x to the next.
    pub x_stride: usize,
    /// Elements from one row of y to the next.
    pub y_stride: usize,
}

/// Which experts and which LoRAs each token takes.
#[derive(Debug, Clone, Copy)]
pub struct BlockRouting<I, W> {
    /// `[tokens, top_k]`: base experts; -1 for none.
    pub topk_ids: I,
    /// `[tokens, top_k]`: slots of the LoRA pools; -1 for none. Where `topk_ids` is -1 they count for nothing.
    pub lora_ids: I,
    /// `[tokens, top_k]`.
    pub topk_weights: W,
}

/// The operations' sizes for one call.
pub(super) struct Shapes {
    pub(super) experts: plan::Sizes,
    pub(super) gate_up_loras: plan::Sizes,
    pub(super) down_loras: plan::Sizes,
    pub(super) gate_up_shrink: shrink::Sizes,
    pub(super) down_shrink: shrink::Sizes,
    pub(super) gate_up: grouped::Sizes,
    pub(super) down: grouped::Sizes,
}

impl<D: Place> MoeBlock<D> {
    /// The device.
    pub fn device(&self) -> &D {
        &self.device
    }

    /// The LoRAs of gate and up, in a pool of two slices, and those of down, to add and evict.
    pub fn pools_mut(&mut self) -> (&mut D::Pool, &mut D::Pool) {
        (&mut self.gate_up, &mut self.down)
    }

    /// The sizes of one call; rows of h take the strides given, of gate and up and of down.
    pub(super) fn shapes(
        &self,
        pools: (&Slots, &Slots),
        h_strides: (usize, usize),
        rows: &BlockRows,
    ) -> Shapes {
        let BlockRows { tokens, top_k, x_stride, y_stride } = *rows;
        let (gate_up, down) = (pools.0.sizes(), pools.1.sizes());
        let (hidden, width, routes) = (gate_up.in_features, down.in_features, tokens.saturating_mul(top_k));
        let (output, experts) = (Output::Sum, self.experts);
        Shapes {
            experts: plan::Sizes { tokens, top_k, experts },
            gate_up_loras: plan::Sizes { tokens, top_k, experts: gate_up.experts },
            down_loras: plan::Sizes { tokens: routes, top_k: 1, experts: down.experts },
            gate_up_shrink: shrink::Sizes {
                tokens,
                top_k,
                in_features: hidden,
                x_stride,
                h_stride: h_strides.0,
                output,
            },
            down_shrink: shrink::Sizes {
                tokens: routes,
                top_k: 1,
                in_features: width,
                x_stride: act_stride(width),
                h_stride: h_strides.1,
                output,
            },
            gate_up: grouped::Sizes {
                tokens,
                top_k,
                experts,
                in_features: hidden,
                out_features: 2 * width,
                x_stride,
                h_stride: h_strides.0,
                y_stride: act_stride(width),
                x_per_route: false,
                rows: grouped::Rows::Gated,
            },
            down: grouped::Sizes {
                tokens,
                top_k,
                experts,
                in_features: width,
                out_features: hidden,
                x_stride: act_stride(width),
                h_stride: h_strides.1,
                y_stride,
                x_per_route: true,
                rows: grouped::Rows::Combined,
            },
        }
    }
}

/// Elements from one row of the gated product to the next: rows start at whole 16-byte parts.
pub(super) fn act_stride(width: usize) -> usize {
    width.next_multiple_of(8)
}

/// The two pools are those of one block.
pub(super) fn check_pools(gate_up: &Slots, down: &Slots) -> Result<()> {
    let (up, sizes) = (gate_up.sizes(), down.sizes());
    check_equal(OP, "down.out_features", up.in_features, sizes.out_features)?;
    check_equal(OP, "down.experts", up.experts, sizes.experts)?;
    if gate_up.slices() != [sizes.in_features; 2] {
        let expected = format!("two slices of down's {} columns", sizes.in_features);
        return Err(Error::argument(OP, "gate_up", expected, format!("{:?}", gate_up.slices())));
    }
    down.check_not_packed(OP)
}

impl MoeBlock<Cpu> {
    /// A block of `experts` experts. `gate_up` is packed, two slices of `width` columns; `down` has as many slots.
    pub fn new(cpu: &Cpu, experts: usize, gate_up: cpu::Pool, down: cpu::Pool) -> Result<Self> {
        check_pools(gate_up.slots(), down.slots())?;
        Ok(Self { device: cpu.clone(), experts, gate_up, down, markers: cpu::Pool::markers(experts)? })
    }

    /// See the [module](self). `weights` are packed with all experts' rows below each other.
    pub fn forward<X: Element>(
        &self,
        rows: &BlockRows,
        weights: BlockWeights<&Weight<X>>,
        x: &[X],
        routing: &BlockRouting<&[i32], &[f32]>,
        y: &mut [X],
    ) -> Result<()> {
        let (cpu, slots) = (&self.device, (self.gate_up.slots(), self.down.slots()));
        let strides = (slots.0.max_rank(), slots.1.max_rank());
        let shapes = self.shapes(slots, strides, rows);
        let BlockRouting { topk_ids, lora_ids, topk_weights } = *routing;
        let experts = cpu.plan(&shapes.experts, &self.markers, topk_ids)?;
        let gate_up_loras = cpu.plan(&shapes.gate_up_loras, &self.gate_up, lora_ids)?;
        let down_loras = cpu.plan(&shapes.down_loras, &self.down, lora_ids)?;
        experts.check_weights(OP, topk_weights)?;
        check_rows(OP, "y", (rows.tokens, shapes.down.out_features, rows.y_stride), y.len())?;
        let routes = shapes.experts.routes();
        let (mut h, mut act) = (
            vec![0f32; routes * strides.0.max(strides.1)],
            vec![X::zeroed(); routes * shapes.gate_up.y_stride],
        );
        let (up_h, down_h) = (routes * strides.0, routes * strides.1);
        cpu.shrink(&shapes.gate_up_shrink, &gate_up_loras, &self.gate_up, x, topk_weights, &mut h[..up_h])?;
        cpu.grouped(
            &shapes.gate_up,
            &experts,
            &self.gate_up,
            &gate_up_loras,
            weights.gate_up,
            x,
            &h[..up_h],
            topk_weights,
            &mut act,
        )?;
        cpu.shrink(&shapes.down_shrink, &down_loras, &self.down, &act, topk_weights, &mut h[..down_h])?;
        cpu.grouped(
            &shapes.down,
            &experts,
            &self.down,
            &down_loras,
            weights.down,
            &act,
            &h[..down_h],
            topk_weights,
            y,
        )
    }
}
