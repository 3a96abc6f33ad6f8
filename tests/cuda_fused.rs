//! The fused forms over a dense weight on CUDA: the definition, exactly; live tokens, stale slots, infinite values that stay
//! with their token, the same bits in any batch, replays after an adapter came, and the dense form's second product.
#![cfg(feature = "cuda")]

mod common;

use common::cuda::{device, write};
use half::{bf16, f16};
use molora::adapter::slots::PoolSizes;
use molora::device::cuda::cudarc::driver::{CudaSlice, sys};
use molora::device::cuda::{Plan, Pool, Status, View, ViewMut};
use molora::layer::cuda::RoutingView;
use molora::layer::{Base, MoeLora, Router, Rows};
use molora::ops::fused::{Form, Sizes};
use molora::ops::{Output, plan, shrink};
use molora::{Cuda, Element, Lora};

/// `len` small whole numbers: sums of their products are exact in f32, and h is exact in 8 bits.
fn small<E: Element>(seed: usize, len: usize) -> Vec<E> {
    let value = |i: usize| ((i * 7919 + seed * 104_729) % 1009 % 3) as f32 - 1.0;
    (0..len).map(|i| E::from_f32(value(i))).collect()
}

/// A problem on the host; rank of expert e: 1 + 5 e % 37.
#[derive(Clone)]
struct Problem<X> {
    tokens: usize,
    top_k: usize,
    inner: usize,
    out: usize,
    experts: usize,
    x: Vec<X>,
    weight: Vec<X>,
    ids: Vec<i32>,
    weights: Vec<f32>,
    /// A and B as PEFT stores them.
    factors: Vec<(Vec<X>, Vec<X>)>,
}

const SCALING: f32 = 0.5;

fn rank(expert: usize) -> usize {
    1 + 5 * expert % 37
}

impl<X: Element> Problem<X> {
    fn new(tokens: usize, top_k: usize, inner: usize, out: usize, experts: usize) -> Self {
        let id = |n: usize| if n % 11 == 7 { -1 } else { ((n * 13 + n / 5) % experts) as i32 };
        let factor = |e: usize| (small::<X>(e + 3, rank(e) * inner), small::<X>(e + 7, rank(e) * out));
        Self {
            tokens,
            top_k,
            inner,
            out,
            experts,
            x: small(1, tokens * inner),
            weight: small(2, out * inner),
            ids: (0..tokens * top_k).map(id).collect(),
            weights: (0..tokens * top_k).map(|n| [0.5, -1.0, 0.25][n % 3]).collect(),
            factors: (0..experts).map(factor).collect(),
        }
    }

    /// Values whose sums round.
    fn rounding(mut self) -> Self {
        let third = |i: usize| X::from_f32(1.0 / (3 + i % 17) as f32 - 0.1);
        let factors = self.factors.iter_mut().flat_map(|(a, b)| a.iter_mut().chain(b));
        for (i, v) in self.x.iter_mut().chain(&mut self.weight).chain(factors).enumerate() {
            *v = third(i * 7);
        }
        self
    }

    fn max_rank(&self) -> usize {
        (0..self.experts).map(rank).max().unwrap()
    }

    fn sizes(&self) -> Sizes {
        let (tokens, top_k, in_features, out_features) = (self.tokens, self.top_k, self.inner, self.out);
        let (x_stride, y_stride, h_stride) = (self.inner, self.out, self.max_rank().next_multiple_of(4));
        let output = Output::Sum;
        Sizes { tokens, top_k, in_features, out_features, x_stride, y_stride, h_stride, output }
    }

    fn pool(&self, cuda: &Cuda) -> Pool {
        let (in_features, out_features, experts) = (self.inner, self.out, self.experts);
        let rank_capacity = (0..experts).map(rank).sum::<usize>() + 40;
        let sizes = PoolSizes { in_features, out_features, experts, rank_capacity, element: X::TYPE };
        let mut pool = Pool::new(cuda, sizes).unwrap();
        (0..experts).for_each(|e| self.put(&mut pool, e));
        pool
    }

