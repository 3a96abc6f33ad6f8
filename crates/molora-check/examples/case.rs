//! Runs cases by their text on every subject: `case CASE..` prints right, refused or wrong for each.
//!
//! `MOLORA_DEVICE` names the only device. Exits with 1 where a case is not right.

use molora_check::spell::Named;
use molora_check::{Outcome, check, subjects};
use std::process::ExitCode;

fn main() -> Result<ExitCode, String> {
    let subjects = subjects()?;
    let mut all_right = true;
    for text in std::env::args().skip(1) {
        let named: Named = text.parse()?;
        for subject in &subjects {
            if named.device.as_deref().is_some_and(|kind| kind != subject.kind()) {
                continue;
            }
            let outcome = check(subject.as_ref(), &named.case);
            all_right &= matches!(outcome, Outcome::Right(_));
            let what = match outcome {
                Outcome::Right(verdict) => format!("right, worst row {:.1e}", verdict.worst_row.1),
                Outcome::Unsupported(why) => format!("refused: {why}"),
                Outcome::Wrong(why) => format!("wrong: {why}"),
            };
            println!("{}: {}", named.case.label(subject.kind()), what.replace('\n', "; "));
        }
    }
    Ok(if all_right { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
