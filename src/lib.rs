//! Fused MoE-LoRA kernels for CUDA, WebGPU and the CPU.
pub mod element;
pub mod error;
