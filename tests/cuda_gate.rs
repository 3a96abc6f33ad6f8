//! The dense form's first product on CUDA: a plain definition of every element of z, in any batch; the router's choice as
//! route makes it; z in x's own rows; and the rows for an engine's own product.
#![cfg(feature = "cuda")]

mod common;

use common::cuda::{device, write};
use half::{bf16, f16};
use molora::adapter::LinearRouter;
use molora::adapter::slots::PoolSizes;
use molora::device::cuda::cudarc::driver::CudaSlice;
use molora::device::cuda::{Pool, Status, View, ViewMut};
use molora::ops::fused::Sizes;
use molora::ops::route::{self, CudaRouter, Weighting};
use molora::ops::{Output, fused::gate_cuda};
use molora::{Cuda, Element, ElementType, Lora};

/// Seeded multiples of 1/8 in -1..1: sums of their products are exact in f32.
fn values<E: Element>(seed: usize, len: usize) -> Vec<E> {
    (0..len).map(|i| E::from_f32((((i + 3) * (seed * 7 + 5) * 31 % 97) % 16) as f32 / 8.0 - 1.0)).collect()
}

#[derive(Debug, Clone)]
struct Shape {
    tokens: usize,
    top_k: usize,
    inner: usize,
    /// Elements between rows of x, and of z, beside their own.
    padding: usize,
    ranks: Vec<usize>,
    /// Slots that are emptied again.
    evicted: Vec<usize>,
}

fn shape(tokens: usize, top_k: usize, inner: usize, ranks: &[usize]) -> Shape {
    Shape { tokens, top_k, inner, padding: 0, ranks: ranks.to_vec(), evicted: Vec::new() }
}

const OUT: usize = 20;
const SCALING: f32 = 0.5;
const BASE: f32 = 7.0;

/// A problem in host and device memory.
struct Problem<X, A> {
    sizes: Sizes,
    pool: Pool,
    /// A of every expert.
    a: Vec<Vec<A>>,
    x: Vec<X>,
    ids: Vec<i32>,
    weights: Vec<f32>,
}

impl<X: Element, A: Element> Problem<X, A> {
    fn new(cuda: &Cuda, shape: &Shape) -> Self {
        let experts = shape.ranks.len();
        let (in_features, rank_capacity) = (shape.inner, 1024);
        let sizes = PoolSizes { in_features, out_features: OUT, experts, rank_capacity, element: A::TYPE };
        let mut pool = Pool::new(cuda, sizes).unwrap();
        let a: Vec<Vec<A>> =
            shape.ranks.iter().enumerate().map(|(e, r)| values(e, r * shape.inner)).collect();
        for (e, &rank) in shape.ranks.iter().enumerate().filter(|(_, rank)| **rank > 0) {
            let b = values::<A>(e + 9, rank * OUT);
            pool.put(e, &Lora::new(shape.inner, OUT, rank, SCALING, &a[e], &b).unwrap()).unwrap();
        }
        shape.evicted.iter().for_each(|&e| pool.evict(e).unwrap());
        let sizes = Sizes {
            tokens: shape.tokens,
            top_k: shape.top_k,
            in_features: shape.inner,
            out_features: OUT,
            x_stride: shape.inner + shape.padding,
            y_stride: OUT,
            h_stride: pool.slots().used_rows() + shape.padding,
            output: Output::Sum,
        };
        let id = |n: usize| {
            let e = (n * n + n / 3) % experts;
            if n % 7 == 5 || shape.ranks[e] == 0 || shape.evicted.contains(&e) { -1 } else { e as i32 }
        };
        Self {
            x: values(1, sizes.tokens * sizes.x_stride),
            ids: (0..sizes.routes()).map(id).collect(),
            weights: (0..sizes.routes()).map(|n| [0.5, -1.0, 0.25][n % 3]).collect(),
            sizes,
            pool,
            a,
        }
    }

