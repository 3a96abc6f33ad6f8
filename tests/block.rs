//! A SwiGLU mixture of experts with a LoRA per (adapter, expert), on every device, against the two grouped definitions.

use molora::adapter::slots::PoolSizes;
use molora::device::{Cpu, cpu};
use molora::layer::block::{BlockRouting, BlockRows, BlockWeights, MoeBlock};
use molora::ops::{Expert, grouped};
use molora::{Element, Lora};
use molora_check::rng::Rng;

const HIDDEN: usize = 24;
const WIDTH: usize = 20;
const EXPERTS: usize = 3;
const ADAPTERS: usize = 2;
const TOP_K: usize = 2;
/// Of gate, up and down of an (adapter, expert), repeated over the slots; the second slot leaves up alone.
const RANKS: [[usize; 3]; 4] = [[2, 3, 4], [5, 0, 1], [8, 16, 17], [1, 1, 9]];

fn values<E: Element>(name: &str, len: usize, scale: f32) -> Vec<E> {
    let mut rng = Rng::named(name, 0);
    (0..len).map(|_| E::from_f32(rng.value(scale))).collect()
}

/// Everything of a call but the device.
struct Problem<E> {
    tokens: usize,
    x: Vec<E>,
    gate_up: Vec<E>,
    down: Vec<E>,
    topk_ids: Vec<i32>,
    lora_ids: Vec<i32>,
    topk_weights: Vec<f32>,
}

/// A slot's LoRAs of gate, up and down.
fn loras<E: Element>(slot: usize) -> [Option<Lora>; 3] {
    let sizes = [(HIDDEN, WIDTH), (HIDDEN, WIDTH), (WIDTH, HIDDEN)];
    std::array::from_fn(|s| {
        let (rank, (i, o)) = (RANKS[slot % RANKS.len()][s], sizes[s]);
        let (a, b) = (
            values::<E>(&format!("a{slot}.{s}"), rank * i, 0.3),
            values(&format!("b{slot}.{s}"), rank * o, 0.3),
        );
        (rank > 0).then(|| Lora::new(i, o, rank, 0.5, &a, &b).unwrap())
    })
}

fn pool_sizes<E: Element>(in_features: usize, out_features: usize) -> PoolSizes {
    PoolSizes { in_features, out_features, experts: ADAPTERS * EXPERTS, rank_capacity: 200, element: E::TYPE }
}

fn problem<E: Element>(tokens: usize) -> Problem<E> {
    let routes = tokens * TOP_K;
    // Routes without an expert, tokens without an adapter, adapters mixed among an expert's tokens.
    let topk_ids: Vec<i32> =
        (0..routes).map(|n| if n % 7 == 5 { -1 } else { (n * 5 % 11 % EXPERTS) as i32 }).collect();
    // One of the routes without an expert has an adapter all the same, which counts for nothing.
    let lora = |n: usize| match (topk_ids[n], n / TOP_K % 3) {
        (-1, adapter) if n % 14 == 5 && adapter < 2 => (adapter * EXPERTS) as i32,
        (-1, _) | (_, 2) => -1,
        (e, adapter) => (adapter * EXPERTS) as i32 + e,
    };
    Problem {
        tokens,
        x: values("x", tokens * HIDDEN, 1.0),
        gate_up: values("gate_up", EXPERTS * 2 * WIDTH * HIDDEN, 0.3),
        down: values("down", EXPERTS * HIDDEN * WIDTH, 0.3),
        lora_ids: (0..routes).map(lora).collect(),
        topk_weights: (0..routes).map(|n| 0.1 + n as f32 % 5.0 / 5.0).collect(),
        topk_ids,
    }
}

