//! Route: `x [tokens, in_features]` -> `topk_ids`, `topk_weights` `[tokens, top_k]`.
//!
//! score `z_te = <x_t, G_e> + bias_e` in f32 -> select the `top_k` largest, best first, ties to the lowest
//! expert -> weight (see [`Weighting`]). A score that is not finite is an error where the host sees it; on a
//! device its token selects nothing (ids -1, weights 0) and the status word says so.

#[cfg(feature = "cuda")]
pub mod cuda;
#[cfg(feature = "cuda")]
pub use cuda::CudaRouter;

#[cfg(feature = "wgpu")]
use super::word;
use super::{check_equal, check_len, check_routes, check_rows};
use crate::adapter::LinearRouter;
use crate::device::cpu::{Cpu, Matrix, SharedMut};
#[cfg(feature = "wgpu")]
use crate::device::wgpu::{Access, Binding, Launch, View, Wgpu};
use crate::element::Element;
use crate::error::{Error, Result};

const OP: &str = "route";

/// Tokens whose scores the CPU holds at once.
const TOKENS_AT_ONCE: usize = 1024;

/// Largest `top_k` of a GPU's router: its list stays in workgroup memory.
#[cfg(any(feature = "wgpu", feature = "cuda"))]
pub const MAX_TOP_K: usize = 256;

/// How selected scores become weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Weighting {
    /// Softmax over the selected: the same function as softmax over all, renormalised.
    SoftmaxSelected,
    /// Softmax over all experts; the selected keep their share, which sums to less than 1.
    SoftmaxAll,
    /// Softmax over all experts, then divided by the selected shares' sum.
    SoftmaxAllRenormalised,
}

impl Weighting {
    /// All of them, in the order of the tests' tables.
    pub const ALL: [Self; 3] = [Self::SoftmaxSelected, Self::SoftmaxAll, Self::SoftmaxAllRenormalised];

    /// The name in case strings.
    pub const fn name(self) -> &'static str {
        match self {
            Self::SoftmaxSelected => "softmax_selected",
            Self::SoftmaxAll => "softmax_all",
            Self::SoftmaxAllRenormalised => "softmax_all_renormalised",
        }
    }
}

/// Sizes of a routing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Sizes {
    /// Rows of x.
    pub tokens: usize,
    /// Columns of x.
    pub in_features: usize,
    /// Elements from one row of x to the next.
    pub x_stride: usize,
    /// Rows of the router's weight.
    pub experts: usize,
    /// Experts selected per token; at most `experts`.
    pub top_k: usize,
    /// Scores to weights.
    pub weighting: Weighting,
}

impl Sizes {
    /// Refuses lengths that do not fit; lengths in elements.
    pub fn check(&self, router: &LinearRouter, x: usize, topk_ids: usize, topk_weights: usize) -> Result<()> {
        check_routes(OP, self.tokens, self.top_k)?;
        check_equal(OP, "router.experts", self.experts, router.experts())?;
        check_equal(OP, "router.in_features", self.in_features, router.in_features())?;
        if self.top_k > self.experts {
            return Err(Error::argument(
                OP,
                "top_k",
                format!("at most the router's {} experts", self.experts),
                self.top_k,
            ));
        }
        check_rows(OP, "x", (self.tokens, self.in_features, self.x_stride), x)?;
        check_len(OP, "topk_ids", self.tokens * self.top_k, topk_ids)?;
        check_len(OP, "topk_weights", self.tokens * self.top_k, topk_weights)
    }
}

/// Selects and weighs one token's scores: the part that every device shares in meaning.
///
/// `ids` and `weights` are `[top_k]`. Errors name the first score that is not finite.
pub fn select(
    weighting: Weighting,
    token: usize,
    scores: &[f32],
    ids: &mut [i32],
    weights: &mut [f32],
) -> Result<()> {
    if ids.len() > scores.len() {
        return Err(Error::argument(OP, "ids", format!("at most {} scores' worth", scores.len()), ids.len()));
    }
    check_len(OP, "weights", ids.len(), weights.len())?;
    if let Some(e) = scores.iter().position(|z| !z.is_finite()) {
        return Err(Error::argument(OP, format!("score[{token}, {e}]"), "a finite value", scores[e]));
    }
    let mut chosen = 0;
    for (e, &z) in scores.iter().enumerate() {
        // Insertion into a list sorted best first; an equal score stays behind the lower expert.
        let place = ids[..chosen].iter().position(|&i| z > scores[i as usize]).unwrap_or(chosen);
        if place < ids.len() {
            let end = chosen.min(ids.len() - 1);
            ids.copy_within(place..end, place + 1);
            ids[place] = e as i32;
            chosen = (chosen + 1).min(ids.len());
        }
    }
    let Some(&best) = ids.first() else { return Ok(()) };
    let largest = scores[best as usize];
    for (w, &i) in weights.iter_mut().zip(ids.iter()) {
        *w = (scores[i as usize] - largest).exp();
    }
    let selected: f32 = weights.iter().sum();
    let total = match weighting {
        Weighting::SoftmaxSelected | Weighting::SoftmaxAllRenormalised => selected,
        Weighting::SoftmaxAll => scores.iter().map(|z| (z - largest).exp()).sum(),
    };
    for w in weights.iter_mut() {
        *w /= total;
    }
    Ok(())
}

