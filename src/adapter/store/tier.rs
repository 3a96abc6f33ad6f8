//! The device tier's books: which adapter has which slot and rows, who was used when, and who makes room.

use super::lease::Resident;
use super::{DevicePool, OP};
use crate::adapter::Lora;
use crate::adapter::slots::{Rows, Slots};
use crate::error::{Error, Result};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

/// One layer's pool, taken apart.
pub(super) struct Books<P: DevicePool> {
    pub(super) slots: Slots,
    pub(super) factors: P::Factors,
}

/// The device's memory of all layers.
pub(super) struct DeviceTier<P: DevicePool> {
    pub(super) budget: u64,
    pub(super) used: u64,
    pub(super) layers: Vec<Books<P>>,
    pub(super) entries: HashMap<Arc<str>, Entry>,
    /// Time of use -> key.
    order: BTreeMap<u64, Arc<str>>,
    clock: u64,
    /// Slots that no adapter has, in any layer.
    free_slots: BTreeSet<usize>,
    /// Replaced or removed, but held: their rows are taken back when nobody has them.
    pub(super) retired: Vec<Arc<Resident>>,
    pub(super) evictions: u64,
}

/// What a key has.
pub(super) struct Entry {
    /// None while it is being filled.
    pub(super) resident: Option<Arc<Resident>>,
    pub(super) slot: usize,
    pub(super) generation: u64,
    pub(super) bytes: u64,
    pub(super) pins: usize,
    used: u64,
}

impl Entry {
    /// Whether somebody has it: then it stays. Who has none of it can get it under the store's lock alone.
    pub(super) fn is_held(&self) -> bool {
        self.resident.as_ref().is_none_or(|resident| Arc::strong_count(resident) > 1)
    }
}

/// What an adapter needs.
pub(super) struct Need<'a> {
    pub(super) key: &'a str,
    pub(super) bytes: u64,
    /// In every layer, 0 where it has none.
    pub(super) ranks: Vec<usize>,
}

/// An adapter's LoRAs for one layer, one for each slice.
pub(super) type Loras<'a> = Vec<Option<&'a Lora>>;

impl<P: DevicePool> DeviceTier<P> {
    pub(super) fn new(budget: u64, layers: Vec<Books<P>>) -> Self {
        let slots = layers.first().map_or(0, |books| books.slots.sizes().experts);
        Self {
            budget,
            used: 0,
            layers,
            entries: HashMap::new(),
            order: BTreeMap::new(),
            clock: 0,
            free_slots: (0..slots).collect(),
            retired: Vec::new(),
            evictions: 0,
        }
    }

    /// Keys in the order of their use, the oldest first.
    pub(super) fn keys(&self) -> Vec<Arc<str>> {
        self.order.values().cloned().collect()
    }

    /// A key is the most recently used one now.
    pub(super) fn touch(&mut self, key: &str) {
        let Some(entry) = self.entries.get_mut(key) else { return };
        self.clock += 1;
        if let Some(key) = self.order.remove(&entry.used) {
            self.order.insert(self.clock, key);
        }
        entry.used = self.clock;
    }

    /// Takes a slot and rows for an adapter that fits by now; its entry is one that is being filled.
    pub(super) fn reserve(
        &mut self,
        need: &Need,
        generation: u64,
        loras: &[Loras],
    ) -> Result<(usize, Vec<Option<Rows>>)> {
        let slot = self
            .free_slots
            .pop_first()
            .ok_or_else(|| Error::argument(OP, need.key, "a free slot", "none"))?;
        let mut rows = Vec::with_capacity(loras.len());
        for (books, loras) in self.layers.iter_mut().zip(loras) {
            let one = loras.iter().any(Option::is_some).then(|| books.slots.reserve(slot, loras)).transpose();
            match one {
                Ok(one) => rows.push(one),
                Err(error) => {
                    self.take_back(slot, rows)?;
                    return Err(error);
                }
            }
        }
        (self.used, self.clock) = (self.used + need.bytes, self.clock + 1);
        let key: Arc<str> = need.key.into();
        let (bytes, used) = (need.bytes, self.clock);
        self.order.insert(used, key.clone());
        self.entries.insert(key, Entry { resident: None, slot, generation, bytes, pins: 0, used });
        Ok((slot, rows))
    }

    /// What was filled is there: its slot is told to the device, last. An entry that was removed meanwhile is retired at once.
    pub(super) fn publish(&mut self, mut resident: Resident) -> Result<Arc<Resident>> {
        let tell = |(books, rows): (&mut Books<P>, &mut Option<Rows>)| {
            let Some(rows) = rows else { return Ok(()) };
            books.slots.publish(rows)?;
            P::tell(&books.factors, &books.slots, rows.id())
        };
        if let Err(error) = self.layers.iter_mut().zip(&mut resident.rows).try_for_each(tell) {
            self.cancel(resident)?;
            return Err(error);
        }
        let resident = Arc::new(resident);
        match self.entries.get_mut(&resident.key) {
            Some(entry) if entry.generation == resident.generation && entry.slot == resident.slot => {
                entry.resident = Some(resident.clone());
            }
            _ => self.retired.push(resident.clone()),
        }
        Ok(resident)
    }

    /// What could not be filled gives everything back.
    pub(super) fn cancel(&mut self, resident: Resident) -> Result<()> {
        let is_its = |entry: &Entry| entry.slot == resident.slot && entry.generation == resident.generation;
        if self.entries.get(&resident.key).is_some_and(is_its) {
            self.forget(&resident.key);
        }
        self.used -= resident.bytes;
        self.take_back(resident.slot, resident.rows)
    }

