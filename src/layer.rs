//! The layer, `y = W x + sum over the chosen experts e of w_e scaling_e B_e (A_e x)`: the file to read first.
//!
//! A [`MoeLora`] owns a pool of adapters and a router. A call goes through the operations in this order:
//!
//! ```text
//! x ----> route -> topk_ids, topk_weights   (or given by the engine)
//!           |
//!         plan ------------------+--------.
//! x ------------------------> shrink -> h |
//! x, h -> attend -> topk_weights          |   (RAMoLE alone)
//! x, weight ----------------------> fused -> y
//! ```
//!
//! The fused product has other forms too, and experts alone are added to the engine's own y by `expand`; see
//! [`crate::ops::fused`].

pub mod block;
#[cfg(feature = "cuda")]
pub mod cuda;
#[cfg(feature = "wgpu")]
mod wgpu;
#[cfg(feature = "wgpu")]
pub use self::wgpu::{RoutingView, Workspace};

use crate::adapter::{LinearRouter, slots::Slots};
use crate::device::cpu::{self, Cpu};
use crate::element::{Element, ElementType};
use crate::error::{Error, Result};
use crate::ops::fused::{self, Form, cost};
use crate::ops::route::{self, Allow, CpuRouter, Rule, Weighting};
use crate::ops::{Output, attend, base, expand, plan, shrink};

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
    type Linear = CpuRouter;
}

/// Who chooses the experts. The ids are slots of the layer's pool.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Router<L> {
    /// Scores of the layer's own input, or of what [`route`](MoeLora#method.route) was given; expert e is slot e.
    Linear {
        /// The parameters.
        linear: L,
        /// What is taken of the scores.
        rule: Rule,
    },
    /// Ids and weights come with every call.
    External {
        /// Experts per token; -1 for none.
        top_k: usize,
    },
    /// Ids come with every call: the adapters that were retrieved for the token's request. The weights are the layer's, by
    /// [`attend`] (RAMoLE); the pool has attention (`set_attention`).
    RankAttention {
        /// Experts per token; -1 for none.
        top_k: usize,
    },
}

impl<L> Router<L> {
    /// The best `top_k` scores.
    pub const fn best(linear: L, top_k: usize, weighting: Weighting) -> Self {
        Self::Linear { linear, rule: Rule::top_k(top_k, weighting) }
    }

    /// Experts per token, shared ones included.
    pub fn top_k(&self) -> usize {
        match self {
            Self::Linear { rule, .. } => rule.width(),
            Self::External { top_k } | Self::RankAttention { top_k } => *top_k,
        }
    }

    /// The same router with its parameters elsewhere.
    fn try_map<T>(self, place: impl FnOnce(L) -> Result<T>) -> Result<Router<T>> {
        Ok(match self {
            Self::External { top_k } => Router::External { top_k },
            Self::RankAttention { top_k } => Router::RankAttention { top_k },
            Self::Linear { linear, rule } => Router::Linear { linear: place(linear)?, rule },
        })
    }

    /// Whether the weights are made from h.
    fn attends(&self) -> bool {
        matches!(self, Self::RankAttention { .. })
    }

    /// The launches of routing, as the cost model counts them: the scores of a linear router, or one launch.
    fn scores(&self, linear: impl Fn(&L) -> &LinearRouter) -> usize {
        match self {
            Self::Linear { linear: own, .. } => linear(own).experts(),
            Self::External { .. } => 0,
            Self::RankAttention { .. } => 1,
        }
    }

    /// Refuses a mask where ids are the request's own set already.
    pub(crate) fn check_mask(&self, masked: bool) -> Result<()> {
        if self.attends() && masked {
            let expected = "no mask with rank attention, whose ids are the request's own set";
            return Err(Error::argument(OP, "allow", expected, "one"));
        }
        Ok(())
    }

    /// What the dense form's first product can choose itself; `None`: `route` comes before it, where it comes at all.
    fn gate(
        &self,
        linear: impl Fn(&L) -> &LinearRouter,
        given: bool,
        masked: bool,
    ) -> Option<(&L, Weighting)> {
        match self {
            Self::Linear { linear: own, rule } if rule.is_plain() && linear(own).is_linear() => {
                (!given && !masked).then_some((own, rule.weighting))
            }
            _ => None,
        }
    }
}

