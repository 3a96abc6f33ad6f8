//! Instructions among the lanes of a warp that name their members by a mask.

use super::lanes::put;
use super::registers::Warp;
use super::warp::{Core, Stop, step};
use crate::fault::{Kind, Trouble};
use crate::memory;
use crate::ptx::op::{IntOp, NONE, Op, R, ShflMode, VoteMode};

fn lanes(mask: u32) -> impl Iterator<Item = usize> {
    (0..32).filter(move |lane| mask >> lane & 1 != 0)
}

/// The register with the members' mask; a matrix operation's members are all lanes.
enum Members {
    Register(R),
    All,
}

fn named(op: &Op) -> Option<Members> {
    match *op {
        Op::Shfl { mask, .. }
        | Op::Vote { mask, .. }
        | Op::Match { mask, .. }
        | Op::Redux { mask, .. }
        | Op::Elect { mask, .. }
        | Op::WarpSync { mask } => Some(Members::Register(mask)),
        Op::Ldmatrix { .. } | Op::Movmatrix { .. } | Op::Mma(_) => Some(Members::All),
        _ => None,
    }
}

/// Are these lanes all members that live? None where the instruction names no members. A mask may name lanes that have
/// exited, or that the block never had, but for a matrix operation; a lane that leaves itself out is a fault.
pub fn members(warp: &Warp, op: &Op, mask: u32, pc: u32) -> Result<Option<bool>, Stop> {
    let Some(members) = named(op) else { return Ok(None) };
    let Members::Register(register) = members else {
        return match warp.live == u32::MAX {
            true => Ok(Some(mask == u32::MAX)),
            false => Err(gone(pc, mask, !warp.live)),
        };
    };
    let word = &warp.words[usize::from(register)];
    let mut all = true;
    for lane in lanes(mask) {
        let named = word[lane];
        if named >> lane & 1 == 0 {
            let detail = format!("the lane is not in its own mask {named:#010x}");
            return Err(Stop::new(Kind::InactiveLane, pc, 1 << lane, detail));
        }
        all &= named & warp.live == mask;
    }
    Ok(Some(all))
}

fn gone(pc: u32, mask: u32, missing: u32) -> Stop {
    Stop::new(Kind::InactiveLane, pc, mask, format!("lanes {missing:#010x} are named and have exited"))
}

/// Lanes have been parked at an instruction: executes it for each set of members that is there now.
pub fn gather(
    core: &mut Core<'_>,
    warp: &mut Warp,
    memory: &mut memory::Block,
    pc: u32,
    new: u32,
) -> Result<(), Stop> {
    let kernel = core.kernel;
    let ins = &kernel.code[pc as usize];
    let there = lanes(warp.parked).filter(|&lane| warp.pc[lane] == pc).fold(0, |mask, lane| mask | 1 << lane);
    let mut left = new;
    while left != 0 {
        let first = left.trailing_zeros() as usize;
        let (members, same) = match named(&ins.op) {
            Some(Members::Register(register)) => {
                let word = warp.words[usize::from(register)];
                (
                    word[first] & warp.live,
                    lanes(there)
                        .filter(|&lane| word[lane] == word[first])
                        .fold(0, |mask, lane| mask | 1 << lane),
                )
            }
            _ => (u32::MAX, there),
        };
        left &= !(members | 1 << first);
        if members & !same == 0 {
            step(core, warp, memory, ins, pc, members)?;
            warp.parked &= !members;
            warp.set_pc(members, pc + 1);
        }
    }
    Ok(())
}

/// Lanes have exited: those who waited for them go on.
pub fn gather_again(core: &mut Core<'_>, warp: &mut Warp, memory: &mut memory::Block) -> Result<(), Stop> {
    let mut left = warp.parked;
    while left != 0 {
        let pc = warp.pc[left.trailing_zeros() as usize];
        let here = lanes(left).filter(|&lane| warp.pc[lane] == pc).fold(0, |mask, lane| mask | 1 << lane);
        left &= !here;
        if named(&core.kernel.code[pc as usize].op).is_some() {
            gather(core, warp, memory, pc, here)?;
        }
    }
    Ok(())
}

