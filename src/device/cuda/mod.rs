//! CUDA: an NVIDIA GPU through its driver, on a stream of its own or the engine's.
//!
//! Every launch and copy goes to the handle's one stream. Nothing waits for it but [`Cuda::take_status`], [`Cuda::wait`] and
//! the downloads (a large upload may, in the driver), and no call but the constructors, uploads and [`Cuda::plan`] takes
//! memory: the operations may be captured into a CUDA graph.
//!
//! A graph holds addresses and keeps nothing alive: none may be replayed after the layer, pool, workspace or plan, router,
//! slices or handle that it was captured from is dropped (or, a router, replaced).

mod ceiling;
#[cfg(test)]
mod contract;
mod driver;
mod entry;
mod memory;
mod module;
pub(crate) mod params;
mod plan;
mod pool;
mod status;
mod stream;
mod view;

/// The driver's bindings, for engines: streams, slices and graphs of this version.
pub use cudarc;

pub use crate::device::status::Status;
pub use ceiling::CEILING_THREADS;
pub use driver::Properties;
pub use entry::{Entry, Kernel, Launch, Offer};
pub use plan::Plan;
pub use pool::Pool;
pub use view::{View, ViewMut};

pub(crate) use memory::Memory;
pub(crate) use plan::{MAX_TOP_K, SHAPE};
pub(crate) use status::GROUP_COUNTERS;
pub(crate) use stream::StreamId;
pub(crate) use view::is_vector;

use crate::element::ElementType;
use crate::error::{Error, Result};
use cudarc::driver::{CudaSlice, CudaStream, DevicePtr, DevicePtrMut, DeviceRepr, DriverError, result};
use std::ffi::c_void;
use std::sync::Arc;

/// A CUDA device and a stream on it. Cheap to clone; clones share the kernels, and the status word unless asked otherwise.
#[derive(Clone)]
pub struct Cuda {
    shared: Arc<Shared>,
    status: Arc<Memory<u32>>,
    batch_invariant: bool,
    tensor_cores: bool,
}

struct Shared {
    stream: Arc<CudaStream>,
    module: Arc<module::Module>,
    set: module::Set,
    properties: Properties,
}

impl std::fmt::Debug for Cuda {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Cuda({})", self.describe())
    }
}

impl Cuda {
    /// The device of this number, with a stream of its own.
    pub fn new(ordinal: usize) -> Result<Self> {
        let (context, properties, set) = driver::open(ordinal)?;
        let stream = context.new_stream().map_err(|e| driver::failed(&properties.name, "stream", e))?;
        Self::assemble(stream, properties, set)
    }

    /// The engine's own stream: the launches of this handle go there and nowhere else.
    pub fn from_stream(stream: Arc<CudaStream>) -> Result<Self> {
        let (properties, set) = driver::examine(stream.context().cu_device())?;
        Self::assemble(stream, properties, set)
    }

    fn assemble(stream: Arc<CudaStream>, properties: Properties, set: module::Set) -> Result<Self> {
        stream::check_not_capturing("cuda", &stream, &properties.name)?;
        let module = module::Module::of(stream.context(), set, &properties.name)?;
        let status = Memory::zeroed_on(&stream, status::WORDS)
            .map_err(|e| driver::failed(&properties.name, "status", e))?;
        let shared = Arc::new(Shared { stream, module, set, properties });
        Ok(Self { shared, status: Arc::new(status), batch_invariant: false, tensor_cores: true })
    }

    /// One form for every batch size: the same bits for a token alone and in any batch, slower for few tokens. Rows that
    /// change their alignment to 16 bytes may still change the form.
    pub fn batch_invariant(&self, on: bool) -> Self {
        Self { batch_invariant: on, ..self.clone() }
    }

    /// Tensor cores where elements and alignment allow them: on unless said otherwise. Without them products of many rows
    /// run in f32 arithmetic.
    pub fn tensor_cores(&self, on: bool) -> Self {
        Self { tensor_cores: on, ..self.clone() }
    }

    /// What the choice of a kernel may count on.
    pub fn offer(&self) -> Offer {
        let has = |x| {
            let entry = Entry::of(Kernel::BaseMma, x);
            self.tensor_cores && self.shared.module.function(&entry).is_some()
        };
        let (mma_f16, mma_bf16) = (has(ElementType::F16), has(ElementType::Bf16));
        Offer { batch_invariant: self.batch_invariant, mma_f16, mma_bf16 }
    }

    /// Whether two handles are of one stream, so that what one enqueues is ordered with the other's.
    pub(crate) fn shares_stream(&self, other: &Self) -> bool {
        *self.stream() == *other.stream()
    }

    /// The stream that all work goes to.
    pub fn stream(&self) -> &Arc<CudaStream> {
        &self.shared.stream
    }

    /// Name, architecture, sizes.
    pub fn properties(&self) -> &Properties {
        &self.shared.properties
    }

