//! Allocations, shared memory, and the shadow state that finds faults.
//!
//! The executor talks to memory a warp at a time. [`Device`] outlives launches; [`Launch`] is what the blocks of one launch
//! share; [`Block`] is one block's shared memory and its threads' synchronisation.

use crate::counters::Counters;
use crate::fault::Trouble;

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

/// Global memory: allocations with their contents and which bytes were written.
#[derive(Debug, Default)]
pub struct Device {}

impl Device {
    /// Takes memory, 256-byte aligned, with a gap behind it that belongs to no one; nothing of it is initialised.
    pub fn alloc(&mut self, bytes: u64) -> u64 {
        let _ = bytes;
        todo!()
    }
}

/// What the blocks of one launch share.
#[derive(Debug)]
pub struct Launch<'d> {
    /// The device.
    pub device: &'d mut Device,
    /// What was counted so far.
    pub counters: Counters,
}

/// One block's shared memory and synchronisation.
#[derive(Debug)]
pub struct Block {}

#[expect(unused_variables, reason = "signatures first")]
impl Block {
    /// Shared memory of `shared_bytes`, uninitialised, for `threads` threads; `block` is the linear index in the grid.
    pub fn new(block: u32, shared_bytes: u32, threads: u32) -> Self {
        todo!()
    }
    /// A load of global memory.
    pub fn load_global(
        &mut self,
        launch: &mut Launch,
        lanes: &Lanes,
        order: Order,
        scope: Scope,
        out: &mut Values,
    ) -> Result<(), Trouble> {
        todo!()
    }
    /// A store to global memory.
    pub fn store_global(
        &mut self,
        launch: &mut Launch,
        lanes: &Lanes,
        order: Order,
        scope: Scope,
        values: &Values,
    ) -> Result<(), Trouble> {
        todo!()
    }
    /// A read-modify-write of global memory, lane after lane: `change(lane, old)` gives the new value (low `bytes`), `None` where
    /// nothing is stored; `out` gets the old values. Lanes of one warp that meet at an address are served in ascending order.
    pub fn atomic_global(
        &mut self,
        launch: &mut Launch,
        lanes: &Lanes,
        order: Order,
        scope: Scope,
        change: &mut dyn FnMut(u32, u64) -> Option<u64>,
        out: &mut Values,
    ) -> Result<(), Trouble> {
        todo!()
    }
    /// A load of shared memory. `ldmatrix` comes as one load of 16 bytes for each eight lanes that give row addresses.
    pub fn load_shared(
        &mut self,
        launch: &mut Launch,
        lanes: &Lanes,
        out: &mut Values,
    ) -> Result<(), Trouble> {
        todo!()
    }
    /// A store to shared memory.
    pub fn store_shared(
        &mut self,
        launch: &mut Launch,
        lanes: &Lanes,
        values: &Values,
    ) -> Result<(), Trouble> {
        todo!()
    }
    /// A read-modify-write of shared memory; as [`Self::atomic_global`].
    pub fn atomic_shared(
        &mut self,
        launch: &mut Launch,
        lanes: &Lanes,
        change: &mut dyn FnMut(u32, u64) -> Option<u64>,
        out: &mut Values,
    ) -> Result<(), Trouble> {
        todo!()
    }
    /// `cp.async`: `from.bytes` bytes to shared offset `to[lane]`, of which `source_bytes[lane]` come from `from.address[lane]`
    /// and the rest are zeros.
    pub fn copy_async(
        &mut self,
        launch: &mut Launch,
        to: &[u64; 32],
        from: &Lanes,
        source_bytes: &[u32; 32],
    ) -> Result<(), Trouble> {
        todo!()
    }
    /// `cp.async.commit_group` of these lanes.
    pub fn commit_async(&mut self, warp: u32, mask: u32) {
        todo!()
    }
    /// `cp.async.wait_group keep` of these lanes; `wait_all` is a commit and `keep` 0.
    pub fn wait_async(&mut self, warp: u32, mask: u32, keep: u32) {
        todo!()
    }
    /// A fence.
    pub fn fence(&mut self, launch: &mut Launch, warp: u32, mask: u32, order: Order, scope: Scope) {
        todo!()
    }
    /// A barrier among these lanes, warp index and mask, has completed.
    pub fn barrier(&mut self, participants: &[(u32, u32)]) {
        todo!()
    }
    /// `bar.warp.sync` among these lanes.
    pub fn sync_warp(&mut self, warp: u32, mask: u32) {
        todo!()
    }
}
