//! `molora demo`: a small language model whose last layers carry a mixture of LoRA experts.

pub mod files;
pub mod gates;
pub mod golden;
pub mod perplexity;
pub mod prompt;
pub mod report;
pub mod systems;

#[cfg(feature = "wgpu")]
use crate::cache;
use crate::engine::linear::Seen;
use crate::engine::mixture::Mixture;
use crate::engine::model::{Model, Pass};
use crate::engine::setting::Setting;
use crate::engine::tokenizer::Text;
use crate::picture::{self, Kind};
use crate::trace;
use anyhow::{Context, Result, ensure};
use clap::Args;
use golden::Golden;
use indicatif::{ProgressBar, ProgressStyle};
use molora::host::Device;
use molora::trace::Trace;
use perplexity::HeldOut;
use prompt::{Answer, Sampling};
use report::Report;
use std::io::Write;
use std::path::{Path, PathBuf};

/// Tokens of each domain in the picture of a run without a prompt.
const PICTURE_TOKENS: usize = 20;

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
    /// All held-out sequences, not only the first four of each domain
    #[arg(long)]
    pub full: bool,
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

fn temperature(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(value) if value.is_finite() && value >= 0.0 => Ok(value),
        _ => Err(format!("expected a number from 0 on, got {text}")),
    }
}

/// Runs the command.
pub fn run(args: &DemoArgs) -> Result<()> {
    let mut demo = Demo::load(args)?;
    if !args.system.is_empty() {
        println!("{}", systems::run(&mut demo, args)?);
        return Ok(());
    }
    match &args.prompt {
        Some(text) => demo.answer(args, text),
        None => {
            let (report, expected) = demo.measure(args)?;
            let settings: Vec<String> = demo.settings.iter().map(Setting::to_string).collect();
            let text = if args.json {
                serde_json::to_string_pretty(&report)?
            } else {
                report.table(&settings, expected.as_ref())
            };
            println!("{text}");
            Ok(())
        }
    }
}

/// The model with its experts, ready to run.
pub struct Demo {
    device: Device,
    model: Model,
    text: Text,
    experts: Vec<String>,
    settings: Vec<Setting>,
}

impl Demo {
    /// Reads everything that does not depend on what is asked.
    pub fn load(args: &DemoArgs) -> Result<Self> {
        let device = Device::by_name(&args.device).context("--device")?;
        #[cfg(feature = "wgpu")]
        if let Device::Wgpu(wgpu) = &device {
            cache::open(wgpu);
        }
        let experts = files::given_or_own(args.experts.as_deref(), "experts", "experts")?;
        let routers = files::given_or_own(args.routers.as_deref(), "routers.safetensors", "routers")?;
        let mut mixture = Mixture::load(&experts, &routers, args.order.as_deref())?;
        if args.system.contains(&systems::System::Ramole) {
            systems::add_attention(&mut mixture)?;
        }
        let path = match &args.model {
            Some(path) => files::given_or_own(Some(path), "", "model")?,
            None => crate::fetch::model()?,
        };
        let (model, content) = Model::from_gguf(&path, &mixture, &device)?;
        let text = Text::from_gguf(&content, &path.display().to_string())?;
        tracing::info!(
            "{} linears carry {} experts, from layer {} on; computed on {}",
            mixture.modules.len(),
            mixture.names.len(),
            model.expert_layers().start,
            device.describe()
        );
        let settings = Setting::all(&mixture.names);
        Ok(Self { device, model, text, experts: mixture.names, settings })
    }

    /// Perplexities, golden differences and the picture; also the expected perplexities, where there are some.
    pub fn measure(&mut self, args: &DemoArgs) -> Result<(Report, Option<perplexity::Perplexity>)> {
        let limit = if args.full { usize::MAX } else { files::QUICK_SEQUENCES };
        let path = files::given_or_own(args.heldout.as_deref(), "heldout.safetensors", "heldout")?;
        let held_out = files::held_out(&path, limit)?;
        // The crate's own figures say nothing about other models, experts or texts.
        let own_mixture = args.model.is_none() && args.experts.is_none() && args.routers.is_none();
        let expected = if args.full { "expected.json" } else { "expected_first4.json" };
        let expected =
            known(args.expected.as_deref(), expected, "expected", own_mixture && args.heldout.is_none())?;
        let expected = expected.map(|path| files::expected(&path)).transpose()?;
        let golden = known(args.golden.as_deref(), "golden.safetensors", "golden", own_mixture)?;
        let golden = golden.map(|path| Golden::read(&path)).transpose()?;

        let golden = golden.map(|golden| golden.compare(&mut self.model, &self.settings)).transpose()?;
        let bar = progress(perplexity::steps(&held_out, &self.settings))?;
        let evaluation = perplexity::evaluate(&mut self.model, &held_out, &self.settings, &bar)?;
        bar.finish_and_clear();
        tracing::info!("{} tokens in {:.1} s", evaluation.tokens, evaluation.time.as_secs_f64());
        self.draw_openings(&held_out, args)?;
        Ok((Report::new(&self.device, evaluation, golden, self.model.forms()), expected))
    }

    /// The routed mixture: two experts for each token, or the only one.
    fn routed(&self) -> Setting {
        Setting::Top(self.experts.len().min(2))
    }

