//! Criterion around the named cases: the answer first, then the clock, each sample beside one of the base product alone, then a
//! line a case as `molora bench` prints it.

use criterion::Criterion;
use molora_check::bench::{Checked, Refused, look};
use molora_check::ceilings::ROUNDS;
use molora_check::measure::{Budget, Samples, call_us, calls_of};
use molora_check::named::{Extent, named};
use molora_check::record::Ceiling;
use molora_check::report::{HEADING, LEGEND};
use molora_check::{Case, Op, Subject, subjects};
use std::time::Duration;

/// Times the cases of operations on every subject. `MOLORA_DEVICE` is a part of the name of the only one; `MOLORA_EXTENT` is
/// `quick` or `all` for other cases than the usual.
pub fn run(ops: &[Op]) {
    let extent = match std::env::var("MOLORA_EXTENT").as_deref() {
        Ok("quick") => Extent::Quick,
        Ok("all") => Extent::All,
        Ok(other) => panic!("MOLORA_EXTENT: expected quick or all, got {other}"),
        Err(_) => Extent::Usual,
    };
    let cases: Vec<Case> = ops.iter().flat_map(|&op| named(op, extent, &[])).collect();
    let mut criterion = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_secs(1))
        .without_plots()
        .configure_from_args();
    let mut texts = Vec::new();
    for subject in subjects().unwrap_or_else(|why| panic!("{why}")) {
        if subject.is_stand_in() {
            println!("{}: executes and counts, is not timed", subject.name());
            continue;
        }
        let mut meter = subject.meter().expect("a device").expect("it has times");
        (0..ROUNDS).try_for_each(|_| meter.round()).expect("a device");
        texts.push(subject.name());
        for case in &cases {
            meter.round().expect("a device");
            let ceilings = meter.best().ceilings(&subject.name());
            if let Some((checked, samples)) =
                criterion_case(&mut criterion, subject.as_ref(), case, &ceilings)
            {
                let lines = checked.lines(&samples, &ceilings).expect("it ran before");
                texts.extend(lines.iter().map(ToString::to_string));
            }
        }
        texts.extend(meter.best().ceilings(&subject.name()).iter().map(ToString::to_string));
    }
    criterion.final_summary();
    println!("{LEGEND}\n{HEADING}");
    texts.iter().for_each(|text| println!("{text}"));
}

fn criterion_case<'a>(
    criterion: &mut Criterion,
    subject: &'a dyn Subject,
    case: &Case,
    ceilings: &[Ceiling],
) -> Option<(Checked<'a>, Samples)> {
    let label = case.label(subject.kind());
    let mut samples = Samples::default();
    let mut found = None;
    criterion.bench_function(&label, |bencher| {
        // Criterion calls this only for the cases that were asked for, and perhaps twice.
        let checked =
            found.get_or_insert_with(|| match look(subject, case, ceilings, Budget::USUAL.longest) {
                Ok(checked) => Some(checked),
                Err(Refused::NotTimed(why)) => {
                    println!("{label}: {why}");
                    None
                }
                Err(Refused::Wrong(why)) => panic!("{label} ({}): {why}", subject.name()),
            });
        let Some(checked) = checked else {
            return bencher.iter_custom(|_| Duration::from_nanos(1));
        };
        let mut ours = subject.timer(&checked.inputs).expect("it ran before");
        let mut base = checked.base.as_ref().map(|base| subject.timer(base).expect("it is smaller"));
        let base_calls = base.as_mut().map(|base| calls_of(base(1).expect("it is smaller")));
        bencher.iter_custom(|calls| {
            // Criterion's own clock sees ours alone.
            if let (Some(base), Some(calls)) = (&mut base, base_calls) {
                samples.base.push(call_us(base, calls).expect("it ran before"));
            }
            let us = call_us(&mut ours, calls).expect("it ran before");
            samples.ours.push(us);
            Duration::from_secs_f64(us * 1e-6 * calls as f64)
        });
    });
    found.flatten().filter(|_| !samples.ours.is_empty()).map(|checked| (checked, samples))
}
