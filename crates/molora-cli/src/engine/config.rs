//! The sizes of a llama-like model, as a GGUF file states them.

use anyhow::{Context, Result, bail, ensure};
use candle_core::quantized::gguf_file::Value;
use std::collections::HashMap;

/// Sizes and constants of a llama-like model.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// Blocks.
    pub layers: usize,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Width of one head.
    pub head_dim: usize,
    /// Longest sequence.
    pub context: usize,
    /// Base of the rotary embedding.
    pub rope_base: f64,
    /// Epsilon of the RMS norms.
    pub norm_eps: f32,
}

impl Config {
    /// Reads the metadata of a GGUF file; `file` is its name in messages.
    pub fn from_gguf(metadata: &HashMap<String, Value>, file: &str) -> Result<Self> {
        let number = |key: &str| -> Result<f64> {
            let value = metadata
                .get(key)
                .with_context(|| format!("{file}: {key}: expected a number, got nothing"))?;
            as_number(value).with_context(|| format!("{file}: {key}: expected a number, got {value:?}"))
        };
        let count = |key: &str| number(key).map(|value| value as usize);
        match metadata.get("general.architecture") {
            Some(Value::String(name)) if name == "llama" => {}
            other => bail!("{file}: general.architecture: expected llama, got {other:?}"),
        }
        let config = Self {
            layers: count("llama.block_count")?,
            hidden: count("llama.embedding_length")?,
            heads: count("llama.attention.head_count")?,
            kv_heads: count("llama.attention.head_count_kv")?,
            head_dim: count("llama.rope.dimension_count")?,
            context: count("llama.context_length")?,
            rope_base: number("llama.rope.freq_base")?,
            norm_eps: number("llama.attention.layer_norm_rms_epsilon")? as f32,
        };
        config.check(file)?;
        Ok(config)
    }

    /// Refuses sizes that the engine cannot run.
    pub fn check(&self, file: &str) -> Result<()> {
        ensure!(self.layers > 0 && self.heads > 0, "{file}: expected at least one layer and one head");
        ensure!(
            self.kv_heads > 0 && self.heads.is_multiple_of(self.kv_heads),
            "{file}: llama.attention.head_count_kv: expected a divisor of {}, got {}",
            self.heads,
            self.kv_heads
        );
        // A rotary width below the head's width would leave lanes unrotated: not done here.
        ensure!(
            self.heads * self.head_dim == self.hidden && self.head_dim.is_multiple_of(2),
            "{file}: llama.rope.dimension_count: expected {} / {} and even, got {}",
            self.hidden,
            self.heads,
            self.head_dim
        );
        Ok(())
    }
}

/// Any GGUF number, as f64.
fn as_number(value: &Value) -> Option<f64> {
    Some(match value {
        Value::U8(v) => f64::from(*v),
        Value::I8(v) => f64::from(*v),
        Value::U16(v) => f64::from(*v),
        Value::I16(v) => f64::from(*v),
        Value::U32(v) => f64::from(*v),
        Value::I32(v) => f64::from(*v),
        Value::U64(v) => *v as f64,
        Value::I64(v) => *v as f64,
        Value::F32(v) => f64::from(*v),
        Value::F64(v) => *v,
        _ => return None,
    })
}
