//! What a device can do at most, measured here and now: multiply-adds a second from registers, for every element type, and
//! bytes a second read from memory far beyond the caches. Every time is judged by these: `floor = max(operations / rate,
//! bytes / bandwidth)`.

pub(crate) mod cpu;
#[cfg(feature = "cuda")]
pub(crate) mod cuda;
#[cfg(feature = "wgpu")]
pub(crate) mod wgpu;

use crate::record::Ceiling;
use crate::subject::Subject;
use molora::element::ElementType;
use molora::error::Result;

pub use cpu::CpuMeter;
#[cfg(feature = "cuda")]
pub use cuda::CudaMeter;
#[cfg(feature = "wgpu")]
pub use wgpu::WgpuMeter;

/// Rounds of a measurement that nothing was measured before.
pub const ROUNDS: usize = 6;

/// Measures a device's ceilings again and again; other work on the machine can only lower them, so the best round counts.
pub trait Meter {
    /// One more round, some hundredths of a second.
    fn round(&mut self) -> Result<()>;

    /// The best so far.
    fn best(&self) -> Best;
}

/// Rates of all of a device together.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Best {
    /// Additions and multiplications a second, two a multiply-add, of operands of every type in [`ElementType::ALL`].
    pub flops: [f64; ElementType::ALL.len()],
    /// Bytes read from memory a second.
    pub bytes: f64,
}

impl Best {
    /// The better of both, figure by figure.
    pub fn better(self, other: Self) -> Self {
        let mut best = Self { bytes: self.bytes.max(other.bytes), ..self };
        best.flops.iter_mut().zip(other.flops).for_each(|(a, b)| *a = a.max(b));
        best
    }

    /// As ceilings of a device, one an element type.
    pub fn ceilings(&self, device: &str) -> Vec<Ceiling> {
        let one = |(element, flops): (ElementType, f64)| Ceiling {
            device: device.to_string(),
            element: element.name().to_string(),
            gflop_per_s: flops / 1e9,
            gb_per_s: self.bytes / 1e9,
        };
        ElementType::ALL.into_iter().zip(self.flops).map(one).collect()
    }
}

/// A device's ceilings, one an element type; none of a stand-in, whose times mean nothing.
pub fn ceilings(subject: &dyn Subject) -> Result<Vec<Ceiling>> {
    let Some(mut meter) = subject.meter()? else { return Ok(Vec::new()) };
    (0..ROUNDS).try_for_each(|_| meter.round())?;
    Ok(meter.best().ceilings(&subject.name()))
}

/// Keeps the better figures of two measurements of the same devices.
pub fn merge(known: &mut Vec<Ceiling>, new: Vec<Ceiling>) {
    for ceiling in new {
        match known.iter_mut().find(|k| (&k.device, &k.element) == (&ceiling.device, &ceiling.element)) {
            Some(known) => {
                known.gflop_per_s = known.gflop_per_s.max(ceiling.gflop_per_s);
                known.gb_per_s = known.gb_per_s.max(ceiling.gb_per_s);
            }
            None => known.push(ceiling),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn better_figures_are_kept_one_by_one() {
        let a = Best { flops: [1e9, 2e9, 3e9], bytes: 4e9 };
        let b = Best { flops: [2e9, 1e9, 3e9], bytes: 1e9 };
        assert_eq!(a.better(b), Best { flops: [2e9, 2e9, 3e9], bytes: 4e9 });
        let mut known = a.ceilings("x");
        merge(&mut known, b.ceilings("x"));
        merge(&mut known, b.ceilings("y"));
        assert_eq!(known[..3], a.better(b).ceilings("x"));
        assert_eq!(known[3..], b.ceilings("y"));
        assert_eq!(known[1].element, ElementType::ALL[1].name());
    }
}
