//! Shrink: `h_n = A_{p(n)} x_{t(n)}` for every live route n; f32, `[routes, h_stride]`.
//!
//! For [`Output::RankSum`] one row per token: `h_t = sum_n w_n A_{p(n)} x_t` in slot order, which needs one
//! rank within a token. Columns from an expert's rank up to `h_stride`, and the rows of routes without an
//! expert, are not written.

#[cfg(feature = "cuda")]
pub mod cuda;

use super::{Expert, Output, check_equal, check_experts, check_len, check_rows, plan::Plan};
#[cfg(feature = "wgpu")]
use super::{Form, word};
#[cfg(feature = "wgpu")]
use super::{Grid, LANES, NOTHING_BEHIND, ROWS_IN_ORDER, SHARED_ROWS, check_packed, sums, tile_constants};
use crate::device::cpu::{Cpu, Group, Pool, SharedMut, Wide};
#[cfg(feature = "wgpu")]
use crate::device::wgpu::{self as device, Access, Binding, Launch, Path, TILE_ROWS, Tuning, View, Wgpu};
use crate::element::Element;
use crate::error::{Error, Result};

const OP: &str = "shrink";

/// Sizes of a shrink.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Sizes {
    /// Rows of x.
    pub tokens: usize,
    /// Routes per token.
    pub top_k: usize,
    /// Columns of x and of every `lora_a`.
    pub in_features: usize,
    /// Elements from one row of x to the next.
    pub x_stride: usize,
    /// Elements from one row of h to the next; at least the largest rank in use.
    pub h_stride: usize,
    /// Rows of h: per token for `RankSum`, per route otherwise.
    pub output: Output,
}

impl Sizes {
    /// Refuses lengths that do not fit; lengths in elements, `max_rank` over the pool's live slots.
    pub fn check(
        &self,
        plan: &super::plan::Sizes,
        max_rank: usize,
        x: usize,
        topk_weights: usize,
        h: usize,
    ) -> Result<()> {
        check_equal(OP, "plan.tokens", self.tokens, plan.tokens)?;
        check_equal(OP, "plan.top_k", self.top_k, plan.top_k)?;
        check_rows(OP, "x", (self.tokens, self.in_features, self.x_stride), x)?;
        check_len(OP, "topk_weights", plan.routes(), topk_weights)?;
        let rows = self.output.h_rows(self.tokens, self.top_k);
        check_rows(OP, "h", (rows, max_rank, self.h_stride), h)
    }
}

/// Refuses a token whose experts differ in rank, which [`Output::RankSum`] cannot add.
///
/// `rank_of(id)` is the rank of a live id.
pub(crate) fn check_equal_ranks(plan: &Plan, rank_of: impl Fn(usize) -> usize) -> Result<()> {
    let sizes = plan.sizes();
    for t in 0..sizes.tokens {
        let mut ranks = plan.topk_ids()[t * sizes.top_k..(t + 1) * sizes.top_k]
            .iter()
            .filter(|&&id| id >= 0)
            .map(|&id| rank_of(id as usize));
        if let Some(first) = ranks.next()
            && let Some(other) = ranks.find(|&r| r != first)
        {
            return Err(Error::argument(
                OP,
                format!("topk_ids[{t}]"),
                format!("experts of one rank for rank_sum ({first})"),
                other,
            ));
        }
    }
    Ok(())
}

/// The definition: three loops, every sum in f64, rounded to f32 once.
pub fn definition<X: Element, A: Element>(
    sizes: &Sizes,
    plan: &Plan,
    experts: &[Expert<A>],
    x: &[X],
    topk_weights: &[f32],
    h: &mut [f32],
) -> Result<()> {
    let max_rank = experts.iter().map(|e| e.rank).max().unwrap_or(0);
    check_experts(OP, plan, experts, sizes.in_features, |e| e.lora_a.len())?;
    sizes.check(plan.sizes(), max_rank, x.len(), topk_weights.len(), h.len())?;
    if sizes.output == Output::RankSum {
        plan.check_weights(OP, topk_weights)?;
    }
    let product = |n: usize, r: usize| -> f64 {
        let (t, expert) = (n / sizes.top_k, &experts[plan.topk_ids()[n] as usize]);
        (0..sizes.in_features)
            .map(|i| {
                f64::from(expert.lora_a[r * sizes.in_features + i].to_f32())
                    * f64::from(x[t * sizes.x_stride + i].to_f32())
            })
            .sum()
    };
    let live = |n: &usize| plan.topk_ids()[*n] >= 0;
    let rank = |n: usize| experts[plan.topk_ids()[n] as usize].rank;
    if sizes.output == Output::RankSum {
        check_equal_ranks(plan, |id| experts[id].rank)?;
        for t in 0..sizes.tokens {
            let routes: Vec<usize> = (t * sizes.top_k..(t + 1) * sizes.top_k).filter(live).collect();
            let Some(&first) = routes.first() else { continue };
            for r in 0..rank(first) {
                let sum: f64 = routes.iter().map(|&n| f64::from(topk_weights[n]) * product(n, r)).sum();
                h[t * sizes.h_stride + r] = sum as f32;
            }
        }
    } else {
        for n in (0..sizes.tokens * sizes.top_k).filter(live) {
            for r in 0..rank(n) {
                h[n * sizes.h_stride + r] = product(n, r) as f32;
            }
        }
    }
    Ok(())
}

