//! The host tier: adapters in host memory, by key.

use crate::adapter::Adapter;
use crate::error::{Error, Result};
use std::collections::HashMap;
use std::sync::Arc;

use super::OP;

/// Adapters in host memory.
pub(super) struct HostTier {
    budget: u64,
    used: u64,
    /// Of `used`: what stays until it is removed.
    registered: u64,
    adapters: HashMap<Arc<str>, Hosted>,
    /// The last generation given.
    generation: u64,
    /// Times that a key was taken away or came to mean another adapter.
    changes: u64,
    clock: u64,
}

/// One of them.
pub(super) struct Hosted {
    pub(super) adapter: Arc<Adapter>,
    pub(super) generation: u64,
    pub(super) bytes: u64,
    /// Stays until it is removed; what was loaded leaves when its place is needed.
    pub(super) registered: bool,
    used: u64,
}

impl HostTier {
    pub(super) fn new(budget: u64) -> Self {
        Self { budget, used: 0, registered: 0, adapters: HashMap::new(), generation: 0, changes: 0, clock: 0 }
    }

    pub(super) fn budget(&self) -> u64 {
        self.budget
    }

    pub(super) fn used(&self) -> u64 {
        self.used
    }

    pub(super) fn changes(&self) -> u64 {
        self.changes
    }

    /// Least recently used first.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&Arc<str>, &Hosted)> {
        let mut all: Vec<_> = self.adapters.iter().collect();
        all.sort_by_key(|(_, hosted)| hosted.used);
        all.into_iter()
    }

    pub(super) fn contains(&self, key: &str) -> bool {
        self.adapters.contains_key(key)
    }

    pub(super) fn get(&self, key: &str) -> Option<&Hosted> {
        self.adapters.get(key)
    }

    /// The adapter and its generation; it is the most recently used one now.
    pub(super) fn take(&mut self, key: &str) -> Option<(Arc<Adapter>, u64)> {
        self.clock += 1;
        let hosted = self.adapters.get_mut(key)?;
        hosted.used = self.clock;
        Some((hosted.adapter.clone(), hosted.generation))
    }

    /// Registers an adapter under a key, in the place of the one there is; makes room among those that were loaded.
    pub(super) fn register(&mut self, key: &str, adapter: Arc<Adapter>) -> Result<u64> {
        let bytes = host_bytes(&adapter);
        let own = self.get(key).filter(|hosted| hosted.registered).map_or(0, |hosted| hosted.bytes);
        let others = self.registered - own;
        if bytes > self.budget - others {
            let expected = format!("at most {} bytes beside {others} of others", self.budget - others);
            return Err(Error::argument(OP, format!("adapter {key:?} in host memory"), expected, bytes));
        }
        if self.contains(key) {
            self.remove(key);
        }
        self.drop_loaded(bytes);
        Ok(self.insert(key, adapter, bytes, true))
    }

    /// Keeps what was loaded while there is room, in the place of others that were loaded; says its generation either way.
    pub(super) fn keep(&mut self, key: &str, adapter: &Arc<Adapter>) -> u64 {
        let bytes = host_bytes(adapter);
        self.drop_loaded(bytes);
        if self.used.saturating_add(bytes) > self.budget {
            self.generation += 1;
            return self.generation;
        }
        self.insert(key, adapter.clone(), bytes, false)
    }

    /// Takes a key away.
    pub(super) fn remove(&mut self, key: &str) -> bool {
        self.changes += 1;
        let removed = self.adapters.remove(key);
        if let Some(hosted) = &removed {
            self.used -= hosted.bytes;
            self.registered -= if hosted.registered { hosted.bytes } else { 0 };
        }
        removed.is_some()
    }

    fn insert(&mut self, key: &str, adapter: Arc<Adapter>, bytes: u64, registered: bool) -> u64 {
        (self.generation, self.clock) = (self.generation + 1, self.clock + 1);
        let hosted = Hosted { adapter, generation: self.generation, bytes, registered, used: self.clock };
        self.adapters.insert(key.into(), hosted);
        self.used += bytes;
        self.registered += if registered { bytes } else { 0 };
        self.generation
    }

    /// Drops loaded adapters, least recently used first, until `bytes` fit or none is left.
    fn drop_loaded(&mut self, bytes: u64) {
        while self.used.saturating_add(bytes) > self.budget {
            let loaded = self.adapters.iter().filter(|(_, hosted)| !hosted.registered);
            let Some(oldest) = loaded.min_by_key(|(_, hosted)| hosted.used).map(|(key, _)| key.clone())
            else {
                return;
            };
            self.used -= self.adapters.remove(&oldest).map_or(0, |hosted| hosted.bytes);
        }
    }
}

/// Bytes of an adapter's factors as they are stored.
fn host_bytes(adapter: &Adapter) -> u64 {
    adapter.modules().values().map(|lora| (lora.a_bytes().len() + lora.b_bytes().len()) as u64).sum()
}
