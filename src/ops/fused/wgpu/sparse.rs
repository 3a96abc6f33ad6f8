//! The sparse form: base and the experts of a plan in one dispatch behind shrink's.

use super::{BIAS, COLUMNS, NO_BIAS, block_begins, check_slices, column_blocks, slice_ends};
use crate::adapter::slots::Slots;
use crate::device::plan::Layout;
use crate::device::wgpu::{
    self as device, Access, Binding, Blocks, Launch, Path, TILE_ROWS, Tuning, View, Wgpu,
};
use crate::element::{Element, ElementType};
use crate::error::Result;
use crate::ops::fused::{OP, Sizes};
use crate::ops::{
    Form, Grid, LANES, LANES_CHUNKS, LANES_PUT, LANES_RANKS, LANES_ROUTES, Output, ROWS_IN_ORDER,
    ROWS_SHARED, SHARED_ROWS, check_packed, plan, tile_constants, word,
};

/// Columns of y that a workgroup takes.
const TILE_COLUMNS: usize = 64;
/// Bindings of storage without a bias.
const BINDINGS: u32 = 8;

const SHARED_BIAS: &str = "fn topk_weights_at(i: u32) -> f32 { return side_at(i); }
fn bias_of(o: u32) -> f32 { return side_at(params.routes + o); }
";

/// The kernels of the form.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kernel {
    Tiles,
    /// On lanes; a chunk's rows of y grow in workgroup memory.
    Lanes,
    /// On lanes; y, which is f32 in whole fours of one slice, holds its sums itself.
    Sums,
}

impl Kernel {
    fn of(sizes: &Sizes, x: ElementType, slices: usize, tuning: &Tuning) -> Self {
        match tuning.path {
            Path::Tiles | Path::Matrix => Self::Tiles,
            Path::Lanes if x == ElementType::F32 && slices == 1 && sizes.out_features.is_multiple_of(4) => {
                Self::Sums
            }
            Path::Lanes => Self::Lanes,
        }
    }
}

/// The launch for x of this element: tiles of 64 tokens x 64 columns of one slice, or on lanes one or several chunks of tokens x
/// 8 columns a lane.
pub fn sparse_grid(sizes: &Sizes, x: ElementType, slices: &[usize], tuning: &Tuning) -> Grid {
    let (columns, tokens) = match Kernel::of(sizes, x, slices.len(), tuning) {
        Kernel::Tiles => (TILE_COLUMNS, TILE_ROWS),
        Kernel::Lanes => (tuning.lane_columns(), chunk_tokens(sizes)),
        Kernel::Sums => (tuning.lane_columns(), LANES_CHUNKS * chunk_tokens(sizes)),
    };
    let blocks = column_blocks(slices, columns);
    Grid { form: Form::Many, columns, blocks, groups: sizes.tokens.div_ceil(tokens) * blocks }
}

/// Tokens of a chunk of the plan; of any, where there are no routes.
fn chunk_tokens(sizes: &Sizes) -> usize {
    let plan = plan::Sizes { tokens: sizes.tokens, top_k: sizes.top_k, experts: 0 };
    Layout::new(&plan, &device::SHAPE).chunk_routes.checked_div(sizes.top_k).unwrap_or(SHARED_ROWS)
}

const _: () = assert!(device::CHUNK_TOKENS == SHARED_ROWS, "a chunk's tokens are the rows that lanes share");

