//! Blocks in turns.

use super::barrier::{self, Barriers};
use super::random::Random;
use super::registers::{Place, Warp};
use super::warp::{self, Core, Outcome, Stop};
use super::{MAX_SHARED, Setup};
use crate::counters::Counters;
use crate::fault::{Fault, Kind, Trouble};
use crate::memory::{self, Device};
use crate::ptx::{Kernel, Module};

/// Instructions of a warp's turn, at least; up to twice as many.
const TURN: u64 = 256;
/// Most blocks of a launch: their order is shuffled in memory.
const MAX_BLOCKS: u64 = 1 << 26;

/// A block that runs.
pub struct Block {
    pub memory: memory::Block,
    pub warps: Vec<Warp>,
    pub barriers: Barriers,
    pub at: [u32; 3],
}

impl Block {
    pub fn live(&self) -> u32 {
        self.warps.iter().map(|warp| warp.live.count_ones()).sum()
    }
}

struct Grid<'m> {
    module: &'m Module,
    kernel: &'m Kernel,
    setup: &'m Setup,
    core: Core<'m>,
    random: Random,
    /// Register files of blocks that ended.
    spare: Vec<Warp>,
    spent: u64,
}

fn bad(kernel: &str, detail: String) -> Fault {
    Fault {
        kind: Kind::BadLaunch,
        kernel: kernel.to_owned(),
        line: 0,
        text: String::new(),
        block: [0; 3],
        thread: [0; 3],
        address: None,
        detail,
    }
}

/// Refuses launches that no device takes.
fn check(kernel: &Kernel, setup: &Setup) -> Result<(), String> {
    let product = |sizes: &[u32; 3]| sizes.iter().map(|&size| u128::from(size)).product::<u128>();
    let (threads, blocks) = (product(&setup.block), product(&setup.grid));
    if threads == 0 || threads > 1024 || setup.block[2] > 64 {
        return Err(format!("a block of {:?} threads", setup.block));
    }
    if blocks == 0 || setup.grid[0] > i32::MAX as u32 || setup.grid[1] > 65535 || setup.grid[2] > 65535 {
        return Err(format!("a grid of {:?} blocks", setup.grid));
    }
    if blocks > u128::from(MAX_BLOCKS) {
        return Err(format!("{blocks} blocks; this machine takes {MAX_BLOCKS}"));
    }
    if kernel.max_threads.is_some_and(|most| threads > u128::from(most)) {
        return Err(format!("{threads} threads in a block; .maxntid says {:?}", kernel.max_threads));
    }
    if kernel.required_threads.is_some_and(|due| due != setup.block) {
        return Err(format!("a block of {:?}; .reqntid says {:?}", setup.block, kernel.required_threads));
    }
    if shared_bytes(kernel, setup) > MAX_SHARED {
        return Err(format!("{} bytes of shared memory in a block", shared_bytes(kernel, setup)));
    }
    if setup.params.len() != kernel.param_bytes as usize {
        return Err(format!(
            "{} bytes of parameters; the kernel takes {}",
            setup.params.len(),
            kernel.param_bytes
        ));
    }
    Ok(())
}

fn shared_bytes(kernel: &Kernel, setup: &Setup) -> u32 {
    match setup.dynamic_shared {
        0 => kernel.static_shared_bytes,
        bytes => kernel.dynamic_shared_at.saturating_add(bytes),
    }
}

pub fn run(module: &Module, name: &str, setup: &Setup, device: &mut Device) -> Result<Counters, Fault> {
    let kernel = module.kernel(name).ok_or_else(|| bad(name, "no kernel of this name".into()))?;
    check(kernel, setup).map_err(|detail| bad(name, detail))?;
    let core = Core::new(kernel, &setup.params, &module.constants, memory::Launch::new(device));
    let random = Random::new(setup.seed);
    let mut grid = Grid { module, kernel, setup, core, random, spare: Vec::new(), spent: 0 };
    grid.run()?;
    Ok(grid.core.count(setup.coverage))
}

