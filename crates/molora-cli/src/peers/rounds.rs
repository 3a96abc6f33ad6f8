//! One case: everyone made ready, every answer checked, then series by series, again and again.

use super::noise;
use super::process::Process;
use indicatif::ProgressBar;
use molora_check::contest::Case;
use molora_check::contest::judge::{self, Bits, bits};
use molora_check::report::OURS;
use molora_check::stats::Sorted;
use serde_json::{Value, json};
use std::path::Path;

/// A batch during which others took more of the machine than this counts only where there are no two quieter ones.
const FOREIGN_MOST: f64 = 0.1;

/// A variant whose call takes so many times as long as its contender's best is not called again.
const SLOWER_MOST: f64 = 4.0;

/// Ratios between 1 / CLOSE and CLOSE are shown from at least so many pairs.
const CLOSE: f64 = 1.3;
const PAIRS: usize = 30;

/// What the contest is run with.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Times that every series has its turn.
    pub rounds: usize,
    /// Seconds of calls of a turn.
    pub budget: f64,
    /// Operations to run; all where empty.
    pub ops: Vec<String>,
}

/// One turn of a series.
#[derive(Debug, Clone)]
struct Batch {
    /// Seconds of each call.
    seconds: Vec<f64>,
    foreign: f64,
}

impl Batch {
    fn median(&self) -> f64 {
        Sorted::new(self.seconds.iter().copied()).median()
    }
}

/// One way of computing one operation, by one contender.
#[derive(Debug, Clone)]
pub struct Entry {
    /// Its contender's place; 0 is ours.
    pub who: usize,
    /// `torch/grouped`; ours is `molora`, with a variant where it is not the library's own choice.
    pub series: String,
    /// The operation.
    pub op: String,
    /// The way, as its contender names it.
    pub variant: String,
    /// Relative L2 error of the worst row.
    pub error: f64,
    first: f64,
    batches: Vec<Batch>,
    /// Its time over ours, of neighbouring turns.
    pub ratios: Vec<f64>,
}

impl Entry {
    /// Seconds of the calls that count, and whether others disturbed them.
    pub fn seconds(&self) -> (Sorted, bool) {
        let quiet = |batch: &&Batch| batch.foreign <= FOREIGN_MOST;
        let disturbed = self.batches.iter().filter(quiet).count() < 2;
        let counted = self.batches.iter().filter(|batch| disturbed || quiet(batch));
        let seconds = Sorted::new(counted.flat_map(|batch| batch.seconds.iter().copied()));
        match seconds.len() {
            // Too slow for a second call.
            0 => (Sorted::new([self.first]), true),
            _ => (seconds, disturbed),
        }
    }

    /// Whether it is the library's own choice.
    pub fn is_ours(&self) -> bool {
        self.series == OURS
    }

    /// Whether it computes in f32 with f32 weights.
    pub fn is_f32(&self) -> bool {
        bits(&self.variant) == Bits::F32
    }
}

fn name(who: &str, op: &str, variant: &str) -> String {
    let own = matches!((op, variant), ("base", "packed") | ("lora", "delta") | ("ggemm", "grouped"))
        || matches!((op, variant), ("layer" | "full", "fused"));
    if who == OURS && own { OURS.into() } else { format!("{who}/{variant}") }
}

/// Runs a case; the second list says who is missing and why.
pub fn run(
    case: &Case,
    data: &Path,
    plan: &Plan,
    all: &mut [Process],
    bar: &ProgressBar,
) -> (Vec<Entry>, Vec<String>) {
    let (mut entries, mut missing) = (Vec::new(), Vec::new());
    for (who, process) in all.iter_mut().enumerate() {
        bar.set_message(format!("{}: {} gets ready", case.id, process.name));
        match ready(who, process, case, data, plan, &mut missing) {
            Ok(own) => entries.extend(own),
            Err(why) => missing.push(format!("{}: {}: {why}", case.id, process.name)),
        }
    }
    let mut live = faster(&entries);
    for round in 0..plan.rounds {
        bar.set_message(format!("{}: round {} of {}", case.id, round + 1, plan.rounds));
        for &at in &live {
            turn(&mut entries[at], all, plan.budget, &mut missing, case);
        }
        pair(&mut entries, round);
        bar.inc(1);
        // a b c, then c b a: who comes first alternates.
        live.reverse();
    }
    closer(&mut entries, all, plan, &mut missing, case, bar);
    for process in all.iter_mut() {
        if let Err(why) = process.ask(&json!({"do": "drop"})) {
            missing.push(format!("{}: {}: {why}", case.id, process.name));
        }
    }
    (entries, missing)
}