/// The two grouped definitions behind each other; the gated product is rounded to the element between them, as it is stored.
fn expected<E: Element>(p: &Problem<E>) -> Vec<f32> {
    // Rank, A and B of gate, up and down of every slot.
    let factors = |lora: &Option<Lora>| -> (usize, Vec<f32>, Vec<f32>) {
        lora.as_ref().map_or((0, Vec::new(), Vec::new()), |l| (l.rank(), l.a().collect(), l.b().collect()))
    };
    let slots: Vec<Vec<_>> =
        (0..ADAPTERS * EXPERTS).map(|slot| loras::<E>(slot).iter().map(factors).collect()).collect();
    let of = |slices: std::ops::Range<usize>| -> Vec<Vec<Expert<'_, f32>>> {
        let mut all = Vec::new();
        for slot in &slots {
            let parts = slot[slices.clone()].iter();
            all.push(
                parts
                    .map(|(rank, lora_a, lora_b)| Expert { rank: *rank, scaling: 0.5, lora_a, lora_b })
                    .collect(),
            );
        }
        all
    };
    let wide = |v: &[E]| v.iter().map(|v| v.to_f32()).collect::<Vec<f32>>();
    let sizes = grouped::Sizes {
        tokens: p.tokens,
        top_k: TOP_K,
        experts: EXPERTS,
        in_features: HIDDEN,
        out_features: 2 * WIDTH,
        x_stride: HIDDEN,
        h_stride: 0,
        y_stride: WIDTH,
        x_per_route: false,
        rows: grouped::Rows::Gated,
    };
    let mut act = vec![0f32; p.tokens * TOP_K * WIDTH];
    let (ids, lora_ids, weights) = (&p.topk_ids, &p.lora_ids, &p.topk_weights);
    grouped::definition(&sizes, ids, lora_ids, &of(0..2), &wide(&p.gate_up), &wide(&p.x), weights, &mut act)
        .unwrap();
    let act: Vec<f32> = act.into_iter().map(|v| E::from_f32(v).to_f32()).collect();
    let down = grouped::Sizes {
        in_features: WIDTH,
        out_features: HIDDEN,
        x_stride: WIDTH,
        y_stride: HIDDEN,
        x_per_route: true,
        rows: grouped::Rows::Combined,
        ..sizes
    };
    let mut y = vec![0f32; p.tokens * HIDDEN];
    grouped::definition(&down, ids, lora_ids, &of(2..3), &wide(&p.down), &act, weights, &mut y).unwrap();
    y
}

/// Every row within what rounding to the element explains: act once (and, on tensor cores, h), y once.
fn judge<E: Element>(device: &str, p: &Problem<E>, y: &[E]) {
    let want = expected(p);
    let limit = match E::TYPE {
        molora::ElementType::F32 => 2e-6,
        molora::ElementType::F16 => 2e-3,
        molora::ElementType::Bf16 => 1.5e-2,
    };
    for t in 0..p.tokens {
        let (want, got) = (&want[t * HIDDEN..][..HIDDEN], &y[t * HIDDEN..][..HIDDEN]);
        let norm = |v: &mut dyn Iterator<Item = f32>| v.map(|v| f64::from(v).powi(2)).sum::<f64>().sqrt();
        let error = norm(&mut want.iter().zip(got).map(|(w, g)| w - g.to_f32()));
        let size = norm(&mut want.iter().copied());
        assert!(error <= limit * size.max(1e-3), "{device}, {}, token {t}: {error:e} of {size:e}", E::TYPE);
    }
}

