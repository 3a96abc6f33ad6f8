//! Barriers of a block.
//!
//! An aligned barrier takes a warp whole: all lanes that have not exited must come to the same one. Exited lanes do not
//! count against a barrier, as on hardware. A barrier with no count expects the block's live threads; one with a count
//! takes an aligned arrival as 32 threads, whatever the lanes that live.

use super::grid::Block;
use super::lanes::put;
use super::warp::{Core, Stop};
use crate::fault::Kind;
use crate::memory::Arrival;
use crate::ptx::op::{BarrierMode, NONE, Op};

/// One barrier.
#[derive(Default)]
struct Barrier {
    /// Threads that arrived.
    arrived: u32,
    /// Threads that were said to be due; none: all.
    due: Option<u32>,
    /// Reduces?
    red: bool,
    /// What those brought who do not wait.
    arrivals: Vec<Arrival>,
    /// Arrivals that wait: warp, lanes, program counter.
    sleepers: Vec<(u32, u32, u32)>,
    /// Threads whose predicate held, and all threads, of a reduction.
    held: u32,
    votes: u32,
}

/// The sixteen barriers of a block.
#[derive(Default)]
pub struct Barriers([Barrier; 16]);

/// Lanes have come to a barrier.
pub fn arrive(core: &Core<'_>, block: &mut Block, warp: u32, pc: u32, mask: u32) -> Result<(), Stop> {
    let Op::Barrier { mode, aligned, id, count, a, not, .. } = core.kernel.code[pc as usize].op else {
        return Ok(());
    };
    let lanes = &mut block.warps[warp as usize];
    let first = mask.trailing_zeros() as usize;
    let wrong = |detail: String| Err(Stop::new(Kind::DivergentBarrier, pc, mask, detail));
    let uniform = |place: u16| {
        let word = &lanes.words[usize::from(place)];
        (0..32).filter(|lane| mask >> lane & 1 != 0).all(|lane| word[lane] == word[first])
    };
    if !uniform(id) || (count != NONE && !uniform(count)) {
        return wrong("lanes name different barriers".into());
    }
    let id = lanes.words[usize::from(id)][first];
    let due = (count != NONE).then(|| lanes.words[usize::from(count)][first]);
    let red = !matches!(mode, BarrierMode::Sync | BarrierMode::Arrive);
    let Some(barrier) = block.barriers.0.get_mut(id as usize) else {
        return wrong(format!("barrier {id}; there are 16"));
    };
    if due.is_some_and(|due| due == 0 || due % 32 != 0) {
        return wrong(format!("barrier {id} for {due:?} threads, no multiple of 32"));
    }
    if barrier.arrived != 0 && (barrier.due != due || barrier.red != red) {
        return wrong(format!(
            "barrier {id}: others came with {:?} threads due, these with {due:?}",
            barrier.due
        ));
    }
    barrier.due = due;
    barrier.red = red;
    barrier.arrived += if due.is_some() && aligned { 32 } else { mask.count_ones() };
    if red {
        let holds = lanes.preds[usize::from(a)] ^ if not { u32::MAX } else { 0 };
        barrier.held += (holds & mask).count_ones();
        barrier.votes += mask.count_ones();
    }
    lanes.parked &= !mask;
    if mode == BarrierMode::Arrive {
        lanes.set_pc(mask, pc + 1);
        barrier.arrivals.push(block.memory.arrive(warp));
    } else {
        lanes.waiting |= mask;
        barrier.sleepers.push((warp, mask, pc));
    }
    match barrier.due {
        Some(due) if barrier.arrived > due => wrong(format!("barrier {id}: more than {due} threads")),
        _ => Ok(()),
    }
}

