//! Launches, and what they counted.

use std::fs::OpenOptions;
use std::io::Write;

use serde_json::{Map, json};

use super::codes::{Code, of_fault};
use super::config::number;
use super::ffi::{Host, give_text};
use super::machine::Machine;
use super::module::Function;
use super::{call, in_context};
use crate::counters::Counters;
use crate::exec;

/// A function of the program that a stream calls.
pub type HostFunction = extern "C" fn(Host);

/// Work of a stream.
#[derive(Debug, Clone)]
pub enum Task {
    Launch(Box<Launch>),
    ToDevice { to: u64, from: Host, bytes: usize },
    ToHost { to: Host, from: u64, bytes: usize },
    Copy { to: u64, from: u64, bytes: usize },
    Fill { to: u64, pattern: Vec<u8>, count: usize },
    Call { function: HostFunction, data: Host },
}

/// A launch with its parameters' bytes.
#[derive(Debug, Clone)]
pub struct Launch {
    function: Function,
    grid: [u32; 3],
    block: [u32; 3],
    shared: u32,
    params: Vec<u8>,
    /// All blocks are resident at once.
    cooperative: bool,
}

/// The parameters' bytes, from an array of their addresses or from one buffer.
fn params(function: &Function, each: Host, extra: Host) -> Result<Vec<u8>, Code> {
    let kernel = function.kernel()?;
    let mut bytes = vec![0; kernel.param_bytes as usize];
    if each.address() != 0 {
        for (index, param) in kernel.params.iter().enumerate() {
            let (at, size) = (param.offset as usize, param.size as usize);
            bytes[at..at + size].copy_from_slice(&each.element(index)?.read(size)?);
        }
        return Ok(bytes);
    }
    if extra.address() == 0 {
        return if bytes.is_empty() { Ok(bytes) } else { Err(Code::INVALID_VALUE) };
    }
    // Pairs: 1 and the buffer, 2 and the address of its size, 0 at the end.
    let (mut buffer, mut size) = (None, 0);
    for pair in 0..2 {
        let value = extra.element(pair * 2 + 1);
        match extra.element(pair * 2)?.address() {
            1 => buffer = Some(value?),
            2 => size = value?.element(0)?.address(),
            _ => return Err(Code::INVALID_VALUE),
        }
    }
    let given = buffer.ok_or(Code::INVALID_VALUE)?.read(size)?;
    if given.len() < bytes.len() {
        return Err(Code::INVALID_VALUE);
    }
    bytes.copy_from_slice(&given[..kernel.param_bytes as usize]);
    Ok(bytes)
}

impl Launch {
    fn check(&self, machine: &Machine) -> Result<(), Code> {
        let refuse = |why: String| {
            eprintln!("ptx machine: launch of {} refused: {why}", self.function.name);
            Err(Code::INVALID_VALUE)
        };
        let threads = self.block.iter().map(|&size| u64::from(size)).product::<u64>();
        let blocks = self.blocks();
        if threads == 0 || blocks == 0 {
            return refuse(format!("grid {:?}, block {:?}: nothing to do", self.grid, self.block));
        }
        if threads > u64::from(self.function.threads()) || self.block[2] > 64 {
            return refuse(format!("block {:?}, at most {} threads", self.block, self.function.threads()));
        }
        if self.grid[0] > i32::MAX as u32 || self.grid[1] > 65535 || self.grid[2] > 65535 {
            return refuse(format!("grid {:?}", self.grid));
        }
        if self.shared > self.function.dynamic {
            let most = self.function.dynamic;
            return refuse(format!("{} bytes of dynamic shared memory, {most} were asked for", self.shared));
        }
        let held = machine.config.occupancy(threads as u32, self.function.shared() + self.shared);
        if self.cooperative && blocks > u64::from(held * machine.config.multiprocessors()) {
            return Err(Code::COOPERATIVE_LAUNCH_TOO_LARGE);
        }
        Ok(())
    }

    fn blocks(&self) -> u64 {
        self.grid.iter().map(|&size| u64::from(size)).fold(1, u64::saturating_mul)
    }

    fn setup(&self) -> exec::Setup {
        let default = exec::Setup::default();
        let resident = number("PTX_MACHINE_RESIDENT").unwrap_or(default.resident_blocks);
        exec::Setup {
            grid: self.grid,
            block: self.block,
            dynamic_shared: self.shared,
            params: self.params.clone(),
            seed: number("PTX_MACHINE_SEED").unwrap_or(default.seed),
            resident_blocks: if self.cooperative { self.blocks() as u32 } else { resident },
            max_instructions: number("PTX_MACHINE_LIMIT").unwrap_or(default.max_instructions),
            coverage: std::env::var_os(COVERAGE).is_some(),
        }
    }
}

impl Machine {
    /// Executes a launch; a fault is printed and becomes the result.
    pub fn launch(&mut self, launch: &Launch) -> Result<(), Code> {
        let name = &launch.function.name;
        match exec::run(&launch.function.text, name, &launch.setup(), &mut self.device) {
            Ok(counters) => {
                self.cover(launch, &counters);
                append(launch, &counters);
                self.counters.entry(name.clone()).or_default().add(&counters);
                Ok(())
            }
            Err(fault) => {
                eprintln!("ptx machine: {fault}");
                Err(of_fault(fault.kind))
            }
        }
    }
}

