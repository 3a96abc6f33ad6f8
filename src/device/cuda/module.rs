//! The kernels: two sets of PTX in this library, loaded once per context.

use super::driver::failed;
use super::entry::Entry;
use crate::error::{Error, Result};
use cudarc::driver::{CudaContext, DriverError, result, sys};
use std::collections::HashMap;
use std::ffi::CString;
use std::sync::{Arc, Mutex};

/// One of the sets of PTX.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Set {
    /// For every architecture with kernels.
    Sm75,
    /// With asynchronous copies and tensor cores for bf16.
    Sm80,
}

impl Set {
    /// The best set for an architecture.
    pub(super) fn of(compute_capability: (i32, i32)) -> Self {
        if compute_capability >= (8, 0) { Self::Sm80 } else { Self::Sm75 }
    }

    /// Its text.
    pub(super) const fn text(self) -> &'static str {
        match self {
            Self::Sm75 => include_str!("../../../kernels/ptx/molora_sm_75.ptx"),
            Self::Sm80 => include_str!("../../../kernels/ptx/molora_sm_80.ptx"),
        }
    }

    /// Its name.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Sm75 => "sm_75",
            Self::Sm80 => "sm_80",
        }
    }

    /// The oldest driver that compiles the text, by its `.version`.
    pub(super) fn driver(self) -> i32 {
        let (major, minor) = version(self.text()).unwrap_or((7, 0));
        match major {
            // PTX 6.3 came with CUDA 10.0; from 7.0 on, PTX M.N came with CUDA (M + 4).N.
            ..7 => 10_000 + (minor - 3).max(0) * 10,
            _ => (major + 4) * 1000 + minor * 10,
        }
    }
}

/// The numbers of a text's `.version` line.
fn version(text: &str) -> Option<(i32, i32)> {
    let line = text.lines().find_map(|line| line.trim_start().strip_prefix(".version"))?;
    let (major, minor) = line.split_whitespace().next()?.split_once('.')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

/// A set in a context: the functions of all its entries.
pub(super) struct Module {
    module: sys::CUmodule,
    functions: Vec<Option<sys::CUfunction>>,
    // Behind the module, which is unloaded first: it is the context's.
    context: Arc<CudaContext>,
}

// SAFETY: handles of the driver, which may be used from every thread; nothing here changes after loading.
unsafe impl Send for Module {}
// SAFETY: as above.
unsafe impl Sync for Module {}

/// Only what failed to load all of itself is dropped, see [`Module::of`].
impl Drop for Module {
    fn drop(&mut self) {
        let unloaded = self.context.bind_to_thread().and_then(|()| {
            // SAFETY: loaded by `load`, and no one has its functions any more.
            unsafe { result::module::unload(self.module) }
        });
        self.context.record_err(unloaded);
    }
}

impl Module {
    /// The set in this context, loaded once and kept with its context to the process's end: work in flight and graphs hold its
    /// functions when no handle does. Contexts are the devices' primary ones, of which there are few.
    pub(super) fn of(context: &Arc<CudaContext>, set: Set, device: &str) -> Result<Arc<Self>> {
        // A module keeps its context alive, so that no other context can take the address.
        static LOADED: Mutex<Option<HashMap<usize, Arc<Module>>>> = Mutex::new(None);
        let mut loaded = LOADED.lock().unwrap_or_else(|p| p.into_inner());
        let loaded = loaded.get_or_insert_default();
        let key = context.cu_ctx() as usize;
        if let Some(module) = loaded.get(&key) {
            return Ok(module.clone());
        }
        let module = Arc::new(Self::load(context, set, device)?);
        loaded.insert(key, module.clone());
        Ok(module)
    }

    fn load(context: &Arc<CudaContext>, set: Set, device: &str) -> Result<Self> {
        let step = |e: DriverError| failed(device, &format!("kernels for {}", set.name()), e);
        context.bind_to_thread().map_err(step)?;
        let text = CString::new(set.text()).map_err(|_| Error::Device {
            device: format!("cuda {device}"),
            reason: format!("kernels for {}: expected text, got a NUL byte", set.name()),
        })?;
        // SAFETY: a text that ends in NUL, in a context that is current.
        let module = unsafe { result::module::load_data(text.as_ptr().cast()) }.map_err(step)?;
        let mut loaded = Self { module, functions: vec![None; Entry::COUNT], context: context.clone() };
        for entry in Entry::all() {
            let name = entry.name();
            let c_name = CString::new(name.as_str()).unwrap_or_default();
            // SAFETY: the module was just loaded.
            match unsafe { result::module::get_function(loaded.module, c_name) } {
                Ok(function) => loaded.functions[entry.index()] = Some(function),
                // Tensor cores have no bf16 below sm_80.
                Err(DriverError(sys::CUresult::CUDA_ERROR_NOT_FOUND)) if entry.kernel.is_mma() => {}
                Err(e) => return Err(failed(device, &format!("kernel {name} for {}", set.name()), e)),
            }
        }
        Ok(loaded)
    }

    /// An entry's function; none where the set lacks it.
    pub(super) fn function(&self, entry: &Entry) -> Option<sys::CUfunction> {
        self.functions[entry.index()]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drivers_by_version_of_ptx() {
        assert_eq!(version("//\n.version 7.0\n.target sm_80"), Some((7, 0)));
        assert_eq!(version("nothing"), None);
        for set in [Set::Sm75, Set::Sm80] {
            let needed = set.driver();
            assert!((10_000..=12_000).contains(&needed), "{}: CUDA {needed}", set.name());
        }
        assert_eq!([Set::of((7, 5)), Set::of((8, 0)), Set::of((12, 0))], [Set::Sm75, Set::Sm80, Set::Sm80]);
    }
}
