//! Expand: `y_t (+)= sum_n w_n scaling_{p(n)} B_{p(n)} h_n` over the routes n of token t, or one row per route.
//!
//! `y [tokens, out_features]` for `Sum` and `RankSum` (whose h has one row per token), `z [routes,
//! out_features]` without the weights for `PerRoute`. Adds to y or overwrites it; a row without an expert is
//! left alone when adding and set to 0 when overwriting. y is rounded once.

#[cfg(feature = "cuda")]
pub mod cuda;

use super::{Expert, Output, check_equal, check_experts, check_len, check_rows, plan::Plan};
#[cfg(feature = "wgpu")]
use super::{Form, Grid, LANES, LANES_CHUNKS, LANES_RANKS, LANES_ROUTES, check_packed, word};
#[cfg(feature = "wgpu")]
use crate::ElementType;
use crate::device::cpu::{Cpu, Extension, Pool};
#[cfg(feature = "wgpu")]
use crate::device::wgpu::{self as device, Access, Binding, Launch, Path, Tuning, View, Wgpu};
use crate::element::Element;
use crate::error::Result;

const OP: &str = "expand";

/// Sizes of an expand.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Sizes {
    /// Tokens.
    pub tokens: usize,
    /// Routes per token.
    pub top_k: usize,
    /// Columns of y; rows of every `lora_b`.
    pub out_features: usize,
    /// Elements from one row of h to the next; at least the largest rank in use.
    pub h_stride: usize,
    /// Elements from one row of y to the next.
    pub y_stride: usize,
    /// What the rows of h and y are.
    pub output: Output,
    /// Add to y instead of overwriting it.
    pub accumulate: bool,
}

impl Sizes {
    /// Refuses lengths that do not fit; lengths in elements, `max_rank` over the pool's live slots.
    pub fn check(
        &self,
        plan: &super::plan::Sizes,
        max_rank: usize,
        h: usize,
        topk_weights: usize,
        y: usize,
    ) -> Result<()> {
        check_equal(OP, "plan.tokens", self.tokens, plan.tokens)?;
        check_equal(OP, "plan.top_k", self.top_k, plan.top_k)?;
        check_rows(OP, "h", (self.output.h_rows(self.tokens, self.top_k), max_rank, self.h_stride), h)?;
        check_len(OP, "topk_weights", plan.routes(), topk_weights)?;
        let rows = self.output.y_rows(self.tokens, self.top_k);
        check_rows(OP, "y", (rows, self.out_features, self.y_stride), y)
    }

    /// Which routes end in row `row` of y.
    pub(crate) fn routes_of_row(&self, row: usize) -> std::ops::Range<usize> {
        match self.output {
            Output::PerRoute => row..row + 1,
            Output::Sum | Output::RankSum => row * self.top_k..(row + 1) * self.top_k,
        }
    }

    /// Which row of h route n reads.
    pub(crate) const fn h_row(&self, n: usize) -> usize {
        match self.output {
            Output::RankSum => n / self.top_k,
            Output::Sum | Output::PerRoute => n,
        }
    }
}

/// The definition: three loops, every sum in f64, rounded to the element once.
pub fn definition<Y: Element, A: Element>(
    sizes: &Sizes,
    plan: &Plan,
    experts: &[Expert<A>],
    h: &[f32],
    topk_weights: &[f32],
    y: &mut [Y],
) -> Result<()> {
    let max_rank = experts.iter().map(|e| e.rank).max().unwrap_or(0);
    check_experts(OP, plan, experts, sizes.out_features, |e| e.lora_b.len())?;
    sizes.check(plan.sizes(), max_rank, h.len(), topk_weights.len(), y.len())?;
    if sizes.output != Output::PerRoute {
        plan.check_weights(OP, topk_weights)?;
    }
    for row in 0..sizes.output.y_rows(sizes.tokens, sizes.top_k) {
        let routes: Vec<usize> = sizes.routes_of_row(row).filter(|&n| plan.topk_ids()[n] >= 0).collect();
        if routes.is_empty() && sizes.accumulate {
            continue;
        }
        for o in 0..sizes.out_features {
            let place = &mut y[row * sizes.y_stride + o];
            let mut sum = if sizes.accumulate { f64::from(place.to_f32()) } else { 0.0 };
            for &n in &routes {
                let expert = &experts[plan.topk_ids()[n] as usize];
                let weight = if sizes.output == Output::PerRoute { 1.0 } else { f64::from(topk_weights[n]) };
                for r in 0..expert.rank {
                    let (b, h) =
                        (expert.lora_b[o * expert.rank + r].to_f32(), h[sizes.h_row(n) * sizes.h_stride + r]);
                    sum += weight * f64::from(expert.scaling) * f64::from(b) * f64::from(h);
                }
            }
            *place = Y::from_f32(sum as f32);
        }
    }
    Ok(())
}

/// Columns of a workgroup: four for each of its 64 lanes.
#[cfg(feature = "wgpu")]
const COLUMNS: usize = 256;

/// Whether many tokens run on lanes: these keep their sums in y itself, which is f32 then, in whole fours.
#[cfg(feature = "wgpu")]
fn on_lanes(sizes: &Sizes, y: ElementType, tuning: &Tuning) -> bool {
    tuning.path == Path::Lanes && y == ElementType::F32 && sizes.out_features.is_multiple_of(4)
}

