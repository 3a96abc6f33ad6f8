//! Budgets, tiers, pins and errors: pure books, on the CPU.

use crate::{IN, OUT, adapter, lora, of_modules, refuses, sizes, store, values};
use molora::adapter::slots::PoolSizes;
use molora::adapter::store::{Counters, Limits, Memory, Served, Store};
use molora::adapter::{Adapter, LinearRouter};
use molora::device::cpu;
use molora::layer::{MoeLora, Router};
use molora::ops::fused::Form;
use molora::ops::route::Weighting;
use molora::{Cpu, ElementType, Error, Lora};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Barrier};

/// What a rank takes on the CPU: 24 columns of A, 64 of B, f32.
const ROW: u64 = (24 + 64) * 4;

fn small(limits: Limits) -> Store<Cpu> {
    store(&Cpu::new().unwrap(), limits, sizes(4, 32))
}

fn keys(memory: &Memory) -> Vec<&str> {
    memory.device.adapters.iter().map(|a| a.key.as_str()).collect()
}

#[test]
fn the_least_recently_used_goes_under_the_budget() {
    let store = small(Limits { device_bytes: 10 * ROW, ..Limits::default() });
    for (key, rank) in [("a", 4), ("b", 3), ("c", 2), ("d", 3)] {
        store.register(key, adapter(1, rank)).unwrap();
        drop(store.acquire(&[key]).unwrap());
    }
    assert_eq!(keys(&store.memory()), ["b", "c", "d"], "32 rows would hold all, the budget does not");
    drop(store.acquire(&["b"]).unwrap());
    drop(store.acquire(&["a"]).unwrap());
    assert_eq!(keys(&store.memory()), ["d", "b", "a"], "c was used least recently");
    assert_eq!(store.counters(), Counters { hits: 1, uploads: 5, evictions: 2, loads: 0 });
    let memory = store.memory();
    assert_eq!((memory.device.used, memory.device.free), (10 * ROW, 0));
}

#[test]
fn an_adapter_takes_its_own_size() {
    let element = ElementType::Bf16;
    let sizes = PoolSizes { in_features: 512, out_features: 128, experts: 8, rank_capacity: 100, element };
    let pool = cpu::Pool::packed(sizes, &[64, 64]).unwrap();
    let layer = MoeLora::<Cpu>::new(&Cpu::new().unwrap(), pool, Router::External { top_k: 1 }).unwrap();
    let store = Store::new(Limits::default(), vec![Served::packed(["q", "k"], layer)]).unwrap();
    let one = |rank: usize| {
        let (a, b) = (vec![half::bf16::ONE; rank * 512], vec![half::bf16::ONE; rank * 64]);
        Lora::new(512, 64, rank, 1.0, &a, &b).unwrap()
    };
    store.register("wide", of_modules(&[("q", one(64))])).unwrap();
    store.register("thin", of_modules(&[("q", one(1)), ("k", one(3))])).unwrap();
    let lease = store.acquire(&["wide", "thin"]).unwrap();
    let memory = store.memory();
    let of = |i: usize| (memory.device.adapters[i].own_bytes, memory.device.adapters[i].bytes);
    // Nothing is padded to the largest rank; these widths are whole panels.
    assert_eq!((of(0), of(1)), ((64 * 576 * 2, 64 * 576 * 2), (4 * 576 * 2, 4 * 576 * 2)));
    assert!(memory.device.adapters.iter().all(|a| a.leased && !a.pinned));
    assert_eq!((memory.rows[0].capacity, memory.rows[0].free, memory.rows[0].largest_run), (100, 32, 32));
    assert_eq!(memory.host.used, (64 + 4) * 576 * 2);
    drop(lease);
    assert!(store.memory().device.adapters.iter().all(|a| !a.leased));
}

