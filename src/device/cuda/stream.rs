//! Whose memory something is, and what the stream is doing.

use super::{Cuda, driver};
use crate::error::{Error, Result};
use cudarc::driver::{CudaStream, sys};

/// A stream by the driver's own handles, to compare: memory outlives no stream that it names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct StreamId {
    context: usize,
    /// Null is the default stream of every context.
    stream: usize,
}

impl StreamId {
    pub(crate) fn of(stream: &CudaStream) -> Self {
        Self { context: stream.context().cu_ctx() as usize, stream: stream.cu_stream() as usize }
    }
}

/// Refuses host copies and new memory in a capture: a replay would read host memory that is long gone.
pub(super) fn check_not_capturing(op: &'static str, stream: &CudaStream, device: &str) -> Result<()> {
    let status = stream.capture_status().map_err(|e| driver::failed(device, "stream", e))?;
    if status == sys::CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE {
        return Ok(());
    }
    Err(Error::argument(op, "stream", "one that captures no graph", format!("{status:?}")))
}

impl Cuda {
    /// Refuses memory of another stream, whose work is not ordered with this one's. Memory by address alone names none: it is
    /// the engine's promise.
    pub(crate) fn check_streams<const N: usize>(
        &self,
        op: &'static str,
        memory: [(&'static str, Option<StreamId>); N],
    ) -> Result<()> {
        let own = StreamId::of(self.stream());
        match memory.iter().find(|(_, stream)| stream.is_some_and(|stream| stream != own)) {
            None => Ok(()),
            Some((argument, _)) => Err(Error::argument(op, *argument, "memory of this stream", "another's")),
        }
    }

    /// See [`check_not_capturing`].
    pub(crate) fn check_not_capturing(&self, op: &'static str) -> Result<()> {
        check_not_capturing(op, self.stream(), &self.properties().name)
    }
}
