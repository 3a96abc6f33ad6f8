//! A machine that executes PTX on the CPU, shaped as a stand-in `libcuda.so.1`.
//!
//! It executes the text that ships, reports faults that a GPU would let pass, and counts what a GPU would have done. It
//! shows neither time nor what a driver accepts; see README.md. The contents, in the order in which a launch goes:
//!
//! - [`ptx`]: text to a [`ptx::Module`], decoded once to enums;
//! - [`exec`]: blocks, warps and lanes that execute a kernel of it;
//! - [`memory`]: allocations, shared memory, and the shadow state that finds faults;
//! - [`counters`]: what a launch did; [`fault`]: what was wrong with it;
//! - [`driver`]: the driver API over all of it.

pub mod counters;
pub mod driver;
pub mod exec;
pub mod fault;
pub mod memory;
pub mod ptx;
