//! Acquiring: book under the lock, copy without it, tell the device under it.

use super::lease::{Lease, Resident};
use super::tier::{Loras, Need};
use super::{DevicePool, Inner, Layer, OP, State};
use crate::adapter::{Adapter, slots::Rows};
use crate::error::{Error, Result};
use crate::layer::Place;
use std::collections::HashMap;
use std::sync::{Arc, MutexGuard};

/// What one call of `acquire` has so far.
#[derive(Default)]
struct Call {
    held: HashMap<String, Arc<Resident>>,
    /// Loaded by this call, and the host tier's changes before that.
    loaded: HashMap<String, (Arc<Adapter>, u64)>,
}

/// An adapter to be copied.
struct Job {
    resident: Resident,
    adapter: Arc<Adapter>,
}

/// What a call does next.
enum Step {
    /// Load these, which were missing at this count of changes.
    Load(Vec<String>, u64),
    /// Copy these; then wait for others' where so.
    Fill(Vec<Job>, bool),
}

impl<D: Place<Pool: DevicePool> + Clone> Inner<D> {
    pub(super) fn acquire<K: AsRef<str>>(self: &Arc<Self>, keys: &[K]) -> Result<Lease<D>> {
        // Each key once, in their order.
        let mut distinct: Vec<&str> = Vec::new();
        let mut places = HashMap::new();
        let order = keys.iter().map(|key| {
            *places.entry(key.as_ref()).or_insert_with(|| {
                distinct.push(key.as_ref());
                distinct.len() - 1
            })
        });
        let order: Vec<usize> = order.collect();
        let mut call = Call::default();
        while call.held.len() < distinct.len() {
            match self.book(&distinct, &mut call)? {
                Step::Load(missing, changes) => {
                    for key in missing {
                        let adapter = self.load(&key)?;
                        call.loaded.insert(key, (adapter, changes));
                    }
                }
                Step::Fill(jobs, wait) => {
                    self.fill(jobs, &mut call)?;
                    if wait {
                        self.wait_for(&distinct, &call);
                    }
                }
            }
        }
        let residents = distinct.iter().map(|&key| call.held[key].clone()).collect();
        Ok(Lease { inner: self.clone(), residents, order })
    }

    /// Holds what is there and books what is not, all under one lock.
    fn book(&self, keys: &[&str], call: &mut Call) -> Result<Step> {
        let mut guard = self.lock();
        let state = &mut *guard;
        let changes = state.host.changes();
        // Loaded before a change: it may be what the change was about.
        call.loaded.retain(|_, loaded| loaded.1 == changes);
        let (mut absent, mut missing, mut wait) = (Vec::new(), Vec::new(), false);
        for &key in keys {
            if call.held.contains_key(key) {
                continue;
            }
            match state.device.entries.get(key).map(|entry| entry.resident.clone()) {
                Some(Some(resident)) => {
                    state.hits += 1;
                    state.device.touch(key);
                    call.held.insert(key.into(), resident);
                }
                Some(None) => wait = true,
                None if state.host.contains(key) || call.loaded.contains_key(key) => absent.push(key),
                None => missing.push(key.to_string()),
            }
        }
        if let Some(key) = missing.first() {
            if self.loader.is_none() {
                return Err(Error::argument(OP, "key", "a registered one", format!("{key:?}")));
            }
            return Ok(Step::Load(missing, changes));
        }
        if !absent.is_empty() {
            self.check_devices()?;
        }
        let mut jobs = Vec::new();
        for key in absent {
            match self.place(state, key, call) {
                Ok(job) => jobs.push(job),
                Err(error) => {
                    let undone = self.give_up(state, jobs);
                    return Err(undone.err().unwrap_or(error));
                }
            }
        }
        Ok(Step::Fill(jobs, wait))
    }

    /// Makes room for one adapter and books it.
    fn place(&self, state: &mut State<D::Pool>, key: &str, call: &Call) -> Result<Job> {
        let (adapter, generation) = match (state.host.take(key), call.loaded.get(key)) {
            (Some(hosted), _) => hosted,
            (None, Some((adapter, _))) => (adapter.clone(), state.host.keep(key, adapter)),
            (None, None) => return Err(Error::argument(OP, "key", "a registered one", format!("{key:?}"))),
        };
        let (need, loras) = (self.need(key, &adapter), self.loras(&adapter));
        state.device.make_room(&need)?;
        let (slot, rows) = state.device.reserve(&need, generation, &loras)?;
        let resident = Resident { key: key.into(), slot, generation, bytes: need.bytes, rows };
        Ok(Job { resident, adapter })
    }

