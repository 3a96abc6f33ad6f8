//! The host engine of the demo: a small llama on candle whose linears may carry experts.
//!
//! Read `expert.rs` for the mixture, `block.rs` for the model.

pub mod block;
pub mod config;
pub mod expert;
pub mod host;
pub mod linear;
pub mod mixture;
pub mod model;
pub mod projection;
pub mod setting;
pub mod tokenizer;