    /// Every element of z that is written, by its definition; BASE elsewhere. `padded`: zeros up to a multiple of 8.
    fn want(&self, ids: &[i32], weights: &[f32], live: usize, padded: bool) -> Vec<X> {
        let Sizes { top_k, in_features, x_stride, h_stride, .. } = self.sizes;
        let columns = self.pool.slots().used_rows();
        let mut z = vec![X::from_f32(BASE); self.sizes.tokens * h_stride];
        for t in 0..live {
            let row = &mut z[t * h_stride..][..h_stride];
            let written = if padded { columns.next_multiple_of(8) } else { columns };
            row[..written.min(h_stride)].fill(X::from_f32(0.0));
            for (e, slot) in self.pool.slots().slots().iter().enumerate() {
                let chosen: Vec<usize> = (t * top_k..(t + 1) * top_k)
                    .filter(|&n| ids[n] == e as i32 && weights[n].is_finite())
                    .collect();
                let gate: f64 = chosen.iter().map(|&n| f64::from(weights[n]) * f64::from(slot.scaling)).sum();
                for r in 0..slot.rank as usize {
                    if chosen.is_empty() {
                        continue;
                    }
                    let pairs =
                        self.x[t * x_stride..].iter().zip(&self.a[e][r * in_features..][..in_features]);
                    let product: f64 =
                        pairs.map(|(x, a)| f64::from(x.to_f32()) * f64::from(a.to_f32())).sum();
                    row[slot.row as usize + r] = X::from_f32((gate * product) as f32);
                }
            }
        }
        z
    }

    fn engine(&self, cuda: &Cuda) -> Engine<X> {
        let at_least_one = |len: usize| len.max(1);
        Engine {
            sizes: self.sizes,
            routes: self.sizes.routes(),
            x: cuda.upload(&self.x).unwrap(),
            ids: cuda.upload([&self.ids[..], &[9]][self.ids.is_empty() as usize]).unwrap(),
            weights: cuda.upload([&self.weights[..], &[9.0]][self.weights.is_empty() as usize]).unwrap(),
            live: cuda.upload(&[self.sizes.tokens as u32]).unwrap(),
            z: cuda
                .upload(&vec![X::from_f32(BASE); at_least_one(self.sizes.tokens * self.sizes.h_stride)])
                .unwrap(),
        }
    }
}

struct Engine<X> {
    sizes: Sizes,
    routes: usize,
    x: CudaSlice<X>,
    ids: CudaSlice<i32>,
    weights: CudaSlice<f32>,
    live: CudaSlice<u32>,
    z: CudaSlice<X>,
}

impl<X: Element> Engine<X> {
    fn call(
        &mut self,
        cuda: &Cuda,
        pool: &Pool,
        router: Option<(&CudaRouter, Weighting)>,
    ) -> molora::error::Result<()> {
        let mut ids = ViewMut::new(cuda, self.ids.slice_mut(0..self.routes)).unwrap();
        let mut weights = ViewMut::new(cuda, self.weights.slice_mut(0..self.routes)).unwrap();
        let (x, live) = (View::whole(cuda, &self.x).unwrap(), View::whole(cuda, &self.live).unwrap());
        let mut z = ViewMut::whole(cuda, &mut self.z).unwrap();
        cuda.fused_gate(&self.sizes, pool, router, &x, Some(&live), &mut ids, &mut weights, &mut z)
    }

    fn z(&self, cuda: &Cuda) -> Vec<X> {
        cuda.download(&self.z, self.sizes.tokens * self.sizes.h_stride).unwrap()
    }

    fn choice(&self, cuda: &Cuda) -> (Vec<i32>, Vec<f32>) {
        (cuda.download(&self.ids, self.routes).unwrap(), cuda.download(&self.weights, self.routes).unwrap())
    }
}

fn bits<X: Element>(values: &[X]) -> Vec<u32> {
    values.iter().map(|v| v.to_f32().to_bits()).collect()
}

