//! The pool's books: which slot holds which rows of the factors, and since when.
//!
//! A pool keeps two matrices with one row per rank: A `[rank_capacity, in_features]` and B transposed
//! `[rank_capacity, out_features]`. An adapter of rank r takes r consecutive rows, the same in both, so mixed
//! ranks need no padding. Pure bookkeeping, the same on every device; the device copies the factors.
//!
//! A packed pool serves slices of one output (q, k and v; gate and up): an adapter brings one LoRA for each slice that it
//! changes. Their rows lie behind each other, so that one shrink computes h of all of them; each is a part of its own
//! with its own rank and scaling, whose rows of B are as long as the widest slice.

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
    fn check_lora(&self, out_features: usize, lora: &Lora) -> Result<()> {
        for (name, expected, got) in [
            ("lora.in_features", self.in_features, lora.in_features()),
            ("lora.out_features", out_features, lora.out_features()),
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

/// Most slices of a packed pool: kernels take their ends by value.
pub const MAX_SLICES: usize = 4;

/// The factors in a pool's layout: A `[rank, a_stride]` and B transposed `[rank, b_stride]`, the LoRAs' rows behind each
/// other, zeros behind a row.
pub(crate) fn pack<E: Element>(loras: &[&Lora], a_stride: usize, b_stride: usize) -> (Vec<E>, Vec<E>) {
    let rank: usize = loras.iter().map(|lora| lora.rank()).sum();
    let (mut a, mut b) = (vec![E::zeroed(); rank * a_stride], vec![E::zeroed(); rank * b_stride]);
    let mut row = 0;
    for lora in loras {
        for (i, v) in lora.a().enumerate() {
            a[(row + i / lora.in_features()) * a_stride + i % lora.in_features()] = E::from_f32(v);
        }
        for (i, v) in lora.b().enumerate() {
            b[(row + i % lora.rank()) * b_stride + i / lora.rank()] = E::from_f32(v);
        }
        row += lora.rank();
    }
    (a, b)
}

/// What an adapter takes of a pool: where its rows begin, and its LoRAs in the order of their rows.
pub(crate) type Put<'a> = (Slot, Vec<&'a Lora>);

impl Slots {
    /// Books an adapter into an empty slot: one LoRA for each slice, `None` where it leaves one alone.
    pub(crate) fn put<'a>(&mut self, slot: usize, loras: &[Option<&'a Lora>]) -> Result<Put<'a>> {
        crate::ops::check_equal(OP, "loras", self.slices.len(), loras.len())?;
        for (&width, lora) in self.slices.iter().zip(loras) {
            lora.map_or(Ok(()), |lora| self.sizes.check_lora(width, lora))?;
        }
        let part = |lora: &Option<&Lora>| lora.map_or((0, 0.0), |l| (l.rank(), l.scaling()));
        let at = self.insert_parts(slot, &loras.iter().map(part).collect::<Vec<_>>())?;
        Ok((at, loras.iter().copied().flatten().collect()))
    }
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
    /// Columns of each slice; one, of all columns, where the pool is not packed.
    slices: Vec<usize>,
    slots: Vec<Slot>,
    /// `[slices, experts]`: each slice's part of a slot, rank 0 where the adapter leaves the slice alone.
    parts: Vec<Slot>,
    /// First free row -> free rows from there, never adjacent.
    free: BTreeMap<usize, usize>,
    epoch: u32,
}

impl Slots {
    /// An empty pool.
    pub fn new(sizes: PoolSizes) -> Result<Self> {
        Self::packed(sizes, &[sizes.out_features])
    }

