//! h to y. `cargo bench --bench expand`, with a part of a case's text for some of them.

mod common;

use molora_check::{Op, bench};

fn main() {
    common::run(&bench::cases(Op::Expand, &[1, 64, 512], false));
}
