//! The layer on CUDA: the same calls, enqueued on the engine's stream.

use super::{Base, MoeLora, OP, Place, Router, Rows, check_router};
use crate::adapter::LinearRouter;
use crate::device::cuda::cudarc::driver::CudaSlice;
use crate::device::cuda::{self as device, Cuda, Memory, View, ViewMut};
use crate::element::Element;
use crate::error::{Error, Result};
use crate::ops::route::CudaRouter;
use crate::ops::{plan, route, shrink};

impl Place for Cuda {
    type Pool = device::Pool;
    type Linear = CudaRouter;
}

/// [`Routing`](super::Routing) in device memory.
#[derive(Debug)]
pub struct RoutingView<'a> {
    /// `[tokens, top_k]`, best first; -1 for none.
    pub topk_ids: ViewMut<'a, i32>,
    /// `[tokens, top_k]`.
    pub topk_weights: ViewMut<'a, f32>,
    /// One word: how many of the tokens there are, known on the device alone; all without it.
    pub live_tokens: Option<View<'a, u32>>,
}

/// Device memory that calls reuse: a plan, and h with the scratch of shrink behind it.
#[derive(Debug)]
pub struct Workspace {
    plan: device::Plan,
    h: Memory<f32>,
}

impl MoeLora<Cuda> {
    /// A layer from a pool and a router. The layer has a status word of its own: `layer.device().take_status()`. No graph
    /// captured from it may outlive it; see [`crate::device::cuda`].
    pub fn new(cuda: &Cuda, pool: device::Pool, router: Router<LinearRouter>) -> Result<Self> {
        pool.check_stream(OP, cuda)?;
        let (device, output) = (cuda.with_own_status()?, crate::ops::Output::Sum);
        let mut layer = Self { device, pool, router: Router::External { top_k: 0 }, output };
        layer.set_router(router)?;
        Ok(layer)
    }

    /// Another router from the next call on. The old one's memory is freed: a graph that was captured with it must not be
    /// replayed again.
    pub fn set_router(&mut self, router: Router<LinearRouter>) -> Result<()> {
        // The old router's memory is freed here, which is not for a graph either.
        self.device.check_not_capturing(OP)?;
        if let Router::Linear { linear, .. } = &router {
            check_router(&router, linear, self.pool.slots().sizes())?;
        }
        self.router = match router {
            Router::External { top_k } => Router::External { top_k },
            Router::Linear { linear, top_k, weighting } => {
                Router::Linear { linear: CudaRouter::new(&self.device, linear)?, top_k, weighting }
            }
        };
        Ok(())
    }

    /// One form for every batch size; see [`Cuda::batch_invariant`].
    pub fn batch_invariant(self, on: bool) -> Self {
        Self { device: self.device.batch_invariant(on), ..self }
    }

    /// Makes h and the launches for ranks up to this, for graphs that are captured before the adapters come; see
    /// [`device::Pool::reserve_rank`].
    pub fn reserve_rank(&mut self, rank: usize) -> Result<()> {
        self.pool.reserve_rank(rank)
    }

    /// Elements from one row of h to the next: rows start at multiples of 16 bytes.
    fn h_stride(&self) -> usize {
        self.pool.max_rank().next_multiple_of(4)
    }

    /// f32 elements of h, and of the scratch behind it.
    fn h_parts(&self, tokens: usize) -> (usize, usize) {
        let routes = tokens.saturating_mul(self.router.top_k());
        let scratch = shrink::cuda::scratch_len(self.output, routes, self.pool.max_rank());
        (self.h_len(self.h_stride(), tokens), scratch)
    }

    /// Bytes of the workspace's two buffers, plan and h, for calls of at most `tokens` tokens.
    pub fn workspace_bytes(&self, tokens: usize) -> Result<[u64; 2]> {
        let (top_k, experts) = (self.router.top_k(), self.pool.slots().sizes().experts);
        let sizes = plan::Sizes { tokens, top_k, experts };
        sizes.check()?;
        let (h, scratch) = self.h_parts(tokens);
        let bytes = (h as u64).saturating_add(scratch as u64).saturating_mul(4);
        Ok([device::Plan::bytes(&sizes), bytes])
    }

    /// A workspace in memory of its own.
    pub fn workspace(&self, tokens: usize) -> Result<Workspace> {
        let [plan, h] = self.workspace_bytes(tokens)?.map(|bytes| (bytes / 4) as usize);
        let plan = device::Plan::empty(Memory::new(&self.device, plan)?);
        Ok(Workspace { plan, h: Memory::new(&self.device, h)? })
    }

