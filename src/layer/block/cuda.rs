//! The block on CUDA: the same call, enqueued on the engine's stream.

use super::{BlockRouting, BlockRows, BlockWeights, MoeBlock, OP, check_pools};
use crate::device::cuda::{self as device, Cuda, Memory, View, ViewMut};
use crate::element::Element;
use crate::error::Result;
use crate::ops::{check_len, plan};

/// Device memory that calls reuse.
#[derive(Debug)]
pub struct Workspace {
    experts: device::Plan,
    gate_up_loras: device::Plan,
    down_loras: device::Plan,
    h: Memory<f32>,
    act: Memory<u8>,
    scratch: Memory<f32>,
}

impl MoeBlock<Cuda> {
    /// A block of `experts` experts. `gate_up` is packed, two slices of `width` columns; `down` has as many slots. The block
    /// has a status word of its own. No graph captured from it may outlive it.
    pub fn new(cuda: &Cuda, experts: usize, gate_up: device::Pool, down: device::Pool) -> Result<Self> {
        check_pools(gate_up.slots(), down.slots())?;
        gate_up.check_stream(OP, cuda)?;
        down.check_stream(OP, cuda)?;
        let (device, markers) = (cuda.with_own_status()?, device::Pool::markers(cuda, experts)?);
        Ok(Self { device, experts, gate_up, down, markers })
    }

    /// One form for every batch size; see [`Cuda::batch_invariant`].
    pub fn batch_invariant(self, on: bool) -> Self {
        Self { device: self.device.batch_invariant(on), ..self }
    }

    /// Rows of h start at multiples of 16 bytes.
    fn h_strides(&self) -> (usize, usize) {
        (self.gate_up.max_rank().next_multiple_of(4), self.down.max_rank().next_multiple_of(4))
    }

    /// Memory for calls of at most `tokens` tokens with x of element type X and the adapters of now (or as reserved).
    pub fn workspace<X: Element>(&self, tokens: usize, top_k: usize) -> Result<Workspace> {
        let rows = BlockRows { tokens, top_k, x_stride: 0, y_stride: 0 };
        let strides = self.h_strides();
        let shapes = self.shapes((self.gate_up.slots(), self.down.slots()), strides, &rows);
        let plan = |sizes: &plan::Sizes| -> Result<device::Plan> {
            sizes.check()?;
            Ok(device::Plan::empty(Memory::new(&self.device, (device::Plan::bytes(sizes) / 4) as usize)?))
        };
        let routes = shapes.experts.routes();
        let of = |columns: usize| routes.saturating_mul(columns);
        Ok(Workspace {
            experts: plan(&shapes.experts)?,
            gate_up_loras: plan(&shapes.gate_up_loras)?,
            down_loras: plan(&shapes.down_loras)?,
            h: Memory::new(&self.device, of(strides.0.max(strides.1)))?,
            // Numbers from the start: a route without an expert has no row, and shrink reads one, in vain, wherever there is a LoRA.
            act: Memory::zeroed(&self.device, of(shapes.gate_up.y_stride).saturating_mul(size_of::<X>()))?,
            scratch: Memory::new(&self.device, of(shapes.down.out_features))?,
        })
    }

    /// See the [module](super); enqueued.
    pub fn forward<X: Element>(
        &self,
        rows: &BlockRows,
        weights: BlockWeights<&View<X>>,
        x: &View<X>,
        routing: &BlockRouting<&View<i32>, &View<f32>>,
        workspace: &mut Workspace,
        y: &mut ViewMut<X>,
    ) -> Result<()> {
        let (cuda, gate_up, down) = (&self.device, &self.gate_up, &self.down);
        let shapes = self.shapes((gate_up.slots(), down.slots()), self.h_strides(), rows);
        let BlockRouting { topk_ids, lora_ids, topk_weights } = *routing;
        let w = workspace;
        cuda.check_streams(OP, [("workspace", w.h.stream())])?;
        let of = |columns: usize| shapes.experts.routes().saturating_mul(columns);
        let (up_h, down_h) = (of(shapes.gate_up_shrink.h_stride), of(shapes.down_shrink.h_stride));
        let (act_len, scratch_len) = (of(shapes.gate_up.y_stride), of(shapes.down.out_features));
        for (name, needed, held) in [
            ("workspace.h", up_h.max(down_h), w.h.len()),
            ("workspace.act", act_len.saturating_mul(size_of::<X>()), w.act.len()),
            ("workspace.scratch", scratch_len, w.scratch.len()),
        ] {
            if held < needed {
                check_len(OP, name, needed, held)?;
            }
        }
        cuda.plan_into(&shapes.experts, &self.markers, topk_ids, None, &mut w.experts)?;
        cuda.plan_into(&shapes.gate_up_loras, gate_up, lora_ids, None, &mut w.gate_up_loras)?;
        cuda.plan_into(&shapes.down_loras, down, lora_ids, None, &mut w.down_loras)?;
        // SAFETY: the workspace's own memory, which the exclusive borrow keeps from others; the lengths were checked above.
        let mut h = unsafe { ViewMut::<f32>::from_raw(w.h.address(), up_h) };
        // SAFETY: as above.
        let mut act = unsafe { ViewMut::<X>::from_raw(w.act.address(), act_len) };
        // SAFETY: as above.
        let mut scratch = unsafe { ViewMut::<f32>::from_raw(w.scratch.address(), scratch_len) };
        cuda.shrink(&shapes.gate_up_shrink, &w.gate_up_loras, gate_up, x, topk_weights, None, &mut h)?;
        let (sizes, plan, weight) = (&shapes.gate_up, &w.experts, weights.gate_up);
        let view = h.as_view();
        cuda.grouped(
            sizes,
            plan,
            gate_up,
            &w.gate_up_loras,
            weight,
            x,
            &view,
            topk_weights,
            &mut scratch,
            &mut act,
        )?;
        // SAFETY: as above; the first h is not used again.
        let mut h = unsafe { ViewMut::<f32>::from_raw(w.h.address(), down_h) };
        let act = act.as_view();
        cuda.shrink(&shapes.down_shrink, &w.down_loras, down, &act, topk_weights, None, &mut h)?;
        let (sizes, weight, view) = (&shapes.down, weights.down, h.as_view());
        cuda.grouped(sizes, plan, down, &w.down_loras, weight, &act, &view, topk_weights, &mut scratch, y)
    }
}
