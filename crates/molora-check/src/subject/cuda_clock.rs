//! Time of enqueued work by the device's events.

use molora::device::Cuda;
use molora::device::cuda::cudarc::driver::{CudaEvent, DriverError, sys};
use molora::error::{Error, Result};
use std::time::Duration;

/// Begun, not yet stopped.
pub(crate) struct CudaClock<'a> {
    cuda: &'a Cuda,
    start: CudaEvent,
}

fn failed(cuda: &Cuda, e: DriverError) -> Error {
    Error::Device { device: format!("cuda: {}", cuda.describe()), reason: e.to_string() }
}

impl<'a> CudaClock<'a> {
    /// Begins after all work that was enqueued before.
    pub(crate) fn start(cuda: &'a Cuda) -> Result<Self> {
        let start = cuda.stream().record_event(Some(sys::CUevent_flags::CU_EVENT_DEFAULT));
        Ok(Self { cuda, start: start.map_err(|e| failed(cuda, e))? })
    }

    /// Waits for all that was enqueued since.
    pub(crate) fn stop(self) -> Result<Duration> {
        let end = self.cuda.stream().record_event(Some(sys::CUevent_flags::CU_EVENT_DEFAULT));
        let took = end.and_then(|end| self.start.elapsed_ms(&end));
        let milliseconds = took.map_err(|e| failed(self.cuda, e))?;
        Ok(Duration::from_secs_f64(f64::from(milliseconds) * 1e-3))
    }
}
