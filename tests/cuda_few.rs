//! Few tokens on CUDA in one launch: the definition, exactly; the same bits in any batch; counters that every launch leaves
//! as it found them, whatever runs beside and in whatever order.
#![cfg(feature = "cuda")]

mod common;

use common::cuda::{device, write};
use half::{bf16, f16};
use molora::adapter::slots::PoolSizes;
use molora::device::cpu;
use molora::device::cuda::cudarc::driver::{CudaSlice, sys};
use molora::device::cuda::{Pool, Status, View, ViewMut};
use molora::ops::fused::{Sizes, definition};
use molora::ops::{Expert, Output, plan};
use molora::{Cpu, Cuda, Element, ElementType, Lora};

const RANKS: [usize; 6] = [3, 8, 17, 20, 40, 130];

/// Seeded multiples of 1/8 in -1..1: sums of their products are exact in f32.
fn values<E: Element>(seed: usize, len: usize) -> Vec<E> {
    (0..len).map(|i| E::from_f32((((i + 3) * (seed * 7 + 5) * 31 % 97) % 16) as f32 / 8.0 - 1.0)).collect()
}

/// One problem: its sizes, and the slices of its output.
#[derive(Debug, Clone)]
struct Shape {
    tokens: usize,
    top_k: usize,
    inner: usize,
    slices: Vec<usize>,
    padding: usize,
    bias: bool,
    experts: usize,
}

const SHAPE: Shape =
    Shape { tokens: 5, top_k: 2, inner: 64, slices: Vec::new(), padding: 0, bias: false, experts: 4 };

/// Its values on the host; experts' factors are multiples of 1/8 too.
struct Problem<X, A> {
    shape: Shape,
    x: Vec<X>,
    weight: Vec<X>,
    bias: Option<Vec<X>>,
    ids: Vec<i32>,
    weights: Vec<f32>,
    /// `[expert][slice]`: A and B as PEFT stores them.
    factors: Vec<Vec<(Vec<A>, Vec<A>)>>,
}

impl Shape {
    fn out(&self) -> usize {
        self.slices.iter().sum()
    }

    /// The rank of an expert on a slice; every third (expert, slice) beyond the first slice has none.
    fn rank(&self, expert: usize, slice: usize) -> usize {
        if slice > 0 && (expert + slice).is_multiple_of(3) {
            0
        } else {
            RANKS[(expert + slice) % RANKS.len()]
        }
    }

    fn most_rank(&self) -> usize {
        (0..self.experts).map(|e| (0..self.slices.len()).map(|s| self.rank(e, s)).sum()).max().unwrap()
    }

    fn sizes(&self) -> Sizes {
        Sizes {
            tokens: self.tokens,
            top_k: self.top_k,
            in_features: self.inner,
            out_features: self.out(),
            x_stride: self.inner + self.padding,
            y_stride: self.out() + self.padding,
            h_stride: self.most_rank() + self.padding,
            output: Output::Sum,
        }
    }

    fn pool_sizes(&self, element: ElementType) -> PoolSizes {
        let (in_features, out_features) = (self.inner, self.out());
        PoolSizes { in_features, out_features, experts: self.experts, rank_capacity: 2048, element }
    }

    fn problem<X: Element, A: Element>(self) -> Problem<X, A> {
        let (sizes, out) = (self.sizes(), self.out());
        let ids = (0..sizes.routes())
            .map(|n| if n % 7 == 5 { -1 } else { ((n * n + n / 3) % self.experts) as i32 });
        let factors = |e: usize| {
            let factor = |(s, &width): (usize, &usize)| {
                let rank = self.rank(e, s);
                (values::<A>(e + 5 * s, rank * self.inner), values::<A>(e + s + 9, rank * width))
            };
            self.slices.iter().enumerate().map(factor).collect()
        };
        Problem {
            x: values(1, self.tokens * sizes.x_stride),
            weight: values(5, out * self.inner),
            bias: self.bias.then(|| values(6, out)),
            ids: ids.collect(),
            weights: (0..sizes.routes()).map(|n| [0.5, -1.0, 0.25][n % 3]).collect(),
            factors: (0..self.experts).map(factors).collect(),
            shape: self,
        }
    }
}

