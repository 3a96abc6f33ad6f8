//! What a CUDA kernel meets and skips shows in the status word, once, and the rest of the batch is right.
#![cfg(feature = "cuda")]

mod common;

use common::cuda::device;
use half::{bf16, f16};
use molora::adapter::LinearRouter;
use molora::adapter::slots::PoolSizes;
use molora::device::cuda::{Plan, Pool, Status, View, ViewMut};
use molora::ops::route::{self, CudaRouter, Weighting};
use molora::ops::{Output, attend, expand, plan, shrink};
use molora::{Cuda, Element, ElementType, Lora};

const NOTHING: f32 = -7.0;

/// A pool of three adapters of ones, ranks 1, 1 and 2.
fn pool(cuda: &Cuda) -> Pool {
    let element = ElementType::F32;
    let sizes = PoolSizes { in_features: 4, out_features: 4, experts: 4, rank_capacity: 8, element };
    let mut pool = Pool::new(cuda, sizes).unwrap();
    (0..3).for_each(|slot| put(&mut pool, slot, if slot == 2 { 2 } else { 1 }));
    pool
}

fn put(pool: &mut Pool, slot: usize, rank: usize) {
    pool.put(slot, &Lora::new(4, 4, rank, 1.0, &vec![1f32; 4 * rank], &vec![1f32; 4 * rank]).unwrap())
        .unwrap();
}

fn planned(cuda: &Cuda, pool: &Pool, ids: &[i32], top_k: usize) -> Plan {
    let slice = cuda.upload(ids).unwrap();
    let sizes = plan::Sizes { tokens: ids.len() / top_k, top_k, experts: 4 };
    cuda.plan(&sizes, pool, &View::whole(cuda, &slice).unwrap(), None).unwrap()
}

/// Shrinks ones and expands them: 4 * rank for a token with an expert. h and y start as [`NOTHING`].
fn delta(cuda: &Cuda, pool: &Pool, plan: &Plan, output: Output, weights: &[f32]) -> Vec<f32> {
    let plan::Sizes { tokens, top_k, .. } = *plan.sizes();
    let x = cuda.upload(&vec![1f32; tokens * 4]).unwrap();
    let weights = cuda.upload(weights).unwrap();
    let mut scratch = cuda.upload(&vec![NOTHING; tokens * top_k * 2]).unwrap();
    let mut h = cuda.upload(&vec![NOTHING; output.h_rows(tokens, top_k) * 2]).unwrap();
    let mut y = cuda.upload(&vec![NOTHING; output.y_rows(tokens, top_k) * 4]).unwrap();
    {
        let (x, weights) = (View::whole(cuda, &x).unwrap(), View::whole(cuda, &weights).unwrap());
        let mut h = ViewMut::whole(cuda, &mut h).unwrap();
        let mut scratch = ViewMut::whole(cuda, &mut scratch).unwrap();
        let mut y = ViewMut::<f32>::whole(cuda, &mut y).unwrap();
        let sizes = shrink::Sizes { tokens, top_k, in_features: 4, x_stride: 4, h_stride: 2, output };
        cuda.shrink::<f32>(&sizes, plan, pool, &x, &weights, Some(&mut scratch), &mut h).unwrap();
        let (out_features, h_stride, y_stride, accumulate) = (4, 2, 4, false);
        let sizes = expand::Sizes { tokens, top_k, out_features, h_stride, y_stride, output, accumulate };
        cuda.expand(&sizes, plan, pool, &h.as_view(), &weights, &mut y).unwrap();
    }
    let y = cuda.download::<f32>(&y, output.y_rows(tokens, top_k) * 4).unwrap();
    y.chunks(4).map(|row| row[0]).collect()
}

fn sum(cuda: &Cuda, pool: &Pool, plan: &Plan) -> Vec<f32> {
    delta(cuda, pool, plan, Output::Sum, &vec![1.0; plan.sizes().routes()])
}

