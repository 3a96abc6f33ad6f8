//! Base experts with adapters on every device: plain, gated and combined rows.

use molora_check::{Op, check_all};

#[test]
fn every_case_on_every_device() {
    check_all(Op::Grouped);
}
