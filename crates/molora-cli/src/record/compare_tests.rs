use super::super::series::example::{line, record};
use super::*;

const T1: &str = "delta/cpu/f32/t1";
const T8: &str = "delta/cpu/f32/t8";
const BASE: &str = "base/cpu/f32/t1";

fn find<'a>(means: &'a [Mean], series: &str, of: &str) -> &'a Mean {
    means
        .iter()
        .find(|mean| mean.series == series && mean.of == of)
        .unwrap_or_else(|| panic!("{series} {of}"))
}

#[test]
fn geometric_means_are_those_computed_by_hand() {
    // Ratios: delta 2 and 8, base 1/2; torch 1.
    let a = record(vec![
        line(T1, OURS, 100.0),
        line(T8, OURS, 800.0),
        line(BASE, OURS, 50.0),
        line(BASE, "torch", 7.0),
    ]);
    let b = record(vec![
        line(BASE, "torch", 7.0),
        line(BASE, OURS, 100.0),
        line(T8, OURS, 100.0),
        line(T1, OURS, 50.0),
    ]);
    let got = compare(&a, &b);
    let near = |mean: &Mean, ratio: f64, counts: [usize; 4]| {
        assert!((mean.ratio - ratio).abs() < 1e-12, "{mean:?}, expected {ratio}");
        assert_eq!([mean.pairs, mean.faster, mean.slower, mean.noise], counts, "{mean:?}");
    };
    near(find(&got.means, OURS, "overall"), 2.0, [3, 2, 1, 0]);
    near(find(&got.means, OURS, "operation delta"), 4.0, [2, 2, 0, 0]);
    near(find(&got.means, OURS, "operation base"), 0.5, [1, 0, 1, 0]);
    near(find(&got.means, OURS, "device cpu"), 2.0, [3, 2, 1, 0]);
    near(find(&got.means, "torch", "overall"), 1.0, [1, 0, 0, 1]);
    assert_eq!(got.means.len(), 5);
    assert_eq!(got.warnings, Vec::<String>::new());
    assert_eq!(got.pairs[0].spread, [90.0 / 55.00000000000001, 110.00000000000001 / 45.0]);
}

#[test]
fn overlapping_quartiles_are_noise() {
    let with = |us: f64, quartiles| Line { latency_us_quartiles: quartiles, ..line(T1, OURS, us) };
    let verdict = |new: Line| {
        let (a, b) = (record(vec![with(10.0, [9.0, 11.0])]), record(vec![new]));
        compare(&a, &b).pairs[0].verdict
    };
    assert_eq!(verdict(with(8.0, [7.0, 8.9])), Verdict::Faster);
    assert_eq!(verdict(with(8.0, [7.0, 9.0])), Verdict::Noise);
    assert_eq!(verdict(with(10.0, [9.5, 10.5])), Verdict::Noise);
    assert_eq!(verdict(with(12.0, [11.0, 13.0])), Verdict::Noise);
    assert_eq!(verdict(with(12.0, [11.1, 13.0])), Verdict::Slower);
    assert_eq!(verdict(Line { samples: 4, ..with(12.0, [11.1, 13.0]) }), Verdict::Noise);
}

#[test]
fn lines_of_one_record_alone_are_named() {
    let a = record(vec![line(T1, OURS, 1.0), line(T8, OURS, 1.0), line(T1, "torch", 1.0)]);
    let b = record(vec![line(T1, OURS, 1.0), line(BASE, OURS, 1.0)]);
    let got = compare(&a, &b);
    let names = |names: &[Name]| -> Vec<String> {
        names.iter().map(|name| format!("{} {}", name.series, name.case)).collect()
    };
    assert_eq!(names(&got.only_a), [format!("molora {T8}"), format!("torch {T1}")]);
    assert_eq!(names(&got.only_b), [format!("molora {BASE}")]);
    assert_eq!(got.pairs.len(), 1);
}

#[test]
fn lines_of_one_case_are_paired_by_device_and_never_twice() {
    let on = |device: &str, us: f64| Line { device: device.into(), ..line(T1, OURS, us) };
    let a = record(vec![on("x", 1.0), on("y", 2.0), on("y", 3.0)]);
    let b = record(vec![on("y", 2.0), on("z", 4.0)]);
    let got = compare(&a, &b);
    let pairs: Vec<_> = got.pairs.iter().map(|p| (p.name.device.as_str(), p.a_us, p.b_us)).collect();
    assert_eq!(pairs, [("x", 1.0, 4.0), ("y", 2.0, 2.0)]);
    assert_eq!((got.only_a.len(), got.only_b.len()), (1, 0));
}

#[test]
fn times_that_do_not_compare_say_why() {
    let a = record(vec![line(T1, OURS, 1.0), line(T8, OURS, 1.0)]);
    let other = Line { clock: "processor".into(), ..line(T1, OURS, 1.0) };
    let got = compare(&a, &record(vec![other, line(T8, OURS, 0.0)]));
    assert_eq!(got.not_compared.len(), 2);
    assert!(got.not_compared[0].why.contains("clocks differ: wall in A, processor in B"));
    assert!(got.not_compared[1].why.contains("B has no sound time"));
    assert!(got.pairs.is_empty() && got.means.is_empty());
    assert!(got.warnings[0].contains("nothing to compare"), "{:?}", got.warnings);
}

#[test]
fn other_machines_and_other_ceilings_are_warned_of() {
    let a = record(vec![line(T1, OURS, 1.0)]);
    let mut b = a.clone();
    b.machine.name = "another".into();
    b.ceilings[0].gb_per_s = 25.0;
    let got = compare(&a, &b);
    assert_eq!(got.warnings.len(), 2);
    assert!(got.warnings[0].contains("different machines (bench and another)"));
    assert!(got.warnings[1].contains("from 20.0 to 25.0 GB/s"), "{}", got.warnings[1]);
    let text = got.to_string();
    assert!(text.contains("warning: different machines"), "{text}");
}

#[test]
fn text_and_json_have_every_pair_and_every_missing_line() {
    let a = record(vec![line(T1, OURS, 10.0), line(BASE, OURS, 4.0), line(T8, "torch/loop", 1.0)]);
    let b = record(vec![line(T1, OURS, 5.0), line(BASE, OURS, 4.1)]);
    let got = compare(&a, &b);
    let text = got.to_string();
    for part in [
        format!("{T1} | molora | 10.0 | 5.0 | 2.000 | 1.636 to 2.444 | 50 | 50 | faster"),
        format!("{BASE} | molora | 4.0 | 4.1 | 0.976 | 0.798 to 1.192 | 50 | 50 | within noise"),
        "molora | overall | 1.397 | 2 | 1 | 0 | 1".to_string(),
        format!("only in A: 1\n  {T8} | torch/loop"),
        "only in B: 0".to_string(),
    ] {
        assert!(text.contains(&part), "{part:?} is not in\n{text}");
    }
    let json: serde_json::Value = serde_json::to_value(&got).unwrap();
    assert_eq!(json["pairs"][0]["ratio"], 2.0);
    assert_eq!(json["pairs"][0]["case"], T1);
    assert_eq!(json["pairs"][1]["verdict"], "noise");
    assert_eq!(json["only_a"][0]["series"], "torch/loop");
}
