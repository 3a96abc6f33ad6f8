//! The dense form's first product on CUDA, and the rows that let an engine compute the second one itself.

use super::{OP, Sizes, check_concat};
use crate::device::cuda::params::{ConcatParams, GATE_EXPERTS, GATE_ROWS, GateParams, type_word};
use crate::device::cuda::{self, Cuda, Entry, Kernel, Launch, Offer, Pool, View, ViewMut};
use crate::element::{Element, ElementType};
use crate::error::{Error, Result};
use crate::ops::fused::check_gate_router;
use crate::ops::route::{self, CudaRouter, Rule, Weighting};
use crate::ops::{Form, check_equal, check_routes, check_rows, live_tokens_address, span, word};

/// Most rows of A of one launch.
pub const MAX_ROWS: usize = GATE_ROWS as usize;

/// Most scores of a router that the launch computes itself: of more, routing is a launch before it.
pub const MAX_EXPERTS: usize = GATE_EXPERTS as usize;

/// Tokens of a block.
const TOKENS: usize = 16;

/// Rows of fused_concat that a block takes, and its columns of the weight or rows of B.
const CONCAT: [usize; 3] = [32, 256, 32];

/// The launch of [`Cuda::fused_gate`]: a block for 16 tokens and all columns of z, on tensor cores where the elements and
/// alignment (`vector`: of x) allow.
pub fn grid(tokens: usize, (x, a): (ElementType, ElementType), vector: bool, offer: &Offer) -> Launch {
    let entry = if vector && offer.has_mma(x, a) {
        Entry { kernel: Kernel::FusedGateMma, x, a }
    } else {
        Entry::plain(Kernel::FusedGate)
    };
    Launch::over(entry, Form::Many, tokens.div_ceil(TOKENS), 1, 1)
}

/// The launch of [`Cuda::fused_concat`]: for every 32 rows the blocks of the weight (as many as said), then those of B.
pub fn concat_grid(in_features: usize, out_features: usize, columns: usize) -> (Launch, usize) {
    let [rows, across, ranks] = CONCAT;
    let weight = in_features.div_ceil(across);
    let blocks = weight + columns.div_ceil(ranks);
    (
        Launch::over(Entry::plain(Kernel::FusedConcat), Form::Many, out_features.div_ceil(rows), blocks, 1),
        weight,
    )
}

/// Columns of z that a launch writes: up to the next multiple of 8, zeros behind `columns`, where z has room for them in
/// every row. `x`: address, elements, width and stride of x, in whose rows z may lie, but not where x is read.
fn written_columns(
    sizes: &Sizes,
    columns: usize,
    bytes: usize,
    (x, x_len): (u64, usize),
    (z, z_len): (u64, usize),
) -> Result<usize> {
    let padded = columns.next_multiple_of(8);
    let mut room = sizes.h_stride;
    let ends = |at: u64, len: usize| at.saturating_add(len as u64 * bytes as u64);
    if x < ends(z, z_len) && z < ends(x, x_len) {
        let offset = z.wrapping_sub(x) as usize / bytes;
        room = sizes.x_stride.saturating_sub(offset);
        if z < x || sizes.h_stride != sizes.x_stride || offset < sizes.in_features || room < columns {
            let expected = "memory beside x, or columns of x's rows behind in_features, of x's stride";
            return Err(Error::argument(OP, "z", expected, "memory that x is read from"));
        }
    }
    let fits = room >= padded && z_len >= span(sizes.tokens, padded, sizes.h_stride);
    Ok(if fits { padded } else { columns })
}