/// Equal bits, a zero of either sign aside.
#[track_caller]
fn same<X: Element>(got: &[X], want: &[X], what: &str) {
    let place = got.iter().zip(want).position(|(g, w)| g.to_f32() != w.to_f32());
    let at = place.map(|i| (i, got[i].to_f32(), want[i].to_f32()));
    assert!(got.len() == want.len() && at.is_none(), "{what}: (place, got, expected) {at:?}");
}

fn is_the_definition<X: Element, A: Element>(cuda: &Cuda, shape: &Shape) {
    let what = format!("{} {} {shape:?}", X::TYPE, A::TYPE);
    let problem = Problem::<X, A>::new(cuda, shape);
    let mut engine = problem.engine(cuda);
    engine.call(cuda, &problem.pool, None).unwrap_or_else(|e| panic!("{what}: {e}"));
    let room = problem.sizes.h_stride >= problem.pool.slots().used_rows().next_multiple_of(8);
    same(&engine.z(cuda), &problem.want(&problem.ids, &problem.weights, shape.tokens, room), &what);
    assert_eq!(cuda.take_status().unwrap(), Status::default(), "{what}");
    assert_eq!(engine.choice(cuda), (problem.ids, problem.weights), "{what}: what is read stays");
}

fn shapes() -> Vec<Shape> {
    vec![
        shape(1, 2, 64, &[8, 8]),
        shape(15, 3, 264, &[3, 17, 40]),
        shape(16, 1, 40, &[16, 4, 9, 16]),
        Shape { padding: 8, ..shape(17, 2, 520, &[60, 1, 70]) },
        Shape { padding: 8, evicted: vec![1], ..shape(33, 4, 72, &[16, 16, 12, 120, 1]) },
        // Rows that do not start at multiples of 16 bytes, and an end within a word.
        shape(5, 2, 37, &[3, 20]),
        Shape { padding: 3, ..shape(3, 17, 133, &[5, 130]) },
        Shape { padding: 8 - 133 % 8, ..shape(4, 2, 133, &[33, 8]) },
        Shape { padding: 8, ..shape(2, 0, 24, &[6]) },
        shape(2, 3, 48, &[260, 252]),
    ]
}

#[test]
fn it_is_the_definition() {
    let Some(cuda) = device() else { return };
    for shape in shapes() {
        is_the_definition::<f32, f32>(&cuda, &shape);
        is_the_definition::<f16, f16>(&cuda, &shape);
        is_the_definition::<bf16, bf16>(&cuda, &shape);
    }
    let plain = cuda.tensor_cores(false);
    for shape in [shape(17, 2, 136, &[3, 20]), shape(5, 2, 37, &[140, 7])] {
        is_the_definition::<bf16, f32>(&cuda, &shape);
        is_the_definition::<f16, f32>(&cuda, &shape);
        is_the_definition::<f32, f16>(&cuda, &shape);
        is_the_definition::<f32, bf16>(&cuda, &shape);
        is_the_definition::<f16, bf16>(&cuda, &shape);
        is_the_definition::<bf16, f16>(&cuda, &shape);
        is_the_definition::<bf16, bf16>(&plain, &shape);
        is_the_definition::<f16, f16>(&plain, &shape);
    }
}

/// Columns that no token names are 0 whatever x holds, and what x holds in the padding behind its rows is not read.
#[test]
fn what_is_not_chosen_is_zero_beside_infinities() {
    let Some(cuda) = device() else { return };
    fn zero_beside_infinities<X: Element>(cuda: &Cuda) {
        let mut problem = Problem::<X, X>::new(cuda, &Shape { padding: 8, ..shape(3, 1, 40, &[8, 3, 16]) });
        let stride = problem.sizes.x_stride;
        problem.x.iter_mut().step_by(5).for_each(|x| *x = X::from_f32(f32::INFINITY));
        (0..3).for_each(|t| problem.x[t * stride + 40..][..8].fill(X::from_f32(f32::NAN)));
        (problem.ids, problem.weights) = (vec![1, -1, 2], vec![0.5; 3]);
        let mut engine = problem.engine(cuda);
        engine.call(cuda, &problem.pool, None).unwrap();
        let z = engine.z(cuda);
        for (t, chosen) in [(0, 8..11), (1, 0..0), (2, 11..27)] {
            for (r, value) in z[t * problem.sizes.h_stride..][..27].iter().enumerate() {
                assert_eq!(value.to_f32() == 0.0, !chosen.contains(&r), "{} token {t}, row {r}", X::TYPE);
            }
        }
    }
    zero_beside_infinities::<f32>(&cuda);
    zero_beside_infinities::<f16>(&cuda);
    zero_beside_infinities::<bf16>(&cuda);
}

