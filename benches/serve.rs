//! One timed call after another for a program of another language that alternates with us: `benches/peers/route.py`.
//!
//! A line in: `route TOKENS EXPERTS IN_FEATURES`. A line out: the seconds of one call, PHATGOOSE's router (standardised, top 2,
//! softmax of the selected), f32, all threads. Input and weights rotate through copies.

use molora::adapter::{LinearRouter, Prototypes};
use molora::device::Cpu;
use molora::ops::route::{CpuRouter, Rule, Sizes, Weighting};
use std::collections::HashMap;
use std::time::Instant;

const COPIES: usize = 3;
const HELP: &str =
    "reads lines `route TOKENS EXPERTS IN_FEATURES`, answers seconds; see benches/peers/route.py";

struct Ready {
    sizes: Sizes,
    routers: Vec<CpuRouter>,
    xs: Vec<Vec<f32>>,
    ids: Vec<i32>,
    weights: Vec<f32>,
    calls: usize,
}

impl Ready {
    fn new(cpu: &Cpu, tokens: usize, experts: usize, in_features: usize) -> Self {
        let how = Prototypes::phatgoose(in_features);
        let router = |seed| {
            let v = values(seed, experts * in_features);
            let linear = LinearRouter::prototypes(experts, in_features, &v, how).expect("sizes");
            CpuRouter::new(cpu, linear).expect("sizes")
        };
        let rule = Rule::top_k(2, Weighting::SoftmaxSelected);
        Self {
            sizes: Sizes { tokens, in_features, x_stride: in_features, experts, rule },
            routers: (0..COPIES).map(|seed| router(seed as u32)).collect(),
            xs: (0..COPIES).map(|seed| values(9 + seed as u32, tokens * in_features)).collect(),
            ids: vec![0; 2 * tokens],
            weights: vec![0.0; 2 * tokens],
            calls: 0,
        }
    }

    fn call(&mut self, cpu: &Cpu) -> f64 {
        self.calls += 1;
        let at = self.calls % COPIES;
        let start = Instant::now();
        let (ids, weights) = (&mut self.ids, &mut self.weights);
        cpu.route(&self.sizes, &self.routers[at], &self.xs[at], None, ids, weights).expect("finite scores");
        start.elapsed().as_secs_f64()
    }
}

fn main() {
    if std::env::args().any(|arg| arg == "--help") {
        return println!("{HELP}");
    }
    let cpu = Cpu::new().expect("a CPU");
    let mut held: HashMap<(usize, usize, usize), Ready> = HashMap::new();
    for line in std::io::stdin().lines().map_while(Result::ok) {
        let numbers: Vec<usize> = line.split(' ').skip(1).filter_map(|n| n.parse().ok()).collect();
        match (line.split(' ').next(), &numbers[..]) {
            (Some("route"), &[tokens, experts, inputs]) if tokens * experts * inputs > 0 => {
                let key = (tokens, experts, inputs);
                let ready = held.entry(key).or_insert_with(|| Ready::new(&cpu, tokens, experts, inputs));
                println!("{:e}", ready.call(&cpu));
            }
            _ => println!("{HELP}"),
        }
    }
}

fn values(seed: u32, len: usize) -> Vec<f32> {
    let mut s = seed.wrapping_mul(2_654_435_761) | 1;
    let mut next = || {
        s ^= s << 13;
        s ^= s >> 17;
        s ^= s << 5;
        (s >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..len).map(|_| next()).collect()
}
