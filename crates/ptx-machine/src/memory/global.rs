//! Loads, stores and atomics of global memory.

use super::block::{Block, get, put, strength};
use super::clocks::Viewer;
use super::device::ones;
use super::launch::count_global;
use super::shadow::{PAGE, Stamp};
use super::{Device, Lanes, Launch, Order, Scope, Values, lanes_of, trouble};
use crate::counters::Unique;
use crate::fault::{Kind, Trouble};

#[cold]
fn race(lane: u32, address: u64, does: &str, other: &str) -> Trouble {
    trouble(Kind::GlobalRace, lane, address, format!("{does}, {other}, with no order between"))
}

/// A cache that nothing keeps up to date may hold what was there before.
#[cold]
fn stale(lane: u32, address: u64) -> Trouble {
    let detail = "reads through the read-only path (.nc) what this launch has written".into();
    trouble(Kind::GlobalRace, lane, address, detail)
}

#[cold]
fn bounds(device: &Device, lane: u32, address: u64, bytes: usize) -> Trouble {
    trouble(Kind::OutOfBounds, lane, address, device.explain(address, bytes as u64))
}

#[inline(always)]
fn aligned(lane: u32, address: u64, bytes: usize) -> Result<(), Trouble> {
    if address & (bytes as u64 - 1) == 0 {
        return Ok(());
    }
    Err(trouble(Kind::Misaligned, lane, address, format!("{bytes} bytes")))
}

/// Counts bytes that were not touched before.
#[inline(always)]
fn first_touch(touched: &mut [u64; PAGE / 64], unique: &mut Unique, at: usize, bytes: usize) {
    let word = &mut touched[at % PAGE / 64];
    let bits = ones(at, bytes);
    if *word & bits == bits {
        return;
    }
    let sector = 0xffff_ffff_u64 << (at & 32);
    unique.sectors += u64::from(*word & sector == 0);
    unique.bytes += u64::from((bits & !*word).count_ones());
    *word |= bits;
}

/// One lane reads an aligned power of two of bytes.
#[inline(always)]
pub(super) fn read_lane(
    launch: &mut Launch,
    viewer: &Viewer,
    stamp: Stamp,
    (lane, address, bytes): (u32, u64, usize),
    read_only: bool,
) -> Result<[u32; 4], Trouble> {
    aligned(lane, address, bytes)?;
    let number = launch.device.launch;
    let Some((allocation, at)) = launch.device.locate(address, bytes as u64) else {
        return Err(bounds(launch.device, lane, address, bytes));
    };
    let touched = allocation.touched(number, at);
    for cell in touched.page.at(at % PAGE, bytes) {
        let other = cell.read(viewer, lane, stamp);
        if other.is_some() {
            return Err(race(lane, address, "reads", &cell.describe(other)));
        }
    }
    if read_only && touched.written[at % PAGE / 64] & ones(at, bytes) != 0 {
        return Err(stale(lane, address));
    }
    first_touch(&mut touched.read, &mut launch.counters.unique_read, at, bytes);
    allocation.check_written(at, bytes).map_err(|first| {
        let address = address + (first - at) as u64;
        trouble(
            Kind::Uninitialised,
            lane,
            address,
            format!("byte {first} of its allocation was never written"),
        )
    })?;
    Ok(get(&allocation.data, at, bytes))
}

/// One lane writes an aligned power of two of bytes.
#[inline(always)]
fn write_lane(
    launch: &mut Launch,
    viewer: &Viewer,
    stamp: Stamp,
    (lane, address, bytes): (u32, u64, usize),
    value: &[u32; 4],
) -> Result<(), Trouble> {
    aligned(lane, address, bytes)?;
    let number = launch.device.launch;
    let Some((allocation, at)) = launch.device.locate(address, bytes as u64) else {
        return Err(bounds(launch.device, lane, address, bytes));
    };
    let touched = allocation.touched(number, at);
    for cell in touched.page.at(at % PAGE, bytes) {
        let other = cell.meet(viewer, lane, stamp);
        if other.is_some() {
            return Err(race(lane, address, "writes", &cell.describe(other)));
        }
        cell.wrote(stamp);
    }
    first_touch(&mut touched.written, &mut launch.counters.unique_written, at, bytes);
    allocation.mark_written(at, bytes);
    put(&mut allocation.data, at, bytes, value);
    Ok(())
}

