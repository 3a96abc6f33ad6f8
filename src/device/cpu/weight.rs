//! A frozen weight on the CPU, packed once when it is loaded.

use super::Cpu;
use crate::element::Element;
use crate::error::{Error, Result};

/// A frozen weight `[out_features, in_features]` in the layout of the CPU's kernels. The engine's own copy may be dropped.
#[derive(Debug, Clone)]
pub struct Weight<X> {
    out_features: usize,
    in_features: usize,
    rows: Vec<X>,
}

impl Cpu {
    /// Packs `weight [out_features, in_features]`, row by row, for this CPU.
    pub fn pack<X: Element>(
        &self,
        out_features: usize,
        in_features: usize,
        weight: &[X],
    ) -> Result<Weight<X>> {
        let expected = out_features.checked_mul(in_features).ok_or_else(|| {
            let got = format!("{out_features} * {in_features}");
            Error::argument("pack", "out_features * in_features", "a size that fits memory", got)
        })?;
        crate::ops::check_len("pack", "weight", expected, weight.len())?;
        Ok(Weight { out_features, in_features, rows: weight.to_vec() })
    }
}

impl<X> Weight<X> {
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
        self.rows.len()
    }

    /// Refuses a weight of other sizes.
    pub(crate) fn check(&self, op: &'static str, out_features: usize, in_features: usize) -> Result<()> {
        crate::ops::check_equal(op, "weight.out_features", out_features, self.out_features)?;
        crate::ops::check_equal(op, "weight.in_features", in_features, self.in_features)
    }

    /// Row o.
    pub(crate) fn row(&self, o: usize) -> &[X] {
        &self.rows[o * self.in_features..][..self.in_features]
    }
}
