//! Happens-before: what each warp of a block knows of its block's other warps, and of other blocks.
//!
//! A warp's *epoch* counts its own barriers and releases; everything it did up to epoch `e` is known to another warp whose
//! row says at least `e` for it. Lanes of one warp are ordered by [`Clocks::sync_warp`] and by barriers only.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::Scope;
use super::shadow::Stamp;

/// Epochs by [`Stamp::party`]: a block and a warp of it.
pub type Known = Arc<BTreeMap<u32, u32>>;

/// The clocks of one block's warps.
#[derive(Debug)]
pub struct Clocks {
    block: u32,
    warps: usize,
    /// `rows[w * warps + v]`: the epoch of `v` up to which `w` knows what `v` did.
    rows: Vec<u32>,
    /// The epoch since which lanes of a warp are not ordered.
    synced: Vec<u32>,
    /// What a warp knows of other blocks.
    foreign: Vec<Option<Known>>,
    /// What relaxed loads saw and no fence made known yet.
    seen: Vec<Option<Known>>,
    /// What a warp's last fence covered: of the block's scope, of the device's.
    fenced: Vec<[Option<Known>; 2]>,
}

/// What a warp knew when it arrived at a barrier and went on.
#[derive(Debug)]
pub struct Arrival {
    row: Vec<u32>,
    foreign: Option<Known>,
    seen: Option<Known>,
    fenced: [Option<Known>; 2],
}

/// One warp's view while it accesses memory.
#[derive(Debug, Clone, Copy)]
pub struct Viewer<'a> {
    /// Its block and warp, as in stamps.
    pub party: u32,
    /// Its epoch.
    pub epoch: u32,
    block: u32,
    synced: u32,
    row: &'a [u32],
    foreign: Option<&'a BTreeMap<u32, u32>>,
}

impl Viewer<'_> {
    /// Whether what `old` stamps happened before what `lane` does now.
    #[inline(always)]
    pub fn after(&self, old: Stamp, lane: u32) -> bool {
        if old.party() == self.party {
            return old.is_lane(lane) || old.epoch() < self.synced;
        }
        if old.block() == self.block {
            return self.row.get(old.warp() as usize).is_some_and(|&known| old.epoch() <= known);
        }
        self.foreign.and_then(|foreign| foreign.get(&old.party())).is_some_and(|&known| old.epoch() <= known)
    }
}

impl Clocks {
    /// Clocks at the start of a block.
    pub fn new(block: u32, warps: usize) -> Self {
        let mut rows = vec![0; warps * warps];
        for warp in 0..warps {
            rows[warp * warps + warp] = 1;
        }
        Self {
            block,
            warps,
            rows,
            synced: vec![1; warps],
            foreign: vec![None; warps],
            seen: vec![None; warps],
            fenced: vec![[None, None]; warps],
        }
    }

