//! The fused layer in every form, beside its base product alone. `cargo bench --bench fused`, with a part of a case's text for
//! some of them.

mod common;

use molora_check::{Op, bench};

fn main() {
    common::run(&bench::cases(Op::Fused, &[1, 16, 64, 512], false));
}
