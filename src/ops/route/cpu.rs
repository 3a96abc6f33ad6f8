//! Route on the CPU.

use super::{Allow, Sizes, deviation, select};
use crate::adapter::LinearRouter;
use crate::device::cpu::{Cpu, Matrix, SharedMut};
use crate::element::Element;
use crate::error::{Error, Result};

/// Tokens whose scores are held at once.
const TOKENS_AT_ONCE: usize = 1024;

/// A router's parameters as the CPU's kernels read them.
#[derive(Debug, Clone)]
pub struct CpuRouter {
    router: LinearRouter,
}

impl CpuRouter {
    /// Takes the parameters.
    pub fn new(cpu: &Cpu, router: LinearRouter) -> Result<Self> {
        let _ = cpu;
        Ok(Self { router })
    }

    /// The parameters.
    pub fn linear(&self) -> &LinearRouter {
        &self.router
    }
}

impl Cpu {
    /// See the [module](super); scores are f32 products in one fixed order.
    pub fn route<X: Element>(
        &self,
        sizes: &Sizes,
        CpuRouter { router }: &CpuRouter,
        x: &[X],
        allow: Option<Allow<&[u32]>>,
        topk_ids: &mut [i32],
        topk_weights: &mut [f32],
    ) -> Result<()> {
        sizes.check(router, x.len(), topk_ids.len(), topk_weights.len())?;
        allow.map_or(Ok(()), |allow| allow.check(sizes.experts))?;
        let Sizes { tokens, in_features, x_stride, rule, .. } = *sizes;
        let (rows, width) = (router.experts(), rule.width());
        if width == 0 {
            return Ok(());
        }
        // Tokens in parts, so that the scores stay small.
        let mut scores = vec![0f32; tokens.min(TOKENS_AT_ONCE) * rows];
        let (ids, weights) = (SharedMut::new(topk_ids), SharedMut::new(topk_weights));
        let first_error = std::sync::Mutex::new(None::<(usize, Error)>);
        for first in (0..tokens).step_by(TOKENS_AT_ONCE) {
            let count = TOKENS_AT_ONCE.min(tokens - first);
            let row = |t: usize| &x[(first + t) * x_stride..][..in_features];
            let standardised = if router.is_standardised() { count } else { 0 };
            let deviation = |t| deviation(row(t).iter().map(|v| f64::from(v.to_f32()))) as f32;
            let deviations: Vec<f32> = (0..standardised).map(deviation).collect();
            self.dot_rows(
                (count, rows),
                row,
                Matrix::row_major(router.weight(), in_features),
                (&mut scores, rows),
                |t, e, z| {
                    let z = z / deviations.get(t).copied().unwrap_or(1.0);
                    let z = if router.is_absolute() { z.abs() } else { z };
                    z + router.bias().map_or(0.0, |b| b[e])
                },
            );
            self.each(count, |t| {
                let n = (first + t) * width;
                // SAFETY: every token is one task.
                let (ids, weights) = unsafe { (ids.part(n, width), weights.part(n, width)) };
                let list = allow.map(|allow| allow.list(sizes.experts, first + t));
                let scores = &scores[t * rows..][..rows];
                if let Err(e) = select(&rule, first + t, scores, list, ids, weights) {
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
