//! The cases that are timed, and the look at the answer before the clock starts.

use crate::case::{Case, Group, Op};
use crate::expect::{self, Roundings};
use crate::guarded::Tensor;
use crate::inputs::Inputs;
use crate::judge::{Verdict, compare};
use crate::report::work;
use crate::routing::Routing;
use crate::run::{Outcome, check};
use crate::subject::Subject;
use molora::element::ElementType;
use molora::ops::fused::Form;
use molora::ops::grouped::Rows;

/// Operations that the definition may take for one look.
const MOST_FLOPS: f64 = 4e8;

/// The layers of published models: `(in_features, out_features, experts, top_k, rank)`.
const LAYERS: [(usize, usize, usize, usize, usize); 7] = [
    // MING-MOE's size on a 7B model, the README's case; its feed-forward on 7B and 1.8B.
    (4096, 4096, 8, 2, 16),
    (4096, 11008, 8, 2, 16),
    (2048, 5504, 8, 2, 16),
    // Qwen3-30B-A3B's expert width.
    (2048, 768, 128, 8, 16),
    // PHATGOOSE on T5, both numbers of experts.
    (2048, 2048, 36, 2, 16),
    (2048, 5120, 166, 2, 16),
    // RAMoLE: three retrieved adapters a request.
    (4096, 4096, 48, 3, 8),
];

/// Most tokens of the form for a handful of them on any device.
const FEW: usize = 16;

/// The small layer of quick runs.
const QUICK: (usize, usize, usize, usize, usize) = (1024, 1024, 8, 2, 16);

/// Grouped layers: gate and up, then down, of base experts as wide as Qwen3-30B-A3B's and as the one that mistral.rs times,
/// with a part of their experts, since a base of f32 shall fit any machine: `(hidden, width, experts, top_k, rank)`.
const GROUPS: [(usize, usize, usize, usize, usize); 2] = [(2048, 768, 16, 8, 16), (4096, 1536, 8, 8, 16)];

/// The cases of an operation that are timed; `quick` keeps those of one small layer. Those of the fused layer come in every
/// form.
pub fn cases(op: Op, tokens: &[usize], quick: bool) -> Vec<Case> {
    if op == Op::Grouped {
        return grouped(tokens, quick);
    }
    let cases = plain(op, tokens, quick);
    if op != Op::Fused {
        return cases;
    }
    let mut forms = Vec::new();
    for case in cases {
        // Three slices, as of queries, keys and values.
        forms.push(Case { slices: 3, ..case.clone() });
        for form in Form::ALL {
            if form != Form::Few || case.tokens <= FEW {
                forms.push(Case { form: Some(form), ..case.clone() });
            }
        }
    }
    forms
}

fn grouped(tokens: &[usize], quick: bool) -> Vec<Case> {
    let groups = if quick { vec![(1024, 512, 8, 2, 16)] } else { GROUPS.to_vec() };
    let mut cases = Vec::new();
    for (hidden, width, experts, top_k, rank) in groups {
        for &tokens in tokens {
            let case = Case { tokens, top_k, experts: 4, ranks: vec![rank], ..Case::new(Op::Grouped) };
            let case = case.element(ElementType::Bf16);
            let up = Group { experts, rows: Rows::Gated, x_per_route: false };
            let down = Group { experts, rows: Rows::Combined, x_per_route: true };
            let sizes =
                |group, in_features, out_features| Case { group, in_features, out_features, ..case.clone() };
            cases.extend([sizes(up, hidden, 2 * width), sizes(down, width, hidden)]);
        }
    }
    cases
}

fn plain(op: Op, tokens: &[usize], quick: bool) -> Vec<Case> {
    if quick {
        return tokens.iter().map(|&tokens| sized(op, QUICK, tokens)).collect();
    }
    let mut cases: Vec<Case> =
        LAYERS.iter().flat_map(|&layer| tokens.iter().map(move |&tokens| sized(op, layer, tokens))).collect();
    if op != Op::Plan {
        cases.extend(tokens.iter().map(|&tokens| sized(op, LAYERS[0], tokens).element(ElementType::Bf16)));
    }
    if op.uses().adapters {
        let tokens = tokens.iter().copied().max().unwrap_or(1);
        let (ranks, routing) = (vec![8, 16, 64], Routing::Zipf);
        // Many adapters of mixed ranks, one a token.
        cases.push(Case { ranks, routing, experts: 64, top_k: 1, ..sized(op, LAYERS[0], tokens) });
    }
    cases
}

