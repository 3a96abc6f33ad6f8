//! The layer on WebGPU: the same calls, recorded into the engine's encoder.

use super::{Base, MoeLora, OP, Place, Router, Rows, check_router, route_sizes};
use crate::adapter::LinearRouter;
use crate::device::wgpu::{self as device, View, Wgpu};
use crate::element::Element;
use crate::error::Result;
use crate::ops::fused::{Form, cost};
use crate::ops::route::{Allow, WgpuRouter};
use crate::ops::{Output, plan};

impl Place for Wgpu {
    type Pool = device::Pool;
    type Linear = WgpuRouter;
}

/// [`Routing`](super::Routing) in device memory.
#[derive(Debug, Clone, Copy)]
pub struct RoutingView<'a> {
    /// `[tokens, top_k]`, best first; -1 for none.
    pub topk_ids: View<'a, i32>,
    /// `[tokens, top_k]`.
    pub topk_weights: View<'a, f32>,
    /// Which experts the tokens of each request may take; all without it. For the layer's own router.
    pub allow: Option<Allow<View<'a, u32>>>,
    /// Ids and weights are there already, also where the layer has a router: it was asked before, of another tensor say.
    pub given: bool,
}

impl<'a> RoutingView<'a> {
    /// Without a mask; the layer's router fills it, where there is one.
    pub fn new(topk_ids: View<'a, i32>, topk_weights: View<'a, f32>) -> Self {
        Self { topk_ids, topk_weights, allow: None, given: false }
    }
}

/// Device memory that calls reuse: a plan and h.
#[derive(Debug)]
pub struct Workspace {
    plan: device::Plan,
    h: wgpu::Buffer,
}

impl MoeLora<Wgpu> {
    /// A layer from a pool and a router. The layer has a status word of its own: `layer.device().take_status()`.
    pub fn new(wgpu: &Wgpu, pool: device::Pool, router: Router<LinearRouter>) -> Result<Self> {
        pool.check_device(OP, wgpu)?;
        let device = wgpu.with_own_status();
        let mut layer =
            Self { device, pool, router: Router::External { top_k: 0 }, output: Output::Sum, form: None };
        layer.set_router(router)?;
        Ok(layer)
    }

    /// Another router from the next call on.
    pub fn set_router(&mut self, router: Router<LinearRouter>) -> Result<()> {
        if let Router::Linear { linear, .. } = &router {
            check_router(&router, linear, self.pool.slots().sizes())?;
        }
        self.router = router.try_map(|linear| WgpuRouter::new(&self.device, linear))?;
        Ok(())
    }

    /// One form for every batch size; see [`Wgpu::batch_invariant`].
    pub fn batch_invariant(self, on: bool) -> Self {
        Self { device: self.device.batch_invariant(on), ..self }
    }

    /// Bytes of the workspace's two buffers, plan and h, for calls of at most `tokens` tokens.
    pub fn workspace_bytes(&self, tokens: usize) -> Result<[u64; 2]> {
        let sizes =
            plan::Sizes { tokens, top_k: self.router.top_k(), experts: self.pool.slots().sizes().experts };
        sizes.check()?;
        let (slots, limits) = (self.pool.slots(), self.device.fused_limits(&self.ask::<f32>(tokens)));
        let limits = self.limits_of(limits);
        let h = self.h_len(slots, slots.max_rank(), &limits, tokens);
        Ok([device::Plan::bytes(&sizes), (h as u64).saturating_mul(4)])
    }

    /// A workspace in memory of its own.
    pub fn workspace(&self, tokens: usize) -> Result<Workspace> {
        let [plan, h] = self.workspace_bytes(tokens)?;
        Ok(self.workspace_in(self.device.storage("plan", plan)?, self.device.storage("h", h)?))
    }

    /// A workspace in the engine's buffers, with the usages `STORAGE` and, for the plan, `COPY_DST`; see
    /// [`Self::workspace_bytes`].
    pub fn workspace_in(&self, plan: wgpu::Buffer, h: wgpu::Buffer) -> Workspace {
        Workspace { plan: device::Plan::in_buffer(plan), h }
    }

    /// Fills the routing from `x [tokens, in_features]`; leaves it alone where the router is external.
    pub fn route<X: Element>(
        &self,
        encoder: &mut wgpu::CommandEncoder,
        rows: &Rows,
        x: View<X>,
        routing: RoutingView,
    ) -> Result<()> {
        let Router::Linear { linear, rule } = &self.router else { return Ok(()) };
        let sizes = route_sizes(rows, linear.linear(), *rule);
        let RoutingView { topk_ids, topk_weights, allow, .. } = routing;
        self.device.route(encoder, &sizes, linear, x, allow, topk_ids, topk_weights)
    }

