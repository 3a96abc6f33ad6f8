//! Loads, stores and atomics of shared memory.

use super::block::{Block, get, put};
use super::clocks::Viewer;
use super::device::ones;
use super::launch::SharedUse;
use super::shadow::{PAGE, Page, Stamp, Strength};
use super::{Lanes, Launch, Values, lanes_of, trouble};
use crate::fault::{Kind, Trouble};

/// Shared memory with its state.
#[derive(Debug)]
pub(super) struct Shared {
    pub data: Vec<u8>,
    /// A bit for each byte that was written.
    written: Vec<u64>,
    /// A bit for each byte that an asynchronous copy will write.
    pending: Vec<u64>,
    /// Copies that are pending.
    pub copies: usize,
    pages: Vec<Page>,
}

impl Shared {
    pub fn new(bytes: usize) -> Self {
        Self {
            data: vec![0; bytes],
            written: vec![0; bytes.div_ceil(64)],
            pending: vec![0; bytes.div_ceil(64)],
            copies: 0,
            pages: vec![Page::default(); bytes.div_ceil(PAGE)],
        }
    }

    /// Alignment, bounds and pending copies; the offset.
    #[inline(always)]
    pub fn locate(&self, lane: u32, at: u64, bytes: usize) -> Result<usize, Trouble> {
        let size = self.data.len();
        if at & (bytes as u64 - 1) != 0 {
            let detail = format!("{bytes} bytes at shared offset {at}");
            return Err(trouble(Kind::Misaligned, lane, at, detail));
        }
        if at >= size as u64 || bytes > size - at as usize {
            let detail = format!("{bytes} bytes at shared offset {at} of {size}");
            return Err(trouble(Kind::OutOfBounds, lane, at, detail));
        }
        let at = at as usize;
        if self.copies != 0 && self.pending[at / 64] & ones(at, bytes) != 0 {
            let detail = format!("shared offset {at}");
            return Err(trouble(Kind::AsyncNotWaited, lane, at as u64, detail));
        }
        Ok(at)
    }

    #[inline(always)]
    fn check_read(
        &mut self,
        viewer: &Viewer,
        lane: u32,
        stamp: Stamp,
        at: usize,
        bytes: usize,
    ) -> Result<(), Trouble> {
        for cell in self.pages[at / PAGE].at(at % PAGE, bytes) {
            let other = cell.read(viewer, lane, stamp);
            if other.is_some() {
                return Err(race(lane, at, "reads", &cell.describe(other)));
            }
        }
        let missing = !self.written[at / 64] & ones(at, bytes);
        if missing != 0 {
            let first = (at & !63) + missing.trailing_zeros() as usize;
            let detail = format!("shared offset {first} was never written");
            return Err(trouble(Kind::Uninitialised, lane, first as u64, detail));
        }
        Ok(())
    }

    /// Whether a write would race.
    #[inline(always)]
    pub fn check_write(
        &mut self,
        viewer: &Viewer,
        lane: u32,
        stamp: Stamp,
        at: usize,
        bytes: usize,
    ) -> Result<(), Trouble> {
        for cell in self.pages[at / PAGE].at(at % PAGE, bytes) {
            let other = cell.meet(viewer, lane, stamp);
            if other.is_some() {
                return Err(race(lane, at, "writes", &cell.describe(other)));
            }
        }
        Ok(())
    }

    /// Keeps a write and its value.
    #[inline(always)]
    pub fn write(&mut self, stamp: Stamp, at: usize, bytes: usize, value: &[u32; 4]) {
        for cell in self.pages[at / PAGE].at(at % PAGE, bytes) {
            cell.wrote(stamp);
        }
        self.written[at / 64] |= ones(at, bytes);
        put(&mut self.data, at, bytes, value);
    }

    /// A load; a function for each width, for speed.
    fn read_lanes<const BYTES: usize>(
        &mut self,
        viewer: &Viewer,
        lanes: &Lanes,
        out: &mut Values,
    ) -> Result<(), Trouble> {
        let stamp = Stamp::new(viewer, Strength::Weak);
        for lane in lanes_of(lanes.mask) {
            let at = self.locate(lane, lanes.address[lane as usize], BYTES)?;
            self.check_read(viewer, lane, stamp.at(lane), at, BYTES)?;
            out[lane as usize] = get(&self.data, at, BYTES);
        }
        Ok(())
    }