/// A LoRA for every slice of one expert.
fn loras<X: Element, A: Element>(problem: &Problem<X, A>, expert: usize) -> Vec<Option<Lora>> {
    let shape = &problem.shape;
    let lora = |(s, (a, b)): (usize, &(Vec<A>, Vec<A>))| {
        let rank = shape.rank(expert, s);
        (rank > 0).then(|| Lora::new(shape.inner, shape.slices[s], rank, 0.5, a, b).unwrap())
    };
    problem.factors[expert].iter().enumerate().map(lora).collect()
}

impl<X: Element, A: Element> Problem<X, A> {
    /// What must come out: the definition slice by slice, with ids that name no expert left out.
    fn want(&self) -> Vec<X> {
        let (shape, sizes) = (&self.shape, self.shape.sizes());
        let cpu = Cpu::new().unwrap();
        let mut books =
            cpu::Pool::new(PoolSizes { out_features: 1, ..shape.pool_sizes(ElementType::F32) }).unwrap();
        for slot in 0..shape.experts {
            books
                .put(slot, &Lora::new(shape.inner, 1, 1, 1.0, &vec![0f32; shape.inner], &[0f32]).unwrap())
                .unwrap();
        }
        let (tokens, top_k, experts) = (shape.tokens, shape.top_k, shape.experts);
        let named = |n: usize| (0..experts as i32).contains(&self.ids[n]) && self.weights[n].is_finite();
        let ids: Vec<i32> = (0..sizes.routes()).map(|n| if named(n) { self.ids[n] } else { -1 }).collect();
        let plan = cpu.plan(&plan::Sizes { tokens, top_k, experts }, &books, &ids).unwrap();
        let mut y = vec![X::from_f32(7.0); tokens * sizes.y_stride];
        let mut first = 0;
        for (s, &width) in shape.slices.iter().enumerate() {
            let expert = |e: usize| {
                let (lora_a, lora_b) = &self.factors[e][s];
                Expert { rank: shape.rank(e, s), scaling: 0.5, lora_a, lora_b }
            };
            let experts: Vec<Expert<A>> = (0..experts).map(expert).collect();
            let weight = &self.weight[first * shape.inner..][..width * shape.inner];
            let bias = self.bias.as_ref().map(|bias| &bias[first..][..width]);
            let sizes = Sizes { out_features: width, ..sizes };
            definition(&sizes, &plan, &experts, weight, bias, &self.x, &self.weights, &mut y[first..])
                .unwrap();
            first += width;
        }
        y
    }

    fn pool(&self, cuda: &Cuda, experts: impl IntoIterator<Item = usize>) -> Pool {
        let mut pool = Pool::packed(cuda, self.shape.pool_sizes(A::TYPE), &self.shape.slices).unwrap();
        experts.into_iter().for_each(|e| self.put(&mut pool, e));
        pool
    }

    fn put(&self, pool: &mut Pool, expert: usize) {
        let loras = loras(self, expert);
        pool.put_packed(expert, &loras.iter().map(Option::as_ref).collect::<Vec<_>>()).unwrap();
    }

    fn engine(&self, cuda: &Cuda) -> Engine<X> {
        let sizes = self.shape.sizes();
        Engine {
            sizes,
            routes: sizes.routes(),
            x: cuda.upload(&self.x).unwrap(),
            weight: cuda.upload(&self.weight).unwrap(),
            bias: self.bias.as_ref().map(|bias| cuda.upload(bias).unwrap()),
            ids: cuda.upload(&self.ids).unwrap(),
            weights: cuda.upload(&self.weights).unwrap(),
            live: cuda.upload(&[sizes.tokens as u32]).unwrap(),
            h: cuda.upload(&vec![f32::NAN; sizes.routes() * sizes.h_stride]).unwrap(),
            y: cuda.upload(&vec![X::from_f32(7.0); sizes.tokens * sizes.y_stride]).unwrap(),
        }
    }
}

