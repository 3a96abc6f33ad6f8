//! The pool's books: which slot holds which rows of the factors, and since when.
//!
//! A pool keeps two matrices with one row per rank: A `[rank_capacity, in_features]` and B transposed
//! `[rank_capacity, out_features]`. An adapter of rank r takes r consecutive rows, the same in both, so mixed
//! ranks need no padding. Pure bookkeeping, the same on every device; the device copies the factors.

use super::Lora;
use crate::element::{Element, ElementType};
use crate::error::{Error, Result};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

const OP: &str = "pool";

/// What a pool is made for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct PoolSizes {
    /// Columns of every `lora_a`.
    pub in_features: usize,
    /// Rows of every `lora_b`.
    pub out_features: usize,
    /// Slots: ids of a plan are below this.
    pub experts: usize,
    /// Ranks that fit, summed over the adapters in the pool.
    pub rank_capacity: usize,
    /// How the factors are stored.
    pub element: ElementType,
}

impl PoolSizes {
    /// Refuses an adapter of other sizes, or one whose values the pool's element type cannot hold.
    pub(crate) fn check_lora(&self, lora: &Lora) -> Result<()> {
        for (name, expected, got) in [
            ("lora.in_features", self.in_features, lora.in_features()),
            ("lora.out_features", self.out_features, lora.out_features()),
        ] {
            crate::ops::check_equal(OP, name, expected, got)?;
        }
        if self.element != ElementType::F32 && self.element != lora.element() {
            let expected = format!("{} as the pool stores (an f32 pool takes all)", self.element);
            return Err(Error::argument(OP, "lora.element", expected, lora.element()));
        }
        Ok(())
    }
}

/// The factors in a pool's layout: A `[rank, a_stride]` and B transposed `[rank, b_stride]`, zeros behind a row.
pub(crate) fn pack<E: Element>(lora: &Lora, a_stride: usize, b_stride: usize) -> (Vec<E>, Vec<E>) {
    let (mut a, mut b) =
        (vec![E::zeroed(); lora.rank() * a_stride], vec![E::zeroed(); lora.rank() * b_stride]);
    for (i, v) in lora.a().enumerate() {
        a[i / lora.in_features() * a_stride + i % lora.in_features()] = E::from_f32(v);
    }
    for (i, v) in lora.b().enumerate() {
        b[i % lora.rank() * b_stride + i / lora.rank()] = E::from_f32(v);
    }
    (a, b)
}

/// One slot as every device's kernels read it.
#[derive(Debug, Clone, Copy, PartialEq, Default, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct Slot {
    /// First row in A and in B transposed.
    pub row: u32,
    /// Rows; 0 where the slot is empty.
    pub rank: u32,
    /// Factor of B A.
    pub scaling: f32,
    /// The pool's clock when the adapter came; plans made before it meant another one.
    pub added_at: u32,
}

impl Slot {
    /// Whether a plan made at `epoch` may use this slot.
    pub fn is_valid_at(&self, epoch: u32) -> bool {
        self.rank > 0 && self.added_at <= epoch
    }
}

/// Slots, free rows and the clock of one pool.
#[derive(Debug)]
pub struct Slots {
    /// Tells this pool from all others of the process: clocks of different pools cannot be compared.
    id: u64,
    sizes: PoolSizes,
    slots: Vec<Slot>,
    /// First free row -> free rows from there, never adjacent.
    free: BTreeMap<usize, usize>,
    epoch: u32,
}

impl Slots {
    /// An empty pool.
    pub fn new(sizes: PoolSizes) -> Result<Self> {
        if sizes.experts > crate::ops::plan::MAX_EXPERTS {
            let most = crate::ops::plan::MAX_EXPERTS;
            return Err(Error::argument(OP, "experts", format!("at most {most}"), sizes.experts));
        }
        for (name, width) in [("in_features", sizes.in_features), ("out_features", sizes.out_features)] {
            if width == 0 {
                return Err(Error::argument(OP, name, "at least 1", 0));
            }
            let elements = width.checked_next_multiple_of(8).and_then(|w| w.checked_mul(sizes.rank_capacity));
            if elements.is_none_or(|n| n > u32::MAX as usize) {
                let got = format!("{width} * {}", sizes.rank_capacity);
                return Err(Error::argument(
                    OP,
                    format!("{name} * rank_capacity"),
                    "below 2^32 elements",
                    got,
                ));
            }
        }
        let free = (sizes.rank_capacity > 0).then_some((0, sizes.rank_capacity)).into_iter().collect();
        static POOLS: AtomicU64 = AtomicU64::new(1);
        let id = POOLS.fetch_add(1, Ordering::Relaxed);
        Ok(Self { id, sizes, slots: vec![Slot::default(); sizes.experts], free, epoch: 0 })
    }

    /// What the pool was made for.
    pub fn sizes(&self) -> &PoolSizes {
        &self.sizes
    }

    /// All slots, empty ones with rank 0.
    pub fn slots(&self) -> &[Slot] {
        &self.slots
    }

    /// This pool's number, never 0.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Refuses a plan that was made for another pool.
    pub(crate) fn check_plan_pool(&self, op: &'static str, pool: u64) -> Result<()> {
        if pool == self.id {
            Ok(())
        } else {
            Err(Error::argument(op, "plan", "a plan made for this pool", "another's"))
        }
    }

    /// The clock: the number of changes so far.
    pub fn epoch(&self) -> u32 {
        self.epoch
    }

    /// Largest rank in the pool, 0 when empty.
    pub fn max_rank(&self) -> usize {
        self.slots.iter().map(|s| s.rank as usize).max().unwrap_or(0)
    }

