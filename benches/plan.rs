//! The sort of the routes. `cargo bench --bench plan`, with a part of a case's text for some of them.

mod common;

use molora_check::{Op, bench};

fn main() {
    common::run(&bench::cases(Op::Plan, &[1, 64, 512], false));
}