    fn put(&self, pool: &mut Pool, expert: usize) {
        let (a, b) = &self.factors[expert];
        pool.put(expert, &Lora::new(self.inner, self.out, rank(expert), SCALING, a, b).unwrap()).unwrap();
    }

    fn dot(&self, t: usize, row: &[X]) -> f64 {
        let x = &self.x[t * self.inner..][..self.inner];
        x.iter().zip(row).map(|(x, w)| f64::from(x.to_f32()) * f64::from(w.to_f32())).sum()
    }

    /// y by the formula; routes of which `skip` says so count for nothing.
    fn want(&self, skip: impl Fn(usize) -> bool) -> Vec<X> {
        let mut y = Vec::new();
        for t in 0..self.tokens {
            let mut sums: Vec<f64> = self.weight.chunks(self.inner).map(|row| self.dot(t, row)).collect();
            for n in (t * self.top_k..(t + 1) * self.top_k).filter(|&n| self.ids[n] >= 0 && !skip(n)) {
                let (a, b) = &self.factors[self.ids[n] as usize];
                let h: Vec<f64> = a.chunks(self.inner).map(|row| self.dot(t, row)).collect();
                for (o, sum) in sums.iter_mut().enumerate() {
                    let b = &b[o * h.len()..][..h.len()];
                    let product: f64 = h.iter().zip(b).map(|(h, b)| h * f64::from(b.to_f32())).sum();
                    *sum += f64::from(self.weights[n]) * f64::from(SCALING) * product;
                }
            }
            y.extend(sums.iter().map(|&sum| X::from_f32(sum as f32)));
        }
        y
    }

    fn engine(&self, cuda: &Cuda) -> Engine<X> {
        Engine {
            x: cuda.upload(&self.x).unwrap(),
            weight: cuda.upload(&self.weight).unwrap(),
            ids: cuda.upload(&self.ids).unwrap(),
            weights: cuda.upload(&self.weights).unwrap(),
            live: cuda.upload(&[self.tokens as u32]).unwrap(),
            h: cuda.upload(&vec![f32::NAN; self.ids.len() * self.sizes().h_stride]).unwrap(),
            y: cuda.upload(&vec![X::from_f32(7.0); self.tokens * self.out]).unwrap(),
            sizes: self.sizes(),
        }
    }

    /// Plan, shrink and the fused product.
    fn run(&self, cuda: &Cuda, pool: &Pool) -> Vec<X> {
        let mut engine = self.engine(cuda);
        let mut plan = engine.plan(cuda, pool);
        engine.enqueue(cuda, pool, &mut plan, true);
        engine.y(cuda)
    }
}

/// Device memory of one problem.
struct Engine<X> {
    sizes: Sizes,
    x: CudaSlice<X>,
    weight: CudaSlice<X>,
    ids: CudaSlice<i32>,
    weights: CudaSlice<f32>,
    live: CudaSlice<u32>,
    h: CudaSlice<f32>,
    y: CudaSlice<X>,
}

impl<X: Element> Engine<X> {
    fn plan_sizes(&self, pool: &Pool) -> plan::Sizes {
        let Sizes { tokens, top_k, .. } = self.sizes;
        plan::Sizes { tokens, top_k, experts: pool.slots().sizes().experts }
    }

    fn plan(&self, cuda: &Cuda, pool: &Pool) -> Plan {
        let (ids, live) = (View::whole(cuda, &self.ids).unwrap(), View::whole(cuda, &self.live).unwrap());
        cuda.plan(&self.plan_sizes(pool), pool, &ids, Some(&live)).unwrap()
    }

