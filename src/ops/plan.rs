//! Plan: routing made ready for the kernels, a stable counting sort of the live routes by expert.
//!
//! `topk_ids [tokens, top_k]` (-1: no expert here) becomes `sorted_routes [live routes]`, the routes
//! `token * top_k + slot` grouped by expert and ascending within one, and `expert_offsets [experts + 1]`, the
//! exclusive prefix sum of the experts' counts; its last entry is the number of live routes.

#[cfg(feature = "cuda")]
pub mod cuda;

#[cfg(feature = "wgpu")]
use super::word;
use super::{check_len, check_routes};
use crate::adapter::slots::Slots;
use crate::device::cpu::{Cpu, Pool};
#[cfg(feature = "wgpu")]
use crate::device::plan::Layout;
#[cfg(feature = "wgpu")]
use crate::device::wgpu::{self as device, Access, Binding, Launch, View, Wgpu};
use crate::error::{Error, Result};

const OP: &str = "plan";

/// Largest number of experts of one plan.
pub const MAX_EXPERTS: usize = 65_536;

/// Sizes of a plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Sizes {
    /// Rows of `topk_ids`.
    pub tokens: usize,
    /// Columns of `topk_ids`.
    pub top_k: usize,
    /// Ids are below this: the pool's slots.
    pub experts: usize,
}

impl Sizes {
    /// Routes, live or not.
    pub const fn routes(&self) -> usize {
        self.tokens.saturating_mul(self.top_k)
    }

    /// Refuses sizes that no device takes.
    pub fn check(&self) -> Result<()> {
        check_routes(OP, self.tokens, self.top_k)?;
        if self.experts > MAX_EXPERTS {
            return Err(Error::argument(OP, "experts", format!("at most {MAX_EXPERTS}"), self.experts));
        }
        Ok(())
    }

    /// Refuses ids that name nothing.
    pub fn check_ids(&self, topk_ids: &[i32]) -> Result<()> {
        self.check()?;
        check_len(OP, "topk_ids", self.routes(), topk_ids.len())?;
        match topk_ids.iter().position(|&id| id < -1 || id >= self.experts as i32) {
            None => Ok(()),
            Some(n) => Err(Error::argument(
                OP,
                format!("topk_ids[{}, {}]", n / self.top_k, n % self.top_k),
                format!("-1 or an id below {}", self.experts),
                topk_ids[n],
            )),
        }
    }
}

/// A plan in host memory: what the definition returns and what the CPU's kernels read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    sizes: Sizes,
    topk_ids: Vec<i32>,
    sorted_routes: Vec<u32>,
    expert_offsets: Vec<u32>,
    epoch: u32,
    pool: u64,
}

impl Plan {
    /// The sizes that it was made for.
    pub fn sizes(&self) -> &Sizes {
        &self.sizes
    }

    /// The ids that it was made from, `[tokens, top_k]`.
    pub fn topk_ids(&self) -> &[i32] {
        &self.topk_ids
    }

    /// Live routes grouped by expert.
    pub fn sorted_routes(&self) -> &[u32] {
        &self.sorted_routes
    }

    /// Where each expert's routes begin; `experts + 1` entries.
    pub fn expert_offsets(&self) -> &[u32] {
        &self.expert_offsets
    }

    /// The routes of one expert.
    pub fn routes_of(&self, expert: usize) -> &[u32] {
        &self.sorted_routes[self.expert_offsets[expert] as usize..self.expert_offsets[expert + 1] as usize]
    }

    /// Refuses weights of live routes that are not finite: they would pass into y unseen.
    pub(crate) fn check_weights(&self, op: &'static str, topk_weights: &[f32]) -> Result<()> {
        check_weights(op, self.sizes.top_k, &self.topk_ids, topk_weights)
    }

    /// The pool's clock when the plan was made: adapters added later are not the ones that the ids meant.
    pub fn epoch(&self) -> u32 {
        self.epoch
    }
}

