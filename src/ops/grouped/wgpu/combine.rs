//! The second dispatch, where rows are combined: every token's weighted sum, with the LoRAs of its routes.

use super::Inputs;
use crate::device::wgpu::{Access, Binding, Launch, View, Wgpu};
use crate::element::Element;
use crate::error::Result;
use crate::ops::grouped::{OP, Sizes};
use crate::ops::{Form, Grid, word};

/// Columns of y that a thread combines.
const COLUMNS: usize = 4;

/// The launch: a thread per token and four columns.
pub fn combine_grid(sizes: &Sizes) -> Grid {
    let blocks = sizes.width().div_ceil(COLUMNS);
    Grid { form: Form::Few, columns: COLUMNS, blocks, groups: (sizes.tokens * blocks).div_ceil(64) }
}

impl Wgpu {
    /// `rows` have no LoRAs yet.
    pub(super) fn grouped_combine<X: Element>(
        &self,
        encoder: &mut wgpu::CommandEncoder,
        inputs: &Inputs<X>,
        topk_weights: View<f32>,
        rows: View<f32>,
        y: View<X>,
    ) -> Result<()> {
        let Inputs { sizes, plan, pool, loras, h, .. } = *inputs;
        let grid = combine_grid(sizes);
        let mut params = plan.params()?.to_vec();
        params.extend([
            ("slots", word(OP, "slots", pool.slots().sizes().experts)?),
            ("lora_epoch", loras.epoch),
            ("width", word(OP, "out_features", sizes.width())?),
            ("h_stride", word(OP, "h_stride", sizes.h_stride)?),
            ("b_stride", word(OP, "b_stride", pool.b_stride())?),
            ("y_stride", word(OP, "y_stride", sizes.y_stride)?),
            ("quads", word(OP, "out_features", grid.blocks)?),
        ]);
        let launch = Launch {
            op: OP,
            entry: "grouped_combine",
            body: &[
                include_str!("../../../../shaders/grouped_loras.wgsl"),
                include_str!("../../../../shaders/grouped_combine.wgsl"),
            ],
            constants: &[("GATED", 0)],
            params: &params,
            bindings: &[
                Binding::table("plan", "array<u32>", Access::Read, &plan.buffer),
                inputs.lora_ids()?,
                Binding::slots_and_b("b", pool),
                Binding::read("h", h),
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
