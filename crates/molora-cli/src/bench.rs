//! `molora bench`: times of the operations at the sizes of published models, one line a case. On a machine that executes and
//! counts the lines carry counters and never a time.

use crate::record;
use crate::verify::{chosen, progress};
use anyhow::{Result, bail};
use molora_check::counters;
use molora_check::report::{HEADING, Line, line, measure};
use molora_check::{Case, Inputs, Op, Outcome, Subject, bench};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// A case whose first call takes longer is not timed: software drivers would take minutes.
const PATIENCE: Duration = Duration::from_secs(5);

/// Time the operations at the sizes of published models
#[derive(clap::Args)]
pub struct BenchArgs {
    /// Only devices with this in their name (`cpu`, `cuda`, `wgpu`, `lavapipe`, ..)
    #[arg(long)]
    device: Option<String>,
    /// Only these operations (`route`, `plan`, `shrink`, `expand`, `base`, `delta`, `layer`, `fused`,
    /// `grouped`)
    #[arg(long, value_delimiter = ',', value_parser = parse_op)]
    op: Vec<Op>,
    /// Tokens of a call
    #[arg(long, value_delimiter = ',', default_values_t = [1, 64, 512])]
    tokens: Vec<usize>,
    /// One small layer instead of the published ones
    #[arg(long)]
    quick: bool,
    /// Print one JSON object a line
    #[arg(long)]
    json: bool,
    /// Time nothing; compare two recorded runs, the earlier first
    #[arg(long, num_args = 2, value_names = ["A", "B"], conflicts_with_all = ["device", "op", "tokens", "quick"])]
    compare: Vec<PathBuf>,
}

fn parse_op(text: &str) -> Result<Op, String> {
    let names = Op::ALL.map(Op::name);
    Op::ALL
        .into_iter()
        .find(|op| op.name() == text)
        .ok_or_else(|| format!("expected one of {}", names.join(", ")))
}

/// Runs the command.
pub fn run(args: &BenchArgs) -> Result<ExitCode> {
    if let [a, b] = &args.compare[..] {
        return record::compare_files(a, b, args.json).map(|()| ExitCode::SUCCESS);
    }
    let subjects = chosen(args.device.as_deref())?;
    let ops = if args.op.is_empty() { Op::ALL.to_vec() } else { args.op.clone() };
    let cases: Vec<Case> =
        ops.into_iter().flat_map(|op| bench::cases(op, &args.tokens, args.quick)).collect();
    let bar = progress(subjects.len() * cases.len());
    for subject in &subjects {
        if !args.json {
            let heading = if subject.is_stand_in() {
                format!("case | kernel | {}", counters::COLUMNS.join(" | "))
            } else {
                HEADING.to_string()
            };
            bar.suspend(|| println!("{}\n{heading}", subject.name()));
        }
        for case in &cases {
            bar.set_message(case.to_string());
            let budget = Duration::from_millis(if args.quick { 200 } else { 600 });
            let line = match subject.is_stand_in() {
                true => count(subject.as_ref(), case)?.map(Row::Counters),
                false => time(subject.as_ref(), case, budget)?.map(Row::Times),
            };
            let text = match line {
                Ok(line) if args.json => serde_json::to_string(&line)?,
                Ok(line) => line.to_string(),
                Err(why) if args.json => {
                    serde_json::json!({"case": case.label(subject.kind()), "not_timed": why}).to_string()
                }
                Err(why) => format!("{} | {why}", case.label(subject.kind())),
            };
            bar.suspend(|| println!("{text}"));
            bar.inc(1);
        }
    }
    bar.finish_and_clear();
    Ok(ExitCode::SUCCESS)
}

/// A case's result: times of a device, or counters of a machine that has none.
#[derive(serde::Serialize)]
#[serde(untagged)]
enum Row {
    Times(Line),
    Counters(Counted),
}

/// What a machine counted in one call.
#[derive(serde::Serialize)]
struct Counted {
    case: String,
    device: String,
    /// By kernel, under [`counters::COLUMNS`]: what the text shows.
    #[serde(skip)]
    rows: BTreeMap<String, counters::Row>,
    counters: BTreeMap<String, serde_json::Value>,
}

impl std::fmt::Display for Row {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Times(line) => line.fmt(f),
            Self::Counters(Counted { case, rows, .. }) => {
                for (i, (kernel, row)) in rows.iter().enumerate() {
                    let figures: Vec<String> = row.iter().map(f64::to_string).collect();
                    let end = if i == 0 { "" } else { "\n" };
                    write!(f, "{end}{case} | {kernel} | {}", figures.join(" | "))?;
                }
                Ok(())
            }
        }
    }
}

/// Looks at the answer, then counts one call; or says why not.
fn count(subject: &dyn Subject, case: &Case) -> Result<Result<Counted, String>> {
    let inputs = Inputs::new(case);
    if let Some(why) = refused(subject, &inputs)? {
        return Ok(Err(why));
    }
    let Some(counters) = counters::count(subject, &inputs)? else {
        return Ok(Err("not counted: the machine has no counters".into()));
    };
    let row =
        |(kernel, all): (&String, &serde_json::Value)| (kernel.clone(), counters::row(&inputs, kernel, all));
    let rows = counters.iter().map(row).collect();
    Ok(Ok(Counted { case: case.label(subject.kind()), device: subject.name(), rows, counters }))
}

/// Why the device cannot run a case; a wrong answer is an error.
fn refused(subject: &dyn Subject, inputs: &Inputs) -> Result<Option<String>> {
    match bench::check_ends(subject, inputs) {
        Outcome::Right(_) => Ok(None),
        Outcome::Unsupported(why) => Ok(Some(format!("not supported: {why}"))),
        Outcome::Wrong(why) => bail!("{} on {}: {why}", inputs.case.label(subject.kind()), subject.name()),
    }
}

/// Looks at the answer, then times; or says why there is no time.
fn time(subject: &dyn Subject, case: &Case, budget: Duration) -> Result<Result<Line, String>> {
    let (inputs, start) = (Inputs::new(case), Instant::now());
    if let Some(why) = refused(subject, &inputs)? {
        return Ok(Err(why));
    }
    if start.elapsed() > PATIENCE {
        return Ok(Err(format!("not timed: one call took more than {} s", PATIENCE.as_secs())));
    }
    let time = measure(&mut subject.timer(&inputs)?, 9, budget)?;
    Ok(Ok(line(subject, &inputs, time, budget)?))
}