    /// A key means nothing here from now on; its rows are taken back now, or when nobody holds them.
    pub(super) fn remove(&mut self, key: &str) -> Result<()> {
        if let Some(Entry { resident: Some(resident), .. }) = self.forget(key) {
            self.evictions += 1;
            self.retired.push(resident);
        }
        self.sweep()
    }

    /// Refuses what must stay.
    pub(super) fn check_loose(&self, key: &str) -> Result<()> {
        let got = match self.entries.get(key) {
            Some(entry) if entry.pins > 0 => "a pinned one",
            Some(entry) if entry.is_held() => "one that a lease holds",
            _ => return Ok(()),
        };
        Err(Error::argument(OP, format!("adapter {key:?}"), "one that nobody holds", got))
    }

    /// Evicts until an adapter fits, the least recently used first: until the budget allows it, a slot is empty, and every
    /// layer's pool has a run of free rows that is long enough. Nothing is evicted where all of it would not do.
    pub(super) fn make_room(&mut self, need: &Need) -> Result<()> {
        self.sweep()?;
        if self.fits(need) {
            return Ok(());
        }
        let mut stays = vec![true; self.layers.first().map_or(0, |books| books.slots.sizes().experts)];
        let mut loose = Vec::new();
        for key in self.order.values() {
            let Some(entry) = self.entries.get(key) else { continue };
            if entry.pins == 0 && !entry.is_held() {
                stays[entry.slot] = false;
                loose.push(key.clone());
            }
        }
        self.free_slots.iter().for_each(|&slot| stays[slot] = false);
        self.check_could_fit(need, &loose, &stays)?;
        for key in loose {
            self.remove(&key)?;
            if self.fits(need) {
                return Ok(());
            }
        }
        Err(self.no_room(need, "room"))
    }

    fn fits(&self, need: &Need) -> bool {
        self.used.saturating_add(need.bytes) <= self.budget
            && !self.free_slots.is_empty()
            && self.layers.iter().zip(&need.ranks).all(|(books, &rank)| books.slots.largest_run() >= rank)
    }

    /// Refuses what would not fit beside the slots that stay, whoever has them.
    fn check_could_fit(&self, need: &Need, loose: &[Arc<str>], stays: &[bool]) -> Result<()> {
        let freed: u64 = loose.iter().map(|key| self.entries[key].bytes).sum();
        if (self.used - freed).saturating_add(need.bytes) > self.budget {
            let expected = format!("{} bytes of the budget of {}", need.bytes, self.budget);
            return Err(self.no_room(need, expected));
        }
        if stays.iter().all(|&stays| stays) {
            return Err(self.no_room(need, "a slot"));
        }
        for (layer, (books, &rank)) in self.layers.iter().zip(&need.ranks).enumerate() {
            let slots = books.slots.slots().iter().zip(stays);
            let mut rows: Vec<_> = slots.filter(|&(_, &stays)| stays).map(|(slot, _)| slot).collect();
            rows.sort_by_key(|slot| slot.row);
            let (mut hole, mut end) = (0, 0);
            for slot in rows {
                hole = hole.max((slot.row as usize).saturating_sub(end));
                end = end.max((slot.row + slot.rank) as usize);
            }
            if hole.max(books.slots.sizes().rank_capacity.saturating_sub(end)) < rank {
                return Err(self.no_room(need, format!("{rank} rows in a row of layer {layer}'s pool")));
            }
        }
        Ok(())
    }

    /// Says who has the room.
    fn no_room(&self, need: &Need, expected: impl ToString) -> Error {
        const NAMED: usize = 8;
        let list = |mut keys: Vec<&str>| {
            keys.sort_unstable();
            let more = keys.len().saturating_sub(NAMED);
            keys.truncate(NAMED);
            let names = if keys.is_empty() { "none".to_string() } else { keys.join(", ") };
            if more == 0 { names } else { format!("{names} and {more} more") }
        };
        let with = |pinned: bool| {
            let held =
                |(_, entry): &(&Arc<str>, &Entry)| (entry.pins > 0) == pinned && (pinned || entry.is_held());
            list(self.entries.iter().filter(held).map(|(key, _)| &**key).collect())
        };
        let retired = list(self.retired.iter().map(|resident| &*resident.key).collect());
        let got = format!(
            "pinned: {}; leased or being filled: {}; replaced, but leased: {retired}",
            with(true),
            with(false)
        );
        Error::argument(
            OP,
            format!("adapter {:?}", need.key),
            format!("{} on the device", expected.to_string()),
            got,
        )
    }

    /// Takes back the rows of retired adapters that nobody holds any more.
    pub(super) fn sweep(&mut self) -> Result<()> {
        let mut first_error = Ok(());
        for resident in std::mem::take(&mut self.retired) {
            // Under the store's lock the last one is the last: nobody gets another from it.
            match Arc::try_unwrap(resident) {
                Err(held) => self.retired.push(held),
                Ok(resident) => {
                    self.used -= resident.bytes;
                    first_error = first_error.and(self.take_back(resident.slot, resident.rows));
                }
            }
        }
        first_error
    }

    /// Frees a slot and its rows in all layers, whatever the device says.
    fn take_back(&mut self, slot: usize, rows: Vec<Option<Rows>>) -> Result<()> {
        let mut first_error = Ok(());
        for (books, rows) in self.layers.iter_mut().zip(rows) {
            if let Some(rows) = rows {
                let told =
                    books.slots.give_back(rows).and_then(|()| P::tell(&books.factors, &books.slots, slot));
                first_error = first_error.and(told);
            }
        }
        self.free_slots.insert(slot);
        first_error
    }

    fn forget(&mut self, key: &str) -> Option<Entry> {
        let entry = self.entries.remove(key)?;
        self.order.remove(&entry.used);
        Some(entry)
    }
}
