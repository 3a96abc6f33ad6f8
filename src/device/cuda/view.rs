//! A typed part of an engine's device memory.

use super::params::Address;
use super::{Cuda, StreamId};
use crate::error::{Error, Result};
use cudarc::driver::{CudaSlice, CudaView, CudaViewMut, DeviceSlice, SyncOnDrop};
use std::marker::PhantomData;

/// `len` elements of type T in device memory, to read on one stream. Copies nothing.
///
/// The address is taken once, when the view is made: there the stream waits for whatever other streams of the context still
/// write, and when the view is dropped its use is recorded for them (cudarc's event tracking). For a CUDA graph make the
/// views first, then capture, then drop them: no foreign event gets into the capture. The slice itself must live for as long as the graph is replayed, which the
/// compiler cannot see.
#[derive(Debug)]
pub struct View<'a, T> {
    address: Address,
    len: usize,
    stream: Option<StreamId>,
    _guard: Option<SyncOnDrop<'a>>,
    _elements: PhantomData<&'a [T]>,
}

/// As [`View`], to write.
#[derive(Debug)]
pub struct ViewMut<'a, T> {
    address: Address,
    len: usize,
    stream: Option<StreamId>,
    _guard: Option<SyncOnDrop<'a>>,
    _elements: PhantomData<&'a mut [T]>,
}

/// Memory of another context than the stream's is not the device's to use.
fn check_context<T>(cuda: &Cuda, slice: &impl DeviceSlice<T>) -> Result<()> {
    if slice.stream().context() == cuda.stream().context() {
        return Ok(());
    }
    let (expected, got) = (cuda.stream().context().ordinal(), slice.stream().context().ordinal());
    let expected = format!("memory of this context on device {expected}");
    Err(Error::argument("view", "slice", expected, format!("another's, on device {got}")))
}

impl<'a, T> View<'a, T> {
    /// A part of a slice.
    pub fn new(cuda: &'a Cuda, part: CudaView<'a, T>) -> Result<Self> {
        check_context(cuda, &part)?;
        cuda.bind()?;
        let len = part.len();
        let (address, guard) = part.view_ptr(cuda.stream());
        let stream = Some(StreamId::of(cuda.stream()));
        Ok(Self { address, len, stream, _guard: Some(guard), _elements: PhantomData })
    }

    /// All of a slice.
    pub fn whole(cuda: &'a Cuda, slice: &'a CudaSlice<T>) -> Result<Self> {
        Self::new(cuda, slice.as_view())
    }

    /// Memory that no cudarc slice owns.
    ///
    /// # Safety
    /// The `len` elements at `address` are device memory of the context of the stream that it is used on, aligned to T, for as
    /// long as work that reads them may run, and whoever writes them is ordered with that stream.
    pub unsafe fn from_raw(address: u64, len: usize) -> Self {
        Self { address, len, stream: None, _guard: None, _elements: PhantomData }
    }

    /// Elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// No elements.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whose it is; none for memory by its address.
    pub(crate) fn stream(&self) -> Option<StreamId> {
        self.stream
    }

    /// Where the first element lies.
    pub fn address(&self) -> u64 {
        self.address
    }
}

impl<'a, T> ViewMut<'a, T> {
    /// A part of a slice.
    pub fn new(cuda: &'a Cuda, part: CudaViewMut<'a, T>) -> Result<Self> {
        check_context(cuda, &part)?;
        cuda.bind()?;
        let len = part.len();
        let (address, guard) = part.view_ptr_mut(cuda.stream());
        let stream = Some(StreamId::of(cuda.stream()));
        Ok(Self { address, len, stream, _guard: Some(guard), _elements: PhantomData })
    }

    /// All of a slice.
    pub fn whole(cuda: &'a Cuda, slice: &'a mut CudaSlice<T>) -> Result<Self> {
        Self::new(cuda, slice.as_view_mut())
    }

    /// Memory that no cudarc slice owns.
    ///
    /// # Safety
    /// As [`View::from_raw`], and nothing else reads or writes the elements unless ordered with the stream.
    pub unsafe fn from_raw(address: u64, len: usize) -> Self {
        Self { address, len, stream: None, _guard: None, _elements: PhantomData }
    }

    /// The same elements, to read what an earlier call wrote.
    pub fn as_view(&self) -> View<'_, T> {
        View {
            address: self.address,
            len: self.len,
            stream: self.stream,
            _guard: None,
            _elements: PhantomData,
        }
    }

    /// Elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// No elements.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whose it is; none for memory by its address.
    pub(crate) fn stream(&self) -> Option<StreamId> {
        self.stream
    }

    /// Where the first element lies.
    pub fn address(&self) -> u64 {
        self.address
    }
}

/// Whether rows of these elements all start at multiples of 16 bytes, so that kernels may read 16 bytes at a time.
pub(crate) fn is_vector(address: Address, stride: usize, element_bytes: usize) -> bool {
    address.is_multiple_of(16) && stride.saturating_mul(element_bytes).is_multiple_of(16)
}
