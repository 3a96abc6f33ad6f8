//! The fused layer: every form around its own edges.

use super::{MIXED, Table};
use crate::case::Case;
use crate::rng::Rng;
use crate::routing::Routing;
use molora::element::ElementType;
use molora::ops::Output;
use molora::ops::fused::Form;

/// Most tokens of the form for a handful of them.
const FEW: usize = 16;

impl Table {
    pub(super) fn fused(&mut self) {
        for form in [Form::Sparse, Form::Dense, Form::Few] {
            self.form(form, |c| c.form = Some(form));
        }
        self.all_pairs(|c| (c.form, c.bias, c.ranks) = (Some(Form::Beside), true, MIXED.to_vec()));
        self.each(&[1, 65], |c, tokens| (c.form, c.tokens, c.padding) = (Some(Form::Beside), tokens, 2));
        self.rank_sums();
        for form in [Form::Sparse, Form::Few] {
            self.packed(form);
        }
    }

    /// What every form has: tokens, widths, ranks, experts and routings around the edges of its tiles.
    fn form(&mut self, form: Form, set: impl Fn(&mut Case) + Copy) {
        let few = form == Form::Few;
        let start = move |c: &mut Case| {
            set(c);
            c.tokens = if few { 5 } else { c.tokens };
            c.bias = c.tokens % 2 == 1;
        };
        let tokens: Vec<usize> = (0..=17).chain([63, 64, 65, 127, 128, 129, 257]).collect();
        let tokens: Vec<usize> = tokens.into_iter().filter(|&t| !few || t <= FEW).collect();
        self.each(&tokens, |c, tokens| {
            set(c);
            (c.tokens, c.ranks, c.bias) = (tokens, vec![8, 3], tokens % 3 == 1);
        });
        // The tiles' edges with rows at multiples of 16 bytes, as tensor cores take them.
        let edges: &[usize] = if few { &[1, 8, 15, 16] } else { &[1, 16, 17, 64, 65, 129] };
        for &tokens in edges {
            self.halves(|c| {
                start(c);
                (c.tokens, c.out_features, c.ranks) = (tokens, 72, vec![16, 4]);
            });
        }
        for ranks in [vec![1], vec![2, 3, 4], vec![6, 8], vec![17, 31], vec![33, 64], MIXED.to_vec()] {
            self.halves(|c| {
                start(c);
                c.ranks.clone_from(&ranks);
            });
            self.add(|c| {
                start(c);
                c.ranks = ranks;
            });
        }
        self.each(&[1, 2, 7, 8, 63, 65, 127, 128, 129, 200], |c, width| {
            start(c);
            (c.out_features, c.ranks) = (width, vec![17, 4]);
        });
        self.each(&[1, 2, 3, 8, 17, 31, 32, 33, 65, 96, 128, 200, 264], |c, width| {
            start(c);
            (c.in_features, c.ranks) = (width, vec![5, 16]);
        });
        self.each(&[1, 3, 8], |c, top_k| {
            start(c);
            (c.top_k, c.ranks) = (top_k, vec![8, 4]);
        });
        self.each(&[1, 3, 64, 166], |c, experts| {
            start(c);
            // At most 512 rows, which the dense form takes.
            (c.experts, c.top_k, c.ranks) = (experts, experts.min(4), vec![4, 1]);
        });
        self.each(&Routing::ALL, |c, routing| {
            start(c);
            (c.routing, c.ranks) = (routing, MIXED.to_vec());
        });
        for routing in [Routing::WithGaps, Routing::NoExpert, Routing::Repeated] {
            self.halves(|c| {
                start(c);
                (c.routing, c.top_k, c.ranks) = (routing, 3, vec![16, 8]);
            });
        }
        self.all_pairs(start);
        self.all_pairs(|c| {
            start(c);
            (c.routing, c.padding, c.bias) = (Routing::WithGaps, 6, true);
        });
        self.each(&[1, 3], |c, padding| {
            start(c);
            (c.padding, c.x, c.adapters) = (padding, ElementType::F32, ElementType::F32);
        });
        // Long sums.
        self.all_pairs(|c| {
            start(c);
            (c.tokens, c.in_features, c.out_features) = (3, 1024, 40);
        });
    }

    fn rank_sums(&mut self) {
        self.all_pairs(|c| c.output = Output::RankSum);
        self.each(&[0, 1, 17, 65], |c, tokens| {
            (c.output, c.tokens, c.top_k, c.ranks) = (Output::RankSum, tokens, 3, vec![8, 5]);
        });
        self.each(&[Routing::WithGaps, Routing::NoExpert, Routing::Repeated], |c, routing| {
            (c.output, c.routing, c.bias) = (Output::RankSum, routing, true);
        });
    }

    /// Packed outputs.
    fn packed(&mut self, form: Form) {
        let tokens = if form == Form::Few { 6 } else { 33 };
        let start = |c: &mut Case, slices: usize| {
            (c.form, c.slices, c.tokens) = (Some(form), slices, tokens);
            c.ranks = vec![16, 5, 8];
        };
        for slices in [2, 3, 4] {
            self.all_pairs(|c| start(c, slices));
            self.each(&[37, 65, 96, 129, 200], |c, width| {
                start(c, slices);
                (c.out_features, c.bias) = (width, true);
            });
            self.each(&[Routing::WithGaps, Routing::NoExpert, Routing::OneExpert], |c, routing| {
                start(c, slices);
                (c.routing, c.padding) = (routing, 2);
            });
        }
        self.halves(|c| {
            start(c, 3);
            (c.out_features, c.ranks, c.in_features) = (192, vec![16], 128);
        });
        let most = if form == Form::Few { FEW } else { 65 };
        self.each(&[1, most], |c, tokens| {
            start(c, 3);
            (c.tokens, c.experts, c.top_k) = (tokens, 20, 4);
        });
    }
}

/// A form and slices that go together.
pub(super) fn random(case: &mut Case, rng: &mut Rng) {
    let form = Form::ALL[rng.below(Form::ALL.len())];
    case.form = Some(form);
    if form == Form::Few {
        case.tokens = rng.below(FEW + 1);
    }
    if matches!(form, Form::Sparse | Form::Few) && case.out_features > 20 {
        case.slices = 1 + rng.below(4);
    }
    if form == Form::Sparse && case.slices == 1 && rng.below(4) == 0 {
        case.output = Output::RankSum;
    }
}