/// Device memory of one problem.
struct Engine<X> {
    sizes: Sizes,
    routes: usize,
    x: CudaSlice<X>,
    weight: CudaSlice<X>,
    bias: Option<CudaSlice<X>>,
    ids: CudaSlice<i32>,
    weights: CudaSlice<f32>,
    live: CudaSlice<u32>,
    h: CudaSlice<f32>,
    y: CudaSlice<X>,
}

impl<X: Element> Engine<X> {
    fn call(&mut self, cuda: &Cuda, pool: &Pool) -> molora::error::Result<()> {
        let view = |slice| View::whole(cuda, slice).unwrap();
        let bias = self.bias.as_ref().map(|bias| View::whole(cuda, bias).unwrap());
        // A slice holds at least one element; a call without routes has none.
        let routes = self.routes;
        let ids = View::new(cuda, self.ids.slice(0..routes)).unwrap();
        let weights = View::new(cuda, self.weights.slice(0..routes)).unwrap();
        let live = View::whole(cuda, &self.live).unwrap();
        let mut h = ViewMut::whole(cuda, &mut self.h).unwrap();
        let mut y = ViewMut::whole(cuda, &mut self.y).unwrap();
        let (weight, x) = (view(&self.weight), view(&self.x));
        cuda.fused_few(
            &self.sizes,
            pool,
            &weight,
            bias.as_ref(),
            &x,
            &ids,
            &weights,
            Some(&live),
            &mut h,
            &mut y,
        )
    }

    fn y(&self, cuda: &Cuda) -> Vec<X> {
        cuda.download(&self.y, self.sizes.tokens * self.sizes.y_stride).unwrap()
    }
}

fn bits<X: Element>(values: &[X]) -> Vec<u32> {
    values.iter().map(|v| v.to_f32().to_bits()).collect()
}

#[track_caller]
fn same<X: Element>(got: &[X], want: &[X], what: &str) {
    let first = bits(got).iter().zip(&bits(want)).position(|(g, w)| g != w);
    let at = first.map(|i| (i, got[i].to_f32(), want[i].to_f32()));
    assert!(got.len() == want.len() && at.is_none(), "{what}: (place, got, expected) {at:?}");
}

/// Twice: the second launch finds the counters as the first did.
fn is_the_definition<X: Element, A: Element>(cuda: &Cuda, shape: Shape) {
    let what = format!("{} {} {shape:?}", X::TYPE, A::TYPE);
    let problem = shape.problem::<X, A>();
    let pool = problem.pool(cuda, 0..problem.shape.experts);
    let (mut engine, want) = (problem.engine(cuda), problem.want());
    for _ in 0..2 {
        engine.call(cuda, &pool).unwrap();
        same(&engine.y(cuda), &want, &what);
        let start = vec![X::from_f32(7.0); want.len()];
        write(cuda, &mut engine.y, &start);
    }
    assert_eq!(cuda.take_status().unwrap(), Status::default(), "{what}");
}

fn shapes() -> Vec<Shape> {
    let mut shapes = Vec::new();
    for (tokens, top_k, inner, out) in [
        (1, 2, 160, 33),
        (7, 3, 24, 16),
        (8, 1, 64, 15),
        (9, 2, 264, 17),
        (16, 2, 64, 48),
        (3, 0, 40, 20),
        (15, 17, 8, 1),
    ] {
        let bias = tokens % 2 == 1;
        shapes.push(Shape { tokens, top_k, inner, slices: vec![out], bias, ..SHAPE });
    }
    shapes.push(Shape { slices: vec![32, 16, 16], experts: 6, ..SHAPE });
    shapes.push(Shape { slices: vec![5, 30, 9, 3], bias: true, tokens: 9, ..SHAPE });
    // Rows that do not start at multiples of 16 bytes.
    shapes.push(Shape { slices: vec![19], inner: 37, tokens: 4, ..SHAPE });
    shapes.push(Shape { slices: vec![16], padding: 1, tokens: 11, ..SHAPE });
    shapes
}

