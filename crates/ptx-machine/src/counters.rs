//! What a launch did, as JSON.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value, json};

/// Accesses of global memory of one width.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Warp-level requests.
    pub requests: u64,
    /// Lanes that took part.
    pub lanes: u64,
    /// Bytes that they asked for.
    pub bytes: u64,
    /// 32-byte sectors, distinct within each request.
    pub sectors: u64,
}

/// Accesses of shared memory.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Wavefronts {
    /// Warp-level requests; `ldmatrix` is one for each matrix.
    pub requests: u64,
    /// Wavefronts that the 32 banks take.
    pub wavefronts: u64,
    /// Wavefronts without bank conflicts.
    pub ideal: u64,
}

/// Distinct memory that was touched.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Unique {
    /// Bytes.
    pub bytes: u64,
    /// 32-byte sectors.
    pub sectors: u64,
}

/// Traffic by width: 1, 2, 4, 8, 16 bytes a lane.
pub type ByWidth = [Traffic; 5];

/// Counts of one launch, or of several added up.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Counters {
    /// Launches.
    pub launches: u64,
    /// Warp instructions by name.
    pub instructions: BTreeMap<String, u64>,
    /// Warp instructions.
    pub warp_instructions: u64,
    /// Matrix instructions.
    pub mma_issued: u64,
    /// Matrix instructions' worth of products whose inputs are not padding.
    pub mma_useful: f64,
    /// Loads of global memory.
    pub global_loads: ByWidth,
    /// Stores to global memory.
    pub global_stores: ByWidth,
    /// Sources of asynchronous copies.
    pub async_copies: ByWidth,
    /// Atomics on global memory, warp-level.
    pub global_atomics: u64,
    /// Atomics on shared memory, warp-level.
    pub shared_atomics: u64,
    /// Global memory read, once each; over launches, the sum.
    pub unique_read: Unique,
    /// Global memory written, once each; over launches, the sum.
    pub unique_written: Unique,
    /// Loads of shared memory.
    pub shared_loads: Wavefronts,
    /// Stores to shared memory.
    pub shared_stores: Wavefronts,
    /// Asynchronous copies' stores to shared memory.
    pub shared_copies: Wavefronts,
    /// Completed barriers.
    pub barriers: u64,
    /// Shared accesses by line of the text, where `PTX_MACHINE_SITES` asks.
    pub sites: BTreeMap<u32, Wavefronts>,
    /// Lines of the text that were executed, where [`Setup::coverage`](crate::exec::Setup::coverage) asks; not in the JSON.
    pub executed: BTreeSet<u32>,
}

impl Traffic {
    /// Adds another's counts.
    pub fn add(&mut self, other: &Self) {
        self.requests += other.requests;
        self.lanes += other.lanes;
        self.bytes += other.bytes;
        self.sectors += other.sectors;
    }
    fn json(&self) -> Value {
        json!({ "requests": self.requests, "lanes": self.lanes, "bytes": self.bytes, "sectors": self.sectors })
    }
}

impl Wavefronts {
    /// Adds another's counts.
    pub fn add(&mut self, other: &Self) {
        self.requests += other.requests;
        self.wavefronts += other.wavefronts;
        self.ideal += other.ideal;
    }
    fn json(&self) -> Value {
        json!({ "requests": self.requests, "wavefronts": self.wavefronts, "ideal": self.ideal })
    }
}

impl Unique {
    fn add(&mut self, other: &Self) {
        self.bytes += other.bytes;
        self.sectors += other.sectors;
    }
    fn json(&self) -> Value {
        json!({ "bytes": self.bytes, "sectors": self.sectors })
    }
}

impl Counters {
    /// Adds another's counts.
    pub fn add(&mut self, other: &Self) {
        self.launches += other.launches;
        for (name, count) in &other.instructions {
            *self.instructions.entry(name.clone()).or_default() += count;
        }
        self.warp_instructions += other.warp_instructions;
        self.mma_issued += other.mma_issued;
        self.mma_useful += other.mma_useful;
        for (into, from) in [
            (&mut self.global_loads, &other.global_loads),
            (&mut self.global_stores, &other.global_stores),
            (&mut self.async_copies, &other.async_copies),
        ] {
            into.iter_mut().zip(from).for_each(|(into, from)| into.add(from));
        }
        self.global_atomics += other.global_atomics;
        self.shared_atomics += other.shared_atomics;
        self.unique_read.add(&other.unique_read);
        self.unique_written.add(&other.unique_written);
        self.shared_loads.add(&other.shared_loads);
        self.shared_stores.add(&other.shared_stores);
        self.shared_copies.add(&other.shared_copies);
        self.barriers += other.barriers;
        for (&line, site) in &other.sites {
            self.sites.entry(line).or_default().add(site);
        }
        self.executed.extend(&other.executed);
    }

    /// Everything, by name; widths and lines that were not used are left out.
    pub fn to_json(&self) -> Value {
        let mut all = json!({
            "launches": self.launches,
            "warp_instructions": self.warp_instructions,
            "instructions": self.instructions,
            "mma_issued": self.mma_issued,
            "mma_useful": self.mma_useful,
            "global_loads": by_width(&self.global_loads),
            "global_stores": by_width(&self.global_stores),
            "async_copies": by_width(&self.async_copies),
            "global_atomics": self.global_atomics,
            "shared_atomics": self.shared_atomics,
            "unique_read": self.unique_read.json(),
            "unique_written": self.unique_written.json(),
            "shared_loads": self.shared_loads.json(),
            "shared_stores": self.shared_stores.json(),
            "shared_copies": self.shared_copies.json(),
            "barriers": self.barriers,
        });
        if !self.sites.is_empty() {
            let sites = self.sites.iter().map(|(line, site)| (line.to_string(), site.json()));
            all["sites"] = Value::Object(sites.collect());
        }
        all
    }
}

fn by_width(widths: &ByWidth) -> Value {
    let mut used = Map::new();
    for (log, traffic) in widths.iter().enumerate().filter(|(_, traffic)| traffic.requests != 0) {
        used.insert((1 << log).to_string(), traffic.json());
    }
    Value::Object(used)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn adds_and_prints() {
        let mut one = Counters { launches: 1, mma_useful: 0.5, ..Counters::default() };
        one.instructions.insert("bar.sync".into(), 2);
        one.global_loads[4] = Traffic { requests: 1, lanes: 32, bytes: 512, sectors: 16 };
        let mut two = one.clone();
        two.add(&one);
        let json = two.to_json();
        assert_eq!(json["launches"], 2);
        assert_eq!(json["instructions"]["bar.sync"], 4);
        assert_eq!(json["global_loads"]["16"]["sectors"], 32);
        assert_eq!(json["mma_useful"], 1.0);
        assert!(json["global_loads"].get("2").is_none());
    }
}
