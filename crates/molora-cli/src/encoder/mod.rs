//! A sentence encoder: text to an embedding of norm 1. all-MiniLM-L6-v2 is the one that the published systems use.
//!
//! ```text
//! text -> word pieces, at most 256 -> BERT -> mean over the tokens -> divided by its norm
//! ```

pub mod bert;

use anyhow::{Context, Result, anyhow};
use bert::{Bert, Config};
use candle_core::Device;
use std::path::Path;
use tokenizers::{Tokenizer, TruncationParams};

/// Word pieces of a text, its two marks included; what comes later is cut off.
const MAX_TOKENS: usize = 256;

/// Text to embeddings.
pub struct Encoder {
    tokenizer: Tokenizer,
    bert: Bert,
    dims: usize,
}

impl Encoder {
    /// Reads a folder that holds `config.json`, `tokenizer.json` and `model.safetensors`.
    pub fn load(folder: &Path) -> Result<Self> {
        let path = |name: &str| folder.join(name);
        let name = |name: &str| path(name).display().to_string();
        let file = name("config.json");
        let text = std::fs::read_to_string(&file).with_context(|| format!("{file}: cannot be read"))?;
        let config = Config::read(&text, &file)?;

        let file = name("tokenizer.json");
        let mut tokenizer = Tokenizer::from_file(&file).map_err(|e| anyhow!("{file}: {e}"))?;
        let max_length = MAX_TOKENS.min(config.positions());
        let truncation = TruncationParams { max_length, ..TruncationParams::default() };
        tokenizer.with_truncation(Some(truncation)).map_err(|e| anyhow!("{file}: {e}"))?;
        // Texts run one at a time: an embedding does not depend on its batch.
        tokenizer.with_padding(None);

        let file = name("model.safetensors");
        let tensors = candle_core::safetensors::load(path("model.safetensors"), &Device::Cpu)
            .with_context(|| format!("{file}: cannot be read as safetensors"))?;
        let dims = config.width();
        Ok(Self { tokenizer, bert: Bert::new(config, &tensors, &file)?, dims })
    }

    /// Elements of an embedding.
    pub fn dims(&self) -> usize {
        self.dims
    }

    /// The word pieces of a text, between the marks of its beginning and end.
    pub fn ids(&self, text: &str) -> Result<Vec<u32>> {
        let encoding = self.tokenizer.encode(text, true).map_err(|e| anyhow!("text: {e}"))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// Embeddings `[texts, dims]`, row after row, each of norm 1.
    pub fn embed(&self, texts: &[impl AsRef<str>]) -> Result<Vec<f32>> {
        let mut rows = Vec::with_capacity(texts.len() * self.dims);
        for text in texts {
            let states = self.bert.run(&self.ids(text.as_ref())?)?;
            let mean = states.mean(0)?.to_vec1::<f32>()?;
            let norm = mean.iter().map(|&v| f64::from(v) * f64::from(v)).sum::<f64>().sqrt();
            rows.extend(mean.iter().map(|&v| (f64::from(v) / norm.max(1e-12)) as f32));
        }
        Ok(rows)
    }

    /// An adapter's embedding: the mean of its sample texts' embeddings.
    pub fn adapter(&self, texts: &[impl AsRef<str>]) -> Result<Vec<f32>> {
        molora::retrieval::mean(&self.embed(texts)?, self.dims).context("sample texts")
    }
}
