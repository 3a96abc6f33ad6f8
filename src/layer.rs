//! The layer, `y = W x + sum over the chosen experts e of w_e scaling_e B_e (A_e x)`: the file to read first.
//!
//! A [`MoeLora`] owns a pool of adapters and a router. A call goes through the operations in this order:
//!
//! ```text
//! x ----> route -> topk_ids, topk_weights   (or given by the engine)
//!           |
//!         plan ------------------+--------.
//! x ------------------------> shrink -> h |
//! x, weight -> base -> y ----------> expand -> y += delta
//! ```

#[cfg(feature = "cuda")]
pub mod cuda;
#[cfg(feature = "wgpu")]
mod wgpu;
#[cfg(feature = "wgpu")]
pub use self::wgpu::{RoutingView, Workspace};

use crate::adapter::LinearRouter;
use crate::device::cpu::{self, Cpu};
use crate::element::Element;
use crate::error::{Error, Result};
use crate::ops::{Output, base, expand, plan, route, route::Weighting, shrink};

const OP: &str = "layer";

/// Where a layer's pool and router live.
pub trait Place {
    /// Adapters in the device's memory.
    type Pool;
    /// A linear router's parameters in the device's memory.
    type Linear;
}

impl Place for Cpu {
    type Pool = cpu::Pool;
    type Linear = LinearRouter;
}

/// Who chooses the experts. The ids are slots of the layer's pool.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Router<L> {
    /// Scores of the layer's own input; expert e is slot e.
    Linear {
        /// The parameters.
        linear: L,
        /// Experts per token.
        top_k: usize,
        /// Scores to weights.
        weighting: Weighting,
    },
    /// Ids and weights come with every call.
    External {
        /// Experts per token; -1 for none.
        top_k: usize,
    },
}

impl<L> Router<L> {
    /// Experts per token.
    pub fn top_k(&self) -> usize {
        match self {
            Self::Linear { top_k, .. } | Self::External { top_k } => *top_k,
        }
    }
}

/// The rows of one call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Rows {
    /// Rows of x.
    pub tokens: usize,
    /// Elements from one row of x to the next.
    pub x_stride: usize,
    /// Elements from one row of y to the next.
    pub y_stride: usize,
}

/// The frozen linear layer, borrowed from the engine.
#[derive(Debug, Clone, Copy)]
pub struct Base<T> {
    /// `[out_features, in_features]`.
    pub weight: T,
    /// `[out_features]`.
    pub bias: Option<T>,
}

/// Which experts each token takes, in the engine's memory: written by a router, read where it is external.
#[derive(Debug)]
pub struct Routing<'a> {
    /// `[tokens, top_k]`, best first; -1 for none.
    pub topk_ids: &'a mut [i32],
    /// `[tokens, top_k]`.
    pub topk_weights: &'a mut [f32],
}

/// A linear layer with LoRA experts on device D.
#[derive(Debug)]
pub struct MoeLora<D: Place> {
    device: D,
    pool: D::Pool,
    router: Router<D::Linear>,
    output: Output,
}

impl<D: Place> MoeLora<D> {
    /// What the experts' products become; `Sum` unless said otherwise.
    pub fn with_output(self, output: Output) -> Self {
        Self { output, ..self }
    }

    /// The device.
    pub fn device(&self) -> &D {
        &self.device
    }

    /// The adapters.
    pub fn pool(&self) -> &D::Pool {
        &self.pool
    }

    /// The adapters, to add and evict.
    pub fn pool_mut(&mut self) -> &mut D::Pool {
        &mut self.pool
    }

    /// The router.
    pub fn router(&self) -> &Router<D::Linear> {
        &self.router
    }

    /// The sizes of one call; a row of h takes `h_stride` elements.
    fn shapes(&self, pool: &crate::adapter::slots::Slots, h_stride: usize, rows: &Rows) -> Shapes {
        let (tokens, top_k, output) = (rows.tokens, self.router.top_k(), self.output);
        let sizes = pool.sizes();
        let (in_features, out_features) = (sizes.in_features, sizes.out_features);
        let Rows { x_stride, y_stride, .. } = *rows;
        Shapes {
            plan: plan::Sizes { tokens, top_k, experts: sizes.experts },
            shrink: shrink::Sizes { tokens, top_k, in_features, x_stride, h_stride, output },
            base: base::Sizes { tokens, in_features, out_features, x_stride, y_stride },
            expand: expand::Sizes {
                tokens,
                top_k,
                out_features,
                h_stride,
                y_stride,
                output,
                accumulate: true,
            },
        }
    }

