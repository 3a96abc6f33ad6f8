//! The block on WebGPU: the same call, recorded into the engine's encoder.

use super::{BlockRouting, BlockRows, BlockWeights, MoeBlock, OP, check_pools};
use crate::device::wgpu::{self as device, View, Wgpu};
use crate::element::Element;
use crate::error::Result;
use crate::ops::plan;

/// Device memory that calls reuse.
#[derive(Debug)]
pub struct Workspace {
    experts: device::Plan,
    gate_up_loras: device::Plan,
    down_loras: device::Plan,
    h: wgpu::Buffer,
    act: wgpu::Buffer,
    scratch: wgpu::Buffer,
}

impl MoeBlock<Wgpu> {
    /// A block of `experts` experts. `gate_up` is packed, two slices of `width` columns; `down` has as many slots. The block
    /// has a status word of its own.
    pub fn new(wgpu: &Wgpu, experts: usize, gate_up: device::Pool, down: device::Pool) -> Result<Self> {
        check_pools(gate_up.slots(), down.slots())?;
        gate_up.check_device(OP, wgpu)?;
        down.check_device(OP, wgpu)?;
        let device = wgpu.with_own_status();
        let markers = device::Pool::markers(wgpu, experts)?;
        Ok(Self { device, experts, gate_up, down, markers })
    }

    /// One form for every batch size; see [`Wgpu::batch_invariant`].
    pub fn batch_invariant(self, on: bool) -> Self {
        Self { device: self.device.batch_invariant(on), ..self }
    }

    fn h_strides(&self) -> (usize, usize) {
        (self.gate_up.slots().max_rank(), self.down.slots().max_rank())
    }

    /// Memory for calls of at most `tokens` tokens with x of element type X and the adapters of now.
    pub fn workspace<X: Element>(&self, tokens: usize, top_k: usize) -> Result<Workspace> {
        let rows = BlockRows { tokens, top_k, x_stride: 0, y_stride: 0 };
        let strides = self.h_strides();
        let shapes = self.shapes((self.gate_up.slots(), self.down.slots()), strides, &rows);
        let plan = |sizes: &plan::Sizes| -> Result<device::Plan> {
            sizes.check()?;
            Ok(device::Plan::in_buffer(self.device.storage("plan", device::Plan::bytes(sizes))?))
        };
        let routes = shapes.experts.routes() as u64;
        let words = |columns: usize| routes.saturating_mul(columns as u64).saturating_mul(4);
        let act = routes.saturating_mul((shapes.gate_up.y_stride * size_of::<X>()) as u64);
        Ok(Workspace {
            experts: plan(&shapes.experts)?,
            gate_up_loras: plan(&shapes.gate_up_loras)?,
            down_loras: plan(&shapes.down_loras)?,
            h: self.device.storage("h", words(strides.0.max(strides.1)))?,
            act: self.device.storage("act", act)?,
            scratch: self.device.storage("scratch", words(shapes.down.out_features))?,
        })
    }

    /// See the [module](super). Records into `encoder`.
    #[expect(clippy::too_many_arguments, reason = "the order on every device, behind the encoder")]
    pub fn forward<X: Element>(
        &self,
        encoder: &mut wgpu::CommandEncoder,
        rows: &BlockRows,
        weights: BlockWeights<View<X>>,
        x: View<X>,
        routing: &BlockRouting<View<i32>, View<f32>>,
        workspace: &mut Workspace,
        y: View<X>,
    ) -> Result<()> {
        let (wgpu, gate_up, down) = (&self.device, &self.gate_up, &self.down);
        let shapes = self.shapes((gate_up.slots(), down.slots()), self.h_strides(), rows);
        let BlockRouting { topk_ids, lora_ids, topk_weights } = *routing;
        let w = workspace;
        wgpu.plan_into(encoder, &shapes.experts, &self.markers, topk_ids, &mut w.experts)?;
        wgpu.plan_into(encoder, &shapes.gate_up_loras, gate_up, lora_ids, &mut w.gate_up_loras)?;
        wgpu.plan_into(encoder, &shapes.down_loras, down, lora_ids, &mut w.down_loras)?;
        let routes = shapes.experts.routes();
        let act = View::<X>::new(&w.act, 0, routes * shapes.gate_up.y_stride)?;
        let scratch = View::<f32>::new(&w.scratch, 0, routes * shapes.down.out_features)?;
        let h = View::<f32>::new(&w.h, 0, routes * shapes.gate_up_shrink.h_stride)?;
        wgpu.shrink(encoder, &shapes.gate_up_shrink, &w.gate_up_loras, gate_up, x, topk_weights, h)?;
        let (sizes, plan, weight) = (&shapes.gate_up, &w.experts, weights.gate_up);
        wgpu.grouped(
            encoder,
            sizes,
            plan,
            gate_up,
            &w.gate_up_loras,
            weight,
            x,
            h,
            topk_weights,
            scratch,
            act,
        )?;
        let h = View::<f32>::new(&w.h, 0, routes * shapes.down.h_stride)?;
        let (sizes, loras, weight) = (&shapes.down, &w.down_loras, weights.down);
        wgpu.grouped_with_shrink(encoder, sizes, plan, down, loras, weight, act, h, topk_weights, scratch, y)
    }
}
