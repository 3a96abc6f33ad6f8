//! What memory must find, and what it must let pass.

use ptx_machine::fault::{Kind, Trouble};
use ptx_machine::memory::{Block, Device, Lanes, Launch, Order, Scope, Values};

const ALL: u32 = !0;
const WEAK: (Order, Scope) = (Order::Weak, Scope::Device);

/// Addresses by lane.
fn by_lane(address: impl Fn(u64) -> u64) -> [u64; 32] {
    std::array::from_fn(|lane| address(lane as u64))
}

fn kind(result: Result<(), Trouble>) -> Option<Kind> {
    result.err().map(|trouble| trouble.kind)
}

/// A block with its launch, and short names for accesses.
struct Bench<'l, 'd> {
    launch: &'l mut Launch<'d>,
    block: Block,
}

impl Bench<'_, '_> {
    fn load(&mut self, warp: u32, mask: u32, bytes: u32, at: impl Fn(u64) -> u64) -> Result<(), Trouble> {
        let lanes = Lanes { warp, mask, address: &by_lane(at), bytes };
        self.block.load_shared(self.launch, &lanes, &mut Values::default())
    }
    fn store(&mut self, warp: u32, mask: u32, bytes: u32, at: impl Fn(u64) -> u64) -> Result<(), Trouble> {
        let lanes = Lanes { warp, mask, address: &by_lane(at), bytes };
        self.block.store_shared(self.launch, &lanes, &Values::default())
    }
    fn copy(&mut self, warp: u32, source: u64, to: impl Fn(u64) -> u64, count: u32) -> Result<(), Trouble> {
        let from = by_lane(|lane| source + lane * 16);
        let lanes = Lanes { warp, mask: ALL, address: &from, bytes: 16 };
        self.block.copy_async(self.launch, &by_lane(to), &lanes, &[count; 32])
    }
    fn barrier(&mut self) {
        self.block.barrier(&[(0, ALL), (1, ALL), (2, ALL), (3, ALL)], &[]);
    }
}

/// Runs with a block of four warps and 8 KiB of shared memory on a device with 4 KiB of written memory.
fn with<T>(run: impl FnOnce(&mut Bench, u64) -> T) -> T {
    let mut device = Device::default();
    let global = device.alloc(4096);
    device.fill(global, &[7], 4096).unwrap();
    let mut launch = Launch::new(&mut device);
    run(&mut Bench { launch: &mut launch, block: Block::new(0, 8192, 128) }, global)
}

type Access<'a> = (&'a mut Block, u32, u32);

fn load(
    (block, warp, mask): Access,
    launch: &mut Launch,
    at: u64,
    how: (Order, Scope),
) -> Result<(), Trouble> {
    let lanes = Lanes { warp, mask, address: &[at; 32], bytes: 4 };
    block.load_global(launch, &lanes, how.0, how.1, &mut Values::default())
}

fn store(
    (block, warp, mask): Access,
    launch: &mut Launch,
    at: u64,
    how: (Order, Scope),
) -> Result<(), Trouble> {
    let lanes = Lanes { warp, mask, address: &[at; 32], bytes: 4 };
    block.store_global(launch, &lanes, how.0, how.1, &Values::default())
}

fn add(
    (block, warp, mask): Access,
    launch: &mut Launch,
    at: u64,
    how: (Order, Scope),
) -> Result<(), Trouble> {
    let lanes = Lanes { warp, mask, address: &[at; 32], bytes: 4 };
    block.atomic_global(launch, &lanes, how.0, how.1, &mut |_, old| Some(old + 1), &mut Values::default())
}

/// Two blocks on a device with an initialised word of data and one of flag.
fn two_blocks<T>(run: impl FnOnce(&mut Launch, &mut Block, &mut Block, u64, u64) -> T) -> T {
    let mut device = Device::default();
    let (data, flag) = (device.alloc(256), device.alloc(256));
    device.fill(data, &[0], 256).unwrap();
    device.fill(flag, &[0], 256).unwrap();
    let mut launch = Launch::new(&mut device);
    let (mut one, mut two) = (Block::new(0, 0, 64), Block::new(1, 0, 64));
    run(&mut launch, &mut one, &mut two, data, flag)
}

