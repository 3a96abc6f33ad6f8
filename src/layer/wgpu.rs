//! The layer on WebGPU: the same calls, recorded into the engine's encoder.

use super::{Base, MoeLora, OP, Place, Router, Rows, check_router};
use crate::adapter::LinearRouter;
use crate::device::wgpu::{self as device, View, Wgpu};
use crate::element::Element;
use crate::error::{Error, Result};
use crate::ops::route::WgpuRouter;
use crate::ops::{Output, plan, route};

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
        if !pool.wgpu().shares_device(wgpu) {
            return Err(Error::argument(
                OP,
                "pool",
                format!("a pool on {}", wgpu.describe()),
                "one of another device",
            ));
        }
        let device = wgpu.with_own_status();
        let mut layer = Self { device, pool, router: Router::External { top_k: 0 }, output: Output::Sum };
        layer.set_router(router)?;
        Ok(layer)
    }

    /// Another router from the next call on.
    pub fn set_router(&mut self, router: Router<LinearRouter>) -> Result<()> {
        if let Router::Linear { linear, .. } = &router {
            check_router(&router, linear, self.pool.slots().sizes())?;
        }
        self.router = match router {
            Router::External { top_k } => Router::External { top_k },
            Router::Linear { linear, top_k, weighting } => {
                Router::Linear { linear: WgpuRouter::new(&self.device, linear)?, top_k, weighting }
            }
        };
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
        Ok([
            device::Plan::bytes(&sizes),
            (self.h_len(self.pool.slots().max_rank(), tokens) as u64).saturating_mul(4),
        ])
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
        let Router::Linear { linear, top_k, weighting } = &self.router else { return Ok(()) };
        let sizes = route::Sizes {
            tokens: rows.tokens,
            in_features: linear.linear().in_features(),
            x_stride: rows.x_stride,
            experts: linear.linear().experts(),
            top_k: *top_k,
            weighting: *weighting,
        };
        self.device.route(encoder, &sizes, linear, x, routing.topk_ids, routing.topk_weights)
    }

    /// `y = x weight^T (+ bias) + experts`, recorded into `encoder`.
    #[expect(clippy::too_many_arguments, reason = "the order on every device, behind the encoder")]
    pub fn forward<X: Element>(
        &self,
        encoder: &mut wgpu::CommandEncoder,
        rows: &Rows,
        base: Base<View<X>>,
        x: View<X>,
        routing: RoutingView,
        workspace: &mut Workspace,
        y: View<X>,
    ) -> Result<()> {
        self.check_forward()?;
        self.route(encoder, rows, x, routing)?;
        self.forward_routed(encoder, rows, Some(base), x, routing, workspace, y)
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
        self.route(encoder, rows, x, routing)?;
        self.forward_routed(encoder, rows, None, x, routing, workspace, y)
    }

    #[expect(clippy::too_many_arguments, reason = "the order on every device, behind the encoder")]
    fn forward_routed<X: Element>(
        &self,
        encoder: &mut wgpu::CommandEncoder,
        rows: &Rows,
        base: Option<Base<View<X>>>,
        x: View<X>,
        RoutingView { topk_ids, topk_weights }: RoutingView,
        workspace: &mut Workspace,
        y: View<X>,
    ) -> Result<()> {
        let shapes = self.shapes(self.pool.slots(), self.pool.slots().max_rank(), rows);
        let Workspace { plan, h } = workspace;
        let h = View::whole(h);
        self.device.plan_into(encoder, &shapes.plan, &self.pool, topk_ids, plan)?;
        self.device.shrink(encoder, &shapes.shrink, plan, &self.pool, x, topk_weights, h)?;
        if let Some(Base { weight, bias }) = base {
            self.device.base(encoder, &shapes.base, weight, bias, x, y)?;
        }
        self.device.expand(encoder, &shapes.expand, plan, &self.pool, h, topk_weights, y)
    }
}
