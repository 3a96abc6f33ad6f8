//! Loads, stores and asynchronous copies.

use super::registers::{Long, Warp};
use super::warp::Core;
use super::windows::{load_own, outside, store_own};
use super::{CONSTANT_WINDOW, LOCAL_WINDOW, PARAM_WINDOW};
use crate::fault::{Kind, Trouble};
use crate::memory::{Block, Lanes, SHARED_WINDOW, Values};
use crate::ptx::op::{Access, Addr, NONE, Op, SourceBytes, Space};

/// Each lane's address.
#[inline]
pub fn addresses(warp: &Warp, addr: Addr) -> Long {
    let mut out = [addr.offset as u64; 32];
    if addr.base == NONE {
        return out;
    }
    if addr.long {
        let base = &warp.longs[usize::from(addr.base)];
        for lane in 0..32 {
            out[lane] = base[lane].wrapping_add(addr.offset as u64);
        }
    } else {
        let base = &warp.words[usize::from(addr.base)];
        for lane in 0..32 {
            out[lane] = u64::from(base[lane].wrapping_add(addr.offset as u32));
        }
    }
    out
}

/// Lanes of a mask by what their generic addresses mean: global, shared, and windows of the machine's own.
pub fn split(address: &Long, mask: u32) -> (u32, u32, u32) {
    let at_least = |from: u64| {
        (0..32)
            .filter(|&lane| mask >> lane & 1 != 0 && address[lane] >= from)
            .fold(0, |found, lane| found | 1 << lane)
    };
    let (shared, own) = (at_least(SHARED_WINDOW), at_least(LOCAL_WINDOW));
    (mask & !shared, shared & !own, own)
}

/// Offsets in shared memory of generic addresses.
pub fn shared_offsets(address: &Long) -> Long {
    address.map(|address| address.wrapping_sub(SHARED_WINDOW))
}

/// The space that decides where an access goes. One that the instruction names holds all its addresses; the module's
/// variables, which stand in a window, are global too.
#[inline]
pub fn goes_to(space: Space, address: &Long, mask: u32) -> Result<Space, Trouble> {
    match space {
        Space::Global if address[mask.trailing_zeros() as usize & 31] < SHARED_WINDOW => Ok(Space::Global),
        Space::Shared | Space::Generic => Ok(space),
        _ => in_window(space, address, mask),
    }
}

#[inline(never)]
fn in_window(space: Space, address: &Long, mask: u32) -> Result<Space, Trouble> {
    let (window, what) = match space {
        Space::Param => (PARAM_WINDOW..u64::MAX, "the parameters"),
        Space::Local => (LOCAL_WINDOW..CONSTANT_WINDOW, "local memory"),
        Space::Const => (CONSTANT_WINDOW..PARAM_WINDOW, "the module's constants"),
        _ => (CONSTANT_WINDOW..PARAM_WINDOW, "global memory"),
    };
    match each_lane(mask).find(|&lane| !window.contains(&address[lane])) {
        Some(lane) => Err(outside(lane as u32, address[lane], what)),
        None => Ok(Space::Generic),
    }
}

/// A load.
pub fn load(
    core: &mut Core<'_>,
    warp: &mut Warp,
    memory: &mut Block,
    access: &Access,
    mask: u32,
) -> Result<(), Trouble> {
    let size = access.ty.bits() / 8;
    let address = addresses(warp, access.addr);
    let mut out: Values = [[0; 4]; 32];
    let lanes = Lanes { warp: warp.id, mask, address: &address, bytes: size * u32::from(access.count) };
    match goes_to(access.space, &address, mask)? {
        Space::Shared => memory.load_shared(&mut core.launch, &lanes, &mut out)?,
        Space::Global => {
            memory.load_global(&mut core.launch, &lanes, access.order, access.scope, &mut out)?
        }
        _ => {
            let (global, shared, own) = split(&address, mask);
            if global != 0 {
                let lanes = Lanes { mask: global, ..lanes };
                memory.load_global(&mut core.launch, &lanes, access.order, access.scope, &mut out)?;
            }
            if shared != 0 {
                let lanes = Lanes { mask: shared, address: &shared_offsets(&address), ..lanes };
                memory.load_shared(&mut core.launch, &lanes, &mut out)?;
            }
            if own != 0 {
                load_own(core, warp, &Lanes { mask: own, ..lanes }, &mut out)?;
            }
        }
    }
    for (index, &place) in access.regs[..usize::from(access.count)].iter().enumerate() {
        if place != NONE {
            take(warp, access, place, index, &out, mask);
        }
    }
    Ok(())
}