#[test]
fn allocations_keep_apart() {
    let mut device = Device::default();
    let (one, two) = (device.alloc(1000), device.alloc(1));
    assert_eq!((one % 256, two % 256), (0, 0));
    assert!(two >= one + 1000 + 4096, "a gap");
    device.write(one + 990, &[1; 10]).unwrap();
    assert_eq!(device.write(one + 991, &[1; 10]).unwrap_err().kind, Kind::OutOfBounds);
    assert_eq!(device.find(one + 999), Some((one, 1000)));
    assert_eq!(device.find(one + 1000), None);
    device.free(one).unwrap();
    let trouble = device.read(one, &mut [0]).unwrap_err();
    assert!(trouble.kind == Kind::OutOfBounds && trouble.detail.contains("freed"), "{trouble:?}");
    assert!(device.free(one).is_err(), "twice");
    assert!(device.free(two + 1).is_err(), "not a base");
    assert_ne!(device.alloc(1000), one);
}

#[test]
fn copies_keep_what_is_initialised() {
    let mut device = Device::default();
    let (one, two) = (device.alloc(64), device.alloc(64));
    device.write(one, &[1; 6]).unwrap();
    device.copy(two, one, 8).unwrap();
    let mut launch = Launch::new(&mut device);
    let mut block = Block::new(0, 0, 32);
    assert_eq!(kind(load((&mut block, 0, 1), &mut launch, two, WEAK)), None);
    let trouble = load((&mut block, 0, 1), &mut launch, two + 4, WEAK).unwrap_err();
    assert_eq!((trouble.kind, trouble.address), (Kind::Uninitialised, Some(two + 6)));
}

#[test]
fn values_move() {
    with(|bench, global| {
        let address = by_lane(|lane| global + lane * 16);
        let values: Values = std::array::from_fn(|lane| [lane as u32, 1, 2, 3]);
        let lanes = Lanes { warp: 0, mask: ALL, address: &address, bytes: 16 };
        bench.block.store_global(bench.launch, &lanes, WEAK.0, WEAK.1, &values).unwrap();
        let mut out = Values::default();
        bench.block.load_global(bench.launch, &lanes, WEAK.0, WEAK.1, &mut out).unwrap();
        assert_eq!(out, values);
        let address = by_lane(|lane| global + lane * 16);
        let lanes = Lanes { bytes: 2, address: &address, ..lanes };
        bench.block.load_global(bench.launch, &lanes, WEAK.0, WEAK.1, &mut out).unwrap();
        assert_eq!(out[9], [9, 0, 0, 0]);
    });
}

#[test]
fn bounds_alignment_and_uninitialised() {
    with(|bench, global| {
        let block = &mut bench.block;
        for (at, expected) in [
            (global + 4096, Kind::OutOfBounds),
            (global - 4, Kind::OutOfBounds),
            (global + 2, Kind::Misaligned),
        ] {
            assert_eq!(kind(load((block, 0, 2), bench.launch, at, WEAK)), Some(expected));
            let trouble = store((block, 0, 2), bench.launch, at, WEAK).unwrap_err();
            assert_eq!((trouble.kind, trouble.lane, trouble.address), (expected, 1, Some(at)));
        }
        assert_eq!(kind(bench.load(0, ALL, 4, |lane| 8192 - 124 + lane * 4)), Some(Kind::Uninitialised));
        assert_eq!(kind(bench.store(0, ALL, 4, |lane| 8192 - 124 + lane * 4)), Some(Kind::OutOfBounds));
        assert_eq!(kind(bench.store(0, 1, 16, |_| 8)), Some(Kind::Misaligned));
        bench.store(0, 1, 2, |_| 0).unwrap();
        let trouble = bench.load(0, 1, 4, |_| 0).unwrap_err();
        assert_eq!((trouble.kind, trouble.address), (Kind::Uninitialised, Some(2)));
    });
}

