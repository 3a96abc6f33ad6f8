//! What must come out of a case, by the definitions.
//!
//! They get the inputs as the devices do, rounded to their elements, and return f32: the rounding to the output's
//! element is the judge's business. The sums of the terms' magnitudes are the same definitions on magnitudes.

use crate::case::{Case, Op};
use crate::grouped;
use crate::inputs::Inputs;
use crate::judge::Expected;
use crate::subject::Subject;
use molora::error::Result;
use molora::ops::fused::{self, Form};
use molora::ops::{Expert, Output, attend, base, expand, plan, route, shrink};
use std::time::{Duration, Instant};

/// The roundings that a device makes on its way beyond those of its sums and of the result.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Roundings {
    /// Relative error by which h, or what the experts make of it, is rounded before the product with B.
    pub h: f64,
    /// Whether the base product is rounded to the element before the experts are added to it.
    pub between: bool,
}

impl Roundings {
    /// A subject's in a case: only separate launches round y twice.
    pub fn of(subject: &dyn Subject, case: &Case) -> Self {
        let form = matches!(case.op, Op::Layer | Op::Fused).then(|| subject.form(case).ok()).flatten();
        Self { h: subject.h_rounding(case), between: form == Some(Form::Beside) }
    }
}

/// What the definitions multiply: the inputs, or their magnitudes.
#[derive(Clone)]
pub(crate) struct Numbers {
    pub x: Vec<f32>,
    experts: Vec<(Vec<f32>, Vec<f32>)>,
    pub topk_weights: Vec<f32>,
    h: Vec<f32>,
    pub weight: Vec<f32>,
    bias: Option<Vec<f32>>,
    y: Vec<f32>,
}

impl Numbers {
    pub fn new(inputs: &Inputs, each: fn(f32) -> f32) -> Self {
        let all = |v: &[f32]| v.iter().copied().map(each).collect::<Vec<f32>>();
        Self {
            x: all(&inputs.x.dense()),
            experts: inputs.experts.iter().map(|e| (all(&e.lora_a), all(&e.lora_b))).collect(),
            topk_weights: all(&inputs.topk_weights),
            h: all(&inputs.h.dense()),
            weight: all(&inputs.weight.dense()),
            bias: inputs.bias.as_ref().map(|b| all(&b.dense())),
            y: all(&inputs.y.dense()),
        }
    }

