//! The line a case: `case | us | GFLOP/s | GB/s | % of limit | x baseline`.

use crate::Inputs;
use crate::case::{Case, Op};
use crate::measure::Samples;
use crate::record::{Ceiling, Line, Ratio};
use crate::stats::{ENOUGH, median, quartiles};
use std::fmt;

pub use crate::work::{Work, work};

/// The heading of the lines.
pub const HEADING: &str = "case | us | GFLOP/s | GB/s | % of limit | x baseline";

/// What stands in the columns of [`HEADING`].
pub const LEGEND: &str = "us: median [quartiles] of a call; % of limit: floor / median, floor = max(operations / rate, bytes / \
                          bandwidth), both in us; x baseline: the baseline's time over this one's, median [95 % interval] of \
                          alternating pairs";

/// Our own series.
pub const OURS: &str = "molora";

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.latency_us_median * 1e-6;
        let series = if self.series == OURS { String::new() } else { format!(" ({} alone)", self.series) };
        let [low, high] = self.latency_us_quartiles;
        write!(f, "{}{series} | {} [{}, {}]", self.case, us(self.latency_us_median), us(low), us(high))?;
        let Work { flops, bytes } = self.work;
        write!(f, " | {:.1} | {:.1} | ", flops / seconds / 1e9, bytes / seconds / 1e9)?;
        match (self.limit_share(), self.floor) {
            (Some(share), Some(floor)) => {
                let terms = (us(floor.operations_us), us(floor.bytes_us));
                write!(f, "{:.0} of max({}, {}) | ", share * 100.0, terms.0, terms.1)?;
            }
            _ => write!(f, "- | ")?,
        }
        let ratios: Vec<String> = self.ratios.iter().map(Ratio::to_string).collect();
        f.write_str(if ratios.is_empty() { "-" } else { "" })?;
        f.write_str(&ratios.join(", "))
    }
}

impl fmt::Display for Ratio {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.3}", self.ratio)?;
        if let Some([low, high]) = self.interval {
            write!(f, " [{low:.3}, {high:.3}]")?;
        }
        write!(f, " ({})", self.to)
    }
}

impl fmt::Display for Ceiling {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ceiling {} | {:.1} GFLOP/s | {:.1} GB/s", self.element, self.gflop_per_s, self.gb_per_s)
    }
}

/// Microseconds with three digits or all before the point.
fn us(us: f64) -> String {
    match us {
        us if us >= 100.0 => format!("{us:.0}"),
        us if us >= 10.0 => format!("{us:.1}"),
        us => format!("{us:.2}"),
    }
}

/// What a line says of its case beside the samples.
#[derive(Debug, Clone)]
pub struct Told<'a> {
    /// The device's kind, as in case labels.
    pub kind: &'a str,
    /// The device's name.
    pub device: &'a str,
    /// What the times are read from.
    pub clock: &'a str,
    /// What the device can do at most; the case's device and element are looked for.
    pub ceilings: &'a [Ceiling],
    /// The worst row's error, where it was judged.
    pub error: Option<f64>,
}

/// The case's line, then the base product's where it was timed beside.
pub fn lines(told: &Told<'_>, inputs: &Inputs, base: Option<&Inputs>, samples: &Samples) -> Vec<Line> {
    let line = |series: &str, us: &[f64], inputs: &Inputs| {
        let work = work(inputs);
        let element = inputs.case.x.name();
        let ceiling = told.ceilings.iter().find(|c| c.device == told.device && c.element == element);
        Line {
            case: String::new(),
            device: told.device.to_string(),
            series: series.to_string(),
            latency_us_median: median(us.iter().copied()).middle,
            latency_us_quartiles: quartiles(us.iter().copied()),
            samples: us.len(),
            clock: told.clock.to_string(),
            work,
            floor: ceiling.map(|ceiling| ceiling.floor(&work)),
            ratios: Vec::new(),
            error: None,
        }
    };
    let mut lines = vec![line(OURS, &samples.ours, inputs)];
    lines[0].error = told.error;
    if let Some(base) = base.filter(|_| !samples.base.is_empty()) {
        lines[0].ratios.push(ratio("base", samples.base.iter().zip(&samples.ours)));
        lines.push(line("base", &samples.base, base));
    }
    lines.iter_mut().for_each(|line| line.case = inputs.case.label(told.kind));
    lines
}

/// The median of pairs of another series' time and ours, in this order.
pub fn ratio<'a>(to: &str, pairs: impl Iterator<Item = (&'a f64, &'a f64)>) -> Ratio {
    let ratios: Vec<f64> = pairs.map(|(other, ours)| other / ours).collect();
    let (pairs, middle) = (ratios.len(), median(ratios));
    let interval = (pairs >= ENOUGH).then_some([middle.low, middle.high]);
    Ratio { to: to.to_string(), ratio: middle.middle, interval, pairs }
}

/// The base product alone of a case with experts; none of the other operations.
pub fn base_of(case: &Case) -> Option<Case> {
    match case.op {
        Op::Grouped => Some(Case { experts: 0, ..case.clone() }),
        Op::Delta | Op::Layer | Op::Fused => Some(Case {
            x: case.x,
            adapters: case.x,
            tokens: case.tokens,
            in_features: case.in_features,
            out_features: case.out_features,
            bias: case.bias,
            padding: case.padding,
            seed: case.seed,
            ..Case::new(Op::Base)
        }),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_read_as_the_heading_says() {
        let inputs = Inputs::new(&Case { tokens: 4, ..Case::new(Op::Layer) });
        let base = Inputs::new(&base_of(&inputs.case).unwrap());
        let ceiling = |device: &str| Ceiling {
            device: device.into(),
            element: "f32".into(),
            gflop_per_s: 1e-3 * work(&inputs).flops,
            gb_per_s: 1e-3 * work(&inputs).bytes / 2.0,
        };
        let ceilings =
            [ceiling("other"), Ceiling { gb_per_s: 1e9, ..ceiling("cpu: it") }, ceiling("cpu: it")];
        let told =
            Told { kind: "cpu", device: "cpu: it", clock: "wall", ceilings: &ceilings, error: Some(1e-7) };
        let samples = Samples { ours: vec![2.0, 4.0, 5.0], base: vec![2.0, 2.0, 5.0] };
        let found = lines(&told, &inputs, Some(&base), &samples);
        assert_eq!((found.len(), found[1].series.as_str(), found[1].error), (2, "base", None));
        assert_eq!(found[0].floor.map(|f| (f.operations_us, f.bytes_us < 1e-6)), Some((1.0, true)));
        let text = found[0].to_string();
        assert!(text.starts_with("layer/cpu/f32/t4_") && text.ends_with("| 1.000 (base)"), "{text}");
        assert_eq!(text.matches(" | ").count(), HEADING.matches(" | ").count(), "{text}");
        assert!(
            text.contains("| 4.00 [3.00, 4.50] |") && text.contains("| 25 of max(1.00, 0.00) |"),
            "{text}"
        );
        let many = Samples { ours: vec![2.0; 40], base: vec![1.0; 40] };
        let line = &lines(&Told { ceilings: &[], ..told }, &inputs, Some(&base), &many)[0];
        assert!(line.to_string().ends_with("| - | 0.500 [0.500, 0.500] (base)"), "{line}");
    }
}
