//! What `molora demo` is asked, and the files that it names.

use super::perplexity::{HeldOut, Perplexity};
use super::{files, known, systems};
use anyhow::{Context, Result};
use clap::Args;
use std::path::{Path, PathBuf};

/// Held-out perplexity, golden values and a prompt of your own, on SmolLM2-135M-Instruct with five LoRA experts
#[derive(Debug, Clone, Args)]
pub struct DemoArgs {
    /// Answer this text with the routed mixture, instead of measuring
    #[arg(long, value_name = "TEXT")]
    pub prompt: Option<String>,
    /// Tokens of the answer, at most
    #[arg(long, value_name = "N", default_value_t = 64, requires = "prompt")]
    pub max_tokens: usize,
    /// 0 always takes the most likely token
    #[arg(long, value_name = "T", default_value_t = 0.0, requires = "prompt", value_parser = temperature)]
    pub temperature: f64,
    /// Seed of the random numbers of --temperature
    #[arg(long, value_name = "N", default_value_t = 0, requires = "prompt")]
    pub seed: u64,
    /// Published systems beside the bare model, the single experts and their average, instead of the demo's own settings
    #[arg(long, value_name = "NAMES", value_enum, value_delimiter = ',', conflicts_with = "prompt")]
    pub system: Vec<systems::System>,
    /// Another sentence encoder for --system ramole, as `molora retrieve` takes [default: fetched once]
    #[arg(long, value_name = "DIR")]
    pub encoder: Option<PathBuf>,
    /// All held-out sequences; with --system the first 8 of each domain, since the others are fitted to
    #[arg(long, conflicts_with = "sequences")]
    pub full: bool,
    /// Held-out sequences of each domain
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..))]
    pub sequences: u32,
    /// Only so many tokens of each sequence, its first, and no golden sequence [default: all]
    #[arg(long, value_name = "N")]
    pub tokens: Option<usize>,
    /// Only these domains [default: all]
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    pub domains: Vec<String>,
    /// What computes the linears with experts: best, cpu, cuda or wgpu
    #[arg(long, value_name = "NAME", default_value = "best")]
    pub device: String,
    /// Another GGUF file of a llama-like model [default: fetched once]
    #[arg(long, value_name = "FILE")]
    pub model: Option<PathBuf>,
    /// Another folder with one PEFT adapter in each subfolder
    #[arg(long, value_name = "DIR")]
    pub experts: Option<PathBuf>,
    /// The experts in the order of the routers' rows [default: as the routers' file says, else alphabetical]
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    pub order: Option<Vec<String>>,
    /// Another file of routers
    #[arg(long, value_name = "FILE")]
    pub routers: Option<PathBuf>,
    /// PHATGOOSE's gates of other experts, as `molora train gates` writes them
    #[arg(long, value_name = "FILE")]
    pub gates: Option<PathBuf>,
    /// RAMoLE's router adapter of other experts, as `molora train attention` writes it
    #[arg(long, value_name = "DIR")]
    pub attention: Option<PathBuf>,
    /// Other held-out token ids
    #[arg(long, value_name = "FILE")]
    pub heldout: Option<PathBuf>,
    /// Another golden sequence
    #[arg(long, value_name = "FILE")]
    pub golden: Option<PathBuf>,
    /// Other expected perplexities
    #[arg(long, value_name = "FILE")]
    pub expected: Option<PathBuf>,
    /// Where to draw which experts each token took
    #[arg(long, value_name = "FILE", default_value = "molora-demo.svg")]
    pub picture: PathBuf,
    /// Where to write the picture's choices as JSON lines, for `molora trace`
    #[arg(long, value_name = "FILE")]
    pub trace: Option<PathBuf>,
    /// Print one JSON object instead of a table
    #[arg(long)]
    pub json: bool,
}

impl DemoArgs {
    /// The held-out texts, all of them.
    pub(super) fn all_sequences(&self) -> Result<HeldOut> {
        files::held_out(&files::given_or_own(self.heldout.as_deref(), "heldout.safetensors", "heldout")?)
    }

    /// What is measured: of each domain that was asked for at most so many sequences.
    pub(super) fn held_out(&self, all: &HeldOut, sequences: usize) -> Result<HeldOut> {
        files::cut(all, 0..sequences, &self.domains, self.tokens.unwrap_or(usize::MAX))
    }

    /// Whether the crate's own figures say anything: they do not about other models or experts.
    pub(super) fn is_own_mixture(&self) -> bool {
        self.model.is_none() && self.experts.is_none() && self.routers.is_none()
    }

    /// What was trained for these experts: the file given, or the crate's own where the experts are.
    pub(super) fn trained(&self, given: Option<&Path>, own: &str, option: &str) -> Result<PathBuf> {
        known(given, own, option, self.is_own_mixture())?.with_context(|| {
            format!("--{option}: expected what `molora train {option}` wrote for these experts, got nothing")
        })
    }

    /// The independent figures of the texts that are measured, where there are some.
    pub(super) fn expected(&self) -> Result<Option<Perplexity>> {
        let file = match (self.full && self.system.is_empty(), self.full, self.sequences) {
            (true, ..) => "expected.json",
            (_, false, 4) => "expected_first4.json",
            _ => "",
        };
        let own =
            self.is_own_mixture() && self.heldout.is_none() && self.tokens.is_none() && !file.is_empty();
        let path = known(self.expected.as_deref(), file, "expected", own)?;
        path.map(|path| files::expected(&path)).transpose()
    }
}

fn temperature(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(value) if value.is_finite() && value >= 0.0 => Ok(value),
        _ => Err(format!("expected a number from 0 on, got {text}")),
    }
}
