//! BERT on candle, as far as a sentence encoder needs it: one text at a time, so nothing is padded or masked.
//!
//! ```text
//! x = norm(word[id] + position[t] + kind[0])
//! every layer: x = norm(x + attention(x));  x = norm(x + W2 gelu(W1 x))
//! ```

use anyhow::{Context, Result, bail, ensure};
use candle_core::{DType, Device, Tensor};
use candle_nn::ops::{layer_norm, softmax_last_dim};
use serde::Deserialize;
use std::collections::HashMap;

/// What `config.json` says of the model.
#[derive(Debug, Clone, Deserialize)]
pub struct Config {
    hidden_act: String,
    hidden_size: usize,
    layer_norm_eps: f32,
    max_position_embeddings: usize,
    num_attention_heads: usize,
    num_hidden_layers: usize,
    #[serde(default)]
    position_embedding_type: Option<String>,
}

impl Config {
    /// Reads and checks it; `file` is its name in messages.
    pub fn read(text: &str, file: &str) -> Result<Self> {
        let config: Self = serde_json::from_str(text).with_context(|| format!("{file}: not BERT's"))?;
        ensure!(config.hidden_act == "gelu", "{file}: hidden_act: expected gelu, got {}", config.hidden_act);
        let positions = config.position_embedding_type.as_deref().unwrap_or("absolute");
        ensure!(
            positions == "absolute",
            "{file}: position_embedding_type: expected absolute, got {positions}"
        );
        let (width, heads) = (config.hidden_size, config.num_attention_heads);
        ensure!(
            width > 0 && heads > 0 && width.is_multiple_of(heads),
            "{file}: num_attention_heads: expected a divisor of hidden_size {width}, got {heads}"
        );
        Ok(config)
    }

    /// Elements of a token's state.
    pub fn width(&self) -> usize {
        self.hidden_size
    }

    /// Tokens of the longest text.
    pub fn positions(&self) -> usize {
        self.max_position_embeddings
    }
}

/// The model, in f32.
pub struct Bert {
    config: Config,
    words: Tensor,
    /// Positions and the one kind of text, added up: `[positions, width]`.
    places: Tensor,
    norm: Norm,
    layers: Vec<Layer>,
}

struct Layer {
    q: Linear,
    k: Linear,
    v: Linear,
    o: Linear,
    attention_norm: Norm,
    up: Linear,
    down: Linear,
    norm: Norm,
}

/// `y = x weight^T + bias`.
struct Linear {
    /// `[in, out]`, a view of the file's `[out, in]`.
    weight: Tensor,
    bias: Tensor,
}

struct Norm {
    weight: Tensor,
    bias: Tensor,
    eps: f32,
}

impl Linear {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        Ok(x.matmul(&self.weight)?.broadcast_add(&self.bias)?)
    }
}

impl Norm {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        Ok(layer_norm(x, &self.weight, &self.bias, self.eps)?)
    }
}

/// Tensors of a file, taken by name with their shapes checked.
struct Source<'a> {
    tensors: &'a HashMap<String, Tensor>,
    file: &'a str,
    eps: f32,
}

