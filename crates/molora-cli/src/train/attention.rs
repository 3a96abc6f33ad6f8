//! RAMoLE's router adapter by the published recipe: the attention's `A_r`, `B_r` with the language model's loss over all
//! domains, experts frozen; in each step every expert is dropped with probability 1/2, and at least two are kept. `B_r`
//! begins at 0, so that all experts weigh the same.

use super::{At, Lesson};
use crate::engine::linear::Add;
use crate::engine::mixture::Module;
use anyhow::{Context, Result};
use candle_core::{D, DType, Device, Tensor, Var};
use candle_nn::ops::softmax;
use molora_check::rng::Rng;
use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::rc::Rc;

/// Rank of the router adapter.
const RANK: usize = 8;

/// Adam's first rate, which falls in a line.
const RATE: f64 = 2e-3;

/// Trains it and writes a PEFT folder, in f16.
pub fn train(lesson: &mut Lesson, steps: usize, out: &Path) -> Result<()> {
    let said = || format!("--out: {}", out.display());
    std::fs::create_dir_all(out).with_context(said)?;
    let mut tensors = HashMap::new();
    for ((layer, projection), factors) in fit(lesson, steps)? {
        for (name, factor) in ["lora_A", "lora_B"].into_iter().zip(factors) {
            let module = format!("model.layers.{layer}.mlp.{}", projection.name());
            let name = format!("base_model.model.{module}.{name}.weight");
            tensors.insert(name, factor.as_tensor().detach().to_dtype(DType::F16)?);
        }
    }
    candle_core::safetensors::save(&tensors, out.join("adapter_model.safetensors")).with_context(said)?;
    let config = serde_json::json!({
        "peft_type": "LORA", "r": RANK, "lora_alpha": RANK, "bias": "none",
        "target_modules": ["gate_proj", "up_proj", "down_proj"],
    });
    std::fs::write(out.join("adapter_config.json"), serde_json::to_string_pretty(&config)? + "\n")
        .with_context(said)
}

/// `[A_r, B_r]` of every linear.
pub fn fit(lesson: &mut Lesson, steps: usize) -> Result<BTreeMap<At, [Var; 2]>> {
    let (mut factors, set) = (BTreeMap::new(), Rc::new(RefCell::new(Vec::new())));
    lesson.place(|at, module| {
        let (inputs, outputs) = (module.router.in_features(), outputs(module)?);
        let mut rng = Rng::named(&format!("attention {} {}", at.0, at.1.name()), 0);
        let a: Vec<f32> = (0..RANK * inputs).map(|_| rng.value((3.0 / inputs as f32).sqrt())).collect();
        let a = Var::from_tensor(&Tensor::from_vec(a, (RANK, inputs), &Device::Cpu)?)?;
        let b = Var::zeros((outputs, RANK), DType::F32, &Device::Cpu)?;
        factors.insert(at, [a.clone(), b.clone()]);
        attended(module, [a, b], set.clone())
    })?;
    let experts = lesson.mixture.names.len();
    let (mut rng, mut order) = (Rng::named("attention", 1), (0..lesson.texts.len()).collect::<Vec<_>>());
    (1..order.len()).rev().for_each(|n| order.swap(n, rng.below(n + 1)));
    let variables = factors.values().flatten().cloned().collect();
    let [first, last] =
        lesson.fit(&order, variables, (steps, RATE), |_| *set.borrow_mut() = kept(experts, &mut rng))?;
    tracing::info!("attention: loss {first:.4}, then {last:.4}");
    Ok(factors)
}

/// The experts of a step: each with probability 1/2, at least two.
fn kept(experts: usize, rng: &mut Rng) -> Vec<usize> {
    loop {
        let kept: Vec<usize> = (0..experts).filter(|_| rng.below(2) == 0).collect();
        if kept.len() >= experts.min(2) {
            return kept;
        }
    }
}

fn outputs(module: &Module) -> Result<usize> {
    let lora = module.experts.iter().flatten().next();
    Ok(lora.context("experts: expected one at every linear of the mixture")?.out_features())
}

/// `y + sum a_i v_i`, `a = softmax(<A_r x, B_r^T v_i> / sqrt(rank))` over the kept experts' `v_i = scaling_i B_i A_i x`, in rank
/// space: `<A_r x, K_i^T h_i>` with `K_i = scaling_i B_i^T B_r`.
pub fn attended(module: &Module, [a_r, b_r]: [Var; 2], set: Rc<RefCell<Vec<usize>>>) -> Result<Add> {
    let factors = |lora: &Option<molora::Lora>| -> Result<_> {
        let Some(lora) = lora else { return Ok(None) };
        let [a, b] = super::factors(lora)?;
        Ok(Some((a, (b * f64::from(lora.scaling()))?)))
    };
    let experts = module.experts.iter().map(factors).collect::<Result<Vec<_>>>()?;
    Ok(Box::new(move |x, y| {
        let q = (x.matmul(&a_r.t()?)? / (a_r.dim(0)? as f64).sqrt())?;
        let (mut scores, mut products) = (Vec::new(), Vec::new());
        for &expert in set.borrow().iter() {
            // An expert that leaves the linear alone is one of zeros, as in the layer.
            let Some((a, b)) = &experts[expert] else {
                scores.push(Tensor::zeros((x.dim(0)?, 1), DType::F32, &Device::Cpu)?);
                products.push(None);
                continue;
            };
            let h = x.matmul(a)?;
            let keys = b.matmul(&b_r)?;
            scores.push((h.matmul(&keys)? * &q)?.sum_keepdim(D::Minus1)?);
            products.push(Some((h, b)));
        }
        let weights = softmax(&Tensor::cat(&scores, 1)?, D::Minus1)?;
        let mut y = y;
        for (n, product) in products.iter().enumerate() {
            let Some((h, b)) = product else { continue };
            y = (y + h.broadcast_mul(&weights.narrow(1, n, 1)?)?.matmul(b)?)?;
        }
        Ok(y)
    }))
}
