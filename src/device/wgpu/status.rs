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

    /// A NaN or infinite weight of a live route; the route counted for nothing.
    pub const WEIGHT_NOT_FINITE: Self = Self(16);

    const NAMES: [(Self, &'static str); 5] = [
        (Self::ID_OUT_OF_RANGE, "id out of range"),
        (Self::STALE_SLOT, "stale slot"),
        (Self::SCORE_NOT_FINITE, "score not finite"),
        (Self::UNEQUAL_RANKS, "unequal ranks"),
        (Self::WEIGHT_NOT_FINITE, "weight not finite"),
    ];

    /// The bits under the names that kernels know them by.
    pub(super) const CONSTANTS: [(&'static str, u32); 5] = [
        ("ID_OUT_OF_RANGE", Self::ID_OUT_OF_RANGE.0),
        ("STALE_SLOT", Self::STALE_SLOT.0),
        ("SCORE_NOT_FINITE", Self::SCORE_NOT_FINITE.0),
        ("UNEQUAL_RANKS", Self::UNEQUAL_RANKS.0),
        ("WEIGHT_NOT_FINITE", Self::WEIGHT_NOT_FINITE.0),
    ];

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
        let found: Vec<&str> =
            Self::NAMES.iter().filter(|(s, _)| self.contains(*s)).map(|(_, name)| *name).collect();
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
