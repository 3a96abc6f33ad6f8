//! Scores, selection and weights. `cargo bench --bench route`, with a part of a case's text for some of them.

mod common;

use molora_check::{Op, bench};

fn main() {
    common::run(&bench::cases(Op::Route, &[1, 64, 512], false));
}
