//! The state behind the API.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use super::capture::{Capture, Graph};
use super::codes::Code;
use super::config::Config;
use super::launch::Task;
use super::module::{Function, Loaded};
use super::stream::{Event, Stream};
use crate::counters::Counters;
use crate::fault::Trouble;
use crate::memory::Device;

/// Everything that the API keeps.
#[derive(Debug)]
pub struct Machine {
    pub config: Config,
    pub initialized: bool,
    pub device: Device,
    pub modules: HashMap<usize, Loaded>,
    pub functions: HashMap<usize, Function>,
    pub streams: HashMap<usize, Stream>,
    pub events: HashMap<usize, Event>,
    /// Captures that have not ended, by number.
    pub captures: BTreeMap<u64, Capture>,
    pub graphs: HashMap<usize, Graph>,
    /// Instantiated graphs.
    pub instances: HashMap<usize, Arc<Vec<Task>>>,
    /// Host memory of `cuMemHostAlloc`, by address.
    pub pinned: HashMap<usize, Box<[u128]>>,
    /// What the launches since the last take did, by kernel.
    pub counters: BTreeMap<String, Counters>,
    /// Lines that are in the file of `PTX_MACHINE_COVERAGE`, by target and kernel.
    pub covered: HashMap<(String, String), BTreeSet<u32>>,
    last_handle: usize,
}

impl Default for Machine {
    fn default() -> Self {
        Self {
            config: Config::read(),
            initialized: false,
            device: Device::default(),
            modules: HashMap::new(),
            functions: HashMap::new(),
            streams: HashMap::new(),
            events: HashMap::new(),
            captures: BTreeMap::new(),
            graphs: HashMap::new(),
            instances: HashMap::new(),
            pinned: HashMap::new(),
            counters: BTreeMap::new(),
            covered: HashMap::new(),
            last_handle: 0x1000,
        }
    }
}

impl Machine {
    /// A handle that no other object has.
    pub fn handle(&mut self) -> usize {
        self.last_handle += 16;
        self.last_handle
    }

    /// Everything that hangs on the context goes; the device's memory too.
    pub fn reset(&mut self) {
        let (config, last_handle) = (self.config.clone(), self.last_handle);
        let counters = std::mem::take(&mut self.counters);
        let device = self.device.successor();
        *self = Self { config, initialized: true, device, counters, last_handle, ..Self::default() };
    }

    /// A function.
    pub fn function(&self, handle: usize) -> Result<&Function, Code> {
        self.functions.get(&handle).ok_or(Code::INVALID_HANDLE)
    }

    /// Does a captured or direct task now.
    pub fn execute(&mut self, task: &Task) -> Result<(), Code> {
        match task {
            Task::Launch(launch) => self.launch(launch),
            Task::ToDevice { to, from, bytes } => {
                let data = from.read(*bytes)?;
                refuse(self.device.write(*to, &data))
            }
            Task::ToHost { to, from, bytes } => {
                let mut data = vec![0; *bytes];
                refuse(self.device.read(*from, &mut data))?;
                to.write(&data)
            }
            Task::Copy { to, from, bytes } => refuse(self.device.copy(*to, *from, *bytes)),
            Task::Fill { to, pattern, count } => refuse(self.device.fill(*to, pattern, *count)),
            // Called by the graph's launch, outside of the lock.
            Task::Call { .. } => Ok(()),
        }
    }
}

/// A host access that is out of bounds is an invalid value; the reason goes to standard error.
pub fn refuse(result: Result<(), Trouble>) -> Result<(), Code> {
    result.map_err(|trouble| {
        let address = trouble.address.unwrap_or(0);
        eprintln!("ptx machine: {} by the host at {address:#x}: {}", trouble.kind.name(), trouble.detail);
        Code::INVALID_VALUE
    })
}
