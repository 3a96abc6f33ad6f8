//! The dense form: all adapters' A with the router's selection as gates, then the base product over the gated ranks too.
//!
//! An engine that wants the second product from its own kernels has z written behind the rows of x, and the other factor by
//! [`Wgpu::fused_concat`].

use super::concat::pair_of;
use super::{BIAS, COLUMNS, NO_BIAS, block_begins, column_blocks, slice_ends};
use crate::device::wgpu::{self as device, Access, Binding, Blocks, Launch, TILE_ROWS, View, Wgpu};
use crate::element::Element;
use crate::error::{Error, Result};
use crate::ops::fused::check_gate_router;
use crate::ops::fused::{OP, Sizes};
use crate::ops::route::{self, Rule, Weighting, WgpuRouter};
use crate::ops::{Form, Grid, NOTHING_BEHIND, ROWS_IN_ORDER, check_packed, sums, tile_constants, word};

/// Columns of a tile: rows of the pool, or columns of y.
const TILE_COLUMNS: usize = 64;
/// Most experts of a router in the same dispatch, as every block of the pool's rows computes the scores for itself.
pub const GATE_EXPERTS: usize = 64;
/// Largest `top_k`, which workgroup memory holds for 64 tokens.
pub const GATE_TOP_K: usize = 8;

const TILE: &str = include_str!("../../../../shaders/tile.wgsl");

/// The launches: tiles of 64 tokens x 64 rows of the pool (one even of an empty pool, which still routes), then x 64 columns.
pub fn dense_grids(sizes: &Sizes, used_rows: usize) -> [Grid; 2] {
    let tiles = sizes.tokens.div_ceil(TILE_ROWS);
    let grid = |columns: usize, least: usize| {
        let blocks = columns.div_ceil(TILE_COLUMNS).max(least);
        Grid { form: Form::Many, columns: TILE_COLUMNS, blocks, groups: tiles * blocks }
    };
    [grid(used_rows, 1), grid(sizes.out_features, 0)]
}

/// z where it lies in x's rows.
const Z_IN_X: &str =
    "fn z_put_pair(i: u32, v: vec2<f32>, count: u32) { x_put_pair(params.z_in_x + i, v, count); }\n";

impl Wgpu {
    /// The dense form's first product; see [`Cpu::fused_gate`](crate::Cpu::fused_gate).
    ///
    /// z may be columns of x's own rows behind `in_features` (`[x | z]`, see [`Wgpu::fused_concat`]): in x's buffer, of x's
    /// element type and with x's stride.
    ///
    /// `top_k` up to [`GATE_TOP_K`]; a router of more than [`GATE_EXPERTS`] is a dispatch of its own. Ids that name nothing
    /// are skipped and set the status word.
    #[expect(clippy::too_many_arguments, reason = "sizes, pool, inputs, outputs: the order on every device")]
    pub fn fused_gate<X: Element, Z: Element>(
        &self,
        encoder: &mut wgpu::CommandEncoder,
        sizes: &Sizes,
        pool: &device::Pool,
        router: Option<(&WgpuRouter, Weighting)>,
        x: View<X>,
        topk_ids: View<i32>,
        topk_weights: View<f32>,
        z: View<Z>,
    ) -> Result<()> {
        let slots = pool.slots();
        crate::ops::check_equal(OP, "in_features", slots.sizes().in_features, sizes.in_features)?;
        crate::ops::check_routes(OP, sizes.tokens, sizes.top_k)?;
        crate::ops::check_rows(OP, "x", (sizes.tokens, sizes.in_features, sizes.x_stride), x.len())?;
        sizes.check_z(slots, z.len(), topk_ids.len(), topk_weights.len())?;
        check_packed::<X>(OP, "x", sizes.x_stride, x.len())?;
        check_packed::<Z>(OP, "z", sizes.h_stride, z.len())?;
        if sizes.top_k > GATE_TOP_K {
            let expected = format!("at most {GATE_TOP_K} for the dense form on WebGPU");
            return Err(Error::argument(OP, "top_k", expected, sizes.top_k));
        }
        let router = match router {
            Some((router, weighting)) => {
                let route = route::Sizes {
                    tokens: sizes.tokens,
                    in_features: sizes.in_features,
                    x_stride: sizes.x_stride,
                    experts: router.linear().experts(),
                    rule: Rule::top_k(sizes.top_k, weighting),
                };
                check_gate_router(&route.rule, router.linear())?;
                route.check(router.linear(), x.len(), topk_ids.len(), topk_weights.len())?;
                if route.experts > GATE_EXPERTS {
                    self.route(encoder, &route, router, x, None, topk_ids, topk_weights)?;
                }
                (route.experts <= GATE_EXPERTS && sizes.top_k > 0).then_some((router, weighting))
            }
            None => None,
        };
        let grid = dense_grids(sizes, slots.used_rows())[0];
        let access = if router.is_some() { Access::ReadWrite } else { Access::Read };
        let pair = pair_of(sizes, slots.used_rows(), x, z)?;
        let mut bindings = vec![
            match pair {
                Some((rows, _)) => Binding::rows_written("x", rows, sizes.x_stride),
                None => Binding::rows("x", x, sizes.x_stride),
            },
            Binding::pool_a("a", pool),
            Binding::slots(pool),
            Binding::ids("topk_ids", access, topk_ids),
            match router {
                Some(_) => Binding::write("topk_weights", topk_weights),
                None => Binding::read("topk_weights", topk_weights),
            },
            Binding::status(self),
        ];
        if pair.is_none() {
            bindings.push(Binding::write("z", z));
        }
        let mut params = vec![
            ("z_in_x", word(OP, "z", pair.map_or(0, |(_, z)| z))?),
            ("tokens", word(OP, "tokens", sizes.tokens)?),
            ("experts", word(OP, "experts", slots.sizes().experts)?),
            ("epoch", slots.epoch()),
            ("in_features", word(OP, "in_features", sizes.in_features)?),
            ("x_stride", word(OP, "x_stride", sizes.x_stride)?),
            ("h_stride", word(OP, "h_stride", sizes.h_stride)?),
            ("a_stride", word(OP, "a_stride", pool.a_stride())?),
            ("used_rows", word(OP, "used_rows", slots.used_rows())?),
            ("row_blocks", word(OP, "used_rows", grid.blocks)?),
        ];
        let mut constants = tile_constants(grid.columns, true).to_vec();
        let [place, sum] = sums(self.tuning());
        let routing: Vec<&str> = match router {
            Some((router, weighting)) => {
                let rule = Rule::top_k(sizes.top_k, weighting);
                constants.extend(route::wgpu::plain_constants(&rule, router.linear()));
                params.push(("scores", word(OP, "router.experts", router.linear().experts())?));
                bindings.push(Binding::rows("g", router.all()?, sizes.in_features));
                let rows = include_str!("../../../../shaders/rows.wgsl");
                let gate = include_str!("../../../../shaders/fused_gate_routed.wgsl");
                [&[place, sum, rows], &route::wgpu::PLAIN_TOKEN[..], &[gate]].concat()
            }
            None => {
                constants.push(("TOP_K", sizes.top_k as u32));
                vec![place, include_str!("../../../../shaders/fused_gate_given.wgsl")]
            }
        };
        let product =
            [NOTHING_BEHIND, ROWS_IN_ORDER, TILE, include_str!("../../../../shaders/fused_gate.wgsl")];
        let launch = Launch {
            op: OP,
            entry: "fused_gate",
            body: &[&routing[..], if pair.is_some() { &[Z_IN_X] } else { &[] }, &product].concat(),
            constants: &constants,
            params: &params,
            bindings: &bindings,
            groups: word(OP, "tokens", grid.groups)?,
        };
        self.launch(encoder, &launch)
    }