impl Grid<'_> {
    fn run(&mut self) -> Result<(), Fault> {
        let [x, y, z] = self.setup.grid;
        let mut left: Vec<u32> = (0..x * y * z).collect();
        self.random.shuffle(&mut left);
        let most = self.setup.resident_blocks.max(1) as usize;
        let mut resident: Vec<Block> = Vec::new();
        while !left.is_empty() || !resident.is_empty() {
            while resident.len() < most
                && let Some(index) = left.pop()
            {
                let block = self.start(index);
                resident.push(block);
            }
            self.random.shuffle(&mut resident);
            for block in &mut resident {
                self.turn(block).map_err(|(warp, stop)| self.fault(block, warp, stop))?;
            }
            self.end(&mut resident)?;
            if self.spent > self.setup.max_instructions {
                return Err(self.too_long(&resident));
            }
        }
        Ok(())
    }

    fn start(&mut self, index: u32) -> Block {
        let [x, y, _] = self.setup.grid;
        let at = [index % x, index / x % y, index / x / y];
        let threads: u32 = self.setup.block.iter().product();
        let shared = shared_bytes(self.kernel, self.setup);
        let place = Place { block: self.setup.block, at, grid: self.setup.grid, shared };
        let warps = (0..threads.div_ceil(32))
            .map(|id| {
                let mut warp = self.spare.pop().unwrap_or_default();
                warp.reset(self.kernel, id, threads, &place, self.setup.dynamic_shared);
                warp
            })
            .collect();
        let memory = memory::Block::new(index, shared, threads);
        Block { memory, warps, barriers: Barriers::default(), at }
    }

    /// Gives each warp of a block a turn.
    fn turn(&mut self, block: &mut Block) -> Result<(), (u32, Stop)> {
        let mut order: [u8; 32] = std::array::from_fn(|index| index as u8);
        let order = &mut order[..block.warps.len()];
        self.random.shuffle(order);
        let mut moved = false;
        for &id in &*order {
            let mut budget = TURN + self.random.below(TURN);
            let warp = u32::from(id);
            while budget > 0 {
                let had = block.warps[usize::from(id)].live;
                let (outcome, used) =
                    warp::turn(&mut self.core, block, warp, budget).map_err(|stop| (warp, stop))?;
                self.spent += used;
                budget -= used.min(budget);
                moved |= used > 0;
                match outcome {
                    Outcome::Spent => break,
                    Outcome::Idle => {
                        moved |= barrier::settle(&self.core, block, warp).map_err(|stop| (warp, stop))?;
                        if had != block.warps[usize::from(id)].live {
                            moved |= barrier::release(&self.core, block).map_err(|stop| (warp, stop))?;
                        }
                        if block.warps[usize::from(id)].runnable() == 0 {
                            break;
                        }
                    }
                    Outcome::Arrived { pc, mask } => {
                        barrier::arrive(&self.core, block, warp, pc, mask).map_err(|stop| (warp, stop))?;
                        barrier::release(&self.core, block).map_err(|stop| (warp, stop))?;
                    }
                }
            }
        }
        if moved || block.live() == 0 {
            return Ok(());
        }
        Err(barrier::deadlock(&self.core, block))
    }

    /// Takes away blocks that have ended.
    fn end(&mut self, resident: &mut Vec<Block>) -> Result<(), Fault> {
        let mut index = 0;
        while index < resident.len() {
            if resident[index].live() > 0 {
                index += 1;
                continue;
            }
            let mut block = resident.swap_remove(index);
            if let Err(trouble) = block.memory.finish(&mut self.core.launch) {
                let pc = self.kernel.code.len() as u32 - 1;
                return Err(self.fault(&block, 0, Stop { pc, trouble }));
            }
            self.spare.append(&mut block.warps);
        }
        Ok(())
    }

    fn too_long(&self, resident: &[Block]) -> Fault {
        let detail = format!("more than {} warp instructions", self.setup.max_instructions);
        let running = resident.iter().find_map(|block| {
            let warp = block.warps.iter().find(|warp| warp.live != 0)?;
            Some((block, warp, warp.live.trailing_zeros()))
        });
        match running {
            Some((block, warp, lane)) => {
                let pc = warp.pc[lane as usize];
                let trouble = Trouble { kind: Kind::TooLong, lane, address: None, detail };
                self.fault(block, warp.id, Stop { pc, trouble })
            }
            None => Fault { kind: Kind::TooLong, ..bad(&self.kernel.name, detail) },
        }
    }

    fn fault(&self, block: &Block, warp: u32, stop: Stop) -> Fault {
        let line = self.kernel.code.get(stop.pc as usize).map_or(0, |ins| ins.line);
        let [x, y, _] = self.setup.block;
        let thread = warp * 32 + stop.trouble.lane;
        Fault {
            kind: stop.trouble.kind,
            kernel: self.kernel.name.clone(),
            line,
            text: self.module.line(line).to_owned(),
            block: block.at,
            thread: [thread % x, thread / x % y, thread / x / y],
            address: stop.trouble.address,
            detail: stop.trouble.detail,
        }
    }
}
