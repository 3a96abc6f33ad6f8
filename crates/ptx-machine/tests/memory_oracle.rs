//! Random programs against a definition of races that keeps everything: for each thread, the set of all accesses that happened
//! before. What memory reports must be a race there; with two warps and no atomics, every race there must be reported.

use std::collections::BTreeSet;

use ptx_machine::fault::{Kind, Trouble};
use ptx_machine::memory::{Block, Device, Lanes, Launch, Order, Scope, Values};

/// Lanes that take part: few, so that they meet often.
const LANES: u32 = 4;
/// Bytes that they access.
const BYTES: u64 = 64;

struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % end
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum What {
    Load,
    Store,
    Atomic,
}

/// One access: its bytes and what it did.
struct Access {
    at: u64,
    bytes: u64,
    what: What,
}

/// Every access so far, and which of them each thread comes after.
struct Definition {
    accesses: Vec<Access>,
    before: Vec<BTreeSet<usize>>,
    /// What a release left at the flag.
    flag: Option<BTreeSet<usize>>,
}

impl Definition {
    fn new(threads: usize) -> Self {
        Self { accesses: Vec::new(), before: vec![BTreeSet::new(); threads], flag: None }
    }

    /// Whether an access races with one before it.
    fn access(&mut self, thread: usize, access: Access) -> bool {
        let race = self.accesses.iter().enumerate().any(|(number, other)| {
            let meets = other.at < access.at + access.bytes && access.at < other.at + other.bytes;
            let loads = other.what == What::Load && access.what == What::Load;
            let atomics = other.what == What::Atomic && access.what == What::Atomic;
            meets && !loads && !atomics && !self.before[thread].contains(&number)
        });
        self.before[thread].insert(self.accesses.len());
        self.accesses.push(access);
        race
    }

    fn join(&mut self, threads: &[usize]) {
        let all: BTreeSet<usize> =
            threads.iter().flat_map(|&thread| self.before[thread].iter().copied()).collect();
        threads.iter().for_each(|&thread| self.before[thread] = all.clone());
    }
}

fn lanes_of(warp: u32) -> Vec<usize> {
    (0..LANES).map(|lane| (warp * LANES + lane) as usize).collect()
}

/// Every lane's address, aligned.
fn addresses(random: &mut Random, bytes: u64, base: u64) -> [u64; 32] {
    std::array::from_fn(|_| base + random.below(BYTES / bytes) * bytes)
}

/// Runs one random program in one block of shared memory up to its first race; races reported, races there were.
fn shared_program(seed: u64, warps: u32, atomics: bool) -> (bool, bool) {
    let mut random = Random(seed * 2 + 1);
    let mut device = Device::default();
    let mut launch = Launch::new(&mut device);
    let mut block = Block::new(0, BYTES as u32, warps * 32);
    let everyone: Vec<(u32, u32)> = (0..warps).map(|warp| (warp, !0)).collect();
    let fill =
        Lanes { warp: 0, mask: 0xf, address: &std::array::from_fn(|lane| lane as u64 * 16), bytes: 16 };
    block.store_shared(&mut launch, &fill, &Values::default()).unwrap();
    block.barrier(&everyone, &[]);
    let mut definition = Definition::new((warps * LANES) as usize);
    // Some programs synchronise rarely, some so often that they go far.
    let often = seed % 4 * 8;
    for _ in 0..60 {
        let warp = random.below(u64::from(warps)) as u32;
        match random.below(10 + often) {
            10.. => {
                block.barrier(&everyone, &[]);
                definition.join(&(0..(warps * LANES) as usize).collect::<Vec<_>>());
            }
            0 => {
                block.sync_warp(warp, !0);
                definition.join(&lanes_of(warp));
            }
            1 | 2 => {
                let other = (warp + 1 + random.below(u64::from(warps) - 1) as u32) % warps;
                block.barrier(&[(warp, !0), (other, !0)], &[]);
                definition.join(&[lanes_of(warp), lanes_of(other)].concat());
            }
            choice => {
                let what = match choice {
                    3 if atomics => What::Atomic,
                    3 | 4 => What::Store,
                    _ => What::Load,
                };
                let bytes = if what == What::Atomic { 4 } else { 1 << random.below(5) };
                let mask = 1 + random.below((1 << LANES) - 1) as u32;
                let address = addresses(&mut random, bytes, 0);
                let lanes = Lanes { warp, mask, address: &address, bytes: bytes as u32 };
                let mut values = Values::default();
                let result = match what {
                    What::Load => block.load_shared(&mut launch, &lanes, &mut values),
                    What::Store => block.store_shared(&mut launch, &lanes, &values),
                    What::Atomic => {
                        block.atomic_shared(&mut launch, &lanes, &mut |_, old| Some(old), &mut values)
                    }
                };
                let mut race = false;
                for lane in (0..LANES).filter(|lane| mask >> lane & 1 != 0) {
                    let access = Access { at: address[lane as usize], bytes, what };
                    race |= definition.access((warp * LANES + lane) as usize, access);
                }
                let reported = is_race(&result, Kind::SharedRace);
                if race || reported {
                    return (reported, race);
                }
            }
        }
    }
    (false, false)
}

