//! The devices: the only files that name threads and SIMD, wgpu, or cudarc.

pub mod cpu;
#[cfg(feature = "cuda")]
pub mod cuda;
#[cfg(any(feature = "wgpu", feature = "cuda"))]
pub(crate) mod plan;
#[cfg(any(feature = "wgpu", feature = "cuda"))]
pub(crate) mod status;
#[cfg(feature = "wgpu")]
pub mod wgpu;

#[cfg(feature = "cuda")]
pub use self::cuda::Cuda;
#[cfg(feature = "wgpu")]
pub use self::wgpu::Wgpu;
pub use cpu::Cpu;