/// An element of what was loaded to its register.
#[inline]
fn take(warp: &mut Warp, access: &Access, place: u16, index: usize, out: &Values, mask: u32) {
    let (bits, place) = (access.ty.bits(), usize::from(place));
    if bits == 32 && !access.long {
        let to = &mut warp.words[place];
        for lane in 0..32 {
            to[lane] = if mask >> lane & 1 != 0 { out[lane][index] } else { to[lane] };
        }
        return;
    }
    for lane in (0..32).filter(|lane| mask >> lane & 1 != 0) {
        let value = &out[lane];
        let raw = match bits {
            8 => u64::from(value[index / 4] >> (8 * (index % 4)) & 0xff),
            16 => u64::from(value[index / 2] >> (16 * (index % 2)) & 0xffff),
            32 => u64::from(value[index]),
            _ => u64::from(value[2 * index]) | u64::from(value[2 * index + 1]) << 32,
        };
        let unused = 64 - bits;
        let raw = if access.ty.signed() { ((raw << unused) as i64 >> unused) as u64 } else { raw };
        match access.long {
            true => warp.longs[place][lane] = raw,
            false => {
                warp.words[place][lane] =
                    raw as u32 & (u32::MAX >> (32 - u32::from(access.register_bits).min(32)))
            }
        }
    }
}

/// A store.
pub fn store(
    core: &mut Core<'_>,
    warp: &mut Warp,
    memory: &mut Block,
    access: &Access,
    mask: u32,
) -> Result<(), Trouble> {
    let size = access.ty.bits() / 8;
    let address = addresses(warp, access.addr);
    let mut values: Values = [[0; 4]; 32];
    for (index, &place) in access.regs[..usize::from(access.count)].iter().enumerate() {
        give(warp, access, place, index, &mut values);
    }
    let lanes = Lanes { warp: warp.id, mask, address: &address, bytes: size * u32::from(access.count) };
    match goes_to(access.space, &address, mask)? {
        Space::Shared => memory.store_shared(&mut core.launch, &lanes, &values),
        Space::Global => memory.store_global(&mut core.launch, &lanes, access.order, access.scope, &values),
        _ => {
            let (global, shared, own) = split(&address, mask);
            if global != 0 {
                let lanes = Lanes { mask: global, ..lanes };
                memory.store_global(&mut core.launch, &lanes, access.order, access.scope, &values)?;
            }
            if shared != 0 {
                let lanes = Lanes { mask: shared, address: &shared_offsets(&address), ..lanes };
                memory.store_shared(&mut core.launch, &lanes, &values)?;
            }
            store_own(warp, &Lanes { mask: own, ..lanes }, &values)
        }
    }
}

#[inline]
fn give(warp: &Warp, access: &Access, place: u16, index: usize, values: &mut Values) {
    let (bits, place) = (access.ty.bits(), usize::from(place));
    for (lane, value) in values.iter_mut().enumerate() {
        let raw = if access.long { warp.longs[place][lane] } else { u64::from(warp.words[place][lane]) };
        match bits {
            8 => value[index / 4] |= (raw as u32 & 0xff) << (8 * (index % 4)),
            16 => value[index / 2] |= (raw as u32 & 0xffff) << (16 * (index % 2)),
            32 => value[index] = raw as u32,
            _ => (value[2 * index], value[2 * index + 1]) = (raw as u32, (raw >> 32) as u32),
        }
    }
}

pub fn each_lane(mask: u32) -> impl Iterator<Item = usize> {
    (0..32).filter(move |lane| mask >> lane & 1 != 0)
}

/// `cp.async`.
pub fn copy_async(
    core: &mut Core<'_>,
    warp: &mut Warp,
    memory: &mut Block,
    op: &Op,
    mask: u32,
) -> Result<(), Trouble> {
    let Op::CpAsync { to, from, bytes, source } = *op else { return Ok(()) };
    let (to, from) = (addresses(warp, to), addresses(warp, from));
    let bytes = u32::from(bytes);
    let source_bytes = match source {
        SourceBytes::All => [bytes; 32],
        SourceBytes::Word(place) => warp.words[usize::from(place)],
        SourceBytes::Ignore(pred) => {
            let ignored = warp.preds[usize::from(pred)];
            std::array::from_fn(|lane| if ignored >> lane & 1 != 0 { 0 } else { bytes })
        }
    };
    if let Some(lane) = each_lane(mask).find(|&lane| source_bytes[lane] > bytes) {
        let detail = format!("{} bytes of a copy of {bytes}", source_bytes[lane]);
        return Err(Trouble {
            kind: Kind::OutOfBounds,
            lane: lane as u32,
            address: Some(from[lane]),
            detail,
        });
    }
    let lanes = Lanes { warp: warp.id, mask, address: &from, bytes };
    memory.copy_async(&mut core.launch, &to, &lanes, &source_bytes)
}