fn is_race(result: &Result<(), Trouble>, kind: Kind) -> bool {
    assert!(
        result.as_ref().is_ok_and(|()| true) || result.as_ref().is_err_and(|it| it.kind == kind),
        "{result:?}"
    );
    result.is_err()
}

/// The same between two blocks of two warps in global memory, with a flag that is released and acquired.
fn global_program(seed: u64) -> (bool, bool) {
    let mut random = Random(seed * 2 + 1);
    let mut device = Device::default();
    let (data, flag) = (device.alloc(BYTES), device.alloc(4));
    device.fill(data, &[0], BYTES as usize).unwrap();
    device.fill(flag, &[0], 4).unwrap();
    let mut launch = Launch::new(&mut device);
    let mut blocks = [Block::new(0, 0, 64), Block::new(1, 0, 64)];
    let mut definition = Definition::new(4 * LANES as usize);
    for _ in 0..60 {
        // Warps 0 and 1 are the first block's.
        let of_all = random.below(4) as u32;
        let (index, warp) = ((of_all / 2) as usize, of_all % 2);
        let block = &mut blocks[index];
        let thread = (of_all * LANES) as usize;
        let at_flag = Lanes { warp, mask: 1, address: &[flag; 32], bytes: 4 };
        let mut values = Values::default();
        match random.below(12) {
            0 => {
                block.barrier(&[(0, !0), (1, !0)], &[]);
                let first = index as u32 * 2;
                definition.join(&[lanes_of(first), lanes_of(first + 1)].concat());
            }
            1 => {
                block.sync_warp(warp, !0);
                definition.join(&lanes_of(of_all));
            }
            2 => {
                block.store_global(&mut launch, &at_flag, Order::Release, Scope::Device, &values).unwrap();
                definition.flag = Some(definition.before[thread].clone());
            }
            3 => {
                let mut keep = |_, old| Some(old);
                let order = Order::AcquireRelease;
                block
                    .atomic_global(&mut launch, &at_flag, order, Scope::Device, &mut keep, &mut values)
                    .unwrap();
                let flag = definition.flag.get_or_insert_default();
                definition.before[thread].extend(flag.iter());
                flag.extend(definition.before[thread].iter());
            }
            4 | 5 => {
                block.load_global(&mut launch, &at_flag, Order::Acquire, Scope::Device, &mut values).unwrap();
                definition.before[thread].extend(definition.flag.iter().flatten());
            }
            choice => {
                let what = if choice == 6 { What::Store } else { What::Load };
                let bytes = 1 << random.below(5);
                let mask = if random.below(2) == 0 { 1 } else { 1 + random.below(15) as u32 };
                let address = addresses(&mut random, bytes, data);
                let lanes = Lanes { warp, mask, address: &address, bytes: bytes as u32 };
                let result = match what {
                    What::Load => {
                        block.load_global(&mut launch, &lanes, Order::Weak, Scope::Device, &mut values)
                    }
                    _ => block.store_global(&mut launch, &lanes, Order::Weak, Scope::Device, &values),
                };
                let mut race = false;
                for lane in (0..LANES).filter(|lane| mask >> lane & 1 != 0) {
                    let access = Access { at: address[lane as usize], bytes, what };
                    race |= definition.access(thread + lane as usize, access);
                }
                let reported = is_race(&result, Kind::GlobalRace);
                if race || reported {
                    return (reported, race);
                }
            }
        }
    }
    (false, false)
}

/// Programs, races reported, races there were, and reports that were none.
fn tally(programs: impl Iterator<Item = (bool, bool)>) -> [u32; 4] {
    programs.fold([0; 4], |[all, reported, races, wrong], (said, is)| {
        [all + 1, reported + u32::from(said), races + u32::from(is), wrong + u32::from(said && !is)]
    })
}

#[test]
fn two_warps_exactly() {
    for seed in 1..1500 {
        let (reported, race) = shared_program(seed, 2, false);
        assert_eq!(reported, race, "seed {seed}");
    }
}

#[test]
fn more_warps_and_atomics() {
    for (atomics, least) in [(false, 999), (true, 950)] {
        let [all, reported, races, wrong] = tally((1..1500).map(|seed| shared_program(seed, 4, atomics)));
        println!("{all} programs, {races} races, {reported} reported");
        let enough = races > all / 2 && reported * 1000 >= races * least;
        assert!(wrong == 0 && enough, "{all} {reported} {races} {wrong}");
    }
}

#[test]
fn blocks_and_flags() {
    let [all, reported, races, wrong] = tally((1..1500).map(global_program));
    println!("{all} programs, {races} races, {reported} reported");
    assert!(wrong == 0 && races > all / 2 && reported * 100 > races * 90, "{all} {reported} {races} {wrong}");
}
