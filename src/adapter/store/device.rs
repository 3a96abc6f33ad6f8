//! What a store needs of a device's pool.

use crate::adapter::Lora;
use crate::adapter::slots::{Rows, Slots};
use crate::error::Result;

/// A pool that a [`Store`](super::Store) can serve, as those of the three devices are: books and memory can be taken apart, so
/// that views share the memory and the books stay with the store. A name for bounds; there is nothing in it for engines.
pub trait DevicePool: Sized {
    /// The pool's memory; clones are of the same memory.
    #[doc(hidden)]
    type Factors: Clone + Send + Sync;

    /// Its books.
    #[doc(hidden)]
    fn slots(&self) -> &Slots;

    /// Books and memory.
    #[doc(hidden)]
    fn take_apart(self) -> (Slots, Self::Factors);

    /// A pool for readers, of this memory and a view of its books; refuses other books.
    #[doc(hidden)]
    fn view(factors: &Self::Factors, slots: Slots) -> Result<Self>;

    /// Refuses changes where none can be made now.
    #[doc(hidden)]
    fn check(factors: &Self::Factors) -> Result<()>;

    /// Copies an adapter's LoRAs to its rows; on a GPU in the order of its queue or stream, behind what was submitted.
    #[doc(hidden)]
    fn fill(factors: &Self::Factors, rows: &mut Rows, loras: &[&Lora]) -> Result<()>;

    /// Tells the device what a slot holds now, likewise in order.
    #[doc(hidden)]
    fn tell(factors: &Self::Factors, slots: &Slots, slot: usize) -> Result<()>;

    /// Bytes that a rank takes, with the padding of its rows.
    #[doc(hidden)]
    fn row_bytes(slots: &Slots) -> usize;
}
