//! What a launch did, as JSON.

/// Counts of one launch.
#[derive(Debug, Clone, Default)]
pub struct Counters {}