    /// The dense form's second product, `y = [x | z] [weight | B_all]^T (+ bias)`.
    #[expect(clippy::too_many_arguments, reason = "sizes, pool, inputs, output: the order on every device")]
    pub fn fused_dense<X: Element, Z: Element>(
        &self,
        encoder: &mut wgpu::CommandEncoder,
        sizes: &Sizes,
        pool: &device::Pool,
        weight: View<X>,
        bias: Option<View<X>>,
        x: View<X>,
        z: View<Z>,
        y: View<X>,
    ) -> Result<()> {
        let slots = pool.slots();
        sizes.check(slots, weight.len(), bias.map(|b| b.len()), x.len(), y.len())?;
        sizes.check_z(slots, z.len(), sizes.routes(), sizes.routes())?;
        check_packed::<X>(OP, "x", sizes.x_stride, x.len())?;
        check_packed::<X>(OP, "y", sizes.y_stride, y.len())?;
        check_packed::<X>(OP, "weight", sizes.in_features, weight.len())?;
        check_packed::<Z>(OP, "z", sizes.h_stride, z.len())?;
        let grid = dense_grids(sizes, slots.used_rows())[1];
        debug_assert_eq!(grid.blocks, column_blocks(slots.slices(), grid.columns));
        let mut bindings = vec![
            Binding::rows("x", x, sizes.x_stride),
            Binding::rows("w", weight, sizes.in_features),
            Binding::slots_and_b("b", pool),
            Binding::rows("z", z, sizes.h_stride),
            Binding::write("y", y),
        ];
        let biased = bias.map_or(NO_BIAS, |bias| {
            bindings.push(Binding::read("bias", bias));
            BIAS
        });
        let mut params = vec![
            ("tokens", word(OP, "tokens", sizes.tokens)?),
            ("experts", word(OP, "experts", slots.sizes().experts)?),
            ("in_features", word(OP, "in_features", sizes.in_features)?),
            ("x_stride", word(OP, "x_stride", sizes.x_stride)?),
            ("y_stride", word(OP, "y_stride", sizes.y_stride)?),
            ("h_stride", word(OP, "h_stride", sizes.h_stride)?),
            ("b_stride", word(OP, "b_stride", pool.b_stride())?),
            ("used_rows", word(OP, "used_rows", slots.used_rows())?),
            ("column_blocks", word(OP, "out_features", grid.blocks)?),
        ];
        params.extend(slice_ends(slots)?);
        let [tile_m, tile_n, wide] = tile_constants(grid.columns, true);
        let launch = Launch {
            op: OP,
            entry: "fused_dense",
            body: &[
                biased,
                ROWS_IN_ORDER,
                TILE,
                COLUMNS,
                include_str!("../../../../shaders/fused_dense.wgsl"),
            ],
            constants: &[tile_m, tile_n, wide, ("SLICES", 1)],
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::Output;

    #[test]
    fn an_empty_pool_still_routes() {
        let sizes = |tokens: usize| Sizes {
            tokens,
            top_k: 2,
            in_features: 8,
            out_features: 100,
            x_stride: 8,
            y_stride: 100,
            h_stride: 136,
            output: Output::Sum,
        };
        let groups = |tokens: usize, rows: usize| dense_grids(&sizes(tokens), rows).map(|grid| grid.groups);
        assert_eq!(groups(0, 130), [0, 0]);
        assert_eq!(groups(64, 0), [1, 2]);
        assert_eq!(groups(65, 130), [2 * 3, 2 * 2]);
    }
}
