//! The frozen product. `cargo bench --bench base`, with a part of a case's text for some of them.

mod common;

use molora_check::{Op, bench};

fn main() {
    common::run(&bench::cases(Op::Base, &[1, 64, 512], false));
}
