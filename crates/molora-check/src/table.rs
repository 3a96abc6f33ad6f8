//! The shared table of cases.
//!
//! Short tables change one thing at a time around a small case, with sizes 0, 1 and below, at and above the edges
//! of every device's tiles (8, 16, 32, 64, 128, 256); the pairs of element types take turns. Long tables run all
//! pairs and add random cases.

mod fused;
mod grouped;
mod route;

use crate::case::{Case, Op};
use crate::rng::Rng;
use crate::routing::Routing;
use molora::element::ElementType;
use molora::ops::Output;

/// How much of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Extent {
    /// What a test runs: below 20 million operations a case.
    Short,
    /// What `verify --long` runs.
    Long,
}

/// Sizes around tile edges.
const EDGES: [usize; 18] = [1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129];
/// Ranks that adapters have, and awkward ones.
const RANKS: [usize; 14] = [1, 2, 3, 4, 6, 8, 16, 17, 31, 32, 33, 64, 128, 256];
/// Ranks of one pool.
const MIXED: [usize; 9] = [1, 2, 3, 4, 6, 8, 16, 17, 32];

/// The cases of an operation.
pub fn cases(op: Op, extent: Extent) -> Vec<Case> {
    let mut table = Table { op, cases: Vec::new() };
    match op {
        Op::Route => table.route(),
        Op::Plan => table.plan(),
        Op::Shrink => table.shrink(),
        Op::Attend => table.attend(),
        Op::Expand => table.expand(),
        Op::Base => table.base(),
        Op::Delta => table.delta(),
        Op::Layer => table.layer(),
        Op::Fused => table.fused(),
        Op::Grouped => table.grouped(),
    }
    if extent == Extent::Long {
        table.long();
    }
    let mut seen = std::collections::HashSet::new();
    table.cases.retain(|case| seen.insert(case.to_string()));
    table.cases
}

struct Table {
    op: Op,
    cases: Vec<Case>,
}

/// Every pair of element types of x and of the adapters; only of x where there are no adapters.
fn pairs(op: Op) -> Vec<(ElementType, ElementType)> {
    let all = ElementType::ALL;
    match op {
        Op::Plan => vec![(ElementType::F32, ElementType::F32)],
        Op::Route | Op::Base => all.map(|x| (x, x)).to_vec(),
        _ => all.iter().flat_map(|&x| all.map(|adapters| (x, adapters))).collect(),
    }
}

impl Table {
    /// Adds a case, with the next pair of element types.
    fn add(&mut self, change: impl FnOnce(&mut Case)) {
        let pairs = pairs(self.op);
        let (x, adapters) = pairs[self.cases.len() % pairs.len()];
        let mut case = Case { x, adapters, ..Case::new(self.op) };
        change(&mut case);
        self.cases.push(case);
    }

    fn each<T: Copy>(&mut self, values: &[T], change: impl Fn(&mut Case, T)) {
        values.iter().for_each(|&value| self.add(|case| change(case, value)));
    }

    fn all_pairs(&mut self, change: impl Fn(&mut Case)) {
        for (x, adapters) in pairs(self.op) {
            self.add(|case| {
                (case.x, case.adapters) = (x, adapters);
                change(case);
            });
        }
    }

    /// As tensor cores take them.
    fn halves(&mut self, change: impl Fn(&mut Case)) {
        for element in [ElementType::F16, ElementType::Bf16] {
            self.add(|case| {
                (case.x, case.adapters) = (element, element);
                change(case);
            });
        }
    }

    fn plan(&mut self) {
        let tokens = [0, 1, 2, 63, 64, 65, 127, 128, 129, 255, 256, 257, 511, 512, 513, 1000, 5000];
        self.each(&tokens, |c, tokens| c.tokens = tokens);
        self.each(&[1, 2, 3, 63, 64, 65, 128, 166, 255, 256, 257, 1000, 1024, 1025, 4096], |c, experts| {
            (c.experts, c.tokens) = (experts, 300);
        });
        self.each(&[1, 3, 6, 8], |c, top_k| c.top_k = top_k);
        self.each(&Routing::ALL, |c, routing| (c.routing, c.tokens) = (routing, 777));
        self.each(&Routing::ALL, |c, routing| {
            (c.routing, c.tokens, c.experts, c.top_k) = (routing, 100, 3, 5)
        });
        self.add(|c| (c.experts, c.tokens, c.routing) = (0, 4, Routing::NoExpert));
    }

