//! `molora`: devices, verify, bench, demo.
fn main() {}
