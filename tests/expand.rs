//! Expand on every device: `y_t (+)= sum w_n scaling_{p(n)} B_{p(n)} h_n`, or a row per route.

mod common;

use common::{Small, refuses};
use molora::ops::{Output, expand};
use molora_check::{Op, check_all};

#[test]
fn every_case_on_every_device() {
    check_all(Op::Expand);
}

const SIZES: expand::Sizes = expand::Sizes {
    tokens: 2,
    top_k: 2,
    out_features: 7,
    h_stride: 3,
    y_stride: 7,
    output: Output::Sum,
    accumulate: false,
};

/// Calls expand with one thing changed.
fn expand(change: impl FnOnce(&mut expand::Sizes, &mut Vec<f32>, &mut Vec<f32>, &mut Vec<f32>)) -> String {
    let small = Small::new([2, 2, 3]);
    let (mut sizes, plan) = (SIZES, small.plan(&[0, 1, 1, -1]));
    let (mut h, mut weights, mut y) = (vec![1.0; 12], vec![0.5; 4], vec![0.0; 14]);
    change(&mut sizes, &mut h, &mut weights, &mut y);
    refuses(small.cpu.expand(&sizes, &plan, &small.pool, &h, &weights, &mut y))
}

#[test]
fn errors_name_operation_argument_expected_and_got() {
    assert_eq!(
        expand(|_, h, _, _| h.truncate(11)),
        "expand: h: expected at least 12 elements (4 rows of 3, stride 3), got 11"
    );
    assert_eq!(
        expand(|s, _, _, _| s.h_stride = 2),
        "expand: h_stride: expected at least the row's 3 elements, got 2"
    );
    assert_eq!(
        expand(|s, _, _, _| s.y_stride = 6),
        "expand: y_stride: expected at least the row's 7 elements, got 6"
    );
    assert_eq!(
        expand(|_, _, _, y| y.truncate(13)),
        "expand: y: expected at least 14 elements (2 rows of 7, stride 7), got 13"
    );
    assert_eq!(
        expand(|s, _, _, _| s.output = Output::PerRoute),
        "expand: y: expected at least 28 elements (4 rows of 7, stride 7), got 14"
    );
    assert_eq!(
        expand(|_, _, w, _| w[1] = f32::NAN),
        "expand: topk_weights[0, 1]: expected a finite weight, got NaN"
    );
    assert_eq!(expand(|_, _, w, _| w.truncate(3)), "expand: topk_weights: expected 4 elements, got 3");
    assert_eq!(expand(|s, _, _, _| s.out_features = 6), "expand: out_features: expected 7, got 6");
    assert_eq!(expand(|s, _, _, _| s.tokens = 3), "expand: plan.tokens: expected 3, got 2");
    assert_eq!(expand(|s, _, _, _| s.top_k = 1), "expand: plan.top_k: expected 1, got 2");
}

#[test]
fn a_plan_does_not_outlive_its_adapters() {
    let mut small = Small::new([2, 2, 3]);
    let plan = small.plan(&[0, 1, 1, -1]);
    let call =
        |small: &Small| small.cpu.expand(&SIZES, &plan, &small.pool, &[1.0; 12], &[0.5; 4], &mut [0f32; 14]);
    call(&small).expect("all adapters are there");
    small.pool.evict(0).unwrap();
    let stale = "expand: slot 0: expected the adapter that was there when the plan was made, got one evicted or \
                 replaced since";
    assert_eq!(refuses(call(&small)), stale);
    small.put(0, 2);
    assert_eq!(refuses(call(&small)), stale);
    let fresh = small.plan(&[0, 1, 1, -1]);
    small
        .cpu
        .expand(&SIZES, &fresh, &small.pool, &[1.0; 12], &[0.5; 4], &mut [0f32; 14])
        .expect("a new plan");
}
