//! Tensors of candle as host slices.

use anyhow::{Result, bail};
use candle_core::{CpuStorage, Storage, Tensor};

/// Calls `read` with the values of a tensor in row-major order, copied only where the tensor is not contiguous.
pub fn with_slice<R>(tensor: &Tensor, read: impl FnOnce(&[f32]) -> R) -> Result<R> {
    let tensor = tensor.contiguous()?;
    let (storage, layout) = tensor.storage_and_layout();
    let Some((start, end)) = layout.contiguous_offsets() else { bail!("a contiguous tensor has no offsets") };
    match &*storage {
        Storage::Cpu(CpuStorage::F32(values)) => Ok(read(&values[start..end])),
        _ => bail!("expected an f32 tensor on the CPU, got {:?} on {:?}", tensor.dtype(), tensor.device()),
    }
}
