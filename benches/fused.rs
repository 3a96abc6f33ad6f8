//! The fused layer in every form, beside its base product alone. `cargo bench --bench fused`, with a part of a case's text for
//! some of them.

mod common;

use molora_check::Op;

fn main() {
    common::run(&[Op::Fused]);
}