    /// What shrink, expand and the layer have in common.
    fn adapters(&mut self, tokens: &[usize]) {
        self.add(|c| c.tokens = 0);
        self.each(tokens, |c, tokens| (c.tokens, c.top_k, c.routing) = (tokens, 1, Routing::OneExpert));
        self.each(&RANKS, |c, rank| c.ranks = vec![rank]);
        self.each(&[1, 3, 4, 6, 8, 16], |c, top_k| c.top_k = top_k);
        self.each(&[1, 2, 3, 64, 166, 1000], |c, experts| {
            (c.experts, c.top_k, c.ranks) = (experts, experts.min(4), vec![4, 1]);
        });
        self.add(|c| (c.experts, c.ranks, c.tokens) = (4096, vec![2, 1], 70));
        self.each(&Routing::ALL, |c, routing| (c.routing, c.ranks) = (routing, MIXED.to_vec()));
        self.each(&Routing::ALL, |c, routing| (c.routing, c.tokens, c.experts) = (routing, 100, 3));
        for output in Output::ALL {
            self.all_pairs(|c| (c.output, c.ranks) = (output, MIXED.to_vec()));
            self.all_pairs(|c| (c.output, c.routing, c.padding) = (output, Routing::WithGaps, 2));
            self.each(&[0, 1, 65], |c, tokens| (c.output, c.tokens, c.top_k) = (output, tokens, 3));
            self.add(|c| (c.output, c.routing) = (output, Routing::Repeated));
        }
        self.each(&[1, 3, 16], |c, padding| (c.padding, c.x) = (padding, ElementType::F32));
        self.all_pairs(|c| (c.padding, c.ranks) = (6, vec![64, 8, 16]));
    }

    fn shrink(&mut self) {
        self.adapters(&EDGES);
        self.each(&EDGES, |c, width| (c.in_features, c.ranks) = (width, vec![17, 4]));
        self.all_pairs(|c| (c.in_features, c.tokens) = (384, 9));
        self.all_pairs(|c| (c.in_features, c.tokens, c.ranks) = (4096, 5, vec![16, 6]));
        // Tensor cores take a tile's routes behind the 32nd in a second pass where ranks are above 16.
        self.halves(|c| (c.tokens, c.ranks, c.routing) = (35, vec![32], Routing::OneExpert));
        // Tiles of many sizes, with whole slabs and an end of one.
        for rank in [16, 32] {
            self.halves(|c| {
                (c.tokens, c.in_features, c.ranks, c.routing) = (64, 2056, vec![rank], Routing::Zipf)
            });
            self.halves(|c| {
                (c.tokens, c.experts, c.in_features) = (128, 16, 264);
                (c.ranks, c.routing) = (vec![rank], Routing::Zipf);
            });
        }
    }

    fn attend(&mut self) {
        self.each(&[0, 1, 2, 8, 9, 64, 65], |c, tokens| c.tokens = tokens);
        self.each(&RANKS, |c, rank| c.ranks = vec![rank]);
        self.each(&[1, 2, 3, 4, 5, 7, 8, 9, 16, 31, 32, 33, 64, 65, 128, 130], |c, rank| {
            (c.router_rank, c.ranks) = (rank, MIXED.to_vec());
        });
        self.add(|c| (c.router_rank, c.ranks, c.tokens) = (128, vec![128, 3], 5));
        self.add(|c| (c.router_rank, c.tokens, c.in_features) = (1024, 2, 33));
        self.each(&[1, 3, 7, 8, 9, 24, 65, 256], |c, top_k| {
            (c.top_k, c.experts, c.tokens, c.ranks) = (top_k, top_k.max(4), 9, vec![4, 1, 8]);
        });
        self.each(&EDGES, |c, width| (c.in_features, c.ranks) = (width, vec![5, 4]));
        self.each(&Routing::ALL, |c, routing| (c.routing, c.ranks, c.top_k) = (routing, MIXED.to_vec(), 3));
        self.all_pairs(|c| (c.routing, c.padding, c.ranks) = (Routing::WithGaps, 2, MIXED.to_vec()));
        self.all_pairs(|c| (c.in_features, c.tokens, c.ranks) = (2056, 5, vec![16, 6]));
        self.each(&[1, 3, 16], |c, padding| (c.padding, c.x) = (padding, ElementType::F32));
    }

    fn expand(&mut self) {
        self.adapters(&[1, 2, 7, 8, 9, 16, 17, 31, 32, 33, 63, 64, 65, 128, 129, 255, 256, 257]);
        self.each(&EDGES, |c, width| (c.out_features, c.ranks) = (width, vec![17, 4]));
        self.each(&[255, 256, 257, 384, 1376], |c, width| (c.out_features, c.tokens) = (width, 9));
        for output in Output::ALL {
            self.all_pairs(|c| (c.output, c.accumulate) = (output, true));
            self.each(&[Routing::WithGaps, Routing::NoExpert], |c, routing| {
                (c.output, c.accumulate, c.routing, c.padding) = (output, true, routing, 4);
            });
        }
        // A token's routes to one expert lie with different lanes.
        self.halves(|c| (c.top_k, c.routing) = (3, Routing::Repeated));
        // Few tokens with many terms.
        self.all_pairs(|c| (c.tokens, c.top_k, c.ranks) = (5, 4, vec![32, 17]));
    }