/// The definition: count, exclusive scan, place.
pub fn definition(sizes: &Sizes, topk_ids: &[i32], epoch: u32) -> Result<Plan> {
    sizes.check_ids(topk_ids)?;
    let mut expert_offsets = vec![0u32; sizes.experts + 1];
    for &id in topk_ids.iter().filter(|&&id| id >= 0) {
        expert_offsets[id as usize + 1] += 1;
    }
    for e in 0..sizes.experts {
        expert_offsets[e + 1] += expert_offsets[e];
    }
    let mut next = expert_offsets.clone();
    let mut sorted_routes = vec![0u32; expert_offsets[sizes.experts] as usize];
    for (n, &id) in topk_ids.iter().enumerate().filter(|&(_, &id)| id >= 0) {
        sorted_routes[next[id as usize] as usize] = n as u32;
        next[id as usize] += 1;
    }
    Ok(Plan { sizes: *sizes, topk_ids: topk_ids.to_vec(), sorted_routes, expert_offsets, epoch, pool: 0 })
}

/// The launch: chunks, one scan, chunks again; nothing without routes.
#[cfg(feature = "wgpu")]
pub fn grid(sizes: &Sizes) -> [usize; 3] {
    let chunks = Layout::new(sizes, &device::SHAPE).chunks;
    [chunks, chunks.min(1), chunks]
}

impl Cpu {
    /// See the [module](self); also refuses ids of slots that hold no adapter.
    pub fn plan(&self, sizes: &Sizes, pool: &Pool, topk_ids: &[i32]) -> Result<Plan> {
        super::check_equal(OP, "experts", pool.slots().sizes().experts, sizes.experts)?;
        let slots = pool.slots();
        let plan = Plan { pool: slots.id(), ..definition(sizes, topk_ids, slots.epoch())? };
        check_live(OP, slots, sizes.top_k, topk_ids)?;
        Ok(plan)
    }
}

/// Refuses ids of slots that hold no adapter; the ids are below the slots already.
pub(crate) fn check_live(op: &'static str, slots: &Slots, top_k: usize, topk_ids: &[i32]) -> Result<()> {
    match topk_ids.iter().position(|&id| id >= 0 && slots.slots()[id as usize].rank == 0) {
        None => Ok(()),
        Some(n) => Err(Error::argument(
            op,
            format!("topk_ids[{}, {}]", n / top_k, n % top_k),
            "the id of a slot that holds an adapter",
            topk_ids[n],
        )),
    }
}

/// Refuses weights of live routes that are not finite: they would pass into y unseen.
pub(crate) fn check_weights(
    op: &'static str,
    top_k: usize,
    topk_ids: &[i32],
    topk_weights: &[f32],
) -> Result<()> {
    let mut routes = topk_ids.iter().zip(topk_weights);
    match routes.position(|(&id, w)| id >= 0 && !w.is_finite()) {
        None => Ok(()),
        Some(n) => {
            let argument = format!("topk_weights[{}, {}]", n / top_k, n % top_k);
            Err(Error::argument(op, argument, "a finite weight", topk_weights[n]))
        }
    }
}

impl Plan {
    /// Experts with at least one route.
    pub fn live_experts(&self) -> impl Iterator<Item = usize> {
        (0..self.sizes.experts).filter(|&e| self.expert_offsets[e] < self.expert_offsets[e + 1])
    }

    /// Refuses a pool whose slots are not, or no longer, the ones that the plan's ids meant.
    pub(crate) fn check_pool(&self, op: &'static str, pool: &Pool) -> Result<()> {
        super::check_equal(op, "plan.experts", pool.slots().sizes().experts, self.sizes.experts)?;
        pool.slots().check_plan_pool(op, self.pool)?;
        pool.slots().check_plan(op, self.epoch, self.live_experts())
    }
}

#[cfg(feature = "wgpu")]
impl Wgpu {
    /// See the [module](self). Records into `encoder`; ids that name nothing are skipped and set the status word.
    pub fn plan(
        &self,
        encoder: &mut wgpu::CommandEncoder,
        sizes: &Sizes,
        pool: &device::Pool,
        topk_ids: View<i32>,
    ) -> Result<device::Plan> {
        sizes.check()?;
        let mut plan = device::Plan::in_buffer(self.storage("plan", device::Plan::bytes(sizes))?);
        self.plan_into(encoder, sizes, pool, topk_ids, &mut plan)?;
        Ok(plan)
    }