/// A contender's series of a case, each checked once.
fn ready(
    who: usize,
    process: &mut Process,
    case: &Case,
    data: &Path,
    plan: &Plan,
    missing: &mut Vec<String>,
) -> Result<Vec<Entry>, String> {
    let answer = process.ask(&json!({"do": "prepare", "case": case, "data": data}))?;
    let texts = |pair: &Value| Some((pair[0].as_str()?.to_string(), pair[1].as_str()?.to_string()));
    let series: Vec<_> = answer["series"].as_array().into_iter().flatten().filter_map(texts).collect();
    let out = data.join(format!("answer-{}.npy", process.name));
    let mut entries = Vec::new();
    for (op, variant) in series {
        if !plan.ops.is_empty() && !plan.ops.contains(&op) {
            continue;
        }
        let asked = process.ask(&json!({"do": "check", "op": op, "variant": variant, "out": out}));
        let judged = asked.and_then(|_| judge::error(case, &op, data, &out));
        // The first call pays for what is set up once; the second says whether a variant is slow.
        let again = json!({"do": "time", "op": op, "variant": variant, "budget": 0.0, "warm": false});
        let judged =
            judged.and_then(|error| Ok((process.ask(&again)?["s"][0].as_f64().unwrap_or(0.0), error)));
        let series = name(&process.name, &op, &variant);
        match judged {
            Ok((first, error)) if error <= judge::tolerance(&variant) => {
                let (batches, ratios) = (Vec::new(), Vec::new());
                entries.push(Entry { who, series, op, variant, error, first, batches, ratios });
            }
            Ok((_, error)) => {
                missing.push(format!("{}: {op} {series}: wrong, relative error {error:.1e}", case.id))
            }
            Err(why) => missing.push(format!("{}: {op} {series}: {why}", case.id)),
        }
    }
    // It may not be there.
    let _ = std::fs::remove_file(out);
    Ok(entries)
}

/// All but those whose call was far slower than their contender's best of the operation.
fn faster(entries: &[Entry]) -> Vec<usize> {
    let best = |entry: &Entry| {
        let same = entries.iter().filter(|other| other.who == entry.who && other.op == entry.op);
        same.map(|other| other.first).fold(f64::INFINITY, f64::min)
    };
    let kept =
        |&at: &usize| entries[at].who == 0 || entries[at].first <= SLOWER_MOST * best(&entries[at]) + 0.05;
    (0..entries.len()).filter(kept).collect()
}

fn turn(entry: &mut Entry, all: &mut [Process], budget: f64, missing: &mut Vec<String>, case: &Case) {
    let mut own: Vec<u32> = all.iter().map(Process::id).collect();
    own.push(std::process::id());
    let before = noise::mark(&own);
    let request = json!({
        "do": "time", "op": entry.op, "variant": entry.variant, "budget": budget, "warm": entry.first < 0.2,
    });
    match all[entry.who].ask(&request) {
        Ok(answer) => {
            let seconds: Vec<f64> =
                answer["s"].as_array().into_iter().flatten().filter_map(Value::as_f64).collect();
            if !seconds.is_empty() {
                entry.batches.push(Batch { seconds, foreign: noise::foreign(&before, &noise::mark(&own)) });
            }
        }
        Err(why) => missing.push(format!("{}: {} {}: {why}", case.id, entry.op, entry.series)),
    }
}