#[test]
fn it_is_the_definition() {
    let Some(cuda) = device() else { return };
    for shape in shapes() {
        is_the_definition::<f32, f32>(&cuda, shape.clone());
        is_the_definition::<f16, f16>(&cuda, shape.clone());
        is_the_definition::<bf16, bf16>(&cuda, shape);
    }
    let plain = cuda.tensor_cores(false);
    let packed = Shape { slices: vec![5, 30, 9], tokens: 9, ..SHAPE };
    for shape in [Shape { slices: vec![20], ..SHAPE }, packed] {
        is_the_definition::<bf16, f32>(&cuda, shape.clone());
        is_the_definition::<f16, f32>(&cuda, shape.clone());
        is_the_definition::<f32, f16>(&cuda, shape.clone());
        is_the_definition::<f32, bf16>(&cuda, shape.clone());
        is_the_definition::<f16, bf16>(&cuda, shape.clone());
        is_the_definition::<bf16, f16>(&cuda, shape.clone());
        is_the_definition::<bf16, bf16>(&plain, shape.clone());
        is_the_definition::<f16, f16>(&plain, shape);
    }
}

/// Values whose sums round, so that another order of summation would show.
fn rounding<X: Element, A: Element>(mut problem: Problem<X, A>) -> Problem<X, A> {
    let third = |i: usize| 1.0 / (3 + i % 17) as f32 - 0.1;
    problem.x.iter_mut().enumerate().for_each(|(i, x)| *x = X::from_f32(third(i * 7)));
    problem.weight.iter_mut().enumerate().for_each(|(i, w)| *w = X::from_f32(third(i * 5 + 1)));
    for (i, a) in problem.factors.iter_mut().flatten().flat_map(|(a, b)| a.iter_mut().chain(b)).enumerate() {
        *a = A::from_f32(third(i * 11 + 2));
    }
    problem
}

fn a_token_alone_has_the_same_bits<X: Element, A: Element>(cuda: &Cuda) {
    let shape = Shape { tokens: 16, top_k: 3, inner: 584, slices: vec![40], ..SHAPE };
    let problem = rounding(shape.clone().problem::<X, A>());
    let pool = problem.pool(cuda, 0..shape.experts);
    let mut engine = problem.engine(cuda);
    engine.call(cuda, &pool).unwrap();
    let (all, sizes) = (engine.y(cuda), shape.sizes());
    for (first, tokens) in [(0, 1), (15, 1), (3, 8), (2, 9)] {
        let part = Problem::<X, A> {
            x: problem.x[first * sizes.x_stride..][..tokens * sizes.x_stride].to_vec(),
            ids: problem.ids[first * 3..][..tokens * 3].to_vec(),
            weights: problem.weights[first * 3..][..tokens * 3].to_vec(),
            shape: Shape { tokens, ..shape.clone() },
            ..rounding(shape.clone().problem::<X, A>())
        };
        let mut engine = part.engine(cuda);
        engine.call(cuda, &pool).unwrap();
        let want = &all[first * sizes.y_stride..][..tokens * sizes.y_stride];
        same(&engine.y(cuda), want, &format!("{}: {tokens} tokens from {first} on", X::TYPE));
    }
}

#[test]
fn a_tokens_bits_do_not_depend_on_its_batch() {
    let Some(cuda) = device() else { return };
    a_token_alone_has_the_same_bits::<f32, f32>(&cuda);
    a_token_alone_has_the_same_bits::<f16, f16>(&cuda);
    a_token_alone_has_the_same_bits::<bf16, f32>(&cuda);
}

