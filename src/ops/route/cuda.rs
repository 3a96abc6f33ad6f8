//! Route on CUDA.

use super::{Allow, MAX_TOP_K, OP, Sizes, Weighting, grid};
use crate::adapter::LinearRouter;
use crate::device::cuda::{self, Cuda, Entry, Kernel, Launch, Memory, View, ViewMut, params::RouteParams};
use crate::element::Element;
use crate::error::{Error, Result};
use crate::ops::{Form, live_tokens_address, word};

/// A linear router's parameters in a CUDA device's memory.
#[derive(Debug)]
pub struct CudaRouter {
    router: LinearRouter,
    weight: Memory<f32>,
    bias: Option<Memory<f32>>,
}

impl CudaRouter {
    /// Uploads the parameters.
    pub fn new(cuda: &Cuda, router: LinearRouter) -> Result<Self> {
        let upload = |values: &[f32]| Memory::of(cuda, cuda.upload(values)?);
        let (weight, bias) = (upload(router.weight())?, router.bias().map(upload).transpose()?);
        Ok(Self { router, weight, bias })
    }

    /// The parameters in host memory.
    pub fn linear(&self) -> &LinearRouter {
        &self.router
    }

    /// Where weight and bias (0 without one) lie; refuses a handle of another stream.
    pub(crate) fn addresses(&self, op: &'static str, cuda: &Cuda) -> Result<(u64, u64)> {
        cuda.check_streams(op, [("router", self.weight.stream())])?;
        Ok((self.weight.address(), self.bias.as_ref().map_or(0, |b| b.address())))
    }
}

impl Cuda {
    /// See the [module](super). A score that is not finite sets the status word. `live_tokens` is one word: tokens from there
    /// on are neither read nor written.
    #[expect(clippy::too_many_arguments, reason = "sizes, inputs, outputs: the order on every device")]
    pub fn route<X: Element>(
        &self,
        sizes: &Sizes,
        router: &CudaRouter,
        x: &View<X>,
        allow: Option<Allow<&View<u32>>>,
        live_tokens: Option<&View<u32>>,
        topk_ids: &mut ViewMut<i32>,
        topk_weights: &mut ViewMut<f32>,
    ) -> Result<()> {
        sizes.check(&router.router, x.len(), topk_ids.len(), topk_weights.len())?;
        word(OP, "x", x.len())?;
        let rule = sizes.rule;
        if rule.top_k > MAX_TOP_K {
            return Err(Error::argument(OP, "top_k", format!("at most {MAX_TOP_K} on CUDA"), rule.top_k));
        }
        if !rule.is_plain() || !router.router.is_linear() || allow.is_some() {
            return Err(Error::argument(
                OP,
                "rule",
                "a plain choice of linear scores so far",
                format!("{rule:?}"),
            ));
        }
        let memory = [
            ("router", router.weight.stream()),
            ("x", x.stream()),
            ("live_tokens", live_tokens.and_then(View::stream)),
            ("topk_ids", topk_ids.stream()),
            ("topk_weights", topk_weights.stream()),
        ];
        self.check_streams(OP, memory)?;
        let weight = router.weight.address();
        let params = RouteParams {
            x: x.address(),
            weight,
            bias: router.bias.as_ref().map_or(0, |b| b.address()),
            topk_ids: topk_ids.address(),
            topk_weights: topk_weights.address(),
            status: self.status_address(),
            live_tokens: live_tokens_address(OP, live_tokens)?,
            tokens: word(OP, "tokens", sizes.tokens)?,
            in_features: word(OP, "in_features", sizes.in_features)?,
            x_stride: word(OP, "x_stride", sizes.x_stride)?,
            experts: word(OP, "experts", sizes.experts)?,
            top_k: word(OP, "top_k", rule.top_k)?,
            softmax_all: u32::from(rule.weighting == Weighting::SoftmaxAll),
            x_vector: cuda::is_vector(x.address(), sizes.x_stride, size_of::<X>()).into(),
            w_vector: cuda::is_vector(weight, sizes.in_features, size_of::<f32>()).into(),
        };
        let entry = Entry::of(Kernel::Route, X::TYPE);
        self.launch(OP, &Launch::over(entry, Form::Many, grid(sizes), 1, 1), &params)
    }
}