fn sized(
    op: Op,
    (in_features, out_features, experts, top_k, rank): (usize, usize, usize, usize, usize),
    tokens: usize,
) -> Case {
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

/// Runs a case of any size once and judges its first and last tokens, as many as a definition does in a moment.
pub fn check_ends(subject: &dyn Subject, inputs: &Inputs) -> Outcome {
    let case = &inputs.case;
    if let Some(why) = subject.unsupported(case) {
        return Outcome::Unsupported(why);
    }
    let share = MOST_FLOPS / work(inputs).flops.max(1.0);
    if share >= 1.0 || matches!(case.op, Op::Route | Op::Plan) {
        return check(subject, case);
    }
    let tokens = ((case.tokens as f64 * share / 2.0) as usize).clamp(1, case.tokens);
    match compare_ends(subject, inputs, tokens) {
        Ok(verdict) => Outcome::Right(verdict),
        Err(why) => Outcome::Wrong(why),
    }
}

fn compare_ends(subject: &dyn Subject, inputs: &Inputs, tokens: usize) -> Result<Verdict, String> {
    let text = |e: molora::error::Error| format!("refused: {e}");
    let (start, got) = if inputs.case.op == Op::Shrink {
        let mut h = inputs.empty_h();
        subject.shrink(inputs, &mut h).map_err(text)?;
        (Tensor::F32(inputs.empty_h()), Tensor::F32(h))
    } else if inputs.case.op == Op::Attend {
        let mut weights = inputs.empty_weights();
        subject.attend(inputs, &mut weights).map_err(text)?;
        (Tensor::F32(inputs.empty_weights()), Tensor::F32(weights))
    } else {
        let mut y = inputs.y.clone();
        match inputs.case.op {
            Op::Expand => subject.expand(inputs, &mut y),
            Op::Base => subject.base(inputs, &mut y),
            Op::Delta => subject.delta(inputs, &mut y),
            Op::Fused => subject.fused(inputs, &mut y),
            Op::Grouped => subject.grouped(inputs, &mut y),
            _ => subject.layer(inputs, &mut y),
        }
        .map_err(text)?;
        (inputs.y.clone(), y)
    };
    let mut verdict = Verdict::default();
    for first in [0, inputs.case.tokens - tokens] {
        let part = inputs.part(first, tokens);
        let (skip, rows) = (inputs.case.y_rows(first), inputs.case.y_rows(tokens));
        let expected = expect::rows(&part, Roundings::of(subject, &inputs.case)).map_err(text)?;
        verdict = verdict.worse(compare(&expected, &start.part(skip, rows), &got.part(skip, rows))?);
    }
    Ok(verdict)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::subject::CpuSubject;
    use molora::ops::Output;

    #[test]
    fn the_ends_of_a_case_are_judged_like_all_of_it() {
        let cpu = CpuSubject::new().unwrap();
        for op in [Op::Shrink, Op::Expand, Op::Base, Op::Delta, Op::Layer] {
            for output in Output::ALL {
                let output = if matches!(op, Op::Base | Op::Layer) { Output::Sum } else { output };
                let case = Case { output, routing: Routing::WithGaps, padding: 3, ..Case::new(op) };
                compare_ends(&cpu, &Inputs::new(&case), 4).unwrap_or_else(|why| panic!("{case}: {why}"));
            }
        }
    }

    #[test]
    fn every_operation_has_cases() {
        for op in Op::ALL {
            assert!(cases(op, &[1, 64], false).len() >= 4, "{}", op.name());
            let two = if matches!(op, Op::Fused | Op::Grouped) { 4..10 } else { 2..3 };
            assert!(two.contains(&cases(op, &[1, 64], true).len()), "{}", op.name());
        }
    }
}