/// Lets go whom a full barrier holds; says if there was any.
pub fn release(core: &Core<'_>, block: &mut Block) -> Result<bool, Stop> {
    let live = block.live();
    let mut any = false;
    for index in 0..16 {
        let barrier = &block.barriers.0[index];
        if barrier.arrived == 0 || barrier.arrived < barrier.due.unwrap_or(live) {
            continue;
        }
        any = true;
        let barrier = std::mem::take(&mut block.barriers.0[index]);
        let waited: Vec<_> = barrier.sleepers.iter().map(|&(warp, mask, _)| (warp, mask)).collect();
        block.memory.barrier(&waited, &barrier.arrivals);
        for (warp, mask, pc) in barrier.sleepers {
            let warp = &mut block.warps[warp as usize];
            warp.waiting &= !mask;
            warp.set_pc(mask, pc + 1);
            let Op::Barrier { mode, d, .. } = core.kernel.code[pc as usize].op else { continue };
            let holds = match mode {
                BarrierMode::RedPopc => {
                    put(&mut warp.words[usize::from(d)], &[barrier.held; 32], mask);
                    continue;
                }
                BarrierMode::RedAnd => barrier.held == barrier.votes,
                BarrierMode::RedOr => barrier.held > 0,
                BarrierMode::Sync | BarrierMode::Arrive => continue,
            };
            let pred = &mut warp.preds[usize::from(d)];
            *pred = *pred & !mask | if holds { mask } else { 0 };
        }
    }
    Ok(any)
}

/// What the lanes of a warp wait for of which none can go on: an aligned barrier that is complete now that others have
/// exited, or something that cannot come. Says if anything changed.
pub fn settle(core: &Core<'_>, block: &mut Block, id: u32) -> Result<bool, Stop> {
    let warp = &block.warps[id as usize];
    if warp.parked == 0 {
        return Ok(false);
    }
    let at = |lane: u32| warp.pc[lane as usize];
    let pc = at(warp.parked.trailing_zeros());
    let together = (0..32).filter(|&lane| warp.live >> lane & 1 != 0).all(|lane| at(lane) == pc);
    if together && matches!(core.kernel.code[pc as usize].op, Op::Barrier { .. }) {
        let live = warp.live;
        arrive(core, block, id, pc, live)?;
        release(core, block)?;
        return Ok(true);
    }
    // Lanes at a barrier of the block may be let go by other warps, and then come.
    if warp.waiting != 0 { Ok(false) } else { Err(stuck(core, block, id)) }
}

/// Why a warp with parked lanes cannot go on.
fn stuck(core: &Core<'_>, block: &Block, id: u32) -> Stop {
    let warp = &block.warps[id as usize];
    let lanes = || (0..32_u32).filter(|&lane| warp.parked >> lane & 1 != 0);
    let op = |lane: u32| &core.kernel.code[warp.pc[lane as usize] as usize].op;
    let barrier = lanes().find(|&lane| matches!(op(lane), Op::Barrier { .. }));
    let lane = barrier.or(lanes().next()).unwrap_or(0);
    let pc = warp.pc[lane as usize];
    let here =
        lanes().filter(|&other| warp.pc[other as usize] == pc).fold(0, |mask, other| mask | 1 << other);
    let others = warp.live & !here;
    let elsewhere = match others {
        0 => "others have exited".to_owned(),
        _ => {
            let other = warp.pc[others.trailing_zeros() as usize] as usize;
            format!("lanes {others:#010x} wait in line {}", core.kernel.code[other].line)
        }
    };
    let kind = if barrier.is_some() { Kind::DivergentBarrier } else { Kind::InactiveLane };
    Stop::new(kind, pc, here, format!("lanes {here:#010x} wait here; {elsewhere}"))
}

/// Why a block in which nothing moves cannot go on.
pub fn deadlock(core: &Core<'_>, block: &Block) -> (u32, Stop) {
    if let Some(warp) = block.warps.iter().find(|warp| warp.parked != 0) {
        return (warp.id, stuck(core, block, warp.id));
    }
    let waiting = block.warps.iter().find(|warp| warp.waiting != 0);
    let (id, lane, pc) = waiting.map_or((0, 0, 0), |warp| {
        let lane = warp.waiting.trailing_zeros();
        (warp.id, lane, warp.pc[lane as usize])
    });
    let places = block.barriers.0.iter().enumerate().filter(|(_, barrier)| barrier.arrived != 0);
    let places: Vec<String> = places
        .map(|(index, barrier)| {
            let due = barrier.due.unwrap_or_else(|| block.live());
            format!("barrier {index} has {} of {due} threads", barrier.arrived)
        })
        .collect();
    (id, Stop::new(Kind::Deadlock, pc, 1 << lane, places.join(", ")))
}
