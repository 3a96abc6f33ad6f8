//! One llama block: attention and the feed-forward part, each behind an RMS norm.

use super::config::Config;
use super::expert::ExpertLinear;
use super::linear::{Add, Linear};
use super::mixture::{Mixture, Module};
use super::model::{Cache, Pass};
use super::projection::{Projection, interleave_rows};
use anyhow::{Result, ensure};
use candle_core::{D, Tensor};
use candle_nn::ops::{rms_norm, rms_norm_slow, silu, softmax, softmax_last_dim};
use candle_nn::rotary_emb::{rope_i, rope_i_slow};
use molora::adapter::Lora;
use molora::host::Device as LoraDevice;

/// One block.
pub struct Block {
    layer: usize,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    norm_eps: f32,
    attention_norm: Tensor,
    feed_forward_norm: Tensor,
    /// In the order of [`Projection::ALL`].
    linears: Vec<Linear>,
}

impl Block {
    /// `source` gives the tensors of the model under their GGUF names.
    pub fn new(
        layer: usize,
        config: &Config,
        mixture: &Mixture,
        device: &LoraDevice,
        source: &mut dyn FnMut(&str) -> Result<Tensor>,
    ) -> Result<Self> {
        let mut linears = Vec::new();
        for projection in Projection::ALL {
            let key = format!("blk.{layer}.{}.weight", projection.gguf());
            let weight = source(&key)?;
            let shape = weight.dims2()?;
            let (out_features, in_features) = expected_shape(config, projection);
            ensure!(
                out_features.is_none_or(|n| n == shape.0) && in_features.is_none_or(|n| n == shape.1),
                "model: {key}: expected [{out_features:?}, {in_features:?}], got {shape:?}"
            );
            let module = mixture.modules.get(&(layer, projection));
            let module = module.map(|module| in_gguf_order(module, config, projection)).transpose()?;
            linears.push(Linear::new(device, weight, (layer, projection), module.as_ref())?);
        }
        Ok(Self {
            layer,
            heads: config.heads,
            kv_heads: config.kv_heads,
            head_dim: config.head_dim,
            norm_eps: config.norm_eps,
            attention_norm: source(&format!("blk.{layer}.attn_norm.weight"))?,
            feed_forward_norm: source(&format!("blk.{layer}.ffn_norm.weight"))?,
            linears,
        })
    }

    /// The linears with experts.
    pub fn expert_linears(&self) -> impl Iterator<Item = &ExpertLinear> {
        self.linears.iter().filter_map(Linear::experts)
    }

