//! Fused MoE-LoRA kernels for CUDA, WebGPU and the CPU.

pub mod adapter;
pub mod device;
pub mod element;
pub mod error;
pub mod ops;
