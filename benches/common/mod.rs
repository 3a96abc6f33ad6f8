//! Criterion around the shared cases: the answer first, then the clock, then a line a case.

use criterion::Criterion;
use molora_check::report::{self, HEADING};
use molora_check::{Case, Inputs, Outcome, Subject, bench, subjects};
use std::time::{Duration, Instant};

/// A case whose first call takes longer is not timed: software drivers would take minutes.
const PATIENCE: Duration = Duration::from_secs(5);

/// Times the cases on every subject; `MOLORA_DEVICE` is a part of the name of the only one.
pub fn run(cases: &[Case]) {
    let mut criterion = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_secs(1))
        .without_plots()
        .configure_from_args();
    let mut lines = Vec::new();
    for subject in subjects().unwrap_or_else(|why| panic!("{why}")) {
        if subject.is_stand_in() {
            println!("{}: executes and counts, is not timed", subject.name());
            continue;
        }
        for case in cases {
            criterion_case(&mut criterion, subject.as_ref(), case, &mut lines);
        }
    }
    criterion.final_summary();
    if !lines.is_empty() {
        println!("{HEADING}");
        lines.iter().for_each(|line| println!("{line}"));
    }
}

fn criterion_case(criterion: &mut Criterion, subject: &dyn Subject, case: &Case, lines: &mut Vec<String>) {
    let label = case.label(subject.kind());
    let mut samples: Vec<Duration> = Vec::new();
    let mut inputs = None;
    criterion.bench_function(&label, |bencher| {
        // Criterion calls this only for the cases that were asked for, and perhaps twice.
        let inputs = inputs.get_or_insert_with(|| {
            let (inputs, start) = (Inputs::new(case), Instant::now());
            match bench::check_ends(subject, &inputs) {
                Outcome::Right(_) => Some(inputs).filter(|_| start.elapsed() < PATIENCE),
                Outcome::Unsupported(why) => {
                    println!("{label}: not supported: {why}");
                    None
                }
                Outcome::Wrong(why) => panic!("{label} ({}): {why}", subject.name()),
            }
        });
        let Some(inputs) = inputs else {
            println!("{label}: not timed here");
            return bencher.iter_custom(|_| Duration::from_nanos(1));
        };
        let mut timer = subject.timer(inputs).expect("it ran before");
        bencher.iter_custom(|calls| {
            let time = timer(calls).expect("it ran before");
            samples.push(time.div_f64(calls as f64));
            time
        });
    });
    if let Some(Some(inputs)) = inputs {
        samples.sort();
        let median = samples[samples.len() / 2];
        let line = report::line(subject, &inputs, median, Duration::from_millis(500));
        lines.push(line.expect("it ran before").to_string());
    }
}
