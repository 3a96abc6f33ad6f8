//! The same inputs give the same bits, run after run; and within one form a token's bits never depend on its batch.

use molora::element::ElementType;
use molora::ops::Output;
use molora::ops::fused::Form;
use molora::ops::grouped::Rows;
use molora::ops::route::Weighting;
use molora_check::case::{Scores, Scoring};
use molora_check::guarded::Guarded;
use molora_check::subject::CpuSubject;
use molora_check::{Case, Inputs, Op, Outcome, Routing, Subject, check, subjects};

/// Ranks of one pool.
const MIXED: [usize; 6] = [1, 4, 17, 33, 8, 6];

fn case(op: Op, element: ElementType, output: Output) -> Case {
    Case {
        output,
        tokens: 100,
        top_k: if op == Op::Base { 2 } else { 3 },
        ranks: MIXED.to_vec(),
        routing: Routing::WithGaps,
        in_features: 193,
        out_features: 131,
        padding: 1,
        ..Case::new(op).element(element)
    }
}

/// The bits of the rows that a case gives; padding and guards are not part of them.
fn bits(subject: &dyn Subject, inputs: &Inputs) -> Vec<u32> {
    let mut y = inputs.y.clone();
    let mut h = inputs.empty_h();
    let mut weights = inputs.empty_weights();
    match inputs.case.op {
        Op::Shrink => subject.shrink(inputs, &mut h),
        Op::Attend => subject.attend(inputs, &mut weights),
        Op::Expand => subject.expand(inputs, &mut y),
        Op::Base => subject.base(inputs, &mut y),
        Op::Delta => subject.delta(inputs, &mut y),
        Op::Layer => subject.layer(inputs, &mut y),
        Op::Fused => subject.fused(inputs, &mut y),
        Op::Grouped => subject.grouped(inputs, &mut y),
        Op::Route => return route_bits(subject, inputs),
        Op::Plan => {
            let plan = subject.plan(inputs).unwrap();
            return [plan.sorted_routes, plan.expert_offsets].concat();
        }
    }
    .unwrap();
    let rows = match inputs.case.op {
        Op::Shrink => h.dense(),
        Op::Attend => weights.dense(),
        _ => y.dense(),
    };
    rows.into_iter().map(f32::to_bits).collect()
}

fn route_bits(subject: &dyn Subject, inputs: &Inputs) -> Vec<u32> {
    let shape = (1, inputs.case.routes(), inputs.case.routes());
    let (mut ids, mut weights) = (Guarded::output(shape, |_, _| 0), Guarded::output(shape, |_, _| 0.0));
    subject.route(inputs, &mut ids, &mut weights).unwrap();
    let ids = ids.cells().iter().map(|&id| id as u32);
    ids.chain(weights.cells().iter().map(|w| w.to_bits())).collect()
}

#[test]
fn two_runs_give_the_same_bits() {
    for subject in subjects().unwrap() {
        for op in Op::ALL {
            for element in ElementType::ALL {
                let case = Case { in_features: 193, ..case(op, element, Output::Sum) };
                if subject.unsupported(&case).is_none() {
                    let inputs = Inputs::new(&case);
                    let first = bits(subject.as_ref(), &inputs);
                    assert_eq!(first, bits(subject.as_ref(), &inputs), "{}", case.label(subject.kind()));
                }
            }
        }
    }
}

/// Rows and columns of many tasks, rows of one adapter beyond a task, and products so few that they are cut inside.
#[test]
fn threads_change_no_bits_on_the_cpu() {
    let one = CpuSubject::with_threads(1).unwrap();
    for op in [Op::Shrink, Op::Expand, Op::Delta, Op::Fused] {
        for (routing, tokens) in [
            (Routing::WithGaps, 600),
            (Routing::Repeated, 600),
            (Routing::OneExpert, 70),
            (Routing::Uniform, 2),
        ] {
            for element in [ElementType::F32, ElementType::F16] {
                let case = case(op, element, Output::Sum);
                let case = Case { tokens, routing, in_features: 1031, out_features: 300, ..case };
                let label = case.label("cpu");
                let outcome = check(&one, &case);
                assert!(matches!(outcome, Outcome::Right(_)), "{label}: {outcome:?}");
                let inputs = Inputs::new(&case);
                let want = bits(&one, &inputs);
                for threads in [2, 5] {
                    let got = bits(&CpuSubject::with_threads(threads).unwrap(), &inputs);
                    assert!(got == want, "{label}: {threads} threads");
                }
            }
        }
    }
}