    /// Enqueues, with `again` planning anew.
    fn enqueue(&mut self, cuda: &Cuda, pool: &Pool, plan: &mut Plan, again: bool) {
        let (plan_sizes, sizes) = (self.plan_sizes(pool), self.sizes);
        let (x, weight) = (View::whole(cuda, &self.x).unwrap(), View::whole(cuda, &self.weight).unwrap());
        let (ids, weights) =
            (View::whole(cuda, &self.ids).unwrap(), View::whole(cuda, &self.weights).unwrap());
        let live = View::whole(cuda, &self.live).unwrap();
        let mut h = ViewMut::whole(cuda, &mut self.h).unwrap();
        let mut y = ViewMut::whole(cuda, &mut self.y).unwrap();
        if again {
            cuda.plan_into(&plan_sizes, pool, &ids, Some(&live), plan).unwrap();
        }
        let Sizes { tokens, top_k, in_features, x_stride, h_stride, output, .. } = sizes;
        let shrink = shrink::Sizes { tokens, top_k, in_features, x_stride, h_stride, output };
        cuda.shrink(&shrink, plan, pool, &x, &weights, None, &mut h).unwrap();
        cuda.fused_sparse(&sizes, plan, pool, &weight, None, &x, &h.as_view(), &weights, &mut y).unwrap();
    }

    fn y(&self, cuda: &Cuda) -> Vec<X> {
        cuda.download(&self.y, self.sizes.tokens * self.sizes.out_features).unwrap()
    }
}

#[track_caller]
fn same<X: Element>(got: &[X], want: &[X], what: &str) {
    let bits = |v: &X| v.to_f32().to_bits();
    let first = got.iter().zip(want).position(|(g, w)| bits(g) != bits(w));
    let at = first.map(|i| (i, got[i].to_f32(), want[i].to_f32()));
    assert!(got.len() == want.len() && at.is_none(), "{what}: (place, got, expected) {at:?}");
}

fn is_the_formula<X: Element>(cuda: &Cuda) {
    // Lists of more than 128 experts; more routes a token than are staged; one token; whole tiles.
    for (tokens, top_k, inner, out, experts) in
        [(130, 3, 24, 40, 170), (70, 11, 16, 20, 9), (1, 2, 32, 130, 4), (128, 2, 64, 136, 5)]
    {
        let problem = Problem::<X>::new(tokens, top_k, inner, out, experts);
        let pool = problem.pool(cuda);
        let what = format!("{} {tokens} {top_k} {inner} {out} {experts}", X::TYPE);
        same(&problem.run(cuda, &pool), &problem.want(|_| false), &what);
        assert_eq!(cuda.take_status().unwrap(), Status::default(), "{what}");
    }
}

#[test]
fn it_is_the_formula() {
    let Some(cuda) = device() else { return };
    is_the_formula::<f32>(&cuda);
    is_the_formula::<f16>(&cuda);
    is_the_formula::<bf16>(&cuda);
}

fn skips_what_changed<X: Element>(cuda: &Cuda) {
    let mut problem = Problem::<X>::new(33, 2, 32, 24, 6);
    let mut pool = problem.pool(cuda);
    let mut engine = problem.engine(cuda);
    let mut plan = engine.plan(cuda, &pool);
    pool.evict(3).unwrap();
    engine.enqueue(cuda, &pool, &mut plan, false);
    let want = problem.want(|n| problem.ids[n] == 3);
    same(&engine.y(cuda), &want, "evicted");
    assert_eq!(cuda.take_status().unwrap(), Status::STALE_SLOT);
    problem.put(&mut pool, 3);
    engine.enqueue(cuda, &pool, &mut plan, false);
    same(&engine.y(cuda), &want, "replaced");
    assert_eq!(cuda.take_status().unwrap(), Status::STALE_SLOT);
    // A weight that is not finite skips its route.
    problem.weights[5] = f32::INFINITY;
    same(&problem.run(cuda, &pool), &problem.want(|n| n == 5), "weight");
    assert_eq!(cuda.take_status().unwrap(), Status::WEIGHT_NOT_FINITE);
    // Memory that holds no plan of this pool.
    let other = problem.pool(cuda);
    let mut engine = problem.engine(cuda);
    write(cuda, &mut engine.live, &[9]);
    let mut plan = engine.plan(cuda, &other);
    engine.enqueue(cuda, &other, &mut plan, true);
    let y = engine.y(cuda);
    same(&y[..9 * 24], &problem.want(|n| n == 5)[..9 * 24], "live");
    assert!(y[9 * 24..].iter().all(|v| v.to_f32() == 7.0), "rows behind the live tokens");
    assert_eq!(
        cuda.take_status().unwrap(),
        if problem.ids[5] < 0 { Status::default() } else { Status::WEIGHT_NOT_FINITE }
    );
}

