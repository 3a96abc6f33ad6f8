//! Route on every device: scores, the best of them, their weights.

mod common;

use common::{Small, refuses};
use molora::adapter::LinearRouter;
use molora::ops::route::{self, AllowLists, CpuRouter, Rule, Select, Weighting};
use molora_check::{Op, check_all};

#[test]
fn every_case_on_every_device() {
    check_all(Op::Route);
}

const SIZES: route::Sizes = route::Sizes {
    tokens: 2,
    in_features: 3,
    x_stride: 3,
    experts: 4,
    rule: Rule::top_k(2, Weighting::SoftmaxSelected),
};

/// Routes with one thing changed.
fn route(
    change: impl FnOnce(&mut route::Sizes, &mut Vec<f32>),
) -> molora::error::Result<(Vec<i32>, Vec<f32>)> {
    let router = LinearRouter::new(4, 3, &[1f32; 12], None).unwrap();
    let (mut sizes, mut x) = (SIZES, vec![1.0; 6]);
    change(&mut sizes, &mut x);
    let (mut ids, mut weights) = (vec![0; 4], vec![0.0; 4]);
    let cpu = Small::new([1]).cpu;
    let router = CpuRouter::new(&cpu, router)?;
    cpu.route(&sizes, &router, &x, None, &mut ids, &mut weights)?;
    Ok((ids, weights))
}

#[test]
fn equal_scores_take_the_lowest_experts_with_equal_weights() {
    assert_eq!(route(|_, _| ()).unwrap(), (vec![0, 1, 0, 1], vec![0.5; 4]));
    let all = route(|s, _| s.rule.weighting = Weighting::SoftmaxAll).unwrap();
    assert_eq!(all, (vec![0, 1, 0, 1], vec![0.25; 4]));
}

#[test]
fn errors_name_operation_argument_expected_and_got() {
    let says = |change: fn(&mut route::Sizes, &mut Vec<f32>)| refuses(route(change));
    assert_eq!(says(|_, x| x[4] = f32::NAN), "route: score[1, 0]: expected a finite value, got NaN");
    assert_eq!(says(|_, x| x[0] = f32::INFINITY), "route: score[0, 0]: expected a finite value, got inf");
    assert_eq!(says(|s, _| s.rule.top_k = 5), "route: top_k: expected at most the router's 4 experts, got 5");
    assert_eq!(says(|s, _| s.experts = 5), "route: router.experts: expected 5, got 4");
    assert_eq!(says(|s, _| s.in_features = 2), "route: router.in_features: expected 2, got 3");
    assert_eq!(says(|s, _| s.x_stride = 2), "route: x_stride: expected at least the row's 3 elements, got 2");
    assert_eq!(says(|s, _| s.rule.top_k = 1), "route: topk_ids: expected 2 elements, got 4");
    assert_eq!(
        says(|_, x| x.truncate(5)),
        "route: x: expected at least 6 elements (2 rows of 3, stride 3), got 5"
    );
    let router = |weight: &[f32], bias: Option<&[f32]>| refuses(LinearRouter::new(2, 2, weight, bias));
    assert_eq!(router(&[0.0; 3], None), "route: router.weight: expected 4 elements, got 3");
    assert_eq!(router(&[0.0; 4], Some(&[0.0])), "route: router.bias: expected 2 elements, got 1");
    let wrong = [0.0, 0.0, f32::NAN, 0.0];
    assert_eq!(router(&wrong, None), "route: router.weight[2]: expected a finite value, got NaN");
}

/// Softmax over all, renormalised over the selected, is softmax over the selected.
#[test]
fn renormalising_is_the_softmax_of_the_selected() {
    let scores: Vec<f32> = (0..40).map(|e| ((e * 37) % 23) as f32 / 4.0 - 2.0).collect();
    let select = |weighting| {
        let (mut ids, mut weights) = (vec![0; 6], vec![0.0; 6]);
        let rule = Rule::top_k(6, weighting);
        route::select(&rule, 0, &scores, None, &mut ids, &mut weights).unwrap();
        (ids, weights)
    };
    let (ids, weights) = select(Weighting::SoftmaxAll);
    let kept: f32 = weights.iter().sum();
    assert!(kept < 0.99, "{kept}");
    for weighting in [Weighting::SoftmaxSelected, Weighting::SoftmaxAllRenormalised] {
        let (other_ids, other) = select(weighting);
        assert_eq!(ids, other_ids);
        for (w, o) in weights.iter().zip(&other) {
            approx::assert_relative_eq!(w / kept, o, max_relative = 1e-6);
        }
    }
}

