//! The status word on a WebGPU device.

use super::Wgpu;
use crate::device::status::Status;
use crate::error::Result;

impl Wgpu {
    /// The same device with a status word of its own, so that a layer's troubles are told from another's.
    pub fn with_own_status(&self) -> Self {
        Self { status: buffer(&self.shared.device), ..self.clone() }
    }

    /// Reads the status word and clears it; submits and waits.
    pub fn take_status(&self) -> Result<Status> {
        // Copied and cleared in one submission, so that no bit is lost between.
        let word = self.storage("status", 4)?;
        let mut encoder = self.encoder();
        encoder.copy_buffer_to_buffer(&self.status, 0, &word, 0, 4);
        encoder.clear_buffer(&self.status, 0, Some(4));
        self.queue().submit([encoder.finish()]);
        let word = self.download::<u32>(&word, 1)?[0];
        Ok(Status(word))
    }

    /// The status word, for kernels.
    pub(crate) fn status_buffer(&self) -> &wgpu::Buffer {
        &self.status
    }
}

/// A cleared word.
pub(super) fn buffer(device: &wgpu::Device) -> wgpu::Buffer {
    let usage = wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_DST | wgpu::BufferUsages::COPY_SRC;
    let descriptor =
        wgpu::BufferDescriptor { label: Some("status"), size: 16, usage, mapped_at_creation: false };
    device.create_buffer(&descriptor)
}