    /// A store.
    fn write_lanes<const BYTES: usize>(
        &mut self,
        viewer: &Viewer,
        lanes: &Lanes,
        values: &Values,
    ) -> Result<(), Trouble> {
        let stamp = Stamp::new(viewer, Strength::Weak);
        for lane in lanes_of(lanes.mask) {
            let stamp = stamp.at(lane);
            let at = self.locate(lane, lanes.address[lane as usize], BYTES)?;
            self.check_write(viewer, lane, stamp, at, BYTES)?;
            self.write(stamp, at, BYTES, &values[lane as usize]);
        }
        Ok(())
    }

    /// An asynchronous copy to these bytes begins.
    pub fn begin(&mut self, at: usize, bytes: usize) {
        self.pending[at / 64] |= ones(at, bytes);
        self.copies += 1;
    }

    /// It is over.
    pub fn end(&mut self, at: usize, bytes: usize) {
        self.pending[at / 64] &= !ones(at, bytes);
        self.copies -= 1;
    }
}

#[cold]
fn race(lane: u32, at: usize, does: &str, other: &str) -> Trouble {
    let detail = format!("{does} shared offset {at}, {other}, with no order between");
    trouble(Kind::SharedRace, lane, at as u64, detail)
}

impl Block {
    /// A load of shared memory. `ldmatrix` comes as one load of 16 bytes for each eight lanes that give row addresses.
    pub fn load_shared(
        &mut self,
        launch: &mut Launch,
        lanes: &Lanes,
        out: &mut Values,
    ) -> Result<(), Trouble> {
        let viewer = self.clocks.viewer(lanes.warp);
        match lanes.bytes {
            1 => self.shared.read_lanes::<1>(&viewer, lanes, out),
            2 => self.shared.read_lanes::<2>(&viewer, lanes, out),
            4 => self.shared.read_lanes::<4>(&viewer, lanes, out),
            8 => self.shared.read_lanes::<8>(&viewer, lanes, out),
            _ => self.shared.read_lanes::<16>(&viewer, lanes, out),
        }?;
        launch.count_shared(lanes, SharedUse::Load);
        Ok(())
    }

    /// A store to shared memory.
    pub fn store_shared(
        &mut self,
        launch: &mut Launch,
        lanes: &Lanes,
        values: &Values,
    ) -> Result<(), Trouble> {
        let viewer = self.clocks.viewer(lanes.warp);
        match lanes.bytes {
            1 => self.shared.write_lanes::<1>(&viewer, lanes, values),
            2 => self.shared.write_lanes::<2>(&viewer, lanes, values),
            4 => self.shared.write_lanes::<4>(&viewer, lanes, values),
            8 => self.shared.write_lanes::<8>(&viewer, lanes, values),
            _ => self.shared.write_lanes::<16>(&viewer, lanes, values),
        }?;
        launch.count_shared(lanes, SharedUse::Store);
        Ok(())
    }

    /// A read-modify-write of shared memory; as [`Self::atomic_global`].
    pub fn atomic_shared(
        &mut self,
        launch: &mut Launch,
        lanes: &Lanes,
        change: &mut dyn FnMut(u32, u64) -> Option<u64>,
        out: &mut Values,
    ) -> Result<(), Trouble> {
        let Self { clocks, shared, .. } = self;
        let viewer = clocks.viewer(lanes.warp);
        let stamp = Stamp::new(&viewer, Strength::Block);
        let bytes = lanes.bytes as usize;
        for lane in lanes_of(lanes.mask) {
            let at = shared.locate(lane, lanes.address[lane as usize], bytes)?;
            let stamp = stamp.at(lane);
            shared.check_read(&viewer, lane, stamp, at, bytes)?;
            let old = get(&shared.data, at, bytes);
            out[lane as usize] = old;
            if let Some(new) = change(lane, u64::from(old[0]) | u64::from(old[1]) << 32) {
                shared.check_write(&viewer, lane, stamp, at, bytes)?;
                shared.write(stamp, at, bytes, &[new as u32, (new >> 32) as u32, 0, 0]);
            }
        }
        launch.counters.shared_atomics += 1;
        Ok(())
    }
}
