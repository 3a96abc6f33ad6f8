//! The numbers of a case: the same on every machine, rounded to the case's element types once, before the
//! definition or any device sees them.

use crate::case::{Case, Op, Scores};
use crate::grouped;
use crate::guarded::{Guarded, Tensor};
use crate::rng::Rng;
use crate::routing::Routing;
use half::{bf16, f16};
use molora::adapter::Lora;
use molora::adapter::{LinearRouter, Prototypes};
use molora::element::ElementType;
use molora::error::Result;
use molora::layer::Rows;
use molora::ops::route::AllowLists;
use molora::ops::{Output, attend, base, expand, fused, plan, route, shrink};

/// One expert, or one slice of it; values rounded to the case's adapter elements and widened again.
#[derive(Debug, Clone)]
pub struct ExpertValues {
    /// Rows of `lora_a`; 0 where the expert leaves the slice alone.
    pub rank: usize,
    /// Factor of B A.
    pub scaling: f32,
    /// `[rank, in_features]`.
    pub lora_a: Vec<f32>,
    /// `[out_features, rank]`, of a slice its own columns.
    pub lora_b: Vec<f32>,
}

/// All inputs of a case; those that its operation does not read are empty.
#[derive(Debug, Clone)]
pub struct Inputs {
    /// The problem.
    pub case: Case,
    /// `[tokens, in_features]`; grouped: a row for every route where the case says so.
    pub x: Tensor,
    /// `[tokens, top_k]`; grouped: base experts.
    pub topk_ids: Vec<i32>,
    /// Grouped, `[tokens, top_k]`: slots of the pool, -1 where a route has no adapter.
    pub lora_ids: Vec<i32>,
    /// `[tokens, top_k]`.
    pub topk_weights: Vec<f32>,
    /// All slots of the pool: `[slices, experts]`.
    pub experts: Vec<ExpertValues>,
    /// Input of attend: the router adapter.
    pub attention: ExpertValues,
    /// Input of expand and attend; NaN where no route or no rank is.
    pub h: Guarded<f32>,
    /// `[out_features, in_features]`; grouped: base expert after base expert.
    pub weight: Tensor,
    /// `[1, out_features]`.
    pub bias: Option<Tensor>,
    /// Input of route.
    pub router: LinearRouter,
    /// Input of route.
    pub allow: Option<AllowLists>,
    /// What y holds before the call: known values where the case adds, NaN where it overwrites.
    pub y: Tensor,
}

impl Inputs {
    /// The numbers of a case.
    pub fn new(case: &Case) -> Self {
        let uses = case.op.uses();
        let rng = |name: &str| Rng::named(name, case.seed);
        let mut values = rng("x");
        let columns = if uses.in_features { case.in_features } else { 0 };
        let integers = case.op == Op::Route && case.routing == Routing::Ties;
        let x = Tensor::input(case.x, (grouped::x_rows(case), columns, case.stride(columns)), |_, _| {
            match integers {
                true => values.below(4) as f32 - 1.0,
                false => values.value(1.0),
            }
        });
        let topk_ids = match case.op {
            Op::Route | Op::Base => Vec::new(),
            _ => topk_ids(case, &mut rng("ids")),
        };
        let mut weights = rng("weights");
        let topk_weights = topk_ids.iter().map(|_| 0.05 + weights.unit()).collect();
        let experts = match uses.adapters {
            true => experts(case, &mut rng("experts")),
            false => Vec::new(),
        };
        let attention = attention(case, &mut rng("attention"));
        let lora_ids = match case.op {
            Op::Grouped => grouped::lora_ids(case, &topk_ids, &mut rng("adapters")),
            _ => Vec::new(),
        };
        let frozen = case.op.has_base();
        let (rows, columns) = weight_shape(case);
        let (mut values, scale) = (rng("weight"), 1.0 / (columns.max(1) as f32).sqrt());
        let weight = Tensor::input(case.x, (rows, columns, columns), |_, _| values.value(scale));
        let mut values = rng("bias");
        let bias = (frozen && case.bias).then(|| {
            Tensor::input(case.x, (1, case.out_features, case.out_features), |_, _| values.value(1.0))
        });
        let y = match (uses.out_features, case.output.y_rows(case.tokens, case.top_k)) {
            (true, _) if case.op == Op::Grouped => grouped::start_of_y(case),
            (true, rows) if case.op != Op::Base => start_of_y(case, rows, &mut rng("y")),
            (true, _) => start_of_y(case, case.tokens, &mut rng("y")),
            (false, _) => start_of_y(case, 0, &mut rng("y")),
        };
        let h = h(case, &topk_ids, &mut rng("h"));
        let router = router(case, &mut rng("router"));
        let allow = case.scoring.masked.then(|| allow(case, &mut rng("allow")));
        Self {
            case: case.clone(),
            x,
            topk_ids,
            lora_ids,
            topk_weights,
            experts,
            attention,
            h,
            weight,
            bias,
            router,
            allow,
            y,
        }
    }

