//! Asynchronous copies from global to shared memory.
//!
//! The source is read when the copy is issued. From then on its destination is pending, and any touch is a fault; the wait
//! writes it, as the waiting thread's own store at that moment.

use super::block::Block;
use super::global::{read_lane, width};
use super::launch::SharedUse;
use super::shadow::{Stamp, Strength};
use super::{Lanes, Launch, banks, lanes_of, trouble};
use crate::counters::Traffic;
use crate::fault::{Kind, Trouble};

/// The copies of one warp that no wait covered.
#[derive(Debug, Default)]
pub(super) struct Copies {
    pending: Vec<Pending>,
    /// Groups that each lane committed.
    committed: [u32; 32],
}

#[derive(Debug)]
struct Pending {
    lane: u32,
    /// The lane's group: its number of commits before.
    group: u32,
    at: usize,
    bytes: usize,
    value: [u32; 4],
}

impl Block {
    /// `cp.async`: `from.bytes` bytes to shared offset `to[lane]`, of which `source_bytes[lane]` come from
    /// `from.address[lane]` and the rest are zeros.
    pub fn copy_async(
        &mut self,
        launch: &mut Launch,
        to: &[u64; 32],
        from: &Lanes,
        source_bytes: &[u32; 32],
    ) -> Result<(), Trouble> {
        let (sources, moved) = match from.bytes {
            4 => self.issue::<4>(launch, to, from, source_bytes),
            8 => self.issue::<8>(launch, to, from, source_bytes),
            _ => self.issue::<16>(launch, to, from, source_bytes),
        }?;
        let read = Lanes { mask: sources, ..*from };
        launch.counters.async_copies[width(from)].add(&Traffic {
            requests: 1,
            lanes: u64::from(sources.count_ones()),
            bytes: moved,
            sectors: banks::sectors(&read),
        });
        launch.count_shared(&Lanes { address: to, ..*from }, SharedUse::Copy);
        Ok(())
    }

    /// The copies of all lanes; those that read anything, and their bytes. A function for each width, for speed.
    fn issue<const BYTES: usize>(
        &mut self,
        launch: &mut Launch,
        to: &[u64; 32],
        from: &Lanes,
        source_bytes: &[u32; 32],
    ) -> Result<(u32, u64), Trouble> {
        let Self { clocks, shared, copies, .. } = self;
        let copies = &mut copies[from.warp as usize];
        let viewer = clocks.viewer(from.warp);
        let stamp = Stamp::new(&viewer, Strength::Weak);
        let (mut sources, mut moved) = (0, 0);
        for lane in lanes_of(from.mask) {
            let stamp = stamp.at(lane);
            let at = shared.locate(lane, to[lane as usize], BYTES)?;
            // The copy may land at once: what came before must be over.
            shared.check_write(&viewer, lane, stamp, at, BYTES)?;
            let (address, count) =
                (from.address[lane as usize], source_bytes[lane as usize].min(BYTES as u32));
            let mut value = [0; 4];
            if count == BYTES as u32 {
                value = read_lane(launch, &viewer, stamp, (lane, address, BYTES), false)?;
            } else if address & (BYTES as u64 - 1) != 0 {
                return Err(trouble(Kind::Misaligned, lane, address, format!("{BYTES} bytes copied")));
            } else {
                read_part(&mut value, count, |offset, piece| {
                    read_lane(launch, &viewer, stamp, (lane, address + u64::from(offset), piece), false)
                })?;
            }
            sources |= u32::from(count != 0) << lane;
            moved += u64::from(count);
            shared.begin(at, BYTES);
            let group = copies.committed[lane as usize];
            copies.pending.push(Pending { lane, group, at, bytes: BYTES, value });
        }
        Ok((sources, moved))
    }

    /// `cp.async.commit_group` of these lanes.
    pub fn commit_async(&mut self, warp: u32, mask: u32) {
        let copies = &mut self.copies[warp as usize];
        for lane in lanes_of(mask) {
            copies.committed[lane as usize] += 1;
        }
    }

    /// `cp.async.wait_group keep` of these lanes; `wait_all` is a commit and `keep` 0.
    pub fn wait_async(&mut self, warp: u32, mask: u32, keep: u32) {
        let Self { clocks, shared, copies, .. } = self;
        let Copies { pending, committed } = &mut copies[warp as usize];
        let stamp = Stamp::new(&clocks.viewer(warp), Strength::Weak);
        pending.retain(|copy| {
            let lane = copy.lane as usize;
            if mask >> lane & 1 == 0 || copy.group.saturating_add(keep) >= committed[lane] {
                return true;
            }
            shared.end(copy.at, copy.bytes);
            shared.write(stamp.at(copy.lane), copy.at, copy.bytes, &copy.value);
            false
        });
    }

    /// No copy may be left.
    pub(super) fn check_copies(&self) -> Result<(), Trouble> {
        for (warp, copies) in self.copies.iter().enumerate() {
            if let Some(copy) = copies.pending.first() {
                let detail = format!("warp {warp} ended with a copy to shared offset {} under way", copy.at);
                return Err(trouble(Kind::AsyncNotWaited, copy.lane, copy.at as u64, detail));
            }
        }
        Ok(())
    }
}

/// The first `count` bytes of a value, read in aligned pieces; the rest stays as it is.
#[cold]
fn read_part(
    value: &mut [u32; 4],
    count: u32,
    mut read: impl FnMut(u32, usize) -> Result<[u32; 4], Trouble>,
) -> Result<(), Trouble> {
    let mut offset = 0;
    while offset < count {
        let piece = 1 << (count - offset).ilog2();
        let got = read(offset, piece as usize)?;
        let shift = offset % 4 * 8;
        for (word, &part) in got.iter().enumerate().take((piece as usize).div_ceil(4)) {
            value[offset as usize / 4 + word] |= part << shift;
        }
        offset += piece;
    }
    Ok(())
}
