//! Clocks, medians, their intervals and the spread around them.

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
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Median {
    /// Lower end.
    pub low: f64,
    /// The median.
    pub middle: f64,
    /// Upper end.
    pub high: f64,
}

/// Values of which an interval is worth telling.
pub const ENOUGH: usize = 30;

/// The median and its interval.
///
/// # Panics
/// Without a value.
pub fn median(values: impl IntoIterator<Item = f64>) -> Median {
    let sorted = sorted(values);
    let n = sorted.len();
    let half = 0.98 * (n as f64).sqrt();
    let at = |i: f64| sorted[(i.max(0.0) as usize).min(n - 1)];
    Median {
        low: at(n as f64 / 2.0 - half),
        middle: at(n as f64 / 2.0),
        high: at((n as f64 / 2.0 + half).ceil()),
    }
}

/// Lower and upper quartile.
///
/// # Panics
/// Without a value.
pub fn quartiles(values: impl IntoIterator<Item = f64>) -> [f64; 2] {
    let sorted = sorted(values);
    [1, 3].map(|quarter| sorted[(sorted.len() - 1) * quarter / 4])
}

fn sorted(values: impl IntoIterator<Item = f64>) -> Vec<f64> {
    let mut sorted: Vec<f64> = values.into_iter().collect();
    assert!(!sorted.is_empty(), "a median needs a value");
    sorted.sort_by(f64::total_cmp);
    sorted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_and_quartiles_are_those_of_the_order() {
        let values = || (0..41).rev().map(f64::from);
        assert_eq!(quartiles(values()), [10.0, 30.0]);
        assert_eq!(median(values()), Median { low: 14.0, middle: 20.0, high: 27.0 });
        assert_eq!(median([3.0]), Median { low: 3.0, middle: 3.0, high: 3.0 });
        assert_eq!(quartiles([3.0]), [3.0, 3.0]);
    }

    #[test]
    fn work_takes_time() {
        let mut sum = 0.0;
        let took = time(|| (0..2_000_000).for_each(|i| sum += std::hint::black_box(f64::from(i)).sqrt()));
        assert!(sum > 0.0 && took.wall > 0.0 && took.cpu >= 0.0, "{took:?}");
    }
}
