//! Attend: the weights of RAMoLE's experts, from h of their routes: `x, h` -> `topk_weights [tokens, top_k]`.
//!
//! The router is an adapter of its own, `A_r [r_r, in_features]` and `B_r [out_features, r_r]`. For token t with routes n, each
//! to adapter p(n):
//!
//! ```text
//! q_t = A_r x_t                              [r_r]
//! K_p = scaling_p B_p^T B_r                  [rank_p, r_r], made once when the adapter comes
//! z_n = <K_p(n)^T h_n, q_t> / sqrt(r_r)      = <q_t, B_r^T v_n> / sqrt(r_r) of the expert's own product v_n
//! w_n = softmax of z over the token's live routes
//! ```
//!
//! so that no v of `[set, tokens, out_features]` is ever made, and no score leaves the workgroup. Routes without an expert get
//! weight 0. A score that is not finite is an error where the host sees it; on a device its token's weights are 0 and the status
//! word says so. The pool knows the router by `set_attention`.

mod cpu;
#[cfg(feature = "cuda")]
pub mod cuda;
#[cfg(feature = "wgpu")]
pub mod wgpu;

use super::{Expert, check_equal, check_experts, check_len, check_rows, plan::Plan};
use crate::element::Element;
use crate::error::{Error, Result};

const OP: &str = "attend";

/// Sizes of an attention.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Sizes {
    /// Rows of x.
    pub tokens: usize,
    /// Routes per token.
    pub top_k: usize,
    /// Columns of x and of the router's A.
    pub in_features: usize,
    /// Elements from one row of x to the next.
    pub x_stride: usize,
    /// Elements from one row of h to the next; at least the largest rank in use.
    pub h_stride: usize,
}

impl Sizes {
    /// Refuses lengths that do not fit; lengths in elements, `max_rank` over the pool's live slots.
    pub fn check(
        &self,
        plan: &super::plan::Sizes,
        max_rank: usize,
        x: usize,
        h: usize,
        topk_weights: usize,
    ) -> Result<()> {
        check_equal(OP, "plan.tokens", self.tokens, plan.tokens)?;
        check_equal(OP, "plan.top_k", self.top_k, plan.top_k)?;
        check_rows(OP, "x", (self.tokens, self.in_features, self.x_stride), x)?;
        check_rows(OP, "h", (plan.routes(), max_rank, self.h_stride), h)?;
        check_len(OP, "topk_weights", plan.routes(), topk_weights)
    }
}

/// Every expert's K in f64, `[rank, r_r]`.
pub fn keys<A: Element>(experts: &[Expert<A>], router: &Expert<A>) -> Vec<Vec<f64>> {
    let of = |e: &Expert<A>| {
        let mut k = vec![0f64; e.rank * router.rank];
        for j in 0..e.rank {
            for c in 0..router.rank {
                let terms = (0..e.lora_b.len() / e.rank).map(|o| {
                    f64::from(e.lora_b[o * e.rank + j].to_f32())
                        * f64::from(router.lora_b[o * router.rank + c].to_f32())
                });
                k[j * router.rank + c] = f64::from(e.scaling) * terms.sum::<f64>();
            }
        }
        k
    };
    experts.iter().map(of).collect()
}

/// Every route's score in f64, `[tokens, top_k]`, NaN where a route has no expert; `keys` as [`keys`] makes them.
pub fn scores<X: Element, A: Element>(
    sizes: &Sizes,
    plan: &Plan,
    keys: &[Vec<f64>],
    router_a: &[A],
    x: &[X],
    h: &[f32],
) -> Vec<f64> {
    let (columns, mut scores) = (sizes.in_features, vec![f64::NAN; plan.sizes().routes()]);
    let router_rank = router_a.len() / columns.max(1);
    for t in 0..sizes.tokens {
        let mut q = vec![0f64; router_rank];
        for (c, q) in q.iter_mut().enumerate() {
            for i in 0..columns {
                *q += f64::from(router_a[c * columns + i].to_f32())
                    * f64::from(x[t * sizes.x_stride + i].to_f32());
            }
        }
        for n in t * sizes.top_k..(t + 1) * sizes.top_k {
            let Ok(expert) = usize::try_from(plan.topk_ids()[n]) else { continue };
            let mut z = 0f64;
            for (i, k) in keys[expert].iter().enumerate() {
                z += f64::from(h[n * sizes.h_stride + i / router_rank]) * k * q[i % router_rank];
            }
            scores[n] = z / (router_rank as f64).sqrt();
        }
    }
    scores
}

/// The definition: scores and softmax in f64, rounded to f32 once. The router's scaling counts for nothing.
pub fn definition<X: Element, A: Element>(
    sizes: &Sizes,
    plan: &Plan,
    experts: &[Expert<A>],
    router: &Expert<A>,
    x: &[X],
    h: &[f32],
    topk_weights: &mut [f32],
) -> Result<()> {
    let max_rank = experts.iter().map(|e| e.rank).max().unwrap_or(0);
    sizes.check(plan.sizes(), max_rank, x.len(), h.len(), topk_weights.len())?;
    check_len(OP, "router.lora_a", router.rank.saturating_mul(sizes.in_features), router.lora_a.len())?;
    let out_features = router.lora_b.len() / router.rank.max(1);
    check_experts(OP, plan, experts, out_features, |e| e.lora_b.len())?;
    let scores = scores(sizes, plan, &keys(experts, router), router.lora_a, x, h);
    for t in 0..sizes.tokens {
        let routes = t * sizes.top_k..(t + 1) * sizes.top_k;
        let live = |n: &usize| plan.topk_ids()[*n] >= 0;
        if let Some(n) = routes.clone().filter(live).find(|&n| !scores[n].is_finite()) {
            return Err(not_finite(sizes, n, scores[n]));
        }
        let largest = routes.clone().filter(live).map(|n| scores[n]).fold(f64::NEG_INFINITY, f64::max);
        let total: f64 = routes.clone().filter(live).map(|n| (scores[n] - largest).exp()).sum();
        for n in routes {
            topk_weights[n] = if live(&n) { ((scores[n] - largest).exp() / total) as f32 } else { 0.0 };
        }
    }
    Ok(())
}

fn not_finite(sizes: &Sizes, n: usize, z: impl ToString) -> Error {
    Error::argument(OP, format!("score[{}, {}]", n / sizes.top_k, n % sizes.top_k), "a finite value", z)
}

/// The launch: one workgroup per token.
#[cfg(any(feature = "wgpu", feature = "cuda"))]
pub fn grid(sizes: &Sizes) -> usize {
    if sizes.top_k == 0 { 0 } else { sizes.tokens }
}