    /// Rows and columns of the weight.
    pub fn weight_shape(&self) -> (usize, usize) {
        weight_shape(&self.case)
    }

    /// Elements from one row of h to the next.
    pub fn h_stride(&self) -> usize {
        self.case.max_rank() + self.case.padding
    }

    /// An h that nothing was written to.
    pub fn empty_h(&self) -> Guarded<f32> {
        let rows = self.case.output.h_rows(self.case.tokens, self.case.top_k);
        Guarded::output((rows, self.case.max_rank(), self.h_stride()), |_, _| f32::NAN)
    }

    /// The sizes of the case's plan.
    pub fn plan_sizes(&self) -> plan::Sizes {
        let Case { tokens, top_k, .. } = self.case;
        plan::Sizes { tokens, top_k, experts: self.case.slots() }
    }

    /// The sizes of the case's shrink.
    pub fn shrink_sizes(&self) -> shrink::Sizes {
        let Case { tokens, top_k, in_features, output, .. } = self.case;
        let (x_stride, h_stride) = (self.case.stride(in_features), self.h_stride());
        shrink::Sizes { tokens, top_k, in_features, x_stride, h_stride, output }
    }

    /// The sizes of the case's attention.
    pub fn attend_sizes(&self) -> attend::Sizes {
        let shrink::Sizes { tokens, top_k, in_features, x_stride, h_stride, .. } = self.shrink_sizes();
        attend::Sizes { tokens, top_k, in_features, x_stride, h_stride }
    }

    /// The case's router adapter.
    pub fn attention(&self) -> Result<Lora> {
        self.lora(&self.attention, self.case.out_features)
    }

    /// Weights that nothing was written to.
    pub fn empty_weights(&self) -> Guarded<f32> {
        let Case { tokens, top_k, .. } = self.case;
        Guarded::output((tokens, top_k, top_k), |_, _| f32::NAN)
    }

    /// The sizes of the case's expand.
    pub fn expand_sizes(&self) -> expand::Sizes {
        let Case { tokens, top_k, out_features, output, accumulate, .. } = self.case;
        let (h_stride, y_stride) = (self.h_stride(), self.case.stride(out_features));
        expand::Sizes { tokens, top_k, out_features, h_stride, y_stride, output, accumulate }
    }

    /// The sizes of the case's base product.
    pub fn base_sizes(&self) -> base::Sizes {
        let Case { tokens, in_features, out_features, .. } = self.case;
        let (x_stride, y_stride) = (self.case.stride(in_features), self.case.stride(out_features));
        base::Sizes { tokens, in_features, out_features, x_stride, y_stride }
    }

    /// The sizes of the case's fused layer.
    pub fn fused_sizes(&self) -> fused::Sizes {
        let Case { top_k, output, .. } = self.case;
        let base::Sizes { tokens, in_features, out_features, x_stride, y_stride } = self.base_sizes();
        let h_stride = self.h_stride();
        fused::Sizes { tokens, top_k, in_features, out_features, x_stride, y_stride, h_stride, output }
    }

    /// The rows of the case's layer.
    pub fn layer_rows(&self) -> Rows {
        let base::Sizes { tokens, x_stride, y_stride, .. } = self.base_sizes();
        Rows { tokens, x_stride, y_stride }
    }

    /// The sizes of the case's routing.
    pub fn route_sizes(&self) -> route::Sizes {
        let Case { tokens, experts, in_features, .. } = self.case;
        let x_stride = self.case.stride(in_features);
        route::Sizes { tokens, in_features, x_stride, experts, rule: self.case.rule() }
    }

