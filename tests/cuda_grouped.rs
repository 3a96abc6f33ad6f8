//! Base experts with LoRAs on CUDA: a SwiGLU block in four launches, adapters mixed within a tile, routes and tokens that
//! have no expert, counters that every launch leaves as it found them.
#![cfg(feature = "cuda")]

mod common;

use common::cuda::{device, write};
use half::{bf16, f16};
use molora::adapter::slots::PoolSizes;
use molora::device::cuda::cudarc::driver::{CudaSlice, sys};
use molora::device::cuda::{Plan, Pool, Status, View, ViewMut};
use molora::ops::grouped::{self, Rows, Sizes, definition};
use molora::ops::{Expert, Output, plan, shrink};
use molora::{Cuda, Element, Lora};

const TOKENS: usize = 37;
const TOP_K: usize = 3;
const EXPERTS: usize = 5;
const ADAPTERS: usize = 3;
const HIDDEN: usize = 48;
const WIDTH: usize = 72;
const RANKS: [usize; 5] = [3, 8, 16, 17, 33];

/// Seeded values, so small that a block's outputs stay near 1.
fn values<E: Element>(seed: usize, len: usize) -> Vec<E> {
    let value = |i: usize| ((((i + 3) * (seed * 7 + 5) * 31 % 97) % 16) as f32 / 8.0 - 1.0) / 4.0;
    (0..len).map(|i| E::from_f32(value(i))).collect()
}

/// Rank, A and B of a slice.
type Factors<A> = (usize, Vec<A>, Vec<A>);

/// The LoRAs of one of the block's products: `[slot][slice]`.
struct Loras<A> {
    sizes: PoolSizes,
    slices: Vec<usize>,
    factors: Vec<Vec<Factors<A>>>,
}

impl<A: Element> Loras<A> {
    fn new(in_features: usize, slices: &[usize], seed: usize) -> Self {
        let experts = ADAPTERS * EXPERTS;
        let sizes = PoolSizes {
            in_features,
            out_features: slices.iter().sum(),
            experts,
            rank_capacity: 2048,
            element: A::TYPE,
        };
        let factor = |slot: usize, s: usize, width: usize| {
            let rank = RANKS[(slot + 2 * s + seed) % RANKS.len()];
            (rank, values(seed + slot + s, rank * in_features), values(seed + slot + 9 * s, rank * width))
        };
        let factors = |slot| slices.iter().enumerate().map(|(s, &width)| factor(slot, s, width)).collect();
        Self { sizes, slices: slices.to_vec(), factors: (0..experts).map(factors).collect() }
    }

    fn pool(&self, cuda: &Cuda) -> Pool {
        let mut pool = Pool::packed(cuda, self.sizes, &self.slices).unwrap();
        for (slot, parts) in self.factors.iter().enumerate() {
            let lora = |(s, (rank, a, b)): (usize, &(usize, Vec<A>, Vec<A>))| {
                Lora::new(self.sizes.in_features, self.slices[s], *rank, 0.5, a, b).unwrap()
            };
            let loras: Vec<Lora> = parts.iter().enumerate().map(lora).collect();
            pool.put_packed(slot, &loras.iter().map(Some).collect::<Vec<_>>()).unwrap();
        }
        pool
    }

    fn experts(&self) -> Vec<Vec<Expert<'_, A>>> {
        fn expert<A>((rank, lora_a, lora_b): &(usize, Vec<A>, Vec<A>)) -> Expert<'_, A> {
            Expert { rank: *rank, scaling: 0.5, lora_a, lora_b }
        }
        self.factors.iter().map(|parts| parts.iter().map(expert).collect()).collect()
    }
}

/// A block: gate and up, then down.
struct Block<X, A> {
    gate_up: (Sizes, Loras<A>, Vec<X>),
    down: (Sizes, Loras<A>, Vec<X>),
    x: Vec<X>,
    ids: Vec<i32>,
    lora_ids: Vec<i32>,
    weights: Vec<f32>,
}