#[test]
fn shared_races_between_warps() {
    with(|bench, _| {
        bench.store(0, ALL, 4, |lane| lane * 4).unwrap();
        let trouble = bench.load(1, 1, 4, |_| 4).unwrap_err();
        assert_eq!(trouble.kind, Kind::SharedRace);
        assert!(trouble.detail.contains("thread 1 (warp 0, lane 1)"), "{}", trouble.detail);
        assert_eq!(kind(bench.store(1, 1, 4, |_| 4)), Some(Kind::SharedRace), "write after write");
        bench.barrier();
        bench.load(1, ALL, 4, |lane| lane * 4).unwrap();
        bench.load(2, ALL, 4, |lane| lane * 4).unwrap();
        for warp in 0..3 {
            let result = bench.store(warp, 1, 4, |_| 0);
            assert_eq!(kind(result), Some(Kind::SharedRace), "write after read by warp {warp}");
        }
        bench.barrier();
        bench.store(0, ALL, 4, |lane| lane * 4).unwrap();
    });
}

#[test]
fn a_barrier_of_some_warps_orders_only_them() {
    with(|bench, _| {
        bench.store(0, ALL, 4, |lane| lane * 4).unwrap();
        bench.block.barrier(&[(0, ALL), (1, ALL)], &[]);
        bench.load(1, ALL, 4, |lane| lane * 4).unwrap();
        assert_eq!(kind(bench.load(2, ALL, 4, |lane| lane * 4)), Some(Kind::SharedRace));
        bench.block.barrier(&[(1, ALL), (2, ALL)], &[]);
        bench.load(2, ALL, 4, |lane| lane * 4).unwrap();
    });
}

#[test]
fn shared_races_within_a_warp() {
    with(|bench, _| {
        assert_eq!(kind(bench.store(0, 3, 4, |_| 0)), Some(Kind::SharedRace), "one instruction, one address");
        bench.store(0, ALL, 4, |lane| 128 + lane * 4).unwrap();
        bench.load(0, ALL, 4, |lane| 128 + lane * 4).unwrap();
        bench.store(0, ALL, 4, |lane| 128 + lane * 4).unwrap();
        assert_eq!(kind(bench.load(0, ALL, 4, |lane| 128 + (lane ^ 1) * 4)), Some(Kind::SharedRace));
        bench.block.sync_warp(0, ALL);
        bench.load(0, ALL, 4, |lane| 128 + (lane ^ 1) * 4).unwrap();
        assert_eq!(
            kind(bench.store(0, ALL, 4, |lane| 128 + lane * 4)),
            Some(Kind::SharedRace),
            "after reads"
        );
        bench.block.sync_warp(0, ALL);
        bench.store(0, ALL, 4, |lane| 128 + lane * 4).unwrap();
    });
}

#[test]
fn neighbours_in_a_word_are_apart() {
    with(|bench, _| {
        bench.store(0, ALL, 2, |lane| lane * 4).unwrap();
        bench.store(1, ALL, 2, |lane| lane * 4 + 2).unwrap();
        bench.load(0, ALL, 2, |lane| lane * 4).unwrap();
        bench.store(2, ALL, 1, |lane| 256 + lane).unwrap();
        assert_eq!(kind(bench.load(1, 1, 4, |_| 0)), Some(Kind::SharedRace), "the half of warp 0");
        bench.barrier();
        bench.load(1, ALL, 16, |lane| lane % 8 * 16).unwrap();
        assert_eq!(kind(bench.store(0, 1, 2, |_| 126)), Some(Kind::SharedRace), "read 16 wide");
    });
}

#[test]
fn broadcast_and_double_buffering() {
    with(|bench, _| {
        for step in 0..6 {
            let half = step % 2 * 2048;
            bench.store(step as u32 % 4, ALL, 16, |lane| half + lane * 16).unwrap();
            bench.barrier();
            for warp in 0..4 {
                bench.load(warp, ALL, 4, |_| half).unwrap();
                bench.load(warp, ALL, 16, |lane| half + lane * 16).unwrap();
            }
        }
        // Two steps at one buffer need two barriers.
        bench.store(0, ALL, 16, |lane| lane * 16).unwrap();
        bench.barrier();
        bench.load(3, ALL, 16, |lane| lane * 16).unwrap();
        assert_eq!(kind(bench.store(0, ALL, 16, |lane| lane * 16)), Some(Kind::SharedRace));
    });
}

