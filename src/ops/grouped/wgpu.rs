//! Grouped on WebGPU: one dispatch for the rows of the routes, one more that combines them.

use super::{Lens, OP, Rows, Sizes, check_pool};
use crate::device::wgpu::{
    self as device, Access, Binding, Blocks, Launch, Path, TILE_ROWS, Tuning, View, Wgpu,
};
use crate::element::Element;
use crate::error::{Error, Result};
use crate::ops::{
    Form, Grid, LANES, NOTHING_BEHIND, ROWS_SHARED, SHARED_ROWS, check_equal, check_packed, tile_constants,
    word,
};

/// Rows of an expert's weight that a workgroup takes.
const TILE_COLUMNS: usize = 64;
/// Columns of y that a thread combines.
const COMBINE_COLUMNS: usize = 4;

/// The launch of the rows for a plan of at most `max_tiles` tiles: a workgroup per tile (64 routes of one expert, or 16 of
/// them on lanes) and 64 rows of the weight (8 a lane), half of gate and half of up where gated.
pub fn grid(sizes: &Sizes, max_tiles: usize, tuning: &Tuning) -> Grid {
    let (parts, rows) = match tuning.path {
        Path::Lanes => (TILE_ROWS / SHARED_ROWS, tuning.lane_columns()),
        Path::Tiles | Path::Matrix => (1, TILE_COLUMNS),
    };
    let columns = if sizes.rows == Rows::Gated { rows / 2 } else { rows };
    let blocks = sizes.width().div_ceil(columns);
    Grid { form: Form::Many, columns, blocks, groups: max_tiles * parts * blocks }
}

/// The launch that combines: a thread per token and four columns.
pub fn combine_grid(sizes: &Sizes) -> Grid {
    let blocks = sizes.width().div_ceil(COMBINE_COLUMNS);
    Grid { form: Form::Few, columns: COMBINE_COLUMNS, blocks, groups: (sizes.tokens * blocks).div_ceil(64) }
}

/// f32 elements of scratch that a call on WebGPU needs: a row for every route of a combined product.
pub fn scratch_len(sizes: &Sizes) -> usize {
    if sizes.rows == Rows::Combined { sizes.routes().saturating_mul(sizes.out_features) } else { 0 }
}