    /// What `warp` sees now.
    #[inline(always)]
    pub fn viewer(&self, warp: u32) -> Viewer<'_> {
        let warp = warp as usize;
        let row = &self.rows[warp * self.warps..(warp + 1) * self.warps];
        Viewer {
            party: Stamp::party_of(self.block, warp as u32),
            epoch: row[warp],
            block: self.block,
            synced: self.synced[warp],
            row,
            foreign: self.foreign[warp].as_deref(),
        }
    }

    fn advance(&mut self, warp: usize) {
        self.rows[warp * self.warps + warp] += 1;
    }

    /// The lanes of `warp` are ordered from here on.
    pub fn sync_warp(&mut self, warp: u32) {
        let warp = warp as usize;
        self.advance(warp);
        self.synced[warp] = self.rows[warp * self.warps + warp];
    }

    /// What `warp` brings to a barrier at which it does not wait: what it does from here on is not part of it.
    pub fn arrive(&mut self, warp: u32) -> Arrival {
        let at = warp as usize;
        let arrival = Arrival {
            row: self.rows[at * self.warps..(at + 1) * self.warps].to_vec(),
            foreign: self.foreign[at].clone(),
            seen: self.seen[at].clone(),
            fenced: self.fenced[at].clone(),
        };
        self.advance(at);
        arrival
    }

    /// The participants know all that each of them knew, and what the arrivals brought.
    pub fn barrier(&mut self, participants: &[(u32, u32)], arrivals: &[Arrival]) {
        let warps = self.warps;
        let mut joined = vec![0; warps];
        let (mut foreign, mut seen, mut near, mut far) = (None, None, None, None);
        for arrival in arrivals {
            for (all, &one) in joined.iter_mut().zip(&arrival.row) {
                *all = one.max(*all);
            }
            join(&mut foreign, arrival.foreign.as_ref());
            join(&mut seen, arrival.seen.as_ref());
            join(&mut near, arrival.fenced[0].as_ref());
            join(&mut far, arrival.fenced[1].as_ref());
        }
        for &(warp, _) in participants {
            let warp = warp as usize;
            for (all, &one) in joined.iter_mut().zip(&self.rows[warp * warps..(warp + 1) * warps]) {
                *all = one.max(*all);
            }
            // Fences on either side of a barrier still pair with the strong access on its other side.
            join(&mut foreign, self.foreign[warp].as_ref());
            join(&mut seen, self.seen[warp].as_ref());
            join(&mut near, self.fenced[warp][0].as_ref());
            join(&mut far, self.fenced[warp][1].as_ref());
        }
        for &(warp, _) in participants {
            self.rows[warp as usize * warps..(warp as usize + 1) * warps].copy_from_slice(&joined);
            self.foreign[warp as usize].clone_from(&foreign);
            self.seen[warp as usize].clone_from(&seen);
            self.fenced[warp as usize] = [near.clone(), far.clone()];
            self.sync_warp(warp);
        }
    }

    /// All that `warp` knows now, to be published; it goes on in a new epoch.
    pub fn publish(&mut self, warp: u32) -> Known {
        let warp = warp as usize;
        let mut known = self.foreign[warp].as_deref().cloned().unwrap_or_default();
        for (other, &epoch) in self.rows[warp * self.warps..(warp + 1) * self.warps].iter().enumerate() {
            if epoch != 0 {
                known.insert(Stamp::party_of(self.block, other as u32), epoch);
            }
        }
        self.advance(warp);
        Arc::new(known)
    }

    /// Takes over what others published.
    pub fn acquire(&mut self, warp: u32, published: &Known) {
        let warp = warp as usize;
        for (&party, &epoch) in published.iter() {
            if Stamp::block_of(party) == self.block {
                let known = &mut self.rows[warp * self.warps + Stamp::warp_of(party) as usize];
                *known = epoch.max(*known);
            }
        }
        join(&mut self.foreign[warp], Some(published));
    }

    /// A relaxed load saw this; a fence makes it known.
    pub fn see(&mut self, warp: u32, published: &Known) {
        join(&mut self.seen[warp as usize], Some(published));
    }

    /// A fence: what was seen is known, and what is known can be published by relaxed stores.
    pub fn fence(&mut self, warp: u32, scope: Scope) {
        if let Some(seen) = self.seen[warp as usize].take() {
            self.acquire(warp, &seen);
        }
        let known = self.publish(warp);
        let fenced = &mut self.fenced[warp as usize];
        if scope == Scope::Device {
            fenced[1] = Some(known.clone());
        }
        fenced[0] = Some(known);
    }

    /// What the last fence of at least this scope covered.
    pub fn fenced(&self, warp: u32, scope: Scope) -> Option<Known> {
        self.fenced[warp as usize][usize::from(scope == Scope::Device)].clone()
    }
}

/// `into` gets the later epoch of each party.
pub fn join(into: &mut Option<Known>, from: Option<&Known>) {
    let Some(from) = from else { return };
    let Some(into) = into else {
        *into = Some(from.clone());
        return;
    };
    if Arc::ptr_eq(into, from) {
        return;
    }
    let merged = Arc::make_mut(into);
    for (&party, &epoch) in from.iter() {
        let known = merged.entry(party).or_insert(epoch);
        *known = epoch.max(*known);
    }
}
