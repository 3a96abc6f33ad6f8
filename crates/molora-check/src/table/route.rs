//! Routing: scores of every kind, masks, thresholds and weights.

use super::{EDGES, Table};
use crate::case::{Case, Scores, Scoring, Threshold};
use crate::rng::Rng;
use crate::routing::Routing;
use molora::element::ElementType;
use molora::ops::route::Weighting;

const ALL_AT_ONCE: Scoring =
    Scoring { scores: Scores::Prototypes, threshold: Threshold::Learned, masked: true, shared: 1 };

impl Table {
    pub(super) fn route(&mut self) {
        self.each(&[0, 1, 2, 16, 17, 63, 64, 65, 256], |c, tokens| c.tokens = tokens);
        self.each(&EDGES, |c, width| c.in_features = width);
        self.each(&EDGES, |c, experts| (c.experts, c.top_k) = (experts, experts.min(2)));
        self.each(&[160, 256, 257, 1000, 4096], |c, experts| {
            (c.experts, c.tokens, c.top_k) = (experts, 5, 8);
        });
        self.each(&[1, 3, 4, 6, 8], |c, top_k| c.top_k = top_k);
        // Tokens around a GPU's tiles of them, and selections around those of its tiles and its largest.
        self.each(&[127, 128, 129, 135, 136, 137], |c, tokens| (c.tokens, c.scoring.masked) = (tokens, true));
        self.each(&[31, 32, 33, 63, 64, 65, 128, 255, 256], |c, top_k| {
            (c.tokens, c.experts, c.top_k, c.weighting) = (130, 300, top_k, Weighting::SoftmaxAll);
        });
        for weighting in Weighting::ALL.into_iter().filter(|w| *w != Weighting::AboveThreshold) {
            self.all_pairs(|c| (c.weighting, c.bias) = (weighting, true));
            self.all_pairs(|c| (c.weighting, c.routing, c.top_k) = (weighting, Routing::Ties, 4));
            self.each(&[1, 8, 33, 65, 128], |c, experts| {
                (c.weighting, c.routing) = (weighting, Routing::Identical);
                (c.experts, c.top_k) = (experts, experts.min(8));
            });
        }
        self.each(&[1, 2, 3, 16], |c, padding| {
            (c.padding, c.x, c.adapters) = (padding, ElementType::F32, ElementType::F32);
        });
        self.all_pairs(|c| c.padding = 8);
        self.each(&[2048, 4096], |c, width| (c.in_features, c.tokens, c.experts) = (width, 9, 64));
        // A number of experts that warps share in fours, twos and ones; more than a list of scores holds.
        self.all_pairs(|c| (c.in_features, c.tokens, c.experts) = (2048, 5, 28));
        self.all_pairs(|c| {
            (c.experts, c.tokens, c.top_k, c.weighting) = (2500, 2, 8, Weighting::SoftmaxAll);
        });
        self.scoring();
    }

    /// Everything but plain choices of linear scores.
    fn scoring(&mut self) {
        for scores in [Scores::Prototypes, Scores::Absolute] {
            let start = move |c: &mut Case| c.scoring.scores = scores;
            self.all_pairs(start);
            self.each(&EDGES, |c, width| {
                start(c);
                c.in_features = width;
            });
            self.each(&[(2048, 166, 2), (4100, 40, 3), (64, 1000, 8)], |c, (width, experts, top_k)| {
                start(c);
                (c.in_features, c.experts, c.top_k, c.tokens) = (width, experts, top_k, 6);
            });
        }
        for threshold in [Threshold::Fixed, Threshold::Learned] {
            for weighting in Weighting::ALL {
                self.each(&[1, 2, 8, 31, 65, 300], |c, experts| {
                    (c.scoring.threshold, c.weighting, c.bias) = (threshold, weighting, true);
                    (c.experts, c.top_k) = (experts, experts.min(6));
                });
            }
            // Every expert above the threshold.
            self.all_pairs(|c| {
                (c.scoring.threshold, c.top_k, c.weighting) = (threshold, 8, Weighting::AboveThreshold)
            });
        }
        self.each(&[1, 8, 31, 32, 33, 64, 65, 300, 2500], |c, experts| {
            c.scoring.masked = true;
            (c.experts, c.top_k, c.tokens) = (experts, experts.min(5), 20);
        });
        for weighting in Weighting::ALL.into_iter().filter(|w| *w != Weighting::AboveThreshold) {
            self.all_pairs(|c| (c.scoring.masked, c.weighting, c.tokens, c.top_k) = (true, weighting, 70, 4));
        }
        self.each(&[1, 2, 5], |c, shared| {
            (c.scoring.shared, c.scoring.masked) = (shared, shared == 2);
            c.scoring.threshold = if shared == 5 { Threshold::Fixed } else { Threshold::None };
        });
        self.each(&[0, 1, 128, 200], |c, tokens| {
            (c.tokens, c.scoring) = (tokens, ALL_AT_ONCE);
            (c.experts, c.weighting) = (40, Weighting::AboveThreshold);
        });
        self.each(&[1, 3, 8, 16, 33], |c, experts| {
            // All experts, in the order of their scores.
            (c.experts, c.top_k, c.weighting) = (experts, experts, Weighting::SoftmaxAll);
        });
        self.all_pairs(|c| (c.top_k, c.scoring.shared) = (0, 2));
        self.tiles();
    }

    /// Around the tiles of tokens and of a router's rows that forms for many tokens take, with all that a tile keeps.
    fn tiles(&mut self) {
        self.each(&[7, 8, 15, 16, 17, 31, 33], |c, tokens| {
            (c.tokens, c.experts, c.top_k, c.scoring) = (tokens, 40, 3, ALL_AT_ONCE);
        });
        // A learned threshold's row is the last of a tile, and alone in one.
        self.each(&[30, 31, 62, 63, 64, 126, 127, 128, 129, 191, 255, 256], |c, experts| {
            (c.experts, c.top_k, c.tokens) = (experts, 4, 18);
            (c.scoring.threshold, c.weighting) = (Threshold::Learned, Weighting::AboveThreshold);
        });
        self.each(&[1, 3, 4, 5, 15, 16, 17, 19, 20, 65], |c, width| {
            (c.in_features, c.experts, c.tokens, c.padding) = (width, 65, 17, 2);
            (c.scoring.scores, c.weighting) = (Scores::Prototypes, Weighting::SoftmaxTwice);
        });
        // The longest lists, and one more; equal scores on both sides of a tile's edge.
        self.each(&[31, 32, 33, 130], |c, top_k| {
            (c.top_k, c.experts, c.tokens, c.weighting) = (top_k, 130, 17, Weighting::SoftmaxAll);
        });
        for routing in [Routing::Ties, Routing::Identical] {
            self.each(&[64, 65, 128, 129, 300], |c, experts| {
                (c.experts, c.tokens, c.top_k, c.routing) = (experts, 33, 6, routing);
            });
        }
    }
}

/// A random case's scoring.
pub(super) fn random(case: &mut Case, rng: &mut Rng) {
    case.weighting = Weighting::ALL[rng.below(Weighting::ALL.len())];
    case.scoring = Scoring {
        scores: Scores::ALL[rng.below(3)],
        threshold: Threshold::ALL[rng.below(3)],
        masked: rng.below(2) == 0,
        shared: rng.below(3),
    };
    if case.scoring.threshold == Threshold::None && case.weighting == Weighting::AboveThreshold {
        case.scoring.threshold = Threshold::Fixed;
    }
}
