//! What a machine that executes and counts says instead of times.

use molora_check::bench::Refused;
use molora_check::report::Work;
use molora_check::{Case, Inputs, Outcome, Subject, bench, counters};
use std::collections::BTreeMap;
use std::fmt;

/// What it counted in one call.
#[derive(Debug, serde::Serialize)]
pub struct Counted {
    case: String,
    device: String,
    /// By kernel, under [`counters::COLUMNS`]: what the text shows.
    #[serde(skip)]
    rows: BTreeMap<String, counters::Row>,
    counters: BTreeMap<String, serde_json::Value>,
    work: Work,
}

/// The heading of its lines.
pub fn heading() -> String {
    format!("case | kernel | {}", counters::COLUMNS.join(" | "))
}

impl fmt::Display for Counted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, (kernel, row)) in self.rows.iter().enumerate() {
            let figures: Vec<String> = row.iter().map(f64::to_string).collect();
            let end = if i == 0 { "" } else { "\n" };
            write!(f, "{end}{} | {kernel} | {}", self.case, figures.join(" | "))?;
        }
        Ok(())
    }
}

/// Looks at the answer, then counts one call.
pub fn count(subject: &dyn Subject, case: &Case) -> Result<Counted, Refused> {
    let inputs = Inputs::new(case);
    match bench::check_ends(subject, &inputs) {
        Outcome::Right(_) => {}
        Outcome::Unsupported(why) => return Err(Refused::NotTimed(format!("not supported: {why}"))),
        Outcome::Wrong(why) => return Err(Refused::Wrong(why)),
    }
    let Some(counters) = counters::count(subject, &inputs)? else {
        return Err(Refused::NotTimed("not counted: the machine has no counters".into()));
    };
    let row =
        |(kernel, all): (&String, &serde_json::Value)| (kernel.clone(), counters::row(&inputs, kernel, all));
    let rows = counters.iter().map(row).collect();
    let work = molora_check::report::work(&inputs);
    Ok(Counted { case: case.label(subject.kind()), device: subject.name(), rows, counters, work })
}