/// Executes a shuffle, a vote, a match or a reduction among the lanes of a mask.
pub fn run(warp: &mut Warp, op: &Op, mask: u32) -> Result<(), Trouble> {
    match *op {
        Op::Shfl { mode, d, p, a, b, c, .. } => shfl(warp, mode, [d, p, a, b, c], mask),
        Op::Vote { mode, d, a, not, .. } => {
            let holds = (warp.preds[usize::from(a)] ^ if not { u32::MAX } else { 0 }) & mask;
            let yes = match mode {
                VoteMode::Ballot => {
                    put(&mut warp.words[usize::from(d)], &[holds; 32], mask);
                    return Ok(());
                }
                VoteMode::All => holds == mask,
                VoteMode::Any => holds != 0,
                VoteMode::Uni => holds == mask || holds == 0,
            };
            set_pred(warp, d, if yes { mask } else { 0 }, mask);
            Ok(())
        }
        Op::Match { all, long, d, p, a, .. } => {
            let value: [u64; 32] = match long {
                true => warp.longs[usize::from(a)],
                false => warp.words[usize::from(a)].map(u64::from),
            };
            let same = |lane: usize| {
                lanes(mask)
                    .filter(|&other| value[other] == value[lane])
                    .fold(0_u32, |found, other| found | 1 << other)
            };
            let mut found = [0; 32];
            lanes(mask).for_each(|lane| found[lane] = same(lane));
            if all {
                let equal = lanes(mask).all(|lane| found[lane] == mask);
                found = [if equal { mask } else { 0 }; 32];
                set_pred(warp, p, if equal { mask } else { 0 }, mask);
            }
            put(&mut warp.words[usize::from(d)], &found, mask);
            Ok(())
        }
        Op::Redux { f, d, a, .. } => {
            let value = warp.words[usize::from(a)];
            let sum = lanes(mask).map(|lane| value[lane]).reduce(|x, y| match f {
                IntOp::Add => x.wrapping_add(y),
                IntOp::MinU => x.min(y),
                IntOp::MaxU => x.max(y),
                IntOp::MinS => (x as i32).min(y as i32) as u32,
                IntOp::MaxS => (x as i32).max(y as i32) as u32,
                IntOp::And => x & y,
                IntOp::Or => x | y,
                _ => x ^ y,
            });
            put(&mut warp.words[usize::from(d)], &[sum.unwrap_or(0); 32], mask);
            Ok(())
        }
        Op::Elect { d, p, .. } => {
            let leader = mask.trailing_zeros();
            put(&mut warp.words[usize::from(d)], &[leader; 32], mask);
            set_pred(warp, p, 1 << leader, mask);
            Ok(())
        }
        _ => Ok(()),
    }
}

fn set_pred(warp: &mut Warp, p: R, value: u32, mask: u32) {
    if p != NONE {
        let pred = &mut warp.preds[usize::from(p)];
        *pred = *pred & !mask | value & mask;
    }
}

/// The PTX manual's own pseudo-code: c holds a clamp value (bits 0..5) and a segment mask (bits 8..13).
fn shfl(warp: &mut Warp, mode: ShflMode, [d, p, a, b, c]: [R; 5], mask: u32) -> Result<(), Trouble> {
    let [value, by, bounds] = [a, b, c].map(|place| warp.words[usize::from(place)]);
    let (mut out, mut inside) = ([0; 32], 0_u32);
    for lane in lanes(mask) {
        let (at, by) = (lane as i32, (by[lane] & 31) as i32);
        let (clamp, segment) = ((bounds[lane] & 31) as i32, (bounds[lane] >> 8 & 31) as i32);
        let most = at & segment | clamp & !segment & 31;
        let (from, holds) = match mode {
            ShflMode::Up => (at - by, at - by >= most),
            ShflMode::Down => (at + by, at + by <= most),
            ShflMode::Bfly => (at ^ by, at ^ by <= most),
            ShflMode::Idx => {
                let from = at & segment | by & !segment & 31;
                (from, from <= most)
            }
        };
        let from = if holds { from & 31 } else { at };
        if mask >> from & 1 == 0 {
            let detail = format!("reads lane {from}, which is not in mask {mask:#010x}");
            return Err(Trouble { kind: Kind::InactiveLane, lane: lane as u32, address: None, detail });
        }
        inside |= u32::from(holds) << lane;
        out[lane] = value[from as usize];
    }
    put(&mut warp.words[usize::from(d)], &out, mask);
    set_pred(warp, p, inside, mask);
    Ok(())
}
