//! What is timed: sizes, work, and the calls.

use molora::adapter::{Lora, slots::PoolSizes};
use molora::device::Cpu;
use molora::device::cpu::{Pool, Weight};
use molora::element::ElementType;
use molora::ops::{Output, base, fused, grouped, plan, shrink};

/// Bytes of all copies of a weight together: far beyond any cache.
const COPIES: usize = 640 << 20;

const EXPERTS: usize = 8;
const TOP_K: usize = 2;
const RANK: usize = 16;

/// Base experts of the grouped cases.
const GROUPS: usize = 16;

#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Kind {
    Base,
    /// Base and experts, beside base alone.
    Fused,
    /// A product of base experts without adapters.
    Grouped,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Case {
    kind: Kind,
    tokens: usize,
    inputs: usize,
    outputs: usize,
}

pub fn all() -> Vec<Case> {
    let mut cases = Vec::new();
    for (inputs, outputs) in [(4096, 4096), (2048, 5504), (2048, 2048)] {
        for tokens in [1, 8, 64, 512, 2048] {
            // The fused cases time the base too.
            let kind = if outputs == 2048 || tokens == 2048 { Kind::Base } else { Kind::Fused };
            cases.push(Case { kind, tokens, inputs, outputs });
        }
    }
    for tokens in [64, 128, 256, 512] {
        cases.push(Case { kind: Kind::Grouped, tokens, inputs: 2048, outputs: 1408 });
    }
    cases
}

impl Case {
    pub fn name(&self) -> String {
        let Case { tokens, inputs, outputs, .. } = self;
        match self.kind {
            Kind::Base => format!("base/t{tokens}_i{inputs}_o{outputs}"),
            Kind::Fused => format!("fused/t{tokens}_i{inputs}_o{outputs}_e{EXPERTS}_k{TOP_K}_r{RANK}"),
            Kind::Grouped => format!("grouped/t{tokens}_i{inputs}_o{outputs}_e{GROUPS}_k{TOP_K}"),
        }
    }

    pub fn has_pair(&self) -> bool {
        self.kind == Kind::Fused
    }

    fn groups(&self) -> usize {
        if self.kind == Kind::Grouped { GROUPS } else { 1 }
    }

    /// Operations and least bytes of the plain product; every base expert is used.
    pub fn work(&self) -> (f64, f64) {
        let (t, i, o) = (self.tokens as f64, self.inputs as f64, self.outputs as f64);
        if self.kind == Kind::Grouped {
            let rows = t * TOP_K as f64;
            return (2.0 * rows * i * o, 4.0 * (GROUPS as f64 * i * o + t * i + rows * o));
        }
        (2.0 * t * i * o, 4.0 * (i * o + t * i + t * o))
    }

    /// Of the layer: the routes' ranks, and the factors of the experts that are used, once each.
    pub fn layer_work(&self) -> Option<(f64, f64)> {
        let used = ids(self.tokens, EXPERTS).iter().collect::<std::collections::BTreeSet<_>>().len();
        let (flops, bytes) = self.work();
        let wide = (self.inputs + self.outputs) as f64;
        let ranks = (self.tokens * TOP_K * RANK) as f64;
        self.has_pair().then_some((flops + 2.0 * ranks * wide, bytes + 4.0 * wide * (used * RANK) as f64))
    }
}

/// Weights, rows and adapters of cases of one shape.
pub struct Ready {
    case: Case,
    cpu: Cpu,
    weights: Vec<Weight<f32>>,
    pools: Vec<Pool>,
    calls: usize,
    x: Vec<f32>,
    y: Vec<f32>,
    h: Vec<f32>,
    ids: Vec<i32>,
    shares: Vec<f32>,
}

impl Ready {
    pub fn new(case: &Case) -> Self {
        let Case { inputs, outputs, .. } = *case;
        let rows = case.groups() * outputs;
        let cpu = Cpu::new().expect("a CPU");
        let copies = (COPIES / (rows * inputs * 4)).max(2);
        let weight = values(1, rows * inputs);
        let weights = (0..copies).map(|_| cpu.pack(rows, inputs, &weight).expect("it fits")).collect();
        let lora =
            Lora::new(inputs, outputs, RANK, 0.5, &values(2, RANK * inputs), &values(3, RANK * outputs));
        let lora = lora.expect("it fits");
        let pool = || {
            let (experts, rank_capacity) = (EXPERTS, EXPERTS * RANK);
            let (in_features, out_features, element) = (inputs, outputs, ElementType::F32);
            let sizes = PoolSizes { in_features, out_features, experts, rank_capacity, element };
            let mut pool = Pool::new(sizes).expect("sizes");
            (0..EXPERTS).for_each(|slot| pool.put(slot, &lora).expect("room"));
            pool
        };
        let pools = (0..copies).map(|_| pool()).collect();
        let (x, y, h, ids, shares) = Default::default();
        Self { case: *case, cpu, weights, pools, calls: 0, x, y, h, ids, shares }
    }

