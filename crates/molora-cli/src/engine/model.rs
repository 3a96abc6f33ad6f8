//! A llama-like model on candle: embedding, blocks, tied output.

use super::block::{Block, norm};
use super::config::Config;
use super::expert::{ExpertLinear, Forms};
use super::linear::{Add, Observer};
use super::mixture::{Mixture, Module};
use super::projection::Projection;
use super::setting::Setting;
use anyhow::{Context, Result, bail, ensure};
use candle_core::quantized::gguf_file::Content;
use candle_core::{Device, Tensor};
use molora::host::Device as LoraDevice;
use std::fs::File;
use std::io::{BufReader, Seek};
use std::ops::Range;
use std::path::Path;

/// The model, in f32.
pub struct Model {
    config: Config,
    embedding: Tensor,
    blocks: Vec<Block>,
    norm: Tensor,
    /// `[vocabulary, hidden]`.
    output: Tensor,
    cos: Tensor,
    sin: Tensor,
    first_expert_layer: usize,
}

/// One run through some layers.
pub struct Pass<'a, 'b> {
    /// Which experts are taken.
    pub setting: &'a Setting,
    /// Keys and values of the tokens before; without one the sequences start at position 0.
    pub cache: Option<&'a mut Cache>,
    /// Sees every linear with experts.
    pub observer: Option<&'a mut Observer<'b>>,
}

/// Keys and values of every layer.
pub struct Cache {
    pub(super) layers: Vec<Option<(Tensor, Tensor)>>,
    pub(super) tokens: usize,
}

impl Model {
    /// Reads a GGUF file and dequantises it to f32. `device` computes the linears with experts.
    pub fn from_gguf(path: &Path, mixture: &Mixture, device: &LoraDevice) -> Result<(Self, Content)> {
        let name = path.display().to_string();
        let file = File::open(path).with_context(|| format!("{name}: cannot be opened"))?;
        let mut reader = BufReader::new(file);
        let content = Content::read(&mut reader).with_context(|| format!("{name}: not a GGUF file"))?;
        let config = Config::from_gguf(&content.metadata, &name)?;
        reader.rewind()?;
        let model = Self::new(config, mixture, device, |key| {
            if !content.tensor_infos.contains_key(key) {
                return Ok(None);
            }
            let tensor =
                content.tensor(&mut reader, key, &Device::Cpu).with_context(|| format!("{name}: {key}"))?;
            Ok(Some(tensor.dequantize(&Device::Cpu)?))
        })?;
        Ok((model, content))
    }

    /// Builds the model from a source of f32 tensors under their GGUF names.
    pub fn new(
        config: Config,
        mixture: &Mixture,
        device: &LoraDevice,
        mut source: impl FnMut(&str) -> Result<Option<Tensor>>,
    ) -> Result<Self> {
        for &(layer, projection) in mixture.modules.keys() {
            ensure!(
                layer < config.layers,
                "experts: layers.{layer}.{}: expected a layer below {}",
                projection.name(),
                config.layers
            );
        }
        let embedding = required(source("token_embd.weight")?, "token_embd.weight")?;
        let blocks = (0..config.layers)
            .map(|layer| Block::new(layer, &config, mixture, device, &mut |key| required(source(key)?, key)))
            .collect::<Result<_>>()?;
        // A model without an output matrix of its own uses the embedding.
        let output = source("output.weight")?.unwrap_or_else(|| embedding.clone());
        let (cos, sin) = rotation(&config)?;
        Ok(Self {
            embedding,
            blocks,
            norm: required(source("output_norm.weight")?, "output_norm.weight")?,
            output,
            cos,
            sin,
            first_expert_layer: mixture.first_layer().unwrap_or(config.layers),
            config,
        })
    }

    /// The model's sizes.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The layers that no setting changes.
    pub fn shared_layers(&self) -> Range<usize> {
        0..self.first_expert_layer
    }

    /// The layers from the first one with an expert on.
    pub fn expert_layers(&self) -> Range<usize> {
        self.first_expert_layer..self.config.layers
    }

    /// The calls of all linears with experts so far, by form.
    pub fn forms(&self) -> Forms {
        let mut forms = Forms::new();
        for linear in self.blocks.iter().flat_map(Block::expert_linears) {
            linear.forms().iter().for_each(|(form, calls)| *forms.entry(form).or_default() += calls);
        }
        forms
    }

    /// One linear with experts, to be changed; `None` where there is none.
    pub fn expert_linear_mut(
        &mut self,
        (layer, projection): (usize, Projection),
    ) -> Option<&mut ExpertLinear> {
        self.blocks.get_mut(layer)?.expert_linear_mut(projection)
    }

    /// The places of all linears with experts.
    pub fn expert_places(&self) -> Vec<(usize, Projection)> {
        let at = |(layer, block): (usize, &Block)| {
            block.expert_projections().map(move |p| (layer, p)).collect::<Vec<_>>()
        };
        self.blocks.iter().enumerate().flat_map(at).collect()
    }

