//! One block's shared memory and its threads' synchronisation.

use super::clocks::{Arrival, Clocks};
use super::copies::Copies;
use super::shadow::Strength;
use super::shared::Shared;
use super::{Launch, Order, Scope};
use crate::fault::Trouble;

/// One block's shared memory and synchronisation.
#[derive(Debug)]
pub struct Block {
    /// Its linear index in the grid.
    pub(super) index: u32,
    pub(super) clocks: Clocks,
    pub(super) shared: Shared,
    pub(super) copies: Vec<Copies>,
    barriers: u64,
}

impl Block {
    /// Shared memory of `shared_bytes`, uninitialised, for `threads` threads; `block` is the linear index in the grid.
    pub fn new(block: u32, shared_bytes: u32, threads: u32) -> Self {
        let warps = threads.div_ceil(32).clamp(1, 32) as usize;
        Self {
            index: block,
            clocks: Clocks::new(block, warps),
            shared: Shared::new(shared_bytes as usize),
            copies: std::iter::repeat_with(Copies::default).take(warps).collect(),
            barriers: 0,
        }
    }

    /// A fence.
    pub fn fence(&mut self, launch: &mut Launch, warp: u32, mask: u32, order: Order, scope: Scope) {
        let _ = (launch, mask, order);
        self.clocks.fence(warp, scope);
    }

    /// A warp arrives at a barrier and goes on: it lets others know, and learns nothing itself.
    pub fn arrive(&mut self, warp: u32) -> Arrival {
        self.clocks.arrive(warp)
    }

    /// A barrier among these lanes, warp index and mask, has completed; others only arrived at it.
    pub fn barrier(&mut self, participants: &[(u32, u32)], arrivals: &[Arrival]) {
        self.barriers += 1;
        self.clocks.barrier(participants, arrivals);
    }

    /// `bar.warp.sync` among these lanes. All lanes of the warp count as ordered: a part of a warp that synchronises alone
    /// may hide a race with the rest, it never makes one up.
    pub fn sync_warp(&mut self, warp: u32, mask: u32) {
        let _ = mask;
        self.clocks.sync_warp(warp);
    }

    /// The block has ended: no asynchronous copy may be left.
    pub fn finish(&mut self, launch: &mut Launch) -> Result<(), Trouble> {
        launch.counters.barriers += std::mem::take(&mut self.barriers);
        self.check_copies()
    }
}

/// How an access may meet others.
pub(super) fn strength(order: Order, scope: Scope) -> Strength {
    match (order, scope) {
        (Order::Weak | Order::ReadOnly, _) => Strength::Weak,
        (_, Scope::Block) => Strength::Block,
        (_, Scope::Device) => Strength::Device,
    }
}

/// One lane's value from memory, low bytes first.
#[inline(always)]
pub(super) fn get(data: &[u8], at: usize, bytes: usize) -> [u32; 4] {
    let data = &data[at..at + bytes];
    let word = |at: usize| data[at..].first_chunk().map_or(0, |word| u32::from_le_bytes(*word));
    match bytes {
        1 => [u32::from(data[0]), 0, 0, 0],
        2 => [u32::from(data[0]) | u32::from(data[1]) << 8, 0, 0, 0],
        4 => [word(0), 0, 0, 0],
        8 => [word(0), word(4), 0, 0],
        _ => [word(0), word(4), word(8), word(12)],
    }
}

/// One lane's value to memory.
#[inline(always)]
pub(super) fn put(data: &mut [u8], at: usize, bytes: usize, value: &[u32; 4]) {
    let data = &mut data[at..at + bytes];
    match bytes {
        1 => data[0] = value[0] as u8,
        2 => data.copy_from_slice(&(value[0] as u16).to_le_bytes()),
        _ => {
            for (into, word) in data.chunks_exact_mut(4).zip(value) {
                into.copy_from_slice(&word.to_le_bytes());
            }
        }
    }
}