    /// The set of kernels in use: `sm_75` or `sm_80`.
    pub fn kernels(&self) -> &'static str {
        self.shared.set.name()
    }

    /// Whether this is a machine that executes PTX on the CPU, not a GPU.
    pub fn is_stand_in(&self) -> bool {
        self.properties().name.starts_with("PTX machine")
    }

    /// The device's name, architecture and driver in a line.
    pub fn describe(&self) -> String {
        self.properties().describe()
    }

    /// Device memory that holds `values`, of at least one element; copies, in stream order. The values may be freed on return.
    pub fn upload<T: DeviceRepr + bytemuck::Pod>(&self, values: &[T]) -> Result<CudaSlice<T>> {
        let mut slice = self.alloc(values.len())?;
        let (address, guard) = slice.device_ptr_mut(self.stream());
        self.copy_to(address, values)?;
        drop(guard);
        Ok(slice)
    }

    /// Device memory for `len` elements, at least one, of no particular contents; not in a capture.
    pub(crate) fn alloc<T: DeviceRepr>(&self, len: usize) -> Result<CudaSlice<T>> {
        let len = len.max(1);
        // cudarc multiplies unchecked.
        if len.checked_mul(size_of::<T>()).is_none_or(|bytes| bytes > isize::MAX as usize) {
            let got = format!("{len} * {} bytes", size_of::<T>());
            return Err(Error::argument("cuda", "len", "a size that fits memory", got));
        }
        self.check_not_capturing("cuda")?;
        self.bind()?;
        // SAFETY: all who call write the elements, or hand them to kernels that write before they read.
        unsafe { self.stream().alloc(len) }.map_err(|e| self.failed("memory", e))
    }

    /// The first `len` elements of a slice; copies and waits.
    pub fn download<T: DeviceRepr + bytemuck::Pod>(
        &self,
        slice: &impl DevicePtr<T>,
        len: usize,
    ) -> Result<Vec<T>> {
        if len > slice.len() {
            let expected = format!("at most the slice's {} elements", slice.len());
            return Err(Error::argument("download", "len", expected, len));
        }
        // Before the slice's events, which a capture would take in.
        self.check_not_capturing("download")?;
        self.bind()?;
        let (address, _guard) = slice.device_ptr(self.stream());
        self.download_from(address, len)
    }

    /// `len` elements from an address on; waits.
    pub(crate) fn download_from<T: bytemuck::Pod>(&self, address: u64, len: usize) -> Result<Vec<T>> {
        self.check_not_capturing("download")?;
        let mut values = vec![T::zeroed(); len];
        if len > 0 {
            self.bind()?;
            // SAFETY: the caller's memory holds `len` elements; the copy is over before `values` is looked at.
            unsafe { result::memcpy_dtoh_async(&mut values, address, self.stream().cu_stream()) }
                .map_err(|e| self.failed("download", e))?;
        }
        self.wait()?;
        Ok(values)
    }

    /// Waits until the stream is empty.
    pub fn wait(&self) -> Result<()> {
        self.stream().synchronize().map_err(|e| self.failed("stream", e))
    }

    /// Makes the context the calling thread's; also reports what failed where nothing could be returned.
    pub(crate) fn bind(&self) -> Result<()> {
        self.stream().context().bind_to_thread().map_err(|e| self.failed("context", e))
    }

    /// Enqueues host memory to an address; it may be freed on return: the driver stages it, or where the device reads it by
    /// the host's page tables, where no staging is promised, the call waits. For uploads and pools, not for operations.
    pub(crate) fn copy_to<T: bytemuck::Pod>(&self, address: u64, values: &[T]) -> Result<()> {
        self.bind()?;
        if values.is_empty() {
            return Ok(());
        }
        // SAFETY: the caller's memory has room. Host memory that is not pinned is staged before the call returns,
        // else the wait below keeps it.
        unsafe { result::memcpy_htod_async(address, values, self.stream().cu_stream()) }
            .map_err(|e| self.failed("copy", e))?;
        if self.properties().reads_host_memory { self.wait() } else { Ok(()) }
    }

    /// Enqueues a kernel with its one parameter; nothing where the grid is empty.
    pub(crate) fn launch<P: params::Params>(
        &self,
        op: &'static str,
        launch: &Launch,
        params: &P,
    ) -> Result<()> {
        let groups = launch.grid(op)?;
        if groups == 0 {
            return Ok(());
        }
        let function = self.shared.module.function(&launch.entry).ok_or_else(|| Error::Device {
            device: format!("cuda {}", self.properties().name),
            reason: format!(
                "{op}: expected a kernel {}, which {} lacks",
                launch.entry.name(),
                self.kernels()
            ),
        })?;
        self.bind()?;
        let mut params = *params;
        let mut arguments = [(&raw mut params).cast::<c_void>()];
        let threads = launch.entry.kernel.threads();
        // SAFETY: `params.rs` lies as the kernel reads it (its test); lengths were checked by the operation's `check`, so
        // that every place which the kernel touches is the engine's or ours; the driver copies the params before it returns.
        unsafe {
            let stream = self.stream().cu_stream();
            result::launch_kernel(function, (groups, 1, 1), (threads, 1, 1), 0, stream, &mut arguments)
        }
        .map_err(|e| self.failed(&launch.entry.name(), e))
    }

    /// A driver's error on this device.
    pub(crate) fn failed(&self, step: &str, e: DriverError) -> Error {
        driver::failed(&self.properties().name, step, e)
    }
}