impl<X: Element, A: Element> Block<X, A> {
    fn new(tokens: usize) -> Self {
        let (up, down) = (Loras::new(HIDDEN, &[WIDTH, WIDTH], 1), Loras::new(WIDTH, &[HIDDEN], 4));
        let rank = |loras: &Loras<A>| {
            loras.factors.iter().map(|parts| parts.iter().map(|p| p.0).sum::<usize>()).max().unwrap()
        };
        let sizes = Sizes {
            tokens,
            top_k: TOP_K,
            experts: EXPERTS,
            in_features: HIDDEN,
            out_features: 2 * WIDTH,
            x_stride: HIDDEN,
            h_stride: rank(&up),
            y_stride: WIDTH,
            x_per_route: false,
            rows: Rows::Gated,
        };
        let down_sizes = Sizes {
            in_features: WIDTH,
            out_features: HIDDEN,
            x_stride: WIDTH,
            h_stride: rank(&down),
            y_stride: HIDDEN,
            x_per_route: true,
            rows: Rows::Combined,
            ..sizes
        };
        // Expert 4 takes nobody, token 5 nobody takes, and some routes have no expert or no LoRA.
        let id = |n: usize| {
            if n % 11 == 7 || n / TOP_K == 5 { -1 } else { ((n * n + n / 4) % (EXPERTS - 1)) as i32 }
        };
        let ids: Vec<i32> = (0..tokens * TOP_K).map(id).collect();
        let lora = |n: usize| match n / TOP_K % (ADAPTERS + 1) {
            adapter if adapter < ADAPTERS && ids[n] >= 0 => (adapter * EXPERTS) as i32 + ids[n],
            _ => -1,
        };
        Self {
            x: values(2, tokens * HIDDEN),
            lora_ids: (0..ids.len()).map(lora).collect(),
            weights: (0..ids.len()).map(|n| [0.5, -0.25, 1.0][n % 3]).collect(),
            gate_up: (sizes, up, values(3, EXPERTS * 2 * WIDTH * HIDDEN)),
            down: (down_sizes, down, values(6, EXPERTS * HIDDEN * WIDTH)),
            ids,
        }
    }

    /// Gated rows, then what becomes of the given ones.
    fn want(&self, act: &[X]) -> (Vec<X>, Vec<X>) {
        let run = |(sizes, loras, weight): &(Sizes, Loras<A>, Vec<X>), x: &[X]| {
            let mut y = vec![X::from_f32(7.0); sizes.y_rows() * sizes.y_stride];
            let (ids, lora_ids, weights) = (&self.ids, &self.lora_ids, &self.weights);
            definition(sizes, ids, lora_ids, &loras.experts(), weight, x, weights, &mut y).unwrap();
            y
        };
        (run(&self.gate_up, &self.x), run(&self.down, act))
    }
}

/// A block in device memory.
struct Engine<X> {
    sizes: [Sizes; 2],
    _markers: Pool,
    pools: [Pool; 2],
    /// Base experts; LoRAs of tokens' rows; LoRAs of routes' rows.
    plans: [Plan; 3],
    weight: [CudaSlice<X>; 2],
    x: CudaSlice<X>,
    _ids: CudaSlice<i32>,
    lora_ids: CudaSlice<i32>,
    weights: CudaSlice<f32>,
    h: CudaSlice<f32>,
    scratch: CudaSlice<f32>,
    act: CudaSlice<X>,
    y: CudaSlice<X>,
}

impl<X: Element> Engine<X> {
    fn new<A: Element>(cuda: &Cuda, block: &Block<X, A>) -> Self {
        let sizes = [block.gate_up.0, block.down.0];
        let routes = sizes[0].routes();
        let pools = [block.gate_up.1.pool(cuda), block.down.1.pool(cuda)];
        let markers = Pool::markers(cuda, EXPERTS).unwrap();
        let (ids, lora_ids) = (cuda.upload(&block.ids).unwrap(), cuda.upload(&block.lora_ids).unwrap());
        let plan_sizes = |experts| plan::Sizes { tokens: sizes[0].tokens, top_k: TOP_K, experts };
        let slots = plan_sizes(ADAPTERS * EXPERTS);
        let plan = |sizes: plan::Sizes, pool: &Pool, ids: &CudaSlice<i32>| {
            cuda.plan(&sizes, pool, &View::whole(cuda, ids).unwrap(), None).unwrap()
        };
        let plans = [
            plan(plan_sizes(EXPERTS), &markers, &ids),
            plan(slots, &pools[0], &lora_ids),
            plan(plan::Sizes { tokens: routes, top_k: 1, ..slots }, &pools[1], &lora_ids),
        ];
        let h_stride = sizes[0].h_stride.max(sizes[1].h_stride);
        let nan = |len: usize| vec![X::from_f32(f32::NAN); len];
        Self {
            _markers: markers,
            pools,
            plans,
            weight: [cuda.upload(&block.gate_up.2).unwrap(), cuda.upload(&block.down.2).unwrap()],
            x: cuda.upload(&block.x).unwrap(),
            weights: cuda.upload(&block.weights).unwrap(),
            h: cuda.upload(&vec![f32::NAN; routes * h_stride]).unwrap(),
            scratch: cuda.upload(&vec![f32::NAN; grouped::cuda::scratch_len(&sizes[1])]).unwrap(),
            act: cuda.upload(&vec![X::from_f32(7.0); routes * WIDTH]).unwrap(),
            y: cuda.upload(&nan(sizes[1].tokens * HIDDEN)).unwrap(),
            sizes,
            _ids: ids,
            lora_ids,
        }
    }

