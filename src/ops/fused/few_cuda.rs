//! A handful of tokens on CUDA: base and experts in one launch, straight from the ids.

use super::{OP, Sizes};
use crate::adapter::slots::MAX_SLICES;
use crate::device::cuda::params::{FEW_ROUTES, FewParams};
use crate::device::cuda::{self, Cuda, Entry, Kernel, Launch, Offer, Pool, View, ViewMut};
use crate::element::{Element, ElementType};
use crate::error::{Error, Result};
use crate::ops::{Form, Output, check_len, live_tokens_address, word};

/// Ranks that a block takes at a time, and columns of y where tokens are few or in f32 arithmetic.
const ROWS: usize = 16;

/// Columns of y that a block takes on tensor cores from this many tokens on, below which x is a small part of what it reads.
const WIDE_ROWS: usize = 32;
const WIDE_TOKENS: usize = 9;

/// Most blocks that share the ranks of a route: each looks for its expert's other routes, which few need.
const MOST_RANK_BLOCKS: usize = 4;

/// Most tokens of one launch with `top_k` routes each.
pub fn most_tokens(top_k: usize) -> usize {
    (FEW_ROUTES as usize / top_k.max(1)).min(16)
}

/// The launch on CUDA: blocks for the routes' ranks first (`groups - blocks` of them), then one per 16 or 32 columns
/// (`blocks`), on tensor cores where the elements and alignment (`vector`: of x and of the weight) allow.
pub fn grid(
    sizes: &Sizes,
    (x, a): (ElementType, ElementType),
    max_rank: usize,
    vector: bool,
    offer: &Offer,
) -> Launch {
    let kernel = if vector && offer.has_mma(x, a) { Kernel::FusedFewMma } else { Kernel::FusedFew };
    let wide = kernel == Kernel::FusedFewMma && sizes.tokens >= WIDE_TOKENS;
    let (rows, columns) = (usize::from(sizes.tokens > 0), if wide { WIDE_ROWS } else { ROWS });
    let launch = Launch::over(Entry { kernel, x, a }, Form::Few, rows, sizes.out_features, columns);
    let jobs = sizes.routes().saturating_mul(rank_blocks(max_rank));
    Launch { groups: launch.groups.saturating_add(jobs), ..launch }
}

/// Blocks for a route: at least one, which also says what is wrong with its id.
fn rank_blocks(max_rank: usize) -> usize {
    max_rank.div_ceil(ROWS).clamp(1, MOST_RANK_BLOCKS)
}

impl Cuda {
    /// Base and experts of a handful of tokens ([`most_tokens`]) straight from their ids, in one launch; `h` is scratch.
    /// A token's bits do not depend on the others.
    ///
    /// Ids mean the adapters that are in the pool when the launch runs. An id that is neither -1 nor below the pool's
    /// experts, an empty slot, a weight that is not finite, and an adapter above the largest rank that the launch was made
    /// for count for nothing and set the status word. Launches share counters in device memory that each leaves at zero:
    /// graphs captured from one handle, clones included, must not run beside one another or beside its calls.
    #[expect(clippy::too_many_arguments, reason = "sizes, pool, inputs, output: the order on every device")]
    pub fn fused_few<X: Element>(
        &self,
        sizes: &Sizes,
        pool: &Pool,
        weight: &View<X>,
        bias: Option<&View<X>>,
        x: &View<X>,
        topk_ids: &View<i32>,
        topk_weights: &View<f32>,
        live_tokens: Option<&View<u32>>,
        h: &mut ViewMut<f32>,
        y: &mut ViewMut<X>,
    ) -> Result<()> {
        let (slots, max_rank) = (pool.slots(), pool.max_rank());
        sizes.check(slots, weight.len(), bias.map(|b| b.len()), x.len(), y.len())?;
        sizes.check_h(None, max_rank, h.len(), topk_weights.len())?;
        check_len(OP, "topk_ids", sizes.routes(), topk_ids.len())?;
        pool.check_stream(OP, self)?;
        if sizes.output != Output::Sum {
            return Err(Error::argument(OP, "output", "sum for the few form", sizes.output.name()));
        }
        let most = most_tokens(sizes.top_k);
        if sizes.tokens > most {
            let expected = format!("at most {most} for the few form with top_k {}", sizes.top_k);
            return Err(Error::argument(OP, "tokens", expected, sizes.tokens));
        }
        for (name, len) in [("weight", weight.len()), ("x", x.len()), ("h", h.len()), ("y", y.len())] {
            word(OP, name, len)?;
        }
        let memory = [
            ("weight", weight.stream()),
            ("bias", bias.and_then(View::stream)),
            ("x", x.stream()),
            ("topk_ids", topk_ids.stream()),
            ("topk_weights", topk_weights.stream()),
            ("live_tokens", live_tokens.and_then(View::stream)),
            ("h", h.stream()),
            ("y", y.stream()),
        ];
        self.check_streams(OP, memory)?;
        let bytes = size_of::<X>();
        let x_vector = cuda::is_vector(x.address(), sizes.x_stride, bytes);
        let w_vector = cuda::is_vector(weight.address(), sizes.in_features, bytes);
        let elements = (X::TYPE, slots.sizes().element);
        let launch = grid(sizes, elements, max_rank, x_vector && w_vector, &self.offer());
        let mut slice_ends = [word(OP, "out_features", sizes.out_features)?; MAX_SLICES];
        let mut end = 0;
        for (slice, width) in slice_ends.iter_mut().zip(slots.slices()) {
            end += *width as u32;
            *slice = end;
        }
        let params = FewParams {
            slots: pool.table(),
            status: self.status_address(),
            counters: self.counters_address(),
            live_tokens: live_tokens_address(OP, live_tokens)?,
            topk_ids: topk_ids.address(),
            topk_weights: topk_weights.address(),
            x: x.address(),
            weight: weight.address(),
            bias: bias.map_or(0, |b| b.address()),
            a: pool.a(),
            b: pool.b(),
            h: h.address(),
            y: y.address(),
            tokens: word(OP, "tokens", sizes.tokens)?,
            top_k: word(OP, "top_k", sizes.top_k)?,
            experts: word(OP, "experts", slots.sizes().experts)?,
            max_rank: word(OP, "max_rank", max_rank)?,
            in_features: word(OP, "in_features", sizes.in_features)?,
            out_features: word(OP, "out_features", sizes.out_features)?,
            x_stride: word(OP, "x_stride", sizes.x_stride)?,
            y_stride: word(OP, "y_stride", sizes.y_stride)?,
            a_stride: word(OP, "a_stride", pool.a_stride())?,
            b_stride: word(OP, "b_stride", pool.b_stride())?,
            h_stride: word(OP, "h_stride", sizes.h_stride)?,
            rank_blocks: word(OP, "rank_blocks", rank_blocks(max_rank))?,
            shrink_jobs: word(OP, "routes", launch.groups - launch.blocks.min(launch.groups))?,
            x_vector: x_vector.into(),
            w_vector: w_vector.into(),
            slices: word(OP, "slices", slots.slices().len())?,
            slice_ends,
            rows: word(OP, "rows", launch.columns)?,
            unused: 0,
        };
        self.launch(OP, &launch, &params)
    }
}
