//! What single instructions must compute, and what the machine must refuse.
//!
//! Expected values come from the PTX manual's formulas, written out once more in the plainest way.

mod arithmetic;
mod convert;
mod faults;
mod forms;
mod harness;
mod matrix;
mod schedule;
mod warp;