    /// Both plans of the LoRAs, anew.
    fn plan(&mut self, cuda: &Cuda) {
        let [_, first, second] = &mut self.plans;
        for (plan, pool) in [(first, &self.pools[0]), (second, &self.pools[1])] {
            let sizes = *plan.sizes();
            cuda.plan_into(&sizes, pool, &View::whole(cuda, &self.lora_ids).unwrap(), None, plan).unwrap();
        }
    }

    /// Shrink, gated, shrink, combined.
    fn run(&mut self, cuda: &Cuda) -> molora::error::Result<()> {
        self.run_with(cuda, |_| ())
    }

    /// The same; `between` comes before the last product.
    fn run_with(&mut self, cuda: &Cuda, between: impl FnOnce(&mut Pool)) -> molora::error::Result<()> {
        fn view<'a, T>(cuda: &'a Cuda, slice: &'a CudaSlice<T>) -> View<'a, T> {
            View::whole(cuda, slice).unwrap()
        }
        let [up, down] = &self.sizes;
        let shrinks = [up, down].map(|s| shrink::Sizes {
            tokens: s.x_rows(),
            top_k: s.routes() / s.x_rows().max(1),
            in_features: s.in_features,
            x_stride: s.x_stride,
            h_stride: s.h_stride,
            output: Output::Sum,
        });
        let (x, weights) = (view(cuda, &self.x), view(cuda, &self.weights));
        let weight = self.weight.each_ref().map(|w| view(cuda, w));
        let (mut h, mut scratch) =
            (ViewMut::whole(cuda, &mut self.h).unwrap(), ViewMut::whole(cuda, &mut self.scratch).unwrap());
        let (mut act, mut y) =
            (ViewMut::whole(cuda, &mut self.act).unwrap(), ViewMut::whole(cuda, &mut self.y).unwrap());
        let ([base, first, second], [up_pool, down_pool]) = (&self.plans, &mut self.pools);
        cuda.shrink(&shrinks[0], first, up_pool, &x, &weights, None, &mut h)?;
        cuda.grouped(
            up,
            base,
            up_pool,
            first,
            &weight[0],
            &x,
            &h.as_view(),
            &weights,
            &mut scratch,
            &mut act,
        )?;
        let act = act.as_view();
        cuda.shrink(&shrinks[1], second, down_pool, &act, &weights, None, &mut h)?;
        between(down_pool);
        let h = h.as_view();
        cuda.grouped(down, base, down_pool, second, &weight[1], &act, &h, &weights, &mut scratch, &mut y)
    }

    fn outputs(&self, cuda: &Cuda) -> (Vec<X>, Vec<X>) {
        let [up, down] = &self.sizes;
        (
            cuda.download(&self.act, up.routes() * WIDTH).unwrap(),
            cuda.download(&self.y, down.tokens * HIDDEN).unwrap(),
        )
    }
}

/// Row by row, by the relative L2 error.
#[track_caller]
fn close<X: Element>(got: &[X], want: &[X], width: usize, limit: f32, what: &str) {
    for (row, (got, want)) in got.chunks(width).zip(want.chunks(width)).enumerate() {
        let error: f32 = got.iter().zip(want).map(|(g, w)| (g.to_f32() - w.to_f32()).powi(2)).sum();
        let norm: f32 = want.iter().map(|w| w.to_f32().powi(2)).sum();
        assert!(error.sqrt() <= limit * norm.sqrt(), "{what}, row {row}: {error} of {norm}");
    }
}

fn a_block_is_its_definition<X: Element, A: Element>(cuda: &Cuda, limit: f32) {
    for tokens in [1, TOKENS, 130] {
        let block = Block::<X, A>::new(tokens);
        let mut engine = Engine::new(cuda, &block);
        let what = format!("{} {} {tokens} tokens", X::TYPE, A::TYPE);
        for _ in 0..2 {
            engine.run(cuda).unwrap();
            let (act, y) = engine.outputs(cuda);
            let (want_act, want_y) = block.want(&act);
            close(&act, &want_act, WIDTH, limit, &format!("{what}, gated"));
            close(&y, &want_y, HIDDEN, limit, &format!("{what}, combined"));
            write(cuda, &mut engine.y, &vec![X::from_f32(f32::NAN); y.len()]);
        }
        assert_eq!(cuda.take_status().unwrap(), Status::default(), "{what}");
    }
}