#[test]
fn ids_that_name_nothing_are_skipped() {
    let Some(cuda) = device() else { return };
    let pool = pool(&cuda);
    let plan = planned(&cuda, &pool, &[0, 4, 2, -2, i32::MAX, i32::MIN, -1, 1], 1);
    assert_eq!(cuda.take_status().unwrap(), Status::ID_OUT_OF_RANGE);
    assert!(cuda.take_status().unwrap().is_ok(), "taken once");
    assert_eq!(sum(&cuda, &pool, &plan), [4.0, 0.0, 8.0, 0.0, 0.0, 0.0, 0.0, 4.0]);
    assert!(cuda.take_status().unwrap().is_ok());
}

#[test]
fn an_empty_slot_is_skipped() {
    let Some(cuda) = device() else { return };
    let pool = pool(&cuda);
    let plan = planned(&cuda, &pool, &[0, 3, 1], 1);
    assert_eq!(cuda.take_status().unwrap(), Status::STALE_SLOT);
    assert_eq!(sum(&cuda, &pool, &plan), [4.0, 0.0, 4.0]);
}

#[test]
fn a_plan_does_not_outlive_its_adapters() {
    let Some(cuda) = device() else { return };
    let mut pool = pool(&cuda);
    for cuda in [cuda.clone(), cuda.batch_invariant(true)] {
        let plan = planned(&cuda, &pool, &[0, 1, 2], 1);
        assert_eq!(sum(&cuda, &pool, &plan), [4.0, 4.0, 8.0]);
        pool.evict(1).unwrap();
        assert_eq!(sum(&cuda, &pool, &plan), [4.0, 0.0, 8.0], "evicted");
        assert_eq!(cuda.take_status().unwrap(), Status::STALE_SLOT);
        put(&mut pool, 1, 1);
        assert_eq!(sum(&cuda, &pool, &plan), [4.0, 0.0, 8.0], "replaced");
        assert_eq!(cuda.take_status().unwrap(), Status::STALE_SLOT);
        // The order of a token's slots does not matter, nor does the output.
        for ids in [[0, 1, 0], [1, 0, 0]] {
            let plan = planned(&cuda, &pool, &ids, 1);
            pool.evict(1).unwrap();
            for output in [Output::PerRoute, Output::RankSum] {
                let live: Vec<f32> = ids.iter().map(|&id| if id == 1 { 0.0 } else { 4.0 }).collect();
                assert_eq!(delta(&cuda, &pool, &plan, output, &[1.0; 3]), live, "{output:?}");
                assert_eq!(cuda.take_status().unwrap(), Status::STALE_SLOT);
            }
            put(&mut pool, 1, 1);
        }
        let fresh = planned(&cuda, &pool, &[0, 1, 2], 1);
        assert_eq!(sum(&cuda, &pool, &fresh), [4.0, 4.0, 8.0], "planned anew");
        assert!(cuda.take_status().unwrap().is_ok());
    }
}

#[test]
fn unequal_ranks_give_their_token_no_delta() {
    let Some(cuda) = device() else { return };
    let pool = pool(&cuda);
    let plan = planned(&cuda, &pool, &[0, 1, 1, 2], 2);
    // h = 4 + 4, y = h + h.
    assert_eq!(delta(&cuda, &pool, &plan, Output::RankSum, &[1.0; 4]), [16.0, 0.0]);
    assert_eq!(cuda.take_status().unwrap(), Status::UNEQUAL_RANKS);
}

#[test]
fn weights_that_are_not_finite_count_for_nothing() {
    let Some(cuda) = device() else { return };
    let pool = pool(&cuda);
    for cuda in [cuda.clone(), cuda.batch_invariant(true)] {
        for (ids, wrong) in [([0, 1, 2], f32::NAN), ([2, 0, 1], f32::INFINITY)] {
            let plan = planned(&cuda, &pool, &ids, 1);
            let y = delta(&cuda, &pool, &plan, Output::Sum, &[1.0, wrong, 1.0]);
            assert_eq!(y, [ids[0], 7, ids[2]].map(|id| [4.0, 4.0, 8.0, 0.0][(id as usize).min(3)]));
            assert_eq!(cuda.take_status().unwrap(), Status::WEIGHT_NOT_FINITE);
        }
    }
}