/// The sizes of one routing.
fn route_sizes(rows: &Rows, linear: &LinearRouter, rule: Rule) -> route::Sizes {
    let Rows { tokens, x_stride, .. } = *rows;
    // Behind the experts' rows lies a threshold's: checked when the router was set.
    let experts = linear.experts().saturating_sub(rule.select.rows());
    route::Sizes { tokens, in_features: linear.in_features(), x_stride, experts, rule }
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
pub struct Base<W, B = W> {
    /// `[out_features, in_features]`; on the CPU packed by [`Cpu::pack`].
    pub weight: W,
    /// `[out_features]`.
    pub bias: Option<B>,
}

/// Which experts each token takes, in the engine's memory: written by a router, read where it is external.
#[derive(Debug)]
pub struct Routing<'a> {
    /// `[tokens, top_k]`, best first; -1 for none. Read where the router is external or attention.
    pub topk_ids: &'a mut [i32],
    /// `[tokens, top_k]`.
    pub topk_weights: &'a mut [f32],
    /// Which experts the tokens of each request may take; all without it. For the layer's own router.
    pub allow: Option<Allow<&'a [u32]>>,
    /// Ids and weights are there already, also where the layer has a router: it was asked before, of another tensor say.
    pub given: bool,
}

impl<'a> Routing<'a> {
    /// Without a mask; the layer's router fills it, where there is one.
    pub fn new(topk_ids: &'a mut [i32], topk_weights: &'a mut [f32]) -> Self {
        Self { topk_ids, topk_weights, allow: None, given: false }
    }
}

/// A linear layer with LoRA experts on device D.
#[derive(Debug)]
pub struct MoeLora<D: Place> {
    device: D,
    pool: D::Pool,
    router: Router<D::Linear>,
    output: Output,
    form: Option<Form>,
}

impl<D: Place> MoeLora<D> {
    /// The form that [`forward`](MoeLora#method.forward) takes; `None`, as it is unless said otherwise, leaves it to the
    /// [cost model](crate::ops::fused::cost). A form that the device does not offer for a call is an error of the call.
    pub fn with_form(self, form: Option<Form>) -> Self {
        Self { form, ..self }
    }

    /// What the experts' products become; `Sum` unless said otherwise.
    pub fn with_output(self, output: Output) -> Self {
        Self { output, ..self }
    }

    /// Rows of y of a call over `tokens` tokens: one per route for `PerRoute`, one per token otherwise.
    pub fn y_rows(&self, tokens: usize) -> usize {
        self.output.y_rows(tokens, self.router.top_k())
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

    /// The same layer with ids given, over a pool of the same memory: what a store lends. Attention needs no more than ids.
    pub(crate) fn over(&self, pool: D::Pool) -> Self
    where
        D: Clone,
    {
        let top_k = self.router.top_k();
        let router = match self.router.attends() {
            true => Router::RankAttention { top_k },
            false => Router::External { top_k },
        };
        Self { device: self.device.clone(), pool, router, output: self.output, form: self.form }
    }

    /// The same layer with another pool, and what is left of its own.
    pub(crate) fn map_pool<T>(self, map: impl FnOnce(D::Pool) -> Result<(D::Pool, T)>) -> Result<(Self, T)> {
        let (pool, left) = map(self.pool)?;
        Ok((Self { pool, ..self }, left))
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
            attend: attend::Sizes { tokens, top_k, in_features, x_stride, h_stride },
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
            fused: fused::Sizes {
                tokens,
                top_k,
                in_features,
                out_features,
                x_stride,
                y_stride,
                h_stride,
                output,
            },
        }
    }

    /// What the cost model is asked; `router_experts` is 0 where ids are given. Of what a store lent the dense form is not
    /// offered unless demanded: its sums follow the places of the adapters' rows.
    fn problem(&self, slots: &Slots, x: ElementType, router_experts: usize, tokens: usize) -> cost::Problem {
        let live = slots.slots().iter().filter(|s| s.rank > 0);
        let sizes = slots.sizes();
        cost::Problem {
            tokens,
            top_k: self.router.top_k(),
            in_features: sizes.in_features,
            out_features: sizes.out_features,
            x,
            adapters: sizes.element,
            live: live.clone().count(),
            ranks: live.map(|s| s.rank as usize).sum(),
            used_rows: if slots.is_view() && self.form.is_none() { usize::MAX } else { slots.used_rows() },
            router_experts,
            packed: slots.is_packed(),
            output: self.output,
        }
    }

