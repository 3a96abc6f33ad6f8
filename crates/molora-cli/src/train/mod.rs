//! `molora train`: what the demo's systems need beside the experts, by the published recipes, and where it is kept.
//!
//! The language model and the experts are frozen. Layers below the first expert run once a sequence; the others, and their
//! gradients, are candle's. Held-out sequences 8 to 15 of each domain are what is fitted to; the demo never measures them.

pub mod attention;
pub mod gates;

use crate::demo::{files, progress};
use crate::engine::host::with_slice;
use crate::engine::linear::Add;
use crate::engine::mixture::{Mixture, Module};
use crate::engine::model::{Model, Pass};
use crate::engine::projection::Projection;
use crate::engine::setting::Setting;
use anyhow::{Context, Result, ensure};
use candle_core::{Device, Tensor, Var};
use candle_nn::{AdamW, Optimizer, ParamsAdamW};
use molora::host::Device as LoraDevice;
use rayon::prelude::*;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// Held-out sequences of each domain that are fitted to.
pub const FIT: std::ops::Range<usize> = 8..16;

/// A linear's place in the model.
type At = (usize, Projection);

/// What is trained.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum What {
    /// PHATGOOSE: a sigmoid gate for every expert and linear, each expert on its own domain
    Gates,
    /// RAMoLE: the adapter whose attention weighs the experts, on all domains
    Attention,
}

/// Train what the demo's systems need beside the experts, and write it as data
#[derive(Debug, Clone, clap::Args)]
pub struct TrainArgs {
    /// What to train
    #[arg(value_enum)]
    pub what: What,
    /// Where to write: a safetensors file of gates, or a folder with a PEFT adapter
    #[arg(long, value_name = "PATH")]
    pub out: PathBuf,
    /// Steps, of one sequence each; of the gates for each expert [default: 100 for gates, 400 for attention]
    #[arg(long, value_name = "N")]
    pub steps: Option<usize>,
    /// Only so many tokens of each sequence, its first [default: all]
    #[arg(long, value_name = "N")]
    pub tokens: Option<usize>,
    /// Another GGUF file of a llama-like model [default: fetched once]
    #[arg(long, value_name = "FILE")]
    pub model: Option<PathBuf>,
    /// Another folder with one PEFT adapter in each subfolder
    #[arg(long, value_name = "DIR")]
    pub experts: Option<PathBuf>,
    /// Another file of routers, whose order of experts is taken
    #[arg(long, value_name = "FILE")]
    pub routers: Option<PathBuf>,
    /// Other held-out token ids
    #[arg(long, value_name = "FILE")]
    pub heldout: Option<PathBuf>,
}

/// Runs the command.
pub fn run(args: &TrainArgs) -> Result<()> {
    let experts = files::given_or_own(args.experts.as_deref(), "experts", "experts")?;
    let routers = files::given_or_own(args.routers.as_deref(), "routers.safetensors", "routers")?;
    let mixture = Mixture::load(&experts, &routers, None)?;
    let path = args.model.clone().map_or_else(crate::fetch::model, Ok)?;
    let (model, _) = Model::from_gguf(&path, &Mixture::default(), &LoraDevice::by_name("cpu")?)?;
    let all = files::given_or_own(args.heldout.as_deref(), "heldout.safetensors", "heldout")?;
    let texts = files::cut(&files::held_out(&all)?, FIT, &[], args.tokens.unwrap_or(usize::MAX))?;
    let mut lesson = Lesson::new(model, mixture, &texts)?;
    match args.what {
        What::Gates => gates::train(&mut lesson, args.steps.unwrap_or(100), &args.out),
        What::Attention => attention::train(&mut lesson, args.steps.unwrap_or(400), &args.out),
    }
}

/// A sequence, as it comes to the first layer with experts.
struct Text {
    /// Whose domain it is.
    expert: usize,
    ids: Vec<u32>,
    /// `[1, tokens, hidden]`.
    x: Tensor,
}

/// The frozen model, and what is read.
pub struct Lesson {
    model: Model,
    mixture: Mixture,
    texts: Vec<Text>,
}