impl Wgpu {
    /// See the [module](super). `plan` is the base experts', made over [`Pool::markers`](device::Pool::markers); `pool` holds
    /// the LoRAs, two slices of `width` columns where gated; `loras` and `h` are [`Wgpu::shrink`]'s of that pool.
    /// `scratch` is needed where combined, see [`scratch_len`], in a buffer of its own. `y` is no buffer that is read.
    ///
    /// Records into `encoder`. A slot that is empty or changed since `loras` was recorded, and a weight that is not finite
    /// count for nothing and set the status word.
    #[expect(
        clippy::too_many_arguments,
        reason = "sizes, plan, pool, inputs, output: the order on every device"
    )]
    pub fn grouped<X: Element>(
        &self,
        encoder: &mut wgpu::CommandEncoder,
        sizes: &Sizes,
        plan: &device::Plan,
        pool: &device::Pool,
        loras: &device::Plan,
        weight: View<X>,
        x: View<X>,
        h: View<f32>,
        topk_weights: View<f32>,
        scratch: View<f32>,
        y: View<X>,
    ) -> Result<()> {
        let lens = Lens {
            weight: weight.len(),
            x: x.len(),
            h: h.len(),
            loras: loras.sizes().routes(),
            topk_weights: topk_weights.len(),
            y: y.len(),
        };
        sizes.check(pool.slots().max_rank(), &lens)?;
        check_pool(sizes, pool.slots())?;
        check_equal(OP, "plan.tokens", sizes.tokens, plan.sizes().tokens)?;
        check_equal(OP, "plan.top_k", sizes.top_k, plan.sizes().top_k)?;
        check_equal(OP, "plan.experts", sizes.experts, plan.sizes().experts)?;
        loras.check_pool(OP, pool)?;
        check_packed::<X>(OP, "x", sizes.x_stride, x.len())?;
        check_packed::<X>(OP, "weight", sizes.in_features, weight.len())?;
        check_packed::<X>(OP, "y", sizes.y_stride, y.len())?;
        word(OP, "h", h.len())?;
        let needed = scratch_len(sizes);
        word(OP, "scratch", needed)?;
        if scratch.len() < needed {
            return Err(Error::argument(OP, "scratch", format!("at least {needed} elements"), scratch.len()));
        }
        let inputs = Inputs { sizes, plan, pool, loras, weight, x, h };
        if sizes.rows != Rows::Combined {
            return self.grouped_rows(encoder, &inputs, sizes.y_stride, y);
        }
        self.grouped_rows(encoder, &inputs, sizes.out_features, scratch)?;
        self.grouped_combine(encoder, sizes, plan, topk_weights, scratch, y)
    }

    /// A row for every live route, into y or into scratch.
    fn grouped_rows<X: Element, Y: Element>(
        &self,
        encoder: &mut wgpu::CommandEncoder,
        inputs: &Inputs<X>,
        y_stride: usize,
        y: View<Y>,
    ) -> Result<()> {
        let Inputs { sizes, plan, pool, loras, .. } = *inputs;
        let lora_ids = View::new(&loras.buffer, loras.layout.at_ids, sizes.routes())?;
        let (grid, slots) = (grid(sizes, plan.layout.max_tiles, self.tuning()), pool.slots());
        let routes_a_row = if sizes.x_per_route { 1 } else { sizes.top_k };
        let mut params = plan.params()?.to_vec();
        params.extend([
            ("first_expert", 0),
            ("end_expert", word(OP, "experts", sizes.experts)?),
            ("routes_a_row", word(OP, "top_k", routes_a_row)?),
            ("slots", word(OP, "slots", slots.sizes().experts)?),
            ("lora_epoch", loras.epoch),
            ("in_features", word(OP, "in_features", sizes.in_features)?),
            ("out_features", word(OP, "out_features", sizes.out_features)?),
            ("width", word(OP, "out_features", sizes.width())?),
            ("x_stride", word(OP, "x_stride", sizes.x_stride)?),
            ("h_stride", word(OP, "h_stride", sizes.h_stride)?),
            ("b_stride", word(OP, "b_stride", pool.b_stride())?),
            ("y_stride", word(OP, "y_stride", y_stride)?),
            ("column_blocks", word(OP, "out_features", grid.blocks)?),
        ]);
        let [tile_m, tile_n, wide] = tile_constants(TILE_COLUMNS, true);
        let tiles = [
            NOTHING_BEHIND,
            include_str!("../../../shaders/tile.wgsl"),
            include_str!("../../../shaders/grouped.wgsl"),
        ];
        let lanes = [ROWS_SHARED, LANES[0], LANES[1], include_str!("../../../shaders/grouped_lanes.wgsl")];
        let on_lanes = self.tuning().path == Path::Lanes;
        let gated = ("GATED", u32::from(sizes.rows == Rows::Gated));
        let launch = Launch {
            op: OP,
            entry: if on_lanes { "grouped_lanes" } else { "grouped" },
            body: &[&tiles[..], if on_lanes { &lanes } else { &[] }].concat(),
            constants: &[tile_m, tile_n, wide, gated, ("OWNERS", self.tuning().owners)],
            params: &params,
            bindings: &[
                Binding::rows("x", inputs.x, sizes.x_stride),
                Binding::rows("w", inputs.weight, sizes.in_features),
                Binding::slots_and_b("b", pool),
                Binding::table("plan", "array<u32>", Access::Read, &plan.buffer),
                Binding::ids("lora_ids", Access::Read, lora_ids),
                Binding::read("h", inputs.h),
                Binding::write("y", y),
                Binding::status(self),
            ],
            groups: word(OP, "tokens", grid.groups)?,
        };
        // Gate and up of an expert lie apart: both are bound at once.
        let whole = sizes.rows == Rows::Gated;
        let begin = |block: usize| (block * grid.columns).min(sizes.width());
        let blocks = Blocks { stride: sizes.in_features, blocks: grid.blocks, begin: &begin };
        self.launch_experts(encoder, &launch, &blocks, (sizes.experts, sizes.out_features, whole))
    }

    /// The weighted sum of every token's rows.
    fn grouped_combine<X: Element>(
        &self,
        encoder: &mut wgpu::CommandEncoder,
        sizes: &Sizes,
        plan: &device::Plan,
        topk_weights: View<f32>,
        rows: View<f32>,
        y: View<X>,
    ) -> Result<()> {
        let grid = combine_grid(sizes);
        let mut params = plan.params()?.to_vec();
        params.extend([
            ("width", word(OP, "out_features", sizes.width())?),
            ("y_stride", word(OP, "y_stride", sizes.y_stride)?),
            ("quads", word(OP, "out_features", grid.blocks)?),
        ]);
        let launch = Launch {
            op: OP,
            entry: "grouped_combine",
            body: &[include_str!("../../../shaders/grouped_combine.wgsl")],
            constants: &[],
            params: &params,
            bindings: &[
                Binding::table("plan", "array<u32>", Access::Read, &plan.buffer),
                Binding::read("topk_weights", topk_weights),
                Binding::rows("rows", rows, sizes.out_features),
                Binding::write("y", y),
                Binding::status(self),
            ],
            groups: word(OP, "tokens", grid.groups)?,
        };
        self.launch(encoder, &launch)
    }
}

