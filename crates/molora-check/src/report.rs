//! What a case must do at least, and the line a case: `case | us | GFLOP/s | GB/s | % of limit | x baseline`.

use crate::Inputs;
use crate::case::{Case, Op};
use crate::measure::Samples;
use crate::record::{Ceiling, Line, Ratio};
use crate::stats::{ENOUGH, median, quartiles};
use molora::ops::Output;
use serde::{Deserialize, Serialize};
use std::fmt;

/// What a case must do at least.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Work {
    /// Additions and multiplications.
    pub flops: f64,
    /// Bytes that must be read or written once.
    pub bytes: f64,
}

impl std::ops::Add for Work {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        Self { flops: self.flops + other.flops, bytes: self.bytes + other.bytes }
    }
}

/// Operations and bytes of a case: every input that a live route needs read once, every output written once; what adds to y
/// reads it too.
pub fn work(inputs: &Inputs) -> Work {
    let case = &inputs.case;
    let live: Vec<usize> = inputs.topk_ids.iter().filter_map(|&id| usize::try_from(id).ok()).collect();
    if case.op == Op::Grouped {
        return grouped_work(inputs);
    }
    let mut used = vec![false; case.experts];
    live.iter().for_each(|&e| used[e] = true);
    let ranks =
        |experts: &mut dyn Iterator<Item = usize>| experts.map(|e| case.rank(e)).sum::<usize>() as f64;
    let route_ranks = ranks(&mut live.iter().copied());
    let pool_ranks = ranks(&mut (0..case.experts).filter(|&e| used[e]));
    let h_bytes = 4.0
        * match case.output {
            Output::RankSum => route_ranks / case.top_k.max(1) as f64,
            Output::Sum | Output::PerRoute => route_ranks,
        };
    let [tokens, input, output, experts] =
        [case.tokens, case.in_features, case.out_features, case.experts].map(|n| n as f64);
    let (x, a) = (case.x.bytes() as f64, case.adapters.bytes() as f64);
    let routes = case.routes() as f64;
    let plan = Work { flops: 0.0, bytes: 4.0 * (2.0 * routes + experts + 1.0) };
    let shrink = Work {
        flops: 2.0 * input * route_ranks,
        bytes: tokens * input * x + pool_ranks * input * a + h_bytes,
    };
    let y_rows = case.output.y_rows(case.tokens, case.top_k) as f64;
    // Who adds to y reads it too.
    let adds = if case.accumulate { 2.0 } else { 1.0 };
    let expand = Work {
        flops: 2.0 * output * route_ranks,
        bytes: h_bytes + pool_ranks * output * a + adds * y_rows * output * x,
    };
    let parts = live.iter().flat_map(|&e| (0..case.slices).map(move |s| (e, s)));
    let widths = case.slice_widths();
    let columns: usize = parts.map(|(e, s)| case.part_rank(e, s) * widths[s]).sum();
    // What a layer's experts ask for beside x and y: h and plans need not leave the caches.
    let experts_alone = Work {
        flops: 2.0 * (input * route_ranks + columns as f64),
        bytes: pool_ranks * (input + output) * a + 8.0 * routes,
    };
    let base = Work {
        flops: 2.0 * tokens * input * output,
        bytes: (input * output + tokens * (input + output)) * x,
    };
    match case.op {
        Op::Route => Work {
            flops: 2.0 * tokens * input * experts,
            bytes: tokens * input * x + experts * input * 4.0 + routes * 8.0,
        },
        Op::Plan => plan,
        Op::Shrink => shrink,
        Op::Attend => {
            let query = case.router_rank as f64;
            Work {
                flops: 2.0 * query * (tokens * input + route_ranks),
                bytes: tokens * input * x + 4.0 * query * (input + pool_ranks) + h_bytes + 4.0 * routes,
            }
        }
        Op::Expand => expand,
        Op::Base => base,
        Op::Delta => {
            let bytes = (tokens * input + adds * y_rows * output) * x;
            experts_alone + Work { flops: 0.0, bytes }
        }
        Op::Grouped => unreachable!("it has base experts"),
        Op::Layer | Op::Fused => experts_alone + base,
    }
}

