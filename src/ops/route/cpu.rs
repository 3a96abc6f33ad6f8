//! Route on the CPU: the scores of a block of tokens as a product with packed weights, then selection, token by token.

use super::{Allow, EPSILON, Sizes, select};
use crate::adapter::LinearRouter;
use crate::device::cpu::{Cpu, Part, SharedMut, Tiles, Weight, with_scratch};
use crate::element::Element;
use crate::error::{Error, Result};
use std::sync::Mutex;

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
        let width = rule.width();
        if width == 0 {
            return Ok(());
        }
        let row = |t: usize| &x[t * x_stride..][..in_features];
        let (ids, weights) = (SharedMut::new(topk_ids), SharedMut::new(topk_weights));
        let failed = Mutex::new(None::<(usize, Error)>);
        let choose = |t: usize, scores: &mut [f32]| {
            // SAFETY: every token is chosen for once.
            let (ids, weights) = unsafe { (ids.part(t * width, width), weights.part(t * width, width)) };
            finish(self, linear, row(t), scores);
            let list = allow.map(|allow| allow.list(sizes.experts, t));
            if let Err(e) = select(&rule, t, scores, list, ids, weights) {
                let mut failed = failed.lock().unwrap_or_else(|p| p.into_inner());
                if failed.as_ref().is_none_or(|(earlier, _)| t < *earlier) {
                    *failed = Some((t, e));
                }
            }
        };
        let block = self.block_tokens();
        if tokens >= block * self.threads() {
            // What a block packs stays in its core's cache.
            self.each(tokens.div_ceil(block), |b| {
                let first = b * block;
                let tiles = Tiles::new(self, [block.min(tokens - first)], in_features, |t| row(first + t));
                let all = Part { tiles: 0..tiles.tiles(), panels: 0..router.weight.panels() };
                with_scratch(|[scratch, _]| {
                    let mut sums = self.sums(&router.weight, &tiles, &all, &[], scratch);
                    sums.rows.clone().for_each(|t| choose(first + t, sums.row(t)));
                });
            });
        } else {
            let mut scores = vec![0f32; tokens * linear.experts()];
            self.router_products(&router.weight, tokens, row, &mut scores);
            let (rows, place) = (linear.experts(), SharedMut::new(&mut scores));
            // Neighbours' ids and weights share cache lines, so a task takes several tokens.
            let some = tokens.div_ceil(2 * self.threads()).max(1);
            self.each(tokens.div_ceil(some), |i| {
                for t in i * some..tokens.min((i + 1) * some) {
                    // SAFETY: every token is one task's.
                    choose(t, unsafe { place.part(t * rows, rows) });
                }
            });
        }
        failed.into_inner().unwrap_or_else(|p| p.into_inner()).map_or(Ok(()), |(_, e)| Err(e))
    }

    /// Tokens that one thread packs, scores and chooses for at once: four tiles.
    fn block_tokens(&self) -> usize {
        4 * self.tile_rows()
    }

    /// `scores[t, e] = <row(t), weight_e>`, `[count, experts]`, the experts shared out.
    fn router_products<'a, X: Element>(
        &self,
        weight: &Weight<f32>,
        count: usize,
        row: impl Fn(usize) -> &'a [X] + Send + Sync,
        scores: &mut [f32],
    ) {
        let tiles = Tiles::new(self, [count], weight.in_features(), row);
        let (rows, place) = (weight.out_features(), SharedMut::new(scores));
        let parts = self.parts(&tiles, 0..tiles.tiles(), 0..weight.panels(), self.threads());
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