/// The definition: every score in f64, rounded to f32, then [`select`].
pub fn definition<X: Element>(
    sizes: &Sizes,
    router: &LinearRouter,
    x: &[X],
    topk_ids: &mut [i32],
    topk_weights: &mut [f32],
) -> Result<()> {
    sizes.check(router, x.len(), topk_ids.len(), topk_weights.len())?;
    let mut scores = vec![0f32; sizes.experts];
    for t in 0..sizes.tokens {
        for (e, score) in scores.iter_mut().enumerate() {
            let mut z = router.bias().map_or(0.0, |b| f64::from(b[e]));
            for i in 0..sizes.in_features {
                z += f64::from(x[t * sizes.x_stride + i].to_f32())
                    * f64::from(router.weight()[e * sizes.in_features + i]);
            }
            *score = z as f32;
        }
        let routes = t * sizes.top_k..(t + 1) * sizes.top_k;
        select(sizes.weighting, t, &scores, &mut topk_ids[routes.clone()], &mut topk_weights[routes])?;
    }
    Ok(())
}

/// The launch: one workgroup per token.
#[cfg(any(feature = "wgpu", feature = "cuda"))]
pub fn grid(sizes: &Sizes) -> usize {
    if sizes.top_k == 0 { 0 } else { sizes.tokens }
}

impl Cpu {
    /// See the [module](self); scores are f32 products in one fixed order.
    pub fn route<X: Element>(
        &self,
        sizes: &Sizes,
        router: &LinearRouter,
        x: &[X],
        topk_ids: &mut [i32],
        topk_weights: &mut [f32],
    ) -> Result<()> {
        sizes.check(router, x.len(), topk_ids.len(), topk_weights.len())?;
        let Sizes { tokens, in_features, x_stride, experts, top_k, weighting } = *sizes;
        if top_k == 0 {
            return Ok(());
        }
        // Tokens in parts, so that the scores stay small.
        let mut scores = vec![0f32; tokens.min(TOKENS_AT_ONCE) * experts];
        let (ids, weights) = (SharedMut::new(topk_ids), SharedMut::new(topk_weights));
        let first_error = std::sync::Mutex::new(None::<(usize, Error)>);
        for first in (0..tokens).step_by(TOKENS_AT_ONCE) {
            let count = TOKENS_AT_ONCE.min(tokens - first);
            self.dot_rows(
                (count, experts),
                |t| &x[(first + t) * x_stride..][..in_features],
                Matrix::row_major(router.weight(), in_features),
                (&mut scores, experts),
                |_, e, z| z + router.bias().map_or(0.0, |b| b[e]),
            );
            self.each(count, |t| {
                let n = (first + t) * top_k;
                // SAFETY: every token is one task.
                let (ids, weights) = unsafe { (ids.part(n, top_k), weights.part(n, top_k)) };
                if let Err(e) = select(weighting, first + t, &scores[t * experts..][..experts], ids, weights)
                {
                    let mut earliest = first_error.lock().unwrap_or_else(|p| p.into_inner());
                    if earliest.as_ref().is_none_or(|(earlier, _)| t < *earlier) {
                        *earliest = Some((t, e));
                    }
                }
            });
            if let Some((_, e)) = first_error.lock().unwrap_or_else(|p| p.into_inner()).take() {
                return Err(e);
            }
        }
        Ok(())
    }
}

/// A linear router's parameters in device memory.
#[cfg(feature = "wgpu")]
#[derive(Debug)]
pub struct WgpuRouter {
    router: LinearRouter,
    /// The weight, then the bias.
    buffer: wgpu::Buffer,
}

#[cfg(feature = "wgpu")]
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

#[cfg(feature = "wgpu")]
impl Wgpu {
    /// See the [module](self). Records into `encoder`; a score that is not finite sets the status word.
    pub fn route<X: Element>(
        &self,
        encoder: &mut wgpu::CommandEncoder,
        sizes: &Sizes,
        router: &WgpuRouter,
        x: View<X>,
        topk_ids: View<i32>,
        topk_weights: View<f32>,
    ) -> Result<()> {
        sizes.check(&router.router, x.len(), topk_ids.len(), topk_weights.len())?;
        super::check_packed::<X>(OP, "x", sizes.x_stride, x.len())?;
        if sizes.top_k > MAX_TOP_K {
            return Err(Error::argument(OP, "top_k", format!("at most {MAX_TOP_K} on WebGPU"), sizes.top_k));
        }
        let len = router.router.weight().len();
        let weight = View::<f32>::new(&router.buffer, 0, len)?;
        let bias = View::<f32>::new(&router.buffer, len, sizes.experts)?;
        let launch = Launch {
            op: OP,
            entry: "route",
            body: &[
                "fn bias_of(e: u32) -> f32 { return bias_at(e); }\n",
                include_str!("../../shaders/rows.wgsl"),
                include_str!("../../shaders/route_token.wgsl"),
                include_str!("../../shaders/route.wgsl"),
            ],
            constants: &[
                ("TOP_K", sizes.top_k as u32),
                ("SOFTMAX_ALL", u32::from(sizes.weighting == Weighting::SoftmaxAll)),
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
