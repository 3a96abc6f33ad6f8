//! Stands between wgpu and the Vulkan loader. Every compute pipeline passes here: it is made with its statistics
//! kept, and they are read at once. wgpu itself writes the SPIR-V and chooses the device's features, so nothing that a
//! user's driver would see is guessed here.

use crate::figures::Pipeline;
use anyhow::{Context, Result, ensure};
use ash::vk::{self, Handle};
use std::collections::BTreeMap;
use std::ffi::{CStr, c_char};
use std::sync::{Mutex, OnceLock};

type Announce = Box<dyn Fn(&str) + Send>;

/// What is done with the next pipelines.
struct State {
    /// Their name's first part; without one they are wgpu's own.
    case: Option<String>,
    /// Those that are not compiled: they get a handle that is never used.
    left_out: Vec<String>,
    /// Hears of each name before it is compiled.
    announce: Option<Announce>,
    /// What was measured since it was last asked.
    found: Vec<Pipeline>,
    /// How many had each name.
    made: BTreeMap<String, usize>,
}

static STATE: Mutex<State> = Mutex::new(State {
    case: None,
    left_out: Vec::new(),
    announce: None,
    found: Vec::new(),
    made: BTreeMap::new(),
});

/// The real functions behind the hooks.
static INSTANCE_PROC: OnceLock<vk::PFN_vkGetInstanceProcAddr> = OnceLock::new();
static CREATE_DEVICE: OnceLock<vk::PFN_vkCreateDevice> = OnceLock::new();
static DEVICE_PROC: OnceLock<vk::PFN_vkGetDeviceProcAddr> = OnceLock::new();
static CREATE: OnceLock<vk::PFN_vkCreateComputePipelines> = OnceLock::new();
static DESTROY: OnceLock<vk::PFN_vkDestroyPipeline> = OnceLock::new();
static EXECUTABLES: OnceLock<ash::khr::pipeline_executable_properties::DeviceFn> = OnceLock::new();

/// Stands for a pipeline that was not compiled.
const NOT_COMPILED: u64 = 0x6d6f_6c6f_7261;

impl State {
    /// The second pipeline of a name is `NAME#2`.
    fn number(&mut self, name: String) -> String {
        let made = self.made.entry(name.clone()).or_default();
        *made += 1;
        if *made == 1 { name } else { format!("{name}#{made}") }
    }
}

fn state() -> std::sync::MutexGuard<'static, State> {
    STATE.lock().unwrap_or_else(|p| p.into_inner())
}

/// What hears of each pipeline's name before it is compiled, and which are not.
pub fn on_pipeline(announce: Announce, left_out: Vec<String>) {
    let mut state = state();
    (state.announce, state.left_out) = (Some(announce), left_out);
}

/// Names the pipelines that follow.
pub fn set_case(case: &str) {
    state().case = Some(case.to_string());
}

/// Pipelines that follow are wgpu's own, until the next name.
pub fn clear_case() {
    state().case = None;
}

/// What was measured since the last call.
pub fn take() -> Vec<Pipeline> {
    std::mem::take(&mut state().found)
}

/// wgpu on the machine's Vulkan loader, hooked.
pub fn instance() -> Result<wgpu::Instance> {
    // SAFETY: the loader is kept for the life of the process, by the entry that wgpu holds and the leak below.
    let real = unsafe { ash::Entry::load() }.context("no Vulkan loader")?;
    INSTANCE_PROC.get_or_init(|| real.static_fn().get_instance_proc_addr);
    std::mem::forget(real);
    // SAFETY: the hook answers as the real function does, for every name.
    let entry =
        unsafe { ash::Entry::from_static_fn(ash::StaticFn { get_instance_proc_addr: instance_proc }) };
    let version = vk::API_VERSION_1_3;
    let flags = wgpu::InstanceFlags::ALLOW_UNDERLYING_NONCOMPLIANT_ADAPTER;
    let extensions = wgpu::hal::vulkan::Instance::desired_extensions(&entry, version, flags)?;
    let names: Vec<*const c_char> = extensions.iter().map(|name| name.as_ptr()).collect();
    let application = vk::ApplicationInfo::default().api_version(version);
    let info =
        vk::InstanceCreateInfo::default().application_info(&application).enabled_extension_names(&names);
    // SAFETY: all that `info` points to lives until the call returns.
    let raw = unsafe { entry.create_instance(&info, None) }.context("vkCreateInstance")?;
    // SAFETY: `raw` was made from `entry` with exactly these extensions; without a callback wgpu destroys it.
    unsafe {
        let thresholds = wgpu::MemoryBudgetThresholds::default();
        let hal = wgpu::hal::vulkan::Instance::from_raw(
            entry, raw, version, 0, None, extensions, flags, thresholds, false, None,
        )?;
        Ok(wgpu::Instance::from_hal::<wgpu::hal::api::Vulkan>(hal))
    }
}

/// One of ours as what the loader returns.
macro_rules! function {
    ($f:expr, $ty:ty) => {{
        let f: $ty = $f;
        // SAFETY: all of Vulkan's function pointers are of one size, and the caller casts back by the name.
        unsafe { std::mem::transmute::<$ty, vk::PFN_vkVoidFunction>(f) }
    }};
}