#[test]
fn a_token_gives_the_same_bits_alone_and_in_every_batch() {
    let cpu = CpuSubject::new().unwrap().batch_invariant();
    let cpu = cpu.as_ref();
    for op in [Op::Shrink, Op::Attend, Op::Expand, Op::Base, Op::Delta, Op::Layer] {
        for element in ElementType::ALL {
            for output in if matches!(op, Op::Attend | Op::Base | Op::Layer) {
                vec![Output::Sum]
            } else {
                Output::ALL.to_vec()
            } {
                let case = case(op, element, output);
                let all = Inputs::new(&case);
                let whole = bits(cpu, &all);
                let row = whole.len() / case.tokens;
                for batch in [1, 2, 7, 33] {
                    for first in (0..case.tokens - batch).step_by(batch * 3) {
                        let got = bits(cpu, &all.part(first, batch));
                        let want = &whole[first * row..(first + batch) * row];
                        assert!(got == want, "{}: tokens {first} to {}", case.label("cpu"), first + batch);
                    }
                }
            }
        }
    }
}

/// On a GPU the form depends on the number of tokens, unless one form is fixed.
#[test]
fn one_form_gives_a_token_the_same_bits_in_every_batch() {
    for subject in subjects().unwrap() {
        let subject = subject.batch_invariant();
        for op in [Op::Shrink, Op::Attend, Op::Expand, Op::Base, Op::Delta, Op::Layer] {
            let element = if op == Op::Expand { ElementType::Bf16 } else { ElementType::F32 };
            in_every_batch(subject.as_ref(), &case(op, element, Output::Sum));
        }
    }
}

/// Rows at multiples of 16 bytes, which tensor cores take, and tokens that name an expert twice.
#[test]
fn tensor_cores_give_a_token_the_same_bits_in_every_batch() {
    for subject in subjects().unwrap().iter().filter(|s| s.kind() == "cuda") {
        let subject = subject.batch_invariant();
        for op in [Op::Shrink, Op::Expand, Op::Base, Op::Layer] {
            for element in [ElementType::F16, ElementType::Bf16] {
                let aligned = Case {
                    in_features: 192,
                    out_features: 136,
                    padding: 0,
                    ..case(op, element, Output::Sum)
                };
                in_every_batch(subject.as_ref(), &aligned);
                if op == Op::Expand {
                    for routing in [Routing::Repeated, Routing::OneExpert] {
                        in_every_batch(subject.as_ref(), &Case { routing, ..aligned.clone() });
                    }
                }
            }
        }
    }
}

/// Some tokens alone or in small batches, against the same in the whole one.
fn in_every_batch(subject: &dyn Subject, case: &Case) {
    let all = Inputs::new(case);
    let whole = bits(subject, &all);
    let row = whole.len() / case.tokens;
    for (first, batch) in [(0, 1), (57, 1), (99, 1), (40, 2), (11, 7), (64, 33)] {
        let got = bits(subject, &all.part(first, batch));
        let want = &whole[first * row..(first + batch) * row];
        let label = case.label(subject.kind());
        assert!(got == want, "{label} on {}: tokens {first} to {}", subject.name(), first + batch);
    }
}

#[test]
fn a_token_chooses_the_same_alone_and_in_every_batch() {
    let cpu = CpuSubject::new().unwrap();
    chooses_the_same(&cpu, &[1, 2, 7, 33], 3);
}

/// On a GPU the form depends on the number of tokens, unless one form is fixed.
#[test]
fn one_form_chooses_the_same_alone_and_in_every_batch() {
    for subject in subjects().unwrap().iter().filter(|s| s.kind() != "cpu") {
        chooses_the_same(subject.batch_invariant().as_ref(), &[1, 7, 17], 13);
    }
}