fn choose(rule: Rule, scores: &[f32], allowed: Option<&[u32]>) -> (Vec<i32>, Vec<f32>) {
    let (mut ids, mut weights) = (vec![7; rule.width()], vec![f32::NAN; rule.width()]);
    route::select(&rule, 0, scores, allowed, &mut ids, &mut weights).unwrap();
    (ids, weights)
}

#[test]
fn every_weighting_is_its_formula() {
    // Scores whose softmax is 1/2, 1/4, 1/8, 1/8.
    let scores: Vec<f32> = [4.0f32, 2.0, 1.0, 1.0].iter().map(|v| v.ln()).collect();
    let weigh = |weighting| choose(Rule::top_k(2, weighting), &scores, None);
    let near = |weighting, want: [f32; 2]| {
        let (ids, weights) = weigh(weighting);
        assert_eq!(ids, [0, 1]);
        for (got, want) in weights.iter().zip(want) {
            approx::assert_relative_eq!(*got, want, max_relative = 1e-6);
        }
    };
    near(Weighting::SoftmaxSelected, [2.0 / 3.0, 1.0 / 3.0]);
    near(Weighting::SoftmaxAll, [0.5, 0.25]);
    near(Weighting::SoftmaxAllRenormalised, [2.0 / 3.0, 1.0 / 3.0]);
    let twice = 0.25f32.exp();
    near(Weighting::SoftmaxTwice, [twice / (1.0 + twice), 1.0 / (1.0 + twice)]);
    near(Weighting::Sigmoid, [0.8, 2.0 / 3.0]);
    near(Weighting::Uniform, [0.5, 0.5]);
    near(Weighting::Score, [4.0f32.ln(), 2.0f32.ln()]);
}

#[test]
fn a_threshold_takes_a_variable_number_and_perhaps_none() {
    let scores: Vec<f32> = [4.0f32, 2.0, 1.0, 1.0].iter().map(|v| v.ln()).collect();
    let rule = |threshold| Rule {
        select: Select::Threshold(threshold),
        ..Rule::top_k(3, Weighting::AboveThreshold)
    };
    let (ids, weights) = choose(rule(0.2), &scores, None);
    assert_eq!(ids, [0, 1, -1]);
    approx::assert_relative_eq!(weights[0], 0.3 / 0.35, max_relative = 1e-5);
    assert_eq!(weights[2], 0.0);
    assert_eq!(choose(rule(0.6), &scores, None), (vec![-1; 3], vec![0.0; 3]));
    assert_eq!(choose(rule(0.0), &scores, None).0, [0, 1, 2], "at most top_k");
    // The threshold's own row: sigmoid(0) halves 0.8.
    let learned = Rule { select: Select::LearnedThreshold(0.8), ..Rule::top_k(3, Weighting::SoftmaxAll) };
    let (ids, weights) = choose(learned, &[&scores[..], &[0.0]].concat(), None);
    assert_eq!(ids, [0, -1, -1]);
    approx::assert_relative_eq!(weights[0], 0.5, max_relative = 1e-6);
}

#[test]
fn a_mask_and_shared_experts() {
    let mut lists = AllowLists::new(40);
    lists.push(1, [3, 33]).unwrap();
    lists.push(2, []).unwrap();
    assert_eq!(refuses(lists.push(1, [40])), "route: allow.experts: expected an expert below 40, got 40");
    let scores: Vec<f32> = (0..40).map(|e| e as f32).collect();
    let rule = Rule { shared: 2, ..Rule::top_k(3, Weighting::Uniform) };
    let allow = lists.as_allow();
    let of = |request: usize| Some(&allow.lists[2 * request..][..2]);
    assert_eq!(choose(rule, &scores, of(0)), (vec![33, 3, -1, 40, 41], vec![0.5, 0.5, 0.0, 1.0, 1.0]));
    assert_eq!(choose(rule, &scores, of(1)), (vec![-1, -1, -1, 40, 41], vec![0.0, 0.0, 0.0, 1.0, 1.0]));
    // A score that nobody may take need not be finite.
    let broken: Vec<f32> = scores.iter().map(|&z| if z == 5.0 { f32::NAN } else { z }).collect();
    assert_eq!(choose(rule, &broken, of(0)).0[0], 33);
    let mut all = (vec![0; 5], vec![0.0; 5]);
    let said = refuses(route::select(&rule, 9, &broken, None, &mut all.0, &mut all.1));
    assert_eq!(said, "route: score[9, 5]: expected a finite value, got NaN");
}
