//! Fused MoE-LoRA kernels for CUDA, WebGPU and the CPU.
//!
//! A MoE-LoRA layer is a frozen linear layer plus many small low-rank experts,
//! `y = W x + sum over the chosen experts e of w_e scaling_e B_e (A_e x)`. The contents, in the order in which data
//! flows:
//!
//! - [`adapter`]: LoRA files into checked factors, and the pool's books;
//! - [`layer`]: [`MoeLora`], the layer on one device; read it first;
//! - [`ops`]: its operations, one file each: `route`, `plan`, `shrink`, `attend`, `base`, `expand`, and `fused` and `grouped`,
//!   base and experts in one product;
//! - [`device`]: [`Cpu`], `Cuda` and `Wgpu`, the only places that know threads, SIMD, cudarc and wgpu;
//! - [`preset`]: the published systems by name;
//! - [`retrieval`]: which adapters suit a request, by the embedding of its text;
//! - [`host`]: a device chosen at run time, host slices in and out;
//! - [`trace`]: which adapters each token took, counters, JSON lines;
//! - [`element`], [`error`].

pub mod adapter;
pub mod device;
pub mod element;
pub mod error;
pub mod host;
pub mod layer;
pub mod ops;
pub mod preset;
pub mod retrieval;
pub mod trace;

pub use adapter::Lora;
pub use device::Cpu;
#[cfg(feature = "cuda")]
pub use device::Cuda;
#[cfg(feature = "wgpu")]
pub use device::Wgpu;
pub use element::{Element, ElementType};
pub use error::{Error, Result};
pub use layer::{MoeLora, Router};
