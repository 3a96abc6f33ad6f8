//! Attend on WebGPU.

use super::{OP, Sizes, grid};
use crate::device::wgpu::{Access, Binding, Launch, Plan, Pool, View, Wgpu};
use crate::element::Element;
use crate::error::Result;
use crate::ops::{check_equal, check_packed, sums, word};

impl Wgpu {
    /// See the [module](super). Records into `encoder`; slots that changed since the plan are skipped, and scores that are not
    /// finite give a token weights of 0, both with a bit in the status word.
    #[expect(
        clippy::too_many_arguments,
        reason = "sizes, plan, pool, inputs, output: the order on every device"
    )]
    pub fn attend<X: Element>(
        &self,
        encoder: &mut wgpu::CommandEncoder,
        sizes: &Sizes,
        plan: &Plan,
        pool: &Pool,
        x: View<X>,
        h: View<f32>,
        topk_weights: View<f32>,
    ) -> Result<()> {
        let (slots, attention) = (pool.slots(), pool.attention(OP)?);
        check_equal(OP, "in_features", slots.sizes().in_features, sizes.in_features)?;
        plan.check_pool(OP, pool)?;
        sizes.check(plan.sizes(), slots.max_rank(), x.len(), h.len(), topk_weights.len())?;
        check_packed::<X>(OP, "x", sizes.x_stride, x.len())?;
        check_packed::<f32>(OP, "h", sizes.h_stride, h.len())?;
        let (rank, stride) = (attention.rank(), pool.a_stride());
        let a = View::<f32>::new(&attention.a, 0, rank * stride)?;
        let k = View::<f32>::new(&attention.k, 0, rank * slots.sizes().rank_capacity)?;
        let mut params = plan.params()?.to_vec();
        params.extend([
            ("in_features", word(OP, "in_features", sizes.in_features)?),
            ("x_stride", word(OP, "x_stride", sizes.x_stride)?),
            ("a_stride", word(OP, "a_stride", stride)?),
            ("h_stride", word(OP, "h_stride", sizes.h_stride)?),
            ("router_rank", word(OP, "router_rank", rank)?),
        ]);
        let [place, sum] = sums(self.tuning());
        let launch = Launch {
            op: OP,
            entry: "attend",
            body: &[
                place,
                sum,
                include_str!("../../../shaders/rows.wgsl"),
                include_str!("../../../shaders/attend.wgsl"),
            ],
            // Rounded up: one pipeline serves many sizes.
            constants: &[
                ("QUERY", word(OP, "router_rank", rank.next_power_of_two().max(8))?),
                ("ROUTES", word(OP, "top_k", sizes.top_k.next_power_of_two().max(8))?),
            ],
            params: &params,
            bindings: &[
                Binding::rows("x", x, sizes.x_stride),
                Binding::rows("w", a, stride),
                Binding::slots(pool),
                Binding::table("plan", "array<u32>", Access::Read, &plan.buffer),
                Binding::rows("k", k, rank),
                Binding::read("h", h),
                Binding::write("topk_weights", topk_weights),
                Binding::status(self),
            ],
            groups: word(OP, "tokens", grid(sizes))?,
        };
        self.launch(encoder, &launch)
    }
}
