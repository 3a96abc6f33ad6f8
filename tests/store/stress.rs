//! A thousand adapters, ten thousand of them coming and going under load, every result against the formula.

use crate::devices::Engine;
use crate::{IN, OUT, adapter, reference, sizes, store, values};
use molora::Cpu;
use molora::adapter::Adapter;
use molora::adapter::store::Limits;
use std::collections::HashMap;
use std::sync::{Arc, RwLock};

const KEYS: usize = 1400;
const THREADS: usize = 4;
const TURNS: usize = 3000;

fn rank(seed: usize) -> usize {
    4 + seed * 37 % 61
}

/// Four threads draw adapters from a set that is larger than the pool, run batches, and now and then replace one.
#[test]
fn ten_thousand_come_and_go_under_load() {
    // 1024 slots; ranks are 34 on average, so that rows and slots both run out.
    let store = store(&Cpu::new().unwrap(), Limits::default(), sizes(1024, 1024 * 34));
    // What every generation ever given is.
    let versions: RwLock<HashMap<u64, Arc<Adapter>>> = RwLock::default();
    for i in 0..KEYS {
        let adapter = adapter(i as u64, rank(i));
        let generation = store.register(&i.to_string(), adapter.clone()).unwrap();
        versions.write().unwrap().insert(generation, adapter);
    }
    for i in 0..1000 {
        drop(store.acquire(&[i.to_string()]).unwrap());
    }
    assert_eq!(store.memory().device.adapters.len(), 1000, "a thousand are resident");
    let (base, x) = (values(2, OUT * IN), values(1, 4 * IN));
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let (store, versions, base, x) = (&store, &versions, &base, &x);
            scope.spawn(move || {
                let mut random = (thread as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
                let mut draw = |below: usize| {
                    random ^= random << 13;
                    random ^= random >> 7;
                    random ^= random << 17;
                    (random >> 20) as usize % below
                };
                for turn in 0..TURNS {
                    if turn % 10 == 3 {
                        let (key, seed) = (draw(KEYS).to_string(), KEYS + thread * TURNS + turn);
                        // Known before anybody can have it.
                        let new = adapter(seed as u64, rank(seed));
                        let mut versions = versions.write().unwrap();
                        versions.insert(store.replace(&key, new.clone()).unwrap(), new);
                    }
                    let keys: [String; 4] = std::array::from_fn(|_| draw(KEYS).to_string());
                    let lease = store.acquire(&keys).unwrap();
                    let ids: [i32; 4] = std::array::from_fn(|i| lease.id(i, 0).unwrap());
                    let y = Cpu::run(&lease.layer(0).unwrap(), base, x, &ids);
                    let versions = versions.read().unwrap();
                    let of = |i: usize| versions[&lease.generation(i).unwrap()].get("m");
                    let want = reference(base, x, &[of(0), of(1), of(2), of(3)]);
                    assert_eq!(y, want, "thread {thread}, turn {turn}");
                }
            });
        }
    });
    let (counters, memory) = (store.counters(), store.memory());
    assert!(counters.uploads - 1000 >= 10_000 && counters.evictions >= 10_000, "{counters:?}");
    // Nothing leaked: what is used is what is there, and everything can be taken away.
    assert_eq!(memory.device.used, memory.device.adapters.iter().map(|a| a.bytes).sum::<u64>());
    assert!(memory.device.adapters.len() > 800 && memory.device.retired == 0);
    memory.device.adapters.iter().for_each(|a| store.evict(&a.key).unwrap());
    let empty = store.memory();
    assert_eq!((empty.device.used, empty.rows[0].largest_run), (0, 1024 * 34));
    println!("{counters:?}");
}
