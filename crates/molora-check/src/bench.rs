//! A case on the clock: the answer first, then alternating samples, then its lines, judged by the device's ceilings.

use crate::case::{Case, Op};
use crate::expect::{self, Roundings};
use crate::guarded::Tensor;
use crate::inputs::Inputs;
use crate::judge::{Verdict, compare};
use crate::machine;
use crate::measure::{Budget, Samples, sample};
use crate::record::{Ceiling, Line, Ratio};
use crate::report::{Told, base_of, lines, work};
use crate::run::{Outcome, check};
use crate::subject::Subject;
use molora::error::Error;
use std::time::Duration;

/// Operations that the definition may take for one look.
const MOST_FLOPS: f64 = 4e8;

/// Operations of a definition that is timed as the baseline of what has no other.
const DEFINITION_FLOPS: f64 = 1e8;

/// Why a case has no time.
#[derive(Debug, Clone, PartialEq)]
pub enum Refused {
    /// The device cannot run it, or not in a time that is worth waiting for.
    NotTimed(String),
    /// The answer is wrong, or the device failed: nothing that it says of times can be believed.
    Wrong(String),
}

impl From<Error> for Refused {
    fn from(error: Error) -> Self {
        match error {
            // Sizes beyond a device's limits.
            Error::Argument { .. } => Self::NotTimed(format!("refused: {error}")),
            _ => Self::Wrong(error.to_string()),
        }
    }
}

/// A case whose answer is right.
pub struct Checked<'a> {
    subject: &'a dyn Subject,
    /// Its numbers.
    pub inputs: Inputs,
    /// Those of the base product alone, where the case has experts beside one.
    pub base: Option<Inputs>,
    /// Relative error of the worst row.
    error: f64,
}

/// Looks at the answer. A case whose floor by the ceilings is longer than `longest` is refused before anything is made.
pub fn look<'a>(
    subject: &'a dyn Subject,
    case: &Case,
    ceilings: &[Ceiling],
    longest: Duration,
) -> Result<Checked<'a>, Refused> {
    if let Some(why) = subject.unsupported(case) {
        return Err(Refused::NotTimed(format!("not supported: {why}")));
    }
    let (needs, has) = (bytes_of(case), machine::memory_available());
    if needs > has {
        let gib = |bytes: u64| bytes as f64 / f64::from(1 << 30);
        let why =
            format!("not timed: it takes about {:.1} GiB of memory, {:.1} are free", gib(needs), gib(has));
        return Err(Refused::NotTimed(why));
    }
    let inputs = Inputs::new(case);
    let name = subject.name();
    let ceiling = ceilings.iter().find(|c| c.device == name && c.element == case.x.name());
    let floor = ceiling.map_or(0.0, |ceiling| ceiling.floor(&work(&inputs)).us());
    if floor > longest.as_secs_f64() * 1e6 {
        return Err(Refused::NotTimed(format!("not timed: a call takes at least {:.1} s", floor * 1e-6)));
    }
    let verdict = match check_ends(subject, &inputs) {
        Outcome::Right(verdict) => verdict,
        Outcome::Unsupported(why) => return Err(Refused::NotTimed(format!("not supported: {why}"))),
        Outcome::Wrong(why) if why.starts_with(REFUSED) && !why.contains("status word") => {
            return Err(Refused::NotTimed(why));
        }
        Outcome::Wrong(why) => return Err(Refused::Wrong(why)),
    };
    let base = base_of(case).map(|base| Inputs::new(&base));
    Ok(Checked { subject, inputs, base, error: verdict.worst_row.1 })
}

/// How an outcome begins that no answer was judged for.
const REFUSED: &str = "refused: ";

/// Memory of a case on the host, about: its numbers, those of its base, and one more of each in the device's form.
fn bytes_of(case: &Case) -> u64 {
    let [rows, columns, slots] = [case.in_features, case.out_features, case.slots()].map(|n| n as u64);
    let groups = if case.op == Op::Grouped { case.group.experts as u64 } else { 1 };
    let weight = if case.op.has_base() || case.op == Op::Grouped { groups * rows * columns } else { 0 };
    let factors = if case.op.uses().adapters { slots * case.max_rank() as u64 * (rows + columns) } else { 0 };
    let tokens = case.tokens as u64 * (rows + columns) * if groups > 1 { case.top_k as u64 } else { 1 };
    (4 * weight + 3 * tokens) * case.x.bytes() as u64 + 3 * 4 * factors
}

