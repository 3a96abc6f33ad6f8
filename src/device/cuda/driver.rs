//! The driver: whether it is there, whether it is new enough, and its errors as ours.
//!
//! cudarc panics where the library or a function of it is missing, so every way in goes through [`open`].

use super::module::Set;
use crate::error::{Error, Result};
use cudarc::driver::{CudaContext, DriverError, result, sys};
use std::ffi::c_void;
use std::sync::{Arc, OnceLock};

/// What our calls and cudarc's own behind them look up by name.
const FUNCTIONS: [&str; 36] = [
    "cuInit",
    "cuDriverGetVersion",
    "cuGetErrorString",
    "cuDeviceGet",
    "cuDeviceGetCount",
    "cuDeviceGetName",
    "cuDeviceGetAttribute",
    "cuDeviceTotalMem_v2",
    "cuDevicePrimaryCtxRetain",
    "cuDevicePrimaryCtxRelease_v2",
    "cuCtxGetCurrent",
    "cuCtxSetCurrent",
    "cuCtxSynchronize",
    "cuStreamCreate",
    "cuStreamDestroy_v2",
    "cuStreamSynchronize",
    "cuStreamWaitEvent",
    "cuStreamIsCapturing",
    "cuEventCreate",
    "cuEventRecord",
    "cuEventSynchronize",
    "cuEventElapsedTime",
    "cuEventDestroy_v2",
    "cuMemAlloc_v2",
    "cuMemAllocAsync",
    "cuMemFree_v2",
    "cuMemFreeAsync",
    "cuMemcpyHtoDAsync_v2",
    "cuMemcpyDtoHAsync_v2",
    "cuMemcpyDtoDAsync_v2",
    "cuMemsetD8Async",
    "cuModuleLoadData",
    "cuModuleUnload",
    "cuModuleGetFunction",
    "cuFuncGetAttribute",
    "cuLaunchKernel",
];

/// The oldest architecture with kernels, major and minor.
const OLDEST: (i32, i32) = (7, 5);

/// Trouble before a device has a name.
pub(super) fn absent(reason: impl Into<String>) -> Error {
    Error::Device { device: "cuda".into(), reason: reason.into() }
}

/// A driver's error in a step that can be named.
pub(super) fn failed(device: &str, step: &str, e: DriverError) -> Error {
    let text = e.error_string().map(|text| text.to_string_lossy().into_owned()).unwrap_or_default();
    Error::Device { device: format!("cuda {device}"), reason: format!("{step}: {:?}: {text}", e.0) }
}

/// What the device says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Properties {
    /// The device's name.
    pub name: String,
    /// Compute capability, major and minor.
    pub compute_capability: (i32, i32),
    /// The driver's version, as CUDA spells it: 12040 is 12.4.
    pub driver: i32,
    /// Streaming multiprocessors.
    pub multiprocessors: i32,
    /// Bytes of shared memory that one block may take without asking.
    pub shared_memory_per_block: i32,
    /// Bytes of device memory.
    pub memory: usize,
    /// Whether the device reads pageable host memory by the host's page tables, as on Grace Hopper: uploads then wait.
    pub reads_host_memory: bool,
}

/// The library and its functions, looked for once.
fn library() -> Result<()> {
    static FOUND: OnceLock<std::result::Result<(), String>> = OnceLock::new();
    let found = FOUND.get_or_init(|| {
        // SAFETY: loading the driver's library runs its initialisers, as every CUDA program does.
        if !unsafe { sys::is_culib_present() } {
            return Err("expected NVIDIA's driver (libcuda.so.1, nvcuda.dll), found none".into());
        }
        // SAFETY: the library is there, as just asked; its symbols are looked up, not called.
        let missing = |name: &&str| unsafe { sys::culib().get::<*mut c_void>(name.as_bytes()) }.is_err();
        match FUNCTIONS.iter().find(|name| missing(name)) {
            None => Ok(()),
            Some(name) => Err(format!("expected a driver of CUDA 11.2 or later, found one without {name}")),
        }
    });
    found.clone().map_err(absent)
}

fn driver_version() -> Result<i32> {
    let mut version = 0;
    // SAFETY: the function is there (`library`) and writes one int.
    unsafe { sys::cuDriverGetVersion(&mut version) }
        .result()
        .map_err(|e| absent(format!("driver version: {:?}", e.0)))?;
    Ok(version)
}

/// `12040` as people write it.
fn spelt(version: i32) -> String {
    format!("{}.{}", version / 1000, version % 1000 / 10)
}

/// A device's context and properties, after every check that has a message of its own.
pub(super) fn open(ordinal: usize) -> Result<(Arc<CudaContext>, Properties, Set)> {
    library()?;
    driver_version()?;
    let step = |what: &'static str| move |e: DriverError| absent(format!("{what}: {:?}", e.0));
    match result::init() {
        Err(DriverError(sys::CUresult::CUDA_ERROR_NO_DEVICE)) => {
            return Err(absent("expected an NVIDIA GPU, the driver found none"));
        }
        other => other.map_err(step("cuInit"))?,
    }
    let count = result::device::get_count().map_err(step("device count"))?;
    if count <= 0 {
        return Err(absent("expected an NVIDIA GPU, the driver found none"));
    }
    if ordinal >= count as usize {
        return Err(absent(format!("expected a device below {count}, got {ordinal}")));
    }
    let device = result::device::get(ordinal as i32).map_err(step("cuDeviceGet"))?;
    let (properties, set) = examine(device)?;
    let context = CudaContext::new(ordinal).map_err(|e| failed(&properties.name, "context", e))?;
    Ok((context, properties, set))
}

/// Properties of a device that the kernels and the driver suit, and the set of kernels for it.
pub(super) fn examine(device: sys::CUdevice) -> Result<(Properties, Set)> {
    use sys::CUdevice_attribute_enum as Attribute;
    library()?;
    let step = |what: &'static str| move |e: DriverError| absent(format!("{what}: {:?}", e.0));
    let name = result::device::get_name(device).map_err(step("device name"))?;
    // SAFETY: a device that the driver gave out.
    let attribute =
        |which| unsafe { result::device::get_attribute(device, which) }.map_err(step("attribute"));
    let compute_capability = (
        attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
        attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
    );
    let own = |reason| Error::Device { device: format!("cuda {name}"), reason };
    if compute_capability < OLDEST {
        let (major, minor) = compute_capability;
        let (least_major, least_minor) = OLDEST;
        return Err(own(format!(
            "expected compute capability {least_major}.{least_minor} or above, got {major}.{minor}"
        )));
    }
    let set = Set::of(compute_capability);
    let driver = driver_version()?;
    let needed = set.driver();
    if driver < needed {
        let (needed, got) = (spelt(needed), spelt(driver));
        return Err(own(format!("expected a driver of CUDA {needed} or later, got one of {got}")));
    }
    // SAFETY: as above.
    let memory = unsafe { result::device::total_mem(device) }.map_err(step("memory"))?;
    let properties = Properties {
        compute_capability,
        driver,
        multiprocessors: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
        shared_memory_per_block: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK)?,
        memory,
        reads_host_memory: attribute(
            Attribute::CU_DEVICE_ATTRIBUTE_PAGEABLE_MEMORY_ACCESS_USES_HOST_PAGE_TABLES,
        )? != 0,
        name,
    };
    Ok((properties, set))
}

impl Properties {
    /// Name, architecture and driver in a line.
    pub(super) fn describe(&self) -> String {
        let (major, minor) = self.compute_capability;
        format!("{} (compute {major}.{minor}, driver {})", self.name, spelt(self.driver))
    }
}
