//! Route on WebGPU.

use super::{Allow, MAX_TOP_K, OP, Sizes, Weighting, grid};
use crate::adapter::LinearRouter;
use crate::device::wgpu::{Access, Binding, Launch, View, Wgpu};
use crate::element::Element;
use crate::error::{Error, Result};
use crate::ops::{check_packed, word};

/// A linear router's parameters in device memory.
#[derive(Debug)]
pub struct WgpuRouter {
    router: LinearRouter,
    /// The weight, then the bias.
    buffer: wgpu::Buffer,
}

impl WgpuRouter {
    /// Uploads the parameters.
    pub fn new(wgpu: &Wgpu, router: LinearRouter) -> Result<Self> {
        let bias = router.bias().map_or(vec![0.0; router.experts()], <[f32]>::to_vec);
        let buffer = wgpu.upload(&[router.weight(), &bias].concat())?;
        Ok(Self { router, buffer })
    }

    /// Weight and bias in one.
    pub(crate) fn all(&self) -> Result<View<'_, f32>> {
        View::new(&self.buffer, 0, self.router.weight().len() + self.router.experts())
    }

    /// The parameters in host memory.
    pub fn linear(&self) -> &LinearRouter {
        &self.router
    }
}

impl Wgpu {
    /// See the [module](super). Records into `encoder`; a score that is not finite sets the status word.
    #[expect(clippy::too_many_arguments, reason = "sizes, inputs, outputs: the order on every device")]
    pub fn route<X: Element>(
        &self,
        encoder: &mut wgpu::CommandEncoder,
        sizes: &Sizes,
        router: &WgpuRouter,
        x: View<X>,
        allow: Option<Allow<View<u32>>>,
        topk_ids: View<i32>,
        topk_weights: View<f32>,
    ) -> Result<()> {
        sizes.check(&router.router, x.len(), topk_ids.len(), topk_weights.len())?;
        check_packed::<X>(OP, "x", sizes.x_stride, x.len())?;
        let rule = sizes.rule;
        if rule.top_k > MAX_TOP_K {
            return Err(Error::argument(OP, "top_k", format!("at most {MAX_TOP_K} on WebGPU"), rule.top_k));
        }
        if !rule.is_plain() || !router.router.is_linear() || allow.is_some() {
            return Err(Error::argument(
                OP,
                "rule",
                "a plain choice of linear scores so far",
                format!("{rule:?}"),
            ));
        }
        let len = router.router.weight().len();
        let weight = View::<f32>::new(&router.buffer, 0, len)?;
        let bias = View::<f32>::new(&router.buffer, len, sizes.experts)?;
        let launch = Launch {
            op: OP,
            entry: "route",
            body: &[
                "fn bias_of(e: u32) -> f32 { return bias_at(e); }\n",
                include_str!("../../../shaders/rows.wgsl"),
                include_str!("../../../shaders/route_token.wgsl"),
                include_str!("../../../shaders/route.wgsl"),
            ],
            constants: &[
                ("TOP_K", rule.top_k as u32),
                ("SOFTMAX_ALL", u32::from(rule.weighting == Weighting::SoftmaxAll)),
            ],
            params: &[
                ("in_features", word(OP, "in_features", sizes.in_features)?),
                ("experts", word(OP, "experts", sizes.experts)?),
                ("x_stride", word(OP, "x_stride", sizes.x_stride)?),
            ],
            bindings: &[
                Binding::rows("x", x, sizes.x_stride),
                Binding::rows("w", weight, sizes.in_features),
                Binding::read("bias", bias),
                Binding::ids("topk_ids", Access::ReadWrite, topk_ids),
                Binding::write("topk_weights", topk_weights),
                Binding::status(self),
            ],
            groups: word(OP, "tokens", grid(sizes))?,
        };
        self.launch(encoder, &launch)
    }
}
