//! A living pool: adapters come and go while batches run, from several threads.
//!
//! A [`Store`] serves the layers of a model. Adapters have keys; they lie in two tiers:
//!
//! - in host memory, because they were [registered](Store::register), or because a [loader](Store::with_loader) brought them
//!   when they were asked for;
//! - in the device's memory, in slots of the layers' pools: one slot id in all of them. [`Store::acquire`] brings them there
//!   and lends them; they stay until the [`Lease`] is dropped.
//!
//! ```text
//! engine:   lease = store.acquire(&keys)      ids = lease.id(i, layer)      lease.layer(l).forward(..)      drop(lease)
//! store:      hit: a count under a lock                                        no lock, no store
//!            miss: under the lock: evict, book rows -> copy, no lock held -> under the lock: tell the device
//! ```
//!
//! **Who makes room.** What is asked for comes in; what was used least recently and is neither leased nor pinned goes, one
//! adapter after the other, until the byte budget allows the new one, a slot is empty, and every layer's pool has a run of
//! free rows of its rank. An adapter's rows are contiguous and never move, so where the free rows lie scattered more adapters
//! go than the bytes would ask for. Where even all of them would not do, none goes and the error says who holds what.
//!
//! **Who waits.** A call waits for the copies of adapters that it named and another thread is just bringing in, and for
//! nothing else: not for the device, not for batches in flight. The lock is held for books, and for enqueueing a slot's entry
//! of a device's table.
//!
//! **Why nothing is read that is being written.** Rows are taken back when the count of those who hold their adapter, leases
//! and the layers made from them, is one: the store's own, and nobody gets another but under the lock. On the CPU that is all
//! there is to it, and the compiler sees it: to write rows takes their [`Rows`](super::slots::Rows) alone, to read them a
//! shared one. On a GPU the work outlives the call, but in order: what takes the rows is copied behind what was submitted.
//!
//! A request's results do not depend on what else comes and goes: a layer of a lease knows the lease's adapters and no others,
//! so that neither its workspace nor its form does. On the CPU, and on GPUs where a token has one adapter, that holds to the
//! last bit; of several, GPUs add in the order of slots, which are those that were empty.

mod acquire;
mod device;
mod host;
mod lease;
mod report;
mod tier;

pub use device::DevicePool;
pub use lease::Lease;
pub use report::{AdapterMemory, Counters, LayerRows, Memory, Tier};

use super::Adapter;
use crate::error::{Error, Result};
use crate::layer::{MoeLora, Place};
use host::HostTier;
use lease::Resident;
use std::collections::BTreeSet;
use std::sync::{Arc, Condvar, Mutex};
use tier::{Books, DeviceTier};

const OP: &str = "store";

/// What a store may take, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Rows of all pools together, as [`AdapterMemory::bytes`] counts them; the pools' own sizes are a limit besides.
    pub device_bytes: u64,
    /// Factors in host memory.
    pub host_bytes: u64,
}

impl Default for Limits {
    /// Whatever fits.
    fn default() -> Self {
        Self { device_bytes: u64::MAX, host_bytes: u64::MAX }
    }
}

/// A layer to be served, and the modules of an adapter that are for it.
pub struct Served<D: Place> {
    modules: Vec<String>,
    layer: MoeLora<D>,
}

impl<D: Place> Served<D> {
    /// A layer whose LoRAs an adapter keeps under a module's path.
    pub fn new(module: impl Into<String>, layer: MoeLora<D>) -> Self {
        Self { modules: vec![module.into()], layer }
    }

    /// A layer of a packed pool, with one module for each slice.
    pub fn packed(modules: impl IntoIterator<Item = impl Into<String>>, layer: MoeLora<D>) -> Self {
        Self { modules: modules.into_iter().map(Into::into).collect(), layer }
    }
}

/// Brings an adapter that is not in host memory.
type Loader = Box<dyn Fn(&str) -> Result<Adapter> + Send + Sync>;

/// Adapters of a model's layers, on device D; see the [module](self). Clones are of the same store.
pub struct Store<D: Place<Pool: DevicePool>> {
    inner: Arc<Inner<D>>,
}

