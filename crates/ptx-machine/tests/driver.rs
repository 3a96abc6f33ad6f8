//! The stand-in libcuda under `cudarc`, as a program meets it: each test runs itself again with the machine on the library
//! path.

use std::env;
use std::ffi::{CString, c_void};
use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::process::Command;
use std::sync::{Arc, LazyLock};

use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys::{CUevent_flags, CUstreamCaptureMode, CUstreamCaptureStatus};
use cudarc::driver::sys::{CUfunction, CUfunction_attribute, CUgraphInstantiate_flags, CUresult};
use cudarc::driver::{CudaContext, CudaSlice, CudaStream, DevicePtr};

const PTX: &str = include_str!("driver.ptx");
const GLOBAL: CUstreamCaptureMode = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_GLOBAL;

/// A folder with the machine under libcuda's names.
static LIBRARY: LazyLock<PathBuf> = LazyLock::new(|| {
    let machine = env::current_exe().unwrap().with_file_name("libptx_machine.so");
    assert!(machine.exists(), "{} is built with the tests", machine.display());
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("libcuda");
    fs::create_dir_all(&folder).unwrap();
    for name in ["libcuda.so", "libcuda.so.1"] {
        let _ = fs::remove_file(folder.join(name));
        symlink(&machine, folder.join(name)).unwrap();
    }
    folder
});

/// Runs `body` in a process on the machine; gives what it printed to standard error, `None` within that process.
fn on_machine(test: &str, variables: &[(&str, &str)], body: impl FnOnce()) -> Option<String> {
    if env::var_os("ON_MACHINE").is_some() {
        body();
        return None;
    }
    let mut command = Command::new(env::current_exe().unwrap());
    command.args([test, "--exact", "--nocapture", "--test-threads", "1"]);
    command.env("ON_MACHINE", "1").env("LD_LIBRARY_PATH", &*LIBRARY);
    let output = command.envs(variables.iter().copied()).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{}\n{errors}", String::from_utf8_lossy(&output.stdout));
    Some(errors)
}

fn load(text: &str, name: &str) -> Result<CUfunction, DriverError> {
    let text = CString::new(text).unwrap();
    // SAFETY: the text is a string with its end; the module lives as long as the process.
    unsafe {
        let module = result::module::load_data(text.as_ptr().cast())?;
        result::module::get_function(module, CString::new(name).unwrap())
    }
}

fn code<T>(result: Result<T, DriverError>) -> CUresult {
    result.err().map_or(CUresult::CUDA_SUCCESS, |error| error.0)
}

fn address<T>(slice: &CudaSlice<T>) -> u64 {
    slice.device_ptr(slice.stream()).0
}

/// Launches `add` on a block of 64 threads for each 64 numbers.
fn add(stream: &CudaStream, function: CUfunction, pointers: [u64; 3], count: u32) -> Result<(), DriverError> {
    let [mut a, mut b, mut c] = pointers;
    let mut n = count;
    let pointer = |value: &mut u64| std::ptr::from_mut(value).cast::<c_void>();
    let mut params = [pointer(&mut a), pointer(&mut b), pointer(&mut c), std::ptr::from_mut(&mut n).cast()];
    let grid = (count.div_ceil(64), 1, 1);
    // SAFETY: four parameters of the kernel's sizes; the machine checks every access.
    unsafe { result::launch_kernel(function, grid, (64, 1, 1), 0, stream.cu_stream(), &mut params) }
}

fn poke(stream: &CudaStream, function: CUfunction, mut at: u64, shared: u32) -> Result<(), DriverError> {
    let mut params = [std::ptr::from_mut(&mut at).cast::<c_void>()];
    // SAFETY: one parameter of the kernel's size; the machine checks every access.
    unsafe { result::launch_kernel(function, (1, 1, 1), (32, 1, 1), shared, stream.cu_stream(), &mut params) }
}

fn numbers(count: usize) -> Vec<f32> {
    (0..count).map(|i| i as f32).collect()
}