    /// Rows that no adapter holds.
    pub fn free_ranks(&self) -> usize {
        self.free.values().sum()
    }

    /// Lowest empty slot.
    pub fn first_empty(&self) -> Result<usize> {
        self.slots.iter().position(|s| s.rank == 0).ok_or_else(|| {
            Error::argument(OP, "slot", "an empty slot", format!("all {} taken", self.slots.len()))
        })
    }

    /// Gives an empty slot `rank` rows, first fit.
    pub fn insert(&mut self, slot: usize, rank: usize, scaling: f32) -> Result<Slot> {
        self.check_slot(slot)?;
        if self.slots[slot].rank != 0 {
            return Err(Error::argument(
                OP,
                format!("slot {slot}"),
                "an empty slot",
                "one that holds an adapter",
            ));
        }
        if rank == 0 {
            return Err(Error::argument(OP, "rank", "at least 1", 0));
        }
        let Some((&row, &rows)) = self.free.iter().find(|&(_, &rows)| rows >= rank) else {
            let largest = self.free.values().max().copied().unwrap_or(0);
            let free = self.free_ranks();
            let got = format!("{free} free ranks, the largest run {largest}");
            return Err(Error::argument(OP, "rank_capacity", format!("{rank} free ranks in a row"), got));
        };
        let epoch = self.tick()?;
        self.free.remove(&row);
        if rows > rank {
            self.free.insert(row + rank, rows - rank);
        }
        self.slots[slot] = Slot { row: row as u32, rank: rank as u32, scaling, added_at: epoch };
        Ok(self.slots[slot])
    }

    /// Empties a slot; plans that name it are refused from now on.
    pub fn evict(&mut self, slot: usize) -> Result<()> {
        self.check_slot(slot)?;
        let Slot { row, rank, .. } = self.slots[slot];
        if rank == 0 {
            return Err(Error::argument(OP, format!("slot {slot}"), "an adapter to evict", "an empty slot"));
        }
        self.tick()?;
        self.slots[slot] = Slot::default();
        let (mut row, mut rows) = (row as usize, rank as usize);
        if let Some((&before, &count)) = self.free.range(..row).next_back()
            && before + count == row
        {
            self.free.remove(&before);
            (row, rows) = (before, count + rows);
        }
        if let Some(after) = self.free.remove(&(row + rows)) {
            rows += after;
        }
        self.free.insert(row, rows);
        Ok(())
    }

    /// Refuses a plan one of whose `live` slots is empty or newer than the plan.
    pub fn check_plan(
        &self,
        op: &'static str,
        epoch: u32,
        mut live: impl Iterator<Item = usize>,
    ) -> Result<()> {
        match live.find(|&slot| !self.slots.get(slot).is_some_and(|s| s.is_valid_at(epoch))) {
            None => Ok(()),
            Some(slot) => Err(Error::Stale { op, slot }),
        }
    }

    fn check_slot(&self, slot: usize) -> Result<()> {
        if slot < self.slots.len() {
            return Ok(());
        }
        Err(Error::argument(OP, "slot", format!("below {}", self.slots.len()), slot))
    }

    fn tick(&mut self) -> Result<u32> {
        self.epoch = self
            .epoch
            .checked_add(1)
            .ok_or_else(|| Error::argument(OP, "epoch", "fewer than 2^32 changes of one pool", "one more"))?;
        Ok(self.epoch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slots(experts: usize, rank_capacity: usize) -> Slots {
        let element = ElementType::F32;
        Slots::new(PoolSizes { in_features: 3, out_features: 5, experts, rank_capacity, element }).unwrap()
    }

    #[test]
    fn rows_are_exact_and_reused() {
        let mut pool = slots(4, 10);
        assert_eq!(pool.insert(0, 3, 1.0).unwrap().row, 0);
        assert_eq!(pool.insert(1, 4, 1.0).unwrap().row, 3);
        assert_eq!(pool.insert(2, 3, 1.0).unwrap().row, 7);
        assert!(pool.insert(3, 1, 1.0).unwrap_err().to_string().contains("0 free ranks"));
        pool.evict(0).unwrap();
        pool.evict(2).unwrap();
        assert!(pool.insert(3, 4, 1.0).unwrap_err().to_string().contains("largest run 3"));
        pool.evict(1).unwrap();
        assert_eq!(pool.insert(3, 10, 1.0).unwrap().row, 0);
        assert_eq!(pool.free_ranks(), 0);
    }

    #[test]
    fn slots_lie_as_the_shaders_read_them() {
        use std::mem::offset_of;
        assert_eq!(size_of::<Slot>(), 16);
        let offsets = [
            offset_of!(Slot, row),
            offset_of!(Slot, rank),
            offset_of!(Slot, scaling),
            offset_of!(Slot, added_at),
        ];
        assert_eq!(offsets, [0, 4, 8, 12]);
    }

    #[test]
    fn a_plan_never_sees_a_later_adapter() {
        let mut pool = slots(2, 8);
        pool.insert(0, 2, 1.0).unwrap();
        let epoch = pool.epoch();
        assert!(pool.check_plan("shrink", epoch, [0].into_iter()).is_ok());
        assert!(pool.check_plan("shrink", epoch, [1].into_iter()).is_err());
        pool.evict(0).unwrap();
        assert_eq!(
            pool.check_plan("shrink", epoch, [0].into_iter()),
            Err(Error::Stale { op: "shrink", slot: 0 })
        );
        pool.insert(0, 2, 1.0).unwrap();
        assert_eq!(
            pool.check_plan("shrink", epoch, [0].into_iter()),
            Err(Error::Stale { op: "shrink", slot: 0 })
        );
        assert!(pool.check_plan("shrink", pool.epoch(), [0].into_iter()).is_ok());
    }
}
