//! The devices: the only files that name threads and SIMD, wgpu, or (with the next release) cudarc.

pub mod cpu;
#[cfg(feature = "wgpu")]
pub mod wgpu;

#[cfg(feature = "wgpu")]
pub use self::wgpu::Wgpu;
pub use cpu::Cpu;
