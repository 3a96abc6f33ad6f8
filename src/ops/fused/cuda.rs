//! Fused on CUDA: z has the element type of x.

use super::{OP, Sizes, cost};
use crate::adapter::slots::{MAX_SLICES, Slots};
use crate::device::cuda::params::{Address, BaseParams, FusedParams, GATE_EXPERTS, GATE_ROWS, output_word};
use crate::device::cuda::{self as device, Cuda, Entry, Kernel, Launch, Offer, View, ViewMut};
use crate::element::{Element, ElementType};
use crate::error::Result;
use crate::ops::{Form as Path, base, live_tokens_address, word};
use bytemuck::Zeroable;

/// The launch on CUDA of the base product and its extension: on tensor cores where the elements and alignment (`vector`: of x,
/// the weight and z) allow. Each slice's columns have blocks of their own.
pub fn grid(
    sizes: &Sizes,
    slices: &[usize],
    (x, a): (ElementType, ElementType),
    dense: bool,
    vector: bool,
    offer: &Offer,
) -> Launch {
    let (kernel, rows, columns) = match (vector && offer.has_mma(x, a), dense) {
        (false, _) => (Kernel::FusedMany, 64, 64),
        (true, false) => (Kernel::FusedSparseMma, 128, 128),
        (true, true) => (Kernel::FusedDenseMma, 128, 128),
    };
    let blocks = slices.iter().fold(0usize, |sum, width| sum.saturating_add(width.div_ceil(columns)));
    let entry = Entry { kernel, x, a };
    let groups = sizes.tokens.div_ceil(rows).saturating_mul(blocks);
    Launch { entry, form: Path::Many, columns, blocks, groups }
}

/// The column behind each slice.
pub(super) fn slice_ends(slots: &Slots) -> [u32; MAX_SLICES] {
    let mut ends = [slots.sizes().out_features as u32; MAX_SLICES];
    let mut end = 0;
    for (slice, width) in ends.iter_mut().zip(slots.slices()) {
        end += *width as u32;
        *slice = end;
    }
    ends
}

/// The base product of a call, by its addresses.
struct Product {
    weight: Address,
    bias: Address,
    x: Address,
    y: Address,
    live_tokens: Address,
}

impl Cuda {
    /// What the cost model knows of this device.
    pub fn fused_limits(&self, problem: &cost::Problem) -> cost::Limits {
        let has_mma = self.offer().has_mma(problem.x, problem.adapters);
        // z has x's element, to which separate launches round h on tensor cores alone.
        let exact = has_mma || problem.x == ElementType::F32;
        cost::Limits {
            bandwidth: 2e12,
            rate: if has_mma { 2e14 } else { 2e13 },
            launch_s: 3e-6,
            tile_tokens: if has_mma { 128 } else { 64 },
            rank_step: if has_mma { 16 } else { 32 },
            few_tokens: super::few_cuda::most_tokens(problem.top_k),
            few_launches: 1,
            plan_launches: 1,
            dense_rows: GATE_ROWS as usize,
            dense_refused: (!exact).then_some("z in 16 bits would round what separate launches do not"),
            dense_on_demand: (problem.x == ElementType::F16).then_some("z may leave the range of f16"),
            dense_experts: GATE_EXPERTS as usize,
            sparse: true,
            batch_invariant: self.offer().batch_invariant,
        }
    }