/// Keeps a function of the loader's under its type.
///
/// # Safety
/// `found` is what the loader returns for the function of that type.
unsafe fn keep<F>(place: &OnceLock<F>, found: vk::PFN_vkVoidFunction) -> bool {
    if let Some(found) = found {
        // SAFETY: the caller's promise; function pointers are of one size.
        place.get_or_init(|| unsafe { std::mem::transmute_copy(&found) });
    }
    found.is_some()
}

unsafe extern "system" fn instance_proc(
    instance: vk::Instance,
    name: *const c_char,
) -> vk::PFN_vkVoidFunction {
    let real = INSTANCE_PROC.get()?;
    // SAFETY: the arguments are the caller's, and valid by Vulkan's rules.
    let (found, asked) = unsafe { (real(instance, name), CStr::from_ptr(name)) };
    // SAFETY: each is kept under its own name's type.
    match asked.to_bytes() {
        b"vkCreateDevice" if unsafe { keep(&CREATE_DEVICE, found) } => {
            function!(create_device, vk::PFN_vkCreateDevice)
        }
        b"vkGetDeviceProcAddr" if unsafe { keep(&DEVICE_PROC, found) } => {
            function!(device_proc, vk::PFN_vkGetDeviceProcAddr)
        }
        _ => found,
    }
}

unsafe extern "system" fn device_proc(device: vk::Device, name: *const c_char) -> vk::PFN_vkVoidFunction {
    let real = DEVICE_PROC.get()?;
    // SAFETY: the arguments are the caller's, and valid by Vulkan's rules.
    let (found, asked) = unsafe { (real(device, name), CStr::from_ptr(name)) };
    // SAFETY: each is kept under its own name's type.
    match asked.to_bytes() {
        b"vkCreateComputePipelines" if unsafe { keep(&CREATE, found) } => {
            EXECUTABLES.get_or_init(|| {
                ash::khr::pipeline_executable_properties::DeviceFn::load(|name| {
                    // SAFETY: a name of the extension that the device was made with.
                    unsafe { real(device, name.as_ptr()) }.map_or(std::ptr::null(), |f| f as *const _)
                })
            });
            function!(create_pipelines, vk::PFN_vkCreateComputePipelines)
        }
        b"vkDestroyPipeline" if unsafe { keep(&DESTROY, found) } => {
            function!(destroy_pipeline, vk::PFN_vkDestroyPipeline)
        }
        _ => found,
    }
}

/// The device that wgpu asks for, and the extension that tells what the compiler made.
unsafe extern "system" fn create_device(
    physical: vk::PhysicalDevice,
    info: *const vk::DeviceCreateInfo<'_>,
    allocator: *const vk::AllocationCallbacks<'_>,
    device: *mut vk::Device,
) -> vk::Result {
    let Some(real) = CREATE_DEVICE.get() else { return vk::Result::ERROR_INITIALIZATION_FAILED };
    // SAFETY: a valid structure by Vulkan's rules, copied with its pointers, which live as long as this call.
    let mut info = unsafe { *info };
    let count = info.enabled_extension_count as usize;
    let mut names = match count {
        0 => Vec::new(),
        // SAFETY: as many names as the structure says.
        _ => unsafe { std::slice::from_raw_parts(info.pp_enabled_extension_names, count) }.to_vec(),
    };
    names.push(ash::khr::pipeline_executable_properties::NAME.as_ptr());
    (info.pp_enabled_extension_names, info.enabled_extension_count) = (names.as_ptr(), names.len() as u32);
    let mut feature =
        vk::PhysicalDevicePipelineExecutablePropertiesFeaturesKHR::default().pipeline_executable_info(true);
    feature.p_next = info.p_next.cast_mut();
    info.p_next = (&raw const feature).cast();
    // SAFETY: the caller's arguments, with one more feature in front of the chain and one more name.
    unsafe { real(physical, &info, allocator, device) }
}

unsafe extern "system" fn destroy_pipeline(
    device: vk::Device,
    pipeline: vk::Pipeline,
    allocator: *const vk::AllocationCallbacks<'_>,
) {
    if let (Some(real), false) = (DESTROY.get(), pipeline.as_raw() == NOT_COMPILED) {
        // SAFETY: the caller's arguments, for a pipeline that the driver made.
        unsafe { real(device, pipeline, allocator) }
    }
}

