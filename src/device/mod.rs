//! The devices: the only files that name threads and SIMD, wgpu, or (with the next release) cudarc.

pub mod cpu;
#[cfg(feature = "wgpu")]
pub mod wgpu;

pub use cpu::Cpu;
#[cfg(feature = "wgpu")]
pub use self::wgpu::Wgpu;
