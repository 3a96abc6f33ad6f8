//! Route on every device: scores, the best of them, their weights.

mod common;

use common::{Small, refuses};
use molora::adapter::LinearRouter;
use molora::ops::route::{self, Weighting};
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
    top_k: 2,
    weighting: Weighting::SoftmaxSelected,
};

/// Routes with one thing changed.
fn route(
    change: impl FnOnce(&mut route::Sizes, &mut Vec<f32>),
) -> molora::error::Result<(Vec<i32>, Vec<f32>)> {
    let router = LinearRouter::new(4, 3, &[1f32; 12], None).unwrap();
    let (mut sizes, mut x) = (SIZES, vec![1.0; 6]);
    change(&mut sizes, &mut x);
    let (mut ids, mut weights) = (vec![0; 4], vec![0.0; 4]);
    Small::new([1]).cpu.route(&sizes, &router, &x, &mut ids, &mut weights)?;
    Ok((ids, weights))
}

#[test]
fn equal_scores_take_the_lowest_experts_with_equal_weights() {
    assert_eq!(route(|_, _| ()).unwrap(), (vec![0, 1, 0, 1], vec![0.5; 4]));
    let all = route(|s, _| s.weighting = Weighting::SoftmaxAll).unwrap();
    assert_eq!(all, (vec![0, 1, 0, 1], vec![0.25; 4]));
}

#[test]
fn errors_name_operation_argument_expected_and_got() {
    let says = |change: fn(&mut route::Sizes, &mut Vec<f32>)| refuses(route(change));
    assert_eq!(says(|_, x| x[4] = f32::NAN), "route: score[1, 0]: expected a finite value, got NaN");
    assert_eq!(says(|_, x| x[0] = f32::INFINITY), "route: score[0, 0]: expected a finite value, got inf");
    assert_eq!(says(|s, _| s.top_k = 5), "route: top_k: expected at most the router's 4 experts, got 5");
    assert_eq!(says(|s, _| s.experts = 5), "route: router.experts: expected 5, got 4");
    assert_eq!(says(|s, _| s.in_features = 2), "route: router.in_features: expected 2, got 3");
    assert_eq!(says(|s, _| s.x_stride = 2), "route: x_stride: expected at least the row's 3 elements, got 2");
    assert_eq!(says(|s, _| s.top_k = 1), "route: topk_ids: expected 2 elements, got 4");
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
        route::select(weighting, 0, &scores, &mut ids, &mut weights).unwrap();
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