impl Wgpu {
    /// Base and the experts of `plan` in one pass; `h` is [`Wgpu::shrink`]'s. Records into `encoder`; slots that changed
    /// since the plan are skipped and set the status word.
    #[expect(
        clippy::too_many_arguments,
        reason = "sizes, plan, pool, inputs, output: the order on every device"
    )]
    pub fn fused_sparse<X: Element>(
        &self,
        encoder: &mut wgpu::CommandEncoder,
        sizes: &Sizes,
        plan: &device::Plan,
        pool: &device::Pool,
        weight: View<X>,
        bias: Option<View<X>>,
        x: View<X>,
        h: View<f32>,
        topk_weights: View<f32>,
        y: View<X>,
    ) -> Result<()> {
        let slots = pool.slots();
        sizes.check(slots, weight.len(), bias.map(|b| b.len()), x.len(), y.len())?;
        plan.check_pool(OP, pool)?;
        sizes.check_h(Some(plan.sizes()), slots.max_rank(), h.len(), topk_weights.len())?;
        check_slices(X::TYPE, slots.is_packed(), slots.slices())?;
        check_packed::<X>(OP, "x", sizes.x_stride, x.len())?;
        check_packed::<X>(OP, "y", sizes.y_stride, y.len())?;
        check_packed::<X>(OP, "weight", sizes.in_features, weight.len())?;
        word(OP, "h", h.len())?;
        let grid = sparse_grid(sizes, X::TYPE, slots.slices(), self.tuning());
        let kernel = Kernel::of(sizes, X::TYPE, slots.slices().len(), self.tuning());
        if grid.groups == 0 {
            return Ok(());
        }
        let most = self.limits().max_storage_buffers_per_shader_stage;
        let side = match bias {
            Some(bias) if most <= BINDINGS => Some(self.side(encoder, sizes.routes(), topk_weights, bias)?),
            _ => None,
        };
        // A packed adapter's ranks of a slice begin anywhere in a row of h.
        let h = if slots.is_packed() { Binding::read("h", h) } else { Binding::rows("h", h, sizes.h_stride) };
        let mut bindings = vec![
            Binding::rows("x", x, sizes.x_stride),
            Binding::rows("w", weight, sizes.in_features),
            Binding::slots_and_b("b", pool),
            Binding::table("plan", "array<u32>", Access::Read, &plan.buffer),
            h,
            match kernel {
                Kernel::Sums => Binding::rows_written("y", y, sizes.y_stride),
                Kernel::Tiles | Kernel::Lanes => Binding::write("y", y),
            },
            Binding::status(self),
        ];
        let biased = match (&side, bias) {
            (Some(side), _) => {
                bindings.push(Binding::read("side", View::<f32>::whole(side)));
                SHARED_BIAS
            }
            (None, bias) => {
                bindings.push(Binding::read("topk_weights", topk_weights));
                bias.map_or(NO_BIAS, |bias| {
                    bindings.push(Binding::read("bias", bias));
                    BIAS
                })
            }
        };
        let mut params = plan.params()?.to_vec();
        params.extend([
            ("in_features", word(OP, "in_features", sizes.in_features)?),
            ("x_stride", word(OP, "x_stride", sizes.x_stride)?),
            ("out_features", word(OP, "out_features", sizes.out_features)?),
            ("y_stride", word(OP, "y_stride", sizes.y_stride)?),
            ("h_stride", word(OP, "h_stride", sizes.h_stride)?),
            ("b_stride", word(OP, "b_stride", pool.b_stride())?),
            ("column_blocks", word(OP, "out_features", grid.blocks)?),
            ("chunk_tokens", word(OP, "tokens", chunk_tokens(sizes))?),
        ]);
        params.extend(slice_ends(slots)?);
        let mut constants = tile_constants(TILE_COLUMNS, self.tuning().wide_fused).to_vec();
        constants.extend([
            ("OWNERS", self.tuning().owners),
            ("GROWN_ROWS", SHARED_ROWS as u32),
            // More slots of a token are listed in turns: the lists stay small.
            ("SLOTS", sizes.top_k.clamp(1, 4) as u32),
            ("WHOLE_QUADS", u32::from(whole_quads(slots))),
            ("SLICES", slots.slices().len() as u32),
            ("RANK_SUM", u32::from(sizes.output == Output::RankSum)),
        ]);
        if kernel == Kernel::Sums {
            constants.extend([("CHUNKS", LANES_CHUNKS as u32), ("PER_ROUTE", 0)]);
        }
        let lanes = [biased, COLUMNS, ROWS_SHARED, LANES[0], LANES[1], LANES_RANKS];
        let (entry, body) = match kernel {
            Kernel::Tiles => {
                let (tile, own) = (
                    include_str!("../../../../shaders/tile.wgsl"),
                    include_str!("../../../../shaders/fused.wgsl"),
                );
                ("fused_sparse", vec![biased, ROWS_IN_ORDER, tile, COLUMNS, own])
            }
            Kernel::Lanes => {
                let own = include_str!("../../../../shaders/fused_lanes.wgsl");
                ("fused_lanes", [&lanes[..], &[own]].concat())
            }
            Kernel::Sums => {
                let own = include_str!("../../../../shaders/fused_lanes_sums.wgsl");
                ("fused_lanes_sums", [&lanes[..], &[LANES_PUT, LANES_ROUTES, own]].concat())
            }
        };
        let launch = Launch {
            op: OP,
            entry,
            body: &body,
            constants: &constants,
            params: &params,
            bindings: &bindings,
            groups: word(OP, "tokens", grid.groups)?,
        };
        let begins = block_begins(slots.slices(), grid.columns);
        let begin = |block: usize| begins[block];
        let blocks = Blocks { stride: sizes.in_features, blocks: grid.blocks, begin: &begin };
        self.launch_blocks(encoder, &launch, &blocks)
    }
}

