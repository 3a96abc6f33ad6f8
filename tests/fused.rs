//! The fused layer in every form on every device: base and experts in one accumulator.

use molora::ops::fused::Form;
use molora_check::subject::CpuSubject;
use molora_check::{Case, Extent, Op, Outcome, cases, check, check_all};
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
