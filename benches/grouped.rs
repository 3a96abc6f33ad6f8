//! Base experts with adapters, beside the base experts alone. `cargo bench --bench grouped`

mod common;

use molora_check::{Op, bench};

fn main() {
    common::run(&bench::cases(Op::Grouped, &[1, 16, 128], false));
}
