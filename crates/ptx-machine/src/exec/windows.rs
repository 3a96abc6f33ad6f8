//! Memory that is the machine's own: parameters, constants and local memory.

use super::access::each_lane;
use super::registers::Warp;
use super::warp::Core;
use super::{CONSTANT_WINDOW, LOCAL_WINDOW, PARAM_WINDOW};
use crate::fault::{Kind, Trouble};
use crate::memory::{Lanes, Values};

pub fn outside(lane: u32, address: u64, what: &str) -> Trouble {
    Trouble { kind: Kind::OutOfBounds, lane, address: Some(address), detail: format!("outside of {what}") }
}

/// A lane's bytes in a window of the machine's own.
fn window<'w>(
    (params, constants, local): (&'w [u8], &'w [u8], &'w [u8]),
    local_bytes: usize,
    lane: usize,
    address: u64,
    bytes: u32,
) -> Result<&'w [u8], Trouble> {
    let (all, base, what) = match address {
        PARAM_WINDOW.. => (params, PARAM_WINDOW, "the parameters"),
        CONSTANT_WINDOW.. => (constants, CONSTANT_WINDOW, "the module's constants"),
        _ => (&local[lane * local_bytes..(lane + 1) * local_bytes], LOCAL_WINDOW, "local memory"),
    };
    check_aligned(lane, address, bytes)?;
    let at = (address - base) as usize;
    all.get(at..at + bytes as usize).ok_or_else(|| outside(lane as u32, address, what))
}

fn check_aligned(lane: usize, address: u64, bytes: u32) -> Result<(), Trouble> {
    if address.is_multiple_of(u64::from(bytes)) {
        return Ok(());
    }
    let detail = format!("{bytes} bytes");
    Err(Trouble { kind: Kind::Misaligned, lane: lane as u32, address: Some(address), detail })
}

pub fn load_own(core: &Core<'_>, warp: &Warp, lanes: &Lanes<'_>, out: &mut Values) -> Result<(), Trouble> {
    for lane in each_lane(lanes.mask) {
        let all = (core.params, core.constants, &warp.local[..]);
        let bytes = window(all, warp.local_bytes, lane, lanes.address[lane], lanes.bytes)?;
        let mut whole = [0; 16];
        whole[..bytes.len()].copy_from_slice(bytes);
        for (word, bytes) in out[lane].iter_mut().zip(whole.as_chunks().0) {
            *word = u32::from_le_bytes(*bytes);
        }
    }
    Ok(())
}

/// Only local memory can be written.
pub fn store_own(warp: &mut Warp, lanes: &Lanes<'_>, values: &Values) -> Result<(), Trouble> {
    for lane in each_lane(lanes.mask) {
        let address = lanes.address[lane];
        if address >= CONSTANT_WINDOW {
            return Err(outside(lane as u32, address, "what can be written"));
        }
        check_aligned(lane, address, lanes.bytes)?;
        let local = &mut warp.local[lane * warp.local_bytes..(lane + 1) * warp.local_bytes];
        let at = (address - LOCAL_WINDOW) as usize;
        let to = local.get_mut(at..at + lanes.bytes as usize);
        let to = to.ok_or_else(|| outside(lane as u32, address, "local memory"))?;
        let mut whole = [0; 16];
        for (bytes, word) in whole.chunks_exact_mut(4).zip(values[lane]) {
            bytes.copy_from_slice(&word.to_le_bytes());
        }
        to.copy_from_slice(&whole[..to.len()]);
    }
    Ok(())
}
