//! The CPU's frozen products against the least time that this machine could take: `cargo bench --bench floor -- --help`.

mod cases;

use cases::{Case, Ready};
use indicatif::{ProgressBar, ProgressStyle};
use molora_check::ceilings::{Best, CpuMeter, Meter};
use molora_check::stats::{Time, median, time};

const HELP: &str = "\
cargo bench -p molora --no-default-features --bench floor -- [--pairs N] [PART OF A CASE'S NAME ..]

Times base, fused and grouped products on all threads, f32. Weights rotate through copies that no cache holds. Every call of
the fused layer (plan, shrink, fused_sparse) stands beside a call of the base product alone.

  floor      max(operations / peak rate of multiply-adds, least bytes / best bandwidth); both ceilings are measured in
             the same run, before every case, and the best of all rounds so far counts
  x floor    median of the times / floor
  ratio      fused / base: the median of the pairs' ratios with its 95 % interval, on the wall and by processor time
  bar        1.05 x (the layer's floor / the base's floor)

  --pairs N  calls, or alternating pairs, of a case [30]";

fn main() {
    let mut pairs = 30;
    let mut wanted = Vec::new();
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--help" | "-h" => return println!("{HELP}"),
            "--bench" => {}
            "--pairs" => {
                pairs =
                    args.next().and_then(|n| n.parse().ok()).filter(|&n| n > 0).expect("--pairs N, N >= 1")
            }
            _ => wanted.push(arg),
        }
    }
    let chosen =
        |case: &Case| wanted.is_empty() || wanted.iter().any(|part| case.name().contains(part.as_str()));
    let cases: Vec<Case> = cases::all().into_iter().filter(chosen).collect();
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get());
    let mut meter = CpuMeter::new(threads);
    let style = ProgressStyle::with_template("{wide_bar} {pos}/{len} {msg}").expect("a template");
    let bar = ProgressBar::new((cases.len() * (pairs + 2)) as u64).with_style(style);
    bar.suspend(|| println!("{threads} threads, {pairs} pairs"));
    let mut ready: Option<Ready> = None;
    for case in cases {
        bar.set_message(case.name());
        (0..4).try_for_each(|_| meter.round()).expect("the CPU");
        // The weights of the case before are used again where they fit.
        let held = ready.take().filter(|ready| ready.fits(&case)).unwrap_or_else(|| Ready::new(&case));
        let mut ready_case = held.for_case(&case);
        let mut times: Vec<(Time, Option<Time>)> = Vec::new();
        for i in 0..pairs + 2 {
            let plain = |ready: &mut Ready| time(|| ready.plain());
            // Which of the two goes first alternates too.
            let pair = match (case.has_pair(), i % 2) {
                (false, _) => (plain(&mut ready_case), None),
                (true, 0) => {
                    let first = plain(&mut ready_case);
                    (first, Some(time(|| ready_case.layer())))
                }
                (true, _) => {
                    let first = time(|| ready_case.layer());
                    (plain(&mut ready_case), Some(first))
                }
            };
            if i >= 2 {
                times.push(pair);
            }
            bar.inc(1);
        }
        let line = line(&case, meter.best(), &times);
        bar.suspend(|| println!("{line}"));
        ready = Some(ready_case);
    }
    bar.finish_and_clear();
}

fn line(case: &Case, best: Best, times: &[(Time, Option<Time>)]) -> String {
    let ((flops, bytes), rate) = (case.work(), best.flops[0]);
    let floor = |(flops, bytes): (f64, f64)| (flops / rate).max(bytes / best.bytes);
    let plain = median(times.iter().map(|t| t.0.wall));
    let mut line = format!(
        "{:<34} {:>9.3} ms  floor {:>8.3} = max({:.3} at {:.0} GFLOP/s, {:.3} at {:.1} GB/s)  x floor {:.2} [{:.2}, {:.2}]",
        case.name(),
        plain.middle * 1e3,
        floor((flops, bytes)) * 1e3,
        flops / rate * 1e3,
        rate / 1e9,
        bytes / best.bytes * 1e3,
        best.bytes / 1e9,
        plain.middle / floor((flops, bytes)),
        plain.low / floor((flops, bytes)),
        plain.high / floor((flops, bytes)),
    );
    if let Some(layer) = case.layer_work() {
        let times_floor = median(times.iter().filter_map(|t| Some(t.1.as_ref()?.wall / floor(layer))));
        let pairs = || times.iter().filter_map(|(plain, layer)| Some((plain, layer.as_ref()?)));
        let wall = median(pairs().map(|(plain, layer)| layer.wall / plain.wall));
        let cpu = median(pairs().map(|(plain, layer)| layer.cpu / plain.cpu));
        let bar = 1.05 * floor(layer) / floor((flops, bytes));
        line += &format!(
            "\n{:<34} fused x floor {:.2}  ratio {:.3} [{:.3}, {:.3}]  by processor time {:.3} [{:.3}, {:.3}]  bar {bar:.3}",
            "", times_floor.middle, wall.middle, wall.low, wall.high, cpu.middle, cpu.low, cpu.high
        );
    }
    line
}