impl Cuda {
    /// The dense form's first product in one launch; see [`Cpu::fused_gate`](crate::Cpu::fused_gate). z has the element type
    /// of x. With a router of more than [`MAX_EXPERTS`] experts routing is a launch before it.
    ///
    /// z may be columns of x's own rows behind `in_features` (`[x | z]`, see [`Cuda::fused_concat`]), with x's stride. Where
    /// its rows have room, z's columns are zeros up to the next multiple of 8. A token's bits do not depend on its batch.
    ///
    /// In f16, z beyond 65,504 is infinite, and its token's row of y with it: no other form has that limit.
    ///
    /// Ids mean the adapters that are in the pool when the launch runs; columns are those of the pool when it was enqueued.
    /// Tokens from `live_tokens` on are neither read nor written. The status word tells of ids out of range, empty slots,
    /// weights and scores that are not finite, and adapters that lie behind the launch's columns: all count for nothing.
    ///
    /// # Errors
    /// Sizes that do not fit, a packed pool, more than [`MAX_ROWS`] used rows, z where x is read.
    #[expect(clippy::too_many_arguments, reason = "sizes, pool, inputs, outputs: the order on every device")]
    pub fn fused_gate<X: Element>(
        &self,
        sizes: &Sizes,
        pool: &Pool,
        router: Option<(&CudaRouter, Weighting)>,
        x: &View<X>,
        live_tokens: Option<&View<u32>>,
        topk_ids: &mut ViewMut<i32>,
        topk_weights: &mut ViewMut<f32>,
        z: &mut ViewMut<X>,
    ) -> Result<()> {
        let slots = pool.slots();
        let Sizes { tokens, top_k, in_features, x_stride, .. } = *sizes;
        check_equal(OP, "in_features", slots.sizes().in_features, in_features)?;
        check_routes(OP, tokens, top_k)?;
        check_rows(OP, "x", (tokens, in_features, x_stride), x.len())?;
        sizes.check_z(slots, z.len(), topk_ids.len(), topk_weights.len())?;
        pool.check_stream(OP, self)?;
        let columns = slots.used_rows();
        if columns > MAX_ROWS {
            let expected = format!("at most {MAX_ROWS} for the dense form");
            return Err(Error::argument(OP, "pool's used rows", expected, columns));
        }
        word(OP, "x", x.len())?;
        word(OP, "z", z.len())?;
        let memory = [
            ("x", x.stream()),
            ("live_tokens", live_tokens.and_then(View::stream)),
            ("topk_ids", topk_ids.stream()),
            ("topk_weights", topk_weights.stream()),
            ("z", z.stream()),
        ];
        self.check_streams(OP, memory)?;
        let bytes = size_of::<X>();
        let z_columns =
            written_columns(sizes, columns, bytes, (x.address(), x.len()), (z.address(), z.len()))?;
        let mut params = GateParams {
            slots: pool.table(),
            status: self.status_address(),
            live_tokens: live_tokens_address(OP, live_tokens)?,
            topk_ids: topk_ids.address(),
            topk_weights: topk_weights.address(),
            x: x.address(),
            a: pool.a(),
            router: 0,
            router_bias: 0,
            z: z.address(),
            tokens: word(OP, "tokens", tokens)?,
            top_k: word(OP, "top_k", top_k)?,
            experts: word(OP, "experts", slots.sizes().experts)?,
            router_experts: 0,
            in_features: word(OP, "in_features", in_features)?,
            columns: word(OP, "used rows", columns)?,
            x_stride: word(OP, "x_stride", x_stride)?,
            a_stride: word(OP, "a_stride", pool.a_stride())?,
            z_stride: word(OP, "z_stride", sizes.h_stride)?,
            z_columns: word(OP, "z_columns", z_columns)?,
            x_vector: cuda::is_vector(x.address(), x_stride, bytes).into(),
            w_vector: 0,
            z_vector: cuda::is_vector(z.address(), sizes.h_stride, bytes).into(),
            softmax_all: 0,
            x_type: type_word(X::TYPE),
            a_type: type_word(slots.sizes().element),
        };
        if let Some((router, weighting)) = router {
            let experts = router.linear().experts();
            let rule = Rule::top_k(top_k, weighting);
            check_gate_router(&rule, router.linear())?;
            let routing = route::Sizes { tokens, in_features, x_stride, experts, rule };
            if experts > MAX_EXPERTS {
                self.route(&routing, router, x, None, live_tokens, topk_ids, topk_weights)?;
            } else {
                routing.check(router.linear(), x.len(), topk_ids.len(), topk_weights.len())?;
                let (weight, bias) = router.addresses(OP, self)?;
                (params.router, params.router_bias) = (weight, bias);
                params.router_experts = word(OP, "router.experts", experts)?;
                params.w_vector = cuda::is_vector(weight, in_features, size_of::<f32>()).into();
                params.softmax_all = u32::from(weighting == Weighting::SoftmaxAll);
            }
        }
        let elements = (X::TYPE, slots.sizes().element);
        self.launch(OP, &grid(tokens, elements, params.x_vector != 0, &self.offer()), &params)
    }

    /// `[weight | B_all]` as rows `[out_features, in_features + used_rows]`, `row_stride` elements apart: with rows `[x | z]` of
    /// the engine's own ([`Cuda::fused_gate`]'s z behind x), `[x | z] [weight | B_all]^T` is the fused layer in one plain product
    /// of any library's. Columns behind are not written: a product over a padded width needs zeros there, or in x's rows.
    ///
    /// The better choice than [`Cuda::fused_dense`] where batches are large, a vendor's product is faster than ours, and
    /// adapters seldom change: the rows must be made anew when one comes or goes, and take the weight's memory once more. Rows
    /// of B that no adapter holds are copied as they are and meet zeros of z.
    ///
    /// # Errors
    /// Sizes that do not fit, a packed pool, adapters of another element type than the weight's.
    pub fn fused_concat<X: Element>(
        &self,
        pool: &Pool,
        weight: &View<X>,
        row_stride: usize,
        concat: &mut ViewMut<X>,
    ) -> Result<()> {
        let (slots, columns) = (pool.slots(), pool.slots().used_rows());
        let (inputs, outputs) = (slots.sizes().in_features, slots.sizes().out_features);
        check_concat(slots, X::TYPE, weight.len(), row_stride, concat.len())?;
        pool.check_stream(OP, self)?;
        self.check_streams(OP, [("weight", weight.stream()), ("concat", concat.stream())])?;
        let (launch, weight_blocks) = concat_grid(inputs, outputs, columns);
        let params = ConcatParams {
            weight: weight.address(),
            b: pool.b(),
            concat: concat.address(),
            in_features: word(OP, "in_features", inputs)?,
            out_features: word(OP, "out_features", outputs)?,
            columns: word(OP, "used rows", columns)?,
            b_stride: word(OP, "b_stride", pool.b_stride())?,
            stride: word(OP, "row_stride", row_stride)?,
            bytes: size_of::<X>() as u32,
            weight_blocks: word(OP, "in_features", weight_blocks)?,
            blocks: word(OP, "in_features", launch.blocks)?,
        };
        self.launch(OP, &launch, &params)
    }
}