/// One layer: all but its books.
struct Layer<D: Place<Pool: DevicePool>> {
    modules: Vec<String>,
    /// The layer over a pool that knows no adapter.
    template: MoeLora<D>,
    factors: <D::Pool as DevicePool>::Factors,
    row_bytes: u64,
}

struct Inner<D: Place<Pool: DevicePool>> {
    layers: Vec<Layer<D>>,
    loader: Option<Loader>,
    state: Mutex<State<D::Pool>>,
    /// Something was filled, or could not be.
    filled: Condvar,
}

struct State<P: DevicePool> {
    host: HostTier,
    device: DeviceTier<P>,
    hits: u64,
    uploads: u64,
    loads: u64,
}

impl<D: Place<Pool: DevicePool>> Clone for Store<D> {
    fn clone(&self) -> Self {
        Self { inner: self.inner.clone() }
    }
}

impl<D: Place<Pool: DevicePool>> std::fmt::Debug for Store<D> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Store({} layers)", self.inner.layers.len())
    }
}

impl<D: Place<Pool: DevicePool> + Clone> Store<D> {
    /// A store of layers whose pools are empty and have equally many slots.
    pub fn new(limits: Limits, served: Vec<Served<D>>) -> Result<Self> {
        Self::build(limits, served, None)
    }

    /// A store that asks `loader` for the adapters that are not in host memory, and keeps those there while the host's budget
    /// allows. It is called with no lock held, by two threads at once where both miss the same key.
    pub fn with_loader(
        limits: Limits,
        served: Vec<Served<D>>,
        loader: impl Fn(&str) -> Result<Adapter> + Send + Sync + 'static,
    ) -> Result<Self> {
        Self::build(limits, served, Some(Box::new(loader)))
    }

    fn build(limits: Limits, served: Vec<Served<D>>, loader: Option<Loader>) -> Result<Self> {
        let experts = served.first().map_or(0, |first| first.layer.pool().slots().sizes().experts);
        let mut modules = BTreeSet::new();
        let (mut layers, mut books) = (Vec::new(), Vec::new());
        for Served { modules: own, layer } in served {
            let slots = layer.pool().slots();
            slots.check_not_view(OP)?;
            crate::ops::check_equal(OP, "slots of every pool", experts, slots.sizes().experts)?;
            crate::ops::check_equal(OP, "modules", slots.slices().len(), own.len())?;
            if let Some(twice) = own.iter().find(|&module| !modules.insert(module.clone())) {
                return Err(Error::argument(OP, "modules", "every module once", format!("{twice:?} twice")));
            }
            if slots.max_rank() > 0 {
                let got = format!("one that holds adapters, of {own:?}");
                return Err(Error::argument(OP, "pool", "an empty pool", got));
            }
            let row_bytes = D::Pool::row_bytes(slots) as u64;
            let nothing = slots.view::<Resident>(&[], |_| None)?;
            let (template, (slots, factors)) = layer.map_pool(|pool| {
                let (slots, factors) = pool.take_apart();
                Ok((D::Pool::view(&factors, nothing)?, (slots, factors)))
            })?;
            books.push(Books { slots, factors: factors.clone() });
            layers.push(Layer { modules: own, template, factors, row_bytes });
        }
        let state = State {
            host: HostTier::new(limits.host_bytes),
            device: DeviceTier::new(limits.device_bytes, books),
            hits: 0,
            uploads: 0,
            loads: 0,
        };
        let (state, filled) = (Mutex::new(state), Condvar::new());
        Ok(Self { inner: Arc::new(Inner { layers, loader, state, filled }) })
    }

    /// Puts an adapter into host memory under a key that is not taken, and returns its generation: the number of this version.
    /// Refuses modules that no layer is served for, other sizes, and what could never be resident.
    pub fn register(&self, key: &str, adapter: Arc<Adapter>) -> Result<u64> {
        self.inner.check(key, &adapter)?;
        let mut state = self.inner.lock();
        let taken = state.host.get(key).is_some_and(|hosted| hosted.registered);
        if taken || state.device.entries.contains_key(key) || state.host.contains(key) {
            return Err(Error::argument(OP, "key", "one that is not taken", format!("{key:?}")));
        }
        state.host.register(key, adapter)
    }