    /// f32 elements of workspace that a call over `tokens` tokens needs for h.
    fn h_len(&self, h_stride: usize, tokens: usize) -> usize {
        self.output.h_rows(tokens, self.router.top_k()).saturating_mul(h_stride)
    }

    fn check_forward(&self) -> Result<()> {
        if self.output == Output::PerRoute {
            let expected = "sum or rank_sum (per_route has no row to add to: use forward_delta)";
            return Err(Error::argument(OP, "output", expected, self.output.name()));
        }
        Ok(())
    }
}

/// The operations' sizes for one call.
struct Shapes {
    plan: plan::Sizes,
    shrink: shrink::Sizes,
    base: base::Sizes,
    expand: expand::Sizes,
}

/// A router fits its pool.
fn check_router<L>(
    router: &Router<L>,
    linear: &LinearRouter,
    sizes: &crate::adapter::slots::PoolSizes,
) -> Result<()> {
    crate::ops::check_equal(OP, "router.in_features", sizes.in_features, linear.in_features())?;
    if linear.experts() > sizes.experts {
        let expected = format!("at most the pool's {} slots", sizes.experts);
        return Err(Error::argument(OP, "router.experts", expected, linear.experts()));
    }
    if router.top_k() > linear.experts() {
        let expected = format!("at most the router's {} experts", linear.experts());
        return Err(Error::argument(OP, "router.top_k", expected, router.top_k()));
    }
    Ok(())
}

impl MoeLora<Cpu> {
    /// A layer from a pool and a router.
    pub fn new(cpu: &Cpu, pool: cpu::Pool, router: Router<LinearRouter>) -> Result<Self> {
        let mut layer =
            Self { device: cpu.clone(), pool, router: Router::External { top_k: 0 }, output: Output::Sum };
        layer.set_router(router)?;
        Ok(layer)
    }

    /// Another router from the next call on.
    pub fn set_router(&mut self, router: Router<LinearRouter>) -> Result<()> {
        if let Router::Linear { linear, .. } = &router {
            check_router(&router, linear, self.pool.slots().sizes())?;
        }
        self.router = router;
        Ok(())
    }

    /// f32 elements of workspace for calls of at most `tokens` tokens.
    pub fn workspace_len(&self, tokens: usize) -> usize {
        self.h_len(self.pool.slots().max_rank(), tokens)
    }

    /// Fills the routing from `x [tokens, in_features]`; leaves it alone where the router is external.
    pub fn route<X: Element>(&self, rows: &Rows, x: &[X], routing: &mut Routing) -> Result<()> {
        let Router::Linear { linear, top_k, weighting } = &self.router else { return Ok(()) };
        let sizes = route::Sizes {
            tokens: rows.tokens,
            in_features: linear.in_features(),
            x_stride: rows.x_stride,
            experts: linear.experts(),
            top_k: *top_k,
            weighting: *weighting,
        };
        self.device.route(&sizes, linear, x, routing.topk_ids, routing.topk_weights)
    }

    /// `y = x weight^T (+ bias) + experts`. Nothing is written to y when an argument is refused.
    pub fn forward<X: Element>(
        &self,
        rows: &Rows,
        base: Base<&[X]>,
        x: &[X],
        routing: &mut Routing,
        workspace: &mut [f32],
        y: &mut [X],
    ) -> Result<()> {
        self.check_forward()?;
        self.route(rows, x, routing)?;
        self.forward_routed(rows, Some(base), x, routing, workspace, y)
    }

    /// `y += experts`, onto a base product that the engine computed.
    pub fn forward_delta<X: Element>(
        &self,
        rows: &Rows,
        x: &[X],
        routing: &mut Routing,
        workspace: &mut [f32],
        y: &mut [X],
    ) -> Result<()> {
        self.route(rows, x, routing)?;
        self.forward_routed(rows, None, x, routing, workspace, y)
    }

    fn forward_routed<X: Element>(
        &self,
        rows: &Rows,
        base: Option<Base<&[X]>>,
        x: &[X],
        routing: &Routing,
        workspace: &mut [f32],
        y: &mut [X],
    ) -> Result<()> {
        let shapes = self.shapes(self.pool.slots(), self.pool.slots().max_rank(), rows);
        let plan = self.device.plan(&shapes.plan, &self.pool, routing.topk_ids)?;
        self.device.shrink(&shapes.shrink, &plan, &self.pool, x, routing.topk_weights, workspace)?;
        plan.check_weights(OP, routing.topk_weights)?;
        if let Some(Base { weight, bias }) = base {
            self.device.base(&shapes.base, weight, bias, x, y)?;
        }
        self.device.expand(&shapes.expand, &plan, &self.pool, workspace, routing.topk_weights, y)
    }
}
