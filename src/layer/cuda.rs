//! The layer on CUDA: the same calls, enqueued on the engine's stream.

use super::{Base, MoeLora, OP, Place, Router, Rows, check_router, route_sizes};
use crate::adapter::LinearRouter;
use crate::device::cuda::cudarc::driver::CudaSlice;
use crate::device::cuda::{self as device, Cuda, Memory, View, ViewMut};
use crate::element::Element;
use crate::error::{Error, Result};
use crate::ops::fused::{Form, cost};
use crate::ops::route::{Allow, CudaRouter};
use crate::ops::{plan, shrink};

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
    /// Which experts the tokens of each request may take; all without it. For the layer's own router.
    pub allow: Option<Allow<View<'a, u32>>>,
    /// Ids and weights are there already, also where the layer has a router: it was asked before, of another tensor say.
    pub given: bool,
}

impl<'a> RoutingView<'a> {
    /// Of all tokens, without a mask; the layer's router fills it, where there is one.
    pub fn new(topk_ids: ViewMut<'a, i32>, topk_weights: ViewMut<'a, f32>) -> Self {
        Self { topk_ids, topk_weights, live_tokens: None, allow: None, given: false }
    }
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
        let mut layer = Self { device, pool, router: Router::External { top_k: 0 }, output, form: None };
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
        self.router = router.try_map(|linear| CudaRouter::new(&self.device, linear))?;
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
        let limits = self.limits_of(self.device.fused_limits(&self.ask::<f32>(tokens)));
        (self.h_len(self.pool.slots(), self.h_stride(), &limits, tokens), scratch)
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
        let Router::Linear { linear, rule } = &self.router else { return Ok(()) };
        let sizes = route_sizes(rows, linear.linear(), *rule);
        let RoutingView { topk_ids, topk_weights, live_tokens, allow, .. } = routing;
        let allow = allow.as_ref().map(|Allow { offsets, lists }| Allow { offsets, lists });
        self.device.route(&sizes, linear, x, allow, live_tokens.as_ref(), topk_ids, topk_weights)
    }

    fn route_first<X: Element>(&self, rows: &Rows, x: &View<X>, routing: &mut RoutingView) -> Result<()> {
        if routing.given { Ok(()) } else { self.route(rows, x, routing) }
    }

    /// `y = x weight^T (+ bias) + experts`, enqueued.
    pub fn forward<X: Element>(
        &self,
        rows: &Rows,
        Base { weight, bias }: Base<&View<X>>,
        x: &View<X>,
        routing: &mut RoutingView,
        workspace: &mut Workspace,
        y: &mut ViewMut<X>,
    ) -> Result<()> {
        self.check_forward()?;
        self.check_attention(routing.allow.is_some())?;
        let (form, cuda, pool) = (self.choose::<X>(rows.tokens)?.form, &self.device, &self.pool);
        let shapes = self.shapes(pool.slots(), self.h_stride(), rows);
        if form == Form::Dense {
            let sizes = shapes.dense(pool.slots());
            let gate = self.router.gate(CudaRouter::linear, routing.given, routing.allow.is_some());
            if gate.is_none() {
                self.route_first(rows, x, routing)?;
            }
            let (_, _, h) = self.parts(rows.tokens, workspace)?;
            let z_len = rows.tokens.saturating_mul(sizes.h_stride);
            // SAFETY: the part of the workspace that is h's, which holds as many f32.
            let mut z = unsafe { ViewMut::<X>::from_raw(h.address(), z_len) };
            let RoutingView { topk_ids, topk_weights, live_tokens, .. } = routing;
            let live = live_tokens.as_ref();
            cuda.fused_gate(&sizes, pool, gate, x, live, topk_ids, topk_weights, &mut z)?;
            return cuda.fused_dense(&sizes, pool, weight, bias, x, &z.as_view(), live, y);
        }
        self.route_first(rows, x, routing)?;
        let (topk_ids, topk_weights) = (routing.topk_ids.as_view(), routing.topk_weights.as_view());
        let (live_tokens, sizes) = (routing.live_tokens.as_ref(), &shapes.fused);
        let (plan, mut scratch, mut h) = self.parts(rows.tokens, workspace)?;
        if form == Form::Few {
            let live = live_tokens;
            return cuda.fused_few(sizes, pool, weight, bias, x, &topk_ids, &topk_weights, live, &mut h, y);
        }
        cuda.plan_into(&shapes.plan, pool, &topk_ids, live_tokens, plan)?;
        cuda.shrink(&shapes.shrink, plan, pool, x, &topk_weights, Some(&mut scratch), &mut h)?;
        drop(topk_weights);
        if self.router.attends() && !routing.given {
            cuda.attend(&shapes.attend, plan, pool, x, &h.as_view(), &mut routing.topk_weights)?;
        }
        let topk_weights = routing.topk_weights.as_view();
        if form == Form::Sparse {
            return cuda.fused_sparse(sizes, plan, pool, weight, bias, x, &h.as_view(), &topk_weights, y);
        }
        cuda.base(&shapes.base, weight, bias, x, live_tokens, y)?;
        cuda.expand(&shapes.expand, plan, pool, &h.as_view(), &topk_weights, y)
    }

    /// The form of a call over `tokens` tokens, and why. While the stream captures a graph the dense form is taken only on
    /// demand.
    pub fn choose<X: Element>(&self, tokens: usize) -> Result<cost::Choice> {
        self.check_form()?;
        let problem = self.ask::<X>(tokens);
        let mut limits = self.limits_of(self.device.fused_limits(&problem));
        // A captured dense form ends at the pool's rows of now.
        if self.device.check_not_capturing(OP).is_err() {
            limits.dense_on_demand = Some("replays shall see adapters that come later");
        }
        cost::choose(&problem, &limits, self.form)
    }

    fn ask<X: Element>(&self, tokens: usize) -> cost::Problem {
        let scores = self.router.scores(CudaRouter::linear);
        self.problem(self.pool.slots(), X::TYPE, scores, tokens)
    }

    /// The workspace's plan, the scratch of shrink, and h.
    fn parts<'a>(
        &self,
        tokens: usize,
        Workspace { plan, h }: &'a mut Workspace,
    ) -> Result<(&'a mut device::Plan, ViewMut<'a, f32>, ViewMut<'a, f32>)> {
        self.device.check_streams(OP, [("workspace", h.stream())])?;
        let (h_len, scratch_len) = self.h_parts(tokens);
        if h.len() < h_len.saturating_add(scratch_len) {
            let expected =
                format!("at least {} bytes for h", h_len.saturating_add(scratch_len).saturating_mul(4));
            return Err(Error::argument(OP, "workspace", expected, h.len() * 4));
        }
        // SAFETY: the workspace's own memory, which the exclusive borrow keeps from others; h and scratch do not overlap.
        let scratch = unsafe { ViewMut::from_raw(h.address() + h_len as u64 * 4, scratch_len) };
        // SAFETY: as above.
        Ok((plan, scratch, unsafe { ViewMut::from_raw(h.address(), h_len) }))
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
        self.check_attention(routing.allow.is_some())?;
        self.route_first(rows, x, routing)?;
        let shapes = self.shapes(self.pool.slots(), self.h_stride(), rows);
        let (topk_ids, topk_weights) = (routing.topk_ids.as_view(), routing.topk_weights.as_view());
        let (plan, mut scratch, mut h) = self.parts(rows.tokens, workspace)?;
        let (device, pool) = (&self.device, &self.pool);
        device.plan_into(&shapes.plan, pool, &topk_ids, routing.live_tokens.as_ref(), plan)?;
        device.shrink(&shapes.shrink, plan, pool, x, &topk_weights, Some(&mut scratch), &mut h)?;
        drop(topk_weights);
        if self.router.attends() && !routing.given {
            device.attend(&shapes.attend, plan, pool, x, &h.as_view(), &mut routing.topk_weights)?;
        }
        let topk_weights = routing.topk_weights.as_view();
        device.expand(&shapes.expand, plan, pool, &h.as_view(), &topk_weights, y)
    }
}
