//! What is timed: sizes, work, and the calls.

use molora::adapter::{Lora, slots::PoolSizes};
use molora::device::Cpu;
use molora::device::cpu::{Pool, Weight};
use molora::element::ElementType;
use molora::ops::{Output, base, expand, fused, grouped, plan, shrink};

/// Bytes of all copies of a weight together: far beyond any cache.
const COPIES: usize = 640 << 20;

/// Experts, choices a token, rank.
type Mixture = (usize, usize, usize);

/// That of the cases without one of their own.
const MIXTURE: Mixture = (8, 2, 16);

/// Base experts of the grouped cases.
const GROUPS: usize = 16;

#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Kind {
    Base,
    /// Base and experts, beside base alone.
    Fused,
    /// The experts alone, added to y.
    Delta,
    /// A product of base experts without adapters.
    Grouped,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Case {
    kind: Kind,
    tokens: usize,
    inputs: usize,
    outputs: usize,
    mixture: Mixture,
}

/// Base and experts where the experts' bytes count.
const LAYERS: [(usize, usize, usize, Mixture); 4] = [
    (64, 2048, 2048, (64, 4, 16)),
    (64, 2048, 2048, (64, 1, 16)),
    (512, 2048, 2048, (64, 4, 64)),
    (64, 4096, 4096, (64, 1, 16)),
];

/// Of the experts alone.
const DELTAS: [(usize, usize, usize, Mixture); 15] = [
    (1, 2048, 2048, (8, 2, 16)),
    (8, 2048, 2048, (8, 2, 16)),
    (64, 2048, 2048, (8, 2, 16)),
    (512, 2048, 2048, (8, 2, 16)),
    (2048, 2048, 2048, (8, 2, 8)),
    (64, 2048, 2048, (64, 4, 16)),
    (512, 2048, 2048, (64, 4, 64)),
    (1, 4096, 4096, (16, 2, 16)),
    (64, 4096, 4096, (16, 4, 64)),
    (512, 4096, 4096, (8, 2, 8)),
    (8, 4096, 11008, (8, 2, 16)),
    (64, 4096, 11008, (16, 4, 16)),
    (64, 2048, 2048, (64, 1, 16)),
    (64, 4096, 4096, (64, 1, 16)),
    (2048, 4096, 4096, (8, 2, 16)),
];

pub fn all() -> Vec<Case> {
    let mut cases = Vec::new();
    for (inputs, outputs) in [(4096, 4096), (2048, 5504), (2048, 2048)] {
        for tokens in [1, 8, 64, 512, 2048] {
            // The fused cases time the base too.
            let kind = if outputs == 2048 || tokens == 2048 { Kind::Base } else { Kind::Fused };
            cases.push(Case { kind, tokens, inputs, outputs, mixture: MIXTURE });
        }
    }
    for tokens in [64, 128, 256, 512] {
        cases.push(Case { kind: Kind::Grouped, tokens, inputs: 2048, outputs: 1408, mixture: MIXTURE });
    }
    let with = |kind, list: &[_]| {
        let case = |&(tokens, inputs, outputs, mixture)| Case { kind, tokens, inputs, outputs, mixture };
        list.iter().map(case).collect::<Vec<_>>()
    };
    cases.extend(with(Kind::Fused, &LAYERS));
    cases.extend(with(Kind::Delta, &DELTAS));
    cases
}

