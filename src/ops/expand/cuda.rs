//! Expand on CUDA.

use super::{OP, Sizes};
use crate::device::cuda::params::{ExpandParams, output_word};
use crate::device::cuda::{self, Cuda, Entry, Kernel, Launch, Offer, Plan, Pool, View, ViewMut};
use crate::element::{Element, ElementType};
use crate::error::Result;
use crate::ops::{Form, base, check_equal, word};

/// The launch on CUDA for a pool with `live` adapters of at most `max_rank` and a plan of `chunks` chunks: a block per row
/// and 512 columns until the routes of a chunk share experts, a block per chunk and 128 columns from there, on tensor cores
/// where the elements and ranks below 2^16 allow; these pay off at half the sharing.
pub fn grid(
    sizes: &Sizes,
    (y, b): (ElementType, ElementType),
    (live, max_rank, chunks): (usize, usize, usize),
    offer: &Offer,
) -> Launch {
    let routes = sizes.tokens.saturating_mul(sizes.top_k);
    let (per_chunk, mma) = (routes.div_ceil(chunks.max(1)), max_rank <= 0xffff && offer.has_mma(y, b));
    let shared = per_chunk >= if mma { live } else { live.saturating_mul(2) };
    let many = routes > 0 && (offer.batch_invariant || (sizes.tokens >= 16 && shared));
    let (kernel, form, rows, columns) = match (many, mma) {
        (false, _) => (Kernel::ExpandFew, Form::Few, sizes.output.y_rows(sizes.tokens, sizes.top_k), 512),
        (true, false) => (Kernel::ExpandMany, Form::Many, chunks, 128),
        (true, true) => (Kernel::ExpandMma, Form::Many, chunks, 128),
    };
    Launch::over(Entry { kernel, x: y, a: b }, form, rows, sizes.out_features, columns)
}

impl Cuda {
    /// See the [module](super). Slots that changed since the plan are skipped and set the status word. On tensor cores h is
    /// rounded to y's element once.
    pub fn expand<Y: Element>(
        &self,
        sizes: &Sizes,
        plan: &Plan,
        pool: &Pool,
        h: &View<f32>,
        topk_weights: &View<f32>,
        y: &mut ViewMut<Y>,
    ) -> Result<()> {
        let slots = pool.slots();
        check_equal(OP, "out_features", slots.sizes().out_features, sizes.out_features)?;
        slots.check_not_packed(OP)?;
        plan.check_pool(OP, self, pool)?;
        sizes.check(plan.sizes(), pool.max_rank(), h.len(), topk_weights.len(), y.len())?;
        for (name, len) in [("h", h.len()), ("y", y.len())] {
            word(OP, name, len)?;
        }
        let memory = [
            ("plan", plan.memory.stream()),
            ("h", h.stream()),
            ("topk_weights", topk_weights.stream()),
            ("y", y.stream()),
        ];
        self.check_streams(OP, memory)?;
        if plan.sizes().routes() == 0 {
            return if sizes.accumulate { Ok(()) } else { self.zero_rows(sizes, y) };
        }
        let elements = (Y::TYPE, slots.sizes().element);
        let launch = grid(sizes, elements, (pool.live(), pool.max_rank(), plan.layout.chunks), &self.offer());
        let params = ExpandParams {
            plan: plan.params(OP, self, pool)?,
            h: h.address(),
            b: pool.b(),
            topk_weights: topk_weights.address(),
            y: y.address(),
            out_features: word(OP, "out_features", sizes.out_features)?,
            b_stride: word(OP, "b_stride", pool.b_stride())?,
            h_stride: word(OP, "h_stride", sizes.h_stride)?,
            y_stride: word(OP, "y_stride", sizes.y_stride)?,
            column_blocks: word(OP, "out_features", launch.blocks)?,
            h_vector: cuda::is_vector(h.address(), sizes.h_stride, size_of::<f32>()).into(),
            y_vector: cuda::is_vector(y.address(), sizes.y_stride, size_of::<Y>()).into(),
            output: output_word(sizes.output),
            accumulate: sizes.accumulate.into(),
            unused: [0; 3],
        };
        self.launch(OP, &launch, &params)
    }

    /// Without routes there is no plan to read: a product over no columns.
    fn zero_rows<Y: Element>(&self, sizes: &Sizes, y: &mut ViewMut<Y>) -> Result<()> {
        let (tokens, out_features) = (sizes.output.y_rows(sizes.tokens, sizes.top_k), sizes.out_features);
        let base =
            base::Sizes { tokens, in_features: 0, out_features, x_stride: 0, y_stride: sizes.y_stride };
        // Copies of no bytes still name an address: a real one.
        // SAFETY: no element of these is read.
        let none = unsafe { View::from_raw(y.address(), 0) };
        self.base(&base, &none, None, &none, None, y)
    }
}