/// The variable that names a file for the lines that launches executed.
const COVERAGE: &str = "PTX_MACHINE_COVERAGE";

impl Machine {
    /// One line for the lines that no launch of this process executed before, where [`COVERAGE`] names a file.
    fn cover(&mut self, launch: &Launch, counters: &Counters) {
        if counters.executed.is_empty() {
            return;
        }
        let (target, kernel) = (&launch.function.text.target, &launch.function.name);
        let covered = self.covered.entry((target.clone(), kernel.clone())).or_default();
        let new: Vec<u32> = counters.executed.difference(covered).copied().collect();
        if !new.is_empty() {
            append_line(COVERAGE, &json!({ "target": target, "kernel": kernel, "lines": new }));
            covered.extend(new);
        }
    }
}

/// One line for a launch, where `PTX_MACHINE_COUNTERS` names a file.
fn append(launch: &Launch, counters: &Counters) {
    if std::env::var_os("PTX_MACHINE_COUNTERS").is_none() {
        return;
    }
    let line = json!({
        "kernel": launch.function.name,
        "grid": launch.grid,
        "block": launch.block,
        "counters": counters.to_json(),
    });
    append_line("PTX_MACHINE_COUNTERS", &line);
}

/// Appends a line to the file that a variable names.
fn append_line(variable: &str, line: &serde_json::Value) {
    let Some(path) = std::env::var_os(variable) else { return };
    let file = OpenOptions::new().create(true).append(true).open(path);
    // One write: several processes may share the file.
    if let Err(error) = file.and_then(|mut file| file.write_all(format!("{line}\n").as_bytes())) {
        eprintln!("ptx machine: {variable}: {error}");
    }
}

fn submit(
    (function, grid, block): (usize, [u32; 3], [u32; 3]),
    (shared, stream): (u32, usize),
    (each, extra): (Host, Host),
    cooperative: bool,
) -> i32 {
    in_context(|machine| {
        let function = machine.function(function)?.clone();
        machine.check_stream(stream)?;
        let params = params(&function, each, extra)?;
        let launch = Launch { function, grid, block, shared, params, cooperative };
        launch.check(machine)?;
        machine.submit(stream, Task::Launch(Box::new(launch)))
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuLaunchKernel(
    function: usize,
    grid_x: u32,
    grid_y: u32,
    grid_z: u32,
    block_x: u32,
    block_y: u32,
    block_z: u32,
    shared: u32,
    stream: usize,
    params: Host,
    extra: Host,
) -> i32 {
    let (grid, block) = ([grid_x, grid_y, grid_z], [block_x, block_y, block_z]);
    submit((function, grid, block), (shared, stream), (params, extra), false)
}

#[unsafe(no_mangle)]
extern "C" fn cuLaunchCooperativeKernel(
    function: usize,
    grid_x: u32,
    grid_y: u32,
    grid_z: u32,
    block_x: u32,
    block_y: u32,
    block_z: u32,
    shared: u32,
    stream: usize,
    params: Host,
) -> i32 {
    let (grid, block) = ([grid_x, grid_y, grid_z], [block_x, block_y, block_z]);
    submit((function, grid, block), (shared, stream), (params, Host::NULL), true)
}

/// `CUlaunchConfig`.
#[repr(C)]
struct LaunchConfig {
    grid: [u32; 3],
    block: [u32; 3],
    shared: u32,
    stream: usize,
    attributes: Host,
    attribute_count: u32,
}

#[unsafe(no_mangle)]
extern "C" fn cuLaunchKernelEx(
    config: Option<&LaunchConfig>,
    function: usize,
    params: Host,
    extra: Host,
) -> i32 {
    let Some(config) = config else { return Code::INVALID_VALUE.0 };
    // Attributes ask for clusters and the like, which the machine does not have.
    if config.attribute_count != 0 && config.attributes.address() != 0 {
        return Code::NOT_SUPPORTED.0;
    }
    submit((function, config.grid, config.block), (config.shared, config.stream), (params, extra), false)
}

/// The counters of all launches since the last take, summed by kernel, as JSON with its end. Returns the bytes that it needs
/// with the end; where they do not fit nothing is written, and nothing is taken.
#[unsafe(no_mangle)]
extern "C" fn ptxMachineTakeCounters(buffer: Host, length: usize) -> usize {
    let mut needed = 0;
    call(|machine| {
        let all: Map<_, _> =
            machine.counters.iter().map(|(kernel, counters)| (kernel.clone(), counters.to_json())).collect();
        let text = serde_json::Value::Object(all).to_string();
        needed = text.len() + 1;
        if buffer.address() != 0 && needed <= length {
            give_text(buffer, length, &text)?;
            machine.counters.clear();
        }
        Ok(())
    });
    needed
}