#[test]
fn a_score_that_is_not_finite_selects_nothing() {
    let Some(cuda) = device() else { return };
    let router = LinearRouter::new(3, 2, &[1f32; 6], None).unwrap();
    let router = CudaRouter::new(&cuda, router).unwrap();
    let weighting = Weighting::SoftmaxSelected;
    let sizes = route::Sizes {
        tokens: 3,
        in_features: 2,
        x_stride: 2,
        experts: 3,
        rule: route::Rule::top_k(2, weighting),
    };
    let x = cuda.upload(&[1f32, 1.0, f32::INFINITY, 0.0, 1.0, f32::NAN]).unwrap();
    let (mut ids, mut weights) = (cuda.upload(&[9i32; 6]).unwrap(), cuda.upload(&[NOTHING; 6]).unwrap());
    {
        let x = View::<f32>::whole(&cuda, &x).unwrap();
        let mut ids = ViewMut::whole(&cuda, &mut ids).unwrap();
        let mut weights = ViewMut::whole(&cuda, &mut weights).unwrap();
        cuda.route(&sizes, &router, &x, None, None, &mut ids, &mut weights).unwrap();
    }
    assert_eq!(cuda.download::<i32>(&ids, 6).unwrap(), [0, 1, -1, -1, -1, -1]);
    assert_eq!(cuda.download::<f32>(&weights, 6).unwrap(), [0.5, 0.5, 0.0, 0.0, 0.0, 0.0]);
    assert_eq!(cuda.take_status().unwrap(), Status::SCORE_NOT_FINITE);
}

#[test]
fn a_handle_may_have_a_word_of_its_own() {
    let Some(cuda) = device() else { return };
    let (pool, own) = (pool(&cuda), cuda.with_own_status().unwrap());
    planned(&own, &pool, &[3], 1);
    planned(&cuda.clone(), &pool, &[4], 1);
    assert_eq!(own.take_status().unwrap(), Status::STALE_SLOT);
    assert_eq!(cuda.take_status().unwrap(), Status::ID_OUT_OF_RANGE, "clones share a word");
    let both = (Status::STALE_SLOT | Status::RANK_TOO_LARGE).to_string();
    assert_eq!(both, "stale slot, rank too large");
}

#[test]
fn errors_name_operation_argument_expected_and_got() {
    let Some(cuda) = device() else { return };
    let pool = pool(&cuda);
    let plan = planned(&cuda, &pool, &[0, 1], 1);
    let (x, mut h) = (cuda.upload(&[0f32; 8]).unwrap(), cuda.upload(&[0f32; 4]).unwrap());
    let (weights, many) = (cuda.upload(&[0f32; 2]).unwrap(), cuda.upload(&[0u32; 2]).unwrap());
    let (weights, many) = (View::whole(&cuda, &weights).unwrap(), View::whole(&cuda, &many).unwrap());
    let mut h = ViewMut::whole(&cuda, &mut h).unwrap();
    let output = Output::Sum;
    let sizes = shrink::Sizes { tokens: 2, top_k: 1, in_features: 4, x_stride: 4, h_stride: 2, output };
    let short = View::<f32>::new(&cuda, x.slice(..7)).unwrap();
    let refused = cuda.shrink(&sizes, &plan, &pool, &short, &weights, None, &mut h);
    assert_eq!(
        refused.unwrap_err().to_string(),
        "shrink: x: expected at least 8 elements (2 rows of 4, stride 4), got 7"
    );
    let x = View::<f32>::whole(&cuda, &x).unwrap();
    let narrow = shrink::Sizes { output: Output::RankSum, ..sizes };
    let refused = cuda.shrink(&narrow, &plan, &pool, &x, &weights, None, &mut h);
    assert_eq!(refused.unwrap_err().to_string(), "shrink: scratch: expected at least 4 elements, got 0");
    let ids = cuda.upload(&[0i32; 513]).unwrap();
    let ids = View::whole(&cuda, &ids).unwrap();
    let wide = plan::Sizes { tokens: 1, top_k: 513, experts: 4 };
    let refused = cuda.plan(&wide, &pool, &ids, None).unwrap_err().to_string();
    assert_eq!(refused, "plan: top_k: expected at most 512 on CUDA, got 513");
    let all = plan::Sizes { tokens: 513, top_k: 1, experts: 4 };
    let refused = cuda.plan(&all, &pool, &ids, Some(&many)).unwrap_err().to_string();
    assert_eq!(refused, "plan: live_tokens: expected 1 elements, got 2");
    let refused = cuda.plan_into(&all, &pool, &ids, None, &mut planned(&cuda, &pool, &[0], 1)).unwrap_err();
    assert_eq!(
        refused.to_string(),
        format!("plan: plan: expected a plan's memory of at least {} bytes, got {}", Plan::bytes(&all), {
            Plan::bytes(&plan::Sizes { tokens: 1, ..all })
        })
    );
}