    /// Where they stand.
    pub fn expert_projections(&self) -> impl Iterator<Item = Projection> + '_ {
        Projection::ALL.into_iter().filter(|&p| self.linears[p as usize].experts().is_some())
    }

    /// A linear without experts, to be trained.
    pub fn train(&mut self, projection: Projection, add: Add) -> Result<()> {
        self.linears[projection as usize].train(add)
    }

    /// One of them, to be changed.
    pub fn expert_linear_mut(&mut self, projection: Projection) -> Option<&mut ExpertLinear> {
        self.linears[projection as usize].experts_mut()
    }

    /// `x` is `[sequences, tokens, hidden]`.
    pub fn forward(
        &mut self,
        x: Tensor,
        cos: &Tensor,
        sin: &Tensor,
        mask: Option<&Tensor>,
        pass: &mut Pass,
    ) -> Result<Tensor> {
        let (sequences, tokens, hidden) = x.dims3()?;
        let x = x.reshape((sequences * tokens, hidden))?;
        let h = norm(&x, &self.attention_norm, self.norm_eps)?;
        let q = self.linear(Projection::Q, &h, pass)?;
        let k = self.linear(Projection::K, &h, pass)?;
        let v = self.linear(Projection::V, &h, pass)?;
        let split = |t: Tensor, heads: usize| -> Result<Tensor> {
            Ok(t.reshape((sequences, tokens, heads, self.head_dim))?.transpose(1, 2)?.contiguous()?)
        };
        let q = rotate(&split(q, self.heads)?, cos, sin)?;
        let k = rotate(&split(k, self.kv_heads)?, cos, sin)?;
        let v = split(v, self.kv_heads)?;
        let (k, v) = remember(pass.cache.as_deref_mut(), self.layer, k, v)?;
        let h = self.attend(q, k, v, mask)?;
        let x = (x + self.linear(Projection::O, &h, pass)?)?;

        let h = norm(&x, &self.feed_forward_norm, self.norm_eps)?;
        let gate = silu(&self.linear(Projection::Gate, &h, pass)?)?;
        let h = (gate * self.linear(Projection::Up, &h, pass)?)?;
        let x = (x + self.linear(Projection::Down, &h, pass)?)?;
        Ok(x.reshape((sequences, tokens, hidden))?)
    }

    fn linear(&mut self, projection: Projection, x: &Tensor, pass: &mut Pass) -> Result<Tensor> {
        self.linears[projection as usize].forward(x, pass.setting, &mut pass.observer)
    }

    /// Grouped attention: the query heads that share a key head are rows of one product.
    fn attend(&self, q: Tensor, k: Tensor, v: Tensor, mask: Option<&Tensor>) -> Result<Tensor> {
        let (sequences, _, tokens, _) = q.dims4()?;
        let seen = k.dim(2)?;
        let group = self.heads / self.kv_heads;
        let q = q.reshape((sequences, self.kv_heads, group * tokens, self.head_dim))?;
        let scale = 1.0 / (self.head_dim as f64).sqrt();
        let mut scores = (q.matmul(&k.t()?)? * scale)?;
        if let Some(mask) = mask {
            let shaped = scores.reshape((sequences, self.kv_heads, group, tokens, seen))?;
            scores = shaped.broadcast_add(mask)?.reshape((sequences, self.kv_heads, group * tokens, seen))?;
        }
        let shares =
            if scores.track_op() { softmax(&scores, D::Minus1)? } else { softmax_last_dim(&scores)? };
        let out = shares.matmul(&v)?;
        let out = out.reshape((sequences, self.heads, tokens, self.head_dim))?.transpose(1, 2)?;
        Ok(out.reshape((sequences * tokens, self.heads * self.head_dim))?)
    }
}

/// The RMS norm of a row; of what a loss is to have gradients of, by operations that have some.
pub(super) fn norm(x: &Tensor, weight: &Tensor, eps: f32) -> Result<Tensor> {
    Ok(if x.track_op() { rms_norm_slow(x, weight, eps)? } else { rms_norm(&x.contiguous()?, weight, eps)? })
}

/// Likewise.
fn rotate(x: &Tensor, cos: &Tensor, sin: &Tensor) -> Result<Tensor> {
    Ok(if x.track_op() { rope_i_slow(x, cos, sin)? } else { rope_i(x, cos, sin)? })
}

/// The sizes that the config fixes; the width of the feed-forward part comes from the weights.
fn expected_shape(config: &Config, projection: Projection) -> (Option<usize>, Option<usize>) {
    let hidden = Some(config.hidden);
    match projection {
        Projection::Q | Projection::O => (hidden, hidden),
        Projection::K | Projection::V => (Some(config.kv_heads * config.head_dim), hidden),
        Projection::Gate | Projection::Up => (None, hidden),
        Projection::Down => (hidden, None),
    }
}

/// The module with the rows of B as the model's file orders the outputs.
fn in_gguf_order(module: &Module, config: &Config, projection: Projection) -> Result<Module> {
    let mut module = module.clone();
    if let Some(heads) = projection.rotated_heads(config) {
        for lora in module.experts.iter_mut().chain([&mut module.attention]).flatten() {
            let (a, b): (Vec<f32>, Vec<f32>) = (lora.a().collect(), lora.b().collect());
            let b = interleave_rows(&b, lora.rank(), heads);
            *lora = Lora::new(lora.in_features(), lora.out_features(), lora.rank(), lora.scaling(), &a, &b)?;
        }
    }
    Ok(module)
}

/// Appends to the cache, if there is one, and gives back all keys and values so far.
fn remember(cache: Option<&mut Cache>, layer: usize, k: Tensor, v: Tensor) -> Result<(Tensor, Tensor)> {
    let Some(cache) = cache else { return Ok((k, v)) };
    let all = match cache.layers[layer].take() {
        Some((old_k, old_v)) => (Tensor::cat(&[&old_k, &k], 2)?, Tensor::cat(&[&old_v, &v], 2)?),
        None => (k, v),
    };
    cache.layers[layer] = Some(all.clone());
    Ok(all)
}
