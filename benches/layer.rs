//! The experts alone (`delta`), and the layer beside its base product. `cargo bench --bench layer`

mod common;

use molora_check::Op;

fn main() {
    common::run(&[Op::Delta, Op::Layer]);
}
