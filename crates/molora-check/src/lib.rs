//! The cases, the subjects and the judge that the tests, the benches and `molora verify` share.
//!
//! A [`Case`] names one problem; [`Inputs`] are its numbers, already rounded to the case's element types; a
//! [`Subject`] is a device with host memory in and out; [`expect`] asks the definitions what must come out;
//! [`judge`] compares. [`check`] does all of it for one case on one subject.

pub mod bench;
pub mod case;
pub mod ceilings;
pub mod contest;
pub mod counters;
pub mod expect;
pub mod grouped;
pub mod guarded;
pub mod inputs;
pub mod judge;
mod judge_route;
pub mod machine;
pub mod measure;
pub mod named;
mod part;
pub mod record;
pub mod report;
pub mod rng;
pub mod routing;
mod run;
pub mod spell;
pub mod stats;
pub mod subject;
pub mod table;
mod work;

pub use case::{Case, Group, Op};
pub use inputs::Inputs;
pub use judge::Verdict;
pub use routing::Routing;
pub use run::{Outcome, check, check_all};
pub use subject::{Subject, subjects};
pub use table::{Extent, cases};
