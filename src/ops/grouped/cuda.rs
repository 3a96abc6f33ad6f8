//! Grouped on CUDA.

use super::{Lens, OP, Rows, Sizes, check_pool};
use crate::device::cuda::params::GroupedParams;
use crate::device::cuda::{
    self, Cuda, Entry, GROUP_COUNTERS, Kernel, Launch, Offer, Plan, Pool, View, ViewMut,
};
use crate::element::{Element, ElementType};
use crate::error::{Error, Result};
use crate::ops::{Form, base, check_equal, word};

/// The launch on CUDA for a plan of at most `max_tiles` tiles: a block per tile (64 routes of one expert) and 128 rows of the
/// weight on tensor cores where elements and alignment (`vector`: of x and of the weight) allow, else 64.
pub fn grid(
    sizes: &Sizes,
    (x, a): (ElementType, ElementType),
    max_tiles: usize,
    vector: bool,
    offer: &Offer,
) -> Launch {
    let (kernel, rows) =
        if vector && offer.has_mma(x, a) { (Kernel::GroupedMma, 128) } else { (Kernel::GroupedMany, 64) };
    let columns = if sizes.rows == Rows::Gated { rows / 2 } else { rows };
    Launch::over(Entry { kernel, x, a }, Form::Many, max_tiles, sizes.width(), columns)
}

/// f32 elements of scratch that a call on CUDA needs: a row for every route of a combined product.
pub fn scratch_len(sizes: &Sizes) -> usize {
    if sizes.rows == Rows::Combined { sizes.routes().saturating_mul(sizes.out_features) } else { 0 }
}

/// How many tokens share a counter, so that those of all tokens and blocks of columns fit.
fn group_tokens(tokens: usize, column_blocks: usize) -> Result<usize> {
    let groups = GROUP_COUNTERS / column_blocks.max(1);
    if groups == 0 {
        let expected = format!("at most {GROUP_COUNTERS} blocks of columns where combined");
        return Err(Error::argument(OP, "out_features", expected, column_blocks));
    }
    Ok(tokens.div_ceil(groups).max(1))
}