    /// Another version of a known key from now on; returns its generation. Who holds the old one keeps it: its rows are free
    /// when the last lease ends. Refuses a pinned key.
    pub fn replace(&self, key: &str, adapter: Arc<Adapter>) -> Result<u64> {
        self.inner.check(key, &adapter)?;
        let mut state = self.inner.lock();
        self.inner.check_removable(&state, key)?;
        let generation = state.host.register(key, adapter)?;
        state.device.remove(key)?;
        Ok(generation)
    }

    /// Forgets a key: on the host now, on the device when the last lease ends. With a loader it is loaded anew when it is asked
    /// for again. Refuses a pinned key.
    pub fn remove(&self, key: &str) -> Result<()> {
        let mut state = self.inner.lock();
        self.inner.check_removable(&state, key)?;
        state.host.remove(key);
        state.device.remove(key)
    }

    /// Makes these adapters resident and lends them; see the [module](self) for who leaves and who waits. A key may come twice.
    ///
    /// Refuses unknown keys, and says who holds the room where there is none: then nothing has changed but that others may have
    /// been evicted for earlier keys of the call. While a CUDA stream captures, what is resident can be acquired, and nothing
    /// else.
    pub fn acquire<K: AsRef<str>>(&self, keys: &[K]) -> Result<Lease<D>> {
        self.inner.acquire(keys)
    }

    /// Makes an adapter resident for good, until it is unpinned as often, and returns its slot. Pinned into a new store one
    /// after the other, adapters have the slots 0, 1, ..: those of a linear router's experts.
    pub fn pin(&self, key: &str) -> Result<usize> {
        loop {
            let lease = self.inner.acquire(&[key])?;
            let mut state = self.inner.lock();
            let held = &lease.residents[0];
            // Replaced since it was acquired: the new one is meant.
            if let Some(entry) = state.device.entries.get_mut(key)
                && entry.resident.as_ref().is_some_and(|resident| Arc::ptr_eq(resident, held))
            {
                entry.pins += 1;
                return Ok(held.slot);
            }
        }
    }

    /// Takes one pin back.
    pub fn unpin(&self, key: &str) -> Result<()> {
        match self.inner.lock().device.entries.get_mut(key) {
            Some(entry) if entry.pins > 0 => {
                entry.pins -= 1;
                Ok(())
            }
            _ => Err(Error::argument(OP, "key", "a pinned one", format!("{key:?}"))),
        }
    }

    /// Takes an adapter off the device; it stays in host memory. Refuses one that is pinned or leased, or not there.
    pub fn evict(&self, key: &str) -> Result<()> {
        let mut state = self.inner.lock();
        if !state.device.entries.contains_key(key) {
            return Err(Error::argument(OP, "key", "one that is on the device", format!("{key:?}")));
        }
        state.device.check_loose(key)?;
        self.inner.check_devices()?;
        state.device.remove(key)
    }

    /// The generation that a key has now; none of a key that is in neither tier.
    pub fn generation(&self, key: &str) -> Option<u64> {
        let state = self.inner.lock();
        let hosted = state.host.get(key).map(|hosted| hosted.generation);
        hosted.or_else(|| state.device.entries.get(key).map(|entry| entry.generation))
    }

    /// A layer without its adapters: for its device's status word, and for [`route`](MoeLora#method.route) of a router of its
    /// own, whose experts are slots.
    pub fn layer(&self, layer: usize) -> Result<&MoeLora<D>> {
        Ok(&self.inner.layer(layer)?.template)
    }

    /// Both tiers' memory, adapter by adapter.
    pub fn memory(&self) -> Memory {
        self.inner.memory()
    }

    /// What happened so far.
    pub fn counters(&self) -> Counters {
        let state = self.inner.lock();
        let State { hits, uploads, loads, .. } = *state;
        Counters { hits, uploads, evictions: state.device.evictions, loads }
    }
}
