//! The status word on a CUDA device.

use super::{Cuda, Memory, Status};
use crate::error::Result;
use cudarc::driver::result;
use std::sync::Arc;

/// The counters' first word: a line of their own behind the status word.
const AT_COUNTERS: usize = 32;

/// Words of the status word's memory: the status, and counters that every launch finds and leaves at zero.
pub(super) const WORDS: usize = AT_GROUPS + GROUP_COUNTERS;

/// The first of those that groups of tokens have.
const AT_GROUPS: usize = AT_COUNTERS + 32;

/// Counters of grouped products: 32 KiB.
pub(crate) const GROUP_COUNTERS: usize = 8192;

impl Cuda {
    /// The same device with a status word (and counters) of its own, so that a layer's troubles are told from another's.
    pub fn with_own_status(&self) -> Result<Self> {
        self.check_not_capturing("cuda")?;
        self.bind()?;
        let word = Memory::zeroed_on(self.stream(), WORDS).map_err(|e| self.failed("status", e))?;
        Ok(Self { status: Arc::new(word), ..self.clone() })
    }

    /// Reads the status word and clears it, behind all work of the stream so far; waits.
    ///
    /// What another thread enqueues during the call may set a bit that nobody sees: take the word from the thread that
    /// launches.
    pub fn take_status(&self) -> Result<Status> {
        self.check_not_capturing("take_status")?;
        let mut word = [0u32];
        let stream = self.stream().cu_stream();
        // SAFETY: one word of ours each, copied and cleared in stream order; `word` is read after the wait.
        unsafe { result::memcpy_dtoh_async(&mut word, self.status.address(), stream) }
            .and_then(|()| unsafe { result::memset_d8_async(self.status.address(), 0, 4, stream) })
            .map_err(|e| self.failed("status", e))?;
        self.wait()?;
        Ok(Status(word[0]))
    }

    /// Where the status word lies, for kernels.
    pub(crate) fn status_address(&self) -> u64 {
        self.status.address()
    }

    /// Where the counters lie, for kernels; launches that use them are ordered on the stream.
    pub(crate) fn counters_address(&self) -> u64 {
        self.status.address() + AT_COUNTERS as u64 * 4
    }

    /// Where [`GROUP_COUNTERS`] more of them lie.
    pub(crate) fn group_counters_address(&self) -> u64 {
        self.status.address() + AT_GROUPS as u64 * 4
    }
}