/// A routing of prototypes, in batches that begin `step` batches apart.
fn chooses_the_same(subject: &dyn Subject, batches: &[usize], step: usize) {
    let scoring = Scoring { scores: Scores::Prototypes, ..Scoring::default() };
    let (weighting, in_features) = (Weighting::SoftmaxAll, 193);
    let case = Case { tokens: 100, experts: 133, in_features, weighting, scoring, ..Case::new(Op::Route) };
    let all = Inputs::new(&case);
    let whole = bits(subject, &all);
    for &batch in batches {
        for first in (0..case.tokens - batch).step_by(batch * step) {
            let got = bits(subject, &all.part(first, batch));
            let (from, to) = (first * case.top_k, (first + batch) * case.top_k);
            let want = [&whole[from..to], &whole[case.routes() + from..case.routes() + to]].concat();
            assert!(got == want, "{}: tokens {first} to {}", subject.name(), first + batch);
        }
    }
}

/// Cases of every form; a packed one too where the form takes it.
fn forms() -> Vec<Case> {
    let mut cases = Vec::new();
    for form in Form::ALL {
        for element in ElementType::ALL {
            let tokens = if form == Form::Few { 16 } else { 100 };
            // Rows at multiples of 16 bytes, which tensor cores take, and rows that are not.
            let aligned = Case {
                in_features: 192,
                out_features: 136,
                padding: 0,
                ..case(Op::Fused, element, Output::Sum)
            };
            let odd = Case { in_features: 194, out_features: 131, ..aligned.clone() };
            for sizes in [aligned, odd] {
                let one = Case { form: Some(form), tokens, ..sizes };
                if matches!(form, Form::Sparse | Form::Few) {
                    cases.push(Case { slices: 3, ..one.clone() });
                }
                cases.push(one);
            }
        }
    }
    cases
}

#[test]
fn every_form_gives_the_same_bits_twice_and_in_every_batch() {
    for plain in subjects().unwrap() {
        let invariant = plain.batch_invariant();
        for case in forms() {
            // Shrink and the separate launches have forms of their own, which a demanded form of the layer leaves open; the
            // other two forms are none for every batch, and so are refused where one is asked for.
            let fixed = matches!(case.form, Some(Form::Sparse | Form::Beside));
            let subject = if fixed { invariant.as_ref() } else { plain.as_ref() };
            if subject.unsupported(&case).is_some() {
                continue;
            }
            let inputs = Inputs::new(&case);
            let whole = bits(subject, &inputs);
            assert!(whole == bits(subject, &inputs), "{} twice", case.label(subject.kind()));
            let row = whole.len() / case.tokens;
            let last = case.tokens - 1;
            for (first, batch) in [(0, 1), (last, 1), (last / 2, 2), (3, 7), (1, last), (last - 9, 10)] {
                let got = bits(subject, &inputs.part(first, batch));
                let want = &whole[first * row..(first + batch) * row];
                let label = case.label(subject.kind());
                assert!(got == want, "{label} on {}: tokens {first} to {}", subject.name(), first + batch);
            }
        }
    }
}

/// The layer as it chooses for itself, asked for one form: every number of tokens up to beyond the largest tile.
#[test]
fn one_form_gives_every_number_of_tokens_the_same_bits() {
    for subject in subjects().unwrap() {
        let subject = subject.batch_invariant();
        let sizes = Case {
            tokens: 130,
            in_features: 32,
            out_features: 24,
            ranks: vec![4, 8],
            ..Case::new(Op::Layer)
        };
        for element in ElementType::ALL {
            let case = Case { routing: Routing::WithGaps, bias: true, ..sizes.clone().element(element) };
            let all = Inputs::new(&case);
            let whole = bits(subject.as_ref(), &all);
            let every = (1..=18).chain([31, 32, 33, 48, 63, 64, 65, 95, 96, 97, 127, 128, 129]);
            for tokens in every {
                let got = bits(subject.as_ref(), &all.part(0, tokens));
                let label = case.label(subject.kind());
                assert!(got == whole[..got.len()], "{label} on {}: {tokens} tokens", subject.name());
            }
        }
    }
}

#[test]
fn base_experts_give_a_token_the_same_bits_in_every_batch() {
    for subject in subjects().unwrap() {
        let subject = subject.batch_invariant();
        for rows in Rows::ALL {
            for element in ElementType::ALL {
                let sizes = Case {
                    in_features: 64,
                    out_features: 72,
                    padding: 0,
                    ..case(Op::Grouped, element, Output::Sum)
                };
                for x_per_route in [false, true] {
                    let mut case = sizes.clone();
                    (case.group.rows, case.group.x_per_route) = (rows, x_per_route);
                    if subject.unsupported(&case).is_none() {
                        in_every_batch(subject.as_ref(), &case);
                    }
                }
            }
        }
    }
}
