//! What a store needs of a device's pool.

use crate::adapter::Lora;
use crate::adapter::slots::{Rows, Slots};
use crate::error::Result;

/// A pool that a store can serve: books and memory can be taken apart, so that views share the memory and the books stay with
/// the store.
pub trait DevicePool: Sized {
    /// The pool's memory; clones are of the same memory.
    type Factors: Clone + Send + Sync;

    /// Its books.
    fn slots(&self) -> &Slots;

    /// Books and memory.
    fn take_apart(self) -> (Slots, Self::Factors);

    /// A pool for readers, of this memory and a view of its books.
    fn view(factors: &Self::Factors, slots: Slots) -> Self;

    /// Refuses changes where none can be made now.
    fn check(factors: &Self::Factors) -> Result<()>;

    /// Copies an adapter's LoRAs to its rows; on a GPU in the order of its queue or stream, behind what was submitted.
    fn fill(factors: &Self::Factors, rows: &mut Rows, loras: &[&Lora]) -> Result<()>;

    /// Tells the device what a slot holds now, likewise in order.
    fn tell(factors: &Self::Factors, slots: &Slots, slot: usize) -> Result<()>;

    /// Bytes that a rank takes, with the padding of its rows.
    fn row_bytes(slots: &Slots) -> usize;
}
