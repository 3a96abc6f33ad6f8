//! h to y. `cargo bench --bench expand`, with a part of a case's text for some of them.

mod common;

use molora_check::Op;

fn main() {
    common::run(&[Op::Expand]);
}