    /// The picture of a run without a prompt: the first tokens of each domain.
    fn draw_openings(&mut self, held_out: &HeldOut, args: &DemoArgs) -> Result<()> {
        let setting = self.routed();
        let mut trace = Trace::new(&self.experts);
        for (domain, sequences) in held_out {
            let ids = &sequences[0][..sequences[0].len().min(PICTURE_TOKENS)];
            let x = self.model.embed(&[ids])?;
            let mut observe = |seen: Seen| seen.record(&mut trace);
            let mut pass = Pass { setting: &setting, cache: None, observer: Some(&mut observe) };
            self.model.run(0..self.model.config().layers, x, &mut pass)?;
            trace.add_part(format!("held-out {domain}"), self.labels(ids)?);
        }
        self.draw(args, &trace)
    }

    fn labels(&self, ids: &[u32]) -> Result<Vec<String>> {
        ids.iter().map(|&id| self.text.decode(&[id])).collect()
    }

    fn draw(&self, args: &DemoArgs, trace: &Trace) -> Result<()> {
        let title =
            "The expert that each linear took first for each token (pale: the second weighs almost as much)";
        picture::draw(&args.picture, Kind::Tokens, title, trace)?;
        tracing::info!("picture: {}", args.picture.display());
        args.trace.as_deref().map_or(Ok(()), |path| trace::write(path, trace).context("--trace"))
    }

    fn answer(&mut self, args: &DemoArgs, prompt: &str) -> Result<()> {
        let setting = self.routed();
        let sampling =
            Sampling { max_tokens: args.max_tokens, temperature: args.temperature, seed: args.seed };
        ensure!(sampling.max_tokens > 0, "--max-tokens: expected at least 1, got 0");
        let show = |text: &str| {
            // A closed pipe is noticed when the summary is printed.
            let mut out = std::io::stdout();
            let _ = write!(out, "{text}").and_then(|()| out.flush());
        };
        if !args.json {
            show(prompt);
        }
        let mut answer = prompt::answer(
            &mut self.model,
            &self.text,
            &self.experts,
            prompt,
            &setting,
            &sampling,
            |text| {
                if !args.json {
                    show(text);
                }
            },
        )?;
        let fed = answer.trace.tokens();
        for (title, ids) in [
            ("prompt", &answer.ids[..answer.prompt_tokens]),
            ("answer", &answer.ids[answer.prompt_tokens..fed]),
        ] {
            answer.trace.add_part(title, self.labels(ids)?);
        }
        self.draw(args, &answer.trace)?;
        if args.json {
            println!("{}", serde_json::to_string_pretty(&self.answer_json(&answer, &setting))?);
        } else {
            println!("\n\n{}", self.answer_summary(&answer, &setting));
        }
        Ok(())
    }

    fn answer_json(&self, answer: &Answer, setting: &Setting) -> serde_json::Value {
        let shares = trace::first_shares(&answer.trace);
        let shares: serde_json::Map<_, _> =
            self.experts.iter().cloned().zip(shares.into_iter().map(serde_json::Value::from)).collect();
        serde_json::json!({
            "device": self.device.name(),
            "device_description": self.device.describe(),
            "setting": setting.to_string(),
            "forms": self.model.forms(),
            "tokens_per_second": tokens_per_second(answer),
            "answer": answer.text,
            "first_choices": shares,
        })
    }

    fn answer_summary(&self, answer: &Answer, setting: &Setting) -> String {
        let part = |title: &str, shares: Vec<f64>| {
            let mut ranked: Vec<_> =
                self.experts.iter().zip(shares).filter(|(_, share)| *share > 0.0).collect();
            ranked.sort_by(|a, b| b.1.total_cmp(&a.1));
            let ranked: Vec<String> =
                ranked.iter().map(|(name, share)| format!("{name} {:.0} %", share * 100.0)).collect();
            format!("{title}: {}", ranked.join(", "))
        };
        format!(
            "{setting} on {}: prompt of {} tokens in {:.2} s, answer of {} at {:.1} tokens/s\n{}\n{}",
            self.device.describe(),
            answer.prompt_tokens,
            answer.prompt_time.as_secs_f64(),
            answer.ids.len() - answer.prompt_tokens,
            tokens_per_second(answer),
            report::forms(&self.model.forms()),
            part("First choices over all linears and tokens", trace::first_shares(&answer.trace)),
        )
    }
}

/// Tokens after the first, which the prompt's run already gives.
fn tokens_per_second(answer: &Answer) -> f64 {
    let steps = (answer.ids.len() - answer.prompt_tokens).saturating_sub(1);
    steps as f64 / answer.answer_time.as_secs_f64().max(1e-9)
}

/// The file given, else the crate's own where it applies.
fn known(given: Option<&Path>, own: &str, option: &str, applies: bool) -> Result<Option<PathBuf>> {
    if given.is_none() && !applies {
        return Ok(None);
    }
    files::given_or_own(given, own, option).map(Some)
}

fn progress(steps: u64) -> Result<ProgressBar> {
    let style = ProgressStyle::with_template("[{bar:40}] {pos}/{len} {eta} {msg}").context("progress bar")?;
    Ok(ProgressBar::new(steps).with_style(style.progress_chars("=> ")))
}
