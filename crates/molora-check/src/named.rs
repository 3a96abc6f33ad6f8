//! The cases that are timed: layers of published models, ranks, routings and many adapters, as benchmarks of the field name
//! them.

use crate::case::{Case, Group, Op};
use crate::routing::Routing;
use molora::element::ElementType;
use molora::ops::fused::Form;
use molora::ops::grouped::Rows;

/// Which of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Extent {
    /// One small layer.
    Quick,
    /// One layer of a published model at every operation, and a few of what else there is: minutes.
    Usual,
    /// Everything: hours.
    All,
}

impl Extent {
    /// Tokens of a call.
    pub const fn tokens(self) -> &'static [usize] {
        match self {
            Self::Quick => &[1, 64],
            Self::Usual => &[1, 8, 64, 256],
            Self::All => &[1, 8, 16, 64, 256, 1024, 4096],
        }
    }
}

/// `(in_features, out_features, experts, top_k, rank)`.
type Layer = (usize, usize, usize, usize, usize);

/// The layers of published models.
const LAYERS: [Layer; 10] = [
    // MING-MOE's size on a 7B model, the README's case; its feed-forward on 7B, both ways, and on 1.8B.
    (4096, 4096, 8, 2, 16),
    (2048, 5504, 8, 2, 16),
    (4096, 11008, 8, 2, 16),
    (11008, 4096, 8, 2, 16),
    // Qwen3-30B-A3B's expert width.
    (2048, 768, 128, 8, 16),
    // PHATGOOSE on T5, both numbers of experts.
    (2048, 2048, 36, 2, 16),
    (2048, 5120, 36, 2, 16),
    (2048, 5120, 166, 2, 16),
    // RAMoLE: three retrieved adapters a request, both ranks.
    (4096, 4096, 48, 3, 6),
    (4096, 4096, 48, 3, 8),
];

/// The small layer of quick runs.
const QUICK: Layer = (1024, 1024, 8, 2, 16);

/// Most tokens of the form for a handful of them on any device.
const FEW: usize = 16;

/// Adapters of one rank, and of several.
const RANKS: [&[usize]; 6] = [&[4], &[6], &[8], &[64], &[128], &[8, 16, 64]];

/// Where tokens go, beside `uniform`.
const ROUTINGS: [Routing; 4] = [Routing::Identical, Routing::Distinct, Routing::Zipf, Routing::Skewed];

/// Blocks whose base is a set of experts: `(hidden, width, experts, top_k, gated)`.
const GROUPS: [(usize, usize, usize, usize, bool); 5] = [
    // Qwen3-30B-A3B, Mixtral, mistral.rs's own benchmark, GLM-5.1, Nemotron3-nano.
    (2048, 768, 128, 8, true),
    (4096, 14336, 8, 2, true),
    (4096, 1536, 128, 8, true),
    (6144, 2048, 256, 8, true),
    (2688, 1856, 128, 6, false),
];

/// The first with a part of its experts, for shorter runs, and a small one.
const USUAL_GROUP: (usize, usize, usize, usize, bool) = (2048, 768, 16, 8, true);
const QUICK_GROUP: (usize, usize, usize, usize, bool) = (1024, 512, 8, 2, true);

/// The cases of an operation; the extent's own tokens where none are given.
pub fn named(op: Op, extent: Extent, tokens: &[usize]) -> Vec<Case> {
    let tokens = if tokens.is_empty() { extent.tokens() } else { tokens };
    let mut cases = match op {
        Op::Grouped => grouped(extent, tokens),
        _ => layers(op, extent, tokens),
    };
    if op == Op::Fused {
        cases = cases.iter().flat_map(|case| forms(case, extent)).collect();
    }
    let mut seen = std::collections::HashSet::new();
    cases.retain(|case| seen.insert(case.to_string()));
    cases
}

/// All cases of all operations.
pub fn all(extent: Extent, tokens: &[usize]) -> Vec<Case> {
    Op::ALL.into_iter().flat_map(|op| named(op, extent, tokens)).collect()
}

fn layers(op: Op, extent: Extent, tokens: &[usize]) -> Vec<Case> {
    let each = |layer: Layer| tokens.iter().map(move |&tokens| sized(op, layer, tokens));
    // Some of the tokens where they are not what changes: of many the middle ones.
    let some = || tokens.iter().copied().filter(|t| tokens.len() < 3 || [64, 1024].contains(t));
    match extent {
        Extent::Quick => each(QUICK).collect(),
        Extent::Usual => {
            let mut cases: Vec<Case> = each(LAYERS[0]).collect();
            if matches!(op, Op::Delta | Op::Layer) {
                cases.extend(some().map(|tokens| sized(op, LAYERS[1], tokens)));
                cases.extend(some().flat_map(|tokens| adapters(op, tokens, 64)).take(1));
            }
            cases
        }
        Extent::All => {
            let mut cases: Vec<Case> = LAYERS.into_iter().flat_map(each).collect();
            for tokens in some() {
                let case = sized(op, LAYERS[0], tokens);
                if op != Op::Plan {
                    let halves = [ElementType::F16, ElementType::Bf16];
                    cases.extend(halves.map(|element| case.clone().element(element)));
                }
                if op.uses().adapters {
                    cases.extend(RANKS.map(|ranks| Case { ranks: ranks.to_vec(), ..case.clone() }));
                    cases.extend([64, 256, 1024].into_iter().flat_map(|n| adapters(op, tokens, n)));
                }
                if op.uses().routing && op != Op::Route {
                    cases.extend(ROUTINGS.map(|routing| Case { routing, ..case.clone() }));
                }
            }
            cases
        }
    }
}

