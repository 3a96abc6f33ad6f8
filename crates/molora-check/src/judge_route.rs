//! The judge of routing: where scores tie within f32's error any order is right, and weights go with their ids.

use crate::Inputs;
use crate::guarded::Guarded;
use crate::judge::{U, Verdict, exceeds, sum_error};
use crate::run::is_exact;
use bytemuck::{Pod, bytes_of};
use molora::ops::route::Weighting;

/// One token's scores in f64 and how far a device's f32 may be from them.
struct Scores {
    /// Equal scores are equal on every device: the lowest expert is the only right one.
    exact: bool,
    score: Vec<f64>,
    error: Vec<f64>,
}

impl Scores {
    fn new(inputs: &Inputs, x: &[f32]) -> Self {
        let (case, router) = (&inputs.case, &inputs.router);
        let term =
            |e: usize, i: usize| f64::from(x[i]) * f64::from(router.weight()[e * case.in_features + i]);
        let bias = |e: usize| router.bias().map_or(0.0, |b| f64::from(b[e]));
        let all = 0..case.experts;
        let score = |e: usize| (0..case.in_features).map(|i| term(e, i)).sum::<f64>() + bias(e);
        let terms = |e: usize| (0..case.in_features).map(|i| term(e, i).abs()).sum::<f64>() + bias(e).abs();
        // Small integers are exact in any order.
        let relative = if is_exact(case) { 0.0 } else { sum_error(case.in_features + 1) };
        Self {
            exact: is_exact(case),
            score: all.clone().map(score).collect(),
            error: all.map(|e| relative * terms(e)).collect(),
        }
    }

    /// The ids are a right choice, best first, if no other expert is certainly better than a chosen one, or equal
    /// and lower where scores are exact.
    fn check_ids(&self, ids: &[i32]) -> Result<(), String> {
        for (j, &id) in ids.iter().enumerate() {
            let e = usize::try_from(id).ok().filter(|&e| e < self.score.len()).ok_or(format!("id {id}"))?;
            if ids[..j].contains(&id) {
                return Err(format!("expert {id} twice"));
            }
            let better = |&o: &usize| {
                let certainly = self.score[o] - self.error[o] > self.score[e] + self.error[e];
                certainly || self.exact && self.score[o] == self.score[e] && o < e
            };
            let passed_over = (0..self.score.len()).filter(|&o| !ids[..j].contains(&(o as i32))).find(better);
            if let Some(o) = passed_over {
                return Err(format!(
                    "expert {e} in place {j}, {} over {}: expected {o}",
                    self.score[e], self.score[o]
                ));
            }
        }
        Ok(())
    }

    /// Each id's weight and its limit of error.
    ///
    /// Scores off by d change a share by a factor of at most `exp(2 d)`. WGSL's exp is good to
    /// `3 + 2 |argument|` units in the last place, its division to 2.5; the rest is a sum.
    fn weights(&self, weighting: Weighting, ids: &[i32]) -> Vec<(f64, f64)> {
        let of = |id: &i32| self.score[*id as usize];
        let largest = ids.iter().map(of).fold(f64::NEG_INFINITY, f64::max);
        let all: Vec<usize> = match weighting {
            Weighting::SoftmaxAll => (0..self.score.len()).collect(),
            _ => ids.iter().map(|&id| id as usize).collect(),
        };
        let total: f64 = all.iter().map(|&e| (self.score[e] - largest).exp()).sum();
        let shift = all.iter().map(|&e| self.error[e]).fold(0.0, f64::max);
        let weight = |id: &i32| {
            let (want, distance) = ((of(id) - largest).exp() / total, largest - of(id));
            let relative = 2.0 * shift + sum_error(all.len()) + (24.0 + 8.0 * distance) * U;
            (want, want * relative + 1e-37)
        };
        ids.iter().map(weight).collect()
    }
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
        let routes = t * case.top_k..(t + 1) * case.top_k;
        let (ids, weights) = (&ids.cells()[routes.clone()], &weights.cells()[routes]);
        let scores = Scores::new(inputs, &x[t * case.in_features..][..case.in_features]);
        scores.check_ids(ids).map_err(|why| format!("topk_ids of token {t}: {why}"))?;
        let (mut error_squared, mut want_squared) = (0.0, 0.0);
        for (j, ((want, limit), &got)) in
            scores.weights(case.weighting, ids).into_iter().zip(weights).enumerate()
        {
            let error = (f64::from(got) - want).abs();
            (error_squared, want_squared) = (error_squared + error * error, want_squared + want * want);
            if exceeds(error, limit) {
                return Err(format!("topk_weights[{t}, {j}]: expected {want}, got {got}, limit {limit:.1e}"));
            }
            if error / limit > verdict.worst_element.2 {
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
    use crate::case::{Case, Op};
    use crate::routing::Routing;
    use molora::ops::route;

    type Outputs = (Guarded<i32>, Guarded<f32>);

    /// Judges the definition's own answer after `damage`.
    fn judge(case: &Case, damage: impl Fn(&mut Outputs)) -> Result<Verdict, String> {
        let inputs = Inputs::new(case);
        let shape = (1, case.routes(), case.routes());
        let start = (Guarded::output(shape, |_, _| i32::MIN), Guarded::output(shape, |_, _| f32::NAN));
        let mut got = start.clone();
        let sizes = route::Sizes { x_stride: case.in_features, ..inputs.route_sizes() };
        let (ids, weights) = (got.0.cells_mut(), got.1.cells_mut());
        route::definition(&sizes, &inputs.router, &inputs.x.dense(), ids, weights).unwrap();
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
        says(|(ids, _)| ids.cells_mut()[6] = -1, "id -1");
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
}