    /// Copies what was booked, each as soon as it can be known to others; holds it.
    fn fill(&self, jobs: Vec<Job>, call: &mut Call) -> Result<()> {
        let mut jobs = jobs.into_iter();
        while let Some(mut job) = jobs.next() {
            let copied = self.copy(&job.adapter, &mut job.resident.rows);
            let mut state = self.lock();
            let done = match copied {
                Ok(()) => state.device.publish(job.resident),
                Err(error) => state.device.cancel(job.resident).and(Err(error)),
            };
            match done {
                Ok(resident) => {
                    state.uploads += 1;
                    call.held.insert(resident.key.to_string(), resident);
                    self.filled.notify_all();
                }
                Err(error) => {
                    let _ = self.give_up(&mut state, jobs);
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    fn copy(&self, adapter: &Adapter, rows: &mut [Option<Rows>]) -> Result<()> {
        for ((layer, loras), rows) in self.layers.iter().zip(self.loras(adapter)).zip(rows) {
            if let Some(rows) = rows {
                let loras: Vec<_> = loras.into_iter().flatten().collect();
                D::Pool::fill(&layer.factors, rows, &loras)?;
            }
        }
        Ok(())
    }

    /// Gives back what was booked and will not be filled; others who wait for it look again.
    fn give_up(&self, state: &mut State<D::Pool>, jobs: impl IntoIterator<Item = Job>) -> Result<()> {
        let mut first_error = Ok(());
        for job in jobs {
            first_error = first_error.and(state.device.cancel(job.resident));
        }
        self.filled.notify_all();
        first_error
    }

    /// Waits until no key that this call lacks is being filled by another thread, which waits for none meanwhile.
    fn wait_for(&self, keys: &[&str], call: &Call) {
        let mut state = self.lock();
        let filling = |state: &State<D::Pool>| {
            let lacks = |key: &&str| !call.held.contains_key(*key);
            let is_filling = |key: &str| state.device.entries.get(key).is_some_and(|e| e.resident.is_none());
            keys.iter().filter(|key| lacks(key)).any(|key| is_filling(key))
        };
        while filling(&state) {
            state = self.filled.wait(state).unwrap_or_else(|poisoned| poisoned.into_inner());
        }
    }

    fn load(&self, key: &str) -> Result<Arc<Adapter>> {
        let loader =
            self.loader.as_ref().ok_or_else(|| Error::argument(OP, "key", "a registered one", key))?;
        let adapter = loader(key)?;
        self.check(key, &adapter)?;
        self.lock().loads += 1;
        Ok(Arc::new(adapter))
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State<D::Pool>> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    pub(super) fn layer(&self, layer: usize) -> Result<&Layer<D>> {
        let layers = self.layers.len();
        self.layers.get(layer).ok_or_else(|| Error::argument(OP, "layer", format!("below {layers}"), layer))
    }

    /// Refuses changes where a device takes none now.
    pub(super) fn check_devices(&self) -> Result<()> {
        self.layers.iter().try_for_each(|layer| D::Pool::check(&layer.factors))
    }

    /// Refuses a key that is not known, or pinned.
    pub(super) fn check_removable(&self, state: &State<D::Pool>, key: &str) -> Result<()> {
        let entry = state.device.entries.get(key);
        if entry.is_none() && !state.host.contains(key) {
            return Err(Error::argument(OP, "key", "a known one", format!("{key:?}")));
        }
        if entry.is_some_and(|entry| entry.pins > 0) {
            return Err(Error::argument(
                OP,
                format!("adapter {key:?}"),
                "one that is not pinned",
                "a pinned one",
            ));
        }
        if entry.is_some() { self.check_devices() } else { Ok(()) }
    }

    /// Refuses an adapter that these layers could never hold.
    pub(super) fn check(&self, key: &str, adapter: &Adapter) -> Result<()> {
        let served = |module: &String| self.layers.iter().any(|layer| layer.modules.contains(module));
        if let Some(module) = adapter.modules().keys().find(|module| !served(module)) {
            let argument = format!("adapter {key:?}");
            return Err(Error::argument(
                OP,
                argument,
                "modules that the store serves",
                format!("{module:?}"),
            ));
        }
        let need = self.need(key, adapter);
        if need.ranks.iter().all(|&rank| rank == 0) {
            return Err(Error::argument(OP, format!("adapter {key:?}"), "at least one module", "none"));
        }
        for ((layer, loras), &rank) in self.layers.iter().zip(self.loras(adapter)).zip(&need.ranks) {
            let slots = layer.template.pool().slots();
            slots.check_loras(&loras)?;
            let most = slots.sizes().rank_capacity;
            if rank > most {
                let expected = format!("at most the {most} of the pool of {:?}", layer.modules);
                return Err(Error::argument(OP, format!("rank of adapter {key:?}"), expected, rank));
            }
        }
        let budget = self.lock().device.budget;
        if need.bytes > budget {
            let expected = format!("at most the budget of {budget} bytes");
            return Err(Error::argument(OP, format!("bytes of adapter {key:?}"), expected, need.bytes));
        }
        Ok(())
    }

    /// An adapter's LoRAs, layer by layer and slice by slice.
    fn loras<'a>(&self, adapter: &'a Adapter) -> Vec<Loras<'a>> {
        let of = |layer: &Layer<D>| layer.modules.iter().map(|module| adapter.get(module)).collect();
        self.layers.iter().map(of).collect()
    }

    fn need<'a>(&self, key: &'a str, adapter: &Adapter) -> Need<'a> {
        let rank = |loras: Loras| loras.into_iter().flatten().map(|lora| lora.rank()).sum();
        let ranks: Vec<usize> = self.loras(adapter).into_iter().map(rank).collect();
        let bytes = self.layers.iter().zip(&ranks).map(|(layer, &rank)| rank as u64 * layer.row_bytes).sum();
        Need { key, bytes, ranks }
    }
}
