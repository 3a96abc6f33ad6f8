//! Base: the frozen linear layer, `y = x weight^T (+ bias)`; `weight [out_features, in_features]`.

#[cfg(feature = "cuda")]
pub mod cuda;
#[cfg(feature = "wgpu")]
mod matrix;

#[cfg(feature = "wgpu")]
use super::{Form, word};
#[cfg(feature = "wgpu")]
use super::{
    Grid, LANES, LANES_PUT, NOTHING_BEHIND, ROWS_IN_ORDER, ROWS_SHARED, SHARED_ROWS, check_packed, sums,
    tile_constants,
};
use super::{check_len, check_rows, row};
use crate::device::cpu::{Cpu, Out, SharedMut, Tiles, Weight};
#[cfg(feature = "wgpu")]
use crate::device::wgpu::{self as device, Binding, Blocks, Launch, Path, TILE_ROWS, Tuning, View, Wgpu};
use crate::element::Element;
#[cfg(feature = "wgpu")]
use crate::element::ElementType;
use crate::error::{Error, Result};

const OP: &str = "base";

/// Sizes of a base product.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Sizes {
    /// Rows of x and y.
    pub tokens: usize,
    /// Columns of x and of the weight.
    pub in_features: usize,
    /// Columns of y, rows of the weight.
    pub out_features: usize,
    /// Elements from one row of x to the next.
    pub x_stride: usize,
    /// Elements from one row of y to the next.
    pub y_stride: usize,
}

impl Sizes {
    /// Refuses lengths that do not fit; lengths in elements.
    pub fn check(&self, weight: usize, bias: Option<usize>, x: usize, y: usize) -> Result<()> {
        let expected = self.out_features.checked_mul(self.in_features).ok_or_else(|| {
            let got = format!("{} * {}", self.out_features, self.in_features);
            Error::argument(OP, "out_features * in_features", "a size that fits memory", got)
        })?;
        check_len(OP, "weight", expected, weight)?;
        if let Some(bias) = bias {
            check_len(OP, "bias", self.out_features, bias)?;
        }
        check_rows(OP, "x", (self.tokens, self.in_features, self.x_stride), x)?;
        check_rows(OP, "y", (self.tokens, self.out_features, self.y_stride), y)
    }
}

/// The definition: three loops, every sum in f64, rounded to the element once.
pub fn definition<X: Element>(
    sizes: &Sizes,
    weight: &[X],
    bias: Option<&[X]>,
    x: &[X],
    y: &mut [X],
) -> Result<()> {
    sizes.check(weight.len(), bias.map(<[X]>::len), x.len(), y.len())?;
    for t in 0..sizes.tokens {
        for o in 0..sizes.out_features {
            let mut sum = bias.map_or(0.0, |b| f64::from(b[o].to_f32()));
            for i in 0..sizes.in_features {
                sum += f64::from(x[t * sizes.x_stride + i].to_f32())
                    * f64::from(weight[o * sizes.in_features + i].to_f32());
            }
            y[t * sizes.y_stride + o] = X::from_f32(sum as f32);
        }
    }
    Ok(())
}

/// The launch: few tokens read every weight once each; more share it in tiles of 64 x 64, or of 16 tokens on lanes.
#[cfg(feature = "wgpu")]
pub fn grid(sizes: &Sizes, tuning: &Tuning, batch_invariant: bool) -> Grid {
    let few = sizes.tokens <= tuning.base_few && !batch_invariant;
    let (form, columns, rows) = match tuning.path {
        _ if few => (Form::Few, 8, sizes.tokens),
        Path::Lanes => (Form::Many, tuning.lane_columns(), sizes.tokens.div_ceil(SHARED_ROWS)),
        Path::Tiles | Path::Matrix => (Form::Many, 64, sizes.tokens.div_ceil(TILE_ROWS)),
    };
    let blocks = sizes.out_features.div_ceil(columns);
    Grid { form, columns, blocks, groups: rows * blocks }
}

impl Cpu {
    /// See the [module](self); every product is one sum in one order, whatever the batch.
    pub fn base<X: Element>(
        &self,
        sizes: &Sizes,
        weight: &Weight<X>,
        bias: Option<&[X]>,
        x: &[X],
        y: &mut [X],
    ) -> Result<()> {
        weight.check(OP, self, sizes.out_features, sizes.in_features)?;
        sizes.check(weight.len(), bias.map(<[X]>::len), x.len(), y.len())?;
        let Sizes { tokens, in_features, x_stride, y_stride, .. } = *sizes;
        let x = Tiles::new(self, [tokens], in_features, |t| row(x, t, in_features, x_stride));
        let out = Out { stride: y_stride, bias, y: SharedMut::new(y) };
        self.products(weight, &x, &out, None, |_, _| ());
        Ok(())
    }
}