    /// Base and the experts of `plan` in one pass; `h` is [`Cuda::shrink`]'s.
    ///
    /// Slots that changed since the plan are skipped and set the status word, as are weights that are not finite and adapters
    /// above the largest rank that the launch was made for; a plan's memory that holds no plan of these sizes says so there,
    /// and y is left alone. On tensor cores h times its weight and scaling is rounded to x's element once. A token's bits do
    /// not depend on its batch, as long as B and the weight are finite: a B that is not spoils all tokens of its tile of 128.
    #[expect(
        clippy::too_many_arguments,
        reason = "sizes, plan, pool, inputs, output: the order on every device"
    )]
    pub fn fused_sparse<X: Element>(
        &self,
        sizes: &Sizes,
        plan: &device::Plan,
        pool: &device::Pool,
        weight: &View<X>,
        bias: Option<&View<X>>,
        x: &View<X>,
        h: &View<f32>,
        topk_weights: &View<f32>,
        y: &mut ViewMut<X>,
    ) -> Result<()> {
        let slots = pool.slots();
        sizes.check(slots, weight.len(), bias.map(|b| b.len()), x.len(), y.len())?;
        sizes.check_h(Some(plan.sizes()), pool.max_rank(), h.len(), topk_weights.len())?;
        plan.check_pool(OP, self, pool)?;
        word(OP, "h", h.len())?;
        let memory =
            [("plan", plan.memory.stream()), ("h", h.stream()), ("topk_weights", topk_weights.stream())];
        self.check_streams(OP, memory)?;
        if sizes.routes() == 0 {
            // Without routes there is no plan to read.
            let Sizes { tokens, in_features, out_features, x_stride, y_stride, .. } = *sizes;
            let base = base::Sizes { tokens, in_features, out_features, x_stride, y_stride };
            return self.base(&base, weight, bias, x, None, y);
        }
        let product = self.fused_product(weight, bias, x, None, y)?;
        let fused = FusedParams {
            plan: plan.params(OP, self, pool)?,
            h: h.address(),
            topk_weights: topk_weights.address(),
            h_stride: word(OP, "h_stride", sizes.h_stride)?,
            output: output_word(sizes.output),
            h_vector: device::is_vector(h.address(), sizes.h_stride, size_of::<f32>()).into(),
            z_vector: 1,
            ..FusedParams::zeroed()
        };
        self.fused_launch::<X>(sizes, pool, &product, fused)
    }

    /// The dense form's second product, `y = [x | z] [weight | B_all]^T (+ bias)`, over the pool's rows up to the last in use.
    ///
    /// z may be columns of x's own rows behind `in_features`. Elements of z that are not finite spoil their token's row of y;
    /// a B that is not finite spoils all rows.
    #[expect(clippy::too_many_arguments, reason = "sizes, pool, inputs, output: the order on every device")]
    pub fn fused_dense<X: Element>(
        &self,
        sizes: &Sizes,
        pool: &device::Pool,
        weight: &View<X>,
        bias: Option<&View<X>>,
        x: &View<X>,
        z: &View<X>,
        live_tokens: Option<&View<u32>>,
        y: &mut ViewMut<X>,
    ) -> Result<()> {
        let slots = pool.slots();
        sizes.check(slots, weight.len(), bias.map(|b| b.len()), x.len(), y.len())?;
        sizes.check_z(slots, z.len(), sizes.routes(), sizes.routes())?;
        pool.check_stream(OP, self)?;
        word(OP, "z", z.len())?;
        self.check_streams(OP, [("z", z.stream())])?;
        let product = self.fused_product(weight, bias, x, live_tokens, y)?;
        let fused = FusedParams {
            z: z.address(),
            z_stride: word(OP, "h_stride", sizes.h_stride)?,
            z_rows: word(OP, "used_rows", slots.used_rows())?,
            z_vector: device::is_vector(z.address(), sizes.h_stride, size_of::<X>()).into(),
            dense: 1,
            ..FusedParams::zeroed()
        };
        self.fused_launch::<X>(sizes, pool, &product, fused)
    }

    /// Refuses memory that the kernels cannot address or that is another stream's.
    fn fused_product<X: Element>(
        &self,
        weight: &View<X>,
        bias: Option<&View<X>>,
        x: &View<X>,
        live_tokens: Option<&View<u32>>,
        y: &ViewMut<X>,
    ) -> Result<Product> {
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
        Ok(Product {
            weight: weight.address(),
            bias: bias.map_or(0, |b| b.address()),
            x: x.address(),
            y: y.address(),
            live_tokens: live_tokens_address(OP, live_tokens)?,
        })
    }

    /// `fused` holds the extension's part of the params.
    fn fused_launch<X: Element>(
        &self,
        sizes: &Sizes,
        pool: &device::Pool,
        product: &Product,
        fused: FusedParams,
    ) -> Result<()> {
        let (slots, bytes) = (pool.slots(), size_of::<X>());
        let x_vector = device::is_vector(product.x, sizes.x_stride, bytes);
        let w_vector = device::is_vector(product.weight, sizes.in_features, bytes);
        let vector = x_vector && w_vector && fused.z_vector != 0;
        let elements = (X::TYPE, slots.sizes().element);
        let launch = grid(sizes, slots.slices(), elements, fused.dense != 0, vector, &self.offer());
        let base = BaseParams {
            x: product.x,
            weight: product.weight,
            bias: product.bias,
            y: product.y,
            live_tokens: product.live_tokens,
            tokens: word(OP, "tokens", sizes.tokens)?,
            in_features: word(OP, "in_features", sizes.in_features)?,
            out_features: word(OP, "out_features", sizes.out_features)?,
            x_stride: word(OP, "x_stride", sizes.x_stride)?,
            y_stride: word(OP, "y_stride", sizes.y_stride)?,
            column_blocks: word(OP, "out_features", launch.blocks)?,
            x_vector: x_vector.into(),
            w_vector: w_vector.into(),
            y_vector: device::is_vector(product.y, sizes.y_stride, bytes).into(),
            unused: [0; 3],
        };
        let params = FusedParams {
            base,
            b: pool.b(),
            b_stride: word(OP, "b_stride", pool.b_stride())?,
            slices: word(OP, "slices", slots.slices().len())?,
            slice_ends: slice_ends(slots),
            ..fused
        };
        self.launch(OP, &launch, &params)
    }
}
