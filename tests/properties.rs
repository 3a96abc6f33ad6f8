//! Properties over random sizes and routings. A failing case prints its text: MOLORA_CASE reruns it in its file.

use molora::element::ElementType;
use molora::ops::fused::Form;
use molora::ops::grouped::Rows;
use molora::ops::route::Weighting;
use molora::ops::{Output, plan};
use molora_check::case::Group;
use molora_check::{Case, Op, Outcome, Routing, Subject, check, subjects};
use proptest::prelude::*;
use std::sync::LazyLock;

static SUBJECTS: LazyLock<Vec<Box<dyn Subject>>> = LazyLock::new(|| subjects().unwrap());

/// A case of an operation with random sizes, all of them small.
fn cases(op: Op) -> impl Strategy<Value = Case> {
    let sizes = (0..80usize, 1..9usize, 1..40usize, 1..150usize, 1..150usize);
    let kinds = (0..3usize, 0..3usize, 0..3usize, 0..3usize, 0..Routing::ALL.len());
    let ranks = prop::collection::vec(1..40usize, 1..5);
    (sizes, kinds, ranks, any::<[bool; 2]>(), 0..4usize, 1..1000u64).prop_map(
        move |(
            (tokens, top_k, experts, i, o),
            (x, a, output, weighting, routing),
            ranks,
            flags,
            padding,
            seed,
        )| {
            let mut case = Case { tokens, seed, ..Case::new(op) };
            (case.x, case.adapters) = (ElementType::ALL[x], ElementType::ALL[a]);
            case.padding = padding;
            match op {
                Op::Plan => (case.top_k, case.experts) = (top_k, experts),
                Op::Route => (case.top_k, case.experts, case.in_features) = (top_k.min(experts), experts, i),
                Op::Shrink => case.in_features = i,
                Op::Expand => case.out_features = o,
                _ => (case.in_features, case.out_features) = (i, o),
            }
            if matches!(op, Op::Shrink | Op::Expand | Op::Delta | Op::Layer | Op::Fused | Op::Grouped) {
                (case.top_k, case.experts, case.ranks) = (top_k, experts, ranks);
            } else {
                case.adapters = case.x;
            }
            if !matches!(op, Op::Route | Op::Base) {
                case.routing = Routing::ALL[routing];
            }
            if matches!(op, Op::Shrink | Op::Expand | Op::Delta) {
                case.output = Output::ALL[output];
            }
            case.accumulate |= flags[0] && op == Op::Expand;
            case.bias = flags[1] && matches!(op, Op::Route | Op::Base | Op::Layer | Op::Fused);
            if op == Op::Grouped {
                grouped(&mut case, (weighting, output), flags[0]);
            }
            if op == Op::Fused {
                fused(&mut case, (weighting, output), flags[0]);
            }
            case.weighting = if op == Op::Route { Weighting::ALL[weighting] } else { case.weighting };
            case
        },
    )
}

/// A form, and slices or an output that go with it, from numbers that the case has no other use for.
fn fused(case: &mut Case, (form, slices): (usize, usize), packed: bool) {
    let form = [Form::Sparse, Form::Dense, Form::Few][form];
    case.form = Some(form);
    case.tokens = if form == Form::Few { case.tokens % 17 } else { case.tokens };
    if form == Form::Dense {
        // Within the rows that the form takes, nearly always.
        case.experts = 1 + case.experts % 16;
        case.top_k = case.top_k.min(case.experts);
    }
    if packed && form != Form::Dense && case.out_features >= 10 {
        case.slices = 2 + slices;
    } else if packed && form == Form::Sparse {
        case.output = Output::RankSum;
    }
}

/// Base experts, adapters and rows, in the same way.
fn grouped(case: &mut Case, (rows, adapters): (usize, usize), x_per_route: bool) {
    case.group = Group { experts: case.experts, rows: Rows::ALL[rows], x_per_route };
    case.experts = adapters;
    if case.group.rows == Rows::Gated {
        case.out_features = case.out_features.next_multiple_of(2);
    }
}

/// Runs `many` random cases on the CPU and a tenth of them on every other device.
fn all_right(op: Op, many: u32) {
    for subject in SUBJECTS.iter() {
        let many = if subject.kind() == "cpu" { many } else { many / 10 };
        let config = ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(many) };
        proptest!(config, |(case in cases(op))| {
            if let Outcome::Wrong(why) = check(subject.as_ref(), &case) {
                return Err(TestCaseError::fail(format!("{}: {why}", case.label(subject.kind()))));
            }
        });
    }
}

#[test]
fn random_routings() {
    all_right(Op::Route, 300);
}

#[test]
fn random_plans() {
    all_right(Op::Plan, 300);
}

#[test]
fn random_shrinks() {
    all_right(Op::Shrink, 300);
}

#[test]
fn random_expands() {
    all_right(Op::Expand, 300);
}

#[test]
fn random_bases() {
    all_right(Op::Base, 300);
}

#[test]
fn random_deltas() {
    all_right(Op::Delta, 200);
}

#[test]
fn random_fused() {
    all_right(Op::Fused, 300);
}

#[test]
fn random_grouped() {
    all_right(Op::Grouped, 200);
}

#[test]
fn random_layers() {
    all_right(Op::Layer, 200);
}

proptest! {
    /// No route is lost or made up, and none changes its expert.
    #[test]
    fn a_plan_is_a_permutation_of_the_live_routes(ids in prop::collection::vec(-1..20i32, 0..200)) {
        let sizes = plan::Sizes { tokens: ids.len(), top_k: 1, experts: 20 };
        let plan = plan::definition(&sizes, &ids, 0).unwrap();
        let mut routes = plan.sorted_routes().to_vec();
        for e in 0..20 {
            prop_assert!(plan.routes_of(e).iter().all(|&n| ids[n as usize] == e as i32));
            prop_assert!(plan.routes_of(e).is_sorted());
        }
        routes.sort_unstable();
        let live: Vec<u32> = (0..ids.len() as u32).filter(|&n| ids[n as usize] >= 0).collect();
        prop_assert_eq!(routes, live);
    }

    /// Every id that names nothing is refused, wherever it stands.
    #[test]
    fn ids_out_of_range_are_refused(
        mut ids in prop::collection::vec(-1..20i32, 1..50),
        place in any::<prop::sample::Index>(),
        wrong in prop_oneof![i32::MIN..-1, 20..i32::MAX],
    ) {
        let place = place.index(ids.len());
        ids[place] = wrong;
        let sizes = plan::Sizes { tokens: ids.len(), top_k: 1, experts: 20 };
        let message = plan::definition(&sizes, &ids, 0).unwrap_err().to_string();
        let expected = format!("plan: topk_ids[{place}, 0]: expected -1 or an id below 20, got {wrong}");
        prop_assert_eq!(message, expected);
    }
}