/// As [`work`]: every base expert and adapter that a live route needs read once.
fn grouped_work(inputs: &Inputs) -> Work {
    let case = &inputs.case;
    let (widths, slots) = (case.slice_widths(), case.slots());
    let distinct = |ids: &[i32], all: usize| {
        let mut used = vec![false; all];
        ids.iter().filter_map(|&id| usize::try_from(id).ok()).for_each(|id| used[id] = true);
        (0..all).filter(|&id| used[id]).collect::<Vec<_>>()
    };
    // Elements of A and of B of one slot, which are the multiply-adds of a route to it too.
    let factors = |slot: usize| {
        let columns: usize = (0..widths.len()).map(|s| case.part_rank(slot, s) * widths[s]).sum();
        (case.rank(slot) * case.in_features + columns) as f64
    };
    let slots_of = |ids: &[i32]| ids.iter().filter_map(|&id| usize::try_from(id).ok()).collect::<Vec<_>>();
    let live = inputs.topk_ids.iter().filter(|&&id| id >= 0).count() as f64;
    let weight = (case.in_features * case.out_features) as f64;
    let routed: f64 = slots_of(&inputs.lora_ids).into_iter().map(factors).sum();
    let held: f64 = distinct(&inputs.lora_ids, slots).into_iter().map(factors).sum();
    let sizes = inputs.grouped_sizes();
    let rows = (sizes.x_rows() * case.in_features + sizes.y_rows() * sizes.width()) as f64;
    let weights = distinct(&inputs.topk_ids, case.group.experts).len() as f64 * weight;
    let (x, a) = (case.x.bytes() as f64, case.adapters.bytes() as f64);
    Work { flops: 2.0 * (live * weight + routed), bytes: (weights + rows) * x + held * a }
}

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
    use crate::routing::Routing;

    fn of(case: &Case) -> Work {
        work(&Inputs::new(case))
    }

    #[test]
    fn the_least_is_counted_as_peers_count_it() {
        // Two of eight experts for all tokens: used factors once, x once, y once or, where it is added to, twice.
        let sized = |op| Case {
            tokens: 5,
            in_features: 96,
            out_features: 32,
            routing: Routing::Identical,
            ..Case::new(op)
        };
        let (experts, routing) = (4.0 * 2.0 * 16.0 * (96.0 + 32.0), 8.0 * 10.0);
        let (x, y, weight) = (4.0 * 5.0 * 96.0, 4.0 * 5.0 * 32.0, 4.0 * 96.0 * 32.0);
        let (delta, base) = (of(&sized(Op::Delta)), of(&sized(Op::Base)));
        assert_eq!(delta.bytes, experts + routing + x + 2.0 * y);
        assert_eq!(delta.flops, 2.0 * 5.0 * 2.0 * 16.0 * (96.0 + 32.0));
        assert_eq!((base.flops, base.bytes), (2.0 * 5.0 * 96.0 * 32.0, weight + x + y));
        let layer = of(&sized(Op::Layer));
        assert_eq!(
            (layer.flops, layer.bytes),
            (delta.flops + base.flops, experts + routing + weight + x + y)
        );
        assert_eq!(of(&sized(Op::Fused)), layer);
        let added = of(&Case { accumulate: true, ..sized(Op::Expand) });
        assert_eq!(added.bytes - of(&sized(Op::Expand)).bytes, 4.0 * 5.0 * 32.0);
        assert_eq!(of(&Case { routing: Routing::NoExpert, ..sized(Op::Delta) }).flops, 0.0);
    }

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
            text.contains("| 4.00 [2.00, 4.00] |") && text.contains("| 25 of max(1.00, 0.00) |"),
            "{text}"
        );
        let many = Samples { ours: vec![2.0; 40], base: vec![1.0; 40] };
        let line = &lines(&Told { ceilings: &[], ..told }, &inputs, Some(&base), &many)[0];
        assert!(line.to_string().ends_with("| - | 0.500 [0.500, 0.500] (base)"), "{line}");
    }
}
