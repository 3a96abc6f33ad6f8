//! Attend on the CPU.

use super::{OP, Sizes, not_finite};
use crate::device::cpu::{Cpu, Matrix, Pool, SharedMut};
use crate::element::Element;
use crate::error::Result;
use crate::ops::{check_equal, plan::Plan};

/// Tokens whose queries are held at once.
const TOKENS_AT_ONCE: usize = 1024;

impl Cpu {
    /// See the [module](super).
    pub fn attend<X: Element>(
        &self,
        sizes: &Sizes,
        plan: &Plan,
        pool: &Pool,
        x: &[X],
        h: &[f32],
        topk_weights: &mut [f32],
    ) -> Result<()> {
        let (slots, attention) = (pool.slots(), pool.attention(OP)?);
        check_equal(OP, "in_features", slots.sizes().in_features, sizes.in_features)?;
        sizes.check(plan.sizes(), slots.max_rank(), x.len(), h.len(), topk_weights.len())?;
        plan.check_pool(OP, pool)?;
        let Sizes { tokens, top_k, in_features, x_stride, .. } = *sizes;
        let (rank, scale) = (attention.rank(), (attention.rank() as f32).sqrt().recip());
        // Tokens in parts, so that the queries stay small.
        let mut q = vec![0f32; tokens.min(TOKENS_AT_ONCE) * rank];
        let weights = SharedMut::new(topk_weights);
        let first_error = std::sync::Mutex::new(None::<(usize, f32)>);
        for first in (0..tokens).step_by(TOKENS_AT_ONCE) {
            let count = TOKENS_AT_ONCE.min(tokens - first);
            let row = |t: usize| &x[(first + t) * x_stride..][..in_features];
            let a = Matrix { data: attention.a(), stride: in_features };
            self.dot_rows((count, rank), row, a, (&mut q, rank), |_, _, v| v * scale);
            self.each(count, |t| {
                let n = (first + t) * top_k;
                // SAFETY: every token is one task.
                let weights = unsafe { weights.part(n, top_k) };
                let broken = weigh((sizes, plan, pool), n, &q[t * rank..][..rank], h, weights);
                if let Some((n, z)) = broken {
                    let mut earliest = first_error.lock().unwrap_or_else(|p| p.into_inner());
                    if earliest.is_none_or(|(earlier, _)| n < earlier) {
                        *earliest = Some((n, z));
                    }
                }
            });
            if let Some((n, z)) = *first_error.lock().unwrap_or_else(|p| p.into_inner()) {
                return Err(not_finite(sizes, n, z));
            }
        }
        Ok(())
    }
}

/// One token's weights, whose routes begin with `first`; the first score that is not finite, where there is one.
fn weigh(
    (sizes, plan, pool): (&Sizes, &Plan, &Pool),
    first: usize,
    q: &[f32],
    h: &[f32],
    weights: &mut [f32],
) -> Option<(usize, f32)> {
    let ids = &plan.topk_ids()[first..][..weights.len()];
    let (mut sums, mut largest) = (vec![0f32; q.len()], f32::NEG_INFINITY);
    for (j, &id) in ids.iter().enumerate().filter(|(_, id)| **id >= 0) {
        let (slot, n) = (pool.slots().slots()[id as usize], first + j);
        let rank = slot.rank as usize;
        sums.fill(0.0);
        for (&h, k) in h[n * sizes.h_stride..][..rank].iter().zip(pool.keys(id as usize).chunks(q.len())) {
            sums.iter_mut().zip(k).for_each(|(sum, k)| *sum += h * k);
        }
        let z: f32 = sums.iter().zip(q).map(|(sum, q)| sum * q).sum();
        if !z.is_finite() {
            return Some((n, z));
        }
        weights[j] = z;
        largest = largest.max(z);
    }
    let mut total = 0.0;
    for (w, &id) in weights.iter_mut().zip(ids) {
        *w = if id >= 0 { (*w - largest).exp() } else { 0.0 };
        total += *w;
    }
    if total > 0.0 {
        weights.iter_mut().for_each(|w| *w /= total);
    }
    None
}
