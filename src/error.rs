//! What can go wrong: broken preconditions, files that are not what they claim, devices that are not there.

/// Everything that a call of this crate can refuse.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An argument does not fit the operation.
    #[error("{op}: {argument}: expected {expected}, got {got}")]
    Argument {
        /// The operation that refused.
        op: &'static str,
        /// The argument's name, with its index where it has one.
        argument: String,
        /// What would have been accepted.
        expected: String,
        /// What came.
        got: String,
    },
    /// A plan names a slot whose adapter was evicted or replaced after the plan was made.
    #[error(
        "{op}: slot {slot}: expected the adapter that was there when the plan was made, got one evicted or replaced since"
    )]
    Stale {
        /// The operation that refused.
        op: &'static str,
        /// The slot in the pool.
        slot: usize,
    },
    /// A file of adapters or routers is not what it claims to be, or asks for what molora does not do.
    #[error("{file}: {item}: expected {expected}, got {got}")]
    Format {
        /// The file, as it was named by the caller.
        file: String,
        /// The key, tensor or option inside the file.
        item: String,
        /// What would have been accepted.
        expected: String,
        /// What the file holds.
        got: String,
    },
    /// A device is absent, too small for the call, or lost.
    #[error("{device}: {reason}")]
    Device {
        /// `cpu`, `wgpu` or `cuda`, with the adapter's name where it is known.
        device: String,
        /// Why it cannot be used.
        reason: String,
    },
}

/// The result of every fallible call.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// An argument that does not fit.
    pub(crate) fn argument(
        op: &'static str,
        argument: impl Into<String>,
        expected: impl ToString,
        got: impl ToString,
    ) -> Self {
        Self::Argument { op, argument: argument.into(), expected: expected.to_string(), got: got.to_string() }
    }

    /// A file that does not fit.
    pub(crate) fn format(
        file: impl ToString,
        item: impl Into<String>,
        expected: impl ToString,
        got: impl ToString,
    ) -> Self {
        Self::Format {
            file: file.to_string(),
            item: item.into(),
            expected: expected.to_string(),
            got: got.to_string(),
        }
    }
}
