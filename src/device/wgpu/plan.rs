//! A plan in device memory: one buffer of words in sections.

use crate::device::plan::{Layout, Shape};
use crate::ops::plan::Sizes;

/// Rows of x in a tile of `tile.wgsl`: routes of one expert for shrink.
pub(crate) const TILE_ROWS: usize = 64;
/// Routes that one workgroup of the planner sorts.
const CHUNK_ROUTES: usize = 256;
/// Tokens whose rows of y one workgroup of expand keeps.
pub(crate) const CHUNK_TOKENS: usize = 16;

/// How the planner's shaders divide a plan.
pub(crate) const SHAPE: Shape =
    Shape { header: 0, chunk_routes: CHUNK_ROUTES, chunk_tokens: CHUNK_TOKENS, tile_routes: TILE_ROWS };

/// Largest top_k whose routes fit one chunk.
pub(crate) const MAX_TOP_K: usize = CHUNK_ROUTES;

/// A plan on a WebGPU device.
#[derive(Debug)]
pub struct Plan {
    pub(crate) sizes: Sizes,
    pub(crate) layout: Layout,
    pub(crate) epoch: u32,
    pub(crate) pool: u64,
    pub(crate) buffer: wgpu::Buffer,
}

impl Plan {
    /// An empty plan in this memory.
    pub(crate) fn in_buffer(buffer: wgpu::Buffer) -> Self {
        let sizes = Sizes { tokens: 0, top_k: 0, experts: 0 };
        Self { sizes, layout: Layout::new(&sizes, &SHAPE), epoch: 0, pool: 0, buffer }
    }

    /// The sizes that it was last made for.
    pub fn sizes(&self) -> &Sizes {
        &self.sizes
    }

    /// The pool's clock when the plan was made.
    pub fn epoch(&self) -> u32 {
        self.epoch
    }

    /// Bytes of device memory that a plan of these sizes takes; absurd sizes saturate.
    pub fn bytes(sizes: &Sizes) -> u64 {
        (Layout::new(sizes, &SHAPE).words as u64).saturating_mul(4)
    }
}
