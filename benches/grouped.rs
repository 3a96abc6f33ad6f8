//! Base experts with adapters, beside the base experts alone. `cargo bench --bench grouped`

mod common;

use molora_check::Op;

fn main() {
    common::run(&[Op::Grouped]);
}
