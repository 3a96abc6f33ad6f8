//! Two records side by side: which lines became faster, which slower, and which differ by noise alone.

use super::series::{is_sound, operation};
use molora_check::record::{Line, Machine, Record};
use molora_check::report::OURS;
use serde::Serialize;
use std::collections::BTreeMap;

/// Ceilings that differ by more than this share are worth a warning.
const SAME_CEILING: f64 = 0.1;
/// Quartiles of fewer samples say nothing about noise, so no difference between them is called one.
const FEWEST_SAMPLES: usize = 5;

/// What [`compare`] finds.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Comparison {
    /// Where and when the first ran.
    pub a: Side,
    /// Likewise the second.
    pub b: Side,
    /// Why the ratios may say less than they seem to.
    pub warnings: Vec<String>,
    /// The lines that both have, in A's order.
    pub pairs: Vec<Pair>,
    /// Geometric means of the pairs' ratios.
    pub means: Vec<Mean>,
    /// Lines that A alone has.
    pub only_a: Vec<Name>,
    /// Lines that B alone has.
    pub only_b: Vec<Name>,
    /// Lines that both have, but whose times do not compare.
    pub not_compared: Vec<NotCompared>,
}

/// A record without its lines.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Side {
    /// Day of the run.
    pub date: String,
    /// The library's version.
    pub version: String,
    /// Where it ran.
    pub machine: Machine,
}

/// What names a line.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Name {
    /// The case's label.
    pub case: String,
    /// Who ran it.
    pub series: String,
    /// The device's name.
    pub device: String,
}

/// Whether a pair's difference means something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// B's quartiles lie below A's.
    Faster,
    /// B's quartiles lie above A's.
    Slower,
    /// The quartiles overlap, or rest on too few samples.
    Noise,
}

/// A line of both records.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Pair {
    /// Its name; the device is A's.
    #[serde(flatten)]
    pub name: Name,
    /// A's median time in microseconds.
    pub a_us: f64,
    /// B's.
    pub b_us: f64,
    /// A's median over B's: above 1, B is that many times as fast.
    pub ratio: f64,
    /// The least and the largest ratio of two times between the quartiles.
    pub spread: [f64; 2],
    /// Noise, or not.
    pub verdict: Verdict,
    /// Floor over median in A and in B, each by its own record's ceilings.
    pub limit_shares: [Option<f64>; 2],
}

/// A geometric mean of ratios.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Mean {
    /// Whose lines; contenders' means are a control, since their code did not change with ours.
    pub series: String,
    /// `overall`, `operation NAME` or `device NAME`.
    pub of: String,
    /// The geometric mean.
    pub ratio: f64,
    /// Pairs behind it.
    pub pairs: usize,
    /// Those among them that became faster.
    pub faster: usize,
    /// Slower.
    pub slower: usize,
    /// Those within the noise.
    pub noise: usize,
}

/// A line of both records without a ratio.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct NotCompared {
    /// Its name.
    #[serde(flatten)]
    pub name: Name,
    /// Why.
    pub why: String,
}

fn name(line: &Line) -> Name {
    Name { case: line.case.clone(), series: line.series.clone(), device: line.device.clone() }
}

/// Pairs the lines of two records by case and series and takes A's time over B's.
pub fn compare(a: &Record, b: &Record) -> Comparison {
    let side = |record: &Record| Side {
        date: record.date.clone(),
        version: record.version.clone(),
        machine: record.machine.clone(),
    };
    let (matches, only_a, only_b) = matched(a, b);
    let (mut pairs, mut not_compared) = (Vec::new(), Vec::new());
    for (a, b) in matches {
        match pair(a, b) {
            Ok(pair) => pairs.push(pair),
            Err(why) => not_compared.push(NotCompared { name: name(a), why }),
        }
    }
    let means = means(&pairs);
    let mut warnings = warnings(a, b);
    if pairs.is_empty() {
        warnings.push("no line is in both records with a time: there is nothing to compare".into());
    }
    Comparison { a: side(a), b: side(b), warnings, pairs, means, only_a, only_b, not_compared }
}

type Matched<'a> = (Vec<(&'a Line, &'a Line)>, Vec<Name>, Vec<Name>);

