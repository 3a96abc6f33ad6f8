//! x to h. `cargo bench --bench shrink`, with a part of a case's text for some of them.

mod common;

use molora_check::{Op, bench};

fn main() {
    common::run(&bench::cases(Op::Shrink, &[1, 64, 512], false));
}
