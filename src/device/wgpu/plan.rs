//! A plan in device memory: one buffer of words in sections.

use crate::ops::plan::Sizes;

/// Rows of x in a tile of `tile.wgsl`: routes of one expert for shrink.
pub(crate) const TILE_ROWS: usize = 64;
/// Routes that one workgroup of the planner sorts.
const CHUNK_ROUTES: usize = 256;
/// Tokens whose rows of y one workgroup of expand keeps.
pub(crate) const CHUNK_TOKENS: usize = 16;

/// Where a plan's sections begin, in words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Layout {
    /// Whole tokens' routes in one chunk.
    pub(crate) chunk_routes: usize,
    /// Chunks.
    pub(crate) chunks: usize,
    /// Upper bound of the tiles.
    pub(crate) max_tiles: usize,
    /// `[routes]`: ids, NONE where nothing live is named.
    pub(crate) at_ids: usize,
    /// `[chunks, chunk_routes]`: routes of a chunk sorted by expert.
    pub(crate) at_chunks: usize,
    /// `[routes]`: a route's place among its expert's in its chunk.
    pub(crate) at_places: usize,
    /// `[chunks, experts]`: counts, then their prefix sums over the chunks.
    pub(crate) at_counts: usize,
    /// `[routes]`: live routes sorted by expert.
    pub(crate) at_sorted: usize,
    /// `[experts + 1]`.
    pub(crate) at_offsets: usize,
    /// `[experts + 1]`: tiles before each expert's.
    pub(crate) at_tile_offsets: usize,
    /// `[max_tiles, 2]`: expert and first place in the sorted routes.
    pub(crate) at_tiles: usize,
    /// All of it.
    pub(crate) words: usize,
}

impl Layout {
    /// The layout for these sizes; `top_k` is at most [`CHUNK_ROUTES`].
    pub(crate) fn new(sizes: &Sizes) -> Self {
        let (routes, experts) = (sizes.routes(), sizes.experts);
        let chunk_tokens = (CHUNK_ROUTES / sizes.top_k.max(1)).clamp(1, CHUNK_TOKENS);
        let chunk_routes = (chunk_tokens * sizes.top_k).max(1);
        let chunks = routes.div_ceil(chunk_routes);
        let max_tiles = routes / TILE_ROWS + experts.min(routes);
        let mut words = 0;
        let mut section = |length: usize| {
            let at = words;
            words += length;
            at
        };
        Self {
            chunk_routes,
            chunks,
            max_tiles,
            at_ids: section(routes),
            at_chunks: section(chunks * chunk_routes),
            at_places: section(routes),
            at_counts: section(chunks * experts),
            at_sorted: section(routes),
            at_offsets: section(experts + 1),
            at_tile_offsets: section(experts + 1),
            at_tiles: section(2 * max_tiles),
            words,
        }
    }

    /// Largest top_k whose routes fit one chunk.
    pub(crate) const MAX_TOP_K: usize = CHUNK_ROUTES;
}

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
        Self { sizes, layout: Layout::new(&sizes), epoch: 0, pool: 0, buffer }
    }

    /// The sizes that it was last made for.
    pub fn sizes(&self) -> &Sizes {
        &self.sizes
    }

    /// The pool's clock when the plan was made.
    pub fn epoch(&self) -> u32 {
        self.epoch
    }

    /// Bytes of device memory that a plan of these sizes takes.
    pub fn bytes(sizes: &Sizes) -> u64 {
        Layout::new(sizes).words as u64 * 4
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_hold_whole_tokens_and_tiles_suffice() {
        for top_k in [1, 2, 3, 7, 8, 9, 255, 256] {
            for tokens in [1, 15, 16, 17, 1000] {
                for experts in [1, 5, 4096] {
                    let layout = Layout::new(&Sizes { tokens, top_k, experts });
                    assert_eq!(layout.chunk_routes % top_k, 0);
                    assert!(
                        layout.chunk_routes <= CHUNK_ROUTES && layout.chunk_routes / top_k <= CHUNK_TOKENS
                    );
                    assert!(layout.chunks * layout.chunk_routes >= tokens * top_k);
                    // The worst spread: every expert but one has one route more than whole tiles.
                    let spread = experts.min(tokens * top_k);
                    let worst = (tokens * top_k - spread) / TILE_ROWS + spread;
                    assert!(layout.max_tiles >= worst);
                }
            }
        }
    }
}
