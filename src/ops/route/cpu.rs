//! Route on the CPU: the scores of a block of tokens as a product with packed weights, then selection, token by token.

use super::{Allow, EPSILON, Sizes, select};
use crate::adapter::LinearRouter;
use crate::device::cpu::{Cpu, SharedMut, TASKS_A_THREAD, Tiles, Weight, with_scratch};
use crate::element::Element;
use crate::error::{Error, Result};
use std::sync::Mutex;

/// Tokens whose scores are held at once.
const TOKENS_AT_ONCE: usize = 1024;

/// Scores below which one thread selects faster than several wake up.
const ALONE: usize = 4096;

/// A router's parameters as the CPU's kernels read them.
#[derive(Debug, Clone)]
pub struct CpuRouter {
    router: LinearRouter,
    weight: Weight<f32>,
}

impl CpuRouter {
    /// Packs the parameters.
    pub fn new(cpu: &Cpu, router: LinearRouter) -> Result<Self> {
        let weight = cpu.pack(router.experts(), router.in_features(), router.weight())?;
        Ok(Self { router, weight })
    }

    /// The parameters.
    pub fn linear(&self) -> &LinearRouter {
        &self.router
    }
}

impl Cpu {
    /// See the [module](super); a token's scores are f32 sums in one order, whatever its batch.
    pub fn route<X: Element>(
        &self,
        sizes: &Sizes,
        router: &CpuRouter,
        x: &[X],
        allow: Option<Allow<&[u32]>>,
        topk_ids: &mut [i32],
        topk_weights: &mut [f32],
    ) -> Result<()> {
        let linear = router.linear();
        sizes.check(linear, x.len(), topk_ids.len(), topk_weights.len())?;
        router.weight.check(super::OP, self, linear.experts(), linear.in_features())?;
        allow.map_or(Ok(()), |allow| allow.check(sizes.experts))?;
        let Sizes { tokens, in_features, x_stride, rule, .. } = *sizes;
        let (rows, width) = (linear.experts(), rule.width());
        if width == 0 {
            return Ok(());
        }
        let mut scores = vec![0f32; tokens.min(TOKENS_AT_ONCE) * rows];
        let (ids, weights) = (SharedMut::new(topk_ids), SharedMut::new(topk_weights));
        let failed = Mutex::new(None::<(usize, Error)>);
        for first in (0..tokens).step_by(TOKENS_AT_ONCE) {
            let count = TOKENS_AT_ONCE.min(tokens - first);
            let row = |t: usize| &x[(first + t) * x_stride..][..in_features];
            self.router_products(&router.weight, count, row, &mut scores);
            let scores = SharedMut::new(&mut scores);
            let token = |t: usize| {
                let n = (first + t) * width;
                // SAFETY: every token is one task.
                let (ids, weights) = unsafe { (ids.part(n, width), weights.part(n, width)) };
                // SAFETY: as above.
                let scores = unsafe { scores.part(t * rows, rows) };
                finish(self, linear, row(t), scores);
                let list = allow.map(|allow| allow.list(sizes.experts, first + t));
                if let Err(e) = select(&rule, first + t, scores, list, ids, weights) {
                    let mut failed = failed.lock().unwrap_or_else(|p| p.into_inner());
                    if failed.as_ref().is_none_or(|(earlier, _)| t < *earlier) {
                        *failed = Some((t, e));
                    }
                }
            };
            if count * rows <= ALONE {
                (0..count).for_each(token)
            } else {
                self.each(count, token)
            }
            if let Some((_, e)) = failed.lock().unwrap_or_else(|p| p.into_inner()).take() {
                return Err(e);
            }
        }
        Ok(())
    }

    /// `scores[t, e] = <row(t), weight_e>`, `[count, experts]`.
    fn router_products<'a, X: Element>(
        &self,
        weight: &Weight<f32>,
        count: usize,
        row: impl Fn(usize) -> &'a [X] + Send + Sync,
        scores: &mut [f32],
    ) {
        let tiles = Tiles::new(self, [count], weight.in_features(), row);
        let (rows, place) = (weight.out_features(), SharedMut::new(scores));
        let parts = self.parts(&tiles, 0..tiles.tiles(), 0..weight.panels(), TASKS_A_THREAD * self.threads());
        self.each(parts.len(), |i| {
            with_scratch(|[scratch, _]| {
                let mut sums = self.sums(weight, &tiles, &parts[i], &[], scratch);
                let columns = sums.columns.clone();
                for t in sums.rows.clone() {
                    // SAFETY: every (token, expert) is one part's.
                    let to = unsafe { place.part(t * rows + columns.start, columns.len()) };
                    to.copy_from_slice(sums.row(t));
                }
            });
        });
    }
}

/// Products of one token into scores.
fn finish<X: Element>(cpu: &Cpu, router: &LinearRouter, x: &[X], scores: &mut [f32]) {
    if router.is_standardised() {
        let deviation = cpu.deviation(x, EPSILON);
        scores.iter_mut().for_each(|z| *z /= deviation);
    }
    if router.is_absolute() {
        scores.iter_mut().for_each(|z| *z = z.abs());
    }
    if let Some(bias) = router.bias() {
        scores.iter_mut().zip(bias).for_each(|(z, b)| *z += b);
    }
}
