//! Base experts with adapters: the three kinds of rows around the edges of tiles.

use super::Table;
use crate::case::Case;
use crate::rng::Rng;
use crate::routing::Routing;
use molora::ops::grouped::Rows;

impl Table {
    pub(super) fn grouped(&mut self) {
        for rows in Rows::ALL {
            let start = move |c: &mut Case| {
                (c.group.rows, c.group.x_per_route) = (rows, rows == Rows::Combined);
                (c.experts, c.ranks) = (3, vec![16, 5, 8]);
            };
            self.all_pairs(start);
            self.all_pairs(|c| {
                start(c);
                (c.padding, c.routing, c.group.x_per_route) = (4, Routing::WithGaps, rows != Rows::Combined);
            });
            self.each(&[0, 1, 2, 3, 7, 8, 9, 16, 17, 64, 65, 129], |c, tokens| {
                start(c);
                (c.tokens, c.in_features) = (tokens, 40);
            });
            // Every route to one base expert, so that its rows lie on both sides of a tile's edge.
            self.each(&[15, 16, 17, 31, 32, 33, 63, 64, 65, 128, 129], |c, tokens| {
                start(c);
                (c.tokens, c.top_k, c.routing, c.in_features) = (tokens, 1, Routing::OneExpert, 32);
            });
            self.each(&[1, 3, 8], |c, top_k| {
                start(c);
                (c.top_k, c.group.experts) = (top_k, 8);
            });
            self.each(&[1, 2, 60, 128], |c, experts| {
                start(c);
                (c.group.experts, c.top_k, c.out_features) = (experts, experts.min(2), 24);
            });
            self.each(&[0, 1, 2, 12], |c, adapters| {
                start(c);
                c.experts = adapters;
            });
            self.each(&[1, 2, 7, 8, 31, 32, 33, 64, 65, 100, 128], |c, width| {
                start(c);
                let halves = if rows == Rows::Gated { 2 } else { 1 };
                (c.out_features, c.ranks) = (width * halves, vec![17, 4]);
            });
            self.each(&[1, 2, 8, 17, 32, 33, 65, 128, 200], |c, width| {
                start(c);
                c.in_features = width;
            });
            self.each(&[1, 2, 17, 32, 33, 64], |c, rank| {
                start(c);
                c.ranks = vec![rank];
            });
            self.each(&Routing::ALL, |c, routing| {
                start(c);
                c.routing = routing;
            });
            self.halves(|c| {
                start(c);
                (c.tokens, c.in_features, c.out_features) = (5, 1024, 48);
            });
        }
    }
}

/// Rows, base experts and adapters.
pub(super) fn random(case: &mut Case, rng: &mut Rng) {
    case.group.rows = Rows::ALL[rng.below(3)];
    case.group.x_per_route = rng.below(2) == 1;
    case.group.experts = case.experts;
    case.experts = rng.below(4);
    if case.group.rows == Rows::Gated {
        case.out_features = 2 * case.out_features.div_ceil(2);
    }
}