/// 0 times an infinite product is NaN: such a route is left out.
#[test]
fn a_route_that_counts_for_nothing_may_have_an_infinite_h() {
    let Some(cuda) = device() else { return };
    infinite_h_beside_a_wrong_weight::<f32>(&cuda);
    // On tensor cores where one form is asked for.
    infinite_h_beside_a_wrong_weight::<f16>(&cuda);
    infinite_h_beside_a_wrong_weight::<bf16>(&cuda);
}

fn infinite_h_beside_a_wrong_weight<E: Element>(cuda: &Cuda) {
    let sizes = PoolSizes { in_features: 4, out_features: 4, experts: 4, rank_capacity: 8, element: E::TYPE };
    let mut pool = Pool::new(cuda, sizes).unwrap();
    let ones = [E::from_f32(1.0); 4];
    (0..2).for_each(|slot| pool.put(slot, &Lora::new(4, 4, 1, 1.0, &ones, &ones).unwrap()).unwrap());
    for cuda in [cuda.clone(), cuda.batch_invariant(true)] {
        for wrong in [f32::NAN, f32::INFINITY] {
            let plan = planned(&cuda, &pool, &[0, 1, 0], 1);
            let h = cuda.upload(&[1f32, 0.0, f32::INFINITY, 0.0, 1.0, 0.0]).unwrap();
            let weights = cuda.upload(&[1.0, wrong, 1.0]).unwrap();
            let mut y = cuda.upload(&[E::from_f32(NOTHING); 12]).unwrap();
            let sizes = expand::Sizes {
                tokens: 3,
                top_k: 1,
                out_features: 4,
                h_stride: 2,
                y_stride: 4,
                output: Output::Sum,
                accumulate: false,
            };
            {
                let h = View::whole(&cuda, &h).unwrap();
                let weights = View::whole(&cuda, &weights).unwrap();
                let mut y = ViewMut::<E>::whole(&cuda, &mut y).unwrap();
                cuda.expand(&sizes, &plan, &pool, &h, &weights, &mut y).unwrap();
            }
            let want = [[1f32; 4], [0.0; 4], [1.0; 4]].concat();
            let got: Vec<f32> = cuda.download::<E>(&y, 12).unwrap().iter().map(|v| v.to_f32()).collect();
            assert_eq!(got, want);
            assert_eq!(cuda.take_status().unwrap(), Status::WEIGHT_NOT_FINITE);
        }
    }
}

#[test]
fn scores_far_below_zero_have_shares_of_all() {
    let Some(cuda) = device() else { return };
    let router = LinearRouter::new(4, 2, &[0f32; 8], Some(&[-200.0; 4])).unwrap();
    let router = CudaRouter::new(&cuda, router).unwrap();
    let weighting = Weighting::SoftmaxAll;
    let sizes = route::Sizes {
        tokens: 1,
        in_features: 2,
        x_stride: 2,
        experts: 4,
        rule: route::Rule::top_k(2, weighting),
    };
    let x = cuda.upload(&[1f32, 1.0]).unwrap();
    let (mut ids, mut weights) = (cuda.upload(&[9i32; 2]).unwrap(), cuda.upload(&[NOTHING; 2]).unwrap());
    {
        let x = View::<f32>::whole(&cuda, &x).unwrap();
        let mut ids = ViewMut::whole(&cuda, &mut ids).unwrap();
        let mut weights = ViewMut::whole(&cuda, &mut weights).unwrap();
        cuda.route(&sizes, &router, &x, None, None, &mut ids, &mut weights).unwrap();
    }
    assert_eq!(cuda.download::<f32>(&weights, 2).unwrap(), [0.25; 2]);
    assert!(cuda.take_status().unwrap().is_ok());
}

