//! Samples of a case's time, one call of ours beside one of the base product alone.

use crate::subject::Timer;
use molora::error::Result;
use std::time::Duration;

/// A sample is at least as long: clocks and launches cost something.
const SHORTEST: Duration = Duration::from_micros(300);
/// More samples tell nothing new.
const MOST: usize = 300;
/// Fewer than these are no median.
const LEAST: usize = 5;

/// How long a case may take.
#[derive(Debug, Clone, Copy)]
pub struct Budget {
    /// Time for all samples of a case, about.
    pub time: Duration,
    /// Samples that are taken even where that takes up to four times as long: enough for an interval.
    pub pairs: usize,
    /// A case whose call takes longer is not timed.
    pub longest: Duration,
}

impl Budget {
    /// Seconds of a quick look.
    pub const QUICK: Self =
        Self { time: Duration::from_millis(200), pairs: 9, longest: Duration::from_secs(2) };
    /// As the results are made.
    pub const USUAL: Self =
        Self { time: Duration::from_millis(1000), pairs: 30, longest: Duration::from_secs(5) };

    /// Samples of so long a pair of calls.
    fn samples(&self, pair: Duration) -> usize {
        let fit = |time: Duration| (time.as_secs_f64() / pair.as_secs_f64().max(1e-9)) as usize;
        fit(self.time).max(self.pairs.min(fit(4 * self.time))).clamp(LEAST, MOST)
    }
}

/// Microseconds a call, in the order of the run.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Samples {
    /// The case's.
    pub ours: Vec<f64>,
    /// Those of the base product alone, each beside ours of the same place; none where the case has no base.
    pub base: Vec<f64>,
}

/// Times a case, and the base product alone beside it: which goes first takes turns. None where one call takes too long,
/// with its time.
pub fn sample(
    ours: &mut Timer<'_>,
    mut base: Option<&mut Timer<'_>>,
    budget: &Budget,
) -> Result<std::result::Result<Samples, Duration>> {
    // The first call pays for compilers and for memory that nothing touched before.
    let first = ours(1)?;
    if first > budget.longest * 2 {
        return Ok(Err(first));
    }
    let once = ours(1)?;
    if once > budget.longest {
        return Ok(Err(once));
    }
    let base_once = match &mut base {
        Some(base) => {
            base(1)?;
            base(1)?
        }
        None => Duration::ZERO,
    };
    let [calls, base_calls] = [once, base_once].map(calls_of);
    let mut samples = Samples::default();
    for i in 0..budget.samples(once * calls as u32 + base_once * base_calls as u32) {
        if i % 2 == 0 {
            samples.ours.push(call_us(ours, calls)?);
        }
        if let Some(base) = &mut base {
            samples.base.push(call_us(base, base_calls)?);
        }
        if i % 2 == 1 {
            samples.ours.push(call_us(ours, calls)?);
        }
    }
    Ok(Ok(samples))
}

/// Calls that one sample takes.
pub fn calls_of(once: Duration) -> u64 {
    (SHORTEST.as_secs_f64() / once.as_secs_f64().max(1e-8)).ceil().clamp(1.0, 10_000.0) as u64
}

/// Microseconds of one call of several.
pub fn call_us(timer: &mut Timer<'_>, calls: u64) -> Result<f64> {
    Ok(timer(calls)?.as_secs_f64() * 1e6 / calls as f64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;

    #[test]
    fn pairs_take_turns() {
        let order = RefCell::new(Vec::new());
        let timer = |name: char, us: u64| -> Timer<'_> {
            let order = &order;
            Box::new(move |calls| {
                order.borrow_mut().push(name);
                Ok(Duration::from_micros(us * calls))
            })
        };
        let budget = Budget { time: Duration::from_millis(8), pairs: 0, longest: Duration::from_secs(1) };
        let samples = sample(&mut timer('o', 500), Some(&mut timer('b', 100)), &budget).unwrap().unwrap();
        assert_eq!((samples.ours.len(), samples.base.len()), (10, 10), "10 pairs of 500 + 3 * 100 us");
        assert!(samples.ours.iter().all(|&us| us == 500.0) && samples.base.iter().all(|&us| us == 100.0));
        let order: String = order.into_inner().into_iter().collect();
        assert!(order.starts_with("oobb") && order[4..].starts_with("obbo"), "{order}");
    }

    #[test]
    fn a_long_call_ends_it() {
        let mut timer: Timer<'_> = Box::new(|_| Ok(Duration::from_secs(3)));
        assert_eq!(sample(&mut timer, None, &Budget::QUICK).unwrap(), Err(Duration::from_secs(3)));
        assert_eq!(Budget::USUAL.samples(Duration::from_millis(100)), 30, "within four times the budget");
        assert_eq!(Budget::USUAL.samples(Duration::from_millis(1000)), LEAST);
        assert_eq!(Budget::USUAL.samples(Duration::from_millis(10)), 100);
    }
}