#[test]
fn shared_atomics() {
    with(|bench, _| {
        bench.store(0, 1, 4, |_| 0).unwrap();
        bench.barrier();
        let mut out = Values::default();
        for warp in 0..4 {
            let lanes = Lanes { warp, mask: ALL, address: &[0; 32], bytes: 4 };
            let mut one_more = |_, old| Some(old + 1);
            bench.block.atomic_shared(bench.launch, &lanes, &mut one_more, &mut out).unwrap();
        }
        assert_eq!(out[31][0], 127);
        assert_eq!(kind(bench.load(0, 1, 4, |_| 0)), Some(Kind::SharedRace), "weak against atomic");
        bench.barrier();
        bench.load(0, 1, 4, |_| 0).unwrap();
    });
}

#[test]
fn asynchronous_copies() {
    with(|bench, global| {
        bench.copy(0, global, |lane| lane * 16, 16).unwrap();
        bench.block.commit_async(0, ALL);
        bench.copy(0, global, |lane| 1024 + lane * 16, 6).unwrap();
        bench.block.commit_async(0, ALL);
        bench.block.wait_async(0, ALL, 2);
        assert_eq!(kind(bench.load(0, 1, 4, |_| 0)), Some(Kind::AsyncNotWaited));
        assert_eq!(kind(bench.store(1, 1, 4, |_| 0)), Some(Kind::AsyncNotWaited));
        assert_eq!(kind(bench.copy(1, global, |lane| lane * 16, 16)), Some(Kind::AsyncNotWaited));
        bench.block.wait_async(0, ALL, 1);
        bench.load(0, ALL, 16, |lane| lane * 16).unwrap();
        assert_eq!(kind(bench.load(0, 1, 4, |_| 1024)), Some(Kind::AsyncNotWaited), "a wait off by one");
        assert_eq!(kind(bench.load(1, ALL, 16, |lane| lane * 16)), Some(Kind::SharedRace), "no barrier");
        bench.barrier();
        bench.load(1, ALL, 16, |lane| lane * 16).unwrap();
        assert_eq!(kind(bench.block.finish(bench.launch)), Some(Kind::AsyncNotWaited), "at the end");
        bench.block.wait_async(0, ALL, 0);
        bench.block.finish(bench.launch).unwrap();
        let mut out = Values::default();
        let lanes = Lanes { warp: 0, mask: 1, address: &[1024; 32], bytes: 16 };
        bench.block.load_shared(bench.launch, &lanes, &mut out).unwrap();
        assert_eq!(out[0], [0x0707_0707, 0x0707, 0, 0], "zeros behind the source");
    });
}

#[test]
fn a_copy_into_a_slot_that_is_still_read() {
    with(|bench, global| {
        bench.store(0, ALL, 16, |lane| lane * 16).unwrap();
        bench.barrier();
        bench.load(1, ALL, 16, |lane| lane * 16).unwrap();
        assert_eq!(kind(bench.copy(0, global, |lane| lane * 16, 16)), Some(Kind::SharedRace));
        bench.barrier();
        bench.copy(0, global, |lane| lane * 16, 16).unwrap();
    });
}

#[test]
fn copies_check_their_source() {
    with(|bench, global| {
        assert_eq!(kind(bench.copy(0, global + 4096, |lane| lane * 16, 16)), Some(Kind::OutOfBounds));
        bench.copy(0, global + 4096, |lane| lane * 16, 0).unwrap();
        assert_eq!(kind(bench.copy(0, global + 8, |lane| 4096 + lane * 16, 16)), Some(Kind::Misaligned));
        assert_eq!(kind(bench.copy(0, global, |lane| 4096 + lane * 8, 16)), Some(Kind::Misaligned));
        assert_eq!(kind(bench.copy(0, global, |lane| 8000 + lane * 16, 16)), Some(Kind::OutOfBounds));
    });
}