#[test]
fn what_changed_and_what_is_not_live_is_skipped() {
    let Some(cuda) = device() else { return };
    skips_what_changed::<f32>(&cuda);
    skips_what_changed::<f16>(&cuda);
    skips_what_changed::<bf16>(&cuda);
}

fn infinity_stays<X: Element>(cuda: &Cuda) {
    let mut problem = Problem::<X>::new(40, 2, 32, 24, 4);
    let pool = problem.pool(cuda);
    let want = problem.want(|_| false);
    problem.x[17 * 32 + 5] = X::from_f32(f32::INFINITY);
    let got = problem.run(cuda, &pool);
    same(&got[..17 * 24], &want[..17 * 24], "tokens before");
    same(&got[18 * 24..], &want[18 * 24..], "tokens behind");
    assert!(got[17 * 24..18 * 24].iter().any(|v| !v.to_f32().is_finite()));
}

#[test]
fn an_infinite_token_spoils_no_other() {
    let Some(cuda) = device() else { return };
    infinity_stays::<f32>(&cuda);
    infinity_stays::<f16>(&cuda);
    infinity_stays::<bf16>(&cuda);
}

fn alone_as_in_a_batch<X: Element>(cuda: &Cuda) {
    let problem = Problem::<X>::new(140, 3, 104, 40, 12).rounding();
    let pool = problem.pool(cuda);
    let all = problem.run(cuda, &pool);
    for (first, tokens) in [(0, 1), (139, 1), (3, 20), (60, 70)] {
        let part = Problem {
            tokens,
            x: problem.x[first * 104..][..tokens * 104].to_vec(),
            ids: problem.ids[first * 3..][..tokens * 3].to_vec(),
            weights: problem.weights[first * 3..][..tokens * 3].to_vec(),
            ..problem.clone()
        };
        let what = format!("{}: {tokens} tokens from {first} on", X::TYPE);
        let cuda = cuda.batch_invariant(true);
        same(&part.run(&cuda, &pool), &problem.run(&cuda, &pool)[first * 40..][..tokens * 40], &what);
    }
    assert_eq!(all.len(), 140 * 40);
}

#[test]
fn a_token_alone_has_the_same_bits() {
    let Some(cuda) = device() else { return };
    alone_as_in_a_batch::<f32>(&cuda);
    alone_as_in_a_batch::<f16>(&cuda);
    alone_as_in_a_batch::<bf16>(&cuda);
}

/// h far outside f16's range, and far below its smallest, is not lost.
#[test]
fn f16_has_the_range_of_h() {
    let Some(cuda) = device() else { return };
    for (of_a, of_b) in [(8192.0, 1.0 / 65536.0), (1.0 / 8192.0, 4096.0)] {
        let mut problem = Problem::<f16>::new(20, 2, 64, 24, 4);
        problem.weights.iter_mut().for_each(|w| *w *= of_a);
        for (a, b) in &mut problem.factors {
            a.iter_mut().for_each(|v| *v = f16::from_f32(v.to_f32() * of_a));
            b.iter_mut().for_each(|v| *v = f16::from_f32(v.to_f32() * of_b));
        }
        same(&problem.run(&cuda, &problem.pool(&cuda)), &problem.want(|_| false), &format!("{of_a}"));
    }
}

