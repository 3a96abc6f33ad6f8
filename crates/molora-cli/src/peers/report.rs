//! The table and the record.

use super::rounds::Entry;
use molora_check::contest::{Case, judge};
use molora_check::record::{Ceiling, Line, Ratio};
use molora_check::report::OURS;
use molora_check::stats::Sorted;
use std::fmt::Write;

/// The device of every line.
pub const DEVICE: &str = "cpu";

/// The table's heading.
pub fn heading() -> String {
    format!(
        "{:<28} {:<6} {:<22} {:>9} {:<21} {:>7} {:>7} {:<15} {:>8}",
        "case", "op", "series", "ms", "quartiles", "x floor", "x ours", "95 % interval", "error"
    )
}

/// A line for each series: operations in the case's order, the fastest first.
pub fn table(case: &Case, entries: &[Entry], used: usize, ceiling: &Ceiling) -> String {
    let mut text = String::new();
    for op in &case.ops {
        let mut of_op: Vec<&Entry> = entries.iter().filter(|entry| entry.op == *op).collect();
        of_op.sort_by(|a, b| a.seconds().0.median().total_cmp(&b.seconds().0.median()));
        for entry in of_op {
            let (seconds, disturbed) = entry.seconds();
            let [low, middle, high] = [0.25, 0.5, 0.75].map(|share| seconds.at(share) * 1e3);
            let floor = ceiling.floor(&judge::work(case, op, used, &entry.variant)).us() / 1e3;
            let ratios = Sorted::new(entry.ratios.iter().copied());
            let ours = if entry.is_ours() || ratios.is_empty() {
                String::new()
            } else {
                format!("{:.2}", ratios.median())
            };
            let interval = match ratios.interval() {
                Some([low, high]) if !entry.is_ours() => format!("[{low:.2}, {high:.2}]"),
                _ => String::new(),
            };
            // Writing to a string cannot fail.
            let _ = writeln!(
                text,
                "{:<28} {:<6} {:<22} {:>9} {:<21} {:>7.2} {:>7} {:<15} {:>8.1e}",
                case.id,
                op,
                entry.series,
                format!("{}{middle:.3}", if disturbed { "~" } else { "" }),
                format!("[{low:.3}, {high:.3}]"),
                middle / floor,
                ours,
                interval,
                entry.error,
            );
        }
    }
    text
}

/// The record's lines of a case.
pub fn lines(case: &Case, entries: &[Entry], used: usize, ceiling: &Ceiling) -> Vec<Line> {
    let line = |entry: &Entry| {
        let (seconds, _) = entry.seconds();
        let work = judge::work(case, &entry.op, used, &entry.variant);
        Line {
            case: format!("{}/{DEVICE}/{}", entry.op, case.id),
            device: DEVICE.into(),
            series: entry.series.clone(),
            latency_us_median: seconds.median() * 1e6,
            latency_us_quartiles: [seconds.at(0.25) * 1e6, seconds.at(0.75) * 1e6],
            samples: seconds.len(),
            clock: "wall".into(),
            work,
            floor: Some(ceiling.floor(&work)),
            ratios: if entry.series == OURS { ratios(&entry.op, entries) } else { Vec::new() },
            error: Some(entry.error),
        }
    };
    entries.iter().map(line).collect()
}

/// Times of all others of an operation over ours.
fn ratios(op: &str, entries: &[Entry]) -> Vec<Ratio> {
    let others =
        entries.iter().filter(|entry| entry.op == op && !entry.is_ours() && !entry.ratios.is_empty());
    let ratio = |entry: &Entry| {
        let sorted = Sorted::new(entry.ratios.iter().copied());
        Ratio {
            to: entry.series.clone(),
            ratio: sorted.median(),
            interval: sorted.interval(),
            pairs: sorted.len(),
        }
    };
    others.map(ratio).collect()
}

/// Ours beside the best of the others, f32, of one operation of a case: the line of the summary.
pub fn summary(case: &Case, entries: &[Entry], used: usize, ceiling: &Ceiling) -> String {
    let mut text = String::new();
    for op in &case.ops {
        let of_op = || entries.iter().filter(|entry| entry.op == *op && entry.is_f32());
        let median = |entry: &Entry| entry.seconds().0.median();
        let Some(ours) = of_op().find(|entry| entry.is_ours()) else { continue };
        let others = of_op().filter(|entry| entry.who != 0);
        let best = others.min_by(|a, b| median(a).total_cmp(&median(b)));
        let floor = ceiling.floor(&judge::work(case, op, used, &ours.variant)).us() / 1e3;
        let own = median(ours) * 1e3;
        let _ = write!(
            text,
            "{:<28} {op:<6} ours {own:.3} ms, {:.2} x the floor of {floor:.3} ms",
            case.id,
            own / floor
        );
        let _ = match best {
            None => writeln!(text, "; nobody beside it"),
            Some(best) => {
                let (theirs, ratios) = (median(best) * 1e3, Sorted::new(best.ratios.iter().copied()));
                let interval =
                    ratios.interval().map_or(String::new(), |[low, high]| format!(" [{low:.2}, {high:.2}]"));
                let ratio = if !ratios.is_empty() { ratios.median() } else { theirs / own };
                writeln!(
                    text,
                    "; best of the others {} {theirs:.3} ms, {ratio:.2} x ours{interval}",
                    best.series
                )
            }
        };
    }
    text
}