impl Cuda {
    /// See the [module](super), in one launch. `plan` is the base experts', made over [`Pool::markers`]; `pool` holds the
    /// LoRAs, two slices of `width` columns where gated; `loras` and `h` are [`Cuda::shrink`]'s of that pool. `scratch` is
    /// needed where combined, see [`scratch_len`].
    ///
    /// A slot that is empty or changed since `loras` was made, a rank above the launch's and a weight that is not finite count
    /// for nothing and set the status word; memory that holds no plan of these LoRAs says so there, and y is left alone. On
    /// tensor cores h is rounded to x's element once. Combined launches share counters in device memory that each leaves
    /// at zero: graphs captured from one handle must not run beside one another or beside its calls.
    #[expect(
        clippy::too_many_arguments,
        reason = "sizes, plan, pool, inputs, output: the order on every device"
    )]
    pub fn grouped<X: Element>(
        &self,
        sizes: &Sizes,
        plan: &Plan,
        pool: &Pool,
        loras: &Plan,
        weight: &View<X>,
        x: &View<X>,
        h: &View<f32>,
        topk_weights: &View<f32>,
        scratch: &mut ViewMut<f32>,
        y: &mut ViewMut<X>,
    ) -> Result<()> {
        let lens = Lens {
            weight: weight.len(),
            x: x.len(),
            h: h.len(),
            loras: loras.sizes().routes(),
            topk_weights: topk_weights.len(),
            y: y.len(),
        };
        sizes.check(pool.max_rank(), &lens)?;
        check_pool(sizes, pool.slots())?;
        check_equal(OP, "plan.tokens", sizes.tokens, plan.sizes().tokens)?;
        check_equal(OP, "plan.top_k", sizes.top_k, plan.sizes().top_k)?;
        check_equal(OP, "plan.experts", sizes.experts, plan.sizes().experts)?;
        loras.check_pool(OP, self, pool)?;
        let needed = scratch_len(sizes);
        if scratch.len() < needed {
            return Err(Error::argument(OP, "scratch", format!("at least {needed} elements"), scratch.len()));
        }
        for (name, len) in [("x", x.len()), ("h", h.len()), ("y", y.len())] {
            word(OP, name, len)?;
        }
        let memory = [
            ("plan", plan.memory.stream()),
            ("loras", loras.memory.stream()),
            ("weight", weight.stream()),
            ("x", x.stream()),
            ("h", h.stream()),
            ("topk_weights", topk_weights.stream()),
            ("scratch", scratch.stream()),
            ("y", y.stream()),
        ];
        self.check_streams(OP, memory)?;
        if sizes.routes() == 0 {
            return if sizes.rows == Rows::Combined { self.zero_tokens(sizes, y) } else { Ok(()) };
        }
        let bytes = size_of::<X>();
        let x_vector = cuda::is_vector(x.address(), sizes.x_stride, bytes);
        let w_vector = cuda::is_vector(weight.address(), sizes.in_features, bytes);
        let elements = (X::TYPE, pool.slots().sizes().element);
        let launch = grid(sizes, elements, plan.layout.max_tiles, x_vector && w_vector, &self.offer());
        let loras = loras.params(OP, self, pool)?;
        let params = GroupedParams {
            plan: plan.own_params(OP, self)?,
            loras: loras.slots,
            lora_plan: loras.words,
            x: x.address(),
            weight: weight.address(),
            h: h.address(),
            b: pool.b(),
            topk_weights: topk_weights.address(),
            scratch: scratch.address(),
            counters: self.group_counters_address(),
            y: y.address(),
            slots: word(OP, "slots", pool.slots().sizes().experts)?,
            slices: word(OP, "slices", pool.slots().slices().len())?,
            lora_rank: loras.max_rank,
            in_features: word(OP, "in_features", sizes.in_features)?,
            out_features: word(OP, "out_features", sizes.out_features)?,
            width: word(OP, "out_features", sizes.width())?,
            x_stride: word(OP, "x_stride", sizes.x_stride)?,
            h_stride: word(OP, "h_stride", sizes.h_stride)?,
            b_stride: word(OP, "b_stride", pool.b_stride())?,
            y_stride: word(OP, "y_stride", sizes.y_stride)?,
            column_blocks: word(OP, "out_features", launch.blocks)?,
            rows: rows_word(sizes.rows),
            x_per_route: sizes.x_per_route.into(),
            group_tokens: match sizes.rows {
                Rows::Combined => word(OP, "tokens", group_tokens(sizes.tokens, launch.blocks)?)?,
                Rows::Plain | Rows::Gated => 1,
            },
            x_vector: x_vector.into(),
            w_vector: w_vector.into(),
            h_vector: cuda::is_vector(h.address(), sizes.h_stride, size_of::<f32>()).into(),
            y_vector: cuda::is_vector(y.address(), sizes.y_stride, bytes).into(),
            tiles: word(OP, "tiles", plan.layout.max_tiles)?,
            lora_ids: loras.at_ids,
            lora_stamp: loras.stamp,
            unused: 0,
        };
        self.launch(OP, &launch, &params)
    }

    /// Without routes there is no plan to read: a product over no columns.
    fn zero_tokens<X: Element>(&self, sizes: &Sizes, y: &mut ViewMut<X>) -> Result<()> {
        let Sizes { tokens, out_features, y_stride, .. } = *sizes;
        let base = base::Sizes { tokens, in_features: 0, out_features, x_stride: 0, y_stride };
        // Copies of no bytes still name an address: a real one.
        // SAFETY: no element of these is read.
        let none = unsafe { View::from_raw(y.address(), 0) };
        self.base(&base, &none, None, &none, None, y)
    }
}

/// Values of `rows` in [`GroupedParams`].
pub(crate) const fn rows_word(rows: Rows) -> u32 {
    match rows {
        Rows::Plain => 0,
        Rows::Gated => 1,
        Rows::Combined => 2,
    }
}
