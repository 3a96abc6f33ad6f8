//! Route: `x [tokens, in_features]` -> `topk_ids`, `topk_weights` `[tokens, width]`.
//!
//! score `z_te = <x_t, G_e> + bias_e` in f32, or that of a prototype (see [`LinearRouter::prototypes`]) -> mask (see [`Allow`])
//! -> select -> weight (see [`Rule`]). A score that is not finite, of an expert that the token may take, is an error where the
//! host sees it; on a device its token selects nothing (ids -1, weights 0, shared experts included) and the status word says so.

mod allow;
mod cpu;
#[cfg(feature = "cuda")]
pub mod cuda;
mod rule;
#[cfg(feature = "wgpu")]
pub mod wgpu;

pub use allow::{Allow, AllowLists, words};
pub use cpu::CpuRouter;
#[cfg(feature = "cuda")]
pub use cuda::CudaRouter;
pub use rule::{Rule, Select, Weighting};
#[cfg(feature = "wgpu")]
pub use wgpu::WgpuRouter;

use super::{check_equal, check_len, check_routes, check_rows};
use crate::adapter::LinearRouter;
use crate::element::Element;
use crate::error::{Error, Result};

const OP: &str = "route";

/// Largest `top_k` of a GPU's router: its list stays in workgroup memory.
#[cfg(any(feature = "wgpu", feature = "cuda"))]
pub const MAX_TOP_K: usize = 256;

/// Added to the variance of a standardised x, as LayerNorm's default is.
pub const EPSILON: f32 = 1e-5;

/// Sizes of a routing.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sizes {
    /// Rows of x.
    pub tokens: usize,
    /// Columns of x.
    pub in_features: usize,
    /// Elements from one row of x to the next.
    pub x_stride: usize,
    /// Experts to choose from: rows of the router's weight, without a threshold's.
    pub experts: usize,
    /// What is taken of the scores.
    pub rule: Rule,
}

impl Sizes {
    /// Refuses lengths that do not fit; lengths in elements.
    pub fn check(&self, router: &LinearRouter, x: usize, topk_ids: usize, topk_weights: usize) -> Result<()> {
        let Rule { top_k, select, .. } = self.rule;
        self.rule.check()?;
        check_routes(OP, self.tokens, self.rule.width())?;
        check_equal(OP, "router.experts", self.experts.saturating_add(select.rows()), router.experts())?;
        check_equal(OP, "router.in_features", self.in_features, router.in_features())?;
        if top_k > self.experts {
            let expected = format!("at most the router's {} experts", self.experts);
            return Err(Error::argument(OP, "top_k", expected, top_k));
        }
        check_rows(OP, "x", (self.tokens, self.in_features, self.x_stride), x)?;
        check_len(OP, "topk_ids", self.tokens * self.rule.width(), topk_ids)?;
        check_len(OP, "topk_weights", self.tokens * self.rule.width(), topk_weights)
    }
}

/// Selects and weighs one token's scores: the part that every device shares in meaning.
///
/// `scores` is `[experts + rule.select.rows()]`, `allowed` the list of the token's request ([`Allow::lists`]; `None`: all, an empty one: none),
/// `ids` and `weights` are `[rule.width()]`. Errors name the first score that counts and is not finite.
pub fn select(
    rule: &Rule,
    token: usize,
    scores: &[f32],
    allowed: Option<&[u32]>,
    ids: &mut [i32],
    weights: &mut [f32],
) -> Result<()> {
    rule.check()?;
    let experts = scores.len().saturating_sub(rule.select.rows());
    if rule.top_k > experts {
        return Err(Error::argument(OP, "ids", format!("at most {experts} scores' worth"), rule.top_k));
    }
    check_len(OP, "ids", rule.width(), ids.len())?;
    check_len(OP, "weights", rule.width(), weights.len())?;
    if let Some(list) = allowed.filter(|list| !list.is_empty()) {
        check_len(OP, "allowed", words(experts), list.len())?;
    }
    let may = |e: usize| allowed.is_none_or(|list| allow::holds(list, e));
    let finite = scores.iter().fold(true, |all, z| all & z.is_finite());
    let refused = |&e: &usize| !scores[e].is_finite() && (e >= experts || may(e));
    if !finite && let Some(e) = (0..scores.len()).find(refused) {
        return Err(Error::argument(OP, format!("score[{token}, {e}]"), "a finite value", scores[e]));
    }
    rule.apply(scores, may, ids, weights);
    Ok(())
}

/// What a standardised x is divided by: `sqrt(variance + 1e-5)` over the row.
pub(crate) fn deviation(row: impl ExactSizeIterator<Item = f64> + Clone) -> f64 {
    let n = row.len().max(1) as f64;
    let mean = row.clone().sum::<f64>() / n;
    (row.map(|v| (v - mean) * (v - mean)).sum::<f64>() / n + f64::from(EPSILON)).sqrt()
}

/// The definition: every score in f64, rounded to f32, then [`select`].
pub fn definition<X: Element>(
    sizes: &Sizes,
    router: &LinearRouter,
    x: &[X],
    allow: Option<Allow<&[u32]>>,
    topk_ids: &mut [i32],
    topk_weights: &mut [f32],
) -> Result<()> {
    sizes.check(router, x.len(), topk_ids.len(), topk_weights.len())?;
    allow.map_or(Ok(()), |allow| allow.check(sizes.experts))?;
    let mut scores = vec![0f32; router.experts()];
    for t in 0..sizes.tokens {
        let row = x[t * sizes.x_stride..][..sizes.in_features].iter().map(|v| f64::from(v.to_f32()));
        for (e, score) in scores.iter_mut().enumerate() {
            let weight = &router.weight()[e * sizes.in_features..][..sizes.in_features];
            let mut z: f64 = row.clone().zip(weight).map(|(x, &w)| x * f64::from(w)).sum();
            if router.is_standardised() {
                z /= deviation(row.clone());
            }
            if router.is_absolute() {
                z = z.abs();
            }
            *score = (z + router.bias().map_or(0.0, |b| f64::from(b[e]))) as f32;
        }
        let list = allow.map(|allow| allow.list(sizes.experts, t));
        let routes = t * sizes.rule.width()..(t + 1) * sizes.rule.width();
        select(&sizes.rule, t, &scores, list, &mut topk_ids[routes.clone()], &mut topk_weights[routes])?;
    }
    Ok(())
}