/// Lines of the same case and series; among several (devices of one kind) first those of the same device, then in order.
fn matched<'a>(a: &'a Record, b: &'a Record) -> Matched<'a> {
    let mut free: BTreeMap<(&str, &str), Vec<&Line>> = BTreeMap::new();
    for line in &b.lines {
        free.entry((&line.case, &line.series)).or_default().push(line);
    }
    let mut partner: Vec<Option<&Line>> = vec![None; a.lines.len()];
    for same_device in [true, false] {
        for (line, partner) in a.lines.iter().zip(&mut partner) {
            let Some(candidates) = free.get_mut(&(line.case.as_str(), line.series.as_str())) else {
                continue;
            };
            let at = candidates.iter().position(|b| !same_device || b.device == line.device);
            if let (None, Some(at)) = (*partner, at) {
                *partner = Some(candidates.remove(at));
            }
        }
    }
    let lines = a.lines.iter().zip(&partner);
    let pairs = lines.clone().filter_map(|(a, b)| b.map(|b| (a, b))).collect();
    let only_a = lines.filter(|(_, b)| b.is_none()).map(|(a, _)| name(a)).collect();
    let left = |line: &&Line| free.values().flatten().any(|left| std::ptr::eq(*left, *line));
    (pairs, only_a, b.lines.iter().filter(left).map(name).collect())
}

fn pair(a: &Line, b: &Line) -> Result<Pair, String> {
    for (side, line) in [("A", a), ("B", b)] {
        if !is_sound(line) {
            let (us, quartiles) = (line.latency_us_median, line.latency_us_quartiles);
            return Err(format!("{side} has no sound time: median {us} us, quartiles {quartiles:?} us"));
        }
    }
    if a.clock != b.clock {
        return Err(format!("clocks differ: {} in A, {} in B", a.clock, b.clock));
    }
    let ([a_low, a_high], [b_low, b_high]) = (a.latency_us_quartiles, b.latency_us_quartiles);
    let verdict = match () {
        () if a.samples.min(b.samples) < FEWEST_SAMPLES => Verdict::Noise,
        () if b_high < a_low => Verdict::Faster,
        () if b_low > a_high => Verdict::Slower,
        () => Verdict::Noise,
    };
    Ok(Pair {
        name: name(a),
        a_us: a.latency_us_median,
        b_us: b.latency_us_median,
        ratio: a.latency_us_median / b.latency_us_median,
        spread: [a_low / b_high, a_high / b_low],
        verdict,
        limit_shares: [a.limit_share(), b.limit_share()],
    })
}

/// For each series, ours first: over all, and for ours over each operation and each device.
fn means(pairs: &[Pair]) -> Vec<Mean> {
    let distinct = |of: &dyn Fn(&Pair) -> String| {
        let mut all: Vec<String> = Vec::new();
        for text in pairs.iter().map(of) {
            if !all.contains(&text) {
                all.push(text);
            }
        }
        all
    };
    let mut means = Vec::new();
    let mut series = distinct(&|pair| pair.name.series.clone());
    series.sort_by_key(|series| series != OURS);
    for series in series {
        let ours = |pair: &&Pair| pair.name.series == series;
        means.push(mean(&series, "overall".into(), pairs.iter().filter(ours)));
        if series != OURS {
            continue;
        }
        for op in distinct(&|pair| operation(&pair.name.case).into()) {
            let of = pairs.iter().filter(ours).filter(|pair| operation(&pair.name.case) == op);
            means.push(mean(&series, format!("operation {op}"), of));
        }
        for device in distinct(&|pair| pair.name.device.clone()) {
            let of = pairs.iter().filter(ours).filter(|pair| pair.name.device == device);
            means.push(mean(&series, format!("device {device}"), of));
        }
    }
    // An operation or a device that ours did not run has no mean.
    means.retain(|mean| mean.pairs > 0);
    means
}

fn mean<'a>(series: &str, of: String, pairs: impl Iterator<Item = &'a Pair>) -> Mean {
    let (mut logs, mut counts) = (0.0, [0; 3]);
    for pair in pairs {
        logs += pair.ratio.ln();
        counts[pair.verdict as usize] += 1;
    }
    let [faster, slower, noise] = counts;
    let pairs = faster + slower + noise;
    Mean { series: series.into(), of, ratio: (logs / pairs as f64).exp(), pairs, faster, slower, noise }
}

fn warnings(a: &Record, b: &Record) -> Vec<String> {
    let mut warnings = Vec::new();
    if a.machine != b.machine {
        warnings.push(format!(
            "different machines ({} and {}): the ratios compare the machines too, not the code alone",
            a.machine.name, b.machine.name
        ));
    }
    for old in &a.ceilings {
        let Some(new) = b.ceiling(&old.device, &old.element) else { continue };
        for (what, old_rate, new_rate) in
            [("GFLOP/s", old.gflop_per_s, new.gflop_per_s), ("GB/s", old.gb_per_s, new.gb_per_s)]
        {
            if (new_rate / old_rate - 1.0).abs() > SAME_CEILING {
                let (device, element) = (&old.device, &old.element);
                warnings.push(format!(
                    "{device}, {element}: the measured ceiling went from {old_rate:.1} to {new_rate:.1} {what}"
                ));
            }
        }
    }
    warnings
}

#[cfg(test)]
#[path = "compare_tests.rs"]
mod tests;
