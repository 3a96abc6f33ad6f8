//! A plan in a GPU's memory: one buffer of words in sections, laid out alike on every GPU.

use crate::ops::plan::Sizes;

/// What differs between the devices' planners.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Shape {
    /// Words before the first section.
    pub(crate) header: usize,
    /// Most routes of a chunk; also the largest `top_k`.
    pub(crate) chunk_routes: usize,
    /// Most tokens of a chunk.
    pub(crate) chunk_tokens: usize,
    /// Routes of one expert in a tile.
    pub(crate) tile_routes: usize,
}

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
    /// The layout for these sizes; `top_k` is at most the shape's `chunk_routes`. Absurd sizes saturate.
    pub(crate) fn new(sizes: &Sizes, shape: &Shape) -> Self {
        let (routes, experts) = (sizes.routes(), sizes.experts);
        let chunk_tokens = (shape.chunk_routes / sizes.top_k.max(1)).clamp(1, shape.chunk_tokens);
        let chunk_routes = (chunk_tokens * sizes.top_k).max(1);
        let chunks = routes.div_ceil(chunk_routes);
        let max_tiles = (routes / shape.tile_routes).saturating_add(experts.min(routes));
        let mut words = shape.header;
        let mut section = |length: usize| {
            let at = words;
            words = words.saturating_add(length);
            at
        };
        Self {
            chunk_routes,
            chunks,
            max_tiles,
            at_ids: section(routes),
            at_chunks: section(chunks.saturating_mul(chunk_routes)),
            at_places: section(routes),
            at_counts: section(chunks.saturating_mul(experts)),
            at_sorted: section(routes),
            at_offsets: section(experts.saturating_add(1)),
            at_tile_offsets: section(experts.saturating_add(1)),
            at_tiles: section(max_tiles.saturating_mul(2)),
            words,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_hold_whole_tokens_and_tiles_suffice() {
        for (header, chunk_routes, chunk_tokens, tile_routes) in [(0, 256, 16, 64), (4, 512, 64, 64)] {
            let shape = Shape { header, chunk_routes, chunk_tokens, tile_routes };
            for top_k in [1, 2, 3, 7, 8, 9, 255, 256] {
                for tokens in [1, 15, 16, 17, 1000] {
                    for experts in [1, 5, 4096] {
                        let layout = Layout::new(&Sizes { tokens, top_k, experts }, &shape);
                        assert_eq!((layout.at_ids, layout.chunk_routes % top_k), (header, 0));
                        assert!(layout.chunk_routes <= chunk_routes);
                        assert!(layout.chunk_routes / top_k <= chunk_tokens);
                        assert!(layout.chunks * layout.chunk_routes >= tokens * top_k);
                        // The worst spread: every expert but one has one route more than whole tiles.
                        let spread = experts.min(tokens * top_k);
                        let worst = (tokens * top_k - spread) / tile_routes + spread;
                        assert!(layout.max_tiles >= worst);
                    }
                }
            }
        }
    }
}
