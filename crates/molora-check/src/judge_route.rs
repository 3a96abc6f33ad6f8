//! The judge of routing: where scores tie within f32's error any order is right, and weights go with their ids.

use crate::Inputs;
use crate::guarded::Guarded;
use crate::judge::{U, Verdict, exceeds, sum_error};
use crate::run::is_exact;
use bytemuck::{Pod, bytes_of};
use molora::ops::route::{self, Allow, Rule, Select, Weighting};

/// One token's scores in f64 and how far a device's f32 may be from them.
struct Scores {
    /// Equal scores are equal on every device: the lowest expert is the only right one.
    exact: bool,
    /// `[experts]`, and that of a learned threshold.
    score: Vec<f64>,
    error: Vec<f64>,
    /// Experts that the token may take, ascending.
    allowed: Vec<usize>,
    rule: Rule,
}

/// A value, and how far a device's may be from it.
type Near = (f64, f64);

impl Scores {
    fn new(inputs: &Inputs, token: usize, x: &[f32]) -> Self {
        let (case, router) = (&inputs.case, &inputs.router);
        let term =
            |e: usize, i: usize| f64::from(x[i]) * f64::from(router.weight()[e * case.in_features + i]);
        let bias = |e: usize| router.bias().map_or(0.0, |b| f64::from(b[e]));
        let (deviation, deviation_error) = if router.is_standardised() { deviation(x) } else { (1.0, 0.0) };
        // Small integers are exact in any order.
        let exact = is_exact(case) && !router.is_standardised();
        let relative = if exact { 0.0 } else { sum_error(case.in_features + 1) };
        let one = |e: usize| {
            let product = (0..case.in_features).map(|i| term(e, i)).sum::<f64>() / deviation;
            let terms = (0..case.in_features).map(|i| term(e, i).abs()).sum::<f64>() / deviation;
            let product = if router.is_absolute() { product.abs() } else { product };
            let error = relative * (terms + bias(e).abs()) + deviation_error * product.abs();
            (product + bias(e), error)
        };
        let (score, error) = (0..router.experts()).map(one).unzip();
        let may = |e: &usize| {
            let Some(Allow { offsets, lists }) = inputs.allow.as_ref().map(|a| a.as_allow()) else {
                return true;
            };
            let runs = offsets.windows(2).map(|run| run[0] as usize..run[1] as usize);
            let words = lists.chunks(case.experts.div_ceil(32).max(1));
            let mut own = runs.zip(words).filter(|(run, _)| run.contains(&token));
            own.next().is_some_and(|(_, list)| list[e / 32] >> (e % 32) & 1 == 1)
        };
        Self { exact, score, error, allowed: (0..case.experts).filter(may).collect(), rule: case.rule() }
    }

    /// An expert's share of the softmax over all that the token may take.
    ///
    /// Scores off by d change a share by a factor of at most `exp(2 d)`. WGSL's exp is good to
    /// `3 + 2 |argument|` units in the last place, its division to 2.5; the rest is a sum.
    fn share(&self, e: usize, among: &[usize]) -> Near {
        let largest = among.iter().map(|&o| self.score[o]).fold(f64::NEG_INFINITY, f64::max);
        let total: f64 = among.iter().map(|&o| (self.score[o] - largest).exp()).sum();
        let shift = among.iter().map(|&o| self.error[o]).fold(0.0, f64::max);
        let (share, distance) = ((self.score[e] - largest).exp() / total, largest - self.score[e]);
        (share, share * (2.0 * shift + sum_error(among.len()) + (24.0 + 8.0 * distance) * U) + 1e-37)
    }

    fn sigmoid(&self, e: usize) -> Near {
        let (z, value) = (self.score[e], 1.0 / (1.0 + (-self.score[e]).exp()));
        (value, value * (1.0 - value) * self.error[e] + value * (24.0 + 8.0 * z.abs()) * U + 1e-37)
    }

    fn threshold(&self) -> Option<Near> {
        match self.rule.select {
            Select::Threshold(t) => Some((f64::from(t), 0.0)),
            Select::LearnedThreshold(most) => {
                let (share, error) = self.sigmoid(self.score.len() - 1);
                Some((f64::from(most) * share, f64::from(most) * error))
            }
            _ => None,
        }
    }

