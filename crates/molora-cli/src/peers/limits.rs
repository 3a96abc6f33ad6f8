//! What the machine can do at most, measured during the contest.

// One file for the bench and for this, until the ceilings are in molora-check.
#[path = "../../../../benches/floor/ceilings.rs"]
mod ceilings;

use super::report::DEVICE;
use molora_check::record::Ceiling;

/// Rounds before a case and after it.
const ROUNDS: usize = 4;

/// Measures again and again; the best counts.
pub struct Limits(ceilings::Meter);

impl Limits {
    /// With so many threads.
    pub fn new(threads: usize) -> Self {
        Self(ceilings::Meter::new(threads))
    }

    /// Some more rounds.
    pub fn measure(&mut self) {
        (0..ROUNDS).for_each(|_| self.0.round());
    }

    /// The best so far, f32.
    pub fn ceiling(&self) -> Ceiling {
        let best = self.0.best;
        let (gflop_per_s, gb_per_s) = (best.flops / 1e9, best.bytes / 1e9);
        Ceiling { device: DEVICE.into(), element: "f32".into(), gflop_per_s, gb_per_s }
    }
}
