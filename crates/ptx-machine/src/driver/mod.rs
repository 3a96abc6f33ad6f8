//! The driver API: what `libcuda.so.1` exports, as far as programs on `cudarc` need it.
//!
//! One lock stands around everything. Launches, copies and fills happen within the call that asks for them, so streams and
//! events are in order by themselves; what a capture forbids is refused as a driver refuses it. In the order in which a
//! program meets them:
//!
//! - `context`: the device and its one context;
//! - `module`: PTX text to functions;
//! - `transfer`: memory, copies and fills;
//! - `stream`: streams and events;
//! - `capture`: captures and graphs;
//! - `launch`: launches, and the counters of all of them;
//! - `machine`: the state behind them; `codes` and `ffi`: results and arguments.
//!
//! Unlike on a device, a fault does not end the context: the launch that has it returns its code, prints the fault, and the
//! next call goes on.

mod capture;
mod codes;
mod config;
mod context;
mod ffi;
mod launch;
mod machine;
mod module;
mod stream;
mod transfer;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{LazyLock, Mutex, PoisonError};

use codes::Code;
use machine::Machine;

static MACHINE: LazyLock<Mutex<Machine>> = LazyLock::new(Mutex::default);

/// Runs one call of the API on the machine; nothing unwinds into C.
fn call(work: impl FnOnce(&mut Machine) -> Result<(), Code>) -> i32 {
    let result =
        catch_unwind(AssertUnwindSafe(|| work(&mut MACHINE.lock().unwrap_or_else(PoisonError::into_inner))));
    match result {
        Ok(Ok(())) => 0,
        Ok(Err(code)) => code.0,
        Err(_) => Code::UNKNOWN.0,
    }
}

/// [`call`] after `cuInit`.
fn initialized(work: impl FnOnce(&mut Machine) -> Result<(), Code>) -> i32 {
    call(|machine| if machine.initialized { work(machine) } else { Err(Code::NOT_INITIALIZED) })
}

/// [`call`] in a context.
fn in_context(work: impl FnOnce(&mut Machine) -> Result<(), Code>) -> i32 {
    let current = context::current();
    initialized(|machine| if current == 0 { Err(Code::INVALID_CONTEXT) } else { work(machine) })
}