    /// The ids are a right choice, best first, if no other expert is certainly better than a chosen one, or equal
    /// and lower where scores are exact, and if none is missing or too many.
    fn check_ids(&self, ids: &[i32]) -> Result<(), String> {
        let (ids, shared) = ids.split_at(self.rule.top_k);
        let experts = self.score.len() - self.rule.select.rows();
        let wrong = (0..shared.len()).find(|&j| shared[j] != (experts + j) as i32);
        if let Some(j) = wrong {
            return Err(format!("shared expert {j}: expected {}, got {}", experts + j, shared[j]));
        }
        let chosen = ids.iter().position(|&id| id == -1).unwrap_or(ids.len());
        if let Some(id) = ids[chosen..].iter().find(|&&id| id != -1) {
            return Err(format!("id {id} behind an empty place"));
        }
        let ids = &ids[..chosen];
        for (j, &id) in ids.iter().enumerate() {
            let e = usize::try_from(id).ok().filter(|&e| e < experts).ok_or(format!("id {id}"))?;
            if ids[..j].contains(&id) {
                return Err(format!("expert {id} twice"));
            }
            if !self.allowed.contains(&e) {
                return Err(format!("expert {id}, which the request may not take"));
            }
            let better = |&o: &usize| {
                let certainly = self.score[o] - self.error[o] > self.score[e] + self.error[e];
                certainly || self.exact && self.score[o] == self.score[e] && o < e
            };
            let others = self.allowed.iter().copied().filter(|&o| !ids[..j].contains(&(o as i32)));
            if let Some(o) = others.clone().find(better) {
                return Err(format!(
                    "expert {e} in place {j}, {} over {}: expected {o}",
                    self.score[e], self.score[o]
                ));
            }
        }
        self.check_count(ids)
    }

    fn check_count(&self, ids: &[i32]) -> Result<(), String> {
        let most = self.rule.top_k.min(self.allowed.len());
        let Some((threshold, error)) = self.threshold() else {
            return if ids.len() == most {
                Ok(())
            } else {
                Err(format!("{} chosen: expected {most}", ids.len()))
            };
        };
        let above = |&e: &usize| {
            let (share, own) = self.share(e, &self.allowed);
            (share - threshold, own + error)
        };
        for &id in ids {
            let (distance, limit) = above(&(id as usize));
            if distance < -limit {
                return Err(format!("expert {id}, {distance} from the threshold"));
            }
        }
        let mut left_out = self.allowed.iter().filter(|&&e| !ids.contains(&(e as i32)));
        let missing = left_out.find(|e| above(e).0 > above(e).1);
        match missing {
            Some(e) if ids.len() < most => {
                Err(format!("{} chosen: {e} is above the threshold too", ids.len()))
            }
            _ => Ok(()),
        }
    }

    /// Each id's weight and its limit of error.
    fn weights(&self, ids: &[i32]) -> Vec<Near> {
        let chosen: Vec<usize> =
            ids[..self.rule.top_k].iter().filter_map(|&id| usize::try_from(id).ok()).collect();
        let all = |e: &usize| self.share(*e, &self.allowed);
        let mut weights: Vec<Near> = match self.rule.weighting {
            Weighting::SoftmaxAll => chosen.iter().map(all).collect(),
            Weighting::SoftmaxTwice => {
                normalised(chosen.iter().map(all).map(|(p, error)| (p.exp(), p.exp() * (error + 32.0 * U))))
            }
            Weighting::AboveThreshold => {
                let (threshold, error) = self.threshold().expect("checked by the rule");
                normalised(chosen.iter().map(all).map(|(p, own)| (p - threshold, own + error + 2.0 * U * p)))
            }
            Weighting::Sigmoid => chosen.iter().map(|&e| self.sigmoid(e)).collect(),
            Weighting::Uniform => vec![(1.0 / chosen.len() as f64, 3.0 * U); chosen.len()],
            Weighting::Score => chosen.iter().map(|&e| (self.score[e], self.error[e] + 1e-37)).collect(),
            _ => chosen.iter().map(|&e| self.share(e, &chosen)).collect(),
        };
        weights.resize(self.rule.top_k, (0.0, 0.0));
        weights.extend(vec![(1.0, 0.0); self.rule.shared]);
        weights
    }
}

