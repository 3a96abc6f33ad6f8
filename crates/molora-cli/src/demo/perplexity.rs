//! Held-out perplexity of every setting: `exp(sum of nll / predicted tokens)`.

use crate::engine::host::with_slice;
use crate::engine::model::{Model, Pass};
use crate::engine::setting::Setting;
use anyhow::Result;
use candle_core::Tensor;
use indicatif::ProgressBar;
use rayon::prelude::*;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// Sequences that run side by side: large products, and little memory.
pub(super) const BATCH: usize = 4;

/// Domain to sequences of ids, all of one length within a domain.
pub type HeldOut = BTreeMap<String, Vec<Vec<u32>>>;

/// Setting to domain to perplexity.
pub type Perplexity = BTreeMap<String, BTreeMap<String, f64>>;

/// What the run gave.
pub struct Evaluation {
    /// The figures.
    pub perplexity: Perplexity,
    /// Tokens that went through the model, counted once for each setting.
    pub tokens: usize,
    /// How long it took.
    pub time: Duration,
}

/// Steps that the progress bar will make.
pub fn steps(held_out: &HeldOut, settings: &[Setting]) -> u64 {
    held_out.values().map(|sequences| sequences.len().div_ceil(BATCH) * settings.len()).sum::<usize>() as u64
}

/// Runs every setting over every domain. The layers below the experts run once and are shared by all settings.
pub fn evaluate(
    model: &mut Model,
    held_out: &HeldOut,
    settings: &[Setting],
    bar: &ProgressBar,
) -> Result<Evaluation> {
    let start = Instant::now();
    let mut tokens = 0;
    let mut perplexity = Perplexity::new();
    for (domain, sequences) in held_out {
        let mut nll = vec![0.0; settings.len()];
        let mut predicted = 0;
        for batch in sequences.chunks(BATCH) {
            let ids: Vec<&[u32]> = batch.iter().map(Vec::as_slice).collect();
            predicted += ids.iter().map(|ids| ids.len() - 1).sum::<usize>();
            let x = model.embed(&ids)?;
            let shared = model.shared_layers();
            let x =
                model.run(shared, x, &mut Pass { setting: &Setting::Base, cache: None, observer: None })?;
            for (setting, nll) in settings.iter().zip(&mut nll) {
                bar.set_message(format!("{domain} {setting}"));
                let mut pass = Pass { setting, cache: None, observer: None };
                let h = model.run(model.expert_layers(), x.clone(), &mut pass)?;
                *nll += sequences_nll(model, &h, &ids)?.iter().sum::<f64>();
                tokens += ids.iter().map(|ids| ids.len()).sum::<usize>();
                bar.inc(1);
            }
        }
        for (setting, nll) in settings.iter().zip(nll) {
            let value = (nll / predicted as f64).exp();
            perplexity.entry(setting.to_string()).or_default().insert(domain.clone(), value);
        }
    }
    Ok(Evaluation { perplexity, tokens, time: start.elapsed() })
}

/// Of each sequence. One at a time: all logits at once would take 800 MB.
pub(super) fn sequences_nll(model: &Model, h: &Tensor, ids: &[&[u32]]) -> Result<Vec<f64>> {
    let mut sums = Vec::new();
    for (row, ids) in ids.iter().enumerate() {
        // The last token predicts nothing that is known.
        let h = h.get(row)?.narrow(0, 0, ids.len() - 1)?;
        let logits = model.logits(&h)?;
        let width = logits.dim(1)?;
        sums.push(with_slice(&logits, |logits| {
            let rows = logits.par_chunks_exact(width).zip(&ids[1..]);
            rows.map(|(logits, &id)| log_sum_exp(logits) - f64::from(logits[id as usize])).sum::<f64>()
        })?);
    }
    Ok(sums)
}

fn log_sum_exp(logits: &[f32]) -> f64 {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    // Short f32 sums, added up in f64: the vocabulary is too long for one f32 sum.
    let part = |part: &[f32]| part.iter().map(|&v| (v - max).exp()).sum::<f32>();
    let sum: f64 = logits.chunks(64).map(|chunk| f64::from(part(chunk))).sum();
    f64::from(max) + sum.ln()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn log_sum_exp_survives_large_logits() {
        assert!((log_sum_exp(&[0.0; 8]) - 8f64.ln()).abs() < 1e-12);
        let logits: Vec<f32> = (0..1000).map(|v| 500.0 + (v % 7) as f32).collect();
        let exact = logits.iter().map(|&v| f64::from(v - 500.0).exp()).sum::<f64>().ln() + 500.0;
        assert!((log_sum_exp(&logits) - exact).abs() < 1e-5);
    }
}
