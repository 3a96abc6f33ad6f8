//! Route on CUDA.

use super::{Allow, MAX_TOP_K, OP, Rule, Select, Sizes, Weighting};
use crate::adapter::LinearRouter;
use crate::device::cuda::params::{ROUTE_TOKENS, ROUTE_TOP_K, RouteParams, select_word, weighting_word};
use crate::device::cuda::{self, Cuda, Entry, Kernel, Launch, Memory, Offer, View, ViewMut};
use crate::element::{Element, ElementType};
use crate::error::{Error, Result};
use crate::ops::{Form, live_tokens_address, word};

/// Tokens from which on tiles of them are taken: where reading the router once a token from the second-level cache takes as
/// long, on a device of about 100 multiprocessors, as one of them takes to multiply it by 8 tokens.
const MANY_TOKENS: usize = 128;

/// The launch on CUDA: a block per token, or, of many tokens and up to 64 selected experts, per 8, which share what they read
/// of the router.
pub fn grid(sizes: &Sizes, x: ElementType, offer: &Offer) -> Launch {
    let many =
        (offer.batch_invariant || sizes.tokens >= MANY_TOKENS) && sizes.rule.top_k <= ROUTE_TOP_K as usize;
    let (kernel, form, rows) = match many {
        false => (Kernel::RouteFew, Form::Few, 1),
        true => (Kernel::RouteMany, Form::Many, ROUTE_TOKENS as usize),
    };
    let tokens = if sizes.rule.width() == 0 { 0 } else { sizes.tokens };
    Launch::over(Entry::of(kernel, x), form, tokens.div_ceil(rows), 1, 1)
}

/// Whether a rule asks for the sum over all experts that a token may take.
fn sums_all(rule: &Rule) -> bool {
    use Weighting::{AboveThreshold, SoftmaxAll, SoftmaxTwice};
    rule.select != Select::TopK || [SoftmaxAll, SoftmaxTwice, AboveThreshold].contains(&rule.weighting)
}

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
    /// See the [module](super). A score that is not finite sets the status word. The offsets of `allow` are read on the device, which
    /// trusts their order: of others any of the lists may be a token's. `live_tokens` is one word: tokens from there
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
        let requests = allow.map_or(Ok(0), |allow| allow.requests(sizes.experts, |view| view.len()))?;
        let memory = [
            ("router", router.weight.stream()),
            ("x", x.stream()),
            ("allow.offsets", allow.and_then(|allow| allow.offsets.stream())),
            ("allow.lists", allow.and_then(|allow| allow.lists.stream())),
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
            offsets: allow.map_or(0, |allow| allow.offsets.address()),
            lists: allow.map_or(0, |allow| allow.lists.address()),
            topk_ids: topk_ids.address(),
            topk_weights: topk_weights.address(),
            status: self.status_address(),
            live_tokens: live_tokens_address(OP, live_tokens)?,
            tokens: word(OP, "tokens", sizes.tokens)?,
            in_features: word(OP, "in_features", sizes.in_features)?,
            x_stride: word(OP, "x_stride", sizes.x_stride)?,
            experts: word(OP, "experts", sizes.experts)?,
            top_k: word(OP, "top_k", rule.top_k)?,
            shared: word(OP, "shared", rule.shared)?,
            requests: word(OP, "allow.offsets", requests + 1)? - 1,
            select: select_word(rule.select),
            weighting: weighting_word(rule.weighting),
            sums_all: sums_all(&rule).into(),
            standardised: router.router.is_standardised().into(),
            absolute: router.router.is_absolute().into(),
            threshold: match rule.select {
                Select::TopK => 0.0,
                Select::Threshold(threshold) | Select::LearnedThreshold(threshold) => threshold,
            },
            x_vector: cuda::is_vector(x.address(), sizes.x_stride, size_of::<X>()).into(),
            w_vector: cuda::is_vector(weight, sizes.in_features, size_of::<f32>()).into(),
            unused: 0,
        };
        self.launch(OP, &grid(sizes, X::TYPE, &self.offer()), &params)
    }
}
