//! WebGPU: any adapter that wgpu finds, or the engine's own device and queue.

mod cache;
mod class;
mod launch;
mod parts;
mod plan;
mod pool;
mod status;
mod text;
#[doc(hidden)]
pub mod trace;
mod view;

pub use crate::device::status::Status;
pub use cache::CacheState;
pub use class::{Class, Path, Traits, Tuning};
pub use plan::Plan;
pub use pool::Pool;
pub use view::View;

pub(crate) use launch::{Binding, Launch, MATRIX_SIDE};
pub(crate) use parts::Blocks;
pub(crate) use plan::{CHUNK_TOKENS, MAX_TOP_K, SHAPE, TILE_ROWS};
pub(crate) use text::{Access, Tensor};

use crate::error::{Error, Result};
use pollster::block_on;
use std::collections::HashMap;
use std::sync::{Arc, Mutex};

/// A WebGPU device. Cheap to clone; clones share pipelines, and the status word unless asked otherwise.
///
/// Every operation records into the caller's encoder, submits nothing and waits for nothing.
#[derive(Clone)]
pub struct Wgpu {
    shared: Arc<Shared>,
    status: wgpu::Buffer,
    batch_invariant: bool,
    tuning: Tuning,
    binding_limit: u64,
    trace: Option<trace::Shared>,
}

struct Shared {
    info: wgpu::AdapterInfo,
    device: wgpu::Device,
    queue: wgpu::Queue,
    limits: wgpu::Limits,
    traits: Traits,
    pipelines: Mutex<HashMap<String, launch::Pipeline>>,
    failure: Arc<Mutex<Option<String>>>,
    cache: Mutex<cache::Cache>,
}

impl std::fmt::Debug for Wgpu {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Wgpu({})", self.describe())
    }
}

impl Wgpu {
    /// The adapter that wgpu prefers: a discrete GPU first, a software driver last.
    pub fn new() -> Result<Self> {
        let mut found = Self::adapters();
        found.sort_by_key(|a| match a.get_info().device_type {
            wgpu::DeviceType::DiscreteGpu => 0,
            wgpu::DeviceType::IntegratedGpu => 1,
            wgpu::DeviceType::VirtualGpu => 2,
            wgpu::DeviceType::Other => 3,
            wgpu::DeviceType::Cpu => 4,
        });
        let adapter = found.first().ok_or_else(|| Error::Device {
            device: "wgpu".into(),
            reason: "expected a Vulkan, Metal, DX12 or OpenGL driver, found no adapter".into(),
        })?;
        Self::open(adapter)
    }

    /// Every adapter of this machine.
    pub fn adapters() -> Vec<wgpu::Adapter> {
        let instance = wgpu::Instance::new(wgpu::InstanceDescriptor::new_without_display_handle_from_env());
        let backends = wgpu::Backends::from_env().unwrap_or(wgpu::Backends::all());
        block_on(instance.enumerate_adapters(backends))
    }

    /// A device of its own on this adapter, with the adapter's limits.
    pub fn open(adapter: &wgpu::Adapter) -> Result<Self> {
        Self::open_with(adapter, adapter.limits())
    }

    /// A device of its own on this adapter, with these limits: WebGPU's default ones suffice.
    pub fn open_with(adapter: &wgpu::Adapter, limits: wgpu::Limits) -> Result<Self> {
        Self::open_as(adapter, limits, Vec::new())
    }

    /// As [`Self::open`], with products by [cooperative matrices](Path::Matrix) where the element is f16.
    ///
    /// Only for who asks: it is an experiment of wgpu's, and some drivers list shapes that they cannot compile. An error
    /// where the adapter lists no square of 8 or 16 of f16 with f32 sums.
    pub fn open_with_matrices(adapter: &wgpu::Adapter) -> Result<Self> {
        let matrices = adapter.cooperative_matrix_properties();
        let traits =
            Traits::new(&adapter.get_info(), adapter.features(), &adapter.limits(), matrices.clone());
        if Tuning::of(&traits).matrix.is_none() {
            let (device, shapes) = (format!("wgpu {}", adapter.get_info().name), matrices.len());
            let reason = format!(
                "expected cooperative matrices of 8 x 8 x 8 or 16 x 16 x 16, f16 with f32 sums, found none that can be \
                 used among {shapes} shapes"
            );
            return Err(Error::Device { device, reason });
        }
        let wgpu = Self::open_as(adapter, adapter.limits(), matrices)?;
        let tuning = Tuning { path: Path::Matrix, ..wgpu.tuning };
        wgpu.tuned(tuning)
    }

