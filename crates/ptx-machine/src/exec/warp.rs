//! One warp: its registers, and which of its lanes go on together.

use super::grid::Block;
use super::{access, alu, convert, float, half, matrix, shuffle};
use crate::counters::Counters;
use crate::fault::{Kind, Trouble};
use crate::memory::Launch;
use crate::ptx::Kernel;
use crate::ptx::op::{Cmp, Ins, NONE, Op, Special};

/// 32 lanes of a 32-bit register.
pub type Word = [u32; 32];
/// 32 lanes of a 64-bit register.
pub type Long = [u64; 32];

/// A warp.
#[derive(Default)]
pub struct Warp {
    pub id: u32,
    pub words: Vec<Word>,
    pub longs: Vec<Long>,
    pub preds: Vec<u32>,
    pub carry: u32,
    pub pc: Word,
    /// Lanes that have not exited.
    pub live: u32,
    /// Lanes at an instruction that waits for others of the warp.
    pub parked: u32,
    /// Lanes that have arrived at a barrier of the block.
    pub waiting: u32,
    /// Turns that ended with lanes at different places.
    parted_turns: u32,
    pub local: Vec<u8>,
    pub local_bytes: usize,
}

/// Where a block stands.
pub struct Place {
    pub block: [u32; 3],
    pub at: [u32; 3],
    pub grid: [u32; 3],
    pub shared: u32,
}

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
    pub fast: bool,
    counts: Vec<u64>,
    pub mma_issued: u64,
    pub mma_useful: f64,
    /// What `%clock` reads: instructions so far.
    pub clock: u64,
}

impl<'m> Core<'m> {
    pub fn new(kernel: &'m Kernel, params: &'m [u8], constants: &'m [u8], launch: Launch<'m>) -> Self {
        let counts = vec![0; kernel.code.len()];
        let fast = alu::fast();
        Self { kernel, params, constants, launch, fast, counts, mma_issued: 0, mma_useful: 0.0, clock: 0 }
    }

    /// All counts of the launch.
    pub fn count(self) -> Counters {
        let mut out = self.launch.counters;
        for (name, &count) in self.kernel.names.iter().zip(&self.counts).filter(|&(_, &count)| count > 0) {
            *out.instructions.entry(name.clone()).or_default() += count;
            out.warp_instructions += count;
        }
        out.mma_issued += self.mma_issued;
        out.mma_useful += self.mma_useful;
        out
    }
}

impl Warp {
    /// Lanes that can go on.
    pub fn runnable(&self) -> u32 {
        self.live & !self.parked & !self.waiting
    }

    /// Prepares it for a new block.
    pub fn reset(&mut self, kernel: &Kernel, id: u32, threads: u32, place: &Place, dynamic_shared: u32) {
        let file = &kernel.file;
        self.id = id;
        self.words.clear();
        self.words.resize(file.words, [0; 32]);
        self.longs.clear();
        self.longs.resize(file.longs, [0; 32]);
        self.preds.clear();
        self.preds.resize(file.preds, 0);
        self.local.clear();
        self.local_bytes = kernel.local_bytes as usize;
        self.local.resize(self.local_bytes * 32, 0);
        let lanes = (threads - id * 32).min(32);
        self.live = u32::MAX >> (32 - lanes);
        (self.pc, self.parked, self.waiting, self.carry, self.parted_turns) = ([0; 32], 0, 0, 0, 0);
        for &(at, value) in &file.word_constants {
            self.words[usize::from(at)] = [value; 32];
        }
        for &(at, value) in &file.long_constants {
            self.longs[usize::from(at)] = [value; 32];
        }
        for &(at, value) in &file.pred_constants {
            self.preds[usize::from(at)] = if value { u32::MAX } else { 0 };
        }
        for &(at, special) in &file.specials {
            self.words[usize::from(at)] =
                std::array::from_fn(|lane| special_value(special, id, lane as u32, place, dynamic_shared));
        }
    }

    fn guarded(&self, ins: &Ins, group: u32) -> u32 {
        if ins.guard == NONE {
            return group;
        }
        let holds = self.preds[usize::from(ins.guard)];
        group & if ins.unless { !holds } else { holds }
    }

    pub fn set_pc(&mut self, mask: u32, pc: u32) {
        for lane in 0..32 {
            if mask >> lane & 1 != 0 {
                self.pc[lane] = pc;
            }
        }
    }

    /// The lanes that go on together, and where another group stands first behind them.
    fn choose(&mut self, runnable: u32, pick: Option<u32>) -> (u32, u32, u32) {
        let lanes = |mask: u32| (0..32).filter(move |lane| mask >> lane & 1 != 0);
        let lowest = lanes(runnable).map(|lane| self.pc[lane]).min().unwrap_or(0);
        let pc = pick.map_or(lowest, |lane| self.pc[lane as usize]);
        let (mut group, mut next) = (0, u32::MAX);
        for lane in lanes(runnable) {
            if self.pc[lane] == pc {
                group |= 1 << lane;
            } else if self.pc[lane] > pc {
                next = next.min(self.pc[lane]);
            }
        }
        (pc, group, next)
    }
}

fn special_value(special: Special, warp: u32, lane: u32, place: &Place, dynamic_shared: u32) -> u32 {
    let [x, y, z] = place.block;
    let thread = warp * 32 + lane;
    match special {
        Special::Tid(axis) => [thread % x, thread / x % y, thread / x / y][usize::from(axis)],
        Special::Ntid(axis) => place.block[usize::from(axis)],
        Special::Ctaid(axis) => place.at[usize::from(axis)],
        Special::Nctaid(axis) => place.grid[usize::from(axis)],
        Special::LaneId => lane,
        Special::WarpId => warp,
        Special::Nwarpid => (x * y * z).div_ceil(32),
        Special::Nsmid => 1,
        Special::SmId | Special::Zero => 0,
        Special::WarpSize => 32,
        Special::LaneMask(Cmp::Eq) => 1 << lane,
        Special::LaneMask(Cmp::Lt) => (1 << lane) - 1,
        Special::LaneMask(Cmp::Le) => u32::MAX >> (31 - lane),
        Special::LaneMask(Cmp::Gt) => !(u32::MAX >> (31 - lane)),
        Special::LaneMask(_) => u32::MAX << lane,
        Special::DynamicShared => dynamic_shared,
        Special::TotalShared => place.shared,
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
        if next == u32::MAX && pick.is_none() {
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
            access::atom(core, warp, memory, &ins.op, mask).map_err(at)?;
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
                alu::put_long(&mut warp.longs[usize::from(*d)], &[clock; 32], mask);
            } else {
                alu::put(&mut warp.words[usize::from(*d)], &[clock as u32; 32], mask);
            }
        }
        Op::Unknown(why) => return Err(Stop::new(Kind::UnknownInstruction, pc, mask, &**why)),
        // There is no kind for it: like an instruction that cannot be executed.
        Op::Trap => return Err(Stop::new(Kind::UnknownInstruction, pc, mask, "the kernel trapped")),
        op => alu::run(core.fast, op, warp, mask),
    }
    Ok(())
}