    pub fn experts<'a>(&'a self, inputs: &Inputs) -> Vec<Expert<'a, f32>> {
        let mut experts = Vec::with_capacity(self.experts.len());
        for ((lora_a, lora_b), e) in self.experts.iter().zip(&inputs.experts) {
            experts.push(Expert { rank: e.rank, scaling: e.scaling, lora_a, lora_b });
        }
        experts
    }

    /// h `[rows, max_rank]`, NaN where no route or no rank is.
    fn shrink(&self, inputs: &Inputs) -> Result<Vec<f32>> {
        let width = inputs.case.max_rank();
        let mut sizes = inputs.shrink_sizes();
        (sizes.x_stride, sizes.h_stride) = (sizes.in_features, width);
        let mut h = vec![f32::NAN; sizes.output.h_rows(sizes.tokens, sizes.top_k) * width];
        let plan = plan::definition(&inputs.plan_sizes(), &inputs.topk_ids, 0)?;
        shrink::definition(&sizes, &plan, &self.experts(inputs), &self.x, &self.topk_weights, &mut h)?;
        Ok(h)
    }

    /// Adds to y where the case does.
    fn expand(&self, inputs: &Inputs, h: &[f32], accumulate: bool, y: &mut [f32]) -> Result<()> {
        let mut sizes = inputs.expand_sizes();
        (sizes.h_stride, sizes.y_stride) = (inputs.case.max_rank(), sizes.out_features);
        sizes.accumulate = accumulate;
        let plan = plan::definition(&inputs.plan_sizes(), &inputs.topk_ids, 0)?;
        expand::definition(&sizes, &plan, &self.experts(inputs), h, &self.topk_weights, y)
    }

    fn base(&self, inputs: &Inputs) -> Result<Vec<f32>> {
        let mut sizes = inputs.base_sizes();
        (sizes.x_stride, sizes.y_stride) = (sizes.in_features, sizes.out_features);
        let mut y = vec![f32::NAN; sizes.tokens * sizes.out_features];
        base::definition(&sizes, &self.weight, self.bias.as_deref(), &self.x, &mut y)?;
        Ok(y)
    }

    /// Base and experts by the fused definition, every slice of the output on its own.
    fn fused(&self, inputs: &Inputs) -> Result<Vec<f32>> {
        let case = &inputs.case;
        let (columns, plan) =
            (case.in_features, plan::definition(&inputs.plan_sizes(), &inputs.topk_ids, 0)?);
        let (mut all, mut first) = (vec![f32::NAN; case.tokens * case.out_features], 0);
        for (width, experts) in case.slice_widths().into_iter().zip(slices(self.experts(inputs), case)) {
            let sizes = fused::Sizes { out_features: width, y_stride: width, ..inputs.fused_sizes() };
            let sizes = fused::Sizes { x_stride: columns, h_stride: case.max_rank(), ..sizes };
            let weight = &self.weight[first * columns..(first + width) * columns];
            let bias = self.bias.as_ref().map(|bias| &bias[first..first + width]);
            let mut y = vec![f32::NAN; case.tokens * width];
            let weights = &self.topk_weights;
            fused::definition(&sizes, &plan, &experts, weight, bias, &self.x, weights, &mut y)?;
            for (t, row) in y.chunks(width.max(1)).enumerate() {
                all[t * case.out_features + first..][..width].copy_from_slice(row);
            }
            first += width;
        }
        Ok(all)
    }

    /// The experts' part of y.
    fn experts_alone(&self, inputs: &Inputs) -> Result<Vec<f32>> {
        let case = &inputs.case;
        if case.op == Op::Fused {
            let nothing = Self { weight: vec![0.0; self.weight.len()], bias: None, ..self.clone() };
            return nothing.fused(inputs);
        }
        let mut y = vec![0.0; case.output.y_rows(case.tokens, case.top_k) * case.out_features];
        let h = if case.op == Op::Expand { self.h.clone() } else { self.shrink(inputs)? };
        self.expand(inputs, &h, false, &mut y)?;
        Ok(y)
    }

    fn output(&self, inputs: &Inputs) -> Result<Vec<f32>> {
        let accumulate = inputs.case.accumulate;
        match inputs.case.op {
            Op::Shrink => self.shrink(inputs),
            Op::Base => self.base(inputs),
            Op::Fused => self.fused(inputs),
            Op::Expand => {
                let mut y = self.y.clone();
                self.expand(inputs, &self.h, accumulate, &mut y)?;
                Ok(y)
            }
            Op::Delta => {
                let mut y = self.y.clone();
                self.expand(inputs, &self.shrink(inputs)?, accumulate, &mut y)?;
                Ok(y)
            }
            Op::Layer => {
                let mut y = self.base(inputs)?;
                self.expand(inputs, &self.shrink(inputs)?, true, &mut y)?;
                Ok(y)
            }
            Op::Route | Op::Plan | Op::Attend | Op::Grouped => {
                unreachable!("their outputs are not rows of elements")
            }
        }
    }
}