    /// One expert as adapters of the case's elements, one for each slice that it changes.
    pub fn loras(&self, expert: usize) -> Result<Vec<Option<Lora>>> {
        let widths = self.case.slice_widths();
        let part = |(slice, &width): (usize, &usize)| {
            let values = &self.experts[slice * self.case.slots() + expert];
            (values.rank > 0).then(|| self.lora(values, width)).transpose()
        };
        widths.iter().enumerate().map(part).collect()
    }

    fn lora(&self, e: &ExpertValues, out_features: usize) -> Result<Lora> {
        let case = &self.case;
        let sizes = (case.in_features, out_features, e.rank);
        macro_rules! lora {
            ($element:ty, $from:expr) => {{
                let round = |v: &[f32]| v.iter().map(|&v| $from(v)).collect::<Vec<$element>>();
                Lora::new(sizes.0, sizes.1, sizes.2, e.scaling, &round(&e.lora_a), &round(&e.lora_b))
            }};
        }
        match case.adapters {
            ElementType::F32 => Lora::new(sizes.0, sizes.1, sizes.2, e.scaling, &e.lora_a, &e.lora_b),
            ElementType::F16 => lora!(f16, f16::from_f32),
            ElementType::Bf16 => lora!(bf16, bf16::from_f32),
        }
    }
}

fn weight_shape(case: &Case) -> (usize, usize) {
    match case.op {
        Op::Grouped => (case.group.experts * case.out_features, case.in_features),
        op if op.has_base() => (case.out_features, case.in_features),
        _ => (0, 0),
    }
}

fn topk_ids(case: &Case, rng: &mut Rng) -> Vec<i32> {
    let grouped = case.op == Op::Grouped;
    let mut ids = case.routing.ids(
        case.tokens,
        case.top_k,
        if grouped { case.group.experts } else { case.experts },
        rng,
    );
    if case.output == Output::RankSum {
        // One rank within a token: every token keeps to the experts of one place in the pattern.
        let pattern = case.ranks.len();
        for (n, id) in ids.iter_mut().enumerate().filter(|(_, id)| **id >= 0) {
            let same = *id as usize / pattern * pattern + n / case.top_k % pattern;
            *id = if same < case.experts { same } else { n / case.top_k % pattern % case.experts } as i32;
        }
    }
    ids
}

fn rounded(case: &Case, v: f32) -> f32 {
    match case.adapters {
        ElementType::F32 => v,
        ElementType::F16 => f16::from_f32(v).to_f32(),
        ElementType::Bf16 => bf16::from_f32(v).to_f32(),
    }
}

/// The router adapter: scores of a few units either way, so that the softmax is neither flat nor a step.
fn attention(case: &Case, rng: &mut Rng) -> ExpertValues {
    let rank = if case.op == Op::Attend { case.router_rank } else { 0 };
    let mut values = |count: usize, scale: f32| (0..count).map(|_| rounded(case, rng.value(scale))).collect();
    let lora_a = values(rank * case.in_features, 4.0 / (case.in_features.max(1) as f32).sqrt());
    let lora_b = values(rank * case.out_features, 4.0 / (case.out_features as f32).sqrt());
    ExpertValues { rank, scaling: 3.0, lora_a, lora_b }
}

fn experts(case: &Case, rng: &mut Rng) -> Vec<ExpertValues> {
    let round = |v: f32| rounded(case, v);
    let mut values = |count: usize, features: usize| -> Vec<f32> {
        // Products of `features` terms stay near 1, far from the end of f16.
        let scale = 1.0 / (features as f32).sqrt();
        (0..count).map(|_| round(rng.value(scale))).collect()
    };
    let mut experts = Vec::with_capacity(case.slices() * case.slots());
    for (slice, width) in case.slice_widths().into_iter().enumerate() {
        for e in 0..case.slots() {
            let rank = case.part_rank(e, slice);
            let lora_a = values(rank * case.in_features, case.in_features);
            let lora_b = values(rank * width, rank.max(1));
            let scaling = [1.0, 2.0, 0.5, 1.25][(e + slice) % 4];
            experts.push(ExpertValues { rank, scaling, lora_a, lora_b });
        }
    }
    experts
}