#[test]
fn a_replayed_graph_sees_later_adapters_and_live_tokens() {
    let Some(cuda) = device() else { return };
    let shape = Shape { slices: vec![48], ..SHAPE };
    let mut problem = shape.problem::<f16, f16>();
    let ids = problem.ids.clone();
    let mut pool = problem.pool(&cuda, [0, 1]);
    pool.reserve_rank(problem.shape.most_rank()).unwrap();
    let mut engine = problem.engine(&cuda);
    let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
    // cudarc's events stay outside: the first call makes none of its own, and views are taken by the call.
    // SAFETY: all memory is of this stream alone, and outlives the graph.
    unsafe { cuda.stream().context().disable_event_tracking() };
    cuda.stream().begin_capture(mode).unwrap();
    engine.call(&cuda, &pool).unwrap();
    let graph = cuda.stream().end_capture(sys::CUgraphInstantiate_flags(0)).unwrap().expect("a launch");
    let y_stride = engine.sizes.y_stride;
    for (replay, live) in [(0, 5), (1, 5), (2, 3), (3, 0), (4, 5)] {
        if replay == 1 {
            problem.put(&mut pool, 2);
        }
        if replay == 4 {
            problem.put(&mut pool, 3);
        }
        let there = |id: i32| {
            id < if replay == 0 {
                2
            } else if replay < 4 {
                3
            } else {
                4
            }
        };
        problem.ids = ids.iter().map(|&id| if there(id) { id } else { -1 }).collect();
        let mut want = problem.want();
        want[live * y_stride..].fill(f16::from_f32(7.0));
        write(&cuda, &mut engine.live, &[live as u32]);
        let start = vec![f16::from_f32(7.0); want.len()];
        write(&cuda, &mut engine.y, &start);
        graph.launch().unwrap();
        same(&engine.y(&cuda), &want, &format!("replay {replay}"));
        let stale = ids.iter().take(live * 2).any(|&id| !there(id));
        assert_eq!(cuda.take_status().unwrap().contains(Status::STALE_SLOT), stale, "replay {replay}");
    }
    // SAFETY: as it was.
    unsafe { cuda.stream().context().enable_event_tracking() };
}

#[test]
fn what_counts_for_nothing_is_told() {
    let Some(cuda) = device() else { return };
    for packed in [vec![20], vec![5, 15]] {
        let mut problem = Shape { slices: packed, ..SHAPE }.problem::<f32, f32>();
        let pool = problem.pool(&cuda, 0..3);
        let told = |problem: &Problem<f32, f32>| {
            let mut engine = problem.engine(&cuda);
            engine.call(&cuda, &pool).unwrap();
            (engine.y(&cuda), cuda.take_status().unwrap())
        };
        (problem.ids, problem.weights) = (vec![0, 1, 2, 0, 1, -1, -1, 2, 0, 1], vec![0.5; 10]);
        for (id, at) in [(4, 3), (i32::MAX, 0), (-2, 9), (i32::MIN, 9)] {
            let before = std::mem::replace(&mut problem.ids[at], id);
            let (y, status) = told(&problem);
            assert!(
                status.contains(Status::ID_OUT_OF_RANGE) && !status.contains(Status::STALE_SLOT),
                "{id}: {status:?}"
            );
            same(&y, &problem.want(), "an id of nothing");
            problem.ids[at] = before;
        }
        problem.ids[2] = 3; // empty
        let (y, status) = told(&problem);
        assert!(
            status.contains(Status::STALE_SLOT) && !status.contains(Status::ID_OUT_OF_RANGE),
            "{status:?}"
        );
        problem.ids[2] = -1;
        same(&y, &problem.want(), "an empty slot");
        problem.weights[4] = f32::NAN;
        let (y, status) = told(&problem);
        assert!(status.contains(Status::WEIGHT_NOT_FINITE), "{status:?}");
        same(&y, &problem.want(), "a weight that is not finite");
    }
}

