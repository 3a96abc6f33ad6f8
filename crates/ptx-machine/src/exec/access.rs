//! Loads, stores, atomics and asynchronous copies.

use super::warp::{Core, Long, Warp};
use super::{CONSTANT_WINDOW, LOCAL_WINDOW, PARAM_WINDOW};
use crate::fault::{Kind, Trouble};
use crate::memory::{Block, Lanes, SHARED_WINDOW, Values};
use crate::ptx::op::{Access, Addr, AtomOp, NONE, Op, Round, SourceBytes, Space};

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
fn split(address: &Long, mask: u32) -> (u32, u32, u32) {
    let at_least = |from: u64| {
        (0..32)
            .filter(|&lane| mask >> lane & 1 != 0 && address[lane] >= from)
            .fold(0, |found, lane| found | 1 << lane)
    };
    let (shared, own) = (at_least(SHARED_WINDOW), at_least(LOCAL_WINDOW));
    (mask & !shared, shared & !own, own)
}

/// Offsets in shared memory of generic addresses.
fn shared_offsets(address: &Long) -> Long {
    address.map(|address| address.wrapping_sub(SHARED_WINDOW))
}

fn outside(lane: u32, address: u64, what: &str) -> Trouble {
    Trouble { kind: Kind::OutOfBounds, lane, address: Some(address), detail: format!("outside of {what}") }
}

/// The space that decides where an access goes: addresses of windows may come without their space.
#[inline]
fn goes_to(space: Space, address: &Long, mask: u32) -> Space {
    match space {
        Space::Global if address[mask.trailing_zeros() as usize & 31] < SHARED_WINDOW => Space::Global,
        Space::Shared => Space::Shared,
        _ => Space::Generic,
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
    match goes_to(access.space, &address, mask) {
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
    match goes_to(access.space, &address, mask) {
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

fn each_lane(mask: u32) -> impl Iterator<Item = usize> {
    (0..32).filter(move |lane| mask >> lane & 1 != 0)
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

fn load_own(core: &Core<'_>, warp: &Warp, lanes: &Lanes<'_>, out: &mut Values) -> Result<(), Trouble> {
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
fn store_own(warp: &mut Warp, lanes: &Lanes<'_>, values: &Values) -> Result<(), Trouble> {
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

/// `atom` and `red`.
pub fn atom(
    core: &mut Core<'_>,
    warp: &mut Warp,
    memory: &mut Block,
    op: &Op,
    mask: u32,
) -> Result<(), Trouble> {
    let Op::Atom { space, f, bytes, d, addr, b, c, order, scope } = *op else { return Ok(()) };
    let long = bytes == 8;
    let address = addresses(warp, addr);
    let operand = |place: u16| match long {
        true => warp.longs[usize::from(place)],
        false => warp.words[usize::from(place)].map(u64::from),
    };
    let (b, c) = (operand(b), operand(c));
    let mut change = |lane: u32, old: u64| changed(f, bytes, old, b[lane as usize], c[lane as usize]);
    let mut out: Values = [[0; 4]; 32];
    let lanes = Lanes { warp: warp.id, mask, address: &address, bytes: u32::from(bytes) };
    match goes_to(space, &address, mask) {
        Space::Shared => memory.atomic_shared(&mut core.launch, &lanes, &mut change, &mut out)?,
        Space::Global => {
            memory.atomic_global(&mut core.launch, &lanes, order, scope, &mut change, &mut out)?;
        }
        _ => {
            let (global, shared, own) = split(&address, mask);
            if own != 0 {
                let lane = own.trailing_zeros();
                return Err(outside(lane, address[lane as usize], "global and shared memory"));
            }
            if global != 0 {
                let lanes = Lanes { mask: global, ..lanes };
                memory.atomic_global(&mut core.launch, &lanes, order, scope, &mut change, &mut out)?;
            }
            if shared != 0 {
                let lanes = Lanes { mask: shared, address: &shared_offsets(&address), ..lanes };
                memory.atomic_shared(&mut core.launch, &lanes, &mut change, &mut out)?;
            }
        }
    }
    if d != NONE {
        for lane in each_lane(mask) {
            match long {
                true => {
                    warp.longs[usize::from(d)][lane] = u64::from(out[lane][0]) | u64::from(out[lane][1]) << 32
                }
                false => warp.words[usize::from(d)][lane] = out[lane][0],
            }
        }
    }
    Ok(())
}

/// What an atomic leaves behind; none where a compare fails.
fn changed(f: AtomOp, bytes: u8, old: u64, b: u64, c: u64) -> Option<u64> {
    let signed = |value: u64| if bytes == 8 { value as i64 } else { i64::from(value as i32) };
    let single = |bits: u64| f32::from_bits(bits as u32);
    let halves = |is_bf16: bool, shift: u32| {
        let wide = |bits: u64| match is_bf16 {
            true => f64::from(f32::from_bits(((bits >> shift) as u32 & 0xffff) << 16)),
            false => f64::from(super::half::f16_to_f32((bits >> shift) as u16)),
        };
        u64::from(super::half::narrow(wide(old) + wide(b), is_bf16, Round::Nearest)) << shift
    };
    Some(match f {
        AtomOp::Add => old.wrapping_add(b),
        AtomOp::MinU => old.min(b),
        AtomOp::MaxU => old.max(b),
        AtomOp::MinS => {
            if signed(old) <= signed(b) {
                old
            } else {
                b
            }
        }
        AtomOp::MaxS => {
            if signed(old) >= signed(b) {
                old
            } else {
                b
            }
        }
        AtomOp::And => old & b,
        AtomOp::Or => old | b,
        AtomOp::Xor => old ^ b,
        AtomOp::Exch => b,
        AtomOp::Cas => return (old == b).then_some(c),
        AtomOp::Inc => {
            if old >= b {
                0
            } else {
                old + 1
            }
        }
        AtomOp::Dec => {
            if old == 0 || old > b {
                b
            } else {
                old - 1
            }
        }
        AtomOp::AddF32 => u64::from((single(old) + single(b)).to_bits()),
        AtomOp::AddF64 => (f64::from_bits(old) + f64::from_bits(b)).to_bits(),
        AtomOp::AddF16 => halves(false, 0),
        AtomOp::AddBf16 => halves(true, 0),
        AtomOp::AddF16x2 => halves(false, 0) | halves(false, 16),
        AtomOp::AddBf16x2 => halves(true, 0) | halves(true, 16),
    })
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
