//! x and h to weights, then RAMoLE's combination against its published form. `cargo bench --bench attend`, with a part of a
//! case's text for some of them; `-- published` for the comparison alone.

mod common;

use molora::adapter::slots::PoolSizes;
use molora::device::cpu::{Pool, Weight};
use molora::layer::{MoeLora, Router, Routing, Rows};
use molora::ops::base;
use molora::{Cpu, ElementType, Lora};
use molora_check::Op;
use molora_check::rng::Rng;
use molora_check::stats::{Time, median, time};
use rayon::prelude::*;

fn main() {
    common::run(&[Op::Attend]);
    compare();
}

const SET: usize = 24;
const TOKENS: usize = 512;
const WIDTH: usize = 4096;
const RANK: usize = 8;
const RUNS: usize = 15;
/// What issue and README promise.
const LESS_MEMORY: f64 = 20.0;
const LESS_TIME: f64 = 5.0;

/// The published form on this crate's own packed products, for tensors that are there already:
///
/// ```text
/// h = x A_all^T [tokens, set * rank]    v_i = scaling_i h_i B_i^T [set, tokens, out]    q = x A_r^T    k = v B_r [set, tokens, r_r]
/// a = softmax over i of <q, k_i> / sqrt(r_r)    y += sum of a_i v_i
/// ```
struct Published {
    a_all: Weight<f32>,
    /// With the scaling in them.
    b: Vec<Weight<f32>>,
    router_a: Weight<f32>,
    router_b: Weight<f32>,
    h: Vec<f32>,
    v: Vec<f32>,
    q: Vec<f32>,
    k: Vec<f32>,
    weights: Vec<f32>,
}

fn product(
    cpu: &Cpu,
    weight: &Weight<f32>,
    (tokens, in_features, out_features): (usize, usize, usize),
    (x, x_stride): (&[f32], usize),
    y: &mut [f32],
) {
    let sizes = base::Sizes { tokens, in_features, out_features, x_stride, y_stride: out_features };
    cpu.base(&sizes, weight, None, x, y).expect("sizes fit");
}

impl Published {
    fn new(cpu: &Cpu, loras: &[Lora], router: &Lora) -> Self {
        let pack = |rows: usize, columns: usize, values: Vec<f32>| cpu.pack(rows, columns, &values).unwrap();
        let router_b: Vec<f32> = router.b().collect();
        let transposed = (0..RANK * WIDTH).map(|i| router_b[i % WIDTH * RANK + i / WIDTH]).collect();
        let scaled = |lora: &Lora| lora.b().map(|b| b * lora.scaling()).collect();
        Self {
            a_all: pack(SET * RANK, WIDTH, loras.iter().flat_map(Lora::a).collect()),
            b: loras.iter().map(|lora| pack(WIDTH, RANK, scaled(lora))).collect(),
            router_a: pack(RANK, WIDTH, router.a().collect()),
            router_b: pack(RANK, WIDTH, transposed),
            h: vec![0.0; TOKENS * SET * RANK],
            v: vec![0.0; SET * TOKENS * WIDTH],
            q: vec![0.0; TOKENS * RANK],
            k: vec![0.0; SET * TOKENS * RANK],
            weights: vec![0.0; TOKENS * SET],
        }
    }

    fn run(&mut self, cpu: &Cpu, x: &[f32], y: &mut [f32]) {
        product(cpu, &self.a_all, (TOKENS, WIDTH, SET * RANK), (x, WIDTH), &mut self.h);
        for (i, v) in self.v.chunks_mut(TOKENS * WIDTH).enumerate() {
            product(cpu, &self.b[i], (TOKENS, RANK, WIDTH), (&self.h[i * RANK..], SET * RANK), v);
        }
        product(cpu, &self.router_a, (TOKENS, WIDTH, RANK), (x, WIDTH), &mut self.q);
        // One adapter's rows at a time: they are repacked for the product, and so stay in cache.
        for (v, k) in self.v.chunks(TOKENS * WIDTH).zip(self.k.chunks_mut(TOKENS * RANK)) {
            product(cpu, &self.router_b, (TOKENS, WIDTH, RANK), (v, WIDTH), k);
        }
        for (t, weights) in self.weights.chunks_mut(SET).enumerate() {
            let q = &self.q[t * RANK..][..RANK];
            for (i, w) in weights.iter_mut().enumerate() {
                let k = &self.k[(i * TOKENS + t) * RANK..][..RANK];
                *w = (q.iter().zip(k).map(|(q, k)| q * k).sum::<f32>() / (RANK as f32).sqrt()).exp();
            }
            let total: f32 = weights.iter().sum();
            weights.iter_mut().for_each(|w| *w /= total);
        }
        let (v, weights) = (&self.v, &self.weights);
        y.par_chunks_mut(WIDTH).enumerate().for_each(|(t, y)| {
            for i in 0..SET {
                let (w, v) = (weights[t * SET + i], &v[(i * TOKENS + t) * WIDTH..][..WIDTH]);
                y.iter_mut().zip(v).for_each(|(y, v)| *y += w * v);
            }
        });
    }

