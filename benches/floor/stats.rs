//! Clocks, medians and their intervals.

use std::time::Instant;

/// What a call took.
#[derive(Debug, Clone, Copy)]
pub struct Time {
    /// Seconds on the wall.
    pub wall: f64,
    /// Seconds of all threads on processors; other programs add nothing to it. 0 where the system does not tell.
    pub cpu: f64,
}

/// Times one call.
pub fn time(call: impl FnOnce()) -> Time {
    let (cpu, start) = (spent(), Instant::now());
    call();
    Time { wall: start.elapsed().as_secs_f64(), cpu: spent() - cpu }
}

fn spent() -> f64 {
    let on_cpu = |task: std::fs::DirEntry| {
        let text = std::fs::read_to_string(task.path().join("schedstat")).ok()?;
        text.split(' ').next()?.parse::<u64>().ok()
    };
    let tasks = std::fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    tasks.filter_map(on_cpu).sum::<u64>() as f64 * 1e-9
}

/// A median and the ends of its 95 % interval, by order statistics.
#[derive(Debug, Clone, Copy)]
pub struct Median {
    pub low: f64,
    pub middle: f64,
    pub high: f64,
}

pub fn median(values: impl IntoIterator<Item = f64>) -> Median {
    let mut sorted: Vec<f64> = values.into_iter().collect();
    sorted.sort_by(f64::total_cmp);
    let n = sorted.len();
    let half = 0.98 * (n as f64).sqrt();
    let at = |i: f64| sorted[(i.max(0.0) as usize).min(n - 1)];
    Median {
        low: at(n as f64 / 2.0 - half),
        middle: at(n as f64 / 2.0),
        high: at((n as f64 / 2.0 + half).ceil()),
    }
}
