//! Open bugs, one test each, named after what goes wrong and failing as long as it does: `#[ignore = "why"]` keeps
//! it out of the daily run, `cargo test --test known_issues -- --ignored` shows whether it is still there. A fixed
//! one moves to its operation's file. None are known.
