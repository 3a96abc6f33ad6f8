//! Plan on every device: a stable counting sort of the live routes by expert.

mod common;

use common::{Small, refuses};
use molora::ops::plan;
use molora_check::{Op, check_all};

#[test]
fn every_case_on_every_device() {
    check_all(Op::Plan);
}

#[test]
fn routes_are_grouped_by_expert_and_ascend_within_one() {
    let plan = Small::new([1, 1, 1, 1]).plan(&[2, 0, -1, 2, 2, 2, 3, -1]);
    assert_eq!(plan.sorted_routes(), [1, 0, 3, 4, 5, 6]);
    assert_eq!(plan.expert_offsets(), [0, 1, 1, 5, 6]);
    assert_eq!((plan.routes_of(1), plan.routes_of(3)), (&[][..], &[6][..]));
}

#[test]
fn errors_name_operation_argument_expected_and_got() {
    let small = Small::new([2, 2, 0]);
    let plan = |ids: &[i32]| refuses(small.try_plan(ids));
    assert_eq!(plan(&[0, 3]), "plan: topk_ids[0, 1]: expected -1 or an id below 3, got 3");
    assert_eq!(plan(&[0, 1, -2, 0]), "plan: topk_ids[1, 0]: expected -1 or an id below 3, got -2");
    assert_eq!(
        plan(&[i32::MAX, i32::MIN]),
        "plan: topk_ids[0, 0]: expected -1 or an id below 3, got 2147483647"
    );
    assert_eq!(plan(&[0, 2]), "plan: topk_ids[0, 1]: expected the id of a slot that holds an adapter, got 2");
    let sized = |tokens, top_k, experts, ids: &[i32]| {
        refuses(small.cpu.plan(&plan::Sizes { tokens, top_k, experts }, &small.pool, ids))
    };
    assert_eq!(sized(1, 2, 3, &[0]), "plan: topk_ids: expected 2 elements, got 1");
    assert_eq!(sized(1, 2, 4, &[0, 1]), "plan: experts: expected 3, got 4");
    assert_eq!(
        sized(1 << 40, 1 << 40, 3, &[]),
        "plan: tokens * top_k: expected fewer than 2^31 routes, got 1099511627776 * 1099511627776"
    );
    let definition = plan::definition(&plan::Sizes { tokens: 0, top_k: 1, experts: 65_537 }, &[], 0);
    assert_eq!(refuses(definition), "plan: experts: expected at most 65536, got 65537");
}