#[test]
fn global_races() {
    two_blocks(|launch, one, two, data, _| {
        store((one, 0, 1), launch, data, WEAK).unwrap();
        let trouble = load((two, 0, 1), launch, data, WEAK).unwrap_err();
        assert_eq!(trouble.kind, Kind::GlobalRace);
        assert!(trouble.detail.contains("lane 0) of block 0"), "{}", trouble.detail);
        assert_eq!(kind(load((one, 1, 1), launch, data, WEAK)), Some(Kind::GlobalRace), "within the block");
        assert_eq!(kind(load((one, 0, 2), launch, data, WEAK)), Some(Kind::GlobalRace), "within the warp");
        one.barrier(&[(0, ALL), (1, ALL)], &[]);
        load((one, 1, 1), launch, data, WEAK).unwrap();
        assert_eq!(kind(store((two, 0, 1), launch, data, WEAK)), Some(Kind::GlobalRace));
        load((one, 0, ALL), launch, data + 8, WEAK).unwrap();
        load((two, 0, ALL), launch, data + 8, WEAK).unwrap();
        assert_eq!(kind(store((one, 0, 1), launch, data + 8, WEAK)), Some(Kind::GlobalRace), "after reads");
        assert_eq!(
            kind(store((one, 0, 3), launch, data + 16, WEAK)),
            Some(Kind::GlobalRace),
            "one instruction"
        );
    });
}

#[test]
fn launches_are_ordered() {
    let mut device = Device::default();
    let data = device.alloc(64);
    for block in 0..3 {
        let mut launch = Launch::new(&mut device);
        let mut block = Block::new(block, 0, 32);
        store((&mut block, 0, 1), &mut launch, data, WEAK).unwrap();
        load((&mut block, 0, 1), &mut launch, data, WEAK).unwrap();
    }
}

#[test]
fn atomics_meet_only_atomics() {
    let relaxed = (Order::Relaxed, Scope::Device);
    two_blocks(|launch, one, two, data, _| {
        add((one, 0, ALL), launch, data, relaxed).unwrap();
        add((two, 1, ALL), launch, data, relaxed).unwrap();
        load((one, 1, 1), launch, data, relaxed).unwrap();
        assert_eq!(kind(load((one, 1, 1), launch, data, WEAK)), Some(Kind::GlobalRace));
        let near = (Order::Relaxed, Scope::Block);
        add((one, 0, 1), launch, data + 8, near).unwrap();
        add((one, 1, 1), launch, data + 8, near).unwrap();
        assert_eq!(kind(add((two, 0, 1), launch, data + 8, near)), Some(Kind::GlobalRace), "out of scope");
    });
}

/// Block 0 writes data and passes a flag; block 1 takes the flag and reads.
fn pass(
    write: impl FnOnce(&mut Block, &mut Launch, u64),
    read: impl FnOnce(&mut Block, &mut Launch, u64),
) -> Option<Kind> {
    two_blocks(|launch, one, two, data, flag| {
        store((one, 1, 1), launch, data, WEAK).unwrap();
        one.barrier(&[(0, ALL), (1, ALL)], &[]);
        write(one, launch, flag);
        read(two, launch, flag);
        two.barrier(&[(0, ALL), (1, ALL)], &[]);
        kind(load((two, 1, 1), launch, data, WEAK))
    })
}

#[test]
fn flags_between_blocks() {
    let device = |order| (order, Scope::Device);
    let release = |b: &mut Block, l: &mut Launch, f| store((b, 0, 1), l, f, device(Order::Release)).unwrap();
    let acquire = |b: &mut Block, l: &mut Launch, f| load((b, 0, 1), l, f, device(Order::Acquire)).unwrap();
    let relaxed_store =
        |b: &mut Block, l: &mut Launch, f| store((b, 0, 1), l, f, device(Order::Relaxed)).unwrap();
    let relaxed_load =
        |b: &mut Block, l: &mut Launch, f| load((b, 0, 1), l, f, device(Order::Relaxed)).unwrap();
    let fence = |b: &mut Block, l: &mut Launch| b.fence(l, 0, 1, Order::AcquireRelease, Scope::Device);
    let count =
        |b: &mut Block, l: &mut Launch, f| add((b, 0, 1), l, f, device(Order::AcquireRelease)).unwrap();
    let race = Some(Kind::GlobalRace);

    assert_eq!(pass(release, acquire), None);
    assert_eq!(pass(relaxed_store, acquire), race);
    assert_eq!(pass(release, relaxed_load), race);
    assert_eq!(pass(count, count), None);
    let fenced_store = |b: &mut Block, l: &mut Launch, f| {
        fence(b, l);
        relaxed_store(b, l, f);
    };
    let load_fenced = |b: &mut Block, l: &mut Launch, f| {
        relaxed_load(b, l, f);
        fence(b, l);
    };
    assert_eq!(pass(fenced_store, load_fenced), None);
    assert_eq!(pass(fenced_store, acquire), None);
    assert_eq!(pass(fenced_store, relaxed_load), race);
    // A relaxed atomic goes on with the sequence of the release before it.
    let release_count = |b: &mut Block, l: &mut Launch, f| {
        release(b, l, f);
        add((b, 1, 1), l, f, device(Order::Relaxed)).unwrap();
    };
    assert_eq!(pass(release_count, acquire), None);
    let near = |b: &mut Block, l: &mut Launch, f| {
        store((b, 0, 1), l, f, (Order::Relaxed, Scope::Device)).unwrap();
        b.fence(l, 0, 1, Order::AcquireRelease, Scope::Block);
        store((b, 0, 1), l, f, (Order::Relaxed, Scope::Device)).unwrap();
    };
    assert_eq!(pass(near, acquire), race, "a fence of the block's scope");
}