/// The launch for a pool with `live` adapters of at most `max_rank` and a plan of at most `max_tiles` tiles: tiles of 64
/// routes once an expert has 8 on average, a workgroup per route and 8 ranks below.
#[cfg(feature = "wgpu")]
pub fn grid(
    sizes: &Sizes,
    (live, max_rank, max_tiles): (usize, usize, usize),
    tuning: &Tuning,
    batch_invariant: bool,
) -> Grid {
    let routes = sizes.tokens * sizes.top_k;
    let many = batch_invariant || routes >= tuning.shrink_share * live.clamp(1, routes.max(1));
    let (form, columns, rows) = match (many, max_rank) {
        (false, _) => (Form::Few, 8, routes),
        (true, _) if tuning.path == Path::Lanes => (Form::Many, SHARED_ROWS, max_tiles),
        (true, ..=16) => (Form::Many, 16, max_tiles),
        (true, ..=32) => (Form::Many, 32, max_tiles),
        (true, _) => (Form::Many, 64, max_tiles),
    };
    let blocks = max_rank.div_ceil(columns);
    Grid { form, columns, blocks, groups: rows * blocks }
}

impl Cpu {
    /// See the [module](self).
    pub fn shrink<X: Element>(
        &self,
        sizes: &Sizes,
        plan: &Plan,
        pool: &Pool,
        x: &[X],
        topk_weights: &[f32],
        h: &mut [f32],
    ) -> Result<()> {
        let slots = pool.slots();
        check_equal(OP, "in_features", slots.sizes().in_features, sizes.in_features)?;
        sizes.check(plan.sizes(), slots.max_rank(), x.len(), topk_weights.len(), h.len())?;
        if sizes.output == Output::RankSum {
            plan.check_weights(OP, topk_weights)?;
        }
        plan.check_pool(OP, pool)?;
        let per_route = |h: &mut [f32], h_stride: usize| {
            let sizes = Sizes { h_stride, ..*sizes };
            self.shrink_routes(&sizes, plan, pool, x, h);
        };
        if sizes.output != Output::RankSum {
            per_route(h, sizes.h_stride);
            return Ok(());
        }
        let rank_of = |id: usize| slots.slots()[id].rank as usize;
        check_equal_ranks(plan, rank_of)?;
        let width = slots.max_rank();
        let mut routes = vec![0f32; plan.sizes().routes() * width];
        per_route(&mut routes, width);
        for t in 0..sizes.tokens {
            let mut live =
                (t * sizes.top_k..(t + 1) * sizes.top_k).filter(|&n| plan.topk_ids()[n] >= 0).peekable();
            let Some(&first) = live.peek() else { continue };
            let row = &mut h[t * sizes.h_stride..][..rank_of(plan.topk_ids()[first] as usize)];
            row.fill(0.0);
            for n in live {
                for (sum, v) in row.iter_mut().zip(&routes[n * width..]) {
                    *sum += topk_weights[n] * v;
                }
            }
        }
        Ok(())
    }

    /// One row of h per route, adapter by adapter.
    fn shrink_routes<X: Element>(&self, sizes: &Sizes, plan: &Plan, pool: &Pool, x: &[X], h: &mut [f32]) {
        let x = Wide::new(self, x, (sizes.tokens, sizes.in_features, sizes.x_stride));
        let group = |slot| Group { slot, rows: plan.routes_of(slot).len() };
        let groups: Vec<Group> = plan.live_experts().map(group).collect();
        let route = |group: usize, i: usize| plan.routes_of(groups[group].slot)[i] as usize;
        let place = SharedMut::new(h);
        let put = |group: usize, i: usize, products: &[f32]| {
            // SAFETY: every route has a row of its own, and is put once.
            let row = unsafe { place.part(route(group, i) * sizes.h_stride, products.len()) };
            row.copy_from_slice(products);
        };
        self.rank_products(pool, &x, &groups, |group, i| route(group, i) / sizes.top_k, put);
    }
}

