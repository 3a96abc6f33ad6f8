//! What a store tells of itself.

use super::{DevicePool, Inner, State};
use crate::adapter::slots::Slots;
use crate::layer::Place;

/// Both tiers' memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Memory {
    /// The pools' rows, over all layers.
    pub device: Tier,
    /// Factors in host memory.
    pub host: Tier,
    /// Rows of every layer's pool.
    pub rows: Vec<LayerRows>,
}

/// One tier's memory, in bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tier {
    /// What it may take.
    pub budget: u64,
    /// What it takes.
    pub used: u64,
    /// What it may still take; on the device only where there is a hole for it, see [`LayerRows::largest_run`].
    pub free: u64,
    /// Of `used`: replaced or removed adapters that leases still hold.
    pub retired: u64,
    /// What is in it, least recently used first.
    pub adapters: Vec<AdapterMemory>,
}

/// One adapter's memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AdapterMemory {
    /// Its key.
    pub key: String,
    /// Its version.
    pub generation: u64,
    /// Its own size: rank * (in + out) * bytes of an element, over all layers.
    pub own_bytes: u64,
    /// What it takes: rows padded to 8 elements on a GPU; on the CPU A's to 256 above 256, B's to 64.
    pub bytes: u64,
    /// Its slot on the device.
    pub slot: Option<usize>,
    /// Never evicted; in host memory: registered, and there until it is removed.
    pub pinned: bool,
    /// Held now.
    pub leased: bool,
}

/// Rows of one pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LayerRows {
    /// All.
    pub capacity: usize,
    /// Those that no adapter has.
    pub free: usize,
    /// The longest run of those, which is the largest rank that comes in without an eviction.
    pub largest_run: usize,
}

/// How often, since the store was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counters {
    /// Adapters asked for that were on the device.
    pub hits: u64,
    /// Adapters copied to the device.
    pub uploads: u64,
    /// Adapters that lost their rows: to others, or by being replaced or removed.
    pub evictions: u64,
    /// Calls of the loader.
    pub loads: u64,
}

impl<D: Place<Pool: DevicePool> + Clone> Inner<D> {
    pub(super) fn memory(&self) -> Memory {
        let state = &*self.lock();
        let rows = state.device.layers.iter().map(|books| LayerRows::of(&books.slots)).collect();
        Memory { device: Self::device_memory(state), host: Self::host_memory(state), rows }
    }

    fn device_memory(state: &State<D::Pool>) -> Tier {
        let device = &state.device;
        let mut adapters = Vec::new();
        for key in device.keys() {
            let entry = &device.entries[&key];
            let own = device.layers.iter().map(|books| own_bytes(&books.slots, entry.slot)).sum();
            adapters.push(AdapterMemory {
                key: key.to_string(),
                generation: entry.generation,
                own_bytes: own,
                bytes: entry.bytes,
                slot: Some(entry.slot),
                pinned: entry.pins > 0,
                leased: entry.is_held(),
            });
        }
        let retired = device.retired.iter().map(|resident| resident.bytes).sum();
        let (budget, used) = (device.budget, device.used);
        Tier { budget, used, free: budget - used, retired, adapters }
    }

    fn host_memory(state: &State<D::Pool>) -> Tier {
        let report = |(key, hosted): (&std::sync::Arc<str>, &super::host::Hosted)| AdapterMemory {
            key: key.to_string(),
            generation: hosted.generation,
            own_bytes: hosted.bytes,
            bytes: hosted.bytes,
            slot: None,
            pinned: hosted.registered,
            leased: false,
        };
        let (budget, used) = (state.host.budget(), state.host.used());
        let adapters = state.host.iter().map(report).collect();
        Tier { budget, used, free: budget - used, retired: 0, adapters }
    }
}

impl LayerRows {
    fn of(slots: &Slots) -> Self {
        let capacity = slots.sizes().rank_capacity;
        Self { capacity, free: slots.free_ranks(), largest_run: slots.largest_run() }
    }
}

/// Bytes of an adapter's factors as the pool stores them, without padding.
fn own_bytes(slots: &Slots, slot: usize) -> u64 {
    let part = |(slice, &width): (usize, &usize)| {
        slots.parts(slice)[slot].rank as usize * (slots.sizes().in_features + width)
    };
    let elements: usize = slots.slices().iter().enumerate().map(part).sum();
    (elements * slots.sizes().element.bytes()) as u64
}
