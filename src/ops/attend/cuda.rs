//! Attend on CUDA.

use super::{OP, Sizes, grid};
use crate::device::cuda::params::AttendParams;
use crate::device::cuda::{self, Cuda, Entry, Kernel, Launch, Plan, Pool, View, ViewMut};
use crate::element::Element;
use crate::error::Result;
use crate::ops::{Form, check_equal, word};

impl Cuda {
    /// See the [module](super). Slots that changed since the plan are skipped, and scores that are not finite give a token
    /// weights of 0, both with a bit in the status word. Tokens behind the plan's live ones are neither read nor written.
    pub fn attend<X: Element>(
        &self,
        sizes: &Sizes,
        plan: &Plan,
        pool: &Pool,
        x: &View<X>,
        h: &View<f32>,
        topk_weights: &mut ViewMut<f32>,
    ) -> Result<()> {
        let attention = pool.attention(OP)?;
        check_equal(OP, "in_features", pool.slots().sizes().in_features, sizes.in_features)?;
        plan.check_pool(OP, self, pool)?;
        sizes.check(plan.sizes(), pool.max_rank(), x.len(), h.len(), topk_weights.len())?;
        for (name, len) in [("x", x.len()), ("h", h.len())] {
            word(OP, name, len)?;
        }
        let memory = [
            ("plan", plan.memory.stream()),
            ("x", x.stream()),
            ("h", h.stream()),
            ("topk_weights", topk_weights.stream()),
        ];
        self.check_streams(OP, memory)?;
        let params = AttendParams {
            plan: plan.params(OP, self, pool)?,
            x: x.address(),
            a: attention.a.address(),
            k: attention.k.address(),
            h: h.address(),
            topk_weights: topk_weights.address(),
            in_features: word(OP, "in_features", sizes.in_features)?,
            x_stride: word(OP, "x_stride", sizes.x_stride)?,
            a_stride: word(OP, "a_stride", pool.a_stride())?,
            h_stride: word(OP, "h_stride", sizes.h_stride)?,
            router_rank: word(OP, "router_rank", attention.rank())?,
            x_vector: cuda::is_vector(x.address(), sizes.x_stride, size_of::<X>()).into(),
        };
        let launch = Launch::over(Entry::of(Kernel::Attend, X::TYPE), Form::Many, grid(sizes), 1, 1);
        self.launch(OP, &launch, &params)
    }
}