impl Lesson {
    /// Of a model without experts; the texts' domains are the experts' names.
    pub fn new(mut model: Model, mixture: Mixture, texts: &BTreeMap<String, Vec<Vec<u32>>>) -> Result<Self> {
        let first = mixture.first_layer().context("experts: expected at least one")?;
        let mut read = Vec::new();
        let bar = progress(texts.values().map(Vec::len).sum::<usize>() as u64)?;
        for (domain, sequences) in texts {
            let expert = mixture.names.iter().position(|name| name == domain);
            let expert =
                expert.with_context(|| format!("{domain}: expected an expert of that name, got none"))?;
            ensure!(!sequences.is_empty(), "{domain}: expected sequences {FIT:?} to fit to, got fewer");
            for ids in sequences {
                bar.set_message(format!("layers below {first}: {domain}"));
                let mut pass = Pass { setting: &Setting::Base, cache: None, observer: None };
                let x = model.run(0..first, model.embed(&[ids])?, &mut pass)?;
                read.push(Text { expert, ids: ids.clone(), x });
                bar.inc(1);
            }
        }
        bar.finish_and_clear();
        Ok(Self { model, mixture, texts: read })
    }

    /// Puts what is to be trained beside every linear with experts.
    pub fn place(&mut self, add: impl FnMut(At, &Module) -> Result<Add>) -> Result<()> {
        self.model.train(&self.mixture, add)
    }

    /// Steps of Adam over some texts in turn; `before` is called before each. Returns the mean loss of the first and of the last
    /// tenth of them.
    fn fit(
        &mut self,
        texts: &[usize],
        variables: Vec<Var>,
        (steps, rate): (usize, f64),
        mut before: impl FnMut(usize),
    ) -> Result<[f64; 2]> {
        let mut adam =
            AdamW::new(variables, ParamsAdamW { lr: rate, weight_decay: 0.0, ..Default::default() })?;
        let bar = progress(steps as u64)?;
        let mut losses = Vec::new();
        for step in 0..steps {
            before(step);
            let (loss, surrogate) = self.loss(texts[step % texts.len()])?;
            adam.set_learning_rate(rate * (1.0 - step as f64 / steps as f64));
            adam.step(&surrogate.backward()?)?;
            losses.push(loss);
            bar.set_message(format!("loss {loss:.3}"));
            bar.inc(1);
        }
        bar.finish_and_clear();
        let mean = |part: &[f64]| part.iter().sum::<f64>() / part.len().max(1) as f64;
        let tenth = losses.len().div_ceil(10);
        Ok([mean(&losses[..tenth]), mean(&losses[losses.len() - tenth..])])
    }

    /// The mean loss of a text's predicted tokens, and a number that has its gradient.
    ///
    /// Of the large last product only the gradient of what comes in is wanted, `(p - onehot) E`: it is made here, so that candle
    /// does not make the frozen embedding's too.
    pub fn loss(&mut self, text: usize) -> Result<(f64, Tensor)> {
        let Text { ids, x, .. } = &self.texts[text];
        let mut pass = Pass { setting: &Setting::Base, cache: None, observer: None };
        let h = self.model.run(self.model.expert_layers(), x.clone(), &mut pass)?;
        let predicted = ids.len() - 1;
        let h = self.model.last_norm(&h.get(0)?.narrow(0, 0, predicted)?)?;
        let logits = h.detach().matmul(&self.model.output().t()?)?;
        let mut shares = with_slice(&candle_nn::ops::softmax_last_dim(&logits)?, <[f32]>::to_vec)?;
        let width = shares.len() / predicted;
        let losses: Vec<f64> = shares
            .par_chunks_exact_mut(width)
            .zip(&ids[1..])
            .map(|(shares, &id)| {
                let loss = -f64::from(shares[id as usize]).ln();
                shares[id as usize] -= 1.0;
                loss
            })
            .collect();
        let slope =
            Tensor::from_vec(shares, (predicted, width), &Device::Cpu)?.matmul(self.model.output())?;
        let surrogate = ((h * slope)?.sum_all()? / predicted as f64)?;
        Ok((losses.iter().sum::<f64>() / predicted as f64, surrogate))
    }
}

/// `[A^T, B^T]`: `x [tokens, in]` times both, one after the other, is the adapter's product without its scaling.
fn factors(lora: &molora::Lora) -> Result<[Tensor; 2]> {
    let (rank, a, b) = (lora.rank(), lora.a().collect::<Vec<_>>(), lora.b().collect::<Vec<_>>());
    let a = Tensor::from_vec(a, (rank, lora.in_features()), &Device::Cpu)?;
    let b = Tensor::from_vec(b, (lora.out_features(), rank), &Device::Cpu)?;
    Ok([a.t()?.contiguous()?, b.t()?.contiguous()?])
}