    /// f32 elements of workspace that a call over `tokens` tokens needs for h, or for the dense form's z where a device
    /// of these limits may take that.
    fn h_len(&self, slots: &Slots, h_stride: usize, limits: &cost::Limits, tokens: usize) -> usize {
        let h = self.output.h_rows(tokens, self.router.top_k()).saturating_mul(h_stride);
        let unasked = limits.dense_refused.or(limits.dense_on_demand).is_none();
        let dense = self.form == Some(Form::Dense) || (unasked && slots.used_rows() <= limits.dense_rows);
        if dense { h.max(tokens.saturating_mul(z_stride(slots))) } else { h }
    }

    fn check_forward(&self) -> Result<()> {
        if self.output == Output::PerRoute {
            let expected = "sum or rank_sum (per_route has no row to add to: use forward_delta)";
            return Err(Error::argument(OP, "output", expected, self.output.name()));
        }
        Ok(())
    }

    /// Refuses what rank attention cannot have; `masked` says whether the call has a mask.
    fn check_attention(&self, masked: bool) -> Result<()> {
        if self.router.attends() && self.output == Output::RankSum {
            let expected =
                "sum or per_route with rank attention, whose weights are made from every route's own h";
            return Err(Error::argument(OP, "output", expected, self.output.name()));
        }
        self.router.check_mask(masked)
    }

    /// The device's limits for the layer's router: rank attention needs h before the base product.
    fn limits_of(&self, limits: cost::Limits) -> cost::Limits {
        match self.router.attends() {
            true => cost::Limits { few_tokens: 0, dense_rows: 0, ..limits },
            false => limits,
        }
    }

    /// Refuses a demanded form in which rank attention finds no h.
    fn check_form(&self) -> Result<()> {
        match self.form {
            Some(form @ (Form::Few | Form::Dense)) if self.router.attends() => {
                let expected = "sparse or beside with rank attention, which needs h before the base product";
                Err(Error::argument(OP, "form", expected, form.name()))
            }
            _ => Ok(()),
        }
    }
}

/// Elements from one row of the dense form's z to the next: whole 16-byte parts of every element.
fn z_stride(slots: &Slots) -> usize {
    slots.used_rows().next_multiple_of(8)
}

/// The operations' sizes for one call.
struct Shapes {
    plan: plan::Sizes,
    attend: attend::Sizes,
    shrink: shrink::Sizes,
    base: base::Sizes,
    expand: expand::Sizes,
    fused: fused::Sizes,
}

impl Shapes {
    /// The fused sizes of the dense form, whose rows of z take the place of h.
    fn dense(&self, slots: &Slots) -> fused::Sizes {
        fused::Sizes { h_stride: z_stride(slots), ..self.fused }
    }
}

/// A router fits its pool.
fn check_router<L>(
    router: &Router<L>,
    linear: &LinearRouter,
    sizes: &crate::adapter::slots::PoolSizes,
) -> Result<()> {
    crate::ops::check_equal(OP, "router.in_features", sizes.in_features, linear.in_features())?;
    let Router::Linear { rule, .. } = router else { return Ok(()) };
    rule.check()?;
    let Some(experts) = linear.experts().checked_sub(rule.select.rows()) else {
        return Err(Error::argument(OP, "router.experts", "a row for the threshold", 0));
    };
    if experts.saturating_add(rule.shared) > sizes.experts {
        let expected = format!("at most the pool's {} slots, shared experts included", sizes.experts);
        return Err(Error::argument(OP, "router.experts", expected, experts.saturating_add(rule.shared)));
    }
    if rule.top_k > experts {
        let expected = format!("at most the router's {experts} experts");
        return Err(Error::argument(OP, "router.top_k", expected, rule.top_k));
    }
    Ok(())
}

impl MoeLora<Cpu> {
    /// A layer from a pool and a router.
    pub fn new(cpu: &Cpu, pool: cpu::Pool, router: Router<LinearRouter>) -> Result<Self> {
        let mut layer = Self {
            device: cpu.clone(),
            pool,
            router: Router::External { top_k: 0 },
            output: Output::Sum,
            form: None,
        };
        layer.set_router(router)?;
        Ok(layer)
    }

    /// Another router from the next call on.
    pub fn set_router(&mut self, router: Router<LinearRouter>) -> Result<()> {
        if let Router::Linear { linear, .. } = &router {
            check_router(&router, linear, self.pool.slots().sizes())?;
        }
        self.router = router.try_map(|linear| CpuRouter::new(&self.device, linear))?;
        Ok(())
    }

