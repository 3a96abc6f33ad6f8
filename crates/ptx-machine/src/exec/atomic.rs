//! Atomics.

use super::access::{addresses, each_lane, goes_to, shared_offsets, split};
use super::registers::Warp;
use super::warp::Core;
use super::windows::outside;
use crate::fault::Trouble;
use crate::memory::{Block, Lanes, Values};
use crate::ptx::op::{AtomOp, NONE, Op, Round, Space};

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
    match goes_to(space, &address, mask)? {
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
