//! The few form: a handful of tokens straight from their ids, in two dispatches of one encoder.

use super::{BIAS, COLUMNS, NO_BIAS, block_begins, check_slices, column_blocks, slice_ends};
use crate::device::wgpu::{self as device, Access, Binding, Blocks, Launch, Tuning, View, Wgpu};
use crate::element::Element;
use crate::error::{Error, Result};
use crate::ops::fused::{OP, Sizes};
use crate::ops::{Form, Grid, Output, check_packed, sums, word};

/// Most tokens: a lane keeps four sums for each.
pub const FEW_TOKENS: usize = 16;

/// Most tokens whose sums of 8 columns a workgroup's memory holds.
const MOST_WIDE: usize = 8;

/// Ranks of a workgroup of the first dispatch.
const RANKS: usize = 8;

/// The launches: a workgroup per route and 8 ranks, then one per 8 columns (4 for more tokens than the device holds sums of)
/// and all tokens.
pub fn few_grids(sizes: &Sizes, max_rank: usize, slices: &[usize], tuning: &Tuning) -> [Grid; 2] {
    // At least one, which also says what is wrong with the route's id.
    let blocks = max_rank.div_ceil(RANKS).max(1);
    let shrink = Grid { form: Form::Few, columns: RANKS, blocks, groups: sizes.routes() * blocks };
    let columns = if sizes.tokens <= tuning.fused_few_wide.min(MOST_WIDE) { 8 } else { 4 };
    let blocks = column_blocks(slices, columns);
    let groups = if sizes.tokens == 0 { 0 } else { blocks };
    [shrink, Grid { form: Form::Few, columns, blocks, groups }]
}