fn on_cpu<E: Element>(p: &Problem<E>) -> Vec<E> {
    let cpu = Cpu::new().unwrap();
    let mut gate_up = cpu::Pool::packed(pool_sizes::<E>(HIDDEN, 2 * WIDTH), &[WIDTH; 2]).unwrap();
    let mut down = cpu::Pool::new(pool_sizes::<E>(WIDTH, HIDDEN)).unwrap();
    for slot in 0..ADAPTERS * EXPERTS {
        let [gate, up, down_lora] = loras::<E>(slot);
        gate_up.put_packed(slot, &[gate.as_ref(), up.as_ref()]).unwrap();
        down.put(slot, down_lora.as_ref().unwrap()).unwrap();
    }
    let block = MoeBlock::<Cpu>::new(&cpu, EXPERTS, gate_up, down).unwrap();
    let gate_up = cpu.pack(EXPERTS * 2 * WIDTH, HIDDEN, &p.gate_up).unwrap();
    let down = cpu.pack(EXPERTS * HIDDEN, WIDTH, &p.down).unwrap();
    let rows = BlockRows { tokens: p.tokens, top_k: TOP_K, x_stride: HIDDEN, y_stride: HIDDEN };
    let routing = BlockRouting {
        topk_ids: p.topk_ids.as_slice(),
        lora_ids: p.lora_ids.as_slice(),
        topk_weights: p.topk_weights.as_slice(),
    };
    let mut y = vec![E::from_f32(f32::NAN); p.tokens * HIDDEN];
    let weights = BlockWeights { gate_up: &gate_up, down: &down };
    block.forward(&rows, weights, &p.x, &routing, &mut y).unwrap();
    y
}

#[cfg(feature = "cuda")]
fn on_cuda<E: Element>(cuda: &molora::Cuda, p: &Problem<E>) -> Vec<E> {
    use molora::device::cuda::{Pool, View, ViewMut};
    let mut gate_up = Pool::packed(cuda, pool_sizes::<E>(HIDDEN, 2 * WIDTH), &[WIDTH; 2]).unwrap();
    let mut down = Pool::new(cuda, pool_sizes::<E>(WIDTH, HIDDEN)).unwrap();
    for slot in 0..ADAPTERS * EXPERTS {
        let [gate, up, down_lora] = loras::<E>(slot);
        gate_up.put_packed(slot, &[gate.as_ref(), up.as_ref()]).unwrap();
        down.put(slot, down_lora.as_ref().unwrap()).unwrap();
    }
    let block = MoeBlock::<molora::Cuda>::new(cuda, EXPERTS, gate_up, down).unwrap();
    let mut workspace = block.workspace::<E>(p.tokens, TOP_K).unwrap();
    let (x, ids) = (cuda.upload(&p.x).unwrap(), cuda.upload(&p.topk_ids).unwrap());
    let (lora_ids, weights) = (cuda.upload(&p.lora_ids).unwrap(), cuda.upload(&p.topk_weights).unwrap());
    let (gate_up, down) = (cuda.upload(&p.gate_up).unwrap(), cuda.upload(&p.down).unwrap());
    let mut y = cuda.upload(&vec![E::from_f32(f32::NAN); p.tokens * HIDDEN]).unwrap();
    let rows = BlockRows { tokens: p.tokens, top_k: TOP_K, x_stride: HIDDEN, y_stride: HIDDEN };
    let routes = p.tokens * TOP_K;
    let topk_ids = View::new(cuda, ids.slice(..routes)).unwrap();
    let lora_ids = View::new(cuda, lora_ids.slice(..routes)).unwrap();
    let topk_weights = View::new(cuda, weights.slice(..routes)).unwrap();
    let routing = BlockRouting { topk_ids: &topk_ids, lora_ids: &lora_ids, topk_weights: &topk_weights };
    let gate_up = View::new(cuda, gate_up.slice(..p.gate_up.len())).unwrap();
    let down = View::new(cuda, down.slice(..p.down.len())).unwrap();
    let x = View::new(cuda, x.slice(..p.x.len())).unwrap();
    let mut y_view = ViewMut::new(cuda, y.slice_mut(..p.tokens * HIDDEN)).unwrap();
    let weights = BlockWeights { gate_up: &gate_up, down: &down };
    block.forward(&rows, weights, &x, &routing, &mut workspace, &mut y_view).unwrap();
    drop(y_view);
    assert!(block.device().take_status().unwrap().is_ok());
    cuda.download(&y, p.tokens * HIDDEN).unwrap()
}