fn start() -> (Arc<CudaContext>, Arc<CudaStream>) {
    let context = CudaContext::new(0).unwrap();
    // SAFETY: every test uses one stream at a time.
    unsafe { context.disable_event_tracking() };
    let stream = context.new_stream().unwrap();
    (context, stream)
}

#[test]
fn device() {
    on_machine("device", &[("PTX_MACHINE_SM", "75"), ("PTX_MACHINE_DRIVER", "11080")], || {
        let context = CudaContext::new(0).unwrap();
        assert_eq!(CudaContext::device_count(), Ok(1));
        assert_eq!(context.name().unwrap(), "PTX machine (sm_75)");
        assert_eq!(context.compute_capability(), Ok((7, 5)));
        assert!(context.uuid().is_ok());
        let (free, total) = context.mem_get_info().unwrap();
        assert!(free == total && total == context.total_mem().unwrap());
        assert_eq!(code(CudaContext::new(1)), CUresult::CUDA_ERROR_INVALID_DEVICE);
        let text = format!("{:?}", DriverError(CUresult::CUDA_ERROR_ILLEGAL_ADDRESS));
        assert!(text.contains("bounds"), "{text}");
        context.synchronize().unwrap();
    });
}

#[test]
fn launches_and_copies() {
    let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("counters.jsonl");
    let _ = fs::remove_file(&path);
    let counters = [("PTX_MACHINE_COUNTERS", path.to_str().unwrap())];
    let outer = on_machine("launches_and_copies", &counters, || {
        let (context, stream) = start();
        let function = load(PTX, "add").unwrap();
        let (a, b) =
            (stream.clone_htod(&numbers(100)).unwrap(), stream.clone_htod(&vec![0.5_f32; 100]).unwrap());
        let c = stream.alloc_zeros::<f32>(100).unwrap();
        add(&stream, function, [address(&a), address(&b), address(&c)], 100).unwrap();
        let expected: Vec<f32> = numbers(100).iter().map(|x| x + 0.5).collect();
        assert_eq!(stream.clone_dtoh(&c).unwrap(), expected);
        let copy = stream.clone_dtod(&c).unwrap();
        assert_eq!(stream.clone_dtoh(&copy).unwrap(), expected);
        let (free, total) = context.mem_get_info().unwrap();
        assert_eq!(total - free, 4 * 400);
        drop((a, b, c, copy));
        assert_eq!(context.mem_get_info().unwrap().0, total);
        context.check_err().unwrap();
    });
    if outer.is_some() {
        let text = fs::read_to_string(path).unwrap();
        let line: serde_json::Value = serde_json::from_str(text.trim()).unwrap();
        assert_eq!(
            (&line["kernel"], &line["grid"][0], &line["block"][0]),
            (&"add".into(), &2.into(), &64.into())
        );
        assert_eq!(line["counters"]["unique_read"]["bytes"], 800, "{line}");
        assert_eq!(line["counters"]["global_stores"]["4"]["lanes"], 100, "{line}");
    }
}

#[test]
fn counters_in_process() {
    type Take = unsafe extern "C" fn(*mut u8, usize) -> usize;
    on_machine("counters_in_process", &[("PTX_MACHINE_SITES", "1")], || {
        let (_context, stream) = start();
        let function = load(PTX, "poke").unwrap();
        let data = stream.alloc_zeros::<u32>(1).unwrap();
        poke(&stream, function, address(&data), 16).unwrap();
        poke(&stream, function, address(&data), 16).unwrap();
        // SAFETY: the machine exports this function with this type; buffer and length match.
        let (needed, text) = unsafe {
            let take = *cudarc::driver::sys::culib().get::<Take>(b"ptxMachineTakeCounters").unwrap();
            let needed = take(std::ptr::null_mut(), 0);
            let mut text = vec![0_u8; needed];
            assert_eq!(take(text.as_mut_ptr(), needed - 1), needed, "too small: nothing is taken");
            assert_eq!(take(text.as_mut_ptr(), needed), needed);
            assert_eq!(take(std::ptr::null_mut(), 0), 3, "an empty object and its end");
            (needed, text)
        };
        let json: serde_json::Value = serde_json::from_slice(&text[..needed - 1]).unwrap();
        assert_eq!(json["poke"]["launches"], 2, "{json}");
        assert_eq!(json["poke"]["shared_stores"]["wavefronts"], 2, "{json}");
        let line = 1 + PTX.lines().position(|line| line.contains("ld.shared.u32")).unwrap();
        assert_eq!(json["poke"]["sites"][line.to_string()]["ideal"], 2, "{json}");
    });
}

