//! Differences from a golden sequence: logits of every setting, and the experts that the routers took.

use crate::engine::host::with_slice;
use crate::engine::linear::Seen;
use crate::engine::mixture::scores;
use crate::engine::model::{Model, Pass};
use crate::engine::projection::Projection;
use crate::engine::setting::Setting;
use anyhow::{Context, Result, bail, ensure};
use candle_core::{DType, Device, Tensor};
use serde::Serialize;
use std::collections::{BTreeMap, HashMap};
use std::path::Path;

/// Below this gap between the last score taken and the first one left out, rounding may choose either.
const NEAR_TIE: f64 = 1e-3;

/// What an independent implementation computed for one sequence.
pub struct Golden {
    /// The sequence.
    pub ids: Vec<u32>,
    file: String,
    tensors: HashMap<String, Tensor>,
}

/// How far the engine is from it.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Differences {
    /// Setting to the largest difference of a logit at the last position.
    pub max_logit_difference: BTreeMap<String, f64>,
    /// Lists whose scores leave no doubt.
    pub router_lists_compared: usize,
    /// Those that hold other experts.
    pub router_lists_different: usize,
    /// Lists that a near tie leaves open.
    pub router_lists_near_ties: usize,
    /// Over the lists that hold the same experts.
    pub max_router_weight_difference: f64,
}

impl Golden {
    /// Reads `ids`, `logits.<setting>` and `router.<layer>.<projection>.{ids,weights}`.
    pub fn read(path: &Path) -> Result<Self> {
        let file = path.display().to_string();
        let tensors = candle_core::safetensors::load(path, &Device::Cpu)
            .with_context(|| format!("{file}: cannot be read as safetensors"))?;
        let ids =
            tensors.get("ids").with_context(|| format!("{file}: ids: expected a tensor, got nothing"))?;
        let ids = super::files::ids(ids).with_context(|| format!("{file}: ids"))?;
        ensure!(!ids.is_empty(), "{file}: ids: expected at least one token");
        Ok(Self { ids, file, tensors })
    }

    /// Runs the sequence in every setting that the file knows.
    pub fn compare(&self, model: &mut Model, settings: &[Setting]) -> Result<Differences> {
        let mut differences = Differences::default();
        let x = model.embed(&[&self.ids])?;
        let x = model.run(
            model.shared_layers(),
            x,
            &mut Pass { setting: &Setting::Base, cache: None, observer: None },
        )?;
        for setting in settings {
            let Some(expected) = self.tensors.get(&format!("logits.{setting}")) else { continue };
            let mut observe = |seen: Seen| self.compare_routing(&seen, &mut differences);
            let observed = *setting == Setting::Top(2);
            let mut pass =
                Pass { setting, cache: None, observer: if observed { Some(&mut observe) } else { None } };
            let h = model.run(model.expert_layers(), x.clone(), &mut pass)?;
            let logits = model.logits(&h.get(0)?.narrow(0, self.ids.len() - 1, 1)?)?;
            let difference = self.max_difference(&logits, expected, setting)?;
            differences.max_logit_difference.insert(setting.to_string(), difference);
        }
        if differences.max_logit_difference.is_empty() {
            bail!(
                "{}: expected logits.<setting> of at least one setting of these experts, got none",
                self.file
            );
        }
        Ok(differences)
    }

    fn max_difference(&self, logits: &Tensor, expected: &Tensor, setting: &Setting) -> Result<f64> {
        let expected = expected.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
        with_slice(logits, |logits| {
            ensure!(
                logits.len() == expected.len(),
                "{}: logits.{setting}: expected {} values, got {}",
                self.file,
                logits.len(),
                expected.len()
            );
            let differences = logits.iter().zip(&expected).map(|(a, b)| f64::from((a - b).abs()));
            // f64::max would pass over a NaN.
            Ok(differences.fold(0.0, |max, d| if d > max || d.is_nan() { d } else { max }))
        })?
    }

    fn compare_routing(&self, seen: &Seen, differences: &mut Differences) -> Result<()> {
        let Some((ids, weights)) = self.routing(seen.layer, seen.projection)? else { return Ok(()) };
        let k = seen.routing.top_k;
        ensure!(
            ids.len() == self.ids.len() * k && weights.len() == ids.len(),
            "{}: router.{}.{}: expected {} x {k} ids and weights, got {} and {}",
            self.file,
            seen.layer,
            seen.projection.name(),
            self.ids.len(),
            ids.len(),
            weights.len()
        );
        for (token, x) in seen.x.chunks_exact(seen.linear.in_features()).enumerate() {
            if gap(scores(seen.linear.router(), x), k) <= NEAR_TIE {
                differences.router_lists_near_ties += 1;
                continue;
            }
            differences.router_lists_compared += 1;
            let expected: BTreeMap<usize, f32> =
                (token * k..(token + 1) * k).map(|at| (ids[at] as usize, weights[at])).collect();
            let got: BTreeMap<usize, f32> = seen.routing.of(token).collect();
            if !expected.keys().eq(got.keys()) {
                differences.router_lists_different += 1;
                continue;
            }
            for (a, b) in expected.values().zip(got.values()) {
                let difference = f64::from((a - b).abs());
                if difference > differences.max_router_weight_difference || difference.is_nan() {
                    differences.max_router_weight_difference = difference;
                }
            }
        }
        Ok(())
    }

    fn routing(&self, layer: usize, projection: Projection) -> Result<Option<(Vec<u32>, Vec<f32>)>> {
        let key = format!("router.{layer}.{}", projection.name());
        let ids = self.tensors.get(&format!("{key}.ids"));
        let weights = self.tensors.get(&format!("{key}.weights"));
        let (Some(ids), Some(weights)) = (ids, weights) else { return Ok(None) };
        let ids = super::files::ids(ids).with_context(|| format!("{}: {key}.ids", self.file))?;
        Ok(Some((ids, weights.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?)))
    }
}

/// The distance between the k-th score and the next one; infinite when nothing is left out.
fn gap(mut scores: Vec<f64>, k: usize) -> f64 {
    scores.sort_by(|a, b| b.total_cmp(a));
    match scores.get(k) {
        Some(next) if k > 0 => scores[k - 1] - next,
        _ => f64::INFINITY,
    }
}

#[cfg(test)]
mod tests {
    use super::gap;

    #[test]
    fn the_gap_is_at_the_edge_of_the_list() {
        assert_eq!(gap(vec![1.0, 5.0, 3.0], 2), 2.0);
        assert_eq!(gap(vec![1.0, 5.0], 2), f64::INFINITY);
    }
}
