//! `molora demo --system`: published systems on the demo's model, experts and texts.

use super::perplexity::{BATCH, Evaluation, HeldOut, Perplexity, sequences_nll};
use super::report::Report;
use super::{Demo, DemoArgs, files, gates, progress};
use crate::encoder::Encoder;
use crate::engine::mixture::Mixture;
use crate::engine::model::Pass;
use crate::engine::projection::Projection;
use crate::engine::setting::{Gates, Setting};
use crate::retrieve::{Library, own_texts, sample_texts};
use crate::train::FIT;
use anyhow::{Context, Result, ensure};
use candle_core::Tensor;
use clap::ValueEnum;
use molora::adapter::{Adapter, read_routers};
use molora::retrieval::Metric;
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;
use std::time::Instant;

/// Tokens of a sequence that are its request's text for retrieval.
const TEXT_TOKENS: usize = 64;

/// Adapters that are retrieved for a request.
const RETRIEVED: usize = 3;

/// A published system.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum System {
    /// MING-MOE: each linear's given router, the 2 best, softmax over those
    Ming,
    /// PHATGOOSE: a gate for every expert and linear, trained with the language model's loss
    Phatgoose,
    /// The same with gates fitted here by logistic regression on their own inputs
    PhatgooseLogistic,
    /// RAMoLE: 3 adapters retrieved by each sequence's text, weighed by attention with a trained router adapter
    Ramole,
    /// Each sequence brings its own domain's adapter, in one batch with the same sequences without one
    PerRequest,
}

/// A line of the table.
#[derive(Clone, PartialEq)]
enum Line {
    Fixed(Setting),
    /// With the slots retrieved for each domain's sequences.
    Ramole(BTreeMap<String, Vec<Vec<usize>>>),
    /// Two lines: with the domain's adapter, and the rows beside without one.
    PerRequest,
}

/// Measures the systems that were asked for, and prints the table or JSON.
pub fn run(demo: &mut Demo, args: &DemoArgs) -> Result<String> {
    let all = args.all_sequences()?;
    let most = FIT.start;
    let wanted = args.sequences as usize;
    ensure!(args.full || wanted <= most, "--sequences: expected at most {most} with --system, got {wanted}");
    let sequences = if args.full { most } else { wanted };
    let held_out = args.held_out(&all, sequences)?;
    let mut notes = BTreeMap::new();
    let mut lines: Vec<(String, Line)> = Setting::all(&demo.experts)
        .into_iter()
        .filter(|setting| !matches!(setting, Setting::Top(_)))
        .map(|setting| (setting.to_string(), Line::Fixed(setting)))
        .collect();
    for &system in &args.system {
        let (name, line) = match system {
            System::Ming => ("ming-moe", Line::Fixed(demo.routed())),
            System::Phatgoose => {
                read_gates(demo, &args.trained(args.gates.as_deref(), "gates.safetensors", "gates")?)?;
                notes.insert("phatgoose", "gates by the published recipe (molora train gates)".into());
                ("phatgoose", Line::Fixed(Setting::Phatgoose(Gates::Trained)))
            }
            System::PhatgooseLogistic => {
                let note = fit_gates(demo, &files::cut(&all, FIT, &[], usize::MAX)?)?;
                notes.insert("phatgoose-logistic", note);
                ("phatgoose-logistic", Line::Fixed(Setting::Phatgoose(Gates::Logistic)))
            }
            System::Ramole => {
                let (sets, note) = retrieve(demo, args, &held_out)?;
                notes.insert("ramole", note);
                ("ramole", Line::Ramole(sets))
            }
            System::PerRequest => ("per-request", Line::PerRequest),
        };
        if !lines.iter().any(|(own, _)| own == name) {
            lines.push((name.to_owned(), line));
        }
    }
    let evaluation = evaluate(demo, &held_out, &lines)?;
    draw(demo, args, &held_out, &lines)?;
    let mut labels: Vec<String> = lines.into_iter().map(|(name, _)| name).collect();
    if labels.iter().any(|label| label == "per-request") {
        labels.push(BESIDE.to_owned());
        notes.insert(
            "per-request",
            "each sequence with its own domain's adapter, and once more without one in the same calls".into(),
        );
    }
    let mut expected = args.expected()?;
    if let Some(expected) = &mut expected {
        // The demo's own setting of that system, and what has no adapter beside others.
        for (line, same) in [("ming-moe", "top2"), (BESIDE, "base")] {
            if let Some(row) = expected.get(same).cloned() {
                expected.insert(line.to_owned(), row);
            }
        }
    }
    let report = Report::new(&demo.device, evaluation, None, demo.model.forms());
    if args.json {
        let mut json = serde_json::to_value(&report)?;
        json["systems"] = serde_json::to_value(&notes)?;
        return Ok(serde_json::to_string_pretty(&json)?);
    }
    let notes: String = notes.iter().map(|(name, note)| format!("\n{name}: {note}.")).collect();
    Ok(report.table(&labels, expected.as_ref()) + &notes)
}