#[test]
fn streams_and_events() {
    on_machine("streams_and_events", &[], || {
        // With the events by which cudarc orders streams.
        let context = CudaContext::new(0).unwrap();
        let (one, two) = (context.new_stream().unwrap(), context.new_stream().unwrap());
        let data = one.clone_htod(&numbers(8)).unwrap();
        let event = one.record_event(Some(CUevent_flags::CU_EVENT_DEFAULT)).unwrap();
        two.wait(&event).unwrap();
        two.join(&one).unwrap();
        assert_eq!(two.clone_dtoh(&data).unwrap(), numbers(8));
        let later = two.record_event(Some(CUevent_flags::CU_EVENT_DEFAULT)).unwrap();
        assert!(event.is_complete() && event.elapsed_ms(&later).unwrap() >= 0.0);
        event.synchronize().unwrap();
        two.synchronize().unwrap();
        // SAFETY: written before it is read.
        let mut pinned = unsafe { context.alloc_pinned::<f32>(8).unwrap() };
        two.memcpy_dtoh(&data, &mut pinned).unwrap();
        assert_eq!(pinned.as_slice().unwrap(), numbers(8));
        context.check_err().unwrap();
    });
}

#[test]
fn capture_and_replay() {
    on_machine("capture_and_replay", &[], || {
        let (context, stream) = start();
        let function = load(PTX, "add").unwrap();
        let (mut a, b) = (stream.clone_htod(&numbers(8)).unwrap(), stream.clone_htod(&numbers(8)).unwrap());
        let c = stream.alloc_zeros::<f32>(8).unwrap();
        stream.begin_capture(GLOBAL).unwrap();
        assert_eq!(stream.capture_status(), Ok(CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_ACTIVE));
        add(&stream, function, [address(&a), address(&b), address(&c)], 8).unwrap();
        let flags = CUgraphInstantiate_flags(0);
        let graph = stream.end_capture(flags).unwrap().unwrap();
        assert_eq!(stream.clone_dtoh(&c).unwrap(), [0.0; 8], "nothing ran yet");
        graph.upload().unwrap();
        graph.launch().unwrap();
        assert_eq!(stream.clone_dtoh(&c).unwrap()[7], 14.0);
        stream.memcpy_htod(&[1.0; 8], &mut a).unwrap();
        graph.launch().unwrap();
        assert_eq!(stream.clone_dtoh(&c).unwrap()[7], 8.0);
        context.check_err().unwrap();
    });
}

#[test]
fn what_a_capture_forbids() {
    on_machine("what_a_capture_forbids", &[], || {
        let (context, stream) = start();
        let other = context.new_stream().unwrap();
        let before = stream.record_event(None).unwrap();
        let unsupported = CUresult::CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
        let refused = |what: &str, expected: CUresult, forbidden: &dyn Fn() -> CUresult| {
            stream.begin_capture(GLOBAL).unwrap();
            assert_eq!(forbidden(), expected, "{what}");
            let ended = code(stream.end_capture(CUgraphInstantiate_flags(0)));
            assert_eq!(ended, CUresult::CUDA_ERROR_STREAM_CAPTURE_INVALIDATED, "{what}");
        };
        refused("synchronize", unsupported, &|| code(stream.synchronize()));
        refused("the context's", unsupported, &|| code(context.synchronize()));
        // SAFETY: nothing is read.
        refused("allocation", unsupported, &|| code(unsafe { other.alloc::<u8>(8) }));
        refused("module", unsupported, &|| code(load(PTX, "add")));
        refused("an event from before", CUresult::CUDA_ERROR_STREAM_CAPTURE_ISOLATION, &|| {
            code(stream.wait(&before))
        });
        refused("a captured event", CUresult::CUDA_ERROR_CAPTURED_EVENT, &|| {
            code(stream.record_event(None).unwrap().synchronize())
        });
        let relaxed = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED;
        stream.begin_capture(relaxed).unwrap();
        // SAFETY: nothing is read.
        let kept = unsafe { other.alloc::<u8>(8) }.unwrap();
        assert!(stream.end_capture(CUgraphInstantiate_flags(0)).unwrap().is_some());
        drop(kept);
        assert_eq!(code(stream.end_capture(CUgraphInstantiate_flags(0))), CUresult::CUDA_ERROR_ILLEGAL_STATE);
        assert_eq!(code(context.default_stream().begin_capture(GLOBAL)), unsupported);
    });
}