#[test]
fn ranks_above_the_launchs_are_skipped() {
    let Some(cuda) = device() else { return };
    let mut problem = Shape { slices: vec![20], ..SHAPE }.problem::<f32, f32>();
    let mut pool = problem.pool(&cuda, [0, 1]);
    let mut engine = problem.engine(&cuda);
    let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
    // SAFETY: all memory is of this stream alone, and outlives the graph.
    unsafe { cuda.stream().context().disable_event_tracking() };
    cuda.stream().begin_capture(mode).unwrap();
    engine.call(&cuda, &pool).unwrap();
    let graph = cuda.stream().end_capture(sys::CUgraphInstantiate_flags(0)).unwrap().expect("a launch");
    problem.put(&mut pool, 2);
    problem.ids.iter_mut().for_each(|id| *id = if *id == 3 { -1 } else { *id });
    write(&cuda, &mut engine.ids, &problem.ids);
    graph.launch().unwrap();
    assert!(cuda.take_status().unwrap().contains(Status::RANK_TOO_LARGE));
    problem.ids.iter_mut().for_each(|id| *id = if *id == 2 { -1 } else { *id });
    same(&engine.y(&cuda), &problem.want(), "a rank of 17 in a launch for 8");
    // SAFETY: as it was.
    unsafe { cuda.stream().context().enable_event_tracking() };
}

#[test]
fn calls_that_do_not_fit_are_refused() {
    let Some(cuda) = device() else { return };
    let refused = |shape: Shape, change: &dyn Fn(&mut Sizes)| {
        let problem = shape.problem::<f32, f32>();
        let pool = problem.pool(&cuda, 0..2);
        let mut engine = problem.engine(&cuda);
        change(&mut engine.sizes);
        common::refuses(engine.call(&cuda, &pool))
    };
    let shape = Shape { slices: vec![20], ..SHAPE };
    let nothing = |_: &mut Sizes| {};
    let many = refused(Shape { tokens: 17, ..shape.clone() }, &nothing);
    assert_eq!(many, "fused: tokens: expected at most 16 for the few form with top_k 2, got 17");
    let wide = refused(Shape { tokens: 9, top_k: 32, ..shape.clone() }, &nothing);
    assert_eq!(wide, "fused: tokens: expected at most 8 for the few form with top_k 32, got 9");
    let sum = refused(shape.clone(), &|s| s.output = Output::RankSum);
    assert!(sum.contains("output"), "{sum}");
    let short = refused(shape.clone(), &|s| s.h_stride = 7);
    assert!(short.contains("h_stride"), "{short}");
    let ids = refused(shape.clone(), &|s| s.tokens = 4);
    assert!(ids.contains("topk"), "{ids}");
    // Nothing is computed from a size before it is checked.
    let huge = usize::MAX;
    for change in [
        &(|s: &mut Sizes| s.tokens = huge) as &dyn Fn(&mut Sizes),
        &|s| (s.tokens, s.top_k) = (huge, 0),
        &|s| s.top_k = huge,
        &|s| s.in_features = huge,
        &|s| s.out_features = huge,
        &|s| s.x_stride = huge,
        &|s| s.y_stride = huge,
        &|s| s.h_stride = huge,
    ] {
        refused(shape.clone(), change);
    }
}

/// Blocks and warps in other orders, and as few resident blocks as there can be: nobody waits for who has not begun.
#[test]
fn no_order_of_execution_matters() {
    let Some(cuda) = device() else { return };
    if !cuda.is_stand_in() {
        println!("not tested: the order is the device's own");
        return;
    }
    let tests = ["it_is_the_definition", "a_tokens_bits_do_not_depend_on_its_batch"];
    for (seed, resident) in [("1", "1"), ("2", "2"), ("3", "64")] {
        let mut command = std::process::Command::new(std::env::current_exe().unwrap());
        command
            .args(tests)
            .arg("--exact")
            .env("PTX_MACHINE_SEED", seed)
            .env("PTX_MACHINE_RESIDENT", resident);
        let done = command.env("PTX_MACHINE_LIMIT", "50000000").output().unwrap();
        let said = String::from_utf8_lossy(&done.stdout);
        assert!(done.status.success(), "seed {seed}, {resident} resident: {said}");
        assert!(said.contains("2 passed"), "{said}");
    }
}