/// As a replayed graph of shrink and expand may meet it: the memory was planned for other sizes since, or never.
#[test]
fn a_plan_of_other_sizes_is_not_read() {
    let Some(cuda) = device() else { return };
    let pool = pool(&cuda);
    let words = cuda.upload(&[0u32; 256]).unwrap();
    let view = View::whole(&cuda, &words).unwrap();
    // SAFETY: the words outlive both plans, whose work is over at each status.
    let [mut plan, mut other] = [(); 2].map(|()| unsafe { Plan::from_raw(view.address(), view.len()) });
    let ids = cuda.upload(&[0, 1, 2]).unwrap();
    let make = |plan: &mut Plan, tokens: usize| {
        let sizes = plan::Sizes { tokens, top_k: 1, experts: 4 };
        let ids = View::new(&cuda, ids.slice(..tokens)).unwrap();
        cuda.plan_into(&sizes, &pool, &ids, None, plan).unwrap();
    };
    for cuda in [cuda.clone(), cuda.batch_invariant(true)] {
        for output in Output::ALL {
            make(&mut plan, 3);
            assert_eq!(delta(&cuda, &pool, &plan, output, &[1.0; 3]), [4.0, 4.0, 8.0]);
            make(&mut other, 2);
            assert_eq!(delta(&cuda, &pool, &plan, output, &[1.0; 3]), [NOTHING; 3], "{output:?}");
            assert_eq!(cuda.take_status().unwrap(), Status::STALE_PLAN);
        }
    }
}

/// Scores of 0.25 a rank. An evicted adapter's route counts for nothing, a score that is not finite empties its token, and
/// tokens that are not live keep what they held.
#[test]
fn attention_is_over_what_is_left() {
    let Some(cuda) = device() else { return };
    let element = ElementType::F32;
    let sizes = PoolSizes { in_features: 4, out_features: 4, experts: 4, rank_capacity: 8, element };
    let mut pool = Pool::new(&cuda, sizes).unwrap();
    pool.set_attention(&Lora::new(4, 4, 1, 9.0, &[1f32; 4], &[1f32; 4]).unwrap()).unwrap();
    (0..3).for_each(|slot| put(&mut pool, slot, if slot == 2 { 2 } else { 1 }));
    let (ids, live) = (cuda.upload(&[0, 1, 1, -1, 2, 0, 0, 2, 0, 2]).unwrap(), cuda.upload(&[4u32]).unwrap());
    let sizes = plan::Sizes { tokens: 5, top_k: 2, experts: 4 };
    let live = View::whole(&cuda, &live).unwrap();
    let plan = cuda.plan(&sizes, &pool, &View::whole(&cuda, &ids).unwrap(), Some(&live)).unwrap();
    pool.evict(1).unwrap();
    let mut h = [1f32 / 64.0; 20];
    h[12] = f32::INFINITY;
    let (x, h) = (cuda.upload(&[1f32; 20]).unwrap(), cuda.upload(&h).unwrap());
    let attend = |pool: &Pool, plan: &Plan| {
        let mut weights = cuda.upload(&[NOTHING; 10]).unwrap();
        {
            let sizes = attend::Sizes { tokens: 5, top_k: 2, in_features: 4, x_stride: 4, h_stride: 2 };
            let (x, h) = (View::whole(&cuda, &x).unwrap(), View::whole(&cuda, &h).unwrap());
            let mut weights = ViewMut::whole(&cuda, &mut weights).unwrap();
            cuda.attend::<f32>(&sizes, plan, pool, &x, &h, &mut weights).unwrap();
        }
        cuda.download::<f32>(&weights, 10).unwrap()
    };
    let two = 1.0 / (1.0 + (-0.25f32).exp());
    let want = [1.0, 0.0, 0.0, 0.0, two, 1.0 - two, 0.0, 0.0, NOTHING, NOTHING];
    let got = attend(&pool, &plan);
    assert!(got.iter().zip(want).all(|(a, b)| (a - b).abs() < 1e-6), "{got:?}");
    assert_eq!(cuda.take_status().unwrap(), Status::STALE_SLOT | Status::SCORE_NOT_FINITE);
}
