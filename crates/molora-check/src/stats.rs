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

/// The median and its interval: between all values where they are too few for one.
///
/// # Panics
/// Without a value.
pub fn median(values: impl IntoIterator<Item = f64>) -> Median {
    let sorted = Sorted::new(values);
    assert!(!sorted.is_empty(), "a median needs a value");
    let [low, high] = sorted.interval().unwrap_or_else(|| [0.0, 1.0].map(|end| sorted.at(end)));
    Median { low, middle: sorted.median(), high }
}

/// Lower and upper quartile; not numbers without a value.
pub fn quartiles(values: impl IntoIterator<Item = f64>) -> [f64; 2] {
    let sorted = Sorted::new(values);
    [0.25, 0.75].map(|share| sorted.at(share))
}

/// Sorted values.
#[derive(Debug, Clone, Default)]
pub struct Sorted(Vec<f64>);

impl Sorted {
    /// From values in any order.
    pub fn new(values: impl IntoIterator<Item = f64>) -> Self {
        let mut sorted: Vec<f64> = values.into_iter().collect();
        sorted.sort_by(f64::total_cmp);
        Self(sorted)
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The value below which a share of all lies, between two by their distance; not a number where there is none.
    pub fn at(&self, share: f64) -> f64 {
        let Some(last) = self.0.len().checked_sub(1) else { return f64::NAN };
        let place = share * last as f64;
        let (low, high) = (self.0[place.floor() as usize], self.0[place.ceil() as usize]);
        low + (high - low) * place.fract()
    }

    /// The middle.
    pub fn median(&self) -> f64 {
        self.at(0.5)
    }

    /// The median's 95 % interval by order statistics; none below 6 values, whose ends are not that sure.
    pub fn interval(&self) -> Option<[f64; 2]> {
        let n = self.0.len();
        // Ranks r and n + 1 - r hold the median between them but for 2 P(Binomial(n, 1/2) < r).
        let (mut below, mut chance, mut rank) = (0.0, 0.5f64.powi(n as i32), 0);
        while n < 1000 && 2.0 * (below + chance) <= 0.05 {
            below += chance;
            chance *= (n - rank) as f64 / (rank + 1) as f64;
            rank += 1;
        }
        if n >= 1000 {
            rank = (n as f64 / 2.0 - 0.98 * (n as f64).sqrt()) as usize;
        }
        (rank > 0).then(|| [self.0[rank - 1], self.0[n - rank]])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_and_quartiles_are_those_of_the_order() {
        let values = || (0..41).rev().map(f64::from);
        assert_eq!(quartiles(values()), [10.0, 30.0]);
        assert_eq!(median(values()), Median { low: 13.0, middle: 20.0, high: 27.0 });
        assert_eq!(median([3.0]), Median { low: 3.0, middle: 3.0, high: 3.0 });
        assert_eq!(quartiles([3.0]), [3.0, 3.0]);
    }

    #[test]
    fn shares_and_intervals() {
        let sorted = Sorted::new((1..=5).rev().map(f64::from));
        assert_eq!((sorted.at(0.25), sorted.median(), sorted.at(0.75)), (2.0, 3.0, 4.0));
        assert_eq!(Sorted::new([1.0, 2.0]).median(), 1.5);
        assert!(Sorted::new([]).median().is_nan());
        // The tables' ranks: none of 5, 1 of 6, 10 of 30, 40 of 100.
        let ranks = |n: u32| Sorted::new((1..=n).map(f64::from)).interval();
        assert_eq!(ranks(5), None);
        assert_eq!(ranks(6), Some([1.0, 6.0]));
        assert_eq!(ranks(30), Some([10.0, 21.0]));
        assert_eq!(ranks(100), Some([40.0, 61.0]));
        assert_eq!(ranks(2000).map(|ends| ends[0]), Some(956.0));
    }

    #[test]
    fn work_takes_time() {
        let mut sum = 0.0;
        let took = time(|| (0..2_000_000).for_each(|i| sum += std::hint::black_box(f64::from(i)).sqrt()));
        assert!(sum > 0.0 && took.wall > 0.0 && took.cpu >= 0.0, "{took:?}");
    }
}
