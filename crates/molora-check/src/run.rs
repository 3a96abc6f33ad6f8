//! One case on one subject; all cases of an operation on all subjects.

use crate::case::{Case, Op};
use crate::expect::Roundings;
use crate::guarded::{Guarded, Tensor};
use crate::judge::{Verdict, compare, compare_rows};
use crate::routing::Routing;
use crate::spell::Named;
use crate::subject::{PlanArrays, Subject, subjects};
use crate::table::{Extent, cases};
use crate::{Inputs, expect, judge_route};
use molora::ops::plan;
use std::collections::BTreeMap;

/// What became of a case on a device.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    /// Right, with the largest errors.
    Right(Verdict),
    /// The device cannot run it, and says why.
    Unsupported(String),
    /// Wrong, or refused.
    Wrong(String),
}

/// Runs a case on a subject and judges the answer.
pub fn check(subject: &dyn Subject, case: &Case) -> Outcome {
    if let Some(why) = subject.unsupported(case) {
        return Outcome::Unsupported(why);
    }
    match run(subject, &Inputs::new(case)) {
        Ok(verdict) => Outcome::Right(verdict),
        Err(why) => Outcome::Wrong(why),
    }
}

fn run(subject: &dyn Subject, inputs: &Inputs) -> Result<Verdict, String> {
    let text = |e: molora::error::Error| format!("refused: {e}");
    let case = &inputs.case;
    let mut y = inputs.y.clone();
    match case.op {
        Op::Route => {
            let shape = (1, case.routes(), case.routes());
            let mut ids = Guarded::output(shape, |_, _| i32::MIN);
            let mut weights = Guarded::output(shape, |_, _| f32::NAN);
            let start = (ids.clone(), weights.clone());
            subject.route(inputs, &mut ids, &mut weights).map_err(text)?;
            return judge_route::compare(inputs, &start, &(ids, weights));
        }
        Op::Plan => return compare_plan(inputs, &subject.plan(inputs).map_err(text)?),
        Op::Shrink => {
            let mut h = inputs.empty_h();
            subject.shrink(inputs, &mut h).map_err(text)?;
            let start = Tensor::F32(inputs.empty_h());
            return compare(
                &expect::rows(inputs, Roundings::default()).map_err(text)?,
                &start,
                &Tensor::F32(h),
            );
        }
        Op::Attend => {
            let mut weights = inputs.empty_weights();
            subject.attend(inputs, &mut weights).map_err(text)?;
            let expected = expect::rows(inputs, Roundings::default()).map_err(text)?;
            return compare_rows(&expected, &inputs.empty_weights(), &weights);
        }
        Op::Expand => subject.expand(inputs, &mut y),
        Op::Base => subject.base(inputs, &mut y),
        Op::Delta => subject.delta(inputs, &mut y),
        Op::Layer => subject.layer(inputs, &mut y),
        Op::Fused => subject.fused(inputs, &mut y),
        Op::Grouped => subject.grouped(inputs, &mut y),
    }
    .map_err(text)?;
    compare(&expect::rows(inputs, Roundings::of(subject, case)).map_err(text)?, &inputs.y, &y)
}

/// A plan is integers: equal or wrong.
fn compare_plan(inputs: &Inputs, got: &PlanArrays) -> Result<Verdict, String> {
    let want = plan::definition(&inputs.plan_sizes(), &inputs.topk_ids, 0).map_err(|e| e.to_string())?;
    for (name, want, got) in [
        ("sorted_routes", want.sorted_routes(), &got.sorted_routes),
        ("expert_offsets", want.expert_offsets(), &got.expert_offsets),
    ] {
        if want.len() != got.len() {
            return Err(format!("{name}: expected {} entries, got {}", want.len(), got.len()));
        }
        if let Some(i) = (0..want.len()).find(|&i| want[i] != got[i]) {
            return Err(format!("{name}[{i}]: expected {}, got {}", want[i], got[i]));
        }
    }
    Ok(Verdict { elements: want.sorted_routes().len(), ..Verdict::default() })
}

/// Runs the table of an operation on every subject; for tests.
///
/// `MOLORA_CASE` runs one case instead, `MOLORA_LONG` the long table, `MOLORA_REQUIRE` and `MOLORA_DEVICE` are
/// those of [`subjects`].
///
/// # Panics
/// When a case is wrong or a required device is absent, with every wrong case's text.
pub fn check_all(op: Op) {
    let subjects = subjects().unwrap_or_else(|why| panic!("{why}"));
    let only = std::env::var("MOLORA_CASE").ok().filter(|text| !text.is_empty());
    let only: Option<Named> =
        only.map(|text| text.parse().unwrap_or_else(|why| panic!("MOLORA_CASE: {why}")));
    let extent = if std::env::var_os("MOLORA_LONG").is_some() { Extent::Long } else { Extent::Short };
    let table = match &only {
        Some(named) if named.case.op == op => vec![named.case.clone()],
        Some(_) => Vec::new(),
        None => cases(op, extent),
    };
    let device = only.as_ref().and_then(|named| named.device.as_deref());
    let mut wrong = Vec::new();
    for subject in subjects.iter().filter(|s| device.is_none_or(|kind| kind == s.kind())) {
        let (mut right, mut worst, mut unsupported) = (0, Verdict::default(), BTreeMap::new());
        for case in &table {
            match check(subject.as_ref(), case) {
                Outcome::Right(verdict) => (right, worst) = (right + 1, worst.worse(verdict)),
                Outcome::Unsupported(why) => unsupported.entry(why).or_insert_with(Vec::new).push(case),
                Outcome::Wrong(why) => {
                    wrong.push(format!("{} ({}): {why}", case.label(subject.kind()), subject.name()));
                }
            }
        }
        println!(
            "{} on {}: {right} of {} cases right, worst row {:.1e}, not supported: {}",
            op.name(),
            subject.name(),
            table.len(),
            worst.worst_row.1,
            unsupported.values().map(Vec::len).sum::<usize>()
        );
        for (why, cases) in unsupported {
            println!("  {} not supported, first {}: {why}", cases.len(), cases[0]);
        }
    }
    let count = wrong.len();
    wrong.truncate(20);
    assert!(count == 0, "{count} wrong; rerun one with MOLORA_CASE=<case>:\n{}", wrong.join("\n"));
}

/// Whether a case makes exact ties, where only the definition's own choice is right.
pub(crate) fn is_exact(case: &Case) -> bool {
    matches!(case.routing, Routing::Ties | Routing::Identical)
}