/// The line of the sequences without an adapter in the calls of `per-request`.
const BESIDE: &str = "base beside";

/// Gives every linear its part of a router adapter, a PEFT folder.
pub fn add_attention(mixture: &mut Mixture, folder: &Path) -> Result<()> {
    let adapter = Adapter::from_peft(folder)?;
    let mut loras: BTreeMap<_, _> =
        adapter.modules().iter().filter_map(|(name, lora)| Some((Projection::parse(name)?, lora))).collect();
    for (&(layer, projection), module) in &mut mixture.modules {
        let at = format!("{}: layers.{layer}.{}", folder.display(), projection.name());
        let lora = loras.remove(&(layer, projection)).with_context(|| format!("{at}: expected a LoRA"))?;
        module.attention = Some(lora.clone());
    }
    Ok(())
}

/// Gives the model PHATGOOSE's gates of a file.
fn read_gates(demo: &mut Demo, file: &Path) -> Result<()> {
    let mut gates = read_routers(file)?;
    for (layer, projection) in demo.model.expert_places() {
        let at = format!("{}: layers.{layer}.{}.router.weight", file.display(), projection.name());
        let rows = gates.remove(&(layer, projection.name().to_owned()));
        let rows = rows.with_context(|| format!("{at}: expected gates"))?;
        let linear = demo.model.expert_linear_mut((layer, projection)).context("a linear that was seen")?;
        ensure!(
            (rows.experts(), rows.in_features()) == (demo.experts.len(), linear.in_features()),
            "{at}: expected [{}, {}], got [{}, {}]",
            demo.experts.len(),
            linear.in_features(),
            rows.experts(),
            rows.in_features()
        );
        linear.set_gates(Gates::Trained, rows.weight().to_vec())?;
    }
    Ok(())
}

/// Fits PHATGOOSE's gates and gives them to the model; says how.
fn fit_gates(demo: &mut Demo, sequences: &HeldOut) -> Result<String> {
    let count = sequences.values().map(Vec::len).min().unwrap_or(0);
    ensure!(
        count > 0,
        "--system phatgoose-logistic: expected sequences {FIT:?} of each domain to fit gates, got fewer"
    );
    let linears = demo.model.expert_places().len();
    let bar = progress(gates::steps(sequences, linears))?;
    let fitted = gates::fit(&mut demo.model, sequences, &demo.experts, &bar)?;
    bar.finish_and_clear();
    for (at, gates) in fitted.gates {
        demo.model
            .expert_linear_mut(at)
            .context("a linear that was seen")?
            .set_gates(Gates::Logistic, gates)?;
    }
    Ok(format!(
        "gates by logistic regression on each gate's own input, a first step and not the published training; fitted on sequences \
         {} to {} of each domain, which are not measured; {:.1} % of those inputs open their own domain's gate most",
        FIT.start,
        FIT.end - 1,
        fitted.right * 100.0
    ))
}

/// The slots of the adapters of every sequence, by domain.
type Retrieved = BTreeMap<String, Vec<Vec<usize>>>;

/// The slots of the adapters retrieved for every sequence; says how.
fn retrieve(demo: &Demo, args: &DemoArgs, held_out: &HeldOut) -> Result<(Retrieved, String)> {
    let folder = args.encoder.clone().map_or_else(crate::fetch::encoder, Ok)?;
    let library = Library::new(Encoder::load(&folder)?, &sample_texts(&[own_texts()?])?, Metric::Cosine)?;
    let (mut sets, mut right, mut of) = (BTreeMap::new(), 0, 0);
    for (domain, sequences) in held_out {
        let text = |ids: &Vec<u32>| demo.text.decode(&ids[..ids.len().min(TEXT_TOKENS)]);
        let texts = sequences.iter().map(text).collect::<Result<Vec<_>>>()?;
        let mut own = Vec::new();
        for hits in library.search(&texts, (None, &[]), RETRIEVED)? {
            right += usize::from(hits.first().is_some_and(|hit| hit.0 == domain));
            of += 1;
            let slot = |name: &str| demo.experts.iter().position(|expert| expert == name);
            let slots: Option<Vec<usize>> = hits.iter().map(|hit| slot(hit.0)).collect();
            own.push(slots.context("--system ramole: expected sample texts of the experts, got others")?);
        }
        sets.insert(domain.clone(), own);
    }
    let note = format!(
        "the {RETRIEVED} adapters nearest to the text of each sequence's first {TEXT_TOKENS} tokens (the first was the domain's \
         own for {right} of {of}); the attention's router adapter by the published recipe (molora train attention)"
    );
    Ok((sets, note))
}

