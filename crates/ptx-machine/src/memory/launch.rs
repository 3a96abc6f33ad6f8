//! What the blocks of one launch share.

use std::collections::HashMap;

use super::clocks::{Clocks, Known, join};
use super::{Device, Lanes, Order, Scope, banks, lanes_of};
use crate::counters::{Counters, Traffic, Wavefronts};

/// What the blocks of one launch share.
#[derive(Debug)]
pub struct Launch<'d> {
    /// The device.
    pub device: &'d mut Device,
    /// What was counted so far.
    pub counters: Counters,
    /// The line that executes, for counts by line.
    pub line: u32,
    sites: bool,
    published: HashMap<u64, Published>,
}

/// What releases left at one word.
#[derive(Debug, Default)]
struct Published {
    device: Option<Known>,
    /// Of releases at the scope of a block: that block.
    blocks: HashMap<u32, Known>,
}

/// Which of the shared counters an access belongs to.
#[derive(Debug, Clone, Copy)]
pub(super) enum SharedUse {
    Load,
    Store,
    Copy,
}

impl<'d> Launch<'d> {
    /// A launch on a device: everything before it is ordered before it.
    pub fn new(device: &'d mut Device) -> Self {
        device.launch += 1;
        let counters = Counters { launches: 1, ..Counters::default() };
        let sites = std::env::var_os("PTX_MACHINE_SITES").is_some_and(|value| value != "0");
        Self { device, counters, line: 0, sites, published: HashMap::new() }
    }

    /// Counts a shared access.
    pub(super) fn count_shared(&mut self, lanes: &Lanes, what: SharedUse) {
        let (wavefronts, ideal) = banks::wavefronts(lanes);
        let count = Wavefronts { requests: 1, wavefronts, ideal };
        match what {
            SharedUse::Load => &mut self.counters.shared_loads,
            SharedUse::Store => &mut self.counters.shared_stores,
            SharedUse::Copy => &mut self.counters.shared_copies,
        }
        .add(&count);
        if self.sites {
            self.counters.sites.entry(self.line).or_default().add(&count);
        }
    }

    /// What an ordered load or the load half of an atomic learns.
    pub(super) fn learn(&self, clocks: &mut Clocks, block: u32, lanes: &Lanes, order: Order, scope: Scope) {
        if self.published.is_empty() {
            return;
        }
        for lane in lanes_of(lanes.mask) {
            let Some(published) = self.published.get(&word(lanes, lane)) else { continue };
            let device = published.device.as_ref().filter(|_| scope == Scope::Device);
            for known in device.into_iter().chain(published.blocks.get(&block)) {
                if order.acquires() {
                    clocks.acquire(lanes.warp, known);
                } else {
                    clocks.see(lanes.warp, known);
                }
            }
        }
    }

    /// What an ordered store or the store half of an atomic publishes. An atomic keeps what was there: it goes on with the
    /// sequence that a release began; a store starts anew.
    pub(super) fn publish(
        &mut self,
        clocks: &mut Clocks,
        block: u32,
        lanes: &Lanes,
        (order, scope): (Order, Scope),
        atomic: bool,
    ) {
        let (near, far) = if order.releases() {
            let known = clocks.publish(lanes.warp);
            (Some(known.clone()), Some(known))
        } else {
            (clocks.fenced(lanes.warp, Scope::Block), clocks.fenced(lanes.warp, Scope::Device))
        };
        let far = far.filter(|_| scope == Scope::Device);
        if near.is_none() && self.published.is_empty() {
            return;
        }
        for lane in lanes_of(lanes.mask) {
            let published = self.published.entry(word(lanes, lane)).or_default();
            if !atomic {
                *published = Published::default();
            }
            join(&mut published.device, far.as_ref());
            if let Some(near) = &near {
                let mut of_block = published.blocks.remove(&block);
                join(&mut of_block, Some(near));
                published.blocks.extend(of_block.map(|known| (block, known)));
            }
        }
    }
}

fn word(lanes: &Lanes, lane: u32) -> u64 {
    lanes.address[lane as usize] & !3
}

/// Counts a global request.
pub(super) fn count_global(into: &mut Traffic, lanes: &Lanes) {
    let active = u64::from(lanes.mask.count_ones());
    into.add(&Traffic {
        requests: 1,
        lanes: active,
        bytes: active * u64::from(lanes.bytes),
        sectors: banks::sectors(lanes),
    });
}
