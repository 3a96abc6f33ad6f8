//! What the machine can do at most, measured during the contest.

use super::report::DEVICE;
use anyhow::{Context, Result};
use molora_check::ceilings::{CpuMeter, Meter};
use molora_check::record::Ceiling;

/// Rounds before a case and after it.
const ROUNDS: usize = 4;

/// Measures again and again; the best counts.
pub struct Limits(CpuMeter);

impl Limits {
    /// With so many threads.
    pub fn new(threads: usize) -> Self {
        Self(CpuMeter::new(threads))
    }

    /// Some more rounds.
    pub fn measure(&mut self) -> Result<()> {
        Ok((0..ROUNDS).try_for_each(|_| self.0.round())?)
    }

    /// The best so far, f32.
    pub fn ceiling(&self) -> Result<Ceiling> {
        let all = self.0.best().ceilings(DEVICE);
        all.into_iter().find(|ceiling| ceiling.element == "f32").context("the CPU was not measured")
    }
}