/// Bytes that the workgroups ask of global memory, each address once a workgroup: of base alone, and of shrink and the sparse
/// form. `ranks` are those of the experts, all of which every tile of tokens uses, evenly.
#[cfg(test)]
fn sparse_bytes(sizes: &Sizes, x_bytes: usize, adapter_bytes: usize, ranks: &[usize]) -> [usize; 2] {
    let Sizes { tokens, top_k, in_features, out_features, .. } = *sizes;
    let (tiles, blocks) = (tokens.div_ceil(TILE_ROWS), out_features.div_ceil(TILE_COLUMNS));
    let x = tokens * in_features * x_bytes;
    let (weight, y) = (out_features * in_features * x_bytes, tokens * out_features * x_bytes);
    let base = blocks * x + tiles * weight + y;
    let (rank, routes) = (ranks.iter().sum::<usize>(), tokens * top_k);
    let h = routes * rank / ranks.len().max(1) * 4;
    // A route reads its token's x; an expert's tiles of routes read its A each.
    let route_tiles = routes.div_ceil(ranks.len().max(1)).div_ceil(TILE_ROWS);
    let shrink = top_k * x + route_tiles * rank * in_features * adapter_bytes + h;
    let b = tiles * rank * out_features * adapter_bytes;
    let ids_and_weights = blocks * routes * 8;
    [base, base + shrink + b + blocks * h + ids_and_weights]
}

/// Whether no part ends in the middle of four ranks. Adapters that come after the recording are not the plan's.
fn whole_quads(slots: &Slots) -> bool {
    (0..slots.slices().len()).all(|s| slots.parts(s).iter().all(|part| part.rank.is_multiple_of(4)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_cover_tokens_and_slices() {
        let sizes = Sizes {
            tokens: 65,
            top_k: 2,
            in_features: 8,
            out_features: 96,
            x_stride: 8,
            y_stride: 96,
            h_stride: 4,
            output: Output::Sum,
        };
        let tiles = Tuning::plain();
        let groups = |tokens: usize, slices: &[usize]| {
            sparse_grid(&Sizes { tokens, ..sizes }, ElementType::F32, slices, &tiles).groups
        };
        assert_eq!(groups(0, &[96]), 0);
        assert_eq!((groups(64, &[96]), groups(65, &[96])), (2, 4));
        assert_eq!(groups(1, &[32, 64]), 2);
        let lanes = Tuning { path: Path::Lanes, owners: 8, ..tiles };
        let groups = |tokens: usize, top_k: usize, slices: &[usize]| {
            sparse_grid(&Sizes { tokens, top_k, ..sizes }, ElementType::F16, slices, &lanes).groups
        };
        assert_eq!((groups(16, 2, &[96]), groups(17, 2, &[96]), groups(17, 2, &[32, 64])), (2, 4, 4));
        assert_eq!(
            (groups(17, 0, &[64]), groups(17, 100, &[64])),
            (2, 9),
            "chunks of whole tokens, 256 routes at most"
        );
        let groups = |tokens: usize, slices: &[usize]| {
            sparse_grid(&Sizes { tokens, ..sizes }, ElementType::F32, slices, &lanes).groups
        };
        assert_eq!((groups(256, &[96]), groups(257, &[96])), (2, 4), "f32 takes 16 chunks of a slice");
        assert_eq!((groups(16, &[32, 64]), groups(17, &[32, 64])), (2, 4));
    }

    /// The bar: 1.05 times base's bytes, A and B once, x once more, h written and read once.
    #[test]
    fn bytes_stay_near_the_floor_where_the_layer_is_large() {
        let ratio = |(in_features, out_features): (usize, usize), tokens: usize, bytes: usize| {
            let sizes = Sizes {
                tokens,
                top_k: 2,
                in_features,
                out_features,
                x_stride: in_features,
                y_stride: out_features,
                h_stride: 16,
                output: Output::Sum,
            };
            let [base, fused] = sparse_bytes(&sizes, bytes, bytes, &[16; 8]);
            let adapters = 8 * 16 * (in_features + out_features) * bytes;
            let once = adapters + tokens * in_features * bytes + 2 * tokens * 2 * 16 * 4;
            fused as f64 / (base + once) as f64
        };
        for shape in [(4096, 4096), (2048, 5504)] {
            for (tokens, bytes) in [(64, 4), (64, 2), (256, 4), (256, 2), (512, 4)] {
                let ratio = ratio(shape, tokens, bytes);
                assert!(ratio <= 1.05, "{shape:?}, {tokens} tokens of {bytes} bytes: {ratio}");
            }
        }
        // Small layers pay for x of each route (top_k times, not once) and for B in every tile of tokens, as for the weight.
        let small = ratio((1024, 1024), 256, 4);
        assert!((1.05..1.10).contains(&small), "{small}");
    }
}
