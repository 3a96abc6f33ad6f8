//! This machine: its name in records, its memory and caches, and the day.

use crate::record::Machine;
use std::path::Path;
use sysinfo::{CpuRefreshKind, MemoryRefreshKind, RefreshKind, System};

/// Bytes that a last-level cache is taken to have where the system does not tell.
const UNKNOWN_CACHE: u64 = 64 << 20;

/// Likewise of memory.
const UNKNOWN_MEMORY: u64 = 2 << 30;

impl Machine {
    /// The machine that this runs on.
    pub fn here() -> Self {
        let cpus = RefreshKind::nothing().with_cpu(CpuRefreshKind::nothing());
        let system = System::new_with_specifics(cpus).ok();
        let brand = system.as_ref().and_then(|s| Some(s.cpus().first()?.brand().trim().to_string()));
        let processor = brand.filter(|brand| !brand.is_empty()).unwrap_or_else(|| "unknown".into());
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let name = format!("{}-{threads}", slug(&processor));
        let system = format!("{} {}", std::env::consts::OS, std::env::consts::ARCH);
        Self { name, processor, threads, system }
    }
}

/// Lower-case letters and digits with single dashes between, as part of a file's name.
fn slug(text: &str) -> String {
    let plain = text.to_lowercase().replace("(r)", "").replace("(tm)", "").replace("processor", "");
    let words = plain.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty());
    words.take(6).collect::<Vec<_>>().join("-")
}

/// Bytes of memory that programs may still take.
pub fn memory_available() -> u64 {
    let memory = MemoryRefreshKind::nothing().with_ram();
    let system = System::new_with_specifics(RefreshKind::nothing().with_memory(memory));
    // Some systems tell only what is free.
    system.map_or(UNKNOWN_MEMORY, |system| system.available_memory().max(system.free_memory()))
}

/// Bytes of the largest cache.
pub fn last_level_cache() -> u64 {
    let caches = Path::new("/sys/devices/system/cpu/cpu0/cache");
    let size = |entry: std::fs::DirEntry| {
        let text = std::fs::read_to_string(entry.path().join("size")).ok()?;
        let (number, unit) = text.trim().split_at(text.trim().len().checked_sub(1)?);
        let unit = match unit {
            "K" => 1 << 10,
            "M" => 1 << 20,
            _ => return None,
        };
        Some(number.parse::<u64>().ok()? * unit)
    };
    let entries = std::fs::read_dir(caches).into_iter().flatten().flatten();
    entries.filter_map(size).max().unwrap_or(UNKNOWN_CACHE)
}

/// The day, `YYYY-MM-DD` of universal time.
pub fn today() -> String {
    jiff::Timestamp::now().strftime("%Y-%m-%d").to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_has_a_name_for_files() {
        assert_eq!(slug("Intel(R) Xeon(R) Processor @ 2.70GHz"), "intel-xeon-2-70ghz");
        assert_eq!(slug("AMD Ryzen 9 7950X 16-Core Processor"), "amd-ryzen-9-7950x-16-core");
        let here = Machine::here();
        assert!(here.threads > 0 && !here.name.contains(['/', ' ']), "{here:?}");
        assert_eq!(here, Machine::here());
    }

    #[test]
    fn memory_and_the_day_are_plausible() {
        assert!(memory_available() > 1 << 26 && last_level_cache() >= 1 << 18);
        let day = today();
        assert!(day.len() == 10 && day.as_bytes()[4] == b'-' && day.as_str() > "2025-01-01", "{day}");
    }
}
