//! Shrink on every device: `h_n = A_{p(n)} x_{t(n)}`.

mod common;

use common::{Small, refuses};
use molora::ops::{Output, shrink};
use molora_check::{Op, check_all};

#[test]
fn every_case_on_every_device() {
    check_all(Op::Shrink);
}

/// Calls shrink with one thing changed.
fn shrink(change: impl FnOnce(&mut shrink::Sizes, &mut Vec<f32>, &mut Vec<f32>, &mut Vec<f32>)) -> String {
    let small = Small::new([2, 2, 3]);
    let plan = small.plan(&[0, 1, 1, -1]);
    let mut sizes =
        shrink::Sizes { tokens: 2, top_k: 2, in_features: 5, x_stride: 5, h_stride: 3, output: Output::Sum };
    let (mut x, mut weights, mut h) = (vec![1.0; 10], vec![0.5; 4], vec![0.0; 12]);
    change(&mut sizes, &mut x, &mut weights, &mut h);
    refuses(small.cpu.shrink(&sizes, &plan, &small.pool, &x, &weights, &mut h))
}

#[test]
fn errors_name_operation_argument_expected_and_got() {
    assert_eq!(
        shrink(|_, x, _, _| x.truncate(9)),
        "shrink: x: expected at least 10 elements (2 rows of 5, stride 5), got 9"
    );
    assert_eq!(
        shrink(|s, _, _, _| s.x_stride = 4),
        "shrink: x_stride: expected at least the row's 5 elements, got 4"
    );
    assert_eq!(
        shrink(|s, _, _, _| s.h_stride = 2),
        "shrink: h_stride: expected at least the row's 3 elements, got 2"
    );
    assert_eq!(
        shrink(|_, _, _, h| h.truncate(11)),
        "shrink: h: expected at least 12 elements (4 rows of 3, stride 3), got 11"
    );
    assert_eq!(shrink(|_, _, w, _| w.push(1.0)), "shrink: topk_weights: expected 4 elements, got 5");
    assert_eq!(shrink(|s, _, _, _| s.in_features = 4), "shrink: in_features: expected 5, got 4");
    assert_eq!(shrink(|s, _, _, _| s.tokens = 3), "shrink: plan.tokens: expected 3, got 2");
    assert_eq!(shrink(|s, _, _, _| s.top_k = 1), "shrink: plan.top_k: expected 1, got 2");
}

#[test]
fn rank_sum_refuses_unequal_ranks_within_a_token() {
    let small = Small::new([2, 2, 3]);
    let sizes = shrink::Sizes {
        tokens: 2,
        top_k: 2,
        in_features: 5,
        x_stride: 5,
        h_stride: 3,
        output: Output::RankSum,
    };
    let call = |ids: &[i32]| {
        let (x, weights, mut h) = (vec![1.0f32; 10], vec![0.5; 4], vec![0.0; 6]);
        small.cpu.shrink(&sizes, &small.plan(ids), &small.pool, &x, &weights, &mut h)
    };
    assert_eq!(
        refuses(call(&[0, 1, 1, 2])),
        "shrink: topk_ids[1]: expected experts of one rank for rank_sum (2), got 3"
    );
    // Two ranks in one pool, or a gap between, are fine.
    call(&[0, 1, 2, -1]).expect("one rank within each token");
    call(&[-1, -1, -1, 2]).expect("one route");
}

#[test]
fn a_plan_does_not_outlive_its_adapters() {
    let mut small = Small::new([2, 2, 3]);
    let plan = small.plan(&[0, 1, 1, -1]);
    let sizes =
        shrink::Sizes { tokens: 2, top_k: 2, in_features: 5, x_stride: 5, h_stride: 3, output: Output::Sum };
    let call = |small: &Small| {
        small.cpu.shrink(&sizes, &plan, &small.pool, &[1.0f32; 10], &[0.5; 4], &mut [0.0; 12])
    };
    call(&small).expect("all adapters are there");
    small.pool.evict(2).unwrap();
    call(&small).expect("slot 2 has no route");
    small.pool.evict(1).unwrap();
    let stale = "shrink: slot 1: expected the adapter that was there when the plan was made, got one evicted or \
                 replaced since";
    assert_eq!(refuses(call(&small)), stale);
    small.put(1, 2);
    assert_eq!(refuses(call(&small)), stale);
}