/// The router's ids and weights are route's, bit by bit; z is what they give.
fn chooses_as_route<X: Element>(
    cuda: &Cuda,
    shape: &Shape,
    experts: usize,
    weighting: Weighting,
    bias: bool,
) {
    let what = format!("{} {experts} experts, {} {shape:?}", X::TYPE, weighting.name());
    let problem = Problem::<X, X>::new(cuda, shape);
    let Sizes { tokens, top_k, in_features, x_stride, .. } = problem.sizes;
    let weight: Vec<f32> = (0..experts * in_features).map(|i| 1.0 / (3 + i * 7 % 29) as f32 - 0.12).collect();
    let bias = bias.then(|| (0..experts).map(|e| (e % 3) as f32 / 16.0).collect::<Vec<f32>>());
    let linear = LinearRouter::new(experts, in_features, &weight, bias.as_deref()).unwrap();
    let router = CudaRouter::new(cuda, linear).unwrap();
    let (mut alone, mut engine) = (problem.engine(cuda), problem.engine(cuda));
    engine.call(cuda, &problem.pool, Some((&router, weighting))).unwrap();
    let sizes =
        route::Sizes { tokens, in_features, x_stride, experts, rule: route::Rule::top_k(top_k, weighting) };
    {
        let x = View::whole(cuda, &alone.x).unwrap();
        let mut ids = ViewMut::whole(cuda, &mut alone.ids).unwrap();
        let mut weights = ViewMut::whole(cuda, &mut alone.weights).unwrap();
        cuda.route(&sizes, &router, &x, None, None, &mut ids, &mut weights).unwrap();
    }
    let ((ids, weights), (want_ids, want_weights)) = (engine.choice(cuda), alone.choice(cuda));
    assert_eq!(ids, want_ids, "{what}");
    assert_eq!(bits(&weights), bits(&want_weights), "{what}");
    alone.call(cuda, &problem.pool, None).unwrap();
    assert_eq!(bits(&engine.z(cuda)), bits(&alone.z(cuda)), "{what}");
    assert!(engine.z(cuda).iter().any(|z| z.to_f32() != 0.0), "{what}");
    assert_eq!(cuda.take_status().unwrap(), Status::default(), "{what}");
}

#[test]
fn a_router_chooses_as_route_does() {
    let Some(cuda) = device() else { return };
    let pool = |experts: usize| (0..experts).map(|e| 1 + e % 5).collect::<Vec<usize>>();
    for (tokens, top_k, inner, experts) in [(1, 2, 64, 8), (17, 1, 264, 3), (5, 9, 37, 19), (3, 40, 520, 64)]
    {
        let shape = Shape { padding: 8, ..shape(tokens, top_k.min(experts), inner, &pool(experts)) };
        for (n, weighting) in Weighting::PLAIN.into_iter().enumerate() {
            chooses_as_route::<f32>(&cuda, &shape, experts, weighting, n == 0);
            chooses_as_route::<f16>(&cuda, &shape, experts, weighting, n == 1);
            chooses_as_route::<bf16>(&cuda, &shape, experts, weighting, n == 2);
        }
    }
    // Beyond one sum of lanes, and beyond the launch's own scores.
    chooses_as_route::<f16>(&cuda, &shape(2, 2, 4200, &[8; 4]), 4, Weighting::SoftmaxAll, false);
    chooses_as_route::<f32>(&cuda, &shape(2, 2, 4200, &[8; 4]), 4, Weighting::SoftmaxAll, false);
    const { assert!(gate_cuda::MAX_EXPERTS < 65) };
    chooses_as_route::<f16>(&cuda, &shape(2, 2, 40, &[2; 65]), 65, Weighting::SoftmaxAll, true);
}