/// Values divided by their sum.
fn normalised(values: impl Iterator<Item = Near>) -> Vec<Near> {
    let values: Vec<Near> = values.collect();
    let (sum, error) = values.iter().fold((0.0, 0.0), |sum, value| (sum.0 + value.0, sum.1 + value.1));
    let relative = sum_error(values.len()) + 8.0 * U;
    values
        .iter()
        .map(|&(v, own)| (v / sum, (own + v.abs() / sum * error) / sum.abs() + v / sum * relative))
        .collect()
}

/// What a standardised row is divided by, and how far a device's may be from it, as a share.
fn deviation(x: &[f32]) -> Near {
    let n = x.len().max(1) as f64;
    let values = || x.iter().map(|&v| f64::from(v));
    let mean = values().sum::<f64>() / n;
    let variance = values().map(|v| (v - mean) * (v - mean)).sum::<f64>() / n;
    // Of the mean, of each distance from it, of the sum of their squares.
    let mean_error = sum_error(x.len()) * values().map(f64::abs).sum::<f64>() / n;
    let each = |v: f64| {
        let (distance, error) = ((v - mean).abs(), mean_error + 2.0 * U * (v - mean).abs());
        2.0 * distance * error + error * error
    };
    let error = values().map(each).sum::<f64>() / n + sum_error(x.len()) * variance;
    let all = variance + f64::from(route::EPSILON);
    (all.sqrt(), 0.5 * error / all + 16.0 * U)
}

/// Compares ids and weights; `start` is what the outputs held before.
pub(crate) fn compare(
    inputs: &Inputs,
    start: &(Guarded<i32>, Guarded<f32>),
    (ids, weights): &(Guarded<i32>, Guarded<f32>),
) -> Result<Verdict, String> {
    guards("topk_ids", &start.0, ids)?;
    guards("topk_weights", &start.1, weights)?;
    let case = &inputs.case;
    let mut verdict = Verdict { elements: case.routes(), ..Verdict::default() };
    let x = inputs.x.dense();
    for t in 0..case.tokens {
        let width = case.rule().width();
        let routes = t * width..(t + 1) * width;
        let (ids, weights) = (&ids.cells()[routes.clone()], &weights.cells()[routes]);
        let scores = Scores::new(inputs, t, &x[t * case.in_features..][..case.in_features]);
        scores.check_ids(ids).map_err(|why| format!("topk_ids of token {t}: {why}"))?;
        let (mut error_squared, mut want_squared) = (0.0, 0.0);
        for (j, ((want, limit), &got)) in scores.weights(ids).into_iter().zip(weights).enumerate() {
            let error = (f64::from(got) - want).abs();
            (error_squared, want_squared) = (error_squared + error * error, want_squared + want * want);
            if exceeds(error, limit) {
                return Err(format!("topk_weights[{t}, {j}]: expected {want}, got {got}, limit {limit:.1e}"));
            }
            if error > 0.0 && error / limit > verdict.worst_element.2 {
                verdict.worst_element = (t, j, error / limit);
            }
        }
        let relative = if want_squared > 0.0 { f64::sqrt(error_squared / want_squared) } else { 0.0 };
        if relative > verdict.worst_row.1 {
            verdict.worst_row = (t, relative);
        }
    }
    Ok(verdict)
}

