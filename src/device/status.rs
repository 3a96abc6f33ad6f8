//! The status word of a GPU: what kernels saw and skipped, until the host asks.

/// What kernels saw and skipped since the word was last taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Status(pub(crate) u32);

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
    /// An adapter of a larger rank than the launch was made for, which a replayed graph may meet; it was skipped.
    pub const RANK_TOO_LARGE: Self = Self(32);

    /// A plan's memory that held no plan for these sizes and this pool, which a replayed graph may meet; nothing was done.
    pub const STALE_PLAN: Self = Self(64);

    const NAMES: [(Self, &'static str); 7] = [
        (Self::ID_OUT_OF_RANGE, "id out of range"),
        (Self::STALE_SLOT, "stale slot"),
        (Self::SCORE_NOT_FINITE, "score not finite"),
        (Self::UNEQUAL_RANKS, "unequal ranks"),
        (Self::WEIGHT_NOT_FINITE, "weight not finite"),
        (Self::RANK_TOO_LARGE, "rank too large"),
        (Self::STALE_PLAN, "plan of other sizes"),
    ];

    /// The bits under the names that kernels know them by.
    #[cfg(any(feature = "wgpu", test))]
    pub(crate) const CONSTANTS: [(&'static str, u32); 7] = [
        ("ID_OUT_OF_RANGE", Self::ID_OUT_OF_RANGE.0),
        ("STALE_SLOT", Self::STALE_SLOT.0),
        ("SCORE_NOT_FINITE", Self::SCORE_NOT_FINITE.0),
        ("UNEQUAL_RANKS", Self::UNEQUAL_RANKS.0),
        ("WEIGHT_NOT_FINITE", Self::WEIGHT_NOT_FINITE.0),
        ("RANK_TOO_LARGE", Self::RANK_TOO_LARGE.0),
        ("STALE_PLAN", Self::STALE_PLAN.0),
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

impl std::ops::BitOr for Status {
    type Output = Self;
    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl std::fmt::Display for Status {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let found: Vec<&str> =
            Self::NAMES.iter().filter(|(s, _)| self.contains(*s)).map(|(_, name)| *name).collect();
        f.write_str(if found.is_empty() { "ok".to_string() } else { found.join(", ") }.as_str())
    }
}
