//! The best expert of every linear for every token.

use crate::engine::linear::Seen;
use crate::engine::projection::Projection;
use std::collections::BTreeMap;

/// The choices of all linears with experts over some tokens.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Trace {
    /// By layer and projection: the best expert of each token, and its weight.
    pub rows: BTreeMap<(usize, Projection), Vec<(usize, f32)>>,
}

impl Trace {
    /// Appends what one linear took.
    pub fn record(&mut self, seen: &Seen) {
        let row = self.rows.entry((seen.layer, seen.projection)).or_default();
        let tokens = seen.x.len() / seen.linear.in_features();
        row.extend((0..tokens).filter_map(|token| seen.routing.of(token).next()));
    }

    /// Tokens that every linear has seen.
    pub fn tokens(&self) -> usize {
        self.rows.values().map(Vec::len).min().unwrap_or(0)
    }

    /// For each expert, how often it came first, as a share of all choices from token `from` on.
    pub fn shares(&self, experts: usize, from: usize) -> Vec<f64> {
        let mut shares = vec![0.0; experts];
        let mut all = 0.0;
        for &(expert, _) in self.rows.values().flat_map(|row| row.iter().skip(from)) {
            shares[expert] += 1.0;
            all += 1.0;
        }
        shares.iter().map(|share| if all > 0.0 { share / all } else { 0.0 }).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_sum_to_one_and_skip_the_start() {
        let row = vec![(0, 0.9), (1, 0.8), (1, 0.7), (2, 0.6)];
        let trace = Trace { rows: BTreeMap::from([((3, Projection::Up), row)]) };
        assert_eq!(trace.shares(4, 0), [0.25, 0.5, 0.25, 0.0]);
        assert_eq!(trace.shares(4, 3), [0.0, 0.0, 1.0, 0.0]);
        assert_eq!(Trace::default().shares(2, 0), [0.0, 0.0]);
        assert_eq!(trace.tokens(), 4);
    }
}
