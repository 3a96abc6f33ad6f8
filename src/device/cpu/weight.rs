//! A frozen weight on the CPU, packed once when it is loaded.

use super::memory::Lines;
use super::{Cpu, SharedMut};
use crate::element::Element;
use crate::error::{Error, Result};

/// A frozen weight `[out_features, in_features]` in the layout of the CPU's kernels. The engine's own copy may be dropped.
///
/// Panels of as many columns of y as a register tile has, each `[in_features, columns]`, zeros behind the last column: a
/// product reads a panel from its first byte to its last.
#[derive(Debug, Clone)]
pub struct Weight<X> {
    out_features: usize,
    in_features: usize,
    columns: usize,
    panels: Lines<X>,
}

impl Cpu {
    /// Packs `weight [out_features, in_features]`, row by row, for this CPU.
    pub fn pack<X: Element>(
        &self,
        out_features: usize,
        in_features: usize,
        weight: &[X],
    ) -> Result<Weight<X>> {
        let too_large = || {
            let got = format!("{out_features} * {in_features}");
            Error::argument("pack", "out_features * in_features", "a size that fits memory", got)
        };
        let expected = out_features.checked_mul(in_features).ok_or_else(too_large)?;
        crate::ops::check_len("pack", "weight", expected, weight.len())?;
        let columns = self.level.columns();
        let padded = out_features.checked_next_multiple_of(columns).ok_or_else(too_large)?;
        let mut packed = Lines::zeroed(padded * in_features);
        let place = SharedMut::new(&mut packed);
        // Rows of no elements have nothing to pack, however many they are.
        self.each(if in_features == 0 { 0 } else { padded / columns }, |panel| {
            // SAFETY: every panel is one task's.
            let out = unsafe { place.part(panel * columns * in_features, columns * in_features) };
            for (j, row) in
                weight[panel * columns * in_features..].chunks(in_features).take(columns).enumerate()
            {
                out[j..].iter_mut().step_by(columns).zip(row).for_each(|(place, &w)| *place = w);
            }
        });
        Ok(Weight { out_features, in_features, columns, panels: packed })
    }
}

impl<X: Element> Weight<X> {
    /// Rows of the weight, columns of y.
    pub fn out_features(&self) -> usize {
        self.out_features
    }

    /// Columns of the weight and of x.
    pub fn in_features(&self) -> usize {
        self.in_features
    }

    /// Elements of the weight itself.
    pub(crate) fn len(&self) -> usize {
        self.out_features * self.in_features
    }

    /// Refuses a weight of other sizes, or one packed for other vectors.
    pub(crate) fn check(
        &self,
        op: &'static str,
        cpu: &Cpu,
        out_features: usize,
        in_features: usize,
    ) -> Result<()> {
        crate::ops::check_equal(op, "weight.out_features", out_features, self.out_features)?;
        crate::ops::check_equal(op, "weight.in_features", in_features, self.in_features)?;
        crate::ops::check_equal(op, "weight's panels", cpu.level.columns(), self.columns)
    }

    /// Panels.
    pub(crate) fn panels(&self) -> usize {
        self.out_features.div_ceil(self.columns)
    }

    /// One panel, `[in_features, columns]`.
    pub(crate) fn panel(&self, panel: usize) -> &[X] {
        let len = self.columns * self.in_features;
        &self.panels[panel * len..][..len]
    }
}