#[test]
fn a_score_that_is_not_finite_selects_nothing() {
    let Some(cuda) = device() else { return };
    let mut problem = Problem::<f16, f16>::new(&cuda, &shape(2, 2, 40, &[8, 8]));
    problem.x[3] = f16::INFINITY;
    let linear = LinearRouter::new(2, 40, &[0.25; 80], None).unwrap();
    let router = CudaRouter::new(&cuda, linear).unwrap();
    let mut engine = problem.engine(&cuda);
    engine.call(&cuda, &problem.pool, Some((&router, Weighting::SoftmaxSelected))).unwrap();
    assert_eq!(cuda.take_status().unwrap(), Status::SCORE_NOT_FINITE);
    let (ids, weights) = engine.choice(&cuda);
    assert_eq!(
        (ids, weights),
        (vec![-1, -1, 0, 1], vec![0.0, 0.0, 0.5, 0.5]),
        "equal scores: the lower first"
    );
    same(&engine.z(&cuda)[..16], &[f16::from_f32(0.0); 16], "nothing is chosen");
}

#[test]
fn what_counts_for_nothing_is_told_and_live_tokens_hold() {
    let Some(cuda) = device() else { return };
    let shape = Shape { padding: 8, evicted: vec![2], ..shape(18, 2, 40, &[16, 4, 8, 9]) };
    let mut problem = Problem::<f16, f16>::new(&cuda, &shape);
    for (id, weight, status) in [
        (4, 0.5, Status::ID_OUT_OF_RANGE),
        (i32::MIN, 0.5, Status::ID_OUT_OF_RANGE),
        (2, 0.5, Status::STALE_SLOT),
        (0, f32::NAN, Status::WEIGHT_NOT_FINITE),
        (-1, f32::NAN, Status::default()),
    ] {
        (problem.ids[3], problem.weights[3]) = (id, weight);
        for live in [0, 1, 16, 17, 18, 99] {
            let mut engine = problem.engine(&cuda);
            write(&cuda, &mut engine.live, &[live as u32]);
            engine.call(&cuda, &problem.pool, None).unwrap();
            let want = problem.want(&problem.ids, &problem.weights, live.min(18), true);
            same(&engine.z(&cuda), &want, &format!("{live} live, id {id}"));
            let told = if live > 1 { status } else { Status::default() };
            assert_eq!(cuda.take_status().unwrap(), told, "{live} live, id {id}");
        }
    }
}

/// Values whose sums round: another order of summation would show.
fn a_token_alone_has_the_same_bits<X: Element>(cuda: &Cuda) {
    let mut problem = Problem::<X, X>::new(cuda, &shape(18, 2, 584, &[16, 40, 130]));
    problem.x.iter_mut().enumerate().for_each(|(i, x)| *x = X::from_f32(1.0 / (3 + i * 7 % 17) as f32 - 0.1));
    let mut engine = problem.engine(cuda);
    engine.call(cuda, &problem.pool, None).unwrap();
    let (all, Sizes { x_stride, h_stride, .. }) = (engine.z(cuda), problem.sizes);
    for (first, tokens) in [(0, 1), (17, 1), (5, 12)] {
        let mut engine = problem.engine(cuda);
        engine.sizes.tokens = tokens;
        engine.routes = 2 * tokens;
        engine.x = cuda.upload(&problem.x[first * x_stride..]).unwrap();
        engine.ids = cuda.upload(&problem.ids[2 * first..]).unwrap();
        engine.weights = cuda.upload(&problem.weights[2 * first..]).unwrap();
        engine.call(cuda, &problem.pool, None).unwrap();
        let want = &all[first * h_stride..][..tokens * h_stride];
        assert_eq!(bits(&engine.z(cuda)), bits(want), "{}: {tokens} tokens from {first} on", X::TYPE);
    }
}