#[test]
fn a_block_with_mixed_adapters_is_its_definition() {
    let Some(cuda) = device() else { return };
    a_block_is_its_definition::<f32, f32>(&cuda, 2e-6);
    a_block_is_its_definition::<f16, f16>(&cuda, 1e-3);
    a_block_is_its_definition::<bf16, bf16>(&cuda, 8e-3);
    a_block_is_its_definition::<bf16, f32>(&cuda, 4e-3);
}

#[test]
fn a_captured_block_is_four_launches() {
    let Some(cuda) = device() else { return };
    let block = Block::<f16, f16>::new(TOKENS);
    let mut engine = Engine::new(&cuda, &block);
    engine.run(&cuda).unwrap();
    let first = engine.outputs(&cuda);
    let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
    // SAFETY: all memory is of this stream alone, and outlives the graph.
    unsafe { cuda.stream().context().disable_event_tracking() };
    cuda.stream().begin_capture(mode).unwrap();
    engine.run(&cuda).unwrap();
    let graph = cuda.stream().end_capture(sys::CUgraphInstantiate_flags(0)).unwrap().expect("launches");
    let mut nodes = 0usize;
    // SAFETY: a graph that lives, asked for the number of its nodes alone.
    let asked = unsafe { sys::cuGraphGetNodes(graph.cu_graph(), std::ptr::null_mut(), &mut nodes) };
    assert_eq!((asked, nodes), (sys::CUresult::CUDA_SUCCESS, 4));
    for _ in 0..3 {
        write(&cuda, &mut engine.y, &vec![f16::from_f32(f32::NAN); TOKENS * HIDDEN]);
        graph.launch().unwrap();
        let again = engine.outputs(&cuda);
        assert!(again.0 == first.0 && again.1 == first.1, "a replay gives other bits");
    }
    // SAFETY: as it was.
    unsafe { cuda.stream().context().enable_event_tracking() };
}

/// A token's bits do not depend on whose routes share its tiles.
#[test]
fn a_tokens_bits_do_not_depend_on_its_batch() {
    let Some(cuda) = device() else { return };
    let cuda = cuda.batch_invariant(true);
    let block = Block::<bf16, bf16>::new(TOKENS);
    let mut engine = Engine::new(&cuda, &block);
    engine.run(&cuda).unwrap();
    let all = engine.outputs(&cuda).1;
    for t in [0, 5, 8, TOKENS - 1] {
        let routes = t * TOP_K..(t + 1) * TOP_K;
        let one = Block {
            x: block.x[t * HIDDEN..][..HIDDEN].to_vec(),
            ids: block.ids[routes.clone()].to_vec(),
            lora_ids: block.lora_ids[routes.clone()].to_vec(),
            weights: block.weights[routes].to_vec(),
            ..Block::<bf16, bf16>::new(1)
        };
        let mut engine = Engine::new(&cuda, &one);
        engine.run(&cuda).unwrap();
        assert!(engine.outputs(&cuda).1 == all[t * HIDDEN..][..HIDDEN], "token {t}");
    }
}

#[test]
fn what_counts_for_nothing_is_told() {
    let Some(cuda) = device() else { return };
    let block = Block::<f32, f32>::new(4);
    let mut engine = Engine::new(&cuda, &block);
    for (id, bit) in [(99, Status::ID_OUT_OF_RANGE), (-7, Status::ID_OUT_OF_RANGE)] {
        let mut lora_ids = block.lora_ids.clone();
        lora_ids[0] = id;
        write(&cuda, &mut engine.lora_ids, &lora_ids);
        engine.plan(&cuda);
        engine.run(&cuda).unwrap();
        assert!(cuda.take_status().unwrap().contains(bit), "{id}");
        lora_ids[0] = -1;
        let (act, y) = engine.outputs(&cuda);
        let without = Block { lora_ids, ..Block::<f32, f32>::new(4) };
        close(&act, &without.want(&act).0, WIDTH, 2e-6, "gated");
        close(&y, &without.want(&act).1, HIDDEN, 2e-6, "combined");
    }
    write(&cuda, &mut engine.lora_ids, &block.lora_ids);
    engine.plan(&cuda);
    let slot = block.lora_ids[0] as usize;
    engine.pools[1].evict(slot).unwrap();
    engine.run(&cuda).unwrap();
    assert!(cuda.take_status().unwrap().contains(Status::STALE_SLOT));
    let mut weights = block.weights.clone();
    weights[1] = f32::INFINITY;
    write(&cuda, &mut engine.weights, &weights);
    engine.run(&cuda).unwrap();
    assert!(cuda.take_status().unwrap().contains(Status::WEIGHT_NOT_FINITE));
    assert!(engine.outputs(&cuda).1.iter().all(|y| y.is_finite()));
}