#[test]
fn forks_in_a_capture() {
    on_machine("forks_in_a_capture", &[], || {
        let (context, stream) = start();
        let other = context.new_stream().unwrap();
        let function = load(PTX, "poke").unwrap();
        let data = stream.alloc_zeros::<u32>(1).unwrap();
        for join in [false, true] {
            stream.begin_capture(GLOBAL).unwrap();
            other.wait(&stream.record_event(None).unwrap()).unwrap();
            poke(&other, function, address(&data), 16).unwrap();
            if join {
                stream.wait(&other.record_event(None).unwrap()).unwrap();
            }
            let ended = stream.end_capture(CUgraphInstantiate_flags(0));
            if !join {
                assert_eq!(code(ended), CUresult::CUDA_ERROR_STREAM_CAPTURE_UNJOINED);
                continue;
            }
            ended.unwrap().unwrap().launch().unwrap();
            assert_eq!(stream.clone_dtoh(&data).unwrap(), [7]);
        }
    });
}

#[test]
fn faults_are_errors() {
    let errors = on_machine("faults_are_errors", &[], || {
        let (_context, stream) = start();
        let function = load(PTX, "poke").unwrap();
        let data = stream.alloc_zeros::<u32>(4).unwrap();
        let at = address(&data);
        assert_eq!(code(poke(&stream, function, at + 16, 16)), CUresult::CUDA_ERROR_ILLEGAL_ADDRESS);
        assert_eq!(code(poke(&stream, function, at + 2, 16)), CUresult::CUDA_ERROR_MISALIGNED_ADDRESS);
        // The context lives on.
        poke(&stream, function, at, 16).unwrap();
        assert_eq!(stream.clone_dtoh(&data).unwrap(), [7, 0, 0, 0]);
        let add_function = load(PTX, "add").unwrap();
        // SAFETY: that it is not initialised is the point.
        let unwritten = unsafe { stream.alloc::<f32>(4).unwrap() };
        let pointers = [address(&unwritten), at, at];
        assert_eq!(code(add(&stream, add_function, pointers, 1)), CUresult::CUDA_ERROR_LAUNCH_FAILED);
    });
    if let Some(errors) = errors {
        assert!(errors.contains("ptx machine: out of bounds: kernel poke, line"), "{errors}");
        assert!(errors.contains("`st.global.u32 [%rd2], %r3;`"), "{errors}");
        assert!(errors.contains("ptx machine: uninitialised read: kernel add"), "{errors}");
    }
}

#[test]
fn what_a_launch_may_ask_for() {
    on_machine("what_a_launch_may_ask_for", &[], || {
        let (_context, stream) = start();
        let function = load(PTX, "poke").unwrap();
        let data = stream.alloc_zeros::<u32>(4).unwrap();
        let at = address(&data);
        let invalid = CUresult::CUDA_ERROR_INVALID_VALUE;
        assert_eq!(code(poke(&stream, function, at, (48 << 10) + 16)), invalid);
        let dynamic = CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        // SAFETY: the function is loaded.
        unsafe {
            assert_eq!(code(result::function::set_function_attribute(function, dynamic, 164 << 10)), invalid);
            result::function::set_function_attribute(function, dynamic, 100 << 10).unwrap();
            let blocks = result::occupancy::max_active_block_per_multiprocessor(function, 128, 100 << 10);
            assert_eq!(blocks, Ok(1));
        }
        poke(&stream, function, at, 100 << 10).unwrap();
        let mut params = [];
        // SAFETY: refused before a parameter is read.
        let launch = unsafe {
            result::launch_kernel(function, (1, 1, 1), (2048, 1, 1), 0, stream.cu_stream(), &mut params)
        };
        assert_eq!(code(launch), invalid);
    });
}