#[test]
fn a_tokens_bits_do_not_depend_on_its_batch() {
    let Some(cuda) = device() else { return };
    a_token_alone_has_the_same_bits::<f32>(&cuda);
    a_token_alone_has_the_same_bits::<f16>(&cuda);
}

/// The engine's pair: z behind x in the same rows, and [weight | B] beside it: their product is the layer.
fn the_pair<X: Element>(cuda: &Cuda, inner: usize, padding: usize) {
    let problem = Problem::<X, X>::new(cuda, &shape(17, 2, inner, &[5, 4, 12]));
    let (columns, tokens) = (problem.pool.slots().used_rows(), problem.sizes.tokens);
    let stride = inner + columns + padding;
    let sizes = Sizes { x_stride: stride, h_stride: stride, ..problem.sizes };
    let mut rows = vec![X::from_f32(BASE); tokens * stride];
    (0..tokens).for_each(|t| rows[t * stride..][..inner].copy_from_slice(&problem.x[t * inner..][..inner]));
    let memory = cuda.upload(&rows).unwrap();
    let mut engine = problem.engine(cuda);
    {
        let x = View::whole(cuda, &memory).unwrap();
        let at = x.address() + (inner * size_of::<X>()) as u64;
        // SAFETY: columns of the same memory, which the launch writes and does not read.
        let mut z = unsafe { ViewMut::<X>::from_raw(at, tokens * stride - inner) };
        let mut ids = ViewMut::whole(cuda, &mut engine.ids).unwrap();
        let mut weights = ViewMut::whole(cuda, &mut engine.weights).unwrap();
        cuda.fused_gate(&sizes, &problem.pool, None, &x, None, &mut ids, &mut weights, &mut z).unwrap();
        // SAFETY: never launched.
        let mut early = unsafe { ViewMut::<X>::from_raw(x.address(), tokens * stride) };
        let refused =
            cuda.fused_gate(&sizes, &problem.pool, None, &x, None, &mut ids, &mut weights, &mut early);
        assert!(common::refuses(refused).contains("z: expected memory beside x"));
    }
    let (got, padded) = (cuda.download(&memory, rows.len()).unwrap(), columns.next_multiple_of(8));
    let want = problem.want(&problem.ids, &problem.weights, tokens, false);
    for t in 0..tokens {
        rows[t * stride + inner..][..columns].copy_from_slice(&want[t * columns..][..columns]);
        // The last row of the view ends with the memory: where every row has room, zeros.
        if padded <= stride - inner {
            rows[t * stride + inner + columns..][..padded - columns].fill(X::from_f32(0.0));
        }
    }
    same(&got, &rows, &format!("{} {inner} + {columns} + {padding}", X::TYPE));

    let weight: Vec<X> = values(5, OUT * inner);
    let device_weight = cuda.upload(&weight).unwrap();
    let mut concat = cuda.upload(&vec![X::from_f32(BASE); OUT * stride]).unwrap();
    {
        let (weight, mut concat) =
            (View::whole(cuda, &device_weight).unwrap(), ViewMut::whole(cuda, &mut concat).unwrap());
        cuda.fused_concat(&problem.pool, &weight, stride, &mut concat).unwrap();
    }
    let mut want = vec![X::from_f32(BASE); OUT * stride];
    for o in 0..OUT {
        want[o * stride..][..inner].copy_from_slice(&weight[o * inner..][..inner]);
        for (e, slot) in problem.pool.slots().slots().iter().enumerate() {
            let rank = slot.rank as usize;
            let b = values::<X>(e + 9, rank * OUT);
            let to = o * stride + inner + slot.row as usize;
            want[to..][..rank].copy_from_slice(&b[o * rank..][..rank]);
        }
    }
    same(&cuda.download(&concat, want.len()).unwrap(), &want, "[weight | B]");
}