impl Wgpu {
    /// Base and experts of at most [`FEW_TOKENS`] tokens straight from their ids; `h` is scratch. Records into `encoder`;
    /// ids that name nothing are skipped and set the status word.
    #[expect(clippy::too_many_arguments, reason = "sizes, pool, inputs, output: the order on every device")]
    pub fn fused_few<X: Element>(
        &self,
        encoder: &mut wgpu::CommandEncoder,
        sizes: &Sizes,
        pool: &device::Pool,
        weight: View<X>,
        bias: Option<View<X>>,
        x: View<X>,
        topk_ids: View<i32>,
        topk_weights: View<f32>,
        h: View<f32>,
        y: View<X>,
    ) -> Result<()> {
        let slots = pool.slots();
        sizes.check(slots, weight.len(), bias.map(|b| b.len()), x.len(), y.len())?;
        if sizes.output != Output::Sum {
            return Err(Error::argument(OP, "output", "sum for the few form", sizes.output.name()));
        }
        if sizes.tokens > FEW_TOKENS {
            let expected = format!("at most {FEW_TOKENS} for the few form on WebGPU");
            return Err(Error::argument(OP, "tokens", expected, sizes.tokens));
        }
        sizes.check_h(None, slots.max_rank(), h.len(), topk_weights.len())?;
        crate::ops::check_len(OP, "topk_ids", sizes.routes(), topk_ids.len())?;
        check_slices(X::TYPE, slots.is_packed(), slots.slices())?;
        check_packed::<X>(OP, "x", sizes.x_stride, x.len())?;
        check_packed::<X>(OP, "y", sizes.y_stride, y.len())?;
        check_packed::<X>(OP, "weight", sizes.in_features, weight.len())?;
        word(OP, "h", h.len())?;
        let [shrink, product] = few_grids(sizes, slots.max_rank(), slots.slices(), self.tuning());
        let mut params = vec![
            ("tokens", word(OP, "tokens", sizes.tokens)?),
            ("top_k", word(OP, "top_k", sizes.top_k)?),
            ("experts", word(OP, "experts", slots.sizes().experts)?),
            ("epoch", slots.epoch()),
            ("max_rank", word(OP, "max_rank", slots.max_rank())?),
            ("in_features", word(OP, "in_features", sizes.in_features)?),
            ("x_stride", word(OP, "x_stride", sizes.x_stride)?),
            ("h_stride", word(OP, "h_stride", sizes.h_stride)?),
            ("a_stride", word(OP, "a_stride", pool.a_stride())?),
            ("rank_blocks", word(OP, "rank_blocks", shrink.blocks)?),
        ];
        let [place, sum] = sums(self.tuning());
        let launch = Launch {
            op: OP,
            entry: "fused_few_shrink",
            body: &[
                place,
                sum,
                include_str!("../../../../shaders/rows.wgsl"),
                include_str!("../../../../shaders/fused_few_shrink.wgsl"),
            ],
            constants: &[],
            params: &params,
            bindings: &[
                Binding::rows("x", x, sizes.x_stride),
                Binding::pool_a("w", pool),
                Binding::slots(pool),
                Binding::ids("topk_ids", Access::Read, topk_ids),
                Binding::read("topk_weights", topk_weights),
                Binding::write("h", h),
                Binding::status(self),
            ],
            groups: word(OP, "tokens", shrink.groups)?,
        };
        self.launch(encoder, &launch)?;
        params.extend([
            ("y_stride", word(OP, "y_stride", sizes.y_stride)?),
            ("b_stride", word(OP, "b_stride", pool.b_stride())?),
        ]);
        params.extend(slice_ends(slots)?);
        let mut bindings = vec![
            Binding::rows("x", x, sizes.x_stride),
            Binding::rows("w", weight, sizes.in_features),
            Binding::slots_and_b("b", pool),
            Binding::ids("topk_ids", Access::Read, topk_ids),
            Binding::read("topk_weights", topk_weights),
            Binding::read("h", h),
            Binding::write("y", y),
        ];
        let biased = bias.map_or(NO_BIAS, |bias| {
            bindings.push(Binding::read("bias", bias));
            BIAS
        });
        let launch = Launch {
            op: OP,
            entry: "fused_few",
            body: &[place, sum, biased, COLUMNS, include_str!("../../../../shaders/fused_few.wgsl")],
            constants: &[
                ("TOKENS", sizes.tokens.next_power_of_two() as u32),
                ("QUADS", product.columns as u32 / 4),
                ("SLICES", slots.slices().len() as u32),
            ],
            params: &params,
            bindings: &bindings,
            groups: word(OP, "out_features", product.groups)?,
        };
        let begins = block_begins(slots.slices(), product.columns);
        let begin = |block: usize| begins[block];
        let blocks = Blocks { stride: sizes.in_features, blocks: product.blocks, begin: &begin };
        self.launch_blocks(encoder, &launch, &blocks)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_workgroup_reads_a_weight_for_all_tokens() {
        let sizes = |tokens: usize| Sizes {
            tokens,
            top_k: 2,
            in_features: 8,
            out_features: 100,
            x_stride: 8,
            y_stride: 100,
            h_stride: 9,
            output: Output::Sum,
        };
        let grids = |tokens: usize, max_rank, slices: &[usize]| {
            few_grids(&sizes(tokens), max_rank, slices, &Tuning { fused_few_wide: 8, ..Tuning::plain() })
        };
        let groups = |tokens: usize| grids(tokens, 9, &[100]).map(|grid| grid.groups);
        assert_eq!(groups(0), [0, 0]);
        assert_eq!(groups(1), [2 * 2, 13]);
        assert_eq!(groups(8), [16 * 2, 13]);
        assert_eq!(groups(16), [32 * 2, 25]);
        assert_eq!(
            few_grids(&sizes(8), 9, &[100], &Tuning::plain())[1].groups,
            25,
            "a device of few registers"
        );
        assert_eq!(grids(3, 0, &[100])[0].groups, 6, "ids of an empty pool are looked at");
        assert_eq!(grids(3, 9, &[50, 50])[1].groups, 14, "blocks do not straddle slices");
        // Sums of a workgroup in its memory: 16 KiB at most.
        for tokens in 1..=FEW_TOKENS {
            let columns = grids(tokens, 9, &[100])[1].columns;
            assert!(tokens.next_power_of_two() * columns / 4 * 64 * 16 <= 16384);
        }
    }
}