    /// With cooperative matrices where there are shapes of them.
    fn open_as(
        adapter: &wgpu::Adapter,
        limits: wgpu::Limits,
        matrices: Vec<wgpu::CooperativeMatrixProperties>,
    ) -> Result<Self> {
        let info = adapter.get_info();
        let lost = |reason: String| Error::Device { device: format!("wgpu {}", info.name), reason };
        let mut wanted = wgpu::Features::TIMESTAMP_QUERY
            | wgpu::Features::SUBGROUP
            | wgpu::Features::PIPELINE_CACHE
            | wgpu::Features::SHADER_F16;
        let mut experimental_features = wgpu::ExperimentalFeatures::disabled();
        if !matrices.is_empty() {
            wanted |= wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX;
            // SAFETY: the one experimental feature asked for is cooperative matrices; kernels use only shapes that
            // the adapter lists (`class::Tuning`), inside the bounds that `check()` proves.
            experimental_features = unsafe { wgpu::ExperimentalFeatures::enabled() };
        }
        let features = adapter.features() & wanted;
        let descriptor = wgpu::DeviceDescriptor {
            label: Some("molora"),
            required_features: features,
            required_limits: limits,
            experimental_features,
            ..Default::default()
        };
        let (device, queue) =
            block_on(adapter.request_device(&descriptor)).map_err(|e| lost(e.to_string()))?;
        // What no check of ours foresaw (memory, a lost device) is kept for the next call instead of a panic.
        let failure = Arc::new(Mutex::new(None));
        let (on_error, on_loss) = (failure.clone(), failure.clone());
        device.on_uncaptured_error(Arc::new(move |e| keep(&on_error, e.to_string())));
        device.set_device_lost_callback(move |reason, text| {
            keep(&on_loss, format!("device lost: {reason:?} {text}"))
        });
        Ok(Self::assemble(info, matrices, device, queue, failure))
    }

    /// The engine's own device and queue. Its error handlers stay the engine's.
    ///
    /// Kernels take what the device was created with: one without `SUBGROUP` or `SHADER_F16` gets the forms that do without,
    /// and cooperative matrices, whose shapes only an adapter lists, are not used. [`Wgpu::tuning`] says which.
    pub fn from_device(info: wgpu::AdapterInfo, device: wgpu::Device, queue: wgpu::Queue) -> Self {
        Self::assemble(info, Vec::new(), device, queue, Arc::default())
    }

    fn assemble(
        info: wgpu::AdapterInfo,
        matrices: Vec<wgpu::CooperativeMatrixProperties>,
        device: wgpu::Device,
        queue: wgpu::Queue,
        failure: Arc<Mutex<Option<String>>>,
    ) -> Self {
        let limits = device.limits();
        let status = status::buffer(&device);
        let traits = Traits::new(&info, device.features(), &limits, matrices);
        let tuning = Tuning::of(&traits);
        let shared = Shared {
            info,
            device,
            queue,
            limits,
            traits,
            pipelines: Mutex::default(),
            failure,
            cache: Mutex::default(),
        };
        Self {
            shared: Arc::new(shared),
            status,
            batch_invariant: false,
            tuning,
            binding_limit: u64::MAX,
            trace: None,
        }
    }

    /// One form for every batch size: the same bits for a token alone and in any batch, slower for few tokens.
    pub fn batch_invariant(&self, on: bool) -> Self {
        Self { batch_invariant: on, ..self.clone() }
    }

    /// Whether one form is fixed.
    pub(crate) fn is_batch_invariant(&self) -> bool {
        self.batch_invariant
    }

    /// Other choices than the [table](Tuning)'s; refused where the device lacks what they need.
    pub fn tuned(&self, tuning: Tuning) -> Result<Self> {
        match tuning.refused(&self.shared.traits) {
            None => Ok(Self { tuning, ..self.clone() }),
            Some(missing) => {
                let expected = format!("choices that {} can do", self.info().name);
                Err(Error::argument("wgpu", "tuning", expected, format!("a need of {missing}")))
            }
        }
    }

    /// Which forms of the kernels run here.
    pub fn tuning(&self) -> &Tuning {
        &self.tuning
    }