impl Source<'_> {
    fn tensor(&self, key: &str, shape: &[usize]) -> Result<Tensor> {
        let file = self.file;
        let Some(tensor) = self.tensors.get(key) else { bail!("{file}: {key}: expected a tensor, got none") };
        ensure!(tensor.dims() == shape, "{file}: {key}: expected {shape:?}, got {:?}", tensor.dims());
        Ok(tensor.to_dtype(DType::F32)?)
    }

    fn linear(&self, key: &str, inside: usize, out: usize) -> Result<Linear> {
        let weight = self.tensor(&format!("{key}.weight"), &[out, inside])?.t()?;
        Ok(Linear { weight, bias: self.tensor(&format!("{key}.bias"), &[out])? })
    }

    fn norm(&self, key: &str, width: usize) -> Result<Norm> {
        let weight = self.tensor(&format!("{key}.LayerNorm.weight"), &[width])?;
        Ok(Norm { weight, bias: self.tensor(&format!("{key}.LayerNorm.bias"), &[width])?, eps: self.eps })
    }

    fn layer(&self, layer: usize, width: usize) -> Result<Layer> {
        let key = |name: &str| format!("encoder.layer.{layer}.{name}");
        let up = key("intermediate.dense");
        let inner = self.tensors.get(&format!("{up}.bias")).map_or(0, Tensor::elem_count);
        Ok(Layer {
            q: self.linear(&key("attention.self.query"), width, width)?,
            k: self.linear(&key("attention.self.key"), width, width)?,
            v: self.linear(&key("attention.self.value"), width, width)?,
            o: self.linear(&key("attention.output.dense"), width, width)?,
            attention_norm: self.norm(&key("attention.output"), width)?,
            up: self.linear(&up, width, inner)?,
            down: self.linear(&key("output.dense"), inner, width)?,
            norm: self.norm(&key("output"), width)?,
        })
    }
}

impl Bert {
    /// Builds the model from tensors under their published names; `file` is where they come from in messages.
    pub fn new(config: Config, tensors: &HashMap<String, Tensor>, file: &str) -> Result<Self> {
        let (width, positions) = (config.width(), config.positions());
        let source = Source { tensors, file, eps: config.layer_norm_eps };
        let rows =
            |key: &str| tensors.get(key).map_or(0, |tensor| tensor.dims().first().copied().unwrap_or(0));
        let (words, kinds) = ("embeddings.word_embeddings.weight", "embeddings.token_type_embeddings.weight");
        let kinds = source.tensor(kinds, &[rows(kinds), width])?;
        let places = source.tensor("embeddings.position_embeddings.weight", &[positions, width])?;
        let layers = (0..config.num_hidden_layers).map(|layer| source.layer(layer, width));
        Ok(Self {
            words: source.tensor(words, &[rows(words), width])?,
            places: places.broadcast_add(&kinds.get(0).with_context(|| format!("{file}: kinds of text"))?)?,
            norm: source.norm("embeddings", width)?,
            layers: layers.collect::<Result<_>>()?,
            config,
        })
    }

    /// The states `[tokens, width]` of one text's ids, of which there are 1 to [`Config::positions`].
    pub fn run(&self, ids: &[u32]) -> Result<Tensor> {
        let most = self.config.positions();
        ensure!((1..=most).contains(&ids.len()), "ids: expected 1 to {most}, got {}", ids.len());
        let words = self.words.index_select(&Tensor::new(ids, &Device::Cpu)?, 0)?;
        let mut x = self.norm.forward(&(words + self.places.narrow(0, 0, ids.len())?)?)?;
        for layer in &self.layers {
            x = layer.attention_norm.forward(&(&x + self.attention(layer, &x)?)?)?;
            let inner = layer.up.forward(&x)?.gelu_erf()?;
            x = layer.norm.forward(&(&x + layer.down.forward(&inner)?)?)?;
        }
        Ok(x)
    }

    fn attention(&self, layer: &Layer, x: &Tensor) -> Result<Tensor> {
        let (tokens, width) = x.dims2()?;
        let heads = self.config.num_attention_heads;
        // [heads, tokens, width of a head]
        let split = |linear: &Linear| -> Result<Tensor> {
            let rows = linear.forward(x)?.reshape((tokens, heads, width / heads))?;
            Ok(rows.transpose(0, 1)?.contiguous()?)
        };
        let (q, k, v) = (split(&layer.q)?, split(&layer.k)?, split(&layer.v)?);
        let scale = ((width / heads) as f64).sqrt().recip();
        let weights = softmax_last_dim(&(q.matmul(&k.t()?.contiguous()?)? * scale)?)?;
        layer.o.forward(&weights.matmul(&v)?.transpose(0, 1)?.contiguous()?.reshape((tokens, width))?)
    }
}
