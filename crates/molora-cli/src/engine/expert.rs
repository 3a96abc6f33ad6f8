//! A linear whose output is adapted by experts: `y = x W^T + sum_e g_e(x) s_e B_e (A_e x)`.
//!
//! This is the only place of the engine that knows how the mixture is computed.

use super::mixture::{Module, scores};
use super::setting::{Routing, Setting};
use anyhow::{Result, ensure};
use candle_core::{Device, Tensor};
use molora::adapter::{Lora, RouterWeights};

/// One linear with its experts and its router, resident on the device.
pub struct ExpertLinear {
    in_features: usize,
    out_features: usize,
    experts: usize,
    base: Tensor,
    /// All experts side by side on the rank axis: `[ranks, in]` and `[out, ranks]`.
    shrink: Tensor,
    expand: Tensor,
    /// For every lane of the rank axis: its expert and that expert's scaling.
    lanes: Vec<(usize, f32)>,
    router: RouterWeights,
}

impl ExpertLinear {
    /// `base` is `[out, in]`; the module's experts and router fit it.
    pub fn new(base: Vec<f32>, out_features: usize, in_features: usize, module: &Module) -> Result<Self> {
        let experts: Vec<(usize, &Lora)> =
            module.experts.iter().enumerate().filter_map(|(e, lora)| Some((e, lora.as_ref()?))).collect();
        let lanes: Vec<(usize, f32)> =
            experts.iter().flat_map(|&(e, lora)| vec![(e, lora.scaling()); lora.rank()]).collect();
        let mut a = Vec::with_capacity(lanes.len() * in_features);
        let mut b = Vec::with_capacity(lanes.len() * out_features);
        let mut factors = Vec::new();
        for (_, lora) in &experts {
            a.extend(lora.a());
            factors.push((lora.rank(), lora.b().collect::<Vec<f32>>()));
        }
        for row in 0..out_features {
            for (rank, factor) in &factors {
                b.extend_from_slice(&factor[row * rank..(row + 1) * rank]);
            }
        }
        let device = &Device::Cpu;
        Ok(Self {
            in_features,
            out_features,
            experts: module.experts.len(),
            base: Tensor::from_vec(base, (out_features, in_features), device)?,
            shrink: Tensor::from_vec(a, (lanes.len(), in_features), device)?,
            expand: Tensor::from_vec(b, (out_features, lanes.len()), device)?,
            lanes,
            router: module.router.clone(),
        })
    }

    /// Inputs of one token.
    pub fn in_features(&self) -> usize {
        self.in_features
    }

    /// Outputs of one token.
    pub fn out_features(&self) -> usize {
        self.out_features
    }

    /// The router that this linear asks.
    pub fn router(&self) -> &RouterWeights {
        &self.router
    }

    /// `x` is `[tokens, in]`, `y` is `[tokens, out]`; `routing` tells which experts were taken.
    pub fn forward(
        &mut self,
        tokens: usize,
        x: &[f32],
        setting: &Setting,
        y: &mut [f32],
        routing: &mut Routing,
    ) -> Result<()> {
        ensure!(
            x.len() == tokens * self.in_features,
            "x: expected {tokens} x {}, got {}",
            self.in_features,
            x.len()
        );
        ensure!(
            y.len() == tokens * self.out_features,
            "y: expected {tokens} x {}, got {}",
            self.out_features,
            y.len()
        );
        self.route(tokens, x, setting, routing)?;
        let x = Tensor::from_slice(x, (tokens, self.in_features), &Device::Cpu)?;
        let mut out = x.matmul(&self.base.t()?)?;
        if routing.top_k > 0 && !self.lanes.is_empty() {
            let mut h = x.matmul(&self.shrink.t()?)?.flatten_all()?.to_vec1::<f32>()?;
            let mut gates = vec![0.0; self.experts];
            for (token, row) in h.chunks_exact_mut(self.lanes.len()).enumerate() {
                gates.fill(0.0);
                for (expert, weight) in routing.of(token) {
                    gates[expert] += weight;
                }
                for (value, &(expert, scaling)) in row.iter_mut().zip(&self.lanes) {
                    *value *= gates[expert] * scaling;
                }
            }
            let h = Tensor::from_vec(h, (tokens, self.lanes.len()), &Device::Cpu)?;
            out = (out + h.matmul(&self.expand.t()?)?)?;
        }
        super::host::with_slice(&out, |values| y.copy_from_slice(values))
    }

    fn route(&self, tokens: usize, x: &[f32], setting: &Setting, routing: &mut Routing) -> Result<()> {
        let choice: Vec<(usize, f32)> = match setting {
            Setting::Base => vec![],
            Setting::Expert { id, .. } => vec![(*id, 1.0)],
            Setting::Uniform => (0..self.experts).map(|e| (e, 1.0 / self.experts as f32)).collect(),
            Setting::Top(k) => {
                ensure!((1..=self.experts).contains(k), "top_k: expected 1 to {}, got {k}", self.experts);
                routing.top_k = *k;
                routing.ids.clear();
                routing.weights.clear();
                for row in x.chunks_exact(self.in_features) {
                    let scores = scores(&self.router, row);
                    let mut order: Vec<usize> = (0..self.experts).collect();
                    order.sort_by(|&i, &j| scores[j].total_cmp(&scores[i]));
                    let sum: f64 = order[..*k].iter().map(|&e| (scores[e] - scores[order[0]]).exp()).sum();
                    for &e in &order[..*k] {
                        routing.ids.push(e as i32);
                        routing.weights.push(((scores[e] - scores[order[0]]).exp() / sum) as f32);
                    }
                }
                return Ok(());
            }
        };
        routing.fill(tokens, &choice);
        Ok(())
    }
}