    fn base(&mut self) {
        self.each(&[0], |c, tokens| c.tokens = tokens);
        self.each(&EDGES, |c, tokens| c.tokens = tokens);
        self.each(&EDGES, |c, width| (c.in_features, c.out_features) = (width, 33));
        self.each(&EDGES, |c, width| (c.out_features, c.in_features) = (width, 34));
        self.all_pairs(|c| c.bias = true);
        self.all_pairs(|c| (c.bias, c.padding) = (true, 8));
        self.each(&[1, 3], |c, padding| {
            (c.padding, c.x, c.adapters) = (padding, ElementType::F32, ElementType::F32);
        });
        self.all_pairs(|c| (c.in_features, c.tokens, c.out_features) = (4096, 3, 96));
        for tokens in [1, 2, 7] {
            self.all_pairs(|c| (c.tokens, c.in_features) = (tokens, 2056));
        }
    }

    fn delta(&mut self) {
        self.all_pairs(|c| c.ranks = MIXED.to_vec());
        for output in Output::ALL {
            self.all_pairs(|c| c.output = output);
            self.each(&Routing::ALL, |c, routing| (c.output, c.routing) = (output, routing));
        }
        self.each(&[0, 1, 2, 8, 64, 65], |c, tokens| c.tokens = tokens);
        self.add(|c| (c.in_features, c.out_features, c.tokens) = (2048, 768, 5));
    }

    fn layer(&mut self) {
        self.all_pairs(|c| c.bias = true);
        self.each(&Routing::ALL, |c, routing| (c.routing, c.ranks) = (routing, MIXED.to_vec()));
        self.each(&[0, 1, 2, 8, 33, 64, 65], |c, tokens| c.tokens = tokens);
        self.each(&[1, 4], |c, top_k| c.top_k = top_k);
        self.all_pairs(|c| c.output = Output::RankSum);
        self.all_pairs(|c| (c.padding, c.in_features, c.out_features) = (4, 96, 34));
        self.add(|c| (c.in_features, c.out_features, c.tokens) = (1024, 256, 17));
    }

    /// Every case so far with every pair of elements, then random ones.
    fn long(&mut self) {
        for case in self.cases.clone() {
            for (x, adapters) in pairs(self.op) {
                self.cases.push(Case { x, adapters, ..case.clone() });
            }
        }
        let mut rng = Rng::named("long", 1);
        for seed in 1..=200 {
            let op = self.op;
            self.add(|c| *c = random(op, &mut rng, seed, (c.x, c.adapters)));
        }
    }
}

/// A random case of an operation.
fn random(op: Op, rng: &mut Rng, seed: u64, (x, adapters): (ElementType, ElementType)) -> Case {
    let uses = op.uses();
    let mut case = Case { x, adapters, seed, ..Case::new(op) };
    case.tokens = rng.below(150);
    case.padding = rng.below(8);
    if uses.in_features {
        case.in_features = 1 + rng.below(300);
    }
    if uses.out_features {
        case.out_features = 1 + rng.below(300);
    }
    if uses.routing {
        case.experts = 1 + rng.below(40);
        case.top_k = 1 + rng.below(8.min(case.experts));
    }
    if uses.routing && op != Op::Route {
        case.routing = Routing::ALL[rng.below(Routing::ALL.len())];
    }
    if uses.adapters {
        case.ranks = (0..1 + rng.below(5)).map(|_| 1 + rng.below(40)).collect();
        case.output = if op.has_base() || matches!(op, Op::Grouped | Op::Attend) {
            Output::Sum
        } else {
            Output::ALL[rng.below(3)]
        };
        case.accumulate = op == Op::Delta || op == Op::Expand && rng.below(2) == 1;
    }
    if op == Op::Route || op.has_base() {
        case.bias = rng.below(2) == 1;
    }
    if op == Op::Attend {
        case.router_rank = 1 + rng.below(70);
    }
    if op == Op::Fused {
        fused::random(&mut case, rng);
    }
    if op == Op::Grouped {
        grouped::random(&mut case, rng);
    }
    if op == Op::Route {
        route::random(&mut case, rng);
    }
    case
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Inputs;
    use crate::report::work;

    #[test]
    fn a_short_case_stays_small() {
        for op in Op::ALL {
            let table = cases(op, Extent::Short);
            let most = if matches!(op, Op::Route | Op::Fused | Op::Grouped) { 600 } else { 250 };
            assert!((20..most).contains(&table.len()), "{}: {} cases", op.name(), table.len());
            for case in table {
                let flops = work(&Inputs::new(&case)).flops;
                assert!(flops <= 20e6, "{case}: {flops} operations");
            }
        }
    }
}