/// The form that a layer takes unasked has that range too: z of the dense form would be f16.
#[test]
fn an_f16_layer_takes_no_form_that_loses_h() {
    let Some(cuda) = device() else { return };
    let mut problem = Problem::<f16>::new(20, 2, 64, 24, 4);
    problem.weights.iter_mut().for_each(|w| *w *= 8192.0);
    for (a, b) in &mut problem.factors {
        a.iter_mut().for_each(|v| *v = f16::from_f32(v.to_f32() * 8192.0));
        b.iter_mut().for_each(|v| *v = f16::from_f32(v.to_f32() / 65536.0));
    }
    let layer = |form: Option<Form>| {
        let router = Router::External { top_k: problem.top_k };
        MoeLora::<Cuda>::new(&cuda, problem.pool(&cuda), router).unwrap().with_form(form)
    };
    let run = |layer: MoeLora<Cuda>| {
        let mut workspace = layer.workspace(problem.tokens).unwrap();
        let (x, weight) = (cuda.upload(&problem.x).unwrap(), cuda.upload(&problem.weight).unwrap());
        let (mut ids, mut weights) =
            (cuda.upload(&problem.ids).unwrap(), cuda.upload(&problem.weights).unwrap());
        let mut y = cuda.upload(&vec![f16::NAN; problem.tokens * problem.out]).unwrap();
        let topk_ids = ViewMut::whole(&cuda, &mut ids).unwrap();
        let topk_weights = ViewMut::whole(&cuda, &mut weights).unwrap();
        let routing = &mut RoutingView::new(topk_ids, topk_weights);
        let rows = Rows { tokens: problem.tokens, x_stride: problem.inner, y_stride: problem.out };
        let (x, weight) = (View::whole(&cuda, &x).unwrap(), View::whole(&cuda, &weight).unwrap());
        let base = Base { weight: &weight, bias: None };
        let mut view = ViewMut::whole(&cuda, &mut y).unwrap();
        layer.forward(&rows, base, &x, routing, &mut workspace, &mut view).unwrap();
        drop(view);
        cuda.download(&y, problem.tokens * problem.out).unwrap()
    };
    same(&run(layer(None)), &problem.want(|_| false), "unasked");
    let choice = layer(None).choose::<f16>(problem.tokens).unwrap().to_string();
    assert!(choice.contains("dense  not offered: only on demand"), "{choice}");
    assert_eq!(layer(Some(Form::Dense)).choose::<f16>(problem.tokens).unwrap().form, Form::Dense);
    assert!(run(layer(Some(Form::Dense))).iter().any(|y| !y.is_finite()), "what the page of the form says");
}

fn replays<X: Element>(cuda: &Cuda) {
    let problem = Problem::<X>::new(21, 2, 32, 24, 5);
    let mut pool = problem.pool(cuda);
    pool.evict(2).unwrap();
    let mut engine = problem.engine(cuda);
    let mut plan = engine.plan(cuda, &pool);
    let _ = cuda.take_status().unwrap();
    let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
    let graph = {
        let sizes = engine.sizes;
        let plan_sizes = engine.plan_sizes(&pool);
        let view = |slice| View::whole(cuda, slice).unwrap();
        let (x, weight) = (view(&engine.x), view(&engine.weight));
        let ids = View::whole(cuda, &engine.ids).unwrap();
        let weights = View::whole(cuda, &engine.weights).unwrap();
        let live = View::whole(cuda, &engine.live).unwrap();
        let mut h = ViewMut::whole(cuda, &mut engine.h).unwrap();
        let mut y = ViewMut::whole(cuda, &mut engine.y).unwrap();
        cuda.stream().begin_capture(mode).unwrap();
        cuda.plan_into(&plan_sizes, &pool, &ids, Some(&live), &mut plan).unwrap();
        let Sizes { tokens, top_k, in_features, x_stride, h_stride, output, .. } = sizes;
        let shrink = shrink::Sizes { tokens, top_k, in_features, x_stride, h_stride, output };
        cuda.shrink(&shrink, &plan, &pool, &x, &weights, None, &mut h).unwrap();
        cuda.fused_sparse(&sizes, &plan, &pool, &weight, None, &x, &h.as_view(), &weights, &mut y).unwrap();
        cuda.stream().end_capture(sys::CUgraphInstantiate_flags(0)).unwrap().unwrap()
    };
    graph.launch().unwrap();
    same(&engine.y(cuda), &problem.want(|n| problem.ids[n] == 2), "before it came");
    assert_eq!(cuda.take_status().unwrap(), Status::STALE_SLOT);
    problem.put(&mut pool, 2);
    graph.launch().unwrap();
    same(&engine.y(cuda), &problem.want(|_| false), "an adapter that came after the capture");
    assert_eq!(cuda.take_status().unwrap(), Status::default());
}

