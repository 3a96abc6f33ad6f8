//! The sort of the routes. `cargo bench --bench plan`, with a part of a case's text for some of them.

mod common;

use molora_check::Op;

fn main() {
    common::run(&[Op::Plan]);
}