#[test]
fn the_last_block_sums() {
    let relaxed = (Order::Relaxed, Scope::Device);
    two_blocks(|launch, one, two, data, counter| {
        // All warps write and fence; after a barrier one thread counts; the block that is last fences and reads all.
        for (block, at) in [(&mut *one, data), (&mut *two, data + 64)] {
            for warp in 0..2 {
                store((block, warp, 1), launch, at + u64::from(warp) * 4, WEAK).unwrap();
                block.fence(launch, warp, ALL, Order::AcquireRelease, Scope::Device);
            }
            block.barrier(&[(0, ALL), (1, ALL)], &[]);
            add((block, 0, 1), launch, counter, relaxed).unwrap();
            block.barrier(&[(0, ALL), (1, ALL)], &[]);
        }
        assert_eq!(kind(load((two, 1, 1), launch, data + 4, WEAK)), Some(Kind::GlobalRace), "no fence yet");
        for warp in 0..2 {
            two.fence(launch, warp, ALL, Order::AcquireRelease, Scope::Device);
            load((two, warp, 1), launch, data, WEAK).unwrap();
            load((two, warp, 1), launch, data + 4, WEAK).unwrap();
        }
    });
}

#[test]
fn what_comes_after_a_release_is_not_published() {
    two_blocks(|launch, one, two, data, flag| {
        store((one, 0, 1), launch, flag, (Order::Release, Scope::Device)).unwrap();
        store((one, 0, 1), launch, data, WEAK).unwrap();
        load((two, 0, 1), launch, flag, (Order::Acquire, Scope::Device)).unwrap();
        assert_eq!(kind(load((two, 0, 1), launch, data, WEAK)), Some(Kind::GlobalRace));
    });
}

#[test]
fn flags_within_a_block() {
    two_blocks(|launch, one, _, data, flag| {
        store((one, 0, 1), launch, data, WEAK).unwrap();
        store((one, 0, 1), launch, flag, (Order::Release, Scope::Block)).unwrap();
        load((one, 1, 1), launch, flag, (Order::Acquire, Scope::Block)).unwrap();
        load((one, 1, 1), launch, data, WEAK).unwrap();
    });
}

#[test]
fn counts() {
    with(|bench, global| {
        for _ in 0..2 {
            let lanes = Lanes { warp: 0, mask: ALL, address: &by_lane(|lane| global + lane * 8), bytes: 2 };
            bench.block.load_global(bench.launch, &lanes, WEAK.0, WEAK.1, &mut Values::default()).unwrap();
        }
        bench.block.sync_warp(0, ALL);
        let lanes = Lanes { warp: 0, mask: 0xff, address: &by_lane(|lane| global + lane * 16), bytes: 16 };
        bench.block.store_global(bench.launch, &lanes, WEAK.0, WEAK.1, &Values::default()).unwrap();
        bench.store(0, ALL, 16, |lane| lane * 128).unwrap();
        bench.barrier();
        bench.load(0, 0xff00, 16, |lane| lane * 128).unwrap();
        bench.block.finish(bench.launch).unwrap();
        let counters = &bench.launch.counters;
        let loads = &counters.global_loads[1];
        assert_eq!((loads.requests, loads.lanes, loads.bytes, loads.sectors), (2, 64, 128, 16));
        assert_eq!((counters.unique_read.bytes, counters.unique_read.sectors), (64, 8));
        assert_eq!((counters.unique_written.bytes, counters.unique_written.sectors), (128, 4));
        let stores = &counters.shared_stores;
        assert_eq!((stores.requests, stores.wavefronts, stores.ideal), (1, 32, 4));
        let loads = &counters.shared_loads;
        assert_eq!((loads.requests, loads.wavefronts, loads.ideal), (1, 8, 1));
        assert_eq!((counters.barriers, counters.launches), (1, 1));
    });
}

