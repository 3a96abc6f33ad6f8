//! PHATGOOSE's gates by a first step that is simpler than the published recipe: logistic regression on the gate's own input.
//!
//! The recipe trains v of `W u + (1/rank) B A (sigmoid(v . u) u)` on the expert's own task with the language model's loss, all
//! else frozen. Here v of `sigmoid(v . u)` tells the inputs u of the expert's own domain from those of the others, in the bare
//! model. It starts at 0 and has no bias, as there. Its length does not matter, since gates are standardised when they score.

use super::perplexity::{BATCH, HeldOut};
use crate::engine::linear::Seen;
use crate::engine::model::{Model, Pass};
use crate::engine::projection::Projection;
use crate::engine::setting::Setting;
use anyhow::{Context, Result};
use indicatif::ProgressBar;
use rayon::prelude::*;
use std::collections::BTreeMap;

/// Every so many positions give an input; the first is an outlier and does not.
const EVERY: usize = 8;

/// Steps of Adam over all inputs.
const STEPS: usize = 80;

/// Weight of v's squared length in the loss.
const DECAY: f32 = 1e-3;

/// Partial sums of a product: what a vector register holds.
const LANES: usize = 16;

/// A linear's place in the model.
type At = (usize, Projection);

/// Inputs of one linear with the domains that they come from.
#[derive(Default)]
struct Inputs {
    /// `[inputs, in]`.
    x: Vec<f32>,
    /// Each one's expert.
    labels: Vec<usize>,
}

/// What a fit gave.
pub struct Gates {
    /// `[experts, in]` of every linear.
    pub gates: BTreeMap<At, Vec<f32>>,
    /// The share of the inputs whose own domain's gate is the most open, over all linears.
    pub right: f64,
}

/// Steps that the progress bar will make.
pub fn steps(sequences: &HeldOut, linears: usize) -> u64 {
    (sequences.values().map(|s| s.len().div_ceil(BATCH)).sum::<usize>() + linears) as u64
}

/// Fits a gate for every expert of every linear; the domains are the experts' names.
pub fn fit(model: &mut Model, sequences: &HeldOut, experts: &[String], bar: &ProgressBar) -> Result<Gates> {
    let mut inputs = BTreeMap::<At, Inputs>::new();
    for (domain, sequences) in sequences {
        let expert = experts.iter().position(|name| name == domain);
        let expert =
            expert.with_context(|| format!("{domain}: expected an expert of that name, got none"))?;
        for batch in sequences.chunks(BATCH) {
            bar.set_message(format!("gates: inputs of {domain}"));
            collect(model, batch, expert, &mut inputs)?;
            bar.inc(1);
        }
    }
    bar.set_message("gates: fit");
    let fitted: Vec<(At, Vec<f32>, f64)> = inputs
        .par_iter()
        .map(|(&at, inputs)| {
            let gates = logistic(inputs, experts.len());
            bar.inc(1);
            let right = right(inputs, &gates);
            (at, gates, right)
        })
        .collect();
    let right = fitted.iter().map(|fit| fit.2).sum::<f64>() / fitted.len().max(1) as f64;
    Ok(Gates { gates: fitted.into_iter().map(|(at, gates, _)| (at, gates)).collect(), right })
}

/// Appends the inputs of all linears with experts in the bare model.
fn collect(
    model: &mut Model,
    batch: &[Vec<u32>],
    expert: usize,
    inputs: &mut BTreeMap<At, Inputs>,
) -> Result<()> {
    let ids: Vec<&[u32]> = batch.iter().map(Vec::as_slice).collect();
    let tokens = ids[0].len();
    let mut observe = |seen: Seen| {
        let own = inputs.entry((seen.layer, seen.projection)).or_default();
        for (row, x) in seen.x.chunks_exact(seen.linear.in_features()).enumerate() {
            if row % tokens % EVERY == EVERY - 1 {
                own.x.extend_from_slice(x);
                own.labels.push(expert);
            }
        }
        Ok(())
    };
    let x = model.embed(&ids)?;
    let mut pass = Pass { setting: &Setting::Base, cache: None, observer: Some(&mut observe) };
    model.run(0..model.config().layers, x, &mut pass)?;
    Ok(())
}