unsafe extern "system" fn create_pipelines(
    device: vk::Device,
    cache: vk::PipelineCache,
    count: u32,
    infos: *const vk::ComputePipelineCreateInfo<'_>,
    allocator: *const vk::AllocationCallbacks<'_>,
    pipelines: *mut vk::Pipeline,
) -> vk::Result {
    let Some(real) = CREATE.get() else { return vk::Result::ERROR_UNKNOWN };
    for i in 0..count as usize {
        // SAFETY: `count` structures and places for as many handles, by Vulkan's rules.
        let (mut info, place) = unsafe { (*infos.add(i), pipelines.add(i)) };
        // SAFETY: an entry point's name is a string that lives as long as the call.
        let entry = unsafe { CStr::from_ptr(info.stage.p_name) }.to_string_lossy().into_owned();
        let mut state = state();
        let name = state.case.as_ref().map(|case| format!("{case}/{entry}"));
        let name = name.map(|name| state.number(name));
        let Some(name) = name.filter(|name| !state.left_out.contains(name)) else {
            // SAFETY: the place of a handle.
            unsafe { place.write(vk::Pipeline::from_raw(NOT_COMPILED)) };
            continue;
        };
        if let Some(announce) = &state.announce {
            announce(&name);
        }
        info.flags |= vk::PipelineCreateFlags::CAPTURE_STATISTICS_KHR
            | vk::PipelineCreateFlags::CAPTURE_INTERNAL_REPRESENTATIONS_KHR;
        // SAFETY: the caller's arguments for one pipeline, with two more flags.
        let result = unsafe { real(device, cache, 1, &info, allocator, place) };
        if result != vk::Result::SUCCESS {
            return result;
        }
        // SAFETY: the driver has just written it.
        match read(device, unsafe { *place }, name) {
            Ok(pipeline) => state.found.push(pipeline),
            Err(_) => return vk::Result::ERROR_UNKNOWN,
        }
    }
    vk::Result::SUCCESS
}

/// Statistics and texts of a pipeline's only executable.
fn read(device: vk::Device, pipeline: vk::Pipeline, name: String) -> Result<Pipeline> {
    let functions = EXECUTABLES.get().context("no VK_KHR_pipeline_executable_properties")?;
    let info = vk::PipelineInfoKHR::default().pipeline(pipeline);
    let executables = two_calls::<vk::PipelineExecutablePropertiesKHR>(|count, data| {
        // SAFETY: room for `count`, or null.
        unsafe { (functions.get_pipeline_executable_properties_khr)(device, &info, count, data) }
    })?;
    ensure!(executables.len() == 1, "{name}: {} executables", executables.len());
    let which = vk::PipelineExecutableInfoKHR::default().pipeline(pipeline).executable_index(0);
    let statistics = two_calls::<vk::PipelineExecutableStatisticKHR>(|count, data| {
        // SAFETY: room for `count`, or null.
        unsafe { (functions.get_pipeline_executable_statistics_khr)(device, &which, count, data) }
    })?;
    let get = functions.get_pipeline_executable_internal_representations_khr;
    let mut texts = two_calls::<vk::PipelineExecutableInternalRepresentationKHR>(|count, data| {
        // SAFETY: room for `count`, or null.
        unsafe { get(device, &which, count, data) }
    })?;
    let mut room: Vec<Vec<u8>> = texts.iter().map(|text| vec![0; text.data_size]).collect();
    for (text, room) in texts.iter_mut().zip(&mut room) {
        text.p_data = room.as_mut_ptr().cast();
    }
    let mut count = texts.len() as u32;
    // SAFETY: as many structures as before, each with the room that it asked for.
    let result = unsafe { get(device, &which, &mut count, texts.as_mut_ptr()) };
    ensure!(result == vk::Result::SUCCESS, "{name}: texts: {result:?}");
    let texts = texts.iter().zip(&room).filter(|(text, _)| text.is_text == vk::TRUE).map(|(text, room)| {
        let end = room.iter().position(|&byte| byte == 0).unwrap_or(room.len());
        (string(&text.name), String::from_utf8_lossy(&room[..end]).into_owned())
    });
    Ok(Pipeline {
        name,
        subgroup: executables[0].subgroup_size,
        statistics: statistics.iter().map(|s| (string(&s.name), number(s))).collect(),
        texts: texts.collect(),
    })
}

fn number(statistic: &vk::PipelineExecutableStatisticKHR<'_>) -> f64 {
    use vk::PipelineExecutableStatisticFormatKHR as Format;
    // SAFETY: the member that the format names.
    unsafe {
        match statistic.format {
            Format::BOOL32 => statistic.value.b32 as f64,
            Format::INT64 => statistic.value.i64 as f64,
            Format::UINT64 => statistic.value.u64 as f64,
            _ => statistic.value.f64,
        }
    }
}

/// Vulkan's way of filling an array: its length, then its members.
fn two_calls<T: Default + Clone>(mut call: impl FnMut(*mut u32, *mut T) -> vk::Result) -> Result<Vec<T>> {
    let mut count = 0;
    let result = call(&mut count, std::ptr::null_mut());
    ensure!(result == vk::Result::SUCCESS, "{result:?}");
    let mut data = vec![T::default(); count as usize];
    let result = call(&mut count, data.as_mut_ptr());
    ensure!(result == vk::Result::SUCCESS, "{result:?}");
    data.truncate(count as usize);
    Ok(data)
}

fn string(text: &[c_char]) -> String {
    let bytes: Vec<u8> = text.iter().map(|&c| c as u8).take_while(|&c| c != 0).collect();
    String::from_utf8_lossy(&bytes).into_owned()
}