impl Checked<'_> {
    /// Times it beside its base.
    pub fn sample(&self, budget: &Budget) -> Result<Samples, Refused> {
        let mut ours = self.subject.timer(&self.inputs)?;
        let mut base = self.base.as_ref().map(|base| self.subject.timer(base)).transpose()?;
        let samples = sample(&mut ours, base.as_mut(), budget)?;
        samples
            .map_err(|took| Refused::NotTimed(format!("not timed: a call took {:.1} s", took.as_secs_f64())))
    }

    /// The samples' lines.
    pub fn lines(&self, samples: &Samples, ceilings: &[Ceiling]) -> Result<Vec<Line>, Refused> {
        let (kind, device, clock) = (self.subject.kind(), &self.subject.name(), self.subject.clock()?);
        let told = Told { kind, device, clock, ceilings, error: Some(self.error) };
        let mut lines = lines(&told, &self.inputs, self.base.as_ref(), samples);
        if self.base.is_none() && lines[0].work.flops <= DEFINITION_FLOPS {
            let ratio = expect::time(&self.inputs)?.as_secs_f64() * 1e6 / lines[0].latency_us_median;
            lines[0].ratios.push(Ratio { to: "definition".into(), ratio, interval: None, pairs: 1 });
        }
        Ok(lines)
    }
}

/// All of it: looks at the answer, times, and judges by the ceilings.
pub fn time(
    subject: &dyn Subject,
    case: &Case,
    ceilings: &[Ceiling],
    budget: &Budget,
) -> Result<Vec<Line>, Refused> {
    let checked = look(subject, case, ceilings, budget.longest)?;
    let samples = checked.sample(budget)?;
    checked.lines(&samples, ceilings)
}

/// Runs a case of any size once and judges its first and last tokens, as many as a definition does in a moment.
pub fn check_ends(subject: &dyn Subject, inputs: &Inputs) -> Outcome {
    let case = &inputs.case;
    if let Some(why) = subject.unsupported(case) {
        return Outcome::Unsupported(why);
    }
    let share = MOST_FLOPS / work(inputs).flops.max(1.0);
    if share >= 1.0 || matches!(case.op, Op::Route | Op::Plan) {
        return check(subject, case);
    }
    let tokens = ((case.tokens as f64 * share / 2.0) as usize).clamp(1, case.tokens);
    match compare_ends(subject, inputs, tokens) {
        Ok(verdict) => Outcome::Right(verdict),
        Err(why) => Outcome::Wrong(why),
    }
}

fn compare_ends(subject: &dyn Subject, inputs: &Inputs, tokens: usize) -> Result<Verdict, String> {
    let text = |e: Error| format!("{REFUSED}{e}");
    let (start, got) = if inputs.case.op == Op::Shrink {
        let mut h = inputs.empty_h();
        subject.shrink(inputs, &mut h).map_err(text)?;
        (Tensor::F32(inputs.empty_h()), Tensor::F32(h))
    } else if inputs.case.op == Op::Attend {
        let mut weights = inputs.empty_weights();
        subject.attend(inputs, &mut weights).map_err(text)?;
        (Tensor::F32(inputs.empty_weights()), Tensor::F32(weights))
    } else {
        let mut y = inputs.y.clone();
        match inputs.case.op {
            Op::Expand => subject.expand(inputs, &mut y),
            Op::Base => subject.base(inputs, &mut y),
            Op::Delta => subject.delta(inputs, &mut y),
            Op::Fused => subject.fused(inputs, &mut y),
            Op::Grouped => subject.grouped(inputs, &mut y),
            _ => subject.layer(inputs, &mut y),
        }
        .map_err(text)?;
        (inputs.y.clone(), y)
    };
    let mut verdict = Verdict::default();
    for first in [0, inputs.case.tokens - tokens] {
        let part = inputs.part(first, tokens);
        let (skip, rows) = (inputs.case.y_rows(first), inputs.case.y_rows(tokens));
        let expected = expect::rows(&part, Roundings::of(subject, &inputs.case)).map_err(text)?;
        verdict = verdict.worse(compare(&expected, &start.part(skip, rows), &got.part(skip, rows))?);
    }
    Ok(verdict)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::routing::Routing;
    use crate::subject::CpuSubject;
    use molora::ops::Output;

    #[test]
    fn the_ends_of_a_case_are_judged_like_all_of_it() {
        let cpu = CpuSubject::new().unwrap();
        for op in [Op::Shrink, Op::Expand, Op::Base, Op::Delta, Op::Layer] {
            for output in Output::ALL {
                let output = if matches!(op, Op::Base | Op::Layer) { Output::Sum } else { output };
                let case = Case { output, routing: Routing::WithGaps, padding: 3, ..Case::new(op) };
                compare_ends(&cpu, &Inputs::new(&case), 4).unwrap_or_else(|why| panic!("{case}: {why}"));
            }
        }
    }
}
