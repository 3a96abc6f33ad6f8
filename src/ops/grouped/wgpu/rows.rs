//! The first dispatch: a row for every live route.

use super::{Inputs, TILE_COLUMNS, grid, shrink_grid};
use crate::device::wgpu::{Access, Binding, Blocks, Launch, Path, View, Wgpu};
use crate::element::Element;
use crate::error::Result;
use crate::ops::grouped::{OP, Rows};
use crate::ops::{Grid, LANES, NOTHING_BEHIND, ROWS_SHARED, tile_constants, word};

/// What becomes of the rows' LoRAs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Loras {
    /// Added to the rows.
    Added,
    /// Nothing: combining adds them.
    Left,
    /// As [`Self::Left`]; the first workgroups make their h.
    Shrunk,
}

/// Rows end without LoRAs, on tiles and on lanes.
const LEFT: [&str; 2] = [
    "fn finish(n: u32, o: u32, low: vec4<f32>, high: vec4<f32>) { finish_sums(n, o, low, high); }\n",
    "fn add_loras(s: ptr<function, Block>, first: u32, routes: u32, block: u32, n: vec4<u32>, o: u32, own: Invocation) {}\n",
];

/// The kernel's texts.
fn body(loras: Loras, on_lanes: bool) -> Vec<&'static str> {
    let added = loras == Loras::Added;
    let mut body = vec![NOTHING_BEHIND, include_str!("../../../../shaders/tile.wgsl")];
    if added {
        body.push(include_str!("../../../../shaders/grouped_loras.wgsl"));
        body.push(include_str!("../../../../shaders/grouped_finish.wgsl"));
    } else {
        body.push(LEFT[0]);
    }
    body.push(include_str!("../../../../shaders/grouped.wgsl"));
    if loras == Loras::Shrunk {
        body.push(include_str!("../../../../shaders/grouped_shrink.wgsl"));
    }
    if on_lanes {
        body.extend([ROWS_SHARED, LANES[0], LANES[1]]);
        body.push(if added { include_str!("../../../../shaders/grouped_lanes_loras.wgsl") } else { LEFT[1] });
        body.push(include_str!("../../../../shaders/grouped_lanes.wgsl"));
    }
    if on_lanes && loras == Loras::Shrunk {
        body.push(include_str!("../../../../shaders/grouped_shrink_lanes.wgsl"));
    }
    body
}

impl<X: Element> Inputs<'_, X> {
    /// The kernel's run-time sizes; `ahead` are the workgroups that shrink.
    fn params(&self, grid: &Grid, ahead: Option<&Grid>, y_stride: usize) -> Result<Vec<(&'static str, u32)>> {
        let Inputs { sizes, plan, pool, loras, .. } = self;
        let routes_a_row = if sizes.x_per_route { 1 } else { sizes.top_k };
        let mut params = plan.params()?.to_vec();
        params.extend([
            ("first_expert", 0),
            ("end_expert", word(OP, "experts", sizes.experts)?),
            ("routes_a_row", word(OP, "top_k", routes_a_row)?),
            ("slots", word(OP, "slots", pool.slots().sizes().experts)?),
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
        let Some(ahead) = ahead else { return Ok(params) };
        params.extend([
            ("ahead", word(OP, "tokens", ahead.groups)?),
            ("rank_blocks", word(OP, "rank_blocks", ahead.blocks)?),
            ("a_stride", word(OP, "a_stride", pool.a_stride())?),
        ]);
        for (name, value) in loras.params()? {
            params.extend(match name {
                "at_sorted" => Some(("lora_at_sorted", value)),
                "at_offsets" => Some(("lora_at_offsets", value)),
                "at_tile_offsets" => Some(("lora_at_tile_offsets", value)),
                "at_tiles" => Some(("lora_at_tiles", value)),
                _ => None,
            });
        }
        Ok(params)
    }
}

impl Wgpu {
    /// A row for every live route, into y or into scratch.
    pub(super) fn grouped_rows<X: Element, Y: Element>(
        &self,
        encoder: &mut wgpu::CommandEncoder,
        inputs: &Inputs<X>,
        with: Loras,
        y_stride: usize,
        y: View<Y>,
    ) -> Result<()> {
        let Inputs { sizes, plan, pool, loras, .. } = *inputs;
        let (tuning, on_lanes) = (self.tuning(), self.tuning().path == Path::Lanes);
        let grid = grid(sizes, plan.layout.max_tiles, tuning);
        let ahead = (with == Loras::Shrunk)
            .then(|| shrink_grid(pool.slots().max_rank(), loras.layout.max_tiles, tuning));
        let [tile_m, tile_n, wide] = tile_constants(TILE_COLUMNS, true);
        let gated = ("GATED", u32::from(sizes.rows == Rows::Gated));
        let mut constants = vec![tile_m, tile_n, wide, gated, ("OWNERS", tuning.owners)];
        constants.extend(ahead.map(|ahead| ("RANKS", ahead.columns as u32)));
        let mut bindings = vec![
            Binding::rows("x", inputs.x, sizes.x_stride),
            Binding::rows("w", inputs.weight, sizes.in_features),
            Binding::table("plan", "array<u32>", Access::Read, &plan.buffer),
            Binding::write("y", y),
        ];
        match with {
            Loras::Left => {}
            Loras::Added => bindings.extend([
                Binding::slots_and_b("b", pool),
                inputs.lora_ids()?,
                Binding::read("h", inputs.h),
                Binding::status(self),
            ]),
            Loras::Shrunk => bindings.extend([
                Binding::pool_a("a", pool),
                Binding::slots(pool),
                Binding::table("lora_plan", "array<u32>", Access::Read, &loras.buffer),
                Binding::write("h", inputs.h),
            ]),
        }
        let launch = Launch {
            op: OP,
            entry: match (with == Loras::Shrunk, on_lanes) {
                (false, false) => "grouped",
                (false, true) => "grouped_lanes",
                (true, false) => "grouped_shrink",
                (true, true) => "grouped_shrink_lanes",
            },
            body: &body(with, on_lanes),
            constants: &constants,
            params: &inputs.params(&grid, ahead.as_ref(), y_stride)?,
            bindings: &bindings,
            groups: word(OP, "tokens", grid.groups)?,
        };
        // Gate and up of an expert lie apart: both are bound at once.
        let whole = sizes.rows == Rows::Gated;
        let begin = |block: usize| (block * grid.columns).min(sizes.width());
        let blocks = Blocks { stride: sizes.in_features, blocks: grid.blocks, begin: &begin };
        self.launch_experts(encoder, &launch, &blocks, (sizes.experts, sizes.out_features, whole))
    }
}