#[test]
fn adapters_go_until_a_hole_fits() {
    let store = small(Limits::default());
    for (key, rank) in [("a", 10), ("b", 4), ("c", 10), ("d", 8)] {
        store.register(key, adapter(1, rank)).unwrap();
    }
    drop(store.acquire(&["a", "b", "c", "d"]).unwrap());
    drop(store.acquire(&["a"]).unwrap());
    // d and b leave 4 and 8 rows apart: c, between them, is the next to go.
    drop(store.acquire(&["c"]).unwrap());
    drop(store.acquire(&["d"]).unwrap());
    store.register("e", adapter(1, 14)).unwrap();
    drop(store.acquire(&["e"]).unwrap());
    assert_eq!(keys(&store.memory()), ["c", "d", "e"], "b alone frees 4 rows; with a it is a hole of 14");
    assert_eq!(store.counters().evictions, 2);
}

#[test]
fn what_is_pinned_stays_in_its_slot() {
    let store = small(Limits::default());
    for key in ["a", "b", "c", "d", "e", "f"] {
        store.register(key, adapter(1, 8)).unwrap();
    }
    assert_eq!((store.pin("a"), store.pin("b"), store.pin("b")), (Ok(0), Ok(1), Ok(1)));
    for key in ["c", "d", "e", "f"] {
        drop(store.acquire(&[key]).unwrap());
    }
    assert_eq!(store.acquire(&["a", "b"]).unwrap().slot(1), Ok(1));
    let pinned = "expected one that is not pinned, got a pinned one";
    assert!(refuses(store.replace("a", adapter(2, 8))).contains(pinned));
    assert!(refuses(store.remove("a")).contains(pinned));
    assert!(refuses(store.evict("a")).contains("got a pinned one"));
    let held = store.acquire(&["e", "f"]).unwrap();
    let why = refuses(store.acquire(&["c"]));
    assert!(why.contains("pinned: a, b; leased or being filled: e, f; replaced, but leased: none"), "{why}");
    assert!(refuses(store.evict("e")).contains("got one that a lease holds"));
    drop(held);
    store.evict("e").unwrap();
    assert_eq!(keys(&store.memory()).len(), 3);
    (0..2).for_each(|_| store.unpin("b").unwrap());
    assert!(refuses(store.unpin("b")).contains("expected a pinned one"));
    store.remove("b").unwrap();
    assert!(refuses(store.acquire(&["b"])).contains("expected a registered one, got \"b\""));
}

#[test]
fn errors_name_what_is_wrong() {
    let store = small(Limits { device_bytes: 20 * ROW, host_bytes: 4000 });
    store.register("a", adapter(1, 8)).unwrap();
    assert_eq!(refuses(store.acquire(&["a", "x"])), "store: key: expected a registered one, got \"x\"");
    assert_eq!(
        refuses(store.register("a", adapter(1, 8))),
        "store: key: expected one that is not taken, got \"a\""
    );
    let why = refuses(store.register("b", adapter(1, 21)));
    assert_eq!(
        why,
        format!(
            "store: bytes of adapter \"b\": expected at most the budget of {} bytes, got {}",
            20 * ROW,
            21 * ROW
        )
    );
    let why = refuses(store.register("b", adapter(1, 33)));
    assert!(
        why.contains("rank of adapter \"b\": expected at most the 32 of the pool of [\"m\"], got 33"),
        "{why}"
    );
    let why = refuses(store.register("b", adapter(1, 17)));
    assert!(
        why.contains("in host memory: expected at most 2592 bytes beside 1408 of others, got 2992"),
        "{why}"
    );
    let why = refuses(store.register("b", of_modules(&[("n", lora(1, (IN, OUT, 2)))])));
    assert!(why.contains("modules that the store serves, got \"n\""), "{why}");
    let why = refuses(store.register("b", of_modules(&[("m", lora(1, (IN, OUT + 1, 2)))])));
    assert_eq!(why, "pool: lora.out_features: expected 20, got 21");
    assert!(refuses(store.register("b", of_modules(&[]))).contains("at least one module"));
    assert!(refuses(store.replace("b", adapter(1, 1))).contains("expected a known one, got \"b\""));
    assert!(refuses(store.remove("b")).contains("expected a known one"));
    assert!(refuses(store.evict("a")).contains("expected one that is on the device"));
    assert!(refuses(store.acquire(&["a"]).unwrap().slot(1)).contains("below 1"));
    assert_eq!(store.counters(), Counters { hits: 0, uploads: 1, evictions: 0, loads: 0 });
}

