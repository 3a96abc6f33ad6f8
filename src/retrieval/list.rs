//! The best hits so far.

use super::Hit;
use std::cmp::Ordering;
use std::collections::BinaryHeap;

/// A hit whose order is "comes later": the larger is the worse.
#[derive(Debug, Clone, Copy)]
struct Later(Hit);

impl Ord for Later {
    fn cmp(&self, other: &Self) -> Ordering {
        let (a, b) = (&self.0, &other.0);
        // Scores are finite by the checks of embeddings; 0.0 and -0.0 tie.
        b.score.partial_cmp(&a.score).unwrap_or(Ordering::Equal).then(a.id.cmp(&b.id))
    }
}

impl PartialOrd for Later {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Later {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Later {}

/// At most `top_k` hits; which ones does not depend on the order in which they are offered.
#[derive(Debug, Clone)]
pub(crate) struct List {
    top_k: usize,
    /// The worst on top.
    hits: BinaryHeap<Later>,
}

impl List {
    pub(crate) fn new(top_k: usize) -> Self {
        Self { top_k, hits: BinaryHeap::new() }
    }

    /// Takes the hit if it is among the best and `allowed`, which is asked last.
    pub(crate) fn offer(&mut self, hit: Hit, allowed: impl FnOnce() -> bool) {
        let full = self.hits.len() == self.top_k;
        let better = !full || self.hits.peek().is_some_and(|worst| Later(hit) < *worst);
        if better && allowed() {
            if full {
                self.hits.pop();
            }
            self.hits.push(Later(hit));
        }
    }

    /// Takes what is among the best of another list.
    pub(crate) fn merge(&mut self, other: Self) {
        other.hits.into_iter().for_each(|Later(hit)| self.offer(hit, || true));
    }

    /// Best first.
    pub(crate) fn into_hits(self) -> Vec<Hit> {
        self.hits.into_sorted_vec().into_iter().map(|Later(hit)| hit).collect()
    }
}
