//! The frozen product. `cargo bench --bench base`, with a part of a case's text for some of them.

mod common;

use molora_check::Op;

fn main() {
    common::run(&[Op::Base]);
}