    /// f32 elements of workspace for calls of at most `tokens` tokens.
    pub fn workspace_len(&self, tokens: usize) -> usize {
        let (slots, limits) = (self.pool.slots(), self.device.fused_limits(&self.ask::<f32>(tokens)));
        self.h_len(slots, slots.max_rank(), &limits, tokens)
    }

    /// Fills the routing from `x [tokens, in_features]`; leaves it alone where the router is external.
    pub fn route<X: Element>(&self, rows: &Rows, x: &[X], routing: &mut Routing) -> Result<()> {
        let Router::Linear { linear, rule } = &self.router else { return Ok(()) };
        let sizes = route_sizes(rows, linear.linear(), *rule);
        let Routing { topk_ids, topk_weights, allow, .. } = routing;
        self.device.route(&sizes, linear, x, *allow, topk_ids, topk_weights)
    }

    fn route_first<X: Element>(&self, rows: &Rows, x: &[X], routing: &mut Routing) -> Result<()> {
        if routing.given { Ok(()) } else { self.route(rows, x, routing) }
    }

    /// `y = x weight^T (+ bias) + experts`. Nothing is written to y when an argument is refused.
    pub fn forward<X: Element>(
        &self,
        rows: &Rows,
        Base { weight, bias }: Base<&cpu::Weight<X>, &[X]>,
        x: &[X],
        routing: &mut Routing,
        workspace: &mut [f32],
        y: &mut [X],
    ) -> Result<()> {
        self.check_forward()?;
        self.check_attention(routing.allow.is_some())?;
        let (form, cpu, pool) = (self.choose::<X>(rows.tokens)?.form, &self.device, &self.pool);
        let shapes = self.shapes(pool.slots(), pool.slots().max_rank(), rows);
        if form == Form::Dense {
            let gate = self.router.gate(CpuRouter::linear, routing.given, routing.allow.is_some());
            if gate.is_none() {
                self.route_first(rows, x, routing)?;
            }
            let (sizes, Routing { topk_ids, topk_weights, .. }) = (shapes.dense(pool.slots()), routing);
            cpu.fused_gate(&sizes, pool, gate, x, topk_ids, topk_weights, workspace)?;
            return cpu.fused_dense(&sizes, pool, weight, bias, x, workspace, y);
        }
        self.route_first(rows, x, routing)?;
        let Routing { topk_ids, topk_weights, given, .. } = routing;
        if form == Form::Few {
            let (ids, weights) = (&**topk_ids, &**topk_weights);
            return cpu.fused_few(&shapes.fused, pool, weight, bias, x, ids, weights, workspace, y);
        }
        let plan = cpu.plan(&shapes.plan, pool, topk_ids)?;
        cpu.shrink(&shapes.shrink, &plan, pool, x, topk_weights, workspace)?;
        if self.router.attends() && !*given {
            cpu.attend(&shapes.attend, &plan, pool, x, workspace, topk_weights)?;
        }
        if form == Form::Sparse {
            let sizes = &shapes.fused;
            return cpu.fused_sparse(sizes, &plan, pool, weight, bias, x, workspace, topk_weights, y);
        }
        plan.check_weights(OP, topk_weights)?;
        cpu.base(&shapes.base, weight, bias, x, y)?;
        cpu.expand(&shapes.expand, &plan, pool, workspace, topk_weights, y)
    }

    /// The form of a call over `tokens` tokens, and why.
    pub fn choose<X: Element>(&self, tokens: usize) -> Result<cost::Choice> {
        self.check_form()?;
        let problem = self.ask::<X>(tokens);
        cost::choose(&problem, &self.limits_of(self.device.fused_limits(&problem)), self.form)
    }

    fn ask<X: Element>(&self, tokens: usize) -> cost::Problem {
        let scores = self.router.scores(CpuRouter::linear);
        self.problem(self.pool.slots(), X::TYPE, scores, tokens)
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
        self.check_attention(routing.allow.is_some())?;
        self.route_first(rows, x, routing)?;
        let shapes = self.shapes(self.pool.slots(), self.pool.slots().max_rank(), rows);
        let plan = self.device.plan(&shapes.plan, &self.pool, routing.topk_ids)?;
        self.device.shrink(&shapes.shrink, &plan, &self.pool, x, routing.topk_weights, workspace)?;
        if self.router.attends() && !routing.given {
            self.device.attend(&shapes.attend, &plan, &self.pool, x, workspace, routing.topk_weights)?;
        }
        self.device.expand(&shapes.expand, &plan, &self.pool, workspace, routing.topk_weights, y)
    }
}
