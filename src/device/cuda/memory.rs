//! Device memory that molora holds: its own, a slice that the engine gave, or the engine's by address.

use super::params::Address;
use super::{Cuda, StreamId};
use crate::error::Result;
use cudarc::driver::{CudaSlice, CudaStream, DevicePtrMut, DeviceRepr, DriverError, ValidAsZeroBits};
use std::sync::Arc;

/// `len` elements at an address that never changes. All use of it is on one stream, so that no event is needed; see
/// [`Cuda::check_streams`].
#[derive(Debug)]
pub(crate) struct Memory<T> {
    address: Address,
    len: usize,
    stream: Option<StreamId>,
    _slice: Option<CudaSlice<T>>,
}

impl<T: DeviceRepr> Memory<T> {
    /// Memory of no particular contents.
    pub(crate) fn new(cuda: &Cuda, len: usize) -> Result<Self> {
        Self::of(cuda, cuda.alloc(len)?)
    }

    /// A slice of this stream, on which cudarc will free it: on another that could come before our work is over.
    pub(crate) fn of(cuda: &Cuda, slice: CudaSlice<T>) -> Result<Self> {
        cuda.check_streams("cuda", [("slice", Some(StreamId::of(slice.stream())))])?;
        cuda.bind()?;
        Ok(Self::on(cuda.stream(), slice))
    }

    fn on(stream: &Arc<CudaStream>, mut slice: CudaSlice<T>) -> Self {
        let (address, _) = slice.device_ptr_mut(stream);
        let stream = Some(StreamId::of(stream));
        Self { address, len: slice.len(), stream, _slice: Some(slice) }
    }

    /// Zeros.
    pub(crate) fn zeroed(cuda: &Cuda, len: usize) -> Result<Self>
    where
        T: ValidAsZeroBits,
    {
        let mut slice = cuda.alloc(len)?;
        cuda.stream().memset_zeros(&mut slice).map_err(|e| cuda.failed("memory", e))?;
        Self::of(cuda, slice)
    }

    /// Zeros, before there is a handle.
    pub(crate) fn zeroed_on(stream: &Arc<CudaStream>, len: usize) -> std::result::Result<Self, DriverError>
    where
        T: ValidAsZeroBits,
    {
        Ok(Self::on(stream, stream.alloc_zeros(len)?))
    }

    /// The engine's memory.
    ///
    /// # Safety
    /// The elements are device memory of the stream's context for as long as this is used and the work of that use runs, and
    /// nothing else writes them meanwhile; all that use is on one stream.
    pub(crate) unsafe fn from_raw(address: u64, len: usize) -> Self {
        Self { address, len, stream: None, _slice: None }
    }

    /// Where the first element lies.
    pub(crate) fn address(&self) -> Address {
        self.address
    }

    /// Whose it is; none for memory by its address.
    pub(crate) fn stream(&self) -> Option<StreamId> {
        self.stream
    }

    /// Elements.
    pub(crate) fn len(&self) -> usize {
        self.len
    }
}