/// Many adapters of mixed ranks, one a token: every token another, a few popular ones, and rows without one.
fn adapters(op: Op, tokens: usize, experts: usize) -> Vec<Case> {
    let case = sized(op, LAYERS[0], tokens);
    let ranks = if op.uses().adapters { vec![8, 16, 64] } else { case.ranks.clone() };
    let routings = [Routing::Distinct, Routing::Zipf, Routing::WithGaps];
    routings.map(|routing| Case { routing, experts, top_k: 1, ranks: ranks.clone(), ..case.clone() }).to_vec()
}

/// The fused layer in every form, and as three slices of one output.
fn forms(case: &Case, extent: Extent) -> Vec<Case> {
    let packed = Case { slices: 3, ..case.clone() };
    let taken = |form: &Form| *form != Form::Few || case.tokens <= FEW;
    // Few and many tokens are enough of a quick look: the one form, and the others.
    let wanted = |form: &Form| extent == Extent::All || (*form == Form::Few) == (case.tokens <= FEW);
    let mut forms: Vec<Case> = Form::ALL
        .into_iter()
        .filter(|form| taken(form) && wanted(form))
        .map(|form| Case { form: Some(form), ..case.clone() })
        .collect();
    forms.insert(0, packed);
    forms
}

/// Gate and up, then down.
fn grouped(extent: Extent, tokens: &[usize]) -> Vec<Case> {
    let groups = match extent {
        Extent::Quick => vec![QUICK_GROUP],
        Extent::Usual => vec![USUAL_GROUP],
        Extent::All => GROUPS.to_vec(),
    };
    let mut cases = Vec::new();
    for (hidden, width, experts, top_k, gated) in groups {
        for &tokens in tokens {
            let case = Case { tokens, top_k, experts: 4, ranks: vec![16], ..Case::new(Op::Grouped) };
            let case = case.element(ElementType::Bf16);
            let rows = if gated { Rows::Gated } else { Rows::Plain };
            let up = Group { experts, rows, x_per_route: false };
            let down = Group { experts, rows: Rows::Combined, x_per_route: true };
            let sizes =
                |group, in_features, out_features| Case { group, in_features, out_features, ..case.clone() };
            let columns = if gated { 2 * width } else { width };
            cases.extend([sizes(up, hidden, columns), sizes(down, width, hidden)]);
        }
    }
    cases
}

fn sized(op: Op, (in_features, out_features, experts, top_k, rank): Layer, tokens: usize) -> Case {
    let (uses, mut case) = (op.uses(), Case { tokens, ..Case::new(op) });
    if uses.routing {
        (case.experts, case.top_k) = (experts, top_k);
    }
    if uses.adapters {
        case.ranks = vec![rank];
    }
    if uses.in_features {
        case.in_features = in_features;
    }
    if uses.out_features {
        case.out_features = out_features;
    }
    case
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_operation_has_cases() {
        for op in Op::ALL {
            let count = |extent: Extent| named(op, extent, &[]).len();
            assert!((2..=8).contains(&count(Extent::Quick)), "{}: {}", op.name(), count(Extent::Quick));
            assert!((4..=12).contains(&count(Extent::Usual)), "{}: {}", op.name(), count(Extent::Usual));
            assert!(count(Extent::All) >= 28, "{}: {}", op.name(), count(Extent::All));
            assert!(named(op, Extent::Usual, &[3]).iter().all(|case| case.tokens == 3));
        }
    }

    #[test]
    fn all_names_what_the_field_names() {
        let cases: Vec<String> = all(Extent::All, &[]).iter().map(Case::to_string).collect();
        let has = |part: &str| assert!(cases.iter().any(|case| case.contains(part)), "no case has {part}");
        let tokens = ["t1_", "t8_", "t16_", "t64_", "t256_", "t1024_", "t4096_"];
        let routings = ["identical", "distinct", "uniform", "zipf1.5", "skewed", "with_gaps", "r8-16-64"];
        let experts = ["e36_", "e48_", "e64_", "e128_", "e166_", "e256_", "e1024_"];
        let rest = ["r4_", "r6_", "r8_", "r16_", "r64_", "r128_", "i11008", "o11008", "o5504", "f16", "bf16"];
        [&tokens[..], &routings, &experts, &rest].concat().into_iter().for_each(has);
        for case in all(Extent::All, &[]) {
            assert_eq!(case.to_string().parse::<Case>().map(|c| c.to_string()), Ok(case.to_string()));
        }
    }
}