    /// Whether two handles are clones of one.
    pub(crate) fn shares_device(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.shared, &other.shared)
    }

    /// The device.
    pub fn device(&self) -> &wgpu::Device {
        &self.shared.device
    }

    /// The queue.
    pub fn queue(&self) -> &wgpu::Queue {
        &self.shared.queue
    }

    /// The limits that the device was made with.
    pub fn limits(&self) -> &wgpu::Limits {
        &self.shared.limits
    }

    /// Name, driver and kind of the adapter.
    pub fn info(&self) -> &wgpu::AdapterInfo {
        &self.shared.info
    }

    /// The adapter's name, driver and backend in a line.
    pub fn describe(&self) -> String {
        let wgpu::AdapterInfo { name, driver, driver_info, backend, .. } = self.info();
        format!("{name} ({backend}, {driver} {driver_info})")
    }

    /// A fresh encoder, for callers that have none.
    pub fn encoder(&self) -> wgpu::CommandEncoder {
        self.device().create_command_encoder(&wgpu::CommandEncoderDescriptor { label: Some("molora") })
    }

    /// A storage buffer that holds `values`; copies.
    pub fn upload<T: bytemuck::Pod>(&self, values: &[T]) -> Result<wgpu::Buffer> {
        let buffer = self.storage("upload", std::mem::size_of_val(values) as u64)?;
        self.queue().write_buffer(&buffer, 0, &padded_bytes(values));
        Ok(buffer)
    }

    /// A zeroed storage buffer of at least `bytes`.
    pub(crate) fn storage(&self, label: &'static str, bytes: u64) -> Result<wgpu::Buffer> {
        self.alive()?;
        let size = bytes.next_multiple_of(16).max(16);
        let most = self.limits().max_buffer_size;
        if size > most {
            return Err(Error::argument("wgpu", label, format!("at most {most} bytes in one buffer"), size));
        }
        let usage = wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_DST | wgpu::BufferUsages::COPY_SRC;
        let descriptor =
            wgpu::BufferDescriptor { label: Some(label), size, usage, mapped_at_creation: false };
        Ok(self.device().create_buffer(&descriptor))
    }

    /// The first `len` elements of a buffer; copies and waits.
    pub fn download<T: bytemuck::Pod>(&self, buffer: &wgpu::Buffer, len: usize) -> Result<Vec<T>> {
        self.alive()?;
        let bytes = (len.saturating_mul(size_of::<T>()) as u64).saturating_add(3) / 4 * 4;
        if bytes > buffer.size() {
            let most = buffer.size();
            return Err(Error::argument(
                "download",
                "len",
                format!("at most the buffer's {most} bytes"),
                bytes,
            ));
        }
        if bytes == 0 {
            return Ok(Vec::new());
        }
        let usage = wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST;
        let descriptor =
            wgpu::BufferDescriptor { label: Some("download"), size: bytes, usage, mapped_at_creation: false };
        let staging = self.device().create_buffer(&descriptor);
        let mut encoder = self.encoder();
        encoder.copy_buffer_to_buffer(buffer, 0, &staging, 0, bytes);
        self.queue().submit([encoder.finish()]);
        let (tell, told) = std::sync::mpsc::channel();
        staging.map_async(wgpu::MapMode::Read, .., move |r| drop(tell.send(r)));
        self.wait()?;
        let failed = |e: String| self.failed(e);
        told.recv().map_err(|e| failed(e.to_string()))?.map_err(|e| failed(e.to_string()))?;
        let view = staging.get_mapped_range(..).map_err(|e| failed(e.to_string()))?;
        let mut values = vec![T::zeroed(); len];
        bytemuck::cast_slice_mut(&mut values).copy_from_slice(&view[..len * size_of::<T>()]);
        Ok(values)
    }

    /// Waits until the queue is empty.
    pub fn wait(&self) -> Result<()> {
        self.device().poll(wgpu::PollType::wait_indefinitely()).map_err(|e| self.failed(e.to_string()))?;
        self.alive()
    }

    /// The text of every kernel compiled so far, under `entry_N`: for other compilers to judge.
    pub fn shader_texts(&self) -> Vec<(String, String)> {
        let pipelines = self.shared.pipelines.lock().unwrap_or_else(|p| p.into_inner());
        let mut texts: Vec<(&str, &str)> = Vec::new();
        for (key, pipeline) in pipelines.iter() {
            texts.push((key.split(' ').next().unwrap_or_default(), &pipeline.text));
        }
        texts.sort_unstable();
        texts
            .iter()
            .enumerate()
            .map(|(i, (entry, text))| (format!("{entry}_{i}"), text.to_string()))
            .collect()
    }

    /// Refuses a device that failed since it was opened.
    pub(crate) fn alive(&self) -> Result<()> {
        match &*self.shared.failure.lock().unwrap_or_else(|p| p.into_inner()) {
            None => Ok(()),
            Some(reason) => Err(self.failed(reason.clone())),
        }
    }

    fn failed(&self, reason: String) -> Error {
        Error::Device { device: format!("wgpu {}", self.info().name), reason }
    }
}

/// The first failure is the cause of the rest.
fn keep(failure: &Mutex<Option<String>>, text: String) {
    failure.lock().unwrap_or_else(|p| p.into_inner()).get_or_insert(text);
}

/// Bytes of a slice, padded to whole words as buffer writes demand.
pub(crate) fn padded_bytes<T: bytemuck::Pod>(values: &[T]) -> std::borrow::Cow<'_, [u8]> {
    let bytes: &[u8] = bytemuck::cast_slice(values);
    if bytes.len().is_multiple_of(4) {
        return bytes.into();
    }
    let mut padded = bytes.to_vec();
    padded.resize(bytes.len().next_multiple_of(4), 0);
    padded.into()
}
