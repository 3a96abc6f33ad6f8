//! Scores, selection and weights. `cargo bench --bench route`, with a part of a case's text for some of them.

mod common;

use molora_check::Op;

fn main() {
    common::run(&[Op::Route]);
}
