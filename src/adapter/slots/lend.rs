//! Rows lent out: what a store does with a pool's books while batches run.
//!
//! A store books rows in two steps, so that the factors are copied with no lock held: [`Slots::reserve`] takes the rows,
//! the device's pool fills them, [`Slots::publish`] makes the slot known. Who reads them does it through a view
//! ([`Slots::view`]): books of the same pool that know the lent adapters alone.

use super::{OP, Put, Slot, Slots};
use crate::adapter::Lora;
use crate::error::{Error, Result};
use std::any::Any;
use std::sync::Arc;

/// The right to an adapter's rows of one pool. There is one for each slot, and it cannot be copied: who has it alone may
/// write the rows, who shares it may read them.
#[derive(Debug)]
pub struct Rows {
    pool: u64,
    id: usize,
    slot: Slot,
    parts: Vec<Slot>,
}

impl Rows {
    /// Refuses the memory of a pool of another number.
    pub(crate) fn check_pool(&self, pool: u64) -> Result<()> {
        if self.pool == pool {
            return Ok(());
        }
        Err(Error::argument(OP, "rows", "rows of this pool", "another's"))
    }

    /// The slot's id.
    pub(crate) fn id(&self) -> usize {
        self.id
    }

    /// Where the rows are.
    pub(crate) fn slot(&self) -> Slot {
        self.slot
    }
}

/// What a view's readers keep from being written: the owners of its rows.
pub(super) type Held = Vec<Arc<dyn Any + Send + Sync>>;

impl Slots {
    /// Takes an empty slot and rows for an adapter that nobody is to see yet: the device's table is not told.
    pub(crate) fn reserve(&mut self, id: usize, loras: &[Option<&Lora>]) -> Result<Rows> {
        let _: Put = self.put(id, loras)?;
        Ok(self.rows_of(id))
    }

    /// The slot is filled: from now on it is one that plans may name.
    pub(crate) fn publish(&mut self, rows: &mut Rows) -> Result<()> {
        self.check_rows(rows)?;
        let epoch = self.tick()?;
        self.slots[rows.id].added_at = epoch;
        (0..self.slices.len()).for_each(|s| self.parts[s * self.sizes.experts + rows.id].added_at = epoch);
        *rows = self.rows_of(rows.id);
        Ok(())
    }

    /// Takes the rows back; they are free again.
    pub(crate) fn give_back(&mut self, rows: Rows) -> Result<()> {
        self.check_rows(&rows)?;
        self.evict(rows.id)
    }

    /// Books of the same pool that know the rows of these owners alone, and keep them from being written: of each adapter
    /// `rows_of` says which are its rows of this pool. Nothing can be put into a view.
    pub(crate) fn view<H: Any + Send + Sync>(
        &self,
        owners: &[Arc<H>],
        rows_of: impl Fn(&H) -> Option<&Rows>,
    ) -> Result<Self> {
        let experts = self.sizes.experts;
        let (mut slots, mut parts) =
            (vec![Slot::default(); experts], vec![Slot::default(); self.parts.len()]);
        let (mut held, mut epoch) = (Held::new(), 0);
        for owner in owners {
            let Some(rows) = rows_of(owner) else { continue };
            self.check_rows(rows)?;
            slots[rows.id] = rows.slot;
            rows.parts.iter().enumerate().for_each(|(s, part)| parts[s * experts + rows.id] = *part);
            held.push(owner.clone());
            epoch = epoch.max(rows.slot.added_at);
        }
        let (slices, free) = (self.slices.clone(), Default::default());
        Ok(Self { id: self.id, sizes: self.sizes, slices, slots, parts, free, epoch, held: Some(held) })
    }

    /// Whether these are a view's books, beside which others write rows of the same pool.
    pub fn is_view(&self) -> bool {
        self.held.is_some()
    }

