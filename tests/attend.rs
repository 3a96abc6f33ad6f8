//! Attend on every device: RAMoLE's weights in rank space.

mod common;

use molora_check::{Op, check_all};

#[test]
fn every_case_on_every_device() {
    check_all(Op::Attend);
}
