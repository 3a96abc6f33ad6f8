//! What other series took beside ours, case by case: the common ground of the table and of the bars.

use molora_check::record::{Line, Record};
use molora_check::report::OURS;

/// The definition is an oracle that nobody would use instead: it has no place beside us.
const DEFINITION: &str = "definition";

/// The operation of a case: its first part.
pub fn operation(case: &str) -> &str {
    case.split('/').next().unwrap_or(case)
}

/// Who ran a series: `torch` of `torch/loop`.
pub fn contender(series: &str) -> &str {
    series.split('/').next().unwrap_or(series)
}

/// Whether a line can be drawn and divided by: a time above 0 between its quartiles.
pub fn is_sound(line: &Line) -> bool {
    let [low, high] = line.latency_us_quartiles;
    low > 0.0 && low <= line.latency_us_median && line.latency_us_median <= high && high.is_finite()
}

/// Another series' time on the case of one of our lines, over ours.
#[derive(Debug, Clone, PartialEq)]
pub struct Other {
    /// As in the record.
    pub series: String,
    /// Its time over ours: above 1 it is slower.
    pub ratio: f64,
    /// Of alternating pairs the median's 95 % interval; else its quartiles over our median.
    pub range: Option<[f64; 2]>,
    /// Whether the two alternated.
    pub alternating: bool,
}

/// Our lines that [`is_sound`] holds for, in the record's order.
pub fn ours(record: &Record) -> impl Iterator<Item = &Line> {
    record.lines.iter().filter(|line| line.series == OURS && is_sound(line))
}

/// The devices of our lines, each once, in the order of the run.
pub fn devices(record: &Record) -> Vec<&str> {
    let mut devices: Vec<&str> = Vec::new();
    for line in ours(record) {
        if !devices.contains(&line.device.as_str()) {
            devices.push(&line.device);
        }
    }
    devices
}

/// The lines of other series on the case of one of ours. A contender's name for its device may differ from ours: its line
/// belongs to ours unless another device of ours bears that very name.
pub fn beside<'a>(record: &'a Record, ours_line: &'a Line) -> impl Iterator<Item = &'a Line> {
    record.lines.iter().filter(move |line| {
        let elsewhere = || ours(record).any(|own| own.case == line.case && own.device == line.device);
        line.case == ours_line.case
            && line.series != OURS
            && is_sound(line)
            && (line.device == ours_line.device || !elsewhere())
    })
}

/// The others of one of our lines: first those that alternated with it, then those that only ran the same case.
pub fn others(record: &Record, ours_line: &Line) -> Vec<Other> {
    let sound = |ratio: f64| ratio > 0.0 && ratio.is_finite();
    let mut others: Vec<Other> = ours_line
        .ratios
        .iter()
        .filter(|ratio| sound(ratio.ratio) && ratio.to != DEFINITION)
        .map(|ratio| Other {
            series: ratio.to.clone(),
            ratio: ratio.ratio,
            range: ratio.interval,
            alternating: true,
        })
        .collect();
    for line in beside(record, ours_line) {
        if others.iter().all(|other| other.series != line.series) {
            let over = |us: f64| us / ours_line.latency_us_median;
            others.push(Other {
                series: line.series.clone(),
                ratio: over(line.latency_us_median),
                range: Some(line.latency_us_quartiles.map(over)),
                alternating: false,
            });
        }
    }
    others
}

#[cfg(test)]
pub(crate) mod example {
    //! Records for tests: invented round numbers.

    use molora_check::record::{Ceiling, FORMAT, Floor, Line, Machine, Ratio, Record};
    use molora_check::report::Work;

    /// A line whose quartiles lie 10 % around its median.
    pub fn line(case: &str, series: &str, us: f64) -> Line {
        Line {
            case: case.into(),
            device: "cpu".into(),
            series: series.into(),
            latency_us_median: us,
            latency_us_quartiles: [us * 0.9, us * 1.1],
            samples: 30,
            clock: "wall".into(),
            work: Work { flops: us * 5e4, bytes: us * 1e4 },
            floor: Some(Floor { operations_us: us / 4.0, bytes_us: us / 2.0 }),
            ratios: Vec::new(),
            error: None,
        }
    }

    pub fn ratio(to: &str, ratio: f64, interval: Option<[f64; 2]>) -> Ratio {
        Ratio { to: to.into(), ratio, interval, pairs: 30 }
    }

    /// A record of these lines.
    pub fn record(lines: Vec<Line>) -> Record {
        Record {
            format: FORMAT,
            date: "2026-01-02".into(),
            version: "0.1.0".into(),
            machine: Machine {
                name: "bench".into(),
                processor: "Some <Processor> & Co".into(),
                threads: 2,
                system: "linux x86_64".into(),
            },
            ceilings: vec![Ceiling {
                device: "cpu".into(),
                element: "f32".into(),
                gflop_per_s: 200.0,
                gb_per_s: 20.0,
            }],
            lines,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::example::{line, ratio, record};
    use super::*;

    #[test]
    fn alternating_ratios_come_before_ratios_of_medians() {
        let mut own = line("base/cpu/f32/t1", OURS, 10.0);
        own.ratios = vec![
            ratio("torch/loop", 3.0, Some([2.5, 3.5])),
            ratio("bad", f64::INFINITY, None),
            ratio(DEFINITION, 90.0, None),
        ];
        let loop_ = line("base/cpu/f32/t1", "torch/loop", 20.0);
        let gemm = line("base/cpu/f32/t1", "gemm", 40.0);
        let elsewhere = line("base/cpu/f32/t8", "gemm", 1.0);
        let record = record(vec![own.clone(), loop_, gemm, elsewhere]);
        let got = others(&record, &own);
        assert_eq!(got.len(), 2);
        assert_eq!((got[0].ratio, got[0].range, got[0].alternating), (3.0, Some([2.5, 3.5]), true));
        assert_eq!((got[1].series.as_str(), got[1].ratio, got[1].alternating), ("gemm", 4.0, false));
        let range = got[1].range.unwrap();
        assert!((range[0] - 3.6).abs() < 1e-12 && (range[1] - 4.4).abs() < 1e-12);
    }

    #[test]
    fn a_line_of_another_device_of_ours_is_not_beside() {
        let own = line("base/wgpu/f32/t1", OURS, 10.0);
        let second = Line { device: "other".into(), ..own.clone() };
        let base = Line { series: "base".into(), ..second.clone() };
        let torch = Line { series: "torch".into(), device: "its own name".into(), ..own.clone() };
        let record = record(vec![own.clone(), second.clone(), base, torch]);
        let names = |line: &Line| others(&record, line).into_iter().map(|o| o.series).collect::<Vec<_>>();
        assert_eq!(names(&own), ["torch"]);
        assert_eq!(names(&second), ["base", "torch"]);
        assert_eq!(devices(&record), ["cpu", "other"]);
    }

    #[test]
    fn lines_without_a_time_are_not_sound() {
        assert!(is_sound(&line("base/cpu/f32/t1", OURS, 1.0)));
        for (us, quartiles) in [(0.0, [0.0, 0.0]), (1.0, [1.1, 1.2]), (1.0, [0.5, f64::INFINITY])] {
            let line = Line {
                latency_us_median: us,
                latency_us_quartiles: quartiles,
                ..line("base/cpu/f32/t1", OURS, 1.0)
            };
            assert!(!is_sound(&line), "{us} {quartiles:?}");
        }
    }
}
