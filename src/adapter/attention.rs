//! A pool's attention: the rows of K that score an adapter against a token in rank space (RAMoLE).
//!
//! With the router adapter's `B_r [out_features, r_r]` an adapter of rank r has `K = scaling B^T B_r`, `[r, r_r]`: one row of K
//! for each of its rows in the pool. Made once when the adapter comes, in f64, and rounded to f32.

use super::{Lora, slots::Slots};
use crate::error::{Error, Result};
use crate::ops::check_equal;

const OP: &str = "pool";

/// The largest rank of a router adapter: kernels keep a token's query in workgroup memory.
pub const MAX_ROUTER_RANK: usize = 1024;

/// The router adapter's part that adapters are multiplied with.
#[derive(Debug, Clone)]
pub(crate) struct Keys {
    rank: usize,
    /// `[out_features, rank]`.
    b: Vec<f32>,
}

impl Keys {
    /// Refuses a pool that holds adapters, whose rows of K would be missing, or is packed, and a router of other sizes.
    pub(crate) fn new(slots: &Slots, router: &Lora) -> Result<Self> {
        slots.check_not_packed(OP)?;
        let (sizes, rank) = (slots.sizes(), router.rank());
        check_equal(OP, "router.in_features", sizes.in_features, router.in_features())?;
        check_equal(OP, "router.out_features", sizes.out_features, router.out_features())?;
        let held = slots.slots().iter().filter(|s| s.rank > 0).count();
        if held > 0 {
            let expected = "an empty pool, whose adapters come after the router";
            return Err(Error::argument(OP, "pool", expected, format!("{held} adapters")));
        }
        if rank > MAX_ROUTER_RANK {
            let expected = format!("at most {MAX_ROUTER_RANK}");
            return Err(Error::argument(OP, "router.rank", expected, rank));
        }
        let words = rank.saturating_mul(sizes.rank_capacity);
        if words.max(rank.saturating_mul(sizes.in_features)) > u32::MAX as usize {
            let got = format!("{rank} * {} and {rank} * {}", sizes.rank_capacity, sizes.in_features);
            return Err(Error::argument(OP, "router.rank", "factors below 2^32 elements", got));
        }
        Ok(Self { rank, b: router.b().collect() })
    }

    /// Columns of K: rows of the router's A.
    pub(crate) fn rank(&self) -> usize {
        self.rank
    }

    /// `K = scaling B^T B_r`, `[lora.rank, rank]`.
    pub(crate) fn rows(&self, lora: &Lora) -> Result<Vec<f32>> {
        check_equal(OP, "lora.out_features", self.b.len() / self.rank, lora.out_features())?;
        let mut sums = vec![0f64; lora.rank() * self.rank];
        for (i, b) in lora.b().enumerate() {
            let row = &mut sums[i % lora.rank() * self.rank..][..self.rank];
            let router = &self.b[i / lora.rank() * self.rank..][..self.rank];
            row.iter_mut().zip(router).for_each(|(sum, &r)| *sum += f64::from(b) * f64::from(r));
        }
        let scaling = f64::from(lora.scaling());
        let rows: Vec<f32> = sums.into_iter().map(|sum| (scaling * sum) as f32).collect();
        match rows.iter().find(|k| !k.is_finite()) {
            None => Ok(rows),
            Some(k) => Err(Error::argument(OP, "lora", "finite scaling B^T B_r", k)),
        }
    }

    /// The rows of K of what is put into a pool that has attention, which is not packed.
    pub(crate) fn of(attention: Option<&Self>, loras: &[Option<&Lora>]) -> Result<Option<Vec<f32>>> {
        match (attention, loras) {
            (Some(keys), [Some(lora)]) => keys.rows(lora).map(Some),
            _ => Ok(None),
        }
    }
}