    /// An empty cache.
    pub fn cache(&self) -> Cache {
        Cache { layers: vec![None; self.config.layers], tokens: 0 }
    }

    /// Embeds sequences of the same length: `[sequences, tokens, hidden]`.
    pub fn embed(&self, sequences: &[&[u32]]) -> Result<Tensor> {
        let tokens = sequences.first().map_or(0, |ids| ids.len());
        let vocabulary = self.embedding.dim(0)?;
        ensure!(tokens > 0, "sequences: expected at least one token");
        for ids in sequences {
            ensure!(ids.len() == tokens, "sequences: expected {tokens} tokens each, got {}", ids.len());
            if let Some(id) = ids.iter().find(|&&id| id as usize >= vocabulary) {
                bail!("sequences: expected ids below {vocabulary}, got {id}");
            }
        }
        let ids = Tensor::from_vec(sequences.concat(), sequences.len() * tokens, &Device::Cpu)?;
        let x = self.embedding.index_select(&ids, 0)?;
        Ok(x.reshape((sequences.len(), tokens, self.config.hidden))?)
    }

    /// Runs some layers over `[sequences, tokens, hidden]`.
    pub fn run(&mut self, layers: Range<usize>, x: Tensor, pass: &mut Pass) -> Result<Tensor> {
        let tokens = x.dim(1)?;
        let start = pass.cache.as_ref().map_or(0, |cache| cache.tokens);
        ensure!(
            start + tokens <= self.config.context,
            "tokens: expected at most {}, got {}",
            self.config.context,
            start + tokens
        );
        let (cos, sin) = (self.cos.narrow(0, start, tokens)?, self.sin.narrow(0, start, tokens)?);
        let mask = causal_mask(start, tokens)?;
        let mut x = x;
        for layer in layers {
            x = self.blocks[layer].forward(x, &cos, &sin, mask.as_ref(), pass)?;
        }
        Ok(x)
    }

    /// Logits of `[tokens, hidden]`, after the last norm: `[tokens, vocabulary]`.
    pub fn logits(&self, x: &Tensor) -> Result<Tensor> {
        Ok(self.last_norm(x)?.matmul(&self.output.t()?)?)
    }

    /// The last norm of `[tokens, hidden]`.
    pub fn last_norm(&self, x: &Tensor) -> Result<Tensor> {
        norm(x, &self.norm, self.config.norm_eps)
    }

    /// `[vocabulary, hidden]`: what the logits are products with.
    pub fn output(&self) -> &Tensor {
        &self.output
    }

    /// Puts what is being trained beside the linears of a mixture; the model was built without one.
    pub fn train(
        &mut self,
        mixture: &Mixture,
        mut add: impl FnMut((usize, Projection), &Module) -> Result<Add>,
    ) -> Result<()> {
        for (&(layer, projection), module) in &mixture.modules {
            let at = format!("layers.{layer}.{}", projection.name());
            // Their rows have another order in the model's file.
            ensure!(projection.rotated_heads(&self.config).is_none(), "{at}: q and k are not trained here");
            let block = self.blocks.get_mut(layer);
            let block = block.with_context(|| format!("{at}: expected a layer of the model"))?;
            block.train(projection, add((layer, projection), module)?).context(at)?;
        }
        self.first_expert_layer = mixture.first_layer().unwrap_or(self.config.layers);
        Ok(())
    }
}

impl Cache {
    /// To be called once all layers have seen these tokens.
    pub fn advance(&mut self, tokens: usize) {
        self.tokens += tokens;
    }

    /// Tokens that all layers have seen.
    pub fn tokens(&self) -> usize {
        self.tokens
    }
}

fn required(tensor: Option<Tensor>, key: &str) -> Result<Tensor> {
    tensor.with_context(|| format!("model: {key}: expected a tensor, got nothing"))
}

/// Cosines and sines of every position: `[context, head_dim / 2]`. The angles are exact to f64.
fn rotation(config: &Config) -> Result<(Tensor, Tensor)> {
    let half = config.head_dim / 2;
    let angle = |at: usize| {
        let frequency = config.rope_base.powf(-((2 * (at % half)) as f64) / config.head_dim as f64);
        (at / half) as f64 * frequency
    };
    let table = |f: fn(f64) -> f64| -> Result<Tensor> {
        let values: Vec<f32> = (0..config.context * half).map(|at| f(angle(at)) as f32).collect();
        Ok(Tensor::from_vec(values, (config.context, half), &Device::Cpu)?)
    };
    Ok((table(f64::cos)?, table(f64::sin)?))
}

/// `[tokens, start + tokens]`: minus infinity where a token would see a later one. One token sees all: no mask.
fn causal_mask(start: usize, tokens: usize) -> Result<Option<Tensor>> {
    if tokens == 1 {
        return Ok(None);
    }
    let width = start + tokens;
    let value = |at: usize| if at % width > start + at / width { f32::NEG_INFINITY } else { 0.0 };
    let values: Vec<f32> = (0..tokens * width).map(value).collect();
    Ok(Some(Tensor::from_vec(values, (tokens, width), &Device::Cpu)?))
}
