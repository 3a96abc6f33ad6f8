//! The status word on a CUDA device.

use super::{Cuda, Memory, Status};
use crate::error::Result;
use cudarc::driver::result;
use std::sync::Arc;

impl Cuda {
    /// The same device with a status word of its own, so that a layer's troubles are told from another's.
    pub fn with_own_status(&self) -> Result<Self> {
        self.check_not_capturing("cuda")?;
        self.bind()?;
        let word = Memory::zeroed_on(self.stream(), 1).map_err(|e| self.failed("status", e))?;
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
}