/// The ratios of a round to ours of the same operation.
fn pair(entries: &mut [Entry], round: usize) {
    let ours: Vec<(String, f64)> = entries
        .iter()
        .filter(|entry| entry.is_ours())
        .filter_map(|entry| Some((entry.op.clone(), entry.batches.get(round)?.median())))
        .collect();
    for entry in entries {
        let own = ours.iter().find(|(op, _)| *op == entry.op);
        if let (Some((_, own)), Some(batch)) = (own, entry.batches.get(round)) {
            entry.ratios.push(batch.median() / own);
        }
    }
}

/// More pairs, of shorter turns, for ratios close to 1.
fn closer(
    entries: &mut [Entry],
    all: &mut [Process],
    plan: &Plan,
    missing: &mut Vec<String>,
    case: &Case,
    bar: &ProgressBar,
) {
    let budget = plan.budget / 4.0;
    for at in 0..entries.len() {
        let ratio = Sorted::new(entries[at].ratios.iter().copied()).median();
        let close = !entries[at].is_ours() && (1.0 / CLOSE..CLOSE).contains(&ratio);
        let own = entries.iter().position(|entry| entry.is_ours() && entry.op == entries[at].op);
        let (true, Some(own)) = (close, own) else { continue };
        bar.set_message(format!("{}: {} {} is close", case.id, entries[at].op, entries[at].series));
        for i in entries[at].ratios.len()..PAIRS {
            let order = if i % 2 == 0 { [own, at] } else { [at, own] };
            let before = order.map(|entry| entries[entry].batches.len());
            order.iter().for_each(|&entry| turn(&mut entries[entry], all, budget, missing, case));
            if order.iter().zip(before).any(|(&entry, before)| entries[entry].batches.len() == before) {
                break;
            }
            let last = |entry: usize| entries[entry].batches.last().map_or(f64::NAN, Batch::median);
            let ratio = last(at) / last(own);
            entries[at].ratios.push(ratio);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(who: usize, series: &str, first: f64) -> Entry {
        let (op, variant) = ("layer".to_string(), "f32".to_string());
        Entry { who, series: series.into(), op, variant, error: 0.0, first, batches: vec![], ratios: vec![] }
    }

    fn batch(seconds: &[f64], foreign: f64) -> Batch {
        Batch { seconds: seconds.to_vec(), foreign }
    }

    #[test]
    fn quiet_batches_count_where_there_are_two() {
        let mut entry = entry(1, "torch/loop", 7.0);
        assert_eq!((entry.seconds().0.median(), entry.seconds().1), (7.0, true));
        entry.batches = vec![batch(&[9.0], 0.5), batch(&[1.0], 0.0)];
        assert_eq!((entry.seconds().0.median(), entry.seconds().1), (5.0, true));
        entry.batches.push(batch(&[2.0, 3.0], 0.0));
        assert_eq!((entry.seconds().0.median(), entry.seconds().1), (2.0, false));
    }

    #[test]
    fn ratios_are_of_one_round() {
        let mut entries = [entry(0, OURS, 0.0), entry(1, "torch/loop", 0.0)];
        entries[0].batches = vec![batch(&[1.0], 0.0), batch(&[2.0], 0.0)];
        entries[1].batches = vec![batch(&[3.0], 0.0), batch(&[3.0], 0.0)];
        (0..2).for_each(|round| pair(&mut entries, round));
        assert_eq!(entries[1].ratios, [3.0, 1.5]);
        assert_eq!(entries[0].ratios, [1.0, 1.0]);
    }

    #[test]
    fn far_slower_variants_are_not_called_again() {
        let entries = [
            entry(0, OURS, 9.0),
            entry(0, "molora/x", 0.1),
            entry(1, "a/x", 1.0),
            entry(1, "a/y", 4.1),
            entry(2, "b/x", 4.1),
        ];
        assert_eq!(faster(&entries), [0, 1, 2, 4]);
    }

    #[test]
    fn the_librarys_own_choices_have_its_name() {
        assert_eq!(name("molora", "layer", "fused"), "molora");
        assert_eq!(name("molora", "lora", "delta"), "molora");
        assert_eq!(name("molora", "layer", "separate"), "molora/separate");
        assert_eq!(name("torch", "layer", "fused"), "torch/fused");
    }
}
