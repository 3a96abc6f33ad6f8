//! PHATGOOSE's gates by the published recipe: each expert alone, `y = W u + scaling B A (sigmoid(v . u) u)`, on its own domain
//! with the language model's loss; v begins at 0, everything else is frozen. The scaling is the adapter's own.

use super::{At, Lesson};
use crate::engine::linear::Add;
use anyhow::{Context, Result, ensure};
use candle_core::{DType, Device, Tensor, Var};
use candle_nn::ops::sigmoid;
use molora::Lora;
use std::collections::{BTreeMap, HashMap};
use std::path::Path;

/// Adam's first rate, which falls in a line.
const RATE: f64 = 5e-3;

/// Trains all of them and writes `layers.{l}.{projection}.router.weight`, `[experts, in]` in f16: the routers' own format.
pub fn train(lesson: &mut Lesson, steps: usize, out: &Path) -> Result<()> {
    // What cannot be written is not trained for.
    std::fs::File::create(out).with_context(|| format!("--out: {}", out.display()))?;
    let mut gates = HashMap::new();
    for (at, rows) in fit(lesson, steps)? {
        let name = format!("layers.{}.{}.router.weight", at.0, at.1.name());
        gates.insert(name, Tensor::cat(&rows, 0)?.to_dtype(DType::F16)?);
    }
    candle_core::safetensors::save(&gates, out).with_context(|| format!("--out: {}", out.display()))
}

/// Every linear's gates, `[1, in]` for each expert.
pub fn fit(lesson: &mut Lesson, steps: usize) -> Result<BTreeMap<At, Vec<Tensor>>> {
    let mut gates = BTreeMap::<At, Vec<Tensor>>::new();
    for (expert, name) in lesson.mixture.names.iter().enumerate() {
        let any = lesson.texts.iter().any(|text| text.expert == expert);
        ensure!(any, "--heldout: expected sequences of {name}, got none");
    }
    for (expert, name) in lesson.mixture.names.clone().iter().enumerate() {
        let mut own = BTreeMap::new();
        lesson.place(|at, module| {
            let width = module.router.in_features();
            let v = Var::zeros((1, width), DType::F32, &Device::Cpu)?;
            own.insert(at, v.clone());
            gated(module.experts[expert].as_ref(), v)
        })?;
        let texts: Vec<usize> =
            (0..lesson.texts.len()).filter(|&text| lesson.texts[text].expert == expert).collect();
        let [first, last] = lesson.fit(&texts, own.values().cloned().collect(), (steps, RATE), |_| ())?;
        tracing::info!("gates of {name}: loss {first:.4}, then {last:.4}");
        for (at, v) in own {
            gates.entry(at).or_default().push(v.as_tensor().detach());
        }
    }
    Ok(gates)
}

/// One expert behind its gate; nothing where it leaves the linear alone.
pub fn gated(lora: Option<&Lora>, v: Var) -> Result<Add> {
    let Some(lora) = lora else { return Ok(Box::new(|_, y| Ok(y))) };
    let ([a, b], scaling) = (super::factors(lora)?, f64::from(lora.scaling()));
    Ok(Box::new(move |x, y| {
        let open = sigmoid(&x.matmul(&v.t()?)?)?;
        let h = x.matmul(&a)?.broadcast_mul(&open)?;
        Ok((y + (h.matmul(&b)? * scaling)?)?)
    }))
}
