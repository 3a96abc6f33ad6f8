//! Base on CUDA.

use super::{OP, Sizes};
use crate::device::cuda::{self, Cuda, Entry, Kernel, Launch, Offer, View, ViewMut, params::BaseParams};
use crate::element::{Element, ElementType};
use crate::error::Result;
use crate::ops::{Form, live_tokens_address, word};

/// The launch on CUDA: up to 8 tokens read every weight once, a warp a column; more share it in tiles, on tensor cores where
/// elements and alignment (`vector`: of x and of the weight) allow.
pub fn grid(sizes: &Sizes, x: ElementType, vector: bool, offer: &Offer) -> Launch {
    let few = sizes.tokens <= 8 && !offer.batch_invariant;
    let (kernel, form, rows, columns) = match (few, vector && offer.has_mma(x, x)) {
        (true, _) => (Kernel::BaseFew, Form::Few, 8, 8),
        (false, false) => (Kernel::BaseMany, Form::Many, 64, 64),
        (false, true) => (Kernel::BaseMma, Form::Many, 128, 128),
    };
    Launch::over(Entry::of(kernel, x), form, sizes.tokens.div_ceil(rows), sizes.out_features, columns)
}

impl Cuda {
    /// See the [module](super). `live_tokens` is one word: rows of x from there on are not read, rows of y not written.
    pub fn base<X: Element>(
        &self,
        sizes: &Sizes,
        weight: &View<X>,
        bias: Option<&View<X>>,
        x: &View<X>,
        live_tokens: Option<&View<u32>>,
        y: &mut ViewMut<X>,
    ) -> Result<()> {
        sizes.check(weight.len(), bias.map(|b| b.len()), x.len(), y.len())?;
        for (name, len) in [("weight", weight.len()), ("x", x.len()), ("y", y.len())] {
            word(OP, name, len)?;
        }
        let memory = [
            ("weight", weight.stream()),
            ("bias", bias.and_then(View::stream)),
            ("x", x.stream()),
            ("live_tokens", live_tokens.and_then(View::stream)),
            ("y", y.stream()),
        ];
        self.check_streams(OP, memory)?;
        let bytes = size_of::<X>();
        let x_vector = cuda::is_vector(x.address(), sizes.x_stride, bytes);
        let w_vector = cuda::is_vector(weight.address(), sizes.in_features, bytes);
        let launch = grid(sizes, X::TYPE, x_vector && w_vector, &self.offer());
        let params = BaseParams {
            x: x.address(),
            weight: weight.address(),
            bias: bias.map_or(0, |b| b.address()),
            y: y.address(),
            live_tokens: live_tokens_address(OP, live_tokens)?,
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