/// Where some slots are not filled, no route may name them.
#[cfg(feature = "wgpu")]
fn on_wgpu<E: Element>(wgpu: &molora::Wgpu, p: &Problem<E>, filled: std::ops::Range<usize>) -> Vec<E> {
    use molora::device::wgpu::{Pool, View};
    let mut gate_up = Pool::packed(wgpu, pool_sizes::<E>(HIDDEN, 2 * WIDTH), &[WIDTH; 2]).unwrap();
    let mut down = Pool::new(wgpu, pool_sizes::<E>(WIDTH, HIDDEN)).unwrap();
    for slot in filled {
        let [gate, up, down_lora] = loras::<E>(slot);
        gate_up.put_packed(slot, &[gate.as_ref(), up.as_ref()]).unwrap();
        down.put(slot, down_lora.as_ref().unwrap()).unwrap();
    }
    let block = MoeBlock::<molora::Wgpu>::new(wgpu, EXPERTS, gate_up, down).unwrap();
    let mut workspace = block.workspace::<E>(p.tokens, TOP_K).unwrap();
    let (x, ids) = (wgpu.upload(&p.x).unwrap(), wgpu.upload(&p.topk_ids).unwrap());
    let (lora_ids, weights) = (wgpu.upload(&p.lora_ids).unwrap(), wgpu.upload(&p.topk_weights).unwrap());
    let (gate_up, down) = (wgpu.upload(&p.gate_up).unwrap(), wgpu.upload(&p.down).unwrap());
    let y = wgpu.upload(&vec![E::from_f32(f32::NAN); p.tokens * HIDDEN]).unwrap();
    let rows = BlockRows { tokens: p.tokens, top_k: TOP_K, x_stride: HIDDEN, y_stride: HIDDEN };
    let routes = p.tokens * TOP_K;
    let routing = BlockRouting {
        topk_ids: View::new(&ids, 0, routes).unwrap(),
        lora_ids: View::new(&lora_ids, 0, routes).unwrap(),
        topk_weights: View::new(&weights, 0, routes).unwrap(),
    };
    let weights = BlockWeights {
        gate_up: View::<E>::new(&gate_up, 0, p.gate_up.len()).unwrap(),
        down: View::<E>::new(&down, 0, p.down.len()).unwrap(),
    };
    let (x, y_view) =
        (View::<E>::new(&x, 0, p.x.len()).unwrap(), View::<E>::new(&y, 0, p.tokens * HIDDEN).unwrap());
    let mut encoder = wgpu.encoder();
    block.forward(&mut encoder, &rows, weights, x, &routing, &mut workspace, y_view).unwrap();
    wgpu.queue().submit([encoder.finish()]);
    assert!(block.device().take_status().unwrap().is_ok());
    wgpu.download(&y, p.tokens * HIDDEN).unwrap()
}

#[cfg(feature = "wgpu")]
fn adapters() -> Vec<molora::Wgpu> {
    molora::Wgpu::adapters().iter().filter_map(|adapter| molora::Wgpu::open(adapter).ok()).collect()
}

fn every_device<E: Element>() {
    // Fails where MOLORA_REQUIRE names a device that is not there.
    molora_check::subjects().unwrap_or_else(|why| panic!("{why}"));
    for tokens in [0, 1, 7, 66] {
        let p = problem::<E>(tokens);
        judge("cpu", &p, &on_cpu(&p));
        #[cfg(feature = "cuda")]
        if let Ok(cuda) = molora::Cuda::new(0) {
            judge("cuda", &p, &on_cuda(&cuda, &p));
        }
        #[cfg(feature = "wgpu")]
        for wgpu in paths() {
            judge(&wgpu.describe(), &p, &on_wgpu(&wgpu, &p, 0..ADAPTERS * EXPERTS));
        }
    }
}

#[test]
fn a_block_is_its_two_grouped_products() {
    every_device::<f32>();
    every_device::<half::f16>();
    every_device::<half::bf16>();
}

/// The adapters, as they are and on tiles without subgroups, which every device can do.
#[cfg(feature = "wgpu")]
fn paths() -> Vec<molora::Wgpu> {
    let plain = |wgpu: &molora::Wgpu| wgpu.tuned(molora::device::wgpu::Tuning::plain()).unwrap();
    adapters().into_iter().flat_map(|wgpu| [plain(&wgpu), wgpu]).collect()
}