    /// An empty pool whose output is made of slices, which follow each other.
    pub fn packed(sizes: PoolSizes, slices: &[usize]) -> Result<Self> {
        if slices.is_empty() || slices.len() > MAX_SLICES || (slices.len() > 1 && slices.contains(&0)) {
            let expected = format!("1 to {MAX_SLICES} slices of at least 1 column");
            return Err(Error::argument(OP, "slices", expected, format!("{slices:?}")));
        }
        let columns = slices.iter().fold(0usize, |sum, &width| sum.saturating_add(width));
        crate::ops::check_equal(OP, "slices' columns", sizes.out_features, columns)?;
        if sizes.experts > crate::ops::plan::MAX_EXPERTS {
            let most = crate::ops::plan::MAX_EXPERTS;
            return Err(Error::argument(OP, "experts", format!("at most {most}"), sizes.experts));
        }
        for (name, width) in [("in_features", sizes.in_features), ("out_features", sizes.out_features)] {
            if width == 0 {
                return Err(Error::argument(OP, name, "at least 1", 0));
            }
            // Of one rank at least: no size of a row comes near the end of usize, whatever memory there is for.
            let rows = sizes.rank_capacity.max(1);
            let elements = width.checked_next_multiple_of(8).and_then(|w| w.checked_mul(rows));
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
        let (slots, parts) =
            (vec![Slot::default(); sizes.experts], vec![Slot::default(); slices.len() * sizes.experts]);
        Ok(Self { id, sizes, slices: slices.to_vec(), slots, parts, free, epoch: 0 })
    }

    /// Columns of each slice of the output, at least one slice.
    pub fn slices(&self) -> &[usize] {
        &self.slices
    }

    /// Whether the output has more than one slice.
    pub fn is_packed(&self) -> bool {
        self.slices.len() > 1
    }

    /// Refuses a packed pool where only whole rows of y are known.
    pub(crate) fn check_not_packed(&self, op: &'static str) -> Result<()> {
        if self.is_packed() {
            let expected = "a pool of one slice (packed pools: the fused layer)";
            return Err(Error::argument(op, "pool", expected, format!("{} slices", self.slices.len())));
        }
        Ok(())
    }

    /// Columns of the widest slice: what a row of B has.
    pub fn slice_width(&self) -> usize {
        self.slices.iter().copied().max().unwrap_or(0)
    }

    /// A slice's parts, one a slot: `row` and `rank` are this slice's rows of A and B, rank 0 where there are none. Its
    /// ranks of h begin at column `part.row - slot.row`.
    pub fn parts(&self, slice: usize) -> &[Slot] {
        &self.parts[slice * self.sizes.experts..][..self.sizes.experts]
    }

    /// What the devices' kernels read: the slots, behind them the parts of every slice where the pool is packed.
    /// Slice s begins at [`Self::table_slice`].
    #[cfg(any(feature = "wgpu", feature = "cuda"))]
    pub(crate) fn table_len(&self) -> usize {
        if self.is_packed() { self.slots.len() + self.parts.len() } else { self.slots.len() }
    }

    /// First entry of a slice's parts in the table: the slots themselves where the pool is not packed.
    #[cfg(any(feature = "wgpu", feature = "cuda"))]
    pub(crate) fn table_slice(&self, slice: usize) -> usize {
        if self.is_packed() { (1 + slice) * self.slots.len() } else { 0 }
    }

    /// The table's entries of one slot: where, and what.
    #[cfg(any(feature = "wgpu", feature = "cuda"))]
    pub(crate) fn table_entries(&self, slot: usize) -> impl Iterator<Item = (usize, Slot)> + '_ {
        let parts = if self.is_packed() { self.slices.len() } else { 0 };
        let part = move |s: usize| (self.table_slice(s) + slot, self.parts(s)[slot]);
        std::iter::once((slot, self.slots[slot])).chain((0..parts).map(part))
    }

    /// Rows up to the last that an adapter holds.
    pub fn used_rows(&self) -> usize {
        self.slots.iter().map(|s| s.row as usize + s.rank as usize).max().unwrap_or(0)
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

    /// Gives an empty slot of a pool that is not packed `rank` rows, first fit.
    pub fn insert(&mut self, slot: usize, rank: usize, scaling: f32) -> Result<Slot> {
        self.insert_parts(slot, &[(rank, scaling)])
    }

    /// Gives an empty slot rows for the `(rank, scaling)` of every slice, first fit; rank 0 leaves a slice alone.
    ///
    /// The slot's own scaling is that of its first part with a rank, which only an unpacked pool's kernels read.
    pub fn insert_parts(&mut self, slot: usize, parts: &[(usize, f32)]) -> Result<Slot> {
        self.check_slot(slot)?;
        crate::ops::check_equal(OP, "slices", self.slices.len(), parts.len())?;
        let rank = parts.iter().fold(0usize, |sum, part| sum.saturating_add(part.0));
        let scaling = parts.iter().find(|part| part.0 > 0).map_or(0.0, |part| part.1);
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
        let mut first = row as u32;
        for (s, &(rank, scaling)) in parts.iter().enumerate() {
            let part = Slot { row: first, rank: rank as u32, scaling, added_at: epoch };
            self.parts[s * self.sizes.experts + slot] = part;
            first += rank as u32;
        }
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
        (0..self.slices.len()).for_each(|s| self.parts[s * self.sizes.experts + slot] = Slot::default());
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
    fn a_packed_slot_has_a_part_for_every_slice() {
        let element = ElementType::F32;
        let sizes = PoolSizes { in_features: 3, out_features: 9, experts: 2, rank_capacity: 10, element };
        let mut pool = Slots::packed(sizes, &[4, 2, 3]).unwrap();
        assert!(Slots::packed(sizes, &[4, 2]).unwrap_err().to_string().contains("expected 9, got 6"));
        pool.insert_parts(1, &[(2, 1.0), (0, 0.0), (3, 0.5)]).unwrap();
        let part = |s: usize| (pool.parts(s)[1].row, pool.parts(s)[1].rank, pool.parts(s)[1].scaling);
        assert_eq!((part(0), part(1).1, part(2)), ((0, 2, 1.0), 0, (2, 3, 0.5)));
        assert_eq!((pool.slots()[1].rank, pool.slice_width()), (5, 4));
        #[cfg(any(feature = "wgpu", feature = "cuda"))]
        assert_eq!(
            (pool.table_len(), pool.table_entries(1).map(|(at, _)| at).collect::<Vec<_>>()),
            (8, vec![1, 3, 5, 7])
        );
        assert!(pool.insert_parts(0, &[(0, 0.0); 3]).is_err(), "an adapter changes something");
        pool.evict(1).unwrap();
        assert_eq!((pool.parts(2)[1].rank, pool.free_ranks(), pool.used_rows()), (0, 10, 0));
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