#[test]
fn an_engine_may_multiply_itself() {
    let Some(cuda) = device() else { return };
    for (inner, padding) in [(64, 0), (264, 3), (40, 11), (37, 0)] {
        the_pair::<f32>(&cuda, inner, padding);
        the_pair::<f16>(&cuda, inner, padding);
        the_pair::<bf16>(&cuda, inner, padding);
    }
    let problem = Problem::<f32, f16>::new(&cuda, &shape(1, 1, 8, &[2]));
    let weight = cuda.upload(&values::<f32>(1, 8 * OUT)).unwrap();
    let mut concat = cuda.upload(&vec![0f32; 10 * OUT]).unwrap();
    let (weight, mut concat) =
        (View::whole(&cuda, &weight).unwrap(), ViewMut::whole(&cuda, &mut concat).unwrap());
    let refused = common::refuses(cuda.fused_concat(&problem.pool, &weight, 10, &mut concat));
    assert_eq!(refused, "fused: pool's element: expected f32, the weight's, got f16");
}

/// Nothing is computed from a size before it is checked.
#[test]
fn absurd_sizes_are_refused() {
    let Some(cuda) = device() else { return };
    let huge = usize::MAX;
    for change in [
        &(|s: &mut Sizes| s.tokens = huge) as &dyn Fn(&mut Sizes),
        &|s| (s.tokens, s.top_k) = (huge, 0),
        &|s| s.top_k = huge,
        &|s| s.in_features = huge,
        &|s| s.x_stride = huge,
        &|s| s.h_stride = huge,
        &|s| s.x_stride = 39,
        &|s| s.h_stride = 6,
    ] {
        let problem = Problem::<f16, f16>::new(&cuda, &shape(5, 2, 40, &[5, 2]));
        let mut engine = problem.engine(&cuda);
        change(&mut engine.sizes);
        common::refuses(engine.call(&cuda, &problem.pool, None));
        let weight = cuda.upload(&values::<f16>(1, 40 * OUT)).unwrap();
        let weight = View::whole(&cuda, &weight).unwrap();
        let x = cuda.upload(&problem.x).unwrap();
        let x = View::whole(&cuda, &x).unwrap();
        let (z, mut y) =
            (cuda.upload(&[f16::ZERO; 5 * 8]).unwrap(), cuda.upload(&[f16::ZERO; 5 * OUT]).unwrap());
        let (z, mut y) = (View::whole(&cuda, &z).unwrap(), ViewMut::whole(&cuda, &mut y).unwrap());
        common::refuses(cuda.fused_dense(&engine.sizes, &problem.pool, &weight, None, &x, &z, None, &mut y));
    }
}

#[test]
fn a_block_takes_16_tokens() {
    use ElementType::{Bf16, F16, F32};
    use molora::device::cuda::{Kernel, Offer};
    let turing = Offer { batch_invariant: false, mma_f16: true, mma_bf16: false };
    for (tokens, groups) in [(0, 0), (1, 1), (16, 1), (17, 2), (4096, 256)] {
        for (elements, vector, kernel) in [
            ((F16, F16), true, Kernel::FusedGateMma),
            ((F16, F16), false, Kernel::FusedGate),
            ((F16, F32), true, Kernel::FusedGate),
            ((Bf16, Bf16), true, Kernel::FusedGate),
        ] {
            let launch = gate_cuda::grid(tokens, elements, vector, &turing);
            assert_eq!((launch.groups, launch.entry.kernel), (groups, kernel), "{tokens} {elements:?}");
        }
    }
    let (launch, weight_blocks) = gate_cuda::concat_grid(257, 33, 65);
    assert_eq!((launch.groups, launch.blocks, weight_blocks), (10, 5, 2));
}