fn h(case: &Case, topk_ids: &[i32], rng: &mut Rng) -> Guarded<f32> {
    let rows = if case.op.reads_h() { case.output.h_rows(case.tokens, case.top_k) } else { 0 };
    let width = case.max_rank();
    // The rank of a row: its route's, or for RankSum that of the token's first live route.
    let rank = |row: usize| match case.output {
        Output::RankSum => topk_ids[row * case.top_k..][..case.top_k].iter().find(|&&id| id >= 0),
        Output::Sum | Output::PerRoute => topk_ids.get(row).filter(|&&id| id >= 0),
    };
    Guarded::input((rows, width, width + case.padding), |row, column| match rank(row) {
        Some(&id) if column < case.rank(id as usize) => rng.value(1.0),
        _ => f32::NAN,
    })
}

fn router(case: &Case, rng: &mut Rng) -> LinearRouter {
    let experts = if case.op == Op::Route { case.experts } else { 0 };
    // Scores of a few units either way, so that the softmax is neither flat nor a step.
    let scale = 4.0 / (case.in_features.max(1) as f32).sqrt();
    let mut value = |scale: f32| match case.routing {
        Routing::Ties => rng.below(3) as f32 - 1.0,
        Routing::Identical => 0.0,
        _ => rng.value(scale),
    };
    let rows = experts + if experts > 0 { case.rule().select.rows() } else { 0 };
    let weight: Vec<f32> = (0..rows * case.in_features).map(|_| value(scale)).collect();
    let bias: Option<Vec<f32>> = case.bias.then(|| (0..rows).map(|_| value(1.0)).collect());
    let router = match case.scoring.scores {
        Scores::Linear => LinearRouter::new(rows, case.in_features, &weight, bias.as_deref()),
        Scores::Prototypes => {
            // A lower temperature than the published one, as for scores of a few units.
            let how = Prototypes { temperature: scale.recip(), ..Prototypes::phatgoose(case.in_features) };
            LinearRouter::prototypes(rows, case.in_features, &weight, how)
        }
        Scores::Absolute => LinearRouter::prototypes(rows, case.in_features, &weight, Prototypes::arrow()),
    };
    router.expect("lengths fit by construction")
}

/// Requests of 0 to 7 tokens for all but the last token, each with about half of the experts, or with none, or with all.
fn allow(case: &Case, rng: &mut Rng) -> AllowLists {
    let mut lists = AllowLists::new(case.experts);
    let mut left = case.tokens.saturating_sub(1);
    while left > 0 {
        let tokens = rng.below(8).min(left);
        left -= tokens;
        let kind = rng.below(5);
        let experts = (0..case.experts).filter(|_| kind > 0 && (kind == 1 || rng.below(2) == 0));
        lists.push(tokens, experts.collect::<Vec<_>>()).expect("experts there are");
    }
    lists
}

fn start_of_y(case: &Case, rows: usize, rng: &mut Rng) -> Tensor {
    let shape = (rows, case.out_features, case.stride(case.out_features));
    Tensor::output(case.x, shape, |_, _| if case.accumulate { rng.value(1.0) } else { f32::NAN })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rank_sum_keeps_to_one_rank_within_a_token() {
        for experts in [1, 2, 5, 7, 8] {
            let ranks = vec![1, 2, 3];
            let case = Case { ranks, experts, output: Output::RankSum, top_k: 4, ..Case::new(Op::Shrink) };
            let inputs = Inputs::new(&case);
            for row in inputs.topk_ids.chunks(4) {
                assert!(
                    row.iter().all(|&id| case.rank(id as usize) == case.rank(row[0] as usize)),
                    "{row:?}"
                );
            }
        }
    }

    #[test]
    fn the_numbers_depend_on_the_case_alone() {
        let case = Case { seed: 3, ..Case::new(Op::Layer) };
        let (a, b) = (Inputs::new(&case), Inputs::new(&case));
        let numbers = |i: &Inputs| (i.x.dense(), i.topk_ids.clone(), i.weight.dense());
        assert!(numbers(&a) == numbers(&b));
        assert!(numbers(&a) != numbers(&Inputs::new(&Case { seed: 4, ..case })));
    }
}
