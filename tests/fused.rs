//! The fused layer in every form on every device: base and experts in one accumulator.

use molora::element::ElementType;
use molora::ops::fused::Form;
use molora_check::expect::{self, Roundings};
use molora_check::subject::CpuSubject;
use molora_check::{Case, Extent, Inputs, Op, Outcome, Subject, cases, check, check_all, judge};
use std::collections::BTreeMap;

#[test]
fn every_case_on_every_device() {
    check_all(Op::Fused);
}

/// What the table expects is what separate launches give, which are there on every device.
#[test]
fn separate_launches_give_what_the_table_expects() {
    let cpu = CpuSubject::new().unwrap();
    let unpacked = cases(Op::Fused, Extent::Short).into_iter().filter(|case| case.slices == 1);
    let beside = unpacked.map(|case| Case { form: Some(Form::Beside), ..case });
    let beside: BTreeMap<String, Case> = beside.map(|case| (case.to_string(), case)).collect();
    assert!(beside.len() > 300, "{} cases", beside.len());
    for (text, case) in beside {
        let outcome = check(&cpu, &case);
        assert!(matches!(outcome, Outcome::Right(_)), "{text}: {outcome:?}");
    }
}

/// The fused forms' limits have no room for y rounded twice, as separate launches round it.
#[test]
fn a_second_rounding_of_y_is_found() {
    let cpu = CpuSubject::new().unwrap();
    let (mut once, mut found) = (0, 0);
    for case in cases(Op::Fused, Extent::Short) {
        if case.x == ElementType::F32 || case.slices > 1 || case.tokens < 33 {
            continue;
        }
        let inputs = Inputs::new(&Case { form: Some(Form::Beside), ..case });
        let mut y = inputs.y.clone();
        cpu.fused(&inputs, &mut y).unwrap();
        let judged = |between| {
            let expected = expect::rows(&inputs, Roundings { h: 0.0, between }).unwrap();
            judge::compare(&expected, &inputs.y, &y).is_ok()
        };
        assert!(judged(true), "{}", inputs.case);
        once += 1;
        found += usize::from(!judged(false));
    }
    assert!(found * 4 > once * 3, "{found} of {once}");
}

/// What a device may leave out of the table, as its page states.
fn stated(kind: &str) -> &'static [&'static str] {
    match kind {
        "wgpu" => &[
            "a weight in 16 bits with rows of odd length",
            "slices in 16 bits that begin in the middle of a word",
        ],
        "cuda" => &["dense: z in 16 bits would round what separate launches do not"],
        _ => &[],
    }
}

/// Every case of the table runs on every device, but for what the device's page states, for the cases that this names.
#[test]
fn no_case_is_left_out_without_a_stated_reason() {
    let mut unstated = BTreeMap::new();
    for subject in molora_check::subjects().unwrap_or_else(|why| panic!("{why}")) {
        let (mut all, mut left_out) = (0, 0);
        for case in cases(Op::Fused, Extent::Short).into_iter().chain(cases(Op::Grouped, Extent::Short)) {
            all += 1;
            let Some(why) = subject.unsupported(&case) else { continue };
            left_out += 1;
            let halves = case.x != ElementType::F32;
            let mixed = case.form == Some(Form::Dense) && case.x != case.adapters;
            let odd = case.in_features % 2 == 1 || case.slice_widths().iter().any(|width| width % 2 == 1);
            // Tensor cores take bf16 from compute capability 8 on.
            let old = subject.name().contains("compute 7.");
            let plain = old && case.form == Some(Form::Dense) && case.x == ElementType::Bf16;
            let named = halves && if subject.kind() == "cuda" { mixed || plain } else { odd };
            if !named || !stated(subject.kind()).contains(&why.as_str()) {
                *unstated.entry((subject.name(), why)).or_insert(0) += 1;
            }
        }
        println!("{}: {left_out} of {all} cases left out", subject.name());
    }
    assert!(unstated.is_empty(), "cases left out, by device and reason: {unstated:#?}");
}
