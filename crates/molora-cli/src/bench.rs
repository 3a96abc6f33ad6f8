//! `molora bench`: times of the operations at the sizes of published models, one line a case.

use crate::verify::{chosen, progress};
use anyhow::{Result, bail};
use molora_check::report::{HEADING, Line, line, measure};
use molora_check::{Case, Inputs, Op, Outcome, Subject, bench};
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// A case whose first call takes longer is not timed: software drivers would take minutes.
const PATIENCE: Duration = Duration::from_secs(5);

/// Time the operations at the sizes of published models
#[derive(clap::Args)]
pub struct BenchArgs {
    /// Only devices with this in their name (`cpu`, `wgpu`, `lavapipe`, ..)
    #[arg(long)]
    device: Option<String>,
    /// Only these operations (`route`, `plan`, `shrink`, `expand`, `base`, `delta`, `layer`)
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
    let subjects = chosen(args.device.as_deref())?;
    let ops = if args.op.is_empty() { Op::ALL.to_vec() } else { args.op.clone() };
    let cases: Vec<Case> =
        ops.into_iter().flat_map(|op| bench::cases(op, &args.tokens, args.quick)).collect();
    let bar = progress(subjects.len() * cases.len());
    for subject in &subjects {
        if !args.json {
            bar.suspend(|| println!("{}\n{HEADING}", subject.name()));
        }
        for case in &cases {
            bar.set_message(case.to_string());
            let budget = Duration::from_millis(if args.quick { 200 } else { 600 });
            let text = match time(subject.as_ref(), case, budget)? {
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

/// Looks at the answer, then times; or says why there is no time.
fn time(subject: &dyn Subject, case: &Case, budget: Duration) -> Result<Result<Line, String>> {
    let (inputs, start) = (Inputs::new(case), Instant::now());
    match bench::check_ends(subject, &inputs) {
        Outcome::Right(_) => {}
        Outcome::Unsupported(why) => return Ok(Err(format!("not supported: {why}"))),
        Outcome::Wrong(why) => bail!("{} on {}: {why}", case.label(subject.kind()), subject.name()),
    }
    if start.elapsed() > PATIENCE {
        return Ok(Err(format!("not timed: one call took more than {} s", PATIENCE.as_secs())));
    }
    let time = measure(&mut subject.timer(&inputs)?, 9, budget)?;
    Ok(Ok(line(subject, &inputs, time, budget)?))
}
