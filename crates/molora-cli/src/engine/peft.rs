//! Reads one adapter in PEFT's layout.

use super::mixture::Lora;
use super::projection::Projection;
use anyhow::{Context, Result, bail, ensure};
use candle_core::{DType, Device, Tensor};
use std::path::Path;

#[derive(serde::Deserialize)]
struct PeftConfig {
    lora_alpha: f32,
    #[serde(default)]
    use_rslora: bool,
    #[serde(default)]
    use_dora: bool,
}

/// The factors of every adapted linear.
pub fn read(folder: &Path) -> Result<Vec<((usize, Projection), Lora)>> {
    let path = folder.join("adapter_config.json");
    let text =
        std::fs::read_to_string(&path).with_context(|| format!("{}: cannot be read", path.display()))?;
    let config: PeftConfig = serde_json::from_str(&text).with_context(|| format!("{}", path.display()))?;
    ensure!(!config.use_rslora && !config.use_dora, "{}: expected plain LoRA", path.display());
    let path = folder.join("adapter_model.safetensors");
    let tensors = candle_core::safetensors::load(&path, &Device::Cpu)
        .with_context(|| format!("{}: cannot be read", path.display()))?;
    let mut loras = Vec::new();
    for (key, a) in &tensors {
        let Some(stem) = key.strip_suffix(".lora_A.weight") else { continue };
        let b = tensors.get(&format!("{stem}.lora_B.weight")).with_context(|| format!("{key}: no lora_B"))?;
        let module = stem.strip_prefix("base_model.model.").unwrap_or(stem);
        let Some(at) = Projection::parse(module) else { bail!("{}: {key}: unknown module", path.display()) };
        let rank = a.dim(0)?;
        let values = |tensor: &Tensor| -> Result<Vec<f32>> {
            Ok(tensor.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?)
        };
        loras.push((
            at,
            Lora { rank, scaling: config.lora_alpha / rank as f32, a: values(a)?, b: values(b)? },
        ));
    }
    Ok(loras)
}