/// One v an expert, `[experts, in]`: own inputs against the others', both halves of the loss counting the same.
fn logistic(inputs: &Inputs, experts: usize) -> Vec<f32> {
    let (rows, width) = (inputs.labels.len(), inputs.x.len() / inputs.labels.len().max(1));
    // One length for all linears: v's own does not matter.
    let square = inputs.x.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>();
    let scale = 1.0 / (square / inputs.x.len().max(1) as f64).sqrt().max(1e-12) as f32;
    let fit = |expert: usize| {
        let own = inputs.labels.iter().filter(|&&label| label == expert).count();
        let share = |is: bool| 0.5 / (if is { own } else { rows - own }).max(1) as f32;
        let (mut v, mut gradient) = (vec![0f32; width], vec![0f32; width]);
        let (mut first, mut second) = (vec![0f32; width], vec![0f32; width]);
        for step in 1..=STEPS {
            gradient.iter_mut().zip(&v).for_each(|(g, v)| *g = DECAY * v);
            for (x, &label) in inputs.x.chunks_exact(width).zip(&inputs.labels) {
                let is = label == expert;
                let open = 1.0 / (1.0 + (-scale * dot(x, &v)).exp());
                let by = scale * share(is) * (open - f32::from(u8::from(is)));
                gradient.iter_mut().zip(x).for_each(|(g, x)| *g += by * x);
            }
            let rate = 2.0 / width as f32 * (1.0 - 0.9 * step as f32 / STEPS as f32);
            let (left, right) = (1.0 - 0.9f32.powi(step as i32), 1.0 - 0.99f32.powi(step as i32));
            for (i, g) in gradient.iter().enumerate() {
                first[i] = 0.9 * first[i] + 0.1 * g;
                second[i] = 0.99 * second[i] + 0.01 * g * g;
                v[i] -= rate * (first[i] / left) / ((second[i] / right).sqrt() + 1e-8);
            }
        }
        v
    };
    (0..experts).flat_map(fit).collect()
}

/// The share of inputs whose own gate is the most open.
fn right(inputs: &Inputs, gates: &[f32]) -> f64 {
    let width = inputs.x.len() / inputs.labels.len().max(1);
    let own = |(x, label): &(&[f32], &usize)| {
        let label = **label;
        let scores: Vec<f32> = gates.chunks_exact(width).map(|v| dot(x, v)).collect();
        scores.iter().enumerate().all(|(e, &score)| e == label || score < scores[label])
    };
    let all = inputs.x.chunks_exact(width).zip(&inputs.labels);
    all.filter(own).count() as f64 / inputs.labels.len().max(1) as f64
}

/// In a fixed order, a register's width at a time.
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [0f32; LANES];
    let (a, b) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
    let rest: f32 = a.remainder().iter().zip(b.remainder()).map(|(a, b)| a * b).sum();
    for (a, b) in a.zip(b) {
        sums.iter_mut().zip(a).zip(b).for_each(|((sum, a), b)| *sum += a * b);
    }
    sums.iter().sum::<f32>() + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gates_open_for_their_own_inputs() {
        // Three directions that overlap, and a part that all inputs share.
        let mut inputs = Inputs::default();
        for n in 0..300 {
            let label = n % 3;
            let wobble = |i: usize| ((n * 31 + i * 17) % 23) as f32 / 46.0;
            let x = (0..20).map(|i| {
                wobble(i) + if i % 3 == label { 0.5 } else { 0.0 } + if i == 19 { 3.0 } else { 0.0 }
            });
            inputs.x.extend(x);
            inputs.labels.push(label);
        }
        let gates = logistic(&inputs, 3);
        assert!(right(&inputs, &gates) > 0.99, "{}", right(&inputs, &gates));
        let mut others = inputs.labels.clone();
        others.rotate_left(1);
        assert!(right(&Inputs { labels: others, ..inputs }, &gates) < 0.01);
    }

    #[test]
    fn a_product_has_no_rest_left_out() {
        for len in [0, 1, 15, 16, 17, 40] {
            let a: Vec<f32> = (0..len).map(|i| i as f32).collect();
            assert_eq!(dot(&a, &vec![1.0; len]), (0..len).sum::<usize>() as f32);
        }
    }
}
