//! What must come out of a case, by the definitions.
//!
//! They get the inputs as the devices do, rounded to their elements, and return f32: the rounding to the output's
//! element is the judge's business. The sums of the terms' magnitudes are the same definitions on magnitudes.

use crate::case::{Case, Op};
use crate::inputs::Inputs;
use crate::judge::Expected;
use molora::error::Result;
use molora::ops::{Expert, Output, base, expand, plan, route, shrink};
use std::time::{Duration, Instant};

/// What the definitions multiply: the inputs, or their magnitudes.
struct Numbers {
    x: Vec<f32>,
    experts: Vec<(Vec<f32>, Vec<f32>)>,
    topk_weights: Vec<f32>,
    h: Vec<f32>,
    weight: Vec<f32>,
    bias: Option<Vec<f32>>,
    y: Vec<f32>,
}

impl Numbers {
    fn new(inputs: &Inputs, each: fn(f32) -> f32) -> Self {
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

    fn experts<'a>(&'a self, inputs: &Inputs) -> Vec<Expert<'a, f32>> {
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

    /// The experts' part of y.
    fn experts_alone(&self, inputs: &Inputs) -> Result<Vec<f32>> {
        let case = &inputs.case;
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
            Op::Route | Op::Plan => unreachable!("their outputs are not rows of elements"),
        }
    }
}

/// What must come out of shrink, expand, base, delta or layer, where h may be rounded by this relative error.
pub fn rows(inputs: &Inputs, h_rounding: f64) -> Result<Expected> {
    let case = &inputs.case;
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
    // Base and experts apart round y twice, fused once: both are right.
    let between = match case.op {
        Op::Layer => Numbers::new(inputs, |v| v).base(inputs)?,
        _ => Vec::new(),
    };
    let h_rounding = match case.op {
        Op::Expand | Op::Delta | Op::Layer if h_rounding > 0.0 => {
            let mut terms = Numbers::new(inputs, f32::abs).experts_alone(inputs)?;
            terms.iter_mut().for_each(|v| *v *= h_rounding as f32);
            terms
        }
        _ => Vec::new(),
    };
    Ok(Expected { rows, width, want, terms, length, between, h_rounding })
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
            route::definition(&sizes, &inputs.router, x, &mut ids, &mut weights)
        }
        Op::Plan => plan::definition(&inputs.plan_sizes(), &inputs.topk_ids, 0).map(drop),
        _ => numbers.output(inputs).map(drop),
    }
}