/// What must come out of any operation whose output is rows of elements, on a device that makes these roundings.
pub fn rows(inputs: &Inputs, roundings: Roundings) -> Result<Expected> {
    let case = &inputs.case;
    if case.op == Op::Grouped {
        return grouped::expected(inputs, roundings);
    }
    if case.op == Op::Attend {
        return weights(inputs);
    }
    let (rows, width) = match case.op {
        Op::Shrink => (case.output.h_rows(case.tokens, case.top_k), case.max_rank()),
        Op::Base => (case.tokens, case.out_features),
        _ => (case.output.y_rows(case.tokens, case.top_k), case.out_features),
    };
    let mut want = Numbers::new(inputs, |v| v).output(inputs)?;
    let terms = Numbers::new(inputs, f32::abs).output(inputs)?;
    if case.accumulate {
        for row in (0..rows).filter(|&row| is_dead(case, &inputs.topk_ids, row)) {
            want[row * width..][..width].fill(f32::NAN);
        }
    }
    let ranks = if case.output == Output::PerRoute { 1 } else { case.top_k } * case.max_rank();
    let length = match case.op {
        Op::Shrink if case.output == Output::RankSum => case.in_features + case.top_k,
        Op::Shrink | Op::Base => case.in_features + 1,
        Op::Expand => ranks + 1,
        _ => case.in_features + case.top_k + ranks + 1,
    };
    let between = match roundings.between {
        true => Numbers::new(inputs, |v| v).base(inputs)?,
        false => Vec::new(),
    };
    let h_rounding = match case.op {
        Op::Expand | Op::Delta | Op::Layer | Op::Fused if roundings.h > 0.0 => {
            let mut terms = Numbers::new(inputs, f32::abs).experts_alone(inputs)?;
            terms.iter_mut().for_each(|v| *v *= roundings.h as f32);
            terms
        }
        _ => Vec::new(),
    };
    Ok(Expected { rows, width, want, terms, length, between, h_rounding })
}

/// What must come out of attend. A score that is off by d puts weights off by d times themselves, and the token's other
/// scores do likewise: the magnitudes of a weight's terms are those of its score's, and of their weighted mean.
fn weights(inputs: &Inputs) -> Result<Expected> {
    let Case { tokens, top_k, in_features, router_rank, .. } = inputs.case;
    let sizes =
        attend::Sizes { x_stride: in_features, h_stride: inputs.case.max_rank(), ..inputs.attend_sizes() };
    let plan = plan::definition(&inputs.plan_sizes(), &inputs.topk_ids, 0)?;
    let (numbers, sums) = (Numbers::new(inputs, |v| v), Numbers::new(inputs, f32::abs));
    let (experts, r) = (numbers.experts(inputs), &inputs.attention);
    let router = Expert { rank: r.rank, scaling: r.scaling, lora_a: &r.lora_a[..], lora_b: &r.lora_b[..] };
    let mut want = vec![f32::NAN; tokens * top_k];
    attend::definition(&sizes, &plan, &experts, &router, &numbers.x, &numbers.h, &mut want)?;
    let mut keys = attend::keys(&experts, &router);
    keys.iter_mut().flatten().for_each(|k| *k = k.abs());
    let router_a: Vec<f32> = r.lora_a.iter().map(|v| v.abs()).collect();
    let scores = attend::scores(&sizes, &plan, &keys, &router_a, &sums.x, &sums.h);
    let mut terms = vec![0f32; want.len()];
    for t in 0..tokens {
        let live = (t * top_k..(t + 1) * top_k).filter(|&n| !scores[n].is_nan());
        let mean: f64 = live.clone().map(|n| f64::from(want[n]) * scores[n]).sum();
        live.for_each(|n| terms[n] = (f64::from(want[n]) * (1.0 + scores[n] + mean)) as f32);
    }
    let length = in_features + router_rank + inputs.case.max_rank() + top_k;
    let (between, h_rounding) = (Vec::new(), Vec::new());
    Ok(Expected { rows: tokens, width: top_k, want, terms, length, between, h_rounding })
}

/// Each slice's experts.
fn slices<'a>(experts: Vec<Expert<'a, f32>>, case: &Case) -> Vec<Vec<Expert<'a, f32>>> {
    (0..case.slices).map(|slice| experts[slice * case.slots()..][..case.slots()].to_vec()).collect()
}

