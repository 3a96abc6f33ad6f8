//! A plan in a CUDA device's memory: a header, then the sections of every GPU's plan.

use super::params::{CHUNK_ROUTES, CHUNK_TOKENS, PlanParams, TILE_ROUTES};
use super::{Cuda, Memory, Pool};
use crate::device::plan::{Layout, Shape};
use crate::error::{Error, Result};
use crate::ops::plan::Sizes;
use cudarc::driver::CudaSlice;

/// How the planner's kernels divide a plan. The header holds the pool's clock and the live tokens: on the device, so that a
/// captured plan sees the adapters and the tokens of each replay.
pub(crate) const SHAPE: Shape = Shape {
    header: 4,
    chunk_routes: CHUNK_ROUTES as usize,
    chunk_tokens: CHUNK_TOKENS as usize,
    tile_routes: TILE_ROUTES as usize,
};

/// Largest top_k whose routes fit one chunk.
pub(crate) const MAX_TOP_K: usize = SHAPE.chunk_routes;

/// What tells a plan's memory from one for another pool or other sizes: FNV-1a of both, never 0.
fn stamp(pool: u64, sizes: &Sizes) -> u32 {
    let parts = [pool, sizes.tokens as u64, sizes.top_k as u64, sizes.experts as u64];
    let hash = parts
        .iter()
        .flat_map(|part| part.to_le_bytes())
        .fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    hash.max(1)
}

/// A plan on a CUDA device.
#[derive(Debug)]
pub struct Plan {
    pub(crate) sizes: Sizes,
    pub(crate) layout: Layout,
    pub(crate) pool: u64,
    pub(crate) memory: Memory<u32>,
}

impl Plan {
    /// An empty plan in a slice of the engine's; see [`Self::bytes`].
    pub fn in_memory(cuda: &Cuda, words: CudaSlice<u32>) -> Result<Self> {
        Ok(Self::empty(Memory::of(cuda, words)?))
    }

    /// An empty plan in the engine's memory by its address.
    ///
    /// # Safety
    /// The `words` words at `address` are device memory of the stream's context, aligned to 16 bytes, that nothing else writes
    /// for as long as the plan is used and the work of that use runs; all of it is on one stream.
    pub unsafe fn from_raw(address: u64, words: usize) -> Self {
        // SAFETY: the caller's promise.
        Self::empty(unsafe { Memory::from_raw(address, words) })
    }

    pub(crate) fn empty(memory: Memory<u32>) -> Self {
        let sizes = Sizes { tokens: 0, top_k: 0, experts: 0 };
        Self { sizes, layout: Layout::new(&sizes, &SHAPE), pool: 0, memory }
    }

    /// The sizes that it was last made for.
    pub fn sizes(&self) -> &Sizes {
        &self.sizes
    }

    /// Bytes of device memory that a plan of these sizes takes; absurd sizes saturate.
    pub fn bytes(sizes: &Sizes) -> u64 {
        (Layout::new(sizes, &SHAPE).words as u64).saturating_mul(4)
    }

    /// Refuses a pool that the plan was not made for, or of another stream; evictions since then are the kernels' to skip.
    pub(crate) fn check_pool(&self, op: &'static str, cuda: &Cuda, pool: &Pool) -> Result<()> {
        crate::ops::check_equal(op, "plan.experts", pool.slots().sizes().experts, self.sizes.experts)?;
        pool.check_stream(op, cuda)?;
        pool.slots().check_plan_pool(op, self.pool)
    }

    /// Sizes, sections and the pool, as every kernel that reads a plan knows them.
    pub(crate) fn params(&self, op: &'static str, cuda: &Cuda, pool: &Pool) -> Result<PlanParams> {
        let (max_rank, stamp) = (pool.max_rank() as u32, stamp(pool.slots().id(), &self.sizes));
        let own = self.own_params(op, cuda)?;
        Ok(PlanParams { clock: pool.clock(), slots: pool.table(), max_rank, stamp, ..own })
    }

    /// The same without the pool's memory, for kernels that do not look at its slots.
    pub(crate) fn own_params(&self, op: &'static str, cuda: &Cuda) -> Result<PlanParams> {
        let (s, l) = (&self.sizes, &self.layout);
        let word = |value: usize| value as u32;
        if l.words > u32::MAX as usize {
            return Err(Error::argument(op, "plan", "below 2^32 words", l.words));
        }
        Ok(PlanParams {
            words: self.memory.address(),
            clock: 0,
            slots: 0,
            status: cuda.status_address(),
            live_tokens: 0,
            topk_ids: 0,
            tokens: word(s.tokens),
            top_k: word(s.top_k),
            routes: word(s.routes()),
            experts: word(s.experts),
            chunk_routes: word(l.chunk_routes),
            chunks: word(l.chunks),
            stamp: stamp(self.pool, s),
            max_rank: 0,
            at_ids: word(l.at_ids),
            at_chunks: word(l.at_chunks),
            at_places: word(l.at_places),
            at_counts: word(l.at_counts),
            at_sorted: word(l.at_sorted),
            at_offsets: word(l.at_offsets),
            at_tile_offsets: word(l.at_tile_offsets),
            at_tiles: word(l.at_tiles),
        })
    }

    /// `sorted_routes` and `expert_offsets` in host memory; waits.
    pub fn download(&self, cuda: &Cuda) -> Result<(Vec<u32>, Vec<u32>)> {
        cuda.check_streams("download", [("plan", self.memory.stream())])?;
        let Sizes { experts, .. } = self.sizes;
        if self.sizes.routes() == 0 {
            return Ok((Vec::new(), vec![0; experts + 1]));
        }
        let section =
            |at: usize, len: usize| cuda.download_from::<u32>(self.memory.address() + at as u64 * 4, len);
        let expert_offsets = section(self.layout.at_offsets, experts + 1)?;
        let live = (expert_offsets[experts] as usize).min(self.sizes.routes());
        Ok((section(self.layout.at_sorted, live)?, expert_offsets))
    }
}
