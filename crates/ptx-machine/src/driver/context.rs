//! The device and its one context.

use std::cell::RefCell;

use super::codes::{Code, texts};
use super::ffi::{Host, Out, Text, give_text};
use super::{call, in_context, initialized};

/// The one context's handle.
const CONTEXT: usize = 0x10;
/// Memory that the device reports.
pub const MEMORY: u64 = 16 << 30;

thread_local! {
    /// The calling thread's stack of contexts.
    static CURRENT: RefCell<Vec<usize>> = const { RefCell::new(Vec::new()) };
}

/// The calling thread's context, 0 for none.
pub fn current() -> usize {
    CURRENT.with_borrow(|stack| stack.last().copied().unwrap_or(0))
}

fn device(device: i32) -> Result<(), Code> {
    if device == 0 { Ok(()) } else { Err(Code::INVALID_DEVICE) }
}

#[unsafe(no_mangle)]
extern "C" fn cuInit(flags: u32) -> i32 {
    call(|machine| {
        if flags != 0 {
            return Err(Code::INVALID_VALUE);
        }
        super::config::check_environment()?;
        machine.initialized = true;
        Ok(())
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuDriverGetVersion(version: Out<i32>) -> i32 {
    call(|machine| version.give(machine.config.driver))
}

#[unsafe(no_mangle)]
extern "C" fn cuDeviceGetCount(count: Out<i32>) -> i32 {
    initialized(|_| count.give(1))
}

#[unsafe(no_mangle)]
extern "C" fn cuDeviceGet(handle: Out<i32>, ordinal: i32) -> i32 {
    initialized(|_| {
        device(ordinal)?;
        handle.give(ordinal)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuDeviceGetName(name: Host, length: i32, number: i32) -> i32 {
    initialized(|machine| {
        device(number)?;
        let length = usize::try_from(length).map_err(|_| Code::INVALID_VALUE)?;
        give_text(name, length, &format!("PTX machine (sm_{})", machine.config.sm))
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuDeviceGetUuid(uuid: Out<[u8; 16]>, number: i32) -> i32 {
    initialized(|_| {
        device(number)?;
        uuid.give(*b"ptx-machine-0000")
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuDeviceGetUuid_v2(uuid: Out<[u8; 16]>, number: i32) -> i32 {
    cuDeviceGetUuid(uuid, number)
}

#[unsafe(no_mangle)]
extern "C" fn cuDeviceTotalMem_v2(bytes: Out<usize>, number: i32) -> i32 {
    initialized(|_| {
        device(number)?;
        bytes.give(MEMORY as usize)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuDeviceGetAttribute(value: Out<i32>, attribute: i32, number: i32) -> i32 {
    initialized(|machine| {
        device(number)?;
        value.give(machine.config.attribute(attribute).ok_or(Code::INVALID_VALUE)?)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuDeviceComputeCapability(major: Out<i32>, minor: Out<i32>, number: i32) -> i32 {
    initialized(|machine| {
        device(number)?;
        major.give((machine.config.sm / 10) as i32)?;
        minor.give((machine.config.sm % 10) as i32)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuDevicePrimaryCtxRetain(context: Out<usize>, number: i32) -> i32 {
    initialized(|_| {
        device(number)?;
        context.give(CONTEXT)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuDevicePrimaryCtxRelease_v2(number: i32) -> i32 {
    // Nothing ends with the last release: what leaks in a test would be found by no one else.
    initialized(|_| device(number))
}

#[unsafe(no_mangle)]
extern "C" fn cuDevicePrimaryCtxReset_v2(number: i32) -> i32 {
    initialized(|machine| {
        device(number)?;
        machine.reset();
        Ok(())
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuDevicePrimaryCtxGetState(number: i32, flags: Out<u32>, active: Out<i32>) -> i32 {
    initialized(|_| {
        device(number)?;
        flags.give(0)?;
        active.give(1)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuDevicePrimaryCtxSetFlags_v2(number: i32, _flags: u32) -> i32 {
    initialized(|_| device(number))
}

fn known(context: usize) -> Result<(), Code> {
    if context == CONTEXT { Ok(()) } else { Err(Code::INVALID_CONTEXT) }
}

#[unsafe(no_mangle)]
extern "C" fn cuCtxSetCurrent(context: usize) -> i32 {
    initialized(|_| {
        if context != 0 {
            known(context)?;
        }
        CURRENT.with_borrow_mut(|stack| {
            stack.pop();
            stack.extend((context != 0).then_some(context));
        });
        Ok(())
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuCtxGetCurrent(context: Out<usize>) -> i32 {
    initialized(|_| context.give(current()))
}

#[unsafe(no_mangle)]
extern "C" fn cuCtxPushCurrent_v2(context: usize) -> i32 {
    initialized(|_| {
        known(context)?;
        CURRENT.with_borrow_mut(|stack| stack.push(context));
        Ok(())
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuCtxPopCurrent_v2(context: Out<usize>) -> i32 {
    in_context(|_| {
        let popped = CURRENT.with_borrow_mut(Vec::pop).ok_or(Code::INVALID_CONTEXT)?;
        context.give_if_wanted(popped);
        Ok(())
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuCtxGetDevice(handle: Out<i32>) -> i32 {
    in_context(|_| handle.give(0))
}

#[unsafe(no_mangle)]
extern "C" fn cuCtxSynchronize() -> i32 {
    in_context(|machine| {
        // Every capture belongs to the one context.
        let capturing = !machine.captures.is_empty();
        machine.captures.values_mut().for_each(|capture| capture.valid = false);
        if capturing { Err(Code::CAPTURE_UNSUPPORTED) } else { Ok(()) }
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuCtxSetFlags(_flags: u32) -> i32 {
    in_context(|_| Ok(()))
}

#[unsafe(no_mangle)]
extern "C" fn cuCtxGetFlags(flags: Out<u32>) -> i32 {
    in_context(|_| flags.give(0))
}

#[unsafe(no_mangle)]
extern "C" fn cuCtxGetStreamPriorityRange(least: Out<i32>, greatest: Out<i32>) -> i32 {
    in_context(|_| {
        least.give_if_wanted(0);
        greatest.give_if_wanted(0);
        Ok(())
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuCtxGetLimit(value: Out<usize>, _limit: i32) -> i32 {
    in_context(|_| value.give(0))
}

#[unsafe(no_mangle)]
extern "C" fn cuCtxSetLimit(_limit: i32, _value: usize) -> i32 {
    in_context(|_| Ok(()))
}

#[unsafe(no_mangle)]
extern "C" fn cuCtxGetCacheConfig(config: Out<i32>) -> i32 {
    in_context(|_| config.give(0))
}

#[unsafe(no_mangle)]
extern "C" fn cuCtxSetCacheConfig(_config: i32) -> i32 {
    in_context(|_| Ok(()))
}

#[unsafe(no_mangle)]
extern "C" fn cuGetErrorName(code: i32, name: Out<*const std::ffi::c_char>) -> i32 {
    call(|_| name.give(texts(code).ok_or(Code::INVALID_VALUE)?.0.as_ptr()))
}

#[unsafe(no_mangle)]
extern "C" fn cuGetErrorString(code: i32, text: Out<*const std::ffi::c_char>) -> i32 {
    call(|_| text.give(texts(code).ok_or(Code::INVALID_VALUE)?.1.as_ptr()))
}

#[unsafe(no_mangle)]
extern "C" fn cuGetProcAddress(symbol: Text, function: Out<usize>, _version: i32, _flags: u64) -> i32 {
    // Programs that load by name do not need it; those that need it need a runtime that the machine does not offer.
    call(|_| {
        symbol.get()?;
        function.give(0)?;
        Err(Code::NOT_FOUND)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuProfilerStart() -> i32 {
    in_context(|_| Ok(()))
}

#[unsafe(no_mangle)]
extern "C" fn cuProfilerStop() -> i32 {
    in_context(|_| Ok(()))
}