fn guards<T: Pod>(name: &str, start: &Guarded<T>, got: &Guarded<T>) -> Result<(), String> {
    let touched = |&i: &usize| got.place(i).is_none() && bytes_of(&start.all[i]) != bytes_of(&got.all[i]);
    match (0..got.all.len()).find(touched) {
        None => Ok(()),
        Some(i) => Err(format!("{name}: the canary at {} was overwritten", i as isize - got.first as isize)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::case::{Case, Op, Scoring, Threshold};
    use crate::routing::Routing;

    type Outputs = (Guarded<i32>, Guarded<f32>);

    /// Judges the definition's own answer after `damage`.
    fn judge(case: &Case, damage: impl Fn(&mut Outputs)) -> Result<Verdict, String> {
        let inputs = Inputs::new(case);
        let shape = (1, case.routes(), case.routes());
        let start = (Guarded::output(shape, |_, _| i32::MIN), Guarded::output(shape, |_, _| f32::NAN));
        let mut got = start.clone();
        let sizes = route::Sizes { x_stride: case.in_features, ..inputs.route_sizes() };
        let (ids, weights) = (got.0.cells_mut(), got.1.cells_mut());
        let allow = inputs.allow.as_ref().map(|a| a.as_allow());
        route::definition(&sizes, &inputs.router, &inputs.x.dense(), allow, ids, weights).unwrap();
        damage(&mut got);
        compare(&inputs, &start, &got)
    }

    #[test]
    fn a_wrong_choice_and_a_wrong_weight_are_found() {
        let case = Case { tokens: 5, top_k: 3, ..Case::new(Op::Route) };
        judge(&case, |_| ()).expect("the definition is right");
        let says = |damage: fn(&mut Outputs), what: &str| {
            let message = judge(&case, damage).expect_err("a wrong answer passed");
            assert!(message.contains(what), "{message}");
        };
        says(|(ids, _)| ids.cells_mut().swap(0, 1), "topk_ids of token 0");
        says(|(ids, _)| ids.cells_mut()[4] = ids.cells()[3], "topk_ids of token 1: expert");
        says(|(ids, _)| ids.cells_mut()[6] = 8, "id 8");
        says(|(ids, _)| ids.cells_mut()[6] = -1, "behind an empty place");
        says(|(ids, _)| ids.cells_mut()[8] = -1, "2 chosen: expected 3");
        says(|(_, weights)| weights.cells_mut()[14] *= 1.001, "topk_weights[4, 2]");
        says(|(_, weights)| weights.cells_mut()[14] = f32::NAN, "topk_weights[4, 2]");
        says(|(_, weights)| weights.cells_mut().rotate_left(3), "topk_weights[0, 0]");
        says(|(ids, _)| ids.all[0] = 0, "topk_ids: the canary at -16");
        says(|(_, weights)| *weights.all.last_mut().unwrap() = 0.0, "topk_weights: the canary");
    }

    #[test]
    fn an_exact_tie_takes_the_lowest_expert() {
        let case = Case { routing: Routing::Identical, ..Case::new(Op::Route) };
        judge(&case, |_| ()).expect("the definition is right");
        let message = judge(&case, |(ids, _)| ids.cells_mut().swap(0, 1)).unwrap_err();
        assert!(message.contains("expected 0"), "{message}");
    }

    #[test]
    fn masks_thresholds_and_shared_experts_are_judged() {
        let scoring = Scoring { masked: true, threshold: Threshold::Fixed, shared: 1, ..Scoring::default() };
        let weighting = Weighting::AboveThreshold;
        let case = Case { tokens: 40, top_k: 3, scoring, weighting, ..Case::new(Op::Route) };
        judge(&case, |_| ()).expect("the definition is right");
        let inputs = Inputs::new(&case);
        let scores =
            |t: usize| Scores::new(&inputs, t, &inputs.x.dense()[t * case.in_features..][..case.in_features]);
        let chosen = |t: usize, outputs: &Outputs| outputs.0.cells()[4 * t..][..3].to_vec();
        // The first token with one choice, so that another fits behind it.
        let says = |put: &dyn Fn(usize) -> i32, what: &str| {
            let damage = |outputs: &mut Outputs| {
                let t = (0..40)
                    .find(|&t| matches!(chosen(t, outputs)[..], [a, -1, -1] if a >= 0))
                    .expect("such a token");
                outputs.0.cells_mut()[4 * t + 1] = put(t);
            };
            let message = judge(&case, damage).expect_err("a wrong answer passed");
            assert!(message.contains(what), "{message}");
        };
        let forbidden = |t: usize| (0..8).find(|e| !scores(t).allowed.contains(e)).map_or(7, |e| e as i32);
        says(&forbidden, "may not take");
        let message = judge(&case, |(ids, _)| ids.cells_mut()[3] = 7).unwrap_err();
        assert!(message.contains("shared expert 0: expected 8, got 7"), "{message}");
        let nothing = |outputs: &mut Outputs| {
            let t = (0..40).find(|&t| chosen(t, outputs)[0] >= 0).expect("a choice");
            outputs.0.cells_mut()[4 * t..][..3].fill(-1);
        };
        let message = judge(&case, nothing).unwrap_err();
        assert!(message.contains("above the threshold too"), "{message}");
    }
}