#[cfg(feature = "wgpu")]
impl Wgpu {
    /// See the [module](self). Records into `encoder`; slots that changed since the plan are skipped and set the
    /// status word.
    #[expect(
        clippy::too_many_arguments,
        reason = "sizes, plan, pool, inputs, output: the order on every device"
    )]
    pub fn shrink<X: Element>(
        &self,
        encoder: &mut wgpu::CommandEncoder,
        sizes: &Sizes,
        plan: &device::Plan,
        pool: &device::Pool,
        x: View<X>,
        topk_weights: View<f32>,
        h: View<f32>,
    ) -> Result<()> {
        let max_rank = pool.slots().max_rank();
        check_equal(OP, "in_features", pool.slots().sizes().in_features, sizes.in_features)?;
        plan.check_pool(OP, pool)?;
        sizes.check(plan.sizes(), max_rank, x.len(), topk_weights.len(), h.len())?;
        check_packed::<X>(OP, "x", sizes.x_stride, x.len())?;
        if sizes.output != Output::RankSum {
            return self.shrink_routes(encoder, sizes, plan, pool, x, h);
        }
        let routes = sizes.tokens * sizes.top_k;
        let per_route = self.storage("routes_h", (routes * max_rank * 4) as u64)?;
        let inner = Sizes { h_stride: max_rank, output: Output::Sum, ..*sizes };
        self.shrink_routes(encoder, &inner, plan, pool, x, View::whole(&per_route))?;
        let mut params = plan.params()?.to_vec();
        params.push(("h_width", word(OP, "max_rank", max_rank)?));
        params.push(("h_stride", word(OP, "h_stride", sizes.h_stride)?));
        let launch = Launch {
            op: OP,
            entry: "shrink_rank_sum",
            body: &[include_str!("../../shaders/shrink_rank_sum.wgsl")],
            constants: &[],
            params: &params,
            bindings: &[
                Binding::slots(pool),
                Binding::table("plan", "array<u32>", Access::Read, &plan.buffer),
                Binding::read("topk_weights", topk_weights),
                Binding::read("routes_h", View::<f32>::whole(&per_route)),
                Binding::write("h", h),
                Binding::status(self),
            ],
            groups: if routes == 0 { 0 } else { word(OP, "tokens", (sizes.tokens * max_rank).div_ceil(64))? },
        };
        self.launch(encoder, &launch)
    }

    fn shrink_routes<X: Element>(
        &self,
        encoder: &mut wgpu::CommandEncoder,
        sizes: &Sizes,
        plan: &device::Plan,
        pool: &device::Pool,
        x: View<X>,
        h: View<f32>,
    ) -> Result<()> {
        let slots = pool.slots();
        let extent = (pool.live(), slots.max_rank(), plan.layout.max_tiles);
        let (tuning, form) = (self.tuning(), self.is_batch_invariant());
        let grid = grid(sizes, extent, tuning, form);
        let on_lanes = grid.form == Form::Many && tuning.path == Path::Lanes;
        let mut params = plan.params()?.to_vec();
        params.extend([
            ("in_features", word(OP, "in_features", sizes.in_features)?),
            ("x_stride", word(OP, "x_stride", sizes.x_stride)?),
            ("a_stride", word(OP, "a_stride", pool.a_stride())?),
            ("h_stride", word(OP, "h_stride", sizes.h_stride)?),
            ("rank_blocks", word(OP, "rank_blocks", grid.blocks)?),
        ]);
        let [place, sum] = sums(tuning);
        let tiles = [
            place,
            sum,
            NOTHING_BEHIND,
            ROWS_IN_ORDER,
            include_str!("../../shaders/rows.wgsl"),
            include_str!("../../shaders/tile.wgsl"),
            include_str!("../../shaders/shrink.wgsl"),
        ];
        let lanes = [LANES[1], include_str!("../../shaders/shrink_lanes.wgsl")];
        let columns = if grid.form == Form::Few { 16 } else { grid.columns };
        let [tile_m, tile_n, wide] = tile_constants(columns, tuning.wide_tiles);
        let launch = Launch {
            op: OP,
            entry: match grid.form {
                Form::Few => "shrink_few",
                Form::Many if on_lanes => "shrink_lanes",
                Form::Many => "shrink_many",
            },
            body: &[&tiles[..], if on_lanes { &lanes } else { &[] }].concat(),
            // A lane owns eight routes of a tile.
            constants: &[tile_m, tile_n, wide, ("OWNERS", TILE_ROWS as u32 / 8)],
            params: &params,
            bindings: &[
                Binding::rows("x", x, sizes.x_stride),
                Binding::pool_a("w", pool),
                Binding::slots(pool),
                Binding::table("plan", "array<u32>", Access::Read, &plan.buffer),
                Binding::write("h", h),
                Binding::status(self),
            ],
            groups: word(OP, "tokens", grid.groups)?,
        };
        self.launch(encoder, &launch)
    }
}