    /// Bytes between x and y.
    fn bytes(&self) -> usize {
        4 * (self.h.len() + self.v.len() + self.q.len() + self.k.len() + self.weights.len())
    }
}

fn compare() {
    let cpu = Cpu::new().unwrap();
    let mut rng = Rng::named("attend", 0);
    let mut values = |len: usize, scale: f32| (0..len).map(|_| rng.value(scale)).collect::<Vec<f32>>();
    let mut lora = |scaling: f32| {
        let (a, b) = (values(RANK * WIDTH, 0.015), values(RANK * WIDTH, 0.1));
        Lora::new(WIDTH, WIDTH, RANK, scaling, &a, &b).unwrap()
    };
    let (router, loras) = (lora(1.0), (0..SET).map(|i| lora(0.5 + i as f32 / 16.0)).collect::<Vec<_>>());
    let x = values(TOKENS * WIDTH, 1.0);
    let rank_capacity = SET * RANK;
    let element = ElementType::F32;
    let sizes = PoolSizes { in_features: WIDTH, out_features: WIDTH, experts: SET, rank_capacity, element };
    let mut pool = Pool::new(sizes).unwrap();
    pool.set_attention(&router).unwrap();
    loras.iter().for_each(|lora| pool.add(lora).map(drop).unwrap());
    let layer = MoeLora::<Cpu>::new(&cpu, pool, Router::RankAttention { top_k: SET }).unwrap();
    let mut published = Published::new(&cpu, &loras, &router);
    // Every token attends over all of the set.
    let mut ids: Vec<i32> = (0..TOKENS * SET).map(|n| (n % SET) as i32).collect();
    let mut weights = vec![0f32; ids.len()];
    let mut workspace = vec![0f32; layer.workspace_len(TOKENS)];
    // h, weights, the queries, and the plan: ids, sorted routes, offsets.
    let bytes = 4 * (workspace.len() + 3 * ids.len() + TOKENS * RANK + SET + 1);
    let rows = Rows { tokens: TOKENS, x_stride: WIDTH, y_stride: WIDTH };
    let (mut pairs, mut y) = (Vec::new(), [vec![], vec![]]);
    for run in 0..=RUNS {
        y = [vec![0f32; TOKENS * WIDTH], vec![0f32; TOKENS * WIDTH]];
        let routing = &mut Routing::new(&mut ids, &mut weights);
        let ours = time(|| {
            layer.forward_delta(&rows, &x, routing, &mut workspace, &mut y[0]).unwrap();
        });
        let theirs = time(|| published.run(&cpu, &x, &mut y[1]));
        // The first pair warms up.
        if run > 0 {
            pairs.push([ours, theirs]);
        }
    }
    let norm = |v: &mut dyn Iterator<Item = f32>| v.map(|v| f64::from(v) * f64::from(v)).sum::<f64>().sqrt();
    let error = norm(&mut y[0].iter().zip(&y[1]).map(|(a, b)| a - b)) / norm(&mut y[1].iter().copied());
    assert!(error < 1e-5, "both are the same sum: relative error {error:.1e}");
    let spread = weights.iter().copied().fold(0f32, f32::max) * SET as f32;
    assert!(spread > 1.5, "the softmax is not flat: largest weight {spread} times the mean");
    let of = |value: &dyn Fn(&[Time; 2]) -> f64| median(pairs.iter().map(value));
    let [ours, theirs] = [0, 1].map(|i| of(&|pair| 1e3 * pair[i].wall).middle);
    let wall = of(&|pair| pair[1].wall / pair[0].wall);
    let on_cpu = of(&|pair| pair[1].cpu / pair[0].cpu).middle;
    let memory = published.bytes() as f64 / bytes as f64;
    println!(
        "attend/cpu: {SET} adapters, {TOKENS} tokens, {WIDTH} x {WIDTH}, rank {RANK}, f32, {RUNS} alternating pairs: {ours:.1} \
         ms and {:.2} MB, published {theirs:.1} ms and {:.1} MB: {:.1} x less time [{:.1}, {:.1}] ({on_cpu:.1} x on \
         processors), {memory:.0} x less memory, error {error:.1e}",
        bytes as f64 / 1e6,
        published.bytes() as f64 / 1e6,
        wall.middle,
        wall.low,
        wall.high,
    );
    assert!(memory >= LESS_MEMORY, "{memory} times less memory, promised {LESS_MEMORY}");
    assert!(wall.middle >= LESS_TIME, "{} times less time, promised {LESS_TIME}", wall.middle);
}
