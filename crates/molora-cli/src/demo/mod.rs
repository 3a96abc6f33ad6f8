//! `molora demo`: a small language model whose last layers carry a mixture of LoRA experts.

mod args;
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
pub use args::DemoArgs;
use golden::Golden;
use indicatif::{ProgressBar, ProgressStyle};
use molora::host::Device;
use molora::trace::Trace;
use perplexity::{HeldOut, Perplexity};
use prompt::{Answer, Sampling};
use report::Report;
use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};

/// Tokens of each domain in the picture of a run without a prompt.
const PICTURE_TOKENS: usize = 20;

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
            let attention = args.trained(args.attention.as_deref(), "attention", "attention")?;
            systems::add_attention(&mut mixture, &attention)?;
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
    pub fn measure(&mut self, args: &DemoArgs) -> Result<(Report, Option<Perplexity>)> {
        let sequences = if args.full { usize::MAX } else { args.sequences as usize };
        let held_out = args.held_out(&args.all_sequences()?, sequences)?;
        let expected = args.expected()?;
        let own = args.is_own_mixture() && args.tokens.is_none();
        let golden = known(args.golden.as_deref(), "golden.safetensors", "golden", own)?;
        let golden = golden.map(|path| Golden::read(&path)).transpose()?;

        let golden = golden.map(|golden| golden.compare(&mut self.model, &self.settings)).transpose()?;
        let bar = progress(perplexity::steps(&held_out, &self.settings))?;
        let evaluation = perplexity::evaluate(&mut self.model, &held_out, &self.settings, &bar)?;
        bar.finish_and_clear();
        tracing::info!("{} tokens in {:.1} s", evaluation.tokens, evaluation.time.as_secs_f64());
        let routed = held_out.keys().map(|domain| (domain.clone(), self.routed())).collect();
        self.draw_openings(args, &held_out, &[(String::new(), routed)])?;
        Ok((Report::new(&self.device, evaluation, golden, self.model.forms()), expected))
    }

    /// The routed mixture: two experts for each token, or the only one.
    fn routed(&self) -> Setting {
        Setting::Top(self.experts.len().min(2))
    }

    /// The picture of a run without a prompt: the first tokens of each domain, and below each other what each of some systems
    /// takes for them, by its setting for the domain.
    fn draw_openings(
        &mut self,
        args: &DemoArgs,
        held_out: &HeldOut,
        systems: &[(String, BTreeMap<String, Setting>)],
    ) -> Result<()> {
        let mut trace = Trace::new(&self.experts);
        for (domain, sequences) in held_out {
            let ids = &sequences[0][..sequences[0].len().min(PICTURE_TOKENS)];
            let x = self.model.embed(&[ids])?;
            for (name, settings) in systems {
                let before = if name.is_empty() { String::new() } else { format!("{name}.") };
                let mut observe = |seen: Seen| seen.record(&before, &mut trace);
                let mut pass = Pass { setting: &settings[domain], cache: None, observer: Some(&mut observe) };
                self.model.run(0..self.model.config().layers, x.clone(), &mut pass)?;
            }
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

/// A bar that shows what is worked at.
pub(crate) fn progress(steps: u64) -> Result<ProgressBar> {
    let style = ProgressStyle::with_template("[{bar:40}] {pos}/{len} {eta} {msg}").context("progress bar")?;
    Ok(ProgressBar::new(steps).with_style(style.progress_chars("=> ")))
}