/// Perplexity of every line, with the layers below the experts run once.
fn evaluate(demo: &mut Demo, held_out: &HeldOut, lines: &[(String, Line)]) -> Result<Evaluation> {
    let start = Instant::now();
    let batches: usize = held_out.values().map(|sequences| sequences.len().div_ceil(BATCH)).sum();
    let bar = progress((batches * lines.len()) as u64)?;
    let (mut perplexity, mut tokens) = (Perplexity::new(), 0);
    for (domain, sequences) in held_out {
        let mut sums = BTreeMap::<String, f64>::new();
        let mut predicted = 0;
        for (n, batch) in sequences.chunks(BATCH).enumerate() {
            let ids: Vec<&[u32]> = batch.iter().map(Vec::as_slice).collect();
            predicted += ids.iter().map(|ids| ids.len() - 1).sum::<usize>();
            let x = demo.model.embed(&ids)?;
            let mut pass = Pass { setting: &Setting::Base, cache: None, observer: None };
            let x = demo.model.run(demo.model.shared_layers(), x, &mut pass)?;
            for (name, line) in lines {
                bar.set_message(format!("{domain} {name}"));
                let (x, ids, setting) = call(demo, line, domain, n * BATCH, &x, &ids)?;
                let mut pass = Pass { setting: &setting, cache: None, observer: None };
                let h = demo.model.run(demo.model.expert_layers(), x, &mut pass)?;
                let nll = sequences_nll(&demo.model, &h, &ids)?;
                // Sequences behind the batch's own are those without an adapter.
                let (own, beside) = nll.split_at(batch.len());
                *sums.entry(name.clone()).or_default() += own.iter().sum::<f64>();
                if !beside.is_empty() {
                    *sums.entry(BESIDE.to_owned()).or_default() += beside.iter().sum::<f64>();
                }
                tokens += ids.iter().map(|ids| ids.len()).sum::<usize>();
                bar.inc(1);
            }
        }
        for (name, sum) in sums {
            perplexity.entry(name).or_default().insert(domain.clone(), (sum / predicted as f64).exp());
        }
    }
    bar.finish_and_clear();
    Ok(Evaluation { perplexity, tokens, time: start.elapsed() })
}

/// What one line runs for a batch that begins at sequence `first` of its domain.
fn call<'a>(
    demo: &Demo,
    line: &Line,
    domain: &str,
    first: usize,
    x: &Tensor,
    ids: &[&'a [u32]],
) -> Result<(Tensor, Vec<&'a [u32]>, Setting)> {
    Ok(match setting(demo, line, domain, first..first + ids.len())? {
        Setting::Requests(mut sets) => {
            sets.resize(2 * ids.len(), Vec::new());
            (Tensor::cat(&[x, x], 0)?, ids.repeat(2), Setting::Requests(sets))
        }
        setting => (x.clone(), ids.to_vec(), setting),
    })
}

/// A line's setting for some sequences of a domain.
fn setting(demo: &Demo, line: &Line, domain: &str, sequences: Range<usize>) -> Result<Setting> {
    Ok(match line {
        Line::Fixed(setting) => setting.clone(),
        Line::Ramole(sets) => Setting::Attended(sets[domain][sequences].to_vec()),
        Line::PerRequest => {
            let slot = demo.experts.iter().position(|name| name == domain);
            let slot =
                slot.with_context(|| format!("{domain}: expected an expert of that name, got none"))?;
            Setting::Requests(vec![vec![slot]; sequences.len()])
        }
    })
}

/// The picture: what each system takes for the first tokens of each domain.
fn draw(demo: &mut Demo, args: &DemoArgs, held_out: &HeldOut, lines: &[(String, Line)]) -> Result<()> {
    let mut systems = Vec::new();
    for (name, line) in lines {
        // What every token takes alike is no picture.
        if matches!(line, Line::Fixed(Setting::Base | Setting::Expert { .. } | Setting::Uniform)) {
            continue;
        }
        let own = |domain: &String| Ok((domain.clone(), setting(demo, line, domain, 0..1)?));
        systems.push((name.clone(), held_out.keys().map(own).collect::<Result<_>>()?));
    }
    demo.draw_openings(args, held_out, &systems)
}
