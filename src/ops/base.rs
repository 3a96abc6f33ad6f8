//! Base: the frozen linear layer, `y = x weight^T (+ bias)`; `weight [out_features, in_features]`.

#[cfg(any(feature = "wgpu", feature = "cuda"))]
use super::{Form, word};
#[cfg(feature = "wgpu")]
use super::{Grid, check_packed, tile_constants};
use super::{check_len, check_rows};
use crate::device::cpu::Cpu;
#[cfg(feature = "cuda")]
use crate::device::cuda::{self, Cuda, Entry, Kernel, params::BaseParams};
#[cfg(feature = "wgpu")]
use crate::device::wgpu::{Binding, Launch, TILE_ROWS, View, Wgpu};
use crate::element::Element;
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

/// The launch: up to 4 tokens read every weight once each; more share it in tiles of 64 x 64.
#[cfg(feature = "wgpu")]
pub fn grid(sizes: &Sizes, batch_invariant: bool) -> Grid {
    let few = sizes.tokens <= 4 && !batch_invariant;
    let (form, columns, rows) =
        if few { (Form::Few, 8, sizes.tokens) } else { (Form::Many, 64, sizes.tokens.div_ceil(TILE_ROWS)) };
    let blocks = sizes.out_features.div_ceil(columns);
    Grid { form, columns, blocks, groups: rows * blocks }
}

/// The launch on CUDA: up to 8 tokens read every weight once, a warp a column; more share it in tiles, on tensor cores where
/// elements and alignment (`vector`: of x and of the weight) allow.
#[cfg(feature = "cuda")]
pub fn cuda_grid(sizes: &Sizes, x: crate::ElementType, vector: bool, offer: &cuda::Offer) -> cuda::Launch {
    let few = sizes.tokens <= 8 && !offer.batch_invariant;
    let (kernel, form, rows, columns) = match (few, vector && offer.has_mma(x, x)) {
        (true, _) => (Kernel::BaseFew, Form::Few, 8, 8),
        (false, false) => (Kernel::BaseMany, Form::Many, 64, 64),
        (false, true) => (Kernel::BaseMma, Form::Many, 128, 128),
    };
    cuda::Launch::over(Entry::of(kernel, x), form, sizes.tokens.div_ceil(rows), sizes.out_features, columns)
}

impl Cpu {
    /// See the [module](self); every product is one sum in one order, whatever the batch.
    pub fn base<X: Element>(
        &self,
        sizes: &Sizes,
        weight: &[X],
        bias: Option<&[X]>,
        x: &[X],
        y: &mut [X],
    ) -> Result<()> {
        sizes.check(weight.len(), bias.map(<[X]>::len), x.len(), y.len())?;
        let Sizes { tokens, in_features, out_features, x_stride, y_stride } = *sizes;
        self.dot_rows(
            (tokens, out_features),
            |t| &x[t * x_stride..][..in_features],
            |o| &weight[o * in_features..][..in_features],
            (y, y_stride),
            |_, o, sum| X::from_f32(sum + bias.map_or(0.0, |b| b[o].to_f32())),
        );
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
        let Grid { form, columns, blocks, groups } = grid(sizes, self.is_batch_invariant());
        let mut bindings = vec![
            Binding::rows("x", x, sizes.x_stride),
            Binding::rows("w", weight, sizes.in_features),
            Binding::write("y", y),
        ];
        let biased = match bias {
            Some(bias) => {
                bindings.push(Binding::read("bias", bias));
                "fn bias_of(o: u32) -> f32 { return bias_at(o); }\n"
            }
            None => "fn bias_of(o: u32) -> f32 { return 0.0; }\n",
        };
        let (rows, tile) = (include_str!("../../shaders/rows.wgsl"), include_str!("../../shaders/tile.wgsl"));
        let launch = Launch {
            op: OP,
            entry: if form == Form::Few { "base_few" } else { "base_many" },
            body: &[biased, rows, tile, include_str!("../../shaders/base.wgsl")],
            constants: &tile_constants(if form == Form::Few { 16 } else { columns }, true),
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
        self.launch(encoder, &launch)
    }
}

#[cfg(feature = "cuda")]
impl Cuda {
    /// See the [module](self). `live_tokens` is one word: rows of x from there on are not read, rows of y not written.
    pub fn base<X: Element>(
        &self,
        sizes: &Sizes,
        weight: &cuda::View<X>,
        bias: Option<&cuda::View<X>>,
        x: &cuda::View<X>,
        live_tokens: Option<&cuda::View<u32>>,
        y: &mut cuda::ViewMut<X>,
    ) -> Result<()> {
        sizes.check(weight.len(), bias.map(|b| b.len()), x.len(), y.len())?;
        for (name, len) in [("weight", weight.len()), ("x", x.len()), ("y", y.len())] {
            word(OP, name, len)?;
        }
        let bytes = size_of::<X>();
        let x_vector = cuda::is_vector(x.address(), sizes.x_stride, bytes);
        let w_vector = cuda::is_vector(weight.address(), sizes.in_features, bytes);
        let launch = cuda_grid(sizes, X::TYPE, x_vector && w_vector, &self.offer());
        let params = BaseParams {
            x: x.address(),
            weight: weight.address(),
            bias: bias.map_or(0, |b| b.address()),
            y: y.address(),
            live_tokens: super::live_tokens_address(OP, live_tokens)?,
            tokens: word(OP, "tokens", sizes.tokens)?,
            in_features: word(OP, "in_features", sizes.in_features)?,
            out_features: word(OP, "out_features", sizes.out_features)?,
            x_stride: word(OP, "x_stride", sizes.x_stride)?,
            y_stride: word(OP, "y_stride", sizes.y_stride)?,
            column_blocks: word(OP, "out_features", launch.blocks)?,
            x_vector: x_vector.into(),
            w_vector: w_vector.into(),
            y_vector: cuda::is_vector(y.address(), sizes.y_stride, bytes).into(),
            unused: [0; 3],
        };
        self.launch(OP, &launch, &params)
    }
}
