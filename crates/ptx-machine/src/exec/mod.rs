//! Blocks, warps and lanes.