#[cfg(feature = "wgpu")]
impl Wgpu {
    /// See the [module](self). Records into `encoder`.
    pub fn base<X: Element>(
        &self,
        encoder: &mut wgpu::CommandEncoder,
        sizes: &Sizes,
        weight: View<X>,
        bias: Option<View<X>>,
        x: View<X>,
        y: View<X>,
    ) -> Result<()> {
        sizes.check(weight.len(), bias.map(|b| b.len()), x.len(), y.len())?;
        check_packed::<X>(OP, "x", sizes.x_stride, x.len())?;
        check_packed::<X>(OP, "y", sizes.y_stride, y.len())?;
        check_packed::<X>(OP, "weight", sizes.in_features, weight.len())?;
        let Grid { form, columns, blocks, groups } = grid(sizes, self.tuning(), self.is_batch_invariant());
        let matrix = matrix::side(sizes, self.tuning(), self.is_batch_invariant(), (weight, x));
        let matrix = matrix.filter(|_| form == Form::Many);
        let mut bindings = match matrix {
            Some(_) => vec![Binding::read("x", x), Binding::read("w", weight)],
            None => {
                vec![Binding::rows("x", x, sizes.x_stride), Binding::rows("w", weight, sizes.in_features)]
            }
        };
        bindings.push(Binding::rows_written("y", y, sizes.y_stride));
        let biased = match bias {
            Some(bias) => {
                bindings.push(Binding::read("bias", bias));
                "fn bias_of(o: u32) -> f32 { return bias_at(o); }\n"
            }
            None => "fn bias_of(o: u32) -> f32 { return 0.0; }\n",
        };
        let [place, sum] = sums(self.tuning());
        let (side, shape) = matrix.unwrap_or_default();
        let tiles = [
            place,
            sum,
            biased,
            NOTHING_BEHIND,
            ROWS_IN_ORDER,
            include_str!("../../shaders/rows.wgsl"),
            include_str!("../../shaders/tile.wgsl"),
            include_str!("../../shaders/base.wgsl"),
        ];
        let put = match X::TYPE {
            ElementType::F32 => LANES_PUT,
            ElementType::F16 | ElementType::Bf16 => include_str!("../../shaders/lanes_put_packed.wgsl"),
        };
        let lanes = [ROWS_SHARED, LANES[1], put, include_str!("../../shaders/base_lanes.wgsl")];
        let [tile_m, tile_n, wide] = tile_constants(if columns == 64 { 64 } else { 16 }, true);
        let matrices = [shape, include_str!("../../shaders/base_matrix.wgsl")];
        let on_lanes = form == Form::Many && self.tuning().path == Path::Lanes;
        let more = match matrix {
            Some(_) => &matrices[..],
            None if on_lanes => &lanes,
            None => &[],
        };
        let constants = [tile_m, tile_n, wide, ("OWNERS", self.tuning().owners), (device::MATRIX_SIDE, side)];
        let launch = Launch {
            op: OP,
            entry: match form {
                Form::Few => "base_few",
                Form::Many if matrix.is_some() => "base_matrix",
                Form::Many if on_lanes => "base_lanes",
                Form::Many => "base_many",
            },
            body: &[&tiles[..], more].concat(),
            constants: if matrix.is_some() { &constants } else { &constants[..4] },
            params: &[
                ("tokens", word(OP, "tokens", sizes.tokens)?),
                ("in_features", word(OP, "in_features", sizes.in_features)?),
                ("out_features", word(OP, "out_features", sizes.out_features)?),
                ("x_stride", word(OP, "x_stride", sizes.x_stride)?),
                ("y_stride", word(OP, "y_stride", sizes.y_stride)?),
                ("column_blocks", word(OP, "out_features", blocks)?),
            ],
            bindings: &bindings,
            groups: word(OP, "tokens", groups)?,
        };
        let begin = |block: usize| (block * columns).min(sizes.out_features);
        self.launch_blocks(encoder, &launch, &Blocks { stride: sizes.in_features, blocks, begin: &begin })
    }
}