/// [`read_lane`] for every lane; a function for each width, for speed.
fn read_lanes<const BYTES: usize>(
    launch: &mut Launch,
    viewer: &Viewer,
    stamp: Stamp,
    lanes: &Lanes,
    read_only: bool,
    out: &mut Values,
) -> Result<(), Trouble> {
    for lane in lanes_of(lanes.mask) {
        let access = (lane, lanes.address[lane as usize], BYTES);
        out[lane as usize] = read_lane(launch, viewer, stamp.at(lane), access, read_only)?;
    }
    Ok(())
}

/// [`write_lane`] for every lane.
fn write_lanes<const BYTES: usize>(
    launch: &mut Launch,
    viewer: &Viewer,
    stamp: Stamp,
    lanes: &Lanes,
    values: &Values,
) -> Result<(), Trouble> {
    for lane in lanes_of(lanes.mask) {
        let access = (lane, lanes.address[lane as usize], BYTES);
        write_lane(launch, viewer, stamp.at(lane), access, &values[lane as usize])?;
    }
    Ok(())
}

impl Block {
    /// A load of global memory.
    pub fn load_global(
        &mut self,
        launch: &mut Launch,
        lanes: &Lanes,
        order: Order,
        scope: Scope,
        out: &mut Values,
    ) -> Result<(), Trouble> {
        let viewer = self.clocks.viewer(lanes.warp);
        let stamp = Stamp::new(&viewer, strength(order, scope));
        let read_only = order == Order::ReadOnly;
        match lanes.bytes {
            1 => read_lanes::<1>(launch, &viewer, stamp, lanes, read_only, out),
            2 => read_lanes::<2>(launch, &viewer, stamp, lanes, read_only, out),
            4 => read_lanes::<4>(launch, &viewer, stamp, lanes, read_only, out),
            8 => read_lanes::<8>(launch, &viewer, stamp, lanes, read_only, out),
            _ => read_lanes::<16>(launch, &viewer, stamp, lanes, read_only, out),
        }?;
        count_global(&mut launch.counters.global_loads[width(lanes)], lanes);
        if order.is_strong() {
            launch.learn(&mut self.clocks, self.index, lanes, order, scope);
        }
        Ok(())
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
        let viewer = self.clocks.viewer(lanes.warp);
        let stamp = Stamp::new(&viewer, strength(order, scope));
        match lanes.bytes {
            1 => write_lanes::<1>(launch, &viewer, stamp, lanes, values),
            2 => write_lanes::<2>(launch, &viewer, stamp, lanes, values),
            4 => write_lanes::<4>(launch, &viewer, stamp, lanes, values),
            8 => write_lanes::<8>(launch, &viewer, stamp, lanes, values),
            _ => write_lanes::<16>(launch, &viewer, stamp, lanes, values),
        }?;
        count_global(&mut launch.counters.global_stores[width(lanes)], lanes);
        if order.is_strong() {
            launch.publish(&mut self.clocks, self.index, lanes, (order, scope), false);
        }
        Ok(())
    }

    /// A read-modify-write of global memory, lane after lane: `change(lane, old)` gives the new value (low `bytes`), `None`
    /// where nothing is stored; `out` gets the old values. Lanes of one warp that meet at an address are served in ascending
    /// order.
    pub fn atomic_global(
        &mut self,
        launch: &mut Launch,
        lanes: &Lanes,
        order: Order,
        scope: Scope,
        change: &mut dyn FnMut(u32, u64) -> Option<u64>,
        out: &mut Values,
    ) -> Result<(), Trouble> {
        // An atomic is strong whatever its order.
        let order = if order.is_strong() { order } else { Order::Relaxed };
        launch.learn(&mut self.clocks, self.index, lanes, order, scope);
        let viewer = self.clocks.viewer(lanes.warp);
        let stamp = Stamp::new(&viewer, strength(order, scope));
        for lane in lanes_of(lanes.mask) {
            let access = (lane, lanes.address[lane as usize], lanes.bytes as usize);
            let old = read_lane(launch, &viewer, stamp.at(lane), access, false)?;
            out[lane as usize] = old;
            if let Some(new) = change(lane, u64::from(old[0]) | u64::from(old[1]) << 32) {
                let new = [new as u32, (new >> 32) as u32, 0, 0];
                write_lane(launch, &viewer, stamp.at(lane), access, &new)?;
            }
        }
        launch.counters.global_atomics += 1;
        launch.publish(&mut self.clocks, self.index, lanes, (order, scope), true);
        Ok(())
    }
}

/// The place of an access's width in the counters.
pub(super) const fn width(lanes: &Lanes) -> usize {
    (lanes.bytes.trailing_zeros() & 7) as usize
}