    pub fn fits(&self, case: &Case) -> bool {
        (self.case.inputs, self.case.outputs, self.case.groups())
            == (case.inputs, case.outputs, case.groups())
    }

    pub fn for_case(self, case: &Case) -> Self {
        let routes = case.tokens * TOP_K;
        let rows = if case.kind == Kind::Grouped { routes } else { case.tokens };
        Self {
            case: *case,
            x: values(4, case.tokens * case.inputs),
            y: vec![0.0; rows * case.outputs],
            h: vec![0.0; routes * RANK],
            ids: ids(case.tokens, if case.kind == Kind::Grouped { GROUPS } else { EXPERTS }),
            shares: vec![0.5; routes],
            ..self
        }
    }

    /// The base product, or the grouped one.
    pub fn plain(&mut self) {
        let Case { tokens, inputs, outputs, .. } = self.case;
        self.calls += 1;
        let at = self.calls % self.weights.len();
        let weight = &self.weights[at];
        if self.case.kind == Kind::Grouped {
            return self.grouped(at);
        }
        let sizes = base::Sizes {
            tokens,
            in_features: inputs,
            out_features: outputs,
            x_stride: inputs,
            y_stride: outputs,
        };
        self.cpu.base(&sizes, weight, None, &self.x, &mut self.y).expect("it fits");
    }

    fn grouped(&mut self, at: usize) {
        let Case { tokens, inputs, outputs, .. } = self.case;
        let sizes = grouped::Sizes {
            tokens,
            top_k: TOP_K,
            experts: GROUPS,
            in_features: inputs,
            out_features: outputs,
            x_stride: inputs,
            h_stride: RANK,
            y_stride: outputs,
            x_per_route: false,
            rows: grouped::Rows::Plain,
        };
        let markers = Pool::markers(GROUPS).expect("sizes");
        let plan = plan::Sizes { tokens, top_k: TOP_K, experts: GROUPS };
        let plan = self.cpu.plan(&plan, &markers, &self.ids).expect("live ids");
        let none = vec![-1; tokens * TOP_K];
        let (weight, pool) = (&self.weights[at], &self.pools[at]);
        let done =
            self.cpu.grouped(&sizes, &plan, pool, &none, weight, &self.x, &self.h, &self.shares, &mut self.y);
        done.expect("it fits");
    }

    /// Plan, shrink and the fused product.
    pub fn layer(&mut self) {
        let Case { tokens, inputs, outputs, .. } = self.case;
        self.calls += 1;
        let at = self.calls % self.weights.len();
        let (weight, pool, cpu) = (&self.weights[at], &self.pools[at], &self.cpu);
        let plan = plan::Sizes { tokens, top_k: TOP_K, experts: EXPERTS };
        let plan = cpu.plan(&plan, pool, &self.ids).expect("live ids");
        let (top_k, output) = (TOP_K, Output::Sum);
        let shrink =
            shrink::Sizes { tokens, top_k, in_features: inputs, x_stride: inputs, h_stride: RANK, output };
        cpu.shrink(&shrink, &plan, pool, &self.x, &self.shares, &mut self.h).expect("it fits");
        let sizes = fused::Sizes {
            tokens,
            top_k,
            in_features: inputs,
            out_features: outputs,
            x_stride: inputs,
            y_stride: outputs,
            h_stride: RANK,
            output,
        };
        let (x, h, shares, y) = (&self.x, &self.h, &self.shares, &mut self.y);
        cpu.fused_sparse(&sizes, &plan, pool, weight, None, x, h, shares, y).expect("it fits");
    }
}

/// Two different experts a token, uniformly.
fn ids(tokens: usize, experts: usize) -> Vec<i32> {
    let mut random = random(5);
    let mut pair = || {
        let first = random() as usize % experts;
        let second = (first + 1 + random() as usize % (experts - 1)) % experts;
        [first as i32, second as i32]
    };
    (0..tokens).flat_map(|_| pair()).collect()
}

fn values(seed: u32, len: usize) -> Vec<f32> {
    let mut random = random(seed);
    (0..len).map(|_| random() as f32 / (1 << 23) as f32 - 1.0).collect()
}

/// Words below 2^24.
fn random(seed: u32) -> impl FnMut() -> u32 {
    let mut s = seed.wrapping_mul(2_654_435_761) | 1;
    move || {
        s ^= s << 13;
        s ^= s >> 17;
        s ^= s << 5;
        s >> 8
    }
}
