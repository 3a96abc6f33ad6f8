//! A warp's registers and the places of its lanes.

use crate::ptx::Kernel;
use crate::ptx::op::{Cmp, Ins, NONE, Special};

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
    pub parted_turns: u32,
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

    /// The lanes of a group that an instruction's guard lets through.
    pub fn guarded(&self, ins: &Ins, group: u32) -> u32 {
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
    pub fn choose(&mut self, runnable: u32, pick: Option<u32>) -> (u32, u32, u32) {
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