    /// Refuses books that are no view of the pool of this number: of one pool there is one set of other books.
    pub(crate) fn check_view_of(&self, pool: u64) -> Result<()> {
        if self.is_view() && self.id == pool {
            return Ok(());
        }
        Err(Error::argument(OP, "slots", "a view of this pool's books", "other books"))
    }

    /// Refuses a view where all rows of the pool are read, or written.
    pub(crate) fn check_not_view(&self, op: &'static str) -> Result<()> {
        if self.is_view() {
            return Err(Error::argument(op, "pool", "a pool that is not a store's", "what a store lent out"));
        }
        Ok(())
    }

    /// The longest run of free rows.
    pub fn largest_run(&self) -> usize {
        self.free.values().max().copied().unwrap_or(0)
    }

    fn rows_of(&self, id: usize) -> Rows {
        let parts = (0..self.slices.len()).map(|s| self.parts(s)[id]).collect();
        Rows { pool: self.id, id, slot: self.slots[id], parts }
    }

    fn check_rows(&self, rows: &Rows) -> Result<()> {
        rows.check_pool(self.id)
    }
}

#[cfg(test)]
mod tests {
    use super::super::PoolSizes;
    use super::*;
    use crate::element::ElementType;

    fn lora(rank: usize) -> Lora {
        Lora::new(3, 5, rank, 0.5, &vec![1f32; rank * 3], &vec![1f32; rank * 5]).unwrap()
    }

    fn slots() -> Slots {
        let element = ElementType::F32;
        let sizes = PoolSizes { in_features: 3, out_features: 5, experts: 4, rank_capacity: 10, element };
        Slots::new(sizes).unwrap()
    }

    #[test]
    fn a_view_knows_what_was_lent_and_nothing_else() {
        let mut books = slots();
        let mut rows = [(0, 2), (1, 3), (2, 4)].map(|(id, rank)| {
            let lora = lora(rank);
            books.reserve(id, &[Some(&lora)]).unwrap()
        });
        rows.iter_mut().for_each(|rows| books.publish(rows).unwrap());
        let [first, second, third] = rows.map(Arc::new);
        let view = books.view(&[third.clone(), first.clone()], |rows| Some(rows)).unwrap();
        let ranks: Vec<u32> = view.slots().iter().map(|slot| slot.rank).collect();
        assert_eq!((ranks, view.max_rank(), view.id()), (vec![2, 0, 4, 0], 4, books.id()));
        assert_eq!((view.slots()[2], view.parts(0)[2]), (books.slots()[2], books.slots()[2]));
        assert_eq!((view.epoch(), view.used_rows()), (books.slots()[2].added_at, 10), "any row may be taken");
        // The view keeps its rows, and no others.
        drop(first);
        assert_eq!((Arc::strong_count(&third), Arc::strong_count(&second)), (2, 1));
        books.give_back(Arc::into_inner(second).unwrap()).unwrap();
        assert_eq!((books.largest_run(), books.free_ranks()), (3, 4));
        assert!(view.is_view() && !books.is_view());
    }

    #[test]
    fn nothing_is_put_into_a_view_and_rows_are_of_one_pool() {
        let (mut books, mut other) = (slots(), slots());
        let mut view = books.view::<Rows>(&[], |rows| Some(rows)).unwrap();
        let error = view.insert(0, 1, 1.0).unwrap_err().to_string();
        assert_eq!(error, "pool: pool: expected a pool that is not a store's, got what a store lent out");
        let lora = lora(2);
        let mut rows = books.reserve(3, &[Some(&lora)]).unwrap();
        let before = rows.slot().added_at;
        assert!(other.publish(&mut rows).is_err());
        books.publish(&mut rows).unwrap();
        assert!(rows.slot().added_at > before, "not known to plans of the time before it was filled");
        assert!(other.give_back(rows).is_err());
        assert!(books.view(&[Arc::new(())], |_| None).unwrap().slots().iter().all(|slot| slot.rank == 0));
    }
}