/// Whether no route ends in this row of y, which adding then leaves alone.
fn is_dead(case: &Case, topk_ids: &[i32], row: usize) -> bool {
    match case.output {
        Output::PerRoute => topk_ids[row] < 0,
        Output::Sum | Output::RankSum => topk_ids[row * case.top_k..][..case.top_k].iter().all(|&id| id < 0),
    }
}

/// How long the definition takes in one thread: the median of five times, one where it takes long.
pub fn time(inputs: &Inputs) -> Result<Duration> {
    let (numbers, x) = (Numbers::new(inputs, |v| v), inputs.x.dense());
    let mut times = Vec::new();
    while times.len() < 5 && times.iter().sum::<Duration>() < Duration::from_millis(200) {
        let start = Instant::now();
        run_definition(inputs, &numbers, &x)?;
        times.push(start.elapsed());
    }
    times.sort();
    Ok(times[times.len() / 2])
}

fn run_definition(inputs: &Inputs, numbers: &Numbers, x: &[f32]) -> Result<()> {
    let case = &inputs.case;
    match case.op {
        Op::Route => {
            let (mut ids, mut weights) = (vec![0; case.routes()], vec![0f32; case.routes()]);
            let sizes = route::Sizes { x_stride: case.in_features, ..inputs.route_sizes() };
            let allow = inputs.allow.as_ref().map(|a| a.as_allow());
            route::definition(&sizes, &inputs.router, x, allow, &mut ids, &mut weights)
        }
        Op::Plan => plan::definition(&inputs.plan_sizes(), &inputs.topk_ids, 0).map(drop),
        Op::Grouped => grouped::rows(inputs, numbers, inputs.case.group.rows).map(drop),
        Op::Attend => weights(inputs).map(drop),
        _ => numbers.output(inputs).map(drop),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use molora::element::ElementType;

    /// The fused definition is the layer's, and a packed pool's is that of each slice alone.
    #[test]
    fn base_and_experts_are_the_same_sum_however_they_are_cut() {
        for output in [Output::Sum, Output::RankSum] {
            let sizes = Case { output, ranks: vec![3, 5], bias: true, ..Case::new(Op::Layer) };
            let want = rows(&Inputs::new(&sizes), Roundings::default()).unwrap();
            let got = rows(&Inputs::new(&Case { op: Op::Fused, ..sizes }), Roundings::default()).unwrap();
            assert_eq!((want.length, want.width), (got.length, got.width));
            for (want, got) in [(&want.want, &got.want), (&want.terms, &got.terms)] {
                assert!(
                    want.iter().zip(got).all(|(a, b)| (a - b).abs() < 1e-5 * (1.0 + a.abs())),
                    "{output:?}"
                );
            }
        }
        let case = Case { slices: 3, ranks: vec![3, 5, 2], ..Case::new(Op::Fused).element(ElementType::F16) };
        let (inputs, mut first) = (Inputs::new(&case), 0);
        let all = rows(&inputs, Roundings { h: 0.5, between: false }).unwrap();
        for (slice, width) in case.slice_widths().into_iter().enumerate() {
            let mut one = Inputs::new(&Case { slices: 1, out_features: width, ..case.clone() });
            one.experts = inputs.experts[slice * case.experts..][..case.experts].to_vec();
            let weight = inputs.weight.part(first, width);
            one.weight = weight;
            let one = rows(&one, Roundings { h: 0.5, between: false }).unwrap();
            for t in 0..case.tokens {
                let of =
                    |rows: &[f32], stride: usize, first: usize| rows[t * stride + first..][..width].to_vec();
                assert_eq!(
                    of(&all.want, all.width, first),
                    of(&one.want, width, 0),
                    "slice {slice}, token {t}"
                );
                assert_eq!(of(&all.h_rounding, all.width, first), of(&one.h_rounding, width, 0));
            }
            first += width;
        }
        assert_eq!(first, case.out_features);
        assert!(all.h_rounding.iter().any(|&v| v > 0.0));
    }
}