/// h is the old adapter's: its product with the new one's B would be nobody's.
#[test]
fn a_slot_that_is_replaced_between_shrink_and_product_is_skipped() {
    let Some(cuda) = device() else { return };
    let block = Block::<f32, f32>::new(4);
    let mut engine = Engine::new(&cuda, &block);
    let slot = block.lora_ids.iter().find(|&&id| id >= 0).copied().unwrap();
    let other =
        Lora::new(WIDTH, HIDDEN, 3, 0.5, &values::<f32>(40, 3 * WIDTH), &values::<f32>(41, 3 * HIDDEN));
    let other = other.unwrap();
    let replace = |pool: &mut Pool| {
        pool.evict(slot as usize).unwrap();
        pool.put_packed(slot as usize, &[Some(&other)]).unwrap();
    };
    engine.run_with(&cuda, replace).unwrap();
    assert_eq!(cuda.take_status().unwrap(), Status::STALE_SLOT);
    let (act, y) = engine.outputs(&cuda);
    let lora_ids = block.lora_ids.iter().map(|&id| if id == slot { -1 } else { id }).collect();
    let without = Block { lora_ids, ..Block::<f32, f32>::new(4) };
    close(&act, &block.want(&act).0, WIDTH, 2e-6, "gated");
    close(&y, &without.want(&act).1, HIDDEN, 2e-6, "combined");
}

#[test]
fn calls_that_do_not_fit_are_refused() {
    let Some(cuda) = device() else { return };
    let refused = |change: &dyn Fn(&mut Engine<f32>)| {
        let mut engine = Engine::new(&cuda, &Block::<f32, f32>::new(4));
        change(&mut engine);
        common::refuses(engine.run(&cuda))
    };
    let scratch = refused(&|e| e.scratch = cuda.upload(&[0f32]).unwrap());
    assert_eq!(scratch, "grouped: scratch: expected at least 576 elements, got 1");
    let experts = refused(&|e| e.sizes[0].experts = 4);
    assert!(experts.contains("weight"), "{experts}");
    let stride = refused(&|e| e.sizes[0].y_stride = WIDTH - 1);
    assert!(stride.contains("y_stride"), "{stride}");
    let slices = refused(&|e| (e.sizes[0].rows, e.sizes[0].y_stride) = (Rows::Combined, 2 * WIDTH));
    assert!(slices.contains("scratch") || slices.contains("slices"), "{slices}");
    let other = refused(&|e| e.sizes[1].top_k = 1);
    assert!(other.contains("plan.tokens") || other.contains("loras"), "{other}");
    let loras = refused(&|e| e.plans.swap(0, 2));
    assert!(loras.contains("plan.tokens"), "{loras}");
    // Nothing is computed from a size before it is checked.
    let huge = usize::MAX;
    for change in [
        &(|e: &mut Engine<f32>| e.sizes[0].tokens = huge) as &dyn Fn(&mut Engine<f32>),
        &|e| (e.sizes[0].tokens, e.sizes[0].top_k) = (huge, 0),
        &|e| e.sizes[0].experts = huge,
        &|e| (e.sizes[0].experts, e.sizes[0].in_features) = (huge, 0),
        &|e| e.sizes[0].out_features = huge,
        &|e| e.sizes[0].x_stride = huge,
        &|e| e.sizes[0].y_stride = huge,
        &|e| e.sizes[0].h_stride = huge,
        &|e| e.sizes[1].y_stride = huge,
    ] {
        refused(change);
    }
}

/// Blocks and warps in other orders, and as few resident blocks as there can be.
#[test]
fn no_order_of_execution_matters() {
    let Some(cuda) = device() else { return };
    if !cuda.is_stand_in() {
        println!("not tested: the order is the device's own");
        return;
    }
    let tests = ["a_block_with_mixed_adapters_is_its_definition", "a_captured_block_is_four_launches"];
    for (seed, resident) in [("1", "1"), ("2", "3"), ("3", "64")] {
        let mut command = std::process::Command::new(std::env::current_exe().unwrap());
        command
            .args(tests)
            .arg("--exact")
            .env("PTX_MACHINE_SEED", seed)
            .env("PTX_MACHINE_RESIDENT", resident);
        let done = command.output().unwrap();
        let said = String::from_utf8_lossy(&done.stdout);
        assert!(done.status.success(), "seed {seed}, {resident} resident: {said}");
        assert!(said.contains("2 passed"), "{said}");
    }
}
