//! What other processes take of the machine meanwhile, where the system tells (Linux).

use std::time::Instant;

/// The system counts in hundredths of a second.
const TICK: f64 = 0.01;

/// A moment.
pub struct Mark {
    all: f64,
    own: f64,
    at: Instant,
}

/// Now: the time of all processes, and of these.
pub fn mark(processes: &[u32]) -> Mark {
    Mark { all: all(), own: processes.iter().map(|&id| of(id)).sum(), at: Instant::now() }
}

/// The share of the machine that others took between two moments, 0 to 1. Both counts may be a tick off.
pub fn foreign(before: &Mark, after: &Mark) -> f64 {
    let processors = std::thread::available_parallelism().map_or(1, |n| n.get()) as f64;
    let passed = (after.at - before.at).as_secs_f64() * processors;
    let foreign = (after.all - before.all) - (after.own - before.own) - 2.0 * TICK;
    (foreign / passed.max(1e-9)).clamp(0.0, 1.0)
}

fn all() -> f64 {
    let text = std::fs::read_to_string("/proc/stat").unwrap_or_default();
    let ticks: Vec<f64> =
        text.lines().next().unwrap_or_default().split(' ').filter_map(|n| n.parse().ok()).collect();
    // user nice system idle iowait irq softirq steal ..
    ticks.iter().take(8).enumerate().filter(|(i, _)| *i != 3 && *i != 4).map(|(_, n)| n).sum::<f64>() * TICK
}

fn of(process: u32) -> f64 {
    let text = std::fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
    // The name, in brackets, may hold anything.
    let rest = text.rsplit_once(") ").map_or("", |(_, rest)| rest);
    rest.split(' ').skip(11).take(2).filter_map(|n| n.parse::<f64>().ok()).sum::<f64>() * TICK
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn own_work_is_not_foreign() {
        let own = [std::process::id()];
        let before = mark(&own);
        let mut sum = 0u64;
        while of(own[0]) - before.own < 0.1 {
            (0..1_000_000).for_each(|_| sum = std::hint::black_box(sum.wrapping_mul(3) + 1));
        }
        let after = mark(&own);
        assert!(after.all - before.all >= after.own - before.own - 2.0 * TICK);
        assert!((0.0..=1.0).contains(&foreign(&before, &after)));
    }
}
