//! Small files in temporary folders, written by the format's own serialiser.

use half::{bf16, f16};
use molora::error::{Error, Result};
use safetensors::{Dtype, tensor::TensorView};
use serde_json::{Value, json};
use std::path::Path;
use tempfile::TempDir;

/// A tensor to be written.
#[derive(Clone)]
pub struct Stored {
    pub name: String,
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    pub bytes: Vec<u8>,
}

pub fn f32_bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|w| w.to_le_bytes()).collect()
}

pub fn f16_bytes(values: &[f16]) -> Vec<u8> {
    values.iter().flat_map(|w| w.to_le_bytes()).collect()
}

pub fn bf16_bytes(values: &[bf16]) -> Vec<u8> {
    values.iter().flat_map(|w| w.to_le_bytes()).collect()
}

/// An F32 tensor of numbers that differ from one tensor to the next.
pub fn stored(name: &str, shape: &[usize]) -> Stored {
    let seed = name.bytes().map(u32::from).sum::<u32>() as f32;
    let values: Vec<f32> = (0..shape.iter().product()).map(|i: usize| (seed + i as f32) / 64.0).collect();
    Stored { name: name.into(), dtype: Dtype::F32, shape: shape.to_vec(), bytes: f32_bytes(&values) }
}

pub fn serialize(tensors: &[Stored]) -> Vec<u8> {
    let views = tensors
        .iter()
        .map(|t| (t.name.clone(), TensorView::new(t.dtype, t.shape.clone(), &t.bytes).unwrap()));
    safetensors::serialize(views, None).unwrap()
}

/// A safetensors file with a header of the test's own making.
pub fn with_header(header: &str, data: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), data].concat()
}

pub fn folder(config: &Value, tensors: &[Stored]) -> TempDir {
    raw_folder(config.to_string().as_bytes(), &serialize(tensors))
}

pub fn raw_folder(config: &[u8], tensors: &[u8]) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("adapter_config.json"), config).unwrap();
    std::fs::write(folder.path().join("adapter_model.safetensors"), tensors).unwrap();
    folder
}

/// Rank 2, alpha 6, on `up` and `down`.
pub fn config() -> Value {
    json!({"peft_type": "LORA", "r": 2, "lora_alpha": 6, "target_modules": ["up", "down"], "bias": "none",
        "lora_dropout": 0.1, "init_lora_weights": true, "rank_pattern": {}, "alpha_pattern": {}, "revision": null,
        "peft_version": "0.21.2", "loftq_config": {}, "megatron_core": "megatron.core", "use_dora": false, "qalora_group_size": 16})
}

/// `config()` with one key replaced.
pub fn config_with(key: &str, value: Value) -> Value {
    let mut config = config();
    config[key] = value;
    config
}

pub fn pair(module: &str, rank: usize) -> [Stored; 2] {
    let name = |factor: &str| format!("base_model.model.{module}.lora_{factor}.weight");
    [stored(&name("A"), &[rank, 3]), stored(&name("B"), &[4, rank])]
}

/// `layers.0.up` and `layers.0.down`, 3 -> 4, rank 2.
pub fn tensors() -> Vec<Stored> {
    [pair("layers.0.up", 2), pair("layers.0.down", 2)].concat()
}

/// The item that a `Format` error names; panics on anything else, and on a message without its file.
pub fn refused<T: std::fmt::Debug>(result: Result<T>) -> String {
    match result {
        Err(Error::Format { file, item, expected, got }) => {
            let name = Path::new(&file).file_name().and_then(|name| name.to_str()).unwrap_or_default();
            let known = name.starts_with("adapter_") || name == "routers.safetensors";
            assert!(known && !expected.is_empty() && !got.is_empty(), "{file}: {item}: {expected}, {got}");
            item
        }
        other => panic!("{other:?}"),
    }
}
