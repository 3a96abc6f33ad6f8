//! Blocks, warps and lanes.
//!
//! - `grid` starts blocks, gives their warps turns and ends launches; `barrier` holds what a block's warps wait at;
//! - `warp` runs one warp: which lanes go on together, where they part and meet again; `registers` are what it has;
//! - `alu`, `int`, `compare`, `float`, `half` and `convert` compute, `lanes` is what they share;
//! - `access`, `atomic` and `windows` go to memory; `shuffle` and `matrix` work across the lanes.
//!
//! Each lane has a program counter. Of the lanes that can go on, those at the lowest one run; lanes meet again where their
//! counters are equal. Every launch with the same seed executes in the same order.

mod access;
mod alu;
mod atomic;
mod barrier;
mod compare;
mod convert;
mod float;
mod grid;
mod half;
mod int;
mod lanes;
mod matrix;
mod random;
mod registers;
mod shuffle;
mod warp;
mod windows;

use crate::counters::Counters;
use crate::fault::Fault;
use crate::memory::Device;
use crate::ptx::Module;

/// Generic addresses from here on are a thread's local memory.
pub const LOCAL_WINDOW: u64 = 0x7fff_4000_0000;
/// Generic addresses from here on are the module's constants.
pub const CONSTANT_WINDOW: u64 = 0x7fff_8000_0000;
/// Generic addresses from here on are the launch's parameters.
pub const PARAM_WINDOW: u64 = 0x7fff_c000_0000;
/// Most bytes of shared memory of a block, as of sm_90.
pub const MAX_SHARED: u32 = 227 << 10;

/// A launch.
#[derive(Debug, Clone)]
pub struct Setup {
    /// Blocks.
    pub grid: [u32; 3],
    /// Threads of a block.
    pub block: [u32; 3],
    /// Bytes of dynamic shared memory.
    pub dynamic_shared: u32,
    /// The parameters' bytes.
    pub params: Vec<u8>,
    /// Decides the order of blocks and warps.
    pub seed: u64,
    /// Blocks that run interleaved.
    pub resident_blocks: u32,
    /// Most warp instructions.
    pub max_instructions: u64,
    /// Whether the counters say which lines were executed.
    pub coverage: bool,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            grid: [1; 3],
            block: [32, 1, 1],
            dynamic_shared: 0,
            params: Vec::new(),
            seed: 0,
            resident_blocks: 16,
            max_instructions: 1 << 36,
            coverage: false,
        }
    }
}

/// Executes a launch to its end or its first fault.
pub fn run(module: &Module, kernel: &str, setup: &Setup, device: &mut Device) -> Result<Counters, Fault> {
    grid::run(module, kernel, setup, device)
}
