//! The devices: the only files that name threads and SIMD, wgpu, or (with the next release) cudarc.

pub mod cpu;

pub use cpu::Cpu;