/// What an access costs here: `cargo test -p ptx-machine --test memory -- --ignored --nocapture`.
#[test]
#[ignore = "prints times"]
fn cost() {
    const TIMES: u32 = 20_000;
    let time = |name: &str, mut run: Box<dyn FnMut(u64) + '_>| {
        let start = std::time::Instant::now();
        (0..TIMES).for_each(|i| run(u64::from(i % 7)));
        println!("{name}: {} ns", start.elapsed().as_nanos() / u128::from(TIMES));
    };
    with(|bench, global| {
        time(
            "copy, commit, wait",
            Box::new(|i| {
                bench.copy(0, global, |lane| i * 512 + lane * 16, 16).unwrap();
                bench.block.commit_async(0, ALL);
                bench.block.wait_async(0, ALL, 0);
            }),
        );
        for bytes in [16_u64, 4, 2] {
            let mut out = Values::default();
            let address = by_lane(|lane| global + lane * bytes);
            let lanes = Lanes { warp: 0, mask: ALL, address: &address, bytes: bytes as u32 };
            time(
                &format!("global load {bytes}"),
                Box::new(|_| {
                    bench.block.load_global(bench.launch, &lanes, WEAK.0, WEAK.1, &mut out).unwrap();
                }),
            );
        }
        bench.barrier();
        for bytes in [16_u64, 4, 2] {
            time(
                &format!("shared store {bytes}"),
                Box::new(|i| bench.store(0, ALL, bytes as u32, |lane| i * 512 + lane * bytes).unwrap()),
            );
            bench.block.sync_warp(0, ALL);
            time(
                &format!("shared load {bytes}"),
                Box::new(|i| bench.load(0, ALL, bytes as u32, |lane| i * 512 + lane * bytes).unwrap()),
            );
            time(
                &format!("shared load {bytes} by another warp, a barrier each time"),
                Box::new(|i| {
                    bench.barrier();
                    bench.load(1, ALL, bytes as u32, |lane| i * 512 + lane * bytes).unwrap();
                }),
            );
            bench.barrier();
        }
        time("block of 48 KiB", Box::new(|_| drop(Block::new(0, 48 << 10, 128))));
    });
}

#[test]
fn who_only_arrives_learns_nothing_and_promises_nothing_later() {
    // Warp 0 arrives and goes on; warp 1 waits.
    with(|bench, _| {
        bench.store(0, 1, 4, |_| 0).unwrap();
        bench.store(1, 1, 4, |_| 64).unwrap();
        let arrival = bench.block.arrive(0);
        bench.store(0, 1, 4, |_| 128).unwrap();
        bench.block.barrier(&[(1, ALL)], &[arrival]);
        assert_eq!(kind(bench.load(1, 1, 4, |_| 0)), None, "before the arrival");
        assert_eq!(kind(bench.load(1, 1, 4, |_| 128)), Some(Kind::SharedRace), "after the arrival");
        assert_eq!(kind(bench.load(0, 1, 4, |_| 64)), Some(Kind::SharedRace), "it did not wait");
    });
}

#[test]
fn the_host_sees_that_nothing_was_written() {
    let mut device = Device::default();
    let at = device.alloc(200);
    device.write(at + 3, &[5; 100]).unwrap();
    let mut bytes = [0; 150];
    device.read(at + 1, &mut bytes).unwrap();
    let due = |index: usize| if (2..102).contains(&index) { 5 } else { 0xff };
    assert!(bytes.iter().enumerate().all(|(index, &byte)| byte == due(index)), "{bytes:?}");
    assert_eq!(device.fill(at + 2, &[1, 2, 3, 4], 1).unwrap_err().kind, Kind::Misaligned);
    assert!(device.fill(at, &[1, 2, 3, 4], usize::MAX).is_err());
    assert!(device.successor().alloc(4) > at, "no address twice");
}