/// What the rows are made of.
struct Inputs<'a, X> {
    sizes: &'a Sizes,
    plan: &'a device::Plan,
    pool: &'a device::Pool,
    loras: &'a device::Plan,
    weight: View<'a, X>,
    x: View<'a, X>,
    h: View<'a, f32>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_cover_routes_and_columns() {
        let sizes = |rows: Rows, out_features: usize| Sizes {
            tokens: 65,
            top_k: 2,
            experts: 3,
            in_features: 8,
            out_features,
            x_stride: 8,
            h_stride: 4,
            y_stride: out_features,
            x_per_route: false,
            rows,
        };
        let tiles = Tuning::plain();
        let groups = |rows: Rows, out_features: usize| grid(&sizes(rows, out_features), 5, &tiles).groups;
        assert_eq!((groups(Rows::Plain, 64), groups(Rows::Plain, 65)), (5, 10));
        // 32 columns of y are 64 rows of the weight.
        assert_eq!((groups(Rows::Gated, 64), groups(Rows::Gated, 66)), (5, 10));
        assert_eq!((groups(Rows::Combined, 0), grid(&sizes(Rows::Plain, 64), 0, &tiles).groups), (0, 0));
        // 16 of 64 routes, 8 columns a lane.
        let lanes = Tuning { path: Path::Lanes, owners: 32, ..tiles };
        let groups = |rows, out_features| grid(&sizes(rows, out_features), 5, &lanes).groups;
        assert_eq!((groups(Rows::Plain, 256), groups(Rows::Plain, 257)), (20, 40));
        assert_eq!((groups(Rows::Gated, 256), groups(Rows::Gated, 258)), (20, 40));
        let combine = |out_features: usize| combine_grid(&sizes(Rows::Combined, out_features)).groups;
        assert_eq!((combine(0), combine(1), combine(5)), (0, 2, 3));
        let scratch = |rows: Rows| scratch_len(&sizes(rows, 10));
        assert_eq!((scratch(Rows::Plain), scratch(Rows::Gated), scratch(Rows::Combined)), (0, 0, 1300));
    }
}
