//! What a run of the harness leaves behind: a dated file of a machine's ceilings and of every case's times, which later
//! runs are compared with and pictures are drawn from.

use crate::report::Work;
use serde::{Deserialize, Serialize};
use std::path::Path;

/// The layout of the file; another number is refused.
pub const FORMAT: u32 = 1;

/// One run on one machine.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// [`FORMAT`].
    pub format: u32,
    /// Day of the run, `YYYY-MM-DD`.
    pub date: String,
    /// The library's version.
    pub version: String,
    /// Where it ran.
    pub machine: Machine,
    /// What its devices can do at most, measured in this run.
    pub ceilings: Vec<Ceiling>,
    /// One a case and series, in the order of the run.
    pub lines: Vec<Line>,
}

/// A machine.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Machine {
    /// Short name in lower case, part of the file's name.
    pub name: String,
    /// The processor's own name.
    pub processor: String,
    /// Threads that the processor runs at once.
    pub threads: usize,
    /// Operating system and architecture.
    pub system: String,
}

/// What a device can do at most.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Ceiling {
    /// The device's name.
    pub device: String,
    /// Element type of the multiply-adds' operands.
    pub element: String,
    /// Additions and multiplications a second, in 10^9, two a multiply-add.
    pub gflop_per_s: f64,
    /// Bytes read from memory far beyond the caches a second, in 10^9.
    pub gb_per_s: f64,
}

impl Ceiling {
    /// The least time of some work: `max(operations / rate, bytes / bandwidth)`.
    pub fn floor(&self, work: &Work) -> Floor {
        let operations_us = work.flops / self.gflop_per_s / 1e3;
        let bytes_us = work.bytes / self.gb_per_s / 1e3;
        Floor { operations_us, bytes_us }
    }
}

/// Both terms of the least time.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Floor {
    /// Operations over the rate, in microseconds.
    pub operations_us: f64,
    /// Bytes over the bandwidth, in microseconds.
    pub bytes_us: f64,
}

impl Floor {
    /// The larger of the two.
    pub fn us(&self) -> f64 {
        self.operations_us.max(self.bytes_us)
    }
}

/// The times of one case by one series.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Line {
    /// The case's label, with its device.
    pub case: String,
    /// The device's name.
    pub device: String,
    /// Who ran it: `molora`, or a contender and its variant, as `torch/loop`.
    pub series: String,
    /// Median time of a call in microseconds.
    pub latency_us_median: f64,
    /// Lower and upper quartile in microseconds.
    pub latency_us_quartiles: [f64; 2],
    /// Samples behind them.
    pub samples: usize,
    /// `wall`, `processor`, `timestamps` or, of CUDA, `events`.
    pub clock: String,
    /// What the case must do at least.
    pub work: Work,
    /// The least time by the ceilings of the same run; none where none was measured.
    pub floor: Option<Floor>,
    /// Times of other series, alternating with this one, over this series' time.
    pub ratios: Vec<Ratio>,
    /// Relative L2 error of the worst row against the definition, where it was judged so.
    pub error: Option<f64>,
}

impl Line {
    /// Floor over median: 1 is the limit.
    pub fn limit_share(&self) -> Option<f64> {
        self.floor.map(|floor| floor.us() / self.latency_us_median)
    }
}

/// How many times as long another series took: the median of alternating pairs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Ratio {
    /// The other series: `base` (the base product alone), `definition`, or a contender's.
    pub to: String,
    /// Its time over this line's.
    pub ratio: f64,
    /// The median's 95 % interval, where there were pairs enough.
    pub interval: Option<[f64; 2]>,
    /// Pairs.
    pub pairs: usize,
}

impl Record {
    /// Reads a file; the error names it.
    pub fn read(path: &Path) -> Result<Self, String> {
        let name = path.display();
        let text = std::fs::read_to_string(path).map_err(|why| format!("{name}: {why}"))?;
        let record: Self = serde_json::from_str(&text).map_err(|why| format!("{name}: {why}"))?;
        match record.format {
            FORMAT => Ok(record),
            other => Err(format!("{name}: expected a record of format {FORMAT}, got format {other}")),
        }
    }

    /// Writes a file, whole or not at all.
    pub fn write(&self, path: &Path) -> Result<(), String> {
        let text = serde_json::to_string_pretty(self).map_err(|why| format!("{}: {why}", path.display()))?;
        let part = path.with_added_extension("new");
        let written = std::fs::write(&part, text + "\n").and_then(|()| std::fs::rename(&part, path));
        written.map_err(|why| format!("{}: {why}", path.display()))
    }

    /// The ceiling of a device for operands of an element type.
    pub fn ceiling(&self, device: &str, element: &str) -> Option<&Ceiling> {
        self.ceilings.iter().find(|ceiling| ceiling.device == device && ceiling.element == element)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_floor_is_the_larger_term() {
        let ceiling =
            Ceiling { device: "cpu".into(), element: "f32".into(), gflop_per_s: 100.0, gb_per_s: 10.0 };
        let floor = ceiling.floor(&Work { flops: 1e9, bytes: 1e7 });
        assert_eq!((floor.operations_us, floor.bytes_us, floor.us()), (1e4, 1e3, 1e4));
        assert_eq!(ceiling.floor(&Work { flops: 1e6, bytes: 1e7 }).us(), 1e3);
    }
}