#[test]
fn modules_that_are_refused() {
    on_machine("modules_that_are_refused", &[("PTX_MACHINE_DRIVER", "11000")], || {
        let _context = CudaContext::new(0).unwrap();
        assert!(load(PTX, "add").is_ok());
        assert_eq!(code(load(PTX, "sub")), CUresult::CUDA_ERROR_NOT_FOUND);
        let newer = PTX.replace(".version 7.0", ".version 7.1");
        assert_eq!(code(load(&newer, "add")), CUresult::CUDA_ERROR_UNSUPPORTED_PTX_VERSION);
        let above = PTX.replace(".target sm_75", ".target sm_86");
        assert_eq!(code(load(&above, "add")), CUresult::CUDA_ERROR_NO_BINARY_FOR_GPU);
        assert_eq!(code(load("no PTX", "add")), CUresult::CUDA_ERROR_INVALID_PTX);
        let broken = PTX.replace(".visible .entry poke(", ".visible .entry poke((");
        assert_eq!(code(load(&broken, "add")), CUresult::CUDA_ERROR_INVALID_PTX);
        let large = ".version 7.0\n.target sm_75\n.address_size 64\n.visible .entry k()\n{\n\
             .shared .align 4 .b8 s[49156];\n.reg .b32 %r<2>;\nmov.u32 %r0, s;\nret;\n}\n";
        assert_eq!(code(load(large, "k")), CUresult::CUDA_ERROR_INVALID_PTX);
        assert!(load(&large.replace("49156", "49152"), "k").is_ok());
    });
}

#[test]
fn an_environment_that_is_refused() {
    let variables = [("PTX_MACHINE_SM", "sm_80"), ("PTX_MACHINE_SEEDS", "1")];
    let said = on_machine("an_environment_that_is_refused", &variables, || {
        assert_eq!(code(result::init()), CUresult::CUDA_ERROR_INVALID_VALUE);
        assert!(CudaContext::new(0).is_err());
    });
    if let Some(said) = said {
        assert!(said.contains("PTX_MACHINE_SM=sm_80 is not the compute capability"), "{said}");
        assert!(said.contains("PTX_MACHINE_SEEDS is no variable"), "{said}");
    }
}

#[test]
fn nothing_of_before_is_valid_after_a_reset() {
    on_machine("nothing_of_before_is_valid_after_a_reset", &[], || {
        let _context = CudaContext::new(0).unwrap();
        // SAFETY: plain calls with live pointers; the freed address is only given back to the machine.
        unsafe {
            let old = result::malloc_sync(256).unwrap();
            let mut words = [0_u32; 2];
            assert_eq!(code(result::memset_d8_sync(old + 1, 0, 3)), CUresult::CUDA_SUCCESS);
            result::memcpy_dtoh_sync(&mut words, old).unwrap();
            assert_eq!(words, [0x0000_00ff, u32::MAX], "what nothing wrote is no zero");
            let context = result::primary_ctx::retain(0).unwrap();
            assert_eq!(code(result::ctx::set_current(8 as _)), CUresult::CUDA_ERROR_INVALID_CONTEXT);
            assert_eq!(result::ctx::get_current().unwrap(), Some(context), "a refused one changes nothing");
            cudarc::driver::sys::cuDevicePrimaryCtxReset_v2(0).result().unwrap();
            assert_ne!(result::malloc_sync(256).unwrap(), old);
            assert_eq!(code(result::memcpy_dtoh_sync(&mut words, old)), CUresult::CUDA_ERROR_INVALID_VALUE);
        }
    });
}
