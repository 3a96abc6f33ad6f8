//! Shrink on CUDA.

use super::{OP, Sizes};
use crate::device::cuda::params::{ShrinkParams, output_word};
use crate::device::cuda::{self, Cuda, Entry, Kernel, Launch, Offer, Plan, Pool, View, ViewMut};
use crate::element::{Element, ElementType};
use crate::error::{Error, Result};
use crate::ops::{Form, Output, check_equal, word};

/// The launch on CUDA for a pool with `live` adapters of at most `max_rank` and a plan of at most `max_tiles` tiles: up to
/// 16 tokens of which experts share few, a block per tile and 8 ranks, for the most blocks; else tiles of 64 routes and 32
/// ranks, on tensor cores where elements and alignment of x (`vector`) allow.
pub fn grid(
    sizes: &Sizes,
    (x, a): (ElementType, ElementType),
    (live, max_rank, max_tiles): (usize, usize, usize),
    vector: bool,
    offer: &Offer,
) -> Launch {
    let routes = sizes.tokens.saturating_mul(sizes.top_k);
    let shared = routes >= live.clamp(1, routes.max(1)).saturating_mul(8);
    let few = !offer.batch_invariant && sizes.tokens <= 16 && !shared;
    let (kernel, form, columns) = match (few, vector && offer.has_mma(x, a)) {
        (true, _) => (Kernel::ShrinkFew, Form::Few, 8),
        (false, false) => (Kernel::ShrinkMany, Form::Many, 32),
        (false, true) => (Kernel::ShrinkMma, Form::Many, 32),
    };
    Launch::over(Entry { kernel, x, a }, form, max_tiles, max_rank, columns)
}

/// f32 elements of scratch that a call on CUDA needs: a row for every route of a `RankSum`, for ranks up to `max_rank`.
pub fn scratch_len(output: Output, routes: usize, max_rank: usize) -> usize {
    if output == Output::RankSum { routes.saturating_mul(max_rank) } else { 0 }
}

impl Cuda {
    /// See the [module](super). Slots that changed since the plan are skipped and set the status word. `scratch` is needed for
    /// `RankSum` alone, see [`scratch_len`].
    #[expect(
        clippy::too_many_arguments,
        reason = "sizes, plan, pool, inputs, output: the order on every device"
    )]
    pub fn shrink<X: Element>(
        &self,
        sizes: &Sizes,
        plan: &Plan,
        pool: &Pool,
        x: &View<X>,
        topk_weights: &View<f32>,
        scratch: Option<&mut ViewMut<f32>>,
        h: &mut ViewMut<f32>,
    ) -> Result<()> {
        let max_rank = pool.max_rank();
        check_equal(OP, "in_features", pool.slots().sizes().in_features, sizes.in_features)?;
        plan.check_pool(OP, self, pool)?;
        sizes.check(plan.sizes(), max_rank, x.len(), topk_weights.len(), h.len())?;
        for (name, len) in [("x", x.len()), ("h", h.len())] {
            word(OP, name, len)?;
        }
        let memory = [
            ("plan", plan.memory.stream()),
            ("x", x.stream()),
            ("topk_weights", topk_weights.stream()),
            ("scratch", scratch.as_ref().and_then(|s| s.stream())),
            ("h", h.stream()),
        ];
        self.check_streams(OP, memory)?;
        if sizes.output != Output::RankSum {
            let params = self.shrink_params(sizes, plan, pool, x, h.address())?;
            return self.shrink_routes::<X>(sizes, plan, pool, params);
        }
        let needed = scratch_len(sizes.output, plan.sizes().routes(), max_rank);
        let got = scratch.as_ref().map_or(0, |s| s.len());
        if got < needed {
            return Err(Error::argument(OP, "scratch", format!("at least {needed} elements"), got));
        }
        word(OP, "scratch", needed)?;
        let routes_h = scratch.map_or(0, |s| s.address());
        let per_route = Sizes { h_stride: max_rank, output: Output::Sum, ..*sizes };
        let params = self.shrink_params(&per_route, plan, pool, x, routes_h)?;
        self.shrink_routes::<X>(&per_route, plan, pool, params)?;
        let params = ShrinkParams {
            topk_weights: topk_weights.address(),
            routes_h,
            ..self.shrink_params(sizes, plan, pool, x, h.address())?
        };
        let rows = if plan.sizes().routes() == 0 { 0 } else { (sizes.tokens * max_rank).div_ceil(128) };
        let launch = Launch::over(Entry::plain(Kernel::ShrinkRankSum), Form::Many, rows, 1, 1);
        self.launch(OP, &launch, &params)
    }

    /// Everything that does not depend on the form.
    fn shrink_params<X: Element>(
        &self,
        sizes: &Sizes,
        plan: &Plan,
        pool: &Pool,
        x: &View<X>,
        h: u64,
    ) -> Result<ShrinkParams> {
        Ok(ShrinkParams {
            plan: plan.params(OP, self, pool)?,
            x: x.address(),
            a: pool.a(),
            topk_weights: 0,
            routes_h: 0,
            h,
            in_features: word(OP, "in_features", sizes.in_features)?,
            x_stride: word(OP, "x_stride", sizes.x_stride)?,
            a_stride: word(OP, "a_stride", pool.a_stride())?,
            h_stride: word(OP, "h_stride", sizes.h_stride)?,
            rank_blocks: 0,
            x_vector: cuda::is_vector(x.address(), sizes.x_stride, size_of::<X>()).into(),
            output: output_word(sizes.output),
            unused: 0,
        })
    }

    /// One row of h per route.
    fn shrink_routes<X: Element>(
        &self,
        sizes: &Sizes,
        plan: &Plan,
        pool: &Pool,
        params: ShrinkParams,
    ) -> Result<()> {
        let elements = (X::TYPE, pool.slots().sizes().element);
        let extent = (pool.live(), pool.max_rank(), plan.layout.max_tiles);
        let launch = grid(sizes, elements, extent, params.x_vector != 0, &self.offer());
        let rank_blocks = word(OP, "rank_blocks", launch.blocks)?;
        self.launch(OP, &launch, &ShrinkParams { rank_blocks, ..params })
    }
}