    /// A workspace in the engine's slices, of the layer's stream; see [`Self::workspace_bytes`].
    pub fn workspace_in(&self, plan: CudaSlice<u32>, h: CudaSlice<f32>) -> Result<Workspace> {
        let plan = device::Plan::in_memory(&self.device, plan)?;
        Ok(Workspace { plan, h: Memory::of(&self.device, h)? })
    }

    /// A workspace in the engine's memory by addresses and bytes; see [`Self::workspace_bytes`].
    ///
    /// # Safety
    /// Both are device memory of the stream's context, aligned to 16 bytes, that nothing else writes for as long as the
    /// workspace is used and the work of that use runs; all of it is on one stream.
    pub unsafe fn workspace_from_raw(&self, plan: (u64, u64), h: (u64, u64)) -> Workspace {
        // SAFETY: the caller's promise.
        let plan = unsafe { device::Plan::from_raw(plan.0, (plan.1 / 4) as usize) };
        // SAFETY: as above.
        Workspace { plan, h: unsafe { Memory::from_raw(h.0, (h.1 / 4) as usize) } }
    }

    /// Fills the routing from `x [tokens, in_features]`; leaves it alone where the router is external.
    pub fn route<X: Element>(&self, rows: &Rows, x: &View<X>, routing: &mut RoutingView) -> Result<()> {
        let Router::Linear { linear, top_k, weighting } = &self.router else { return Ok(()) };
        let sizes = route::Sizes {
            tokens: rows.tokens,
            in_features: linear.linear().in_features(),
            x_stride: rows.x_stride,
            experts: linear.linear().experts(),
            top_k: *top_k,
            weighting: *weighting,
        };
        let RoutingView { topk_ids, topk_weights, live_tokens } = routing;
        self.device.route(&sizes, linear, x, live_tokens.as_ref(), topk_ids, topk_weights)
    }

    /// `y = x weight^T (+ bias) + experts`, enqueued.
    pub fn forward<X: Element>(
        &self,
        rows: &Rows,
        base: Base<&View<X>>,
        x: &View<X>,
        routing: &mut RoutingView,
        workspace: &mut Workspace,
        y: &mut ViewMut<X>,
    ) -> Result<()> {
        self.check_forward()?;
        self.route(rows, x, routing)?;
        self.forward_routed(rows, Some(base), x, routing, workspace, y)
    }

    /// `y += experts`, onto a base product that the engine computed; enqueued.
    pub fn forward_delta<X: Element>(
        &self,
        rows: &Rows,
        x: &View<X>,
        routing: &mut RoutingView,
        workspace: &mut Workspace,
        y: &mut ViewMut<X>,
    ) -> Result<()> {
        self.route(rows, x, routing)?;
        self.forward_routed(rows, None, x, routing, workspace, y)
    }

    fn forward_routed<X: Element>(
        &self,
        rows: &Rows,
        base: Option<Base<&View<X>>>,
        x: &View<X>,
        routing: &RoutingView,
        workspace: &mut Workspace,
        y: &mut ViewMut<X>,
    ) -> Result<()> {
        let shapes = self.shapes(self.pool.slots(), self.h_stride(), rows);
        let (topk_ids, topk_weights) = (routing.topk_ids.as_view(), routing.topk_weights.as_view());
        let live_tokens = routing.live_tokens.as_ref();
        let Workspace { plan, h } = workspace;
        self.device.check_streams(OP, [("workspace", h.stream())])?;
        let (h_len, scratch_len) = self.h_parts(rows.tokens);
        if h.len() < h_len.saturating_add(scratch_len) {
            let expected =
                format!("at least {} bytes for h", h_len.saturating_add(scratch_len).saturating_mul(4));
            return Err(Error::argument(OP, "workspace", expected, h.len() * 4));
        }
        // SAFETY: the workspace's own memory, which the exclusive borrow keeps from others; h and scratch do not overlap.
        let mut scratch = unsafe { ViewMut::from_raw(h.address() + h_len as u64 * 4, scratch_len) };
        // SAFETY: as above.
        let mut h = unsafe { ViewMut::from_raw(h.address(), h_len) };
        self.device.plan_into(&shapes.plan, &self.pool, &topk_ids, live_tokens, plan)?;
        let (device, pool) = (&self.device, &self.pool);
        device.shrink(&shapes.shrink, plan, pool, x, &topk_weights, Some(&mut scratch), &mut h)?;
        if let Some(Base { weight, bias }) = base {
            device.base(&shapes.base, weight, bias, x, live_tokens, y)?;
        }
        device.expand(&shapes.expand, plan, pool, &h.as_view(), &topk_weights, y)
    }
}
