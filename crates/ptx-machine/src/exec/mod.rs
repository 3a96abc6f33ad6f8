//! Blocks, warps and lanes.

/// Generic addresses from here on are a thread's local memory.
pub const LOCAL_WINDOW: u64 = 0x7fff_4000_0000;
/// Generic addresses from here on are the module's constants.
pub const CONSTANT_WINDOW: u64 = 0x7fff_8000_0000;
/// Generic addresses from here on are the launch's parameters.
pub const PARAM_WINDOW: u64 = 0x7fff_c000_0000;
