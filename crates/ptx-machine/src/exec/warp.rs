//! A warp's turn: which of its lanes go on together, where they part and meet again.

use super::grid::Block;
use super::lanes::Fast;
use super::registers::{Warp, Word};
use super::{access, alu, atomic, convert, float, half, lanes, matrix, shuffle};
use crate::counters::Counters;
use crate::fault::{Kind, Trouble};
use crate::memory::Launch;
use crate::ptx::Kernel;
use crate::ptx::op::{Ins, Op};

/// Something wrong at an instruction.
pub struct Stop {
    pub pc: u32,
    pub trouble: Trouble,
}

impl Stop {
    pub fn new(kind: Kind, pc: u32, mask: u32, detail: impl Into<String>) -> Self {
        let lane = mask.trailing_zeros().min(31);
        Self { pc, trouble: Trouble { kind, lane, address: None, detail: detail.into() } }
    }
}

/// Why a turn ended.
pub enum Outcome {
    /// The instructions of the turn are used up.
    Spent,
    /// No lane can go on.
    Idle,
    /// Lanes have come to a barrier of the block.
    Arrived { pc: u32, mask: u32 },
}

/// What all warps of a launch share.
pub struct Core<'m> {
    pub kernel: &'m Kernel,
    pub params: &'m [u8],
    pub constants: &'m [u8],
    pub launch: Launch<'m>,
    /// The processor has AVX2 and FMA.
    pub fast: Fast,
    counts: Vec<u64>,
    pub mma_issued: u64,
    pub mma_useful: f64,
    /// What `%clock` reads: instructions so far.
    pub clock: u64,
}

impl<'m> Core<'m> {
    pub fn new(kernel: &'m Kernel, params: &'m [u8], constants: &'m [u8], launch: Launch<'m>) -> Self {
        let counts = vec![0; kernel.code.len()];
        let fast = Fast::detect();
        Self { kernel, params, constants, launch, fast, counts, mma_issued: 0, mma_useful: 0.0, clock: 0 }
    }

    /// All counts of the launch, and the lines that were executed where `coverage` asks.
    pub fn count(self, coverage: bool) -> Counters {
        let mut out = self.launch.counters;
        if coverage {
            let executed = self.kernel.code.iter().zip(&self.counts).filter(|&(_, &count)| count > 0);
            out.executed.extend(executed.map(|(ins, _)| ins.line));
        }
        for (name, &count) in self.kernel.names.iter().zip(&self.counts).filter(|&(_, &count)| count > 0) {
            *out.instructions.entry(name.clone()).or_default() += count;
            out.warp_instructions += count;
        }
        out.mma_issued += self.mma_issued;
        out.mma_useful += self.mma_useful;
        out
    }
}

/// Runs a warp for at most `budget` instructions; says why it stopped, and how many it ran.
pub fn turn(core: &mut Core<'_>, block: &mut Block, id: u32, budget: u64) -> Result<(Outcome, u64), Stop> {
    let kernel = core.kernel;
    let code = &kernel.code[..];
    let warp = &mut block.warps[id as usize];
    let mut left = budget;
    loop {
        let runnable = warp.runnable();
        if runnable == 0 {
            return Ok((Outcome::Idle, budget - left));
        }
        // Lanes that spin on what another of their own warp will do must not keep it from doing so.
        let pick = (warp.parted_turns > 8).then(|| {
            let nth = core.clock % u64::from(runnable.count_ones());
            (0..nth).fold(runnable, |mask, _| mask & (mask - 1)).trailing_zeros()
        });
        let (mut pc, group, next) = warp.choose(runnable, pick);
        if group == runnable || pick.is_some() {
            warp.parted_turns = 0;
        }
        while pc < next {
            if left == 0 {
                warp.set_pc(group, pc);
                warp.parted_turns += u32::from(group != runnable);
                return Ok((Outcome::Spent, budget));
            }
            left -= 1;
            core.counts[pc as usize] += 1;
            core.clock += 1;
            let ins = &code[pc as usize];
            let mask = warp.guarded(ins, group);
            match &ins.op {
                Op::Bra { target } if mask == group => pc = *target,
                _ if mask == 0 => pc += 1,
                Op::Bra { target } => {
                    warp.set_pc(group & !mask, pc + 1);
                    warp.set_pc(mask, *target);
                    break;
                }
                Op::Brx { a, targets } => {
                    warp.set_pc(group & !mask, pc + 1);
                    branch_indexed(warp, warp.words[usize::from(*a)], targets, pc, mask)?;
                    break;
                }
                Op::Exit => {
                    warp.live &= !mask;
                    warp.set_pc(group & !mask, pc + 1);
                    shuffle::gather_again(core, warp, &mut block.memory)?;
                    break;
                }
                Op::Barrier { aligned, .. } => {
                    warp.set_pc(group & !mask, pc + 1);
                    warp.set_pc(mask, pc);
                    if *aligned && mask != warp.live {
                        warp.parked |= mask;
                        break;
                    }
                    return Ok((Outcome::Arrived { pc, mask }, budget - left));
                }
                op => match shuffle::members(warp, op, mask, pc)? {
                    Some(false) => {
                        warp.set_pc(group & !mask, pc + 1);
                        warp.set_pc(mask, pc);
                        warp.parked |= mask;
                        shuffle::gather(core, warp, &mut block.memory, pc, mask)?;
                        break;
                    }
                    _ => {
                        step(core, warp, &mut block.memory, ins, pc, mask)?;
                        pc += 1;
                    }
                },
            }
            if pc >= next {
                warp.set_pc(group, pc);
                break;
            }
        }
    }
}

