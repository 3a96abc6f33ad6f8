//! The status word: what kernels saw and skipped, until the host asks.

use super::Wgpu;
use crate::error::Result;

/// What kernels saw and skipped since the word was last taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Status(u32);

impl Status {
    /// An id at or above `experts`, or below -1.
    pub const ID_OUT_OF_RANGE: Self = Self(1);
    /// A slot that was empty, evicted or replaced when the plan's ids were made.
    pub const STALE_SLOT: Self = Self(2);
    /// A NaN or infinite score; its token selected nothing.
    pub const SCORE_NOT_FINITE: Self = Self(4);
    /// Experts of different ranks in one token of a `RankSum`; the token got no delta.
    pub const UNEQUAL_RANKS: Self = Self(8);

    /// Nothing was skipped.
    pub fn is_ok(self) -> bool {
        self.0 == 0
    }

    /// Whether this happened.
    pub fn contains(self, what: Self) -> bool {
        self.0 & what.0 == what.0
    }
}

impl std::fmt::Display for Status {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let names = [
            (Self::ID_OUT_OF_RANGE, "id out of range"),
            (Self::STALE_SLOT, "stale slot"),
            (Self::SCORE_NOT_FINITE, "score not finite"),
            (Self::UNEQUAL_RANKS, "unequal ranks"),
        ];
        let found: Vec<&str> =
            names.iter().filter(|(s, _)| self.contains(*s)).map(|(_, name)| *name).collect();
        f.write_str(if found.is_empty() { "ok".to_string() } else { found.join(", ") }.as_str())
    }
}

impl Wgpu {
    /// The same device with a status word of its own, so that a layer's troubles are told from another's.
    pub fn with_own_status(&self) -> Self {
        Self { status: buffer(&self.shared.device), ..self.clone() }
    }

    /// Reads the status word and clears it; submits and waits.
    pub fn take_status(&self) -> Result<Status> {
        let word = self.download::<u32>(&self.status, 1)?[0];
        self.queue().write_buffer(&self.status, 0, &[0; 4]);
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
