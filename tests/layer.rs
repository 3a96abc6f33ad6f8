//! The layer on every device: base product and experts, and the experts alone.

use molora_check::{Op, check_all};

#[test]
fn every_case_on_every_device() {
    check_all(Op::Layer);
}

#[test]
fn every_delta_on_every_device() {
    check_all(Op::Delta);
}