#[test]
fn a_replay_sees_a_later_adapter() {
    let Some(cuda) = device() else { return };
    replays::<f32>(&cuda);
    replays::<f16>(&cuda);
    replays::<bf16>(&cuda);
}

/// `y = [x | z] [weight | B_all]^T` with a z of the host's, in memory of its own and in x's rows.
fn second_product<X: Element>(cuda: &Cuda, tokens: usize, out: usize, beside: bool) {
    let problem = Problem::<X>::new(tokens, 1, 32, out, 5);
    let mut pool = problem.pool(cuda);
    pool.evict(1).unwrap();
    let rows = pool.slots().used_rows();
    let stride = rows.next_multiple_of(8);
    let mut z = small::<X>(11, tokens * stride);
    let hole = 1..1 + rank(1);
    for t in 0..tokens {
        z[t * stride..][hole.clone()].fill(X::from_f32(0.0));
        // Behind the rows anything may stand.
        z[t * stride..][rows..stride].fill(X::from_f32(f32::NAN));
    }
    let mut want = Vec::new();
    for t in 0..tokens {
        for o in 0..out {
            let mut sum = problem.dot(t, &problem.weight[o * 32..][..32]);
            let mut row = 0;
            for e in 0..5 {
                for r in 0..rank(e) {
                    let b = problem.factors[e].1[o * rank(e) + r].to_f32();
                    sum += f64::from(z[t * stride + row + r].to_f32()) * f64::from(b);
                }
                row += rank(e);
            }
            want.push(X::from_f32(sum as f32));
        }
    }
    let x_stride = if beside { 32 + stride } else { 32 };
    let mut x = vec![X::from_f32(0.0); tokens * x_stride];
    for t in 0..tokens {
        x[t * x_stride..][..32].copy_from_slice(&problem.x[t * 32..][..32]);
        if beside {
            x[t * x_stride + 32..][..stride].copy_from_slice(&z[t * stride..][..stride]);
        }
    }
    let (x, z) = (cuda.upload(&x).unwrap(), cuda.upload(&z).unwrap());
    let weight = cuda.upload(&problem.weight).unwrap();
    let mut y = cuda.upload(&vec![X::from_f32(7.0); tokens * out]).unwrap();
    let live = cuda.upload(&[tokens as u32 - 1]).unwrap();
    let sizes = Sizes { x_stride, h_stride: if beside { x_stride } else { stride }, ..problem.sizes() };
    {
        let z = if beside { x.slice(32..) } else { z.slice(..) };
        let (z, x) = (View::new(cuda, z).unwrap(), View::whole(cuda, &x).unwrap());
        let (weight, live) = (View::whole(cuda, &weight).unwrap(), View::whole(cuda, &live).unwrap());
        let mut y = ViewMut::whole(cuda, &mut y).unwrap();
        cuda.fused_dense(&sizes, &pool, &weight, None, &x, &z, Some(&live), &mut y).unwrap();
    }
    let y = cuda.download(&y, tokens * out).unwrap();
    let (rows, what) = (tokens - 1, format!("{} {tokens} {out} {beside}", X::TYPE));
    same(&y[..rows * out], &want[..rows * out], &what);
    assert!(y[rows * out..].iter().all(|v: &X| v.to_f32() == 7.0), "{what}: a row that is not live");
}

#[test]
fn the_second_product_of_the_dense_form() {
    let Some(cuda) = device() else { return };
    for (tokens, out, beside) in [(140, 40, false), (30, 136, true), (2, 17, false)] {
        second_product::<f32>(&cuda, tokens, out, beside);
        second_product::<f16>(&cuda, tokens, out, beside);
        second_product::<bf16>(&cuda, tokens, out, beside);
    }
}