    fn route_first<X: Element>(
        &self,
        encoder: &mut wgpu::CommandEncoder,
        rows: &Rows,
        x: View<X>,
        routing: RoutingView,
    ) -> Result<()> {
        if routing.given { Ok(()) } else { self.route(encoder, rows, x, routing) }
    }

    /// `y = x weight^T (+ bias) + experts`, recorded into `encoder`.
    #[expect(clippy::too_many_arguments, reason = "the order on every device, behind the encoder")]
    pub fn forward<X: Element>(
        &self,
        encoder: &mut wgpu::CommandEncoder,
        rows: &Rows,
        Base { weight, bias }: Base<View<X>>,
        x: View<X>,
        routing: RoutingView,
        workspace: &mut Workspace,
        y: View<X>,
    ) -> Result<()> {
        self.check_forward()?;
        self.check_attention(routing.allow.is_some())?;
        let (form, wgpu, pool) = (self.choose::<X>(rows.tokens)?.form, &self.device, &self.pool);
        let shapes = self.shapes(pool.slots(), pool.slots().max_rank(), rows);
        let (RoutingView { topk_ids, topk_weights, .. }, Workspace { plan, h }) = (routing, workspace);
        let h = View::whole(h);
        if form == Form::Dense {
            let sizes = shapes.dense(pool.slots());
            let gate = self.router.gate(WgpuRouter::linear, routing.given, routing.allow.is_some());
            if gate.is_none() {
                self.route_first(encoder, rows, x, routing)?;
            }
            wgpu.fused_gate(encoder, &sizes, pool, gate, x, topk_ids, topk_weights, h)?;
            return wgpu.fused_dense(encoder, &sizes, pool, weight, bias, x, h, y);
        }
        self.route_first(encoder, rows, x, routing)?;
        let sizes = &shapes.fused;
        if form == Form::Few {
            return wgpu.fused_few(encoder, sizes, pool, weight, bias, x, topk_ids, topk_weights, h, y);
        }
        wgpu.plan_into(encoder, &shapes.plan, pool, topk_ids, plan)?;
        wgpu.shrink(encoder, &shapes.shrink, plan, pool, x, topk_weights, h)?;
        if self.router.attends() && !routing.given {
            wgpu.attend(encoder, &shapes.attend, plan, pool, x, h, topk_weights)?;
        }
        if form == Form::Sparse {
            return wgpu.fused_sparse(encoder, sizes, plan, pool, weight, bias, x, h, topk_weights, y);
        }
        wgpu.base(encoder, &shapes.base, weight, bias, x, y)?;
        wgpu.expand(encoder, &shapes.expand, plan, pool, h, topk_weights, y)
    }

    /// The form of a call over `tokens` tokens, and why.
    pub fn choose<X: Element>(&self, tokens: usize) -> Result<cost::Choice> {
        self.check_form()?;
        let problem = self.ask::<X>(tokens);
        cost::choose(&problem, &self.limits_of(self.device.fused_limits(&problem)), self.form)
    }

    fn ask<X: Element>(&self, tokens: usize) -> cost::Problem {
        let scores = self.router.scores(WgpuRouter::linear);
        self.problem(self.pool.slots(), X::TYPE, scores, tokens)
    }

    /// `y += experts`, onto a base product that the engine computed; recorded into `encoder`.
    pub fn forward_delta<X: Element>(
        &self,
        encoder: &mut wgpu::CommandEncoder,
        rows: &Rows,
        x: View<X>,
        routing: RoutingView,
        workspace: &mut Workspace,
        y: View<X>,
    ) -> Result<()> {
        self.check_attention(routing.allow.is_some())?;
        self.route_first(encoder, rows, x, routing)?;
        let shapes = self.shapes(self.pool.slots(), self.pool.slots().max_rank(), rows);
        let (RoutingView { topk_ids, topk_weights, .. }, Workspace { plan, h }) = (routing, workspace);
        let h = View::whole(h);
        self.device.plan_into(encoder, &shapes.plan, &self.pool, topk_ids, plan)?;
        self.device.shrink(encoder, &shapes.shrink, plan, &self.pool, x, topk_weights, h)?;
        if self.router.attends() && !routing.given {
            self.device.attend(encoder, &shapes.attend, plan, &self.pool, x, h, topk_weights)?;
        }
        self.device.expand(encoder, &shapes.expand, plan, &self.pool, h, topk_weights, y)
    }
}