fn branch_indexed(warp: &mut Warp, index: Word, targets: &[u32], pc: u32, mask: u32) -> Result<(), Stop> {
    for lane in (0..32).filter(|lane| mask >> lane & 1 != 0) {
        let target = targets.get(index[lane] as usize);
        let out = || Stop::new(Kind::OutOfBounds, pc, 1 << lane, "index outside of the list of targets");
        warp.pc[lane] = *target.ok_or_else(out)?;
    }
    Ok(())
}

/// Executes an instruction that goes on to the next one.
pub fn step(
    core: &mut Core<'_>,
    warp: &mut Warp,
    memory: &mut crate::memory::Block,
    ins: &Ins,
    pc: u32,
    mask: u32,
) -> Result<(), Stop> {
    let at = |trouble| Stop { pc, trouble };
    match &ins.op {
        Op::Nop => {}
        Op::F32 { .. } | Op::F64 { .. } => float::run(core.fast, &ins.op, warp, mask),
        Op::Half { .. } | Op::CvtPack { .. } => half::run(core.fast, &ins.op, warp, mask),
        Op::Cvt(cvt) => convert::run(core.fast, cvt, warp, mask),
        Op::Load(access) => {
            core.launch.line = ins.line;
            access::load(core, warp, memory, access, mask).map_err(at)?;
        }
        Op::Store(access) => {
            core.launch.line = ins.line;
            access::store(core, warp, memory, access, mask).map_err(at)?;
        }
        Op::Atom { .. } => {
            core.launch.line = ins.line;
            atomic::atom(core, warp, memory, &ins.op, mask).map_err(at)?;
        }
        Op::CpAsync { .. } => {
            core.launch.line = ins.line;
            access::copy_async(core, warp, memory, &ins.op, mask).map_err(at)?;
        }
        Op::CommitGroup => memory.commit_async(warp.id, mask),
        Op::WaitGroup { keep, all } => {
            if *all {
                memory.commit_async(warp.id, mask);
            }
            memory.wait_async(warp.id, mask, *keep);
        }
        Op::Fence { order, scope } => memory.fence(&mut core.launch, warp.id, mask, *order, *scope),
        Op::Ldmatrix { .. } => {
            core.launch.line = ins.line;
            matrix::load(core, warp, memory, &ins.op).map_err(at)?;
        }
        Op::Mma(mma) => matrix::mma(core, warp, mma),
        Op::Movmatrix { d, a } => matrix::transpose(warp, *d, *a),
        Op::WarpSync { .. } => memory.sync_warp(warp.id, mask),
        Op::Shfl { .. } | Op::Vote { .. } | Op::Match { .. } | Op::Redux { .. } | Op::Elect { .. } => {
            shuffle::run(warp, &ins.op, mask).map_err(at)?;
        }
        Op::Clock { long, d } => {
            let clock = core.clock;
            if *long {
                lanes::put_long(&mut warp.longs[usize::from(*d)], &[clock; 32], mask);
            } else {
                lanes::put(&mut warp.words[usize::from(*d)], &[clock as u32; 32], mask);
            }
        }
        Op::Unknown(why) => return Err(Stop::new(Kind::UnknownInstruction, pc, mask, &**why)),
        // There is no kind for it: like an instruction that cannot be executed.
        Op::Trap => return Err(Stop::new(Kind::UnknownInstruction, pc, mask, "the kernel trapped")),
        op => alu::run(core.fast, op, warp, mask),
    }
    Ok(())
}