impl Case {
    pub fn name(&self) -> String {
        let Case { tokens, inputs, outputs, mixture: (experts, top_k, rank), .. } = self;
        match self.kind {
            Kind::Base => format!("base/t{tokens}_i{inputs}_o{outputs}"),
            Kind::Fused => format!("fused/t{tokens}_i{inputs}_o{outputs}_e{experts}_k{top_k}_r{rank}"),
            Kind::Delta => format!("delta/t{tokens}_i{inputs}_o{outputs}_e{experts}_k{top_k}_r{rank}"),
            Kind::Grouped => format!("grouped/t{tokens}_i{inputs}_o{outputs}_e{GROUPS}_k{top_k}"),
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
        match self.kind {
            Kind::Grouped => {
                let rows = t * self.mixture.1 as f64;
                return (2.0 * rows * i * o, 4.0 * (GROUPS as f64 * i * o + t * i + rows * o));
            }
            Kind::Delta => {
                let (flops, bytes) = self.experts_work();
                // y is read and written.
                return (flops, bytes + 4.0 * (t * i + 2.0 * t * o));
            }
            Kind::Base | Kind::Fused => {}
        }
        (2.0 * t * i * o, 4.0 * (i * o + t * i + t * o))
    }

    /// Of the layer: the routes' ranks, and the factors of the experts that are used, once each.
    pub fn layer_work(&self) -> Option<(f64, f64)> {
        let ((flops, bytes), (more_flops, more_bytes)) = (self.work(), self.experts_work());
        self.has_pair().then_some((flops + more_flops, bytes + more_bytes))
    }

    fn experts_work(&self) -> (f64, f64) {
        let (experts, top_k, rank) = self.mixture;
        let used = ids(self.tokens, experts, top_k).iter().collect::<std::collections::BTreeSet<_>>().len();
        let wide = (self.inputs + self.outputs) as f64;
        (2.0 * (self.tokens * top_k * rank) as f64 * wide, 4.0 * wide * (used * rank) as f64)
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
        let Case { inputs, outputs, mixture: (experts, _, rank), .. } = *case;
        let rows = case.groups() * outputs;
        let cpu = Cpu::new().expect("a CPU");
        let alone = case.kind == Kind::Delta;
        let bytes = 4 * if alone { experts * rank * (inputs + outputs) } else { rows * inputs };
        let copies = (COPIES / bytes).clamp(2, 128);
        let weight = if alone { Vec::new() } else { values(1, rows * inputs) };
        let pack = |_| cpu.pack(rows, inputs, &weight).expect("it fits");
        let weights = (0..if alone { 0 } else { copies }).map(pack).collect();
        let lora =
            Lora::new(inputs, outputs, rank, 0.5, &values(2, rank * inputs), &values(3, rank * outputs));
        let lora = lora.expect("it fits");
        let pool = || {
            let rank_capacity = experts * rank;
            let (in_features, out_features, element) = (inputs, outputs, ElementType::F32);
            let sizes = PoolSizes { in_features, out_features, experts, rank_capacity, element };
            let mut pool = Pool::new(sizes).expect("sizes");
            (0..experts).for_each(|slot| pool.put(slot, &lora).expect("room"));
            pool
        };
        let pools = (0..copies).map(|_| pool()).collect();
        let (x, y, h, ids, shares) = Default::default();
        Self { case: *case, cpu, weights, pools, calls: 0, x, y, h, ids, shares }
    }

    pub fn fits(&self, case: &Case) -> bool {
        let shape =
            |case: &Case| (case.inputs, case.outputs, case.groups(), case.kind == Kind::Delta, case.mixture);
        shape(&self.case) == shape(case)
    }

    pub fn for_case(self, case: &Case) -> Self {
        let (experts, top_k, rank) = case.mixture;
        let routes = case.tokens * top_k;
        let rows = if case.kind == Kind::Grouped { routes } else { case.tokens };
        Self {
            case: *case,
            x: values(4, case.tokens * case.inputs),
            y: vec![0.0; rows * case.outputs],
            h: vec![0.0; routes * rank],
            ids: ids(case.tokens, if case.kind == Kind::Grouped { GROUPS } else { experts }, top_k),
            shares: vec![0.5; routes],
            ..self
        }
    }

    /// The base product, or the grouped one.
    pub fn plain(&mut self) {
        let Case { tokens, inputs, outputs, .. } = self.case;
        if self.case.kind == Kind::Delta {
            return self.delta();
        }
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
        let Case { tokens, inputs, outputs, mixture: (_, top_k, rank), .. } = self.case;
        let sizes = grouped::Sizes {
            tokens,
            top_k,
            experts: GROUPS,
            in_features: inputs,
            out_features: outputs,
            x_stride: inputs,
            h_stride: rank,
            y_stride: outputs,
            x_per_route: false,
            rows: grouped::Rows::Plain,
        };
        let markers = Pool::markers(GROUPS).expect("sizes");
        let plan_sizes = plan::Sizes { tokens, top_k, experts: GROUPS };
        let plan = self.cpu.plan(&plan_sizes, &markers, &self.ids).expect("live ids");
        let (weight, pool) = (&self.weights[at], &self.pools[at]);
        let none = plan::Sizes { experts: pool.slots().sizes().experts, ..plan_sizes };
        let none = self.cpu.plan(&none, pool, &vec![-1; tokens * top_k]).expect("no ids");
        let done =
            self.cpu.grouped(&sizes, &plan, pool, &none, weight, &self.x, &self.h, &self.shares, &mut self.y);
        done.expect("it fits");
    }

    /// Plan, shrink, expand.
    fn delta(&mut self) {
        let Case { tokens, inputs, outputs, mixture: (experts, top_k, rank), .. } = self.case;
        self.calls += 1;
        let (pool, cpu) = (&self.pools[self.calls % self.pools.len()], &self.cpu);
        let plan = cpu.plan(&plan::Sizes { tokens, top_k, experts }, pool, &self.ids).expect("live ids");
        let output = Output::Sum;
        let shrink =
            shrink::Sizes { tokens, top_k, in_features: inputs, x_stride: inputs, h_stride: rank, output };
        cpu.shrink(&shrink, &plan, pool, &self.x, &self.shares, &mut self.h).expect("it fits");
        let sizes = expand::Sizes {
            tokens,
            top_k,
            out_features: outputs,
            h_stride: rank,
            y_stride: outputs,
            output,
            accumulate: true,
        };
        cpu.expand(&sizes, &plan, pool, &self.h, &self.shares, &mut self.y).expect("it fits");
    }

    /// Plan, shrink and the fused product.
    pub fn layer(&mut self) {
        let Case { tokens, inputs, outputs, mixture: (experts, top_k, rank), .. } = self.case;
        self.calls += 1;
        let at = self.calls % self.weights.len();
        let (weight, pool, cpu) = (&self.weights[at], &self.pools[at], &self.cpu);
        let plan = plan::Sizes { tokens, top_k, experts };
        let plan = cpu.plan(&plan, pool, &self.ids).expect("live ids");
        let output = Output::Sum;
        let shrink =
            shrink::Sizes { tokens, top_k, in_features: inputs, x_stride: inputs, h_stride: rank, output };
        cpu.shrink(&shrink, &plan, pool, &self.x, &self.shares, &mut self.h).expect("it fits");
        let sizes = fused::Sizes {
            tokens,
            top_k,
            in_features: inputs,
            out_features: outputs,
            x_stride: inputs,
            y_stride: outputs,
            h_stride: rank,
            output,
        };
        let (x, h, shares, y) = (&self.x, &self.h, &self.shares, &mut self.y);
        cpu.fused_sparse(&sizes, &plan, pool, weight, None, x, h, shares, y).expect("it fits");
    }
}

/// Different experts for a token, uniformly; with one a token and as many tokens as experts, each its own.
fn ids(tokens: usize, experts: usize, top_k: usize) -> Vec<i32> {
    if top_k == 1 && tokens <= experts {
        return (0..tokens).map(|t| ((t * 37) % experts) as i32).collect();
    }
    let mut random = random(5);
    let mut chosen = || {
        let mut own: Vec<i32> = Vec::new();
        while own.len() < top_k {
            let id = (random() as usize % experts) as i32;
            if !own.contains(&id) {
                own.push(id);
            }
        }
        own
    };
    (0..tokens).flat_map(|_| chosen()).collect()
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
