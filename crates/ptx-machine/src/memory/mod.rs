//! Allocations, shared memory, and the shadow state that finds faults.
//!
//! The executor talks to memory a warp at a time. [`Device`] outlives launches; [`Launch`] is what the blocks of one launch
//! share; [`Block`] is one block's shared memory and its threads' synchronisation.

mod banks;
mod block;
mod clocks;
mod copies;
mod device;
mod global;
mod launch;
mod shadow;
mod shared;

pub use block::Block;
pub use clocks::Arrival;
pub use device::Device;
pub use launch::Launch;

/// Generic addresses from here on are the block's own shared memory; below are global.
pub const SHARED_WINDOW: u64 = 0x7fff_0000_0000;

/// One access of a warp.
#[derive(Debug, Clone, Copy)]
pub struct Lanes<'a> {
    /// The warp in its block.
    pub warp: u32,
    /// Lanes that take part.
    pub mask: u32,
    /// Each lane's address: global addresses, or offsets in shared memory.
    pub address: &'a [u64; 32],
    /// Bytes of one lane: 1, 2, 4, 8 or 16. Vectors are one access.
    pub bytes: u32,
}

/// What each lane moves, low bytes first.
pub type Values = [[u32; 4]; 32];

/// Ordering of an access or a fence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// Ordinary; races are faults.
    Weak,
    /// `.nc`: ordinary, of memory that nothing in the launch may have written before.
    ReadOnly,
    /// `.relaxed` and `.volatile`: no race with others of this kind, no order.
    Relaxed,
    /// `.acquire`.
    Acquire,
    /// `.release`.
    Release,
    /// `.acq_rel` and `.sc`.
    AcquireRelease,
}

/// Who sees an ordering.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// `.cta`: the block.
    Block,
    /// `.gpu` and wider: the device.
    Device,
}

impl Order {
    /// Whether it meets others without a race.
    const fn is_strong(self) -> bool {
        !matches!(self, Self::Weak | Self::ReadOnly)
    }

    /// Whether what came before is published.
    const fn releases(self) -> bool {
        matches!(self, Self::Release | Self::AcquireRelease)
    }

    /// Whether what was published is taken over.
    const fn acquires(self) -> bool {
        matches!(self, Self::Acquire | Self::AcquireRelease)
    }
}

/// The lanes of a mask, ascending.
fn lanes_of(mask: u32) -> impl Iterator<Item = u32> {
    let mut left = mask;
    std::iter::from_fn(move || {
        let lane = (left != 0).then(|| left.trailing_zeros())?;
        left &= left - 1;
        Some(lane)
    })
}

/// A trouble of one lane at an address.
#[cold]
fn trouble(kind: crate::fault::Kind, lane: u32, address: u64, detail: String) -> crate::fault::Trouble {
    crate::fault::Trouble { kind, lane, address: Some(address), detail }
}
