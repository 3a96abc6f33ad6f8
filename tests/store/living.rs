//! What an engine relies on, on every device.

use crate::devices::Engine;
use crate::{IN, OUT, adapter, lora, of_modules, reference, refuses, sizes, store, values};
use molora::Cpu;
use molora::adapter::store::{Limits, Served, Store};

/// Each property for each kind of device that this build has.
macro_rules! on_every_device {
    ($($name:ident)*) => {
        mod on_the_cpu {
            $(#[test] fn $name() { super::$name::<super::Cpu>(); })*
        }
        #[cfg(feature = "wgpu")]
        mod on_webgpu {
            $(#[test] fn $name() { super::$name::<molora::Wgpu>(); })*
        }
        #[cfg(feature = "cuda")]
        mod on_cuda {
            $(#[test] fn $name() { super::$name::<molora::Cuda>(); })*
        }
    };
}

on_every_device! {
    a_lease_runs_its_adapters
    what_is_held_stays_until_the_lease_ends
    rows_are_taken_behind_the_work_that_reads_them
    a_replaced_adapter_serves_those_who_have_it
    adapters_that_come_and_go_change_no_bit
    ids_that_were_not_lent_are_not_read
    one_slot_in_all_layers
    threads_share_a_store
}

fn tight<D: Engine>(device: &D, ranks: usize) -> Store<D> {
    store(device, Limits::default(), sizes(8, ranks))
}

/// Tokens of one adapter each, by position in the lease; against the formula.
fn judge<D: Engine>(store: &Store<D>, keys: &[&str], seeds: &[(u64, usize)]) {
    let (x, base) = (values(1, keys.len() * IN), values(2, OUT * IN));
    let lease = store.acquire(keys).unwrap();
    let layer = lease.layer(0).unwrap();
    let ids: Vec<i32> = (0..keys.len()).map(|i| lease.id(i, 0).unwrap()).collect();
    let loras: Vec<_> = seeds.iter().map(|&(seed, rank)| lora(seed, (IN, OUT, rank))).collect();
    let loras: Vec<_> = loras.iter().map(Some).collect();
    assert_eq!(D::run(&layer, &base, &x, &ids), reference(&base, &x, &loras), "{keys:?}");
    assert_eq!(D::skipped(&layer), None);
}

fn a_lease_runs_its_adapters<D: Engine>() {
    for device in D::found() {
        let store = tight(&device, 40);
        for (key, seed, rank) in [("a", 1, 4), ("b", 2, 7), ("c", 3, 16), ("d", 4, 20)] {
            store.register(key, adapter(seed, rank)).unwrap();
        }
        judge(&store, &["b", "a", "b"], &[(2, 7), (1, 4), (2, 7)]);
        judge(&store, &["c"], &[(3, 16)]);
        // 13 rows are free: d takes a's and b's place, then c goes for them to come back.
        judge(&store, &["d"], &[(4, 20)]);
        judge(&store, &["a", "b", "d"], &[(1, 4), (2, 7), (4, 20)]);
        // More tokens than the few form takes.
        let many: Vec<&str> = (0..70).map(|i| if i % 3 == 0 { "c" } else { "d" }).collect();
        let seeds: Vec<_> = (0..70).map(|i| if i % 3 == 0 { (3, 16) } else { (4, 20) }).collect();
        judge(&store, &many, &seeds);
        let none = store.acquire::<&str>(&[]).unwrap();
        assert!(none.is_empty() && none.layer(0).is_ok());
    }
}

fn what_is_held_stays_until_the_lease_ends<D: Engine>() {
    for device in D::found() {
        let store = tight(&device, 20);
        for (key, seed, rank) in [("a", 1, 10), ("b", 2, 10), ("c", 3, 10)] {
            store.register(key, adapter(seed, rank)).unwrap();
        }
        // b is the older one: it would go first.
        let (b, a) = (store.acquire(&["b"]).unwrap(), store.acquire(&["a"]).unwrap());
        let why = refuses(store.acquire(&["c"]));
        assert!(why.contains("10 rows in a row") && why.contains("leased or being filled: a, b;"), "{why}");
        assert_eq!(store.counters().evictions, 0, "nothing goes where all of it would not do");
        // A layer holds what it was made for, without its lease.
        let layer = b.layer(0).unwrap();
        drop((a, b));
        judge(&store, &["c"], &[(3, 10)]);
        let (x, base, two) = (values(1, IN), values(2, OUT * IN), lora(2, (IN, OUT, 10)));
        let id = store.memory().device.adapters.iter().find(|a| a.key == "b").unwrap().slot.unwrap() as i32;
        assert_eq!(D::run(&layer, &base, &x, &[id]), reference(&base, &x, &[Some(&two)]));
        drop(layer);
        judge(&store, &["a", "c"], &[(1, 10), (3, 10)]);
    }
}

/// A batch is begun, its lease ends, and another adapter takes the same rows before anybody waited.
fn rows_are_taken_behind_the_work_that_reads_them<D: Engine>() {
    for device in D::found() {
        let store = tight(&device, 12);
        let adapters: Vec<_> = (0..6).map(|seed| adapter(seed, 12)).collect();
        for (i, adapter) in adapters.iter().enumerate() {
            store.register(&i.to_string(), adapter.clone()).unwrap();
        }
        let (x, base) = (values(1, 3 * IN), values(2, OUT * IN));
        let template = store.layer(0).unwrap();
        let begun: Vec<_> = (0..6)
            .map(|i| {
                let lease = store.acquire(&[i.to_string()]).unwrap();
                let id = lease.id(0, 0).unwrap();
                (i, D::begin(&lease.layer(0).unwrap(), &base, &x, &[id, -1, id]).unwrap())
            })
            .collect();
        assert_eq!(store.counters().evictions, 5);
        for (i, pending) in begun {
            let lora = adapters[i].get("m");
            assert_eq!(D::end(template, pending), reference(&base, &x, &[lora, None, lora]), "batch {i}");
        }
        assert_eq!(D::skipped(template), None);
    }
}

fn a_replaced_adapter_serves_those_who_have_it<D: Engine>() {
    for device in D::found() {
        let store = tight(&device, 30);
        let first = store.register("a", adapter(1, 10)).unwrap();
        let old = store.acquire(&["a"]).unwrap();
        let second = store.replace("a", adapter(2, 8)).unwrap();
        assert!(second > first);
        let new = store.acquire(&["a"]).unwrap();
        assert_eq!((old.generation(0), new.generation(0)), (Ok(first), Ok(second)));
        assert_eq!(store.generation("a"), Some(second));
        assert_ne!(old.slot(0), new.slot(0));
        assert_eq!(store.memory().device.retired, 10 * store.memory().device.adapters[0].bytes / 8);
        let (x, base) = (values(1, IN), values(2, OUT * IN));
        for (lease, seed, rank) in [(&old, 1, 10), (&new, 2, 8)] {
            let lora = lora(seed, (IN, OUT, rank));
            let y = D::run(&lease.layer(0).unwrap(), &base, &x, &[lease.id(0, 0).unwrap()]);
            assert_eq!(y, reference(&base, &x, &[Some(&lora)]), "seed {seed}");
        }
        store.register("b", adapter(3, 20)).unwrap();
        let why = refuses(store.acquire(&["b"]));
        assert!(why.contains("replaced, but leased: a"), "{why}");
        drop((old, new));
        judge(&store, &["b"], &[(3, 20)]);
        judge(&store, &["b", "a"], &[(3, 20), (2, 8)]);
        // Replaced where nobody has it: gone at once.
        store.replace("b", adapter(4, 9)).unwrap();
        assert_eq!((store.memory().device.retired, store.memory().rows[0].free), (0, 22));
        judge(&store, &["b"], &[(4, 9)]);
    }
}

/// Values whose sums are rounded, so that another order shows.
fn noise(seed: u64, len: usize) -> Vec<f32> {
    values(seed, len).iter().zip(1..).map(|(v, i)| (v + 0.1) * (i as f32).sin()).collect()
}

fn adapters_that_come_and_go_change_no_bit<D: Engine>() {
    for device in D::found() {
        let store = store(&device, Limits::default(), sizes(40, 600));
        let noisy = |seed: u64, rank: usize| {
            let (a, b) = (noise(seed, rank * IN), noise(seed + 50, rank * OUT));
            of_modules(&[("m", molora::Lora::new(IN, OUT, rank, 0.3, &a, &b).unwrap())])
        };
        store.register("a", noisy(1, 5)).unwrap();
        store.register("b", noisy(2, 18)).unwrap();
        for tokens in [1, 5, 40] {
            let (x, base) = (noise(3, tokens * IN), noise(4, OUT * IN));
            let batch = || {
                let lease = store.acquire(&["a", "b"]).unwrap();
                let ids: Vec<i32> = (0..tokens).map(|t| lease.id(t % 2, 0).unwrap()).collect();
                D::run(&lease.layer(0).unwrap(), &base, &x, &ids)
            };
            let alone = batch();
            // Others come, larger ones among them, until a and b lie elsewhere.
            for i in 0..70 {
                let key = format!("{tokens}-{i}");
                store.register(&key, noisy(i + 9, 1 + (i as usize * 7) % 64)).unwrap();
                drop(store.acquire(&[&key]).unwrap());
            }
            let slot = |key: &str| store.memory().device.adapters.iter().any(|a| a.key == key);
            assert!(!slot("a") && !slot("b"), "they were evicted meanwhile");
            let beside =
                store.acquire(&["5-1", "5-2"].map(|key| if tokens == 5 { key } else { "b" })).unwrap();
            assert_eq!(batch(), alone, "{tokens} tokens");
            drop(beside);
        }
    }
}

fn ids_that_were_not_lent_are_not_read<D: Engine>() {
    for device in D::found() {
        let store = tight(&device, 40);
        for (key, seed, rank) in [("a", 1, 4), ("b", 2, 16)] {
            store.register(key, adapter(seed, rank)).unwrap();
        }
        // b is older than a, so that its age alone does not keep it from a's lease.
        let (b, a) = (store.acquire(&["b"]).unwrap(), store.acquire(&["a"]).unwrap());
        let (x, base, layer) = (values(1, 3 * IN), values(2, OUT * IN), a.layer(0).unwrap());
        let ids = [a.id(0, 0).unwrap(), b.id(0, 0).unwrap(), a.id(0, 0).unwrap()];
        // On a GPU an id of a larger rank than the lease's must leave its neighbours' rows of h alone.
        match D::begin(&layer, &base, &x, &ids) {
            Err(why) => {
                assert!(why.to_string().contains("the id of a slot that holds an adapter, got"), "{why}")
            }
            Ok(pending) => {
                let (y, one) = (D::end(&layer, pending), lora(1, (IN, OUT, 4)));
                assert_eq!(D::skipped(&layer).unwrap(), "rank too large");
                assert_eq!(y, reference(&base, &x, &[Some(&one), None, Some(&one)]));
            }
        }
        // Nor does the template know any.
        if let Ok(pending) = D::begin(store.layer(0).unwrap(), &base, &x, &ids) {
            assert_eq!(D::end(&layer, pending), reference(&base, &x, &[None, None, None]));
            // WebGPU launches nothing over a pool of no ranks, and so says nothing; CUDA does.
            let _ = D::skipped(&layer);
        }
    }
}

fn one_slot_in_all_layers<D: Engine>() {
    for device in D::found() {
        let layer = |ranks| device.layer(sizes(4, ranks), 1, None);
        let served = vec![Served::new("up", layer(16)), Served::new("down", layer(9))];
        let store = Store::new(Limits::default(), served).unwrap();
        let of = |seed, rank| lora(seed, (IN, OUT, rank));
        store.register("both", of_modules(&[("up", of(1, 6)), ("down", of(2, 3))])).unwrap();
        store.register("up", of_modules(&[("up", of(3, 8))])).unwrap();
        store.register("down", of_modules(&[("down", of(4, 9))])).unwrap();
        let (x, base) = (values(1, 3 * IN), values(2, OUT * IN));
        let run = |lease: &molora::adapter::store::Lease<D>, l: usize| {
            let ids: Vec<i32> = (0..lease.len()).map(|i| lease.id(i, l).unwrap()).collect();
            D::run(&lease.layer(l).unwrap(), &base, &x[..ids.len() * IN], &ids)
        };
        let lease = store.acquire(&["both", "up", "both"]).unwrap();
        assert_eq!((lease.slot(0), lease.slot(2)), (Ok(0), Ok(0)));
        assert_eq!((lease.id(0, 1), lease.id(1, 0), lease.id(1, 1)), (Ok(0), Ok(1), Ok(-1)));
        let (up, three) = (of(1, 6), of(3, 8));
        assert_eq!(run(&lease, 0), reference(&base, &x, &[Some(&up), Some(&three), Some(&up)]));
        let down = of(2, 3);
        assert_eq!(run(&lease, 1), reference(&base, &x, &[Some(&down), None, Some(&down)]));
        // One layer's pool is full: `both` must go from all of them, `up` stays.
        drop(lease);
        let lease = store.acquire(&["down", "up"]).unwrap();
        let four = of(4, 9);
        assert_eq!(run(&lease, 1), reference(&base, &x[..2 * IN], &[Some(&four), None]));
        assert_eq!(run(&lease, 0), reference(&base, &x[..2 * IN], &[None, Some(&three)]));
        assert_eq!((store.counters().evictions, store.counters().hits), (1, 1));
        assert!(refuses(lease.layer(2)).contains("below 2") && refuses(lease.id(2, 0)).contains("below 2"));
    }
}

/// Four threads take what they need from a pool that has room for half of it.
fn threads_share_a_store<D: Engine>() {
    const ADAPTERS: usize = 24;
    for device in D::found() {
        let store = store(&device, Limits::default(), sizes(16, 160));
        let adapters: Vec<_> = (0..ADAPTERS).map(|i| adapter(i as u64, 1 + i * 5 % 20)).collect();
        for (i, adapter) in adapters.iter().enumerate() {
            store.register(&i.to_string(), adapter.clone()).unwrap();
        }
        let (x, base) = (values(1, 4 * IN), values(2, OUT * IN));
        std::thread::scope(|scope| {
            for thread in 0..4usize {
                let (store, adapters, x, base) = (store.clone(), &adapters, &x, &base);
                scope.spawn(move || {
                    for turn in 0..12usize {
                        let own = [0, 1, 2].map(|i| (thread * 7 + turn * 5 + i * 3) % ADAPTERS);
                        let lease = store.acquire(&own.map(|i| i.to_string())).unwrap();
                        let ids = [0, 1, 2, 0].map(|i| lease.id(i, 0).unwrap());
                        let layer = lease.layer(0).unwrap();
                        let pending = D::begin(&layer, base, x, &ids).unwrap();
                        drop((lease, layer));
                        let loras = [0, 1, 2, 0].map(|i| adapters[own[i]].get("m"));
                        let y = D::end(store.layer(0).unwrap(), pending);
                        assert_eq!(y, reference(base, x, &loras), "thread {thread}, turn {turn}");
                    }
                });
            }
        });
        assert!(store.counters().evictions > 10, "{:?}", store.counters());
        assert_eq!(D::skipped(store.layer(0).unwrap()), None);
    }
}