#[test]
fn layers_that_a_store_cannot_serve_are_refused() {
    let cpu = Cpu::new().unwrap();
    let layer = |pool| MoeLora::<Cpu>::new(&cpu, pool, Router::External { top_k: 1 }).unwrap();
    let empty = |experts| layer(cpu::Pool::new(sizes(experts, 8)).unwrap());
    let new = |served| Store::new(Limits::default(), served);
    let mut full = cpu::Pool::new(sizes(4, 8)).unwrap();
    full.add(&lora(1, (IN, OUT, 2))).unwrap();
    assert!(refuses(new(vec![Served::new("m", layer(full))])).contains("expected an empty pool"));
    let twice = vec![Served::new("m", empty(4)), Served::new("m", empty(4))];
    assert!(refuses(new(twice)).contains("every module once, got \"m\" twice"));
    let uneven = vec![Served::new("m", empty(4)), Served::new("n", empty(5))];
    assert!(refuses(new(uneven)).contains("slots of every pool: expected 4, got 5"));
    assert!(refuses(new(vec![Served::packed(["m", "n"], empty(4))])).contains("modules: expected 1, got 2"));
    assert!(new(Vec::new()).unwrap().acquire::<&str>(&[]).unwrap().is_empty());
}

#[test]
fn a_loader_brings_what_the_host_does_not_keep() {
    let cpu = Cpu::new().unwrap();
    // Two adapters of rank 8 in host memory, one of rank 16 never.
    let host_bytes = 2 * 8 * 44 * 4;
    let calls = Arc::new(AtomicUsize::new(0));
    let counted = calls.clone();
    let loader = move |key: &str| -> molora::Result<Adapter> {
        counted.fetch_add(1, Ordering::Relaxed);
        match key {
            "large" => Ok((*adapter(9, 16)).clone()),
            "wrong" => Ok((*of_modules(&[("n", lora(1, (IN, OUT, 2)))])).clone()),
            "absent" => Err(Error::Device { device: "disk".into(), reason: "no such file".into() }),
            _ => Ok((*adapter(key.len() as u64, 8)).clone()),
        }
    };
    let served = vec![Served::new(
        "m",
        MoeLora::<Cpu>::new(&cpu, cpu::Pool::new(sizes(4, 16)).unwrap(), Router::External { top_k: 1 })
            .unwrap(),
    )];
    let store = Store::with_loader(Limits { host_bytes, ..Limits::default() }, served, loader).unwrap();
    let host = || store.memory().host.adapters.into_iter().map(|a| a.key).collect::<Vec<_>>();
    store.register("kept", adapter(1, 8)).unwrap();
    let first = store.acquire(&["x", "kept"]).unwrap().generation(0).unwrap();
    assert_eq!((host().len(), store.counters().loads), (2, 1));
    drop(store.acquire(&["yy"]).unwrap());
    assert_eq!((host(), store.counters().loads), (vec!["kept".to_string(), "yy".into()], 2), "x made room");
    drop(store.acquire(&["large"]).unwrap());
    assert_eq!(host(), ["kept"], "what does not fit is used all the same");
    drop(store.acquire(&["large"]).unwrap());
    assert_eq!(store.counters().loads, 3, "it is on the device");
    assert_ne!(store.acquire(&["x"]).unwrap().generation(0), Ok(first), "loaded anew");
    assert!(refuses(store.acquire(&["absent"])).contains("no such file"));
    assert!(refuses(store.acquire(&["wrong"])).contains("modules that the store serves"));
    // Forgotten: loaded again, also from the device's tier.
    let before = calls.load(Ordering::Relaxed);
    store.remove("x").unwrap();
    drop(store.acquire(&["x"]).unwrap());
    assert_eq!(calls.load(Ordering::Relaxed), before + 1);
}