/// The launch for a pool with `live` adapters, a plan of `chunks` chunks and y of this element: a workgroup per row and 256
/// columns until the routes of a chunk share experts; from there one per chunk of tokens, or per 16 of them on lanes.
#[cfg(feature = "wgpu")]
pub fn grid(
    sizes: &Sizes,
    y: ElementType,
    live: usize,
    chunks: usize,
    tuning: &Tuning,
    batch_invariant: bool,
) -> Grid {
    let routes = sizes.tokens * sizes.top_k;
    let per_chunk = routes.div_ceil(chunks.max(1));
    let many =
        routes > 0 && (batch_invariant || (sizes.tokens >= tuning.expand_many && per_chunk >= 2 * live));
    let (form, rows, columns) = match many {
        true if on_lanes(sizes, y, tuning) => {
            (Form::Many, chunks.div_ceil(LANES_CHUNKS), tuning.lane_columns())
        }
        true => (Form::Many, chunks, COLUMNS),
        false => (Form::Few, sizes.output.y_rows(sizes.tokens, sizes.top_k), COLUMNS),
    };
    let blocks = sizes.out_features.div_ceil(columns);
    Grid { form, columns, blocks, groups: rows * blocks }
}

impl Cpu {
    /// See the [module](self). A row adds its routes' sums over the ranks one after
    /// another, adapters ascending: batch-invariant.
    pub fn expand<Y: Element>(
        &self,
        sizes: &Sizes,
        plan: &Plan,
        pool: &Pool,
        h: &[f32],
        topk_weights: &[f32],
        y: &mut [Y],
    ) -> Result<()> {
        let slots = pool.slots();
        check_equal(OP, "out_features", slots.sizes().out_features, sizes.out_features)?;
        slots.check_not_packed(OP)?;
        sizes.check(plan.sizes(), slots.max_rank(), h.len(), topk_weights.len(), y.len())?;
        if sizes.output != Output::PerRoute {
            plan.check_weights(OP, topk_weights)?;
        }
        plan.check_pool(OP, pool)?;
        let routes = |row: usize| {
            let live = sizes.routes_of_row(row).filter(|&n| plan.topk_ids()[n] >= 0);
            live.map(|n| {
                let id = plan.topk_ids()[n] as usize;
                let weight = if sizes.output == Output::PerRoute { 1.0 } else { topk_weights[n] };
                (id, weight, &h[sizes.h_row(n) * sizes.h_stride..][..slots.slots()[id].rank as usize])
            })
        };
        let rows = sizes.output.y_rows(sizes.tokens, sizes.top_k);
        let extension = Extension::new(slots, rows, routes);
        extension.add_to(self, pool, y, (sizes.out_features, sizes.y_stride), sizes.accumulate);
        Ok(())
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
    pub fn expand<Y: Element>(
        &self,
        encoder: &mut wgpu::CommandEncoder,
        sizes: &Sizes,
        plan: &device::Plan,
        pool: &device::Pool,
        h: View<f32>,
        topk_weights: View<f32>,
        y: View<Y>,
    ) -> Result<()> {
        let slots = pool.slots();
        check_equal(OP, "out_features", slots.sizes().out_features, sizes.out_features)?;
        slots.check_not_packed(OP)?;
        plan.check_pool(OP, pool)?;
        sizes.check(plan.sizes(), slots.max_rank(), h.len(), topk_weights.len(), y.len())?;
        check_packed::<Y>(OP, "y", sizes.y_stride, y.len())?;
        let (chunks, tuning) = (plan.layout.chunks, self.tuning());
        let grid = grid(sizes, Y::TYPE, pool.live(), chunks, tuning, self.is_batch_invariant());
        let mut params = plan.params()?.to_vec();
        params.extend([
            ("out_features", word(OP, "out_features", sizes.out_features)?),
            ("b_stride", word(OP, "b_stride", pool.b_stride())?),
            ("h_stride", word(OP, "h_stride", sizes.h_stride)?),
            ("y_stride", word(OP, "y_stride", sizes.y_stride)?),
            ("column_blocks", word(OP, "out_features", grid.blocks)?),
        ]);
        let on_lanes = grid.form == Form::Many && on_lanes(sizes, Y::TYPE, tuning);
        let body = [include_str!("../../shaders/expand.wgsl")];
        let lanes = [LANES[0], LANES_RANKS, LANES_ROUTES, include_str!("../../shaders/expand_lanes.wgsl")];
        let launch = Launch {
            op: OP,
            entry: match grid.form {
                Form::Few => "expand_few",
                Form::Many if on_lanes => "expand_lanes",
                Form::Many => "expand_many",
            },
            body: &[&body[..], if on_lanes { &lanes } else { &[] }].concat(),
            constants: &[
                ("OWNERS", tuning.owners),
                ("CHUNKS", LANES_CHUNKS as u32),
                ("ROWS", device::CHUNK_TOKENS as u32),
                ("COLUMNS", COLUMNS as u32),
                ("PER_ROUTE", u32::from(sizes.output == Output::PerRoute)),
                ("RANK_SUM", u32::from(sizes.output == Output::RankSum)),
                ("ACCUMULATE", u32::from(sizes.accumulate)),
            ],
            params: &params,
            bindings: &[
                Binding::rows("h", h, sizes.h_stride),
                Binding::pool_b("b", pool),
                Binding::slots(pool),
                Binding::table("plan", "array<u32>", Access::Read, &plan.buffer),
                Binding::read("topk_weights", topk_weights),
                Binding::rows_written("y", y, sizes.y_stride),
                Binding::status(self),
            ],
            groups: word(OP, "tokens", grid.groups)?,
        };
        self.launch(encoder, &launch)
    }
}