/// Plans are not counted.
#[test]
#[cfg(feature = "wgpu")]
fn a_block_takes_four_dispatches_on_webgpu() {
    use molora::device::wgpu::{Path, trace::Command};
    for wgpu in paths() {
        let kernels = |p: &Problem<half::f16>, filled: std::ops::Range<usize>| -> Vec<&'static str> {
            let traced = wgpu.traced();
            judge(&wgpu.describe(), p, &on_wgpu(&traced, p, filled));
            let entry = |command: &Command| match command {
                Command::Dispatch(dispatch) => Some(dispatch.entry),
                Command::Clear { .. } => None,
            };
            let commands = traced.take_trace().commands;
            commands.iter().filter_map(entry).filter(|entry| !entry.starts_with("plan")).collect()
        };
        let [product, with_shrink] = match wgpu.tuning().path {
            Path::Lanes => ["grouped_lanes", "grouped_shrink_lanes"],
            Path::Tiles | Path::Matrix => ["grouped", "grouped_shrink"],
        };
        let p = problem::<half::f16>(7);
        let all = kernels(&p, 0..ADAPTERS * EXPERTS);
        assert_eq!(all, ["shrink_few", product, with_shrink, "grouped_combine"], "{}", wgpu.describe());
        // Without LoRAs nothing shrinks.
        let none = Problem { lora_ids: vec![-1; p.lora_ids.len()], ..p };
        assert_eq!(kernels(&none, 0..0), [product, product, "grouped_combine"], "{}", wgpu.describe());
    }
}

