//! Times and the line a case: `case | us | GFLOP/s | GB/s | % of limit | x baseline`.

use crate::case::{Case, Op};
use crate::subject::{Subject, Timer};
use crate::{Inputs, expect};
use molora::error::Result;
use molora::ops::Output;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::time::Duration;

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

/// Operations and bytes of a case: every input that a live route needs read once, every output written once.
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
    let adds = if case.accumulate || case.op == Op::Layer { 2.0 } else { 1.0 };
    let expand = Work {
        flops: 2.0 * output * route_ranks,
        bytes: h_bytes + pool_ranks * output * a + adds * y_rows * output * x,
    };
    let parts = live.iter().flat_map(|&e| (0..case.slices).map(move |s| (e, s)));
    let widths = case.slice_widths();
    let columns: usize = parts.map(|(e, s)| case.part_rank(e, s) * widths[s]).sum();
    // y is the base product's, and written once.
    let extension = Work { flops: 2.0 * columns as f64, bytes: h_bytes + pool_ranks * output * a };
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
        Op::Delta => plan + shrink + expand,
        Op::Grouped => unreachable!("it has base experts"),
        Op::Layer => plan + shrink + expand + base,
        Op::Fused => plan + shrink + extension + base,
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

/// One line of results.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Line {
    /// The case with its device.
    pub case: String,
    /// The device's name.
    pub device: String,
    /// Median time of one call in microseconds.
    pub latency_us_median: f64,
    /// Operations a second, in 10^9.
    pub gflop_per_s: f64,
    /// Bytes a second, in 10^9.
    pub gb_per_s: f64,
    /// Share of the device's measured limit; none without a measurement of the limit.
    pub limit_share: Option<f64>,
    /// Baseline's time over this time.
    pub baseline_ratio: Option<f64>,
    /// What the baseline is: `definition`, or `base` for the base product alone.
    pub baseline: &'static str,
}

/// The heading of the lines.
pub const HEADING: &str = "case | us | GFLOP/s | GB/s | % of limit | x baseline";

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let or_dash = |value: Option<String>| value.unwrap_or_else(|| "-".into());
        write!(
            f,
            "{} | {:.1} | {:.1} | {:.1} | {} | {}",
            self.case,
            self.latency_us_median,
            self.gflop_per_s,
            self.gb_per_s,
            or_dash(self.limit_share.map(|share| format!("{:.0}", share * 100.0))),
            or_dash(self.baseline_ratio.map(|ratio| format!("{ratio:.2} ({})", self.baseline))),
        )
    }
}

/// Median time of one call: a warm-up, then `samples` samples that share `budget`.
pub fn measure(timer: &mut Timer<'_>, samples: usize, budget: Duration) -> Result<Duration> {
    let once = timer(1)?.max(Duration::from_nanos(100));
    let samples = samples.max(1);
    let calls = (budget.as_secs_f64() / samples as f64 / once.as_secs_f64()).clamp(1.0, 100_000.0) as u64;
    let mut times = Vec::with_capacity(samples);
    for _ in 0..samples {
        times.push(timer(calls)?.div_f64(calls as f64));
    }
    times.sort();
    Ok(times[samples / 2])
}

/// A time as a line. The baseline is the definition; beside a layer and a grouped product it is the base alone.
pub fn line(subject: &dyn Subject, inputs: &Inputs, time: Duration, budget: Duration) -> Result<Line> {
    let (case, Work { flops, bytes }) = (&inputs.case, work(inputs));
    let seconds = time.as_secs_f64();
    let (baseline, base_time) = if matches!(case.op, Op::Layer | Op::Fused | Op::Grouped) {
        let base = Inputs::new(&base_of(case));
        ("base", Some(measure(&mut subject.timer(&base)?, 5, budget)?))
    } else {
        // Two billion operations of a definition are seconds of waiting for one number.
        ("definition", (flops <= 2e9).then(|| expect::time(inputs)).transpose()?)
    };
    Ok(Line {
        case: case.label(subject.kind()),
        device: subject.name(),
        latency_us_median: seconds * 1e6,
        gflop_per_s: flops / seconds / 1e9,
        gb_per_s: bytes / seconds / 1e9,
        limit_share: None,
        baseline_ratio: base_time.map(|base| base.as_secs_f64() / seconds),
        baseline,
    })
}

/// The base product alone of a layer's case.
fn base_of(case: &Case) -> Case {
    if case.op == Op::Grouped {
        return Case { experts: 0, ..case.clone() };
    }
    Case {
        x: case.x,
        adapters: case.x,
        tokens: case.tokens,
        in_features: case.in_features,
        out_features: case.out_features,
        bias: case.bias,
        padding: case.padding,
        seed: case.seed,
        ..Case::new(Op::Base)
    }
}