    /// [`Self::plan`] into the memory of an older plan, which must be large enough.
    pub fn plan_into(
        &self,
        encoder: &mut wgpu::CommandEncoder,
        sizes: &Sizes,
        pool: &device::Pool,
        topk_ids: View<i32>,
        plan: &mut device::Plan,
    ) -> Result<()> {
        sizes.check()?;
        super::check_equal(OP, "experts", pool.slots().sizes().experts, sizes.experts)?;
        check_len(OP, "topk_ids", sizes.routes(), topk_ids.len())?;
        if sizes.top_k > device::MAX_TOP_K {
            let expected = format!("at most {} on WebGPU", device::MAX_TOP_K);
            return Err(Error::argument(OP, "top_k", expected, sizes.top_k));
        }
        let bytes = device::Plan::bytes(sizes);
        if bytes > plan.buffer.size() {
            let expected = format!("a plan's memory of at least {bytes} bytes");
            return Err(Error::argument(OP, "plan", expected, plan.buffer.size()));
        }
        if !plan.buffer.usage().contains(wgpu::BufferUsages::COPY_DST) {
            let got = format!("{:?}", plan.buffer.usage());
            return Err(Error::argument(OP, "plan", "a buffer with the usage COPY_DST", got));
        }
        let layout = Layout::new(sizes, &device::SHAPE);
        (plan.sizes, plan.layout) = (*sizes, layout);
        (plan.pool, plan.epoch) = (pool.slots().id(), pool.slots().epoch());
        let mut params = plan.params()?.to_vec();
        params.push(("max_rank", word(OP, "max_rank", pool.slots().max_rank())?));
        let counts = (layout.chunks * sizes.experts) as u64 * 4;
        if counts > 0 {
            let at = layout.at_counts as u64 * 4;
            self.clear(encoder, &plan.buffer, at..at + counts)?;
        }
        for (entry, groups) in ["plan_chunks", "plan_scan", "plan_place"].into_iter().zip(grid(sizes)) {
            let launch = Launch {
                op: OP,
                entry,
                body: &[include_str!("../../shaders/plan.wgsl")],
                constants: &[("TILE_ROUTES", device::TILE_ROWS as u32), ("LANES", device::MAX_TOP_K as u32)],
                params: &params,
                bindings: &[
                    Binding::ids("topk_ids", Access::Read, topk_ids),
                    Binding::slots(pool),
                    Binding::table("plan", "array<u32>", Access::ReadWrite, &plan.buffer),
                    Binding::status(self),
                ],
                groups: word(OP, "tokens", groups)?,
            };
            self.launch(encoder, &launch)?;
        }
        Ok(())
    }
}

#[cfg(feature = "wgpu")]
impl device::Plan {
    /// `sorted_routes` and `expert_offsets` in host memory; submits and waits.
    pub fn download(&self, wgpu: &Wgpu) -> Result<(Vec<u32>, Vec<u32>)> {
        let Sizes { experts, .. } = self.sizes;
        if self.sizes.routes() == 0 {
            return Ok((Vec::new(), vec![0; experts + 1]));
        }
        let words = wgpu.download::<u32>(&self.buffer, self.layout.words)?;
        let expert_offsets = words[self.layout.at_offsets..][..experts + 1].to_vec();
        let live = (expert_offsets[experts] as usize).min(self.sizes.routes());
        Ok((words[self.layout.at_sorted..][..live].to_vec(), expert_offsets))
    }

    /// Refuses a pool that the plan was not made for; evictions since then are the kernels' to skip.
    pub(crate) fn check_pool(&self, op: &'static str, pool: &device::Pool) -> Result<()> {
        super::check_equal(op, "plan.experts", pool.slots().sizes().experts, self.sizes.experts)?;
        pool.slots().check_plan_pool(op, self.pool)
    }

    /// Sizes and sections, as every kernel that reads a plan knows them.
    pub(crate) fn params(&self) -> Result<[(&'static str, u32); 15]> {
        let (s, l) = (&self.sizes, &self.layout);
        word(OP, "plan", l.words)?;
        let fields = [
            ("tokens", s.tokens),
            ("top_k", s.top_k),
            ("routes", s.routes()),
            ("experts", s.experts),
            ("epoch", self.epoch as usize),
            ("chunk_routes", l.chunk_routes),
            ("chunks", l.chunks),
            ("at_ids", l.at_ids),
            ("at_chunks", l.at_chunks),
            ("at_places", l.at_places),
            ("at_counts", l.at_counts),
            ("at_sorted", l.at_sorted),
            ("at_offsets", l.at_offsets),
            ("at_tile_offsets", l.at_tile_offsets),
            ("at_tiles", l.at_tiles),
        ];
        Ok(fields.map(|(name, value)| (name, value as u32)))
    }
}