#[test]
fn one_thread_fills_and_the_others_wait() {
    let cpu = Cpu::new().unwrap();
    for round in 0..50 {
        let store = store(&cpu, Limits::default(), sizes(4, 64));
        store.register("a", adapter(1, 32)).unwrap();
        store.register("b", adapter(2, 32)).unwrap();
        let start = Barrier::new(4);
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let (store, start) = (&store, &start);
                scope.spawn(move || {
                    start.wait();
                    let keys = if thread % 2 == 0 { ["a", "b"] } else { ["b", "a"] };
                    assert_eq!(store.acquire(&keys).unwrap().len(), 2);
                });
            }
        });
        assert_eq!(store.counters().uploads, 2, "round {round}");
    }
}

#[test]
fn pinned_experts_of_a_linear_router() {
    let cpu = Cpu::new().unwrap();
    let linear = LinearRouter::new(2, IN, &values(5, 2 * IN), None).unwrap();
    let router = Router::best(linear, 1, Weighting::SoftmaxSelected);
    let pool = cpu::Pool::new(sizes(4, 32)).unwrap();
    let layer = MoeLora::<Cpu>::new(&cpu, pool, router).unwrap();
    let store = Store::new(Limits::default(), vec![Served::new("m", layer)]).unwrap();
    for (slot, key) in ["e0", "e1"].into_iter().enumerate() {
        store.register(key, adapter(slot as u64, 4)).unwrap();
        assert_eq!(store.pin(key), Ok(slot));
    }
    let lease = store.acquire(&["e0", "e1"]).unwrap();
    let (x, rows) = (values(1, 6 * IN), molora::layer::Rows { tokens: 6, x_stride: IN, y_stride: OUT });
    let (mut ids, mut weights) = ([-7; 6], [f32::NAN; 6]);
    let mut routing = molora::layer::Routing::new(&mut ids, &mut weights);
    store.layer(0).unwrap().route(&rows, &x, &mut routing).unwrap();
    assert!(routing.topk_ids.iter().all(|id| (0..2).contains(id)) && routing.topk_weights == [1.0; 6]);
    let layer = lease.layer(0).unwrap();
    let (mut y, mut workspace) = (vec![0f32; 6 * OUT], vec![0f32; layer.workspace_len(6)]);
    layer.forward_delta(&rows, &x, &mut routing, &mut workspace, &mut y).unwrap();
    let loras: Vec<_> = ids.iter().map(|&id| lora(id as u64, (IN, OUT, 4))).collect();
    let loras: Vec<_> = loras.iter().map(Some).collect();
    assert_eq!(y, crate::reference(&[0.0; OUT * IN], &x, &loras));
}

/// The dense form reads all rows of a pool, which others write.
#[test]
fn what_reads_every_row_is_refused() {
    let cpu = Cpu::new().unwrap();
    let pool = cpu::Pool::new(sizes(4, 32)).unwrap();
    let layer = MoeLora::<Cpu>::new(&cpu, pool, Router::External { top_k: 1 }).unwrap();
    let served = vec![Served::new("m", layer.with_form(Some(Form::Dense)))];
    let store = Store::new(Limits::default(), served).unwrap();
    store.register("a", adapter(1, 4)).unwrap();
    let lease = store.acquire(&["a"]).unwrap();
    let layer = lease.layer(0).unwrap();
    let why =
        refuses(<Cpu as crate::devices::Engine>::begin(&layer, &values(2, OUT * IN), &values(1, IN), &[0]));
    assert_eq!(why, "fused: pool: expected a pool that is not a store's, got what a store lent out");
    let mut concat = vec![0f32; OUT * (IN + 32)];
    let why = refuses(cpu.fused_concat(layer.pool(), &values(2, OUT * IN), IN + 32, &mut concat));
    assert!(why.contains("what a store lent out"), "{why}");
}
