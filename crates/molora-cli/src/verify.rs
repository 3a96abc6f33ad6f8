//! `molora verify`: every operation on every device against its definition.

#[cfg(feature = "wgpu")]
use crate::cache;
use anyhow::{Result, bail, ensure};
use indicatif::{ProgressBar, ProgressStyle};
use molora::element::ElementType;
use molora_check::spell::Named;
use molora_check::subject::{Found, find, matches};
use molora_check::{Case, Extent, Op, Outcome, Subject, Verdict, cases, check};
use serde::Serialize;
use std::process::ExitCode;

/// Check every operation on every device against its definition
#[derive(clap::Args)]
pub struct VerifyArgs {
    /// Only devices with this in their name (`cpu`, `cuda`, `wgpu`, `lavapipe`, ..)
    #[arg(long)]
    device: Option<String>,
    /// The long table of cases
    #[arg(long)]
    long: bool,
    /// One case, as a failure prints it: `shrink/wgpu/f16/t256_k2_e8_r16_i4096_zipf1.5`
    #[arg(long)]
    case: Option<Named>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// The cases of one operation and element on one device.
#[derive(Debug, Serialize)]
struct Row {
    device: String,
    op: &'static str,
    element: &'static str,
    right: usize,
    unsupported: usize,
    wrong: Vec<String>,
    /// Relative L2 error of the worst row of all cases.
    worst_row_error: f64,
    /// The worst element's share of its limit.
    worst_element_share: f64,
}

/// Runs the command.
pub fn run(args: &VerifyArgs) -> Result<ExitCode> {
    let subjects = chosen(args.device.as_deref())?;
    let extent = if args.long { Extent::Long } else { Extent::Short };
    let table: Vec<Case> = match &args.case {
        Some(named) => vec![named.case.clone()],
        None => Op::ALL.into_iter().flat_map(|op| cases(op, extent)).collect(),
    };
    let kind = args.case.as_ref().and_then(|named| named.device.as_deref());
    let subjects: Vec<_> =
        subjects.into_iter().filter(|s| kind.is_none_or(|kind| kind == s.kind())).collect();
    ensure!(!subjects.is_empty(), "no device here is {:?}", kind.unwrap_or_default());
    let bar = progress(subjects.len() * table.len());
    let mut rows = Vec::new();
    for subject in &subjects {
        bar.set_message(subject.name());
        for op in Op::ALL {
            for element in ElementType::ALL {
                let part: Vec<&Case> = table.iter().filter(|c| c.op == op && c.x == element).collect();
                if !part.is_empty() {
                    rows.push(row(subject.as_ref(), &part, &bar));
                }
            }
        }
    }
    bar.finish_and_clear();
    let wrong: usize = rows.iter().map(|row| row.wrong.len()).sum();
    if args.json {
        println!("{}", serde_json::to_string_pretty(&rows)?);
    } else {
        print(&rows);
    }
    Ok(if wrong == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The devices whose name matches; all of them without one.
pub(crate) fn chosen(device: Option<&str>) -> Result<Vec<Box<dyn Subject>>> {
    let Found { mut subjects, missing } = find();
    let names: Vec<String> = subjects.iter().map(|s| s.name()).collect();
    subjects.retain(|s| device.is_none_or(|wanted| matches(wanted, &s.name())));
    if subjects.is_empty() {
        let (names, missing) = (names.join("; "), missing.join("; "));
        bail!("no device matches {:?}; found: {names}; missing: {missing}", device.unwrap_or_default());
    }
    #[cfg(feature = "wgpu")]
    subjects.iter().filter_map(|subject| subject.wgpu()).for_each(cache::open);
    Ok(subjects)
}

/// A bar on standard error; none where that is no terminal.
pub(crate) fn progress(steps: usize) -> ProgressBar {
    let style = ProgressStyle::with_template("{bar:30} {pos}/{len} {msg}").expect("a fixed template");
    ProgressBar::new(steps as u64).with_style(style)
}

fn row(subject: &dyn Subject, cases: &[&Case], bar: &ProgressBar) -> Row {
    let (mut right, mut unsupported, mut worst, mut wrong) = (0, 0, Verdict::default(), Vec::new());
    for case in cases {
        match check(subject, case) {
            Outcome::Right(verdict) => (right, worst) = (right + 1, worst.worse(verdict)),
            Outcome::Unsupported(_) => unsupported += 1,
            Outcome::Wrong(why) => wrong.push(format!("{}: {why}", case.label(subject.kind()))),
        }
        bar.inc(1);
    }
    Row {
        device: subject.name(),
        op: cases[0].op.name(),
        element: cases[0].x.name(),
        right,
        unsupported,
        wrong,
        worst_row_error: worst.worst_row.1,
        worst_element_share: worst.worst_element.2,
    }
}

fn print(rows: &[Row]) {
    let mut device = "";
    for row in rows {
        if row.device != device {
            device = &row.device;
            println!("{device}");
            println!("    op      element  right  wrong  not supported  worst row  worst element / limit");
        }
        println!(
            "    {:<7} {:<7} {:>6} {:>6} {:>14}  {:>9.1e}  {:>21.2}",
            row.op,
            row.element,
            row.right,
            row.wrong.len(),
            row.unsupported,
            row.worst_row_error,
            row.worst_element_share
        );
        row.wrong.iter().for_each(|why| println!("        {why}"));
    }
    let [right, wrong] =
        [|r: &Row| r.right, |r: &Row| r.wrong.len()].map(|f| rows.iter().map(f).sum::<usize>());
    println!("{right} right, {wrong} wrong");
}
