//! The fused layer in every form on every device: base and experts in one accumulator.

use molora_check::{Op, check_all};

#[test]
fn every_case_on_every_device() {
    check_all(Op::Fused);
}