/// Sizes that fit nothing are refused before anything is computed from them.
#[test]
fn absurd_sizes_are_refused() {
    let rows = |tokens: usize, top_k: usize| BlockRows { tokens, top_k, x_stride: HIDDEN, y_stride: HIDDEN };
    let absurd = [rows(usize::MAX, 2), rows(2, usize::MAX), rows(1 << 40, 1 << 30), rows(1 << 33, 0)];
    let (cpu, up, down) = (
        Cpu::new().unwrap(),
        cpu::Pool::packed(pool_sizes::<f32>(HIDDEN, 2 * WIDTH), &[WIDTH; 2]).unwrap(),
        cpu::Pool::new(pool_sizes::<f32>(WIDTH, HIDDEN)).unwrap(),
    );
    let block = MoeBlock::<Cpu>::new(&cpu, EXPERTS, up, down).unwrap();
    let gate_up = cpu.pack(EXPERTS * 2 * WIDTH, HIDDEN, &vec![0f32; EXPERTS * 2 * WIDTH * HIDDEN]).unwrap();
    let down = cpu.pack(EXPERTS * HIDDEN, WIDTH, &vec![0f32; EXPERTS * HIDDEN * WIDTH]).unwrap();
    for rows in &absurd {
        let routing = BlockRouting { topk_ids: &[][..], lora_ids: &[][..], topk_weights: &[][..] };
        let weights = BlockWeights { gate_up: &gate_up, down: &down };
        assert!(
            block.forward(rows, weights, &[0f32; HIDDEN], &routing, &mut [0f32; HIDDEN]).is_err(),
            "{rows:?}"
        );
    }
    #[cfg(feature = "cuda")]
    if let Ok(cuda) = molora::Cuda::new(0) {
        use molora::device::cuda::{Pool, View, ViewMut};
        let gate_up = Pool::packed(&cuda, pool_sizes::<f32>(HIDDEN, 2 * WIDTH), &[WIDTH; 2]).unwrap();
        let down = Pool::new(&cuda, pool_sizes::<f32>(WIDTH, HIDDEN)).unwrap();
        let block = MoeBlock::<molora::Cuda>::new(&cuda, EXPERTS, gate_up, down).unwrap();
        let mut workspace = block.workspace::<f32>(1, TOP_K).unwrap();
        let (mut floats, ids) = (cuda.upload(&[0f32; HIDDEN]).unwrap(), cuda.upload(&[0i32]).unwrap());
        let x = cuda.upload(&[0f32; HIDDEN]).unwrap();
        let (x, mut y) = (View::whole(&cuda, &x).unwrap(), ViewMut::whole(&cuda, &mut floats).unwrap());
        let none = View::new(&cuda, ids.slice(..0)).unwrap();
        let weights = cuda.upload(&[0f32]).unwrap();
        let topk_weights = View::new(&cuda, weights.slice(..0)).unwrap();
        let routing = BlockRouting { topk_ids: &none, lora_ids: &none, topk_weights: &topk_weights };
        for rows in &absurd {
            assert!(block.workspace::<f32>(rows.tokens, rows.top_k).is_err() || rows.top_k == 0, "{rows:?}");
            let weights = BlockWeights { gate_up: &x, down: &x };
            assert!(block.forward(rows, weights, &x, &routing, &mut workspace, &mut y).is_err(), "{rows:?}");
        }
    }
    #[cfg(feature = "wgpu")]
    for wgpu in adapters() {
        use molora::device::wgpu::{Plan, Pool, View};
        let gate_up = Pool::packed(&wgpu, pool_sizes::<f32>(HIDDEN, 2 * WIDTH), &[WIDTH; 2]).unwrap();
        let down = Pool::new(&wgpu, pool_sizes::<f32>(WIDTH, HIDDEN)).unwrap();
        let block = MoeBlock::<molora::Wgpu>::new(&wgpu, EXPERTS, gate_up, down).unwrap();
        let mut workspace = block.workspace::<f32>(1, TOP_K).unwrap();
        let (x, y) = (wgpu.upload(&[0f32; HIDDEN]).unwrap(), wgpu.upload(&[0f32; HIDDEN]).unwrap());
        let (ids, weights) = (wgpu.upload(&[0i32]).unwrap(), wgpu.upload(&[0f32]).unwrap());
        let (x, y) = (View::<f32>::whole(&x), View::<f32>::whole(&y));
        let none = View::<i32>::new(&ids, 0, 0).unwrap();
        let topk_weights = View::<f32>::new(&weights, 0, 0).unwrap();
        let routing = BlockRouting { topk_ids: none, lora_ids: none, topk_weights };
        let mut encoder = wgpu.encoder();
        for rows in &absurd {
            assert!(block.workspace::<f32>(rows.tokens, rows.top_k).is_err() || rows.top_k == 0, "{rows:?}");
            let weights = BlockWeights { gate_up: x, down: x };
            let refused = block.forward(&mut encoder, rows, weights, x, &routing, &mut workspace, y);
            assert!(refused.is_err(), "{rows:?}");
        }
        let huge = molora::ops::plan::Sizes { tokens: usize::MAX, top_k: usize::MAX, experts: usize::MAX };
        assert_eq!(Plan::bytes(&huge), u64::MAX);
    }
}

/// The block's pools are of its own device.
#[test]
#[cfg(feature = "wgpu")]
fn pools_of_another_device_are_refused() {
    use molora::device::wgpu::Pool;
    for (wgpu, other) in adapters().into_iter().zip(adapters()) {
        let up = |wgpu| Pool::packed(wgpu, pool_sizes::<f32>(HIDDEN, 2 * WIDTH), &[WIDTH; 2]).unwrap();
        let down = |wgpu| Pool::new(wgpu, pool_sizes::<f32>(WIDTH, HIDDEN)).unwrap();
        let block = |up, down| MoeBlock::<molora::Wgpu>::new(&wgpu, EXPERTS, up, down);
        assert!(block(up(&wgpu), down(&wgpu)).is_ok());
        for refused in [block(up(&other), down(&wgpu)), block(up(&wgpu), down(&other))] {
            let why = refused.unwrap_err().to_string();
            assert!(why.contains("one of another device"), "{why}");
        }
    }
}
