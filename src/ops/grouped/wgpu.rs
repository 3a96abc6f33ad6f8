//! Grouped on WebGPU: one dispatch for the rows of the routes, one more that combines them and adds their LoRAs.
//!
//! Where rows are combined, their LoRAs wait for the second dispatch, so that h may come from the first
//! ([`Wgpu::grouped_with_shrink`]): a SwiGLU block is 4 dispatches, not 5, and moves the same bytes: x and A once more for h,
//! h and a row of f32 a route written and read, B once. What is asked for, by subgroups of 16 lanes or more: A once per 64
//! routes and x once per 16 ranks, as by shrink; B once a route, as by rows with LoRAs on tiles. On lanes those ask for B once
//! per 16 rows of one LoRA: there combining costs up to `rank / 4` loads of four more a route and column, beside the
//! product's `3 / 128 in_features`.

mod combine;
mod rows;

pub use combine::combine_grid;

use super::{Lens, OP, Rows, Sizes, check_pool};
use crate::device::wgpu::{self as device, Access, Binding, Path, TILE_ROWS, Tuning, View, Wgpu};
use crate::element::Element;
use crate::error::{Error, Result};
use crate::ops::{Form, Grid, SHARED_ROWS, check_equal, check_packed, word};
use rows::Loras;

/// Rows of an expert's weight that a workgroup takes.
const TILE_COLUMNS: usize = 64;
/// Threads of a workgroup on tiles: 8 x 8 sums each.
const TILE_THREADS: usize = (TILE_ROWS / 8) * (TILE_COLUMNS / 8);

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

/// The workgroups in front that shrink for a LoRA plan of at most `max_tiles` tiles: one per tile and as many ranks as leave each
/// thread a block of four routes and eight ranks.
pub fn shrink_grid(max_rank: usize, max_tiles: usize, tuning: &Tuning) -> Grid {
    let threads = if tuning.path == Path::Lanes { tuning.owners as usize } else { TILE_THREADS };
    let columns = 8 * (threads / (TILE_ROWS / 4)).max(1);
    let blocks = max_rank.div_ceil(columns);
    Grid { form: Form::Many, columns, blocks, groups: max_tiles * blocks }
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
        let inputs = Inputs { sizes, plan, pool, loras, weight, x, h };
        inputs.check(topk_weights, scratch, y)?;
        if sizes.rows != Rows::Combined {
            return self.grouped_rows(encoder, &inputs, Loras::Added, sizes.y_stride, y);
        }
        self.grouped_rows(encoder, &inputs, Loras::Left, sizes.out_features, scratch)?;
        self.grouped_combine(encoder, &inputs, topk_weights, scratch, y)
    }

    /// [`Wgpu::shrink`] of the rows of x and [`Wgpu::grouped`], combined, in two dispatches; `h` is written, in no buffer
    /// that is read. Of the slots of routes without a base expert the status word hears nothing.
    #[expect(
        clippy::too_many_arguments,
        reason = "sizes, plan, pool, inputs, output: the order on every device"
    )]
    pub fn grouped_with_shrink<X: Element>(
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
        let inputs = Inputs { sizes, plan, pool, loras, weight, x, h };
        inputs.check(topk_weights, scratch, y)?;
        if sizes.rows != Rows::Combined {
            return Err(Error::argument(OP, "rows", "combined, with shrink", sizes.rows.name()));
        }
        let left = if pool.slots().max_rank() == 0 { Loras::Left } else { Loras::Shrunk };
        self.grouped_rows(encoder, &inputs, left, sizes.out_features, scratch)?;
        self.grouped_combine(encoder, &inputs, topk_weights, scratch, y)
    }
}

/// What the rows are made of.
#[derive(Debug, Clone, Copy)]
struct Inputs<'a, X> {
    sizes: &'a Sizes,
    plan: &'a device::Plan,
    pool: &'a device::Pool,
    loras: &'a device::Plan,
    weight: View<'a, X>,
    x: View<'a, X>,
    h: View<'a, f32>,
}

impl<'a, X: Element> Inputs<'a, X> {
    /// Refuses what does not fit together.
    fn check(&self, topk_weights: View<f32>, scratch: View<f32>, y: View<X>) -> Result<()> {
        let Inputs { sizes, plan, pool, loras, weight, x, h } = *self;
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
        Ok(())
    }

    /// The slots of the routes.
    fn lora_ids(&self) -> Result<Binding<'a>> {
        let ids = View::new(&self.loras.buffer, self.loras.layout.at_ids, self.sizes.routes())?;
        Ok(Binding::ids("lora_ids", Access::Read, ids))
    }
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
        // A thread's block: four of 64 routes, eight ranks.
        let ahead = |max_rank, tuning| {
            let grid = shrink_grid(max_rank, 5, tuning);
            (grid.columns, grid.groups)
        };
        assert_eq!((ahead(0, &tiles), ahead(32, &tiles), ahead(33, &tiles)), ((32, 0), (32, 5), (32, 10)));
        assert_eq!((ahead(16, &lanes), ahead(17, &lanes)), ((16, 5), (16, 10)));
        assert_eq!(ahead(9, &Tuning { owners: 4, ..lanes }), (8, 10));
        let combine = |out_features: usize| combine_grid(&sizes(Rows::Combined, out_features)).groups;
        assert_eq!((combine(0), combine(1), combine(5)), (0, 2, 3));
        let scratch = |rows: Rows| scratch_len(&sizes(rows, 10));
        assert_eq!((scratch(Rows::Plain), scratch(Rows::Gated), scratch(Rows::Combined)), (0, 0, 1300));
    }
}
