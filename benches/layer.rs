//! The experts alone (`delta`), and the layer beside its base product. `cargo bench --bench layer`

mod common;

use molora_check::{Op, bench};

fn main() {
    let mut cases = bench::cases(Op::Delta, &[1, 64, 512], false);
    cases.extend(bench::cases(Op::Layer, &[1, 64, 512], false));
    common::run(&cases);
}
