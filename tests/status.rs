//! What a WebGPU kernel meets and skips shows in the status word, once, and the rest of the batch is right.
#![cfg(feature = "wgpu")]

use molora::adapter::LinearRouter;
use molora::adapter::slots::PoolSizes;
use molora::device::wgpu::{Plan, Pool, Status, View};
use molora::ops::route::{self, Weighting, WgpuRouter};
use molora::ops::{Output, attend, expand, plan, shrink};
use molora::{ElementType, Error, Lora, Wgpu};

const NOTHING: f32 = -7.0;

/// Every adapter that opens; says so where there is none, and fails where `MOLORA_REQUIRE` names one.
fn devices() -> impl Iterator<Item = Wgpu> {
    let subjects = molora_check::subjects().unwrap_or_else(|why| panic!("{why}"));
    if subjects.iter().all(|s| s.kind() != "wgpu") {
        println!("not tested: no WebGPU adapter here");
    }
    Wgpu::adapters().into_iter().filter_map(|adapter| Wgpu::open(&adapter).ok())
}

/// A pool of three adapters of ones, ranks 1, 1 and 2.
fn pool(wgpu: &Wgpu) -> Pool {
    let element = ElementType::F32;
    let sizes = PoolSizes { in_features: 4, out_features: 4, experts: 4, rank_capacity: 8, element };
    let mut pool = Pool::new(wgpu, sizes).unwrap();
    (0..3).for_each(|slot| put(&mut pool, slot));
    pool
}

fn put(pool: &mut Pool, slot: usize) {
    let rank = if slot == 2 { 2 } else { 1 };
    pool.put(slot, &Lora::new(4, 4, rank, 1.0, &vec![1f32; 4 * rank], &vec![1f32; 4 * rank]).unwrap())
        .unwrap();
}

fn planned(wgpu: &Wgpu, pool: &Pool, ids: &[i32]) -> Plan {
    let buffer = wgpu.upload(ids).unwrap();
    let sizes = plan::Sizes { tokens: ids.len(), top_k: 1, experts: 4 };
    let mut encoder = wgpu.encoder();
    let plan = wgpu.plan(&mut encoder, &sizes, pool, View::new(&buffer, 0, ids.len()).unwrap()).unwrap();
    wgpu.queue().submit([encoder.finish()]);
    plan
}

/// Shrinks ones and expands them: 4 * rank for a token with an expert. h and y start as [`NOTHING`] and zeros.
fn delta(wgpu: &Wgpu, pool: &Pool, plan: &Plan, output: Output) -> Vec<f32> {
    let plan::Sizes { tokens, top_k, .. } = *plan.sizes();
    let x = wgpu.upload(&vec![1f32; tokens * 4]).unwrap();
    let weights = wgpu.upload(&vec![1f32; tokens * top_k]).unwrap();
    let h = wgpu.upload(&vec![NOTHING; output.h_rows(tokens, top_k) * 2]).unwrap();
    let y = wgpu.upload(&vec![NOTHING; tokens * 4]).unwrap();
    let shrink = shrink::Sizes { tokens, top_k, in_features: 4, x_stride: 4, h_stride: 2, output };
    let expand =
        expand::Sizes { tokens, top_k, out_features: 4, h_stride: 2, y_stride: 4, output, accumulate: false };
    let weights = View::new(&weights, 0, tokens * top_k).unwrap();
    let mut encoder = wgpu.encoder();
    let h = View::new(&h, 0, output.h_rows(tokens, top_k) * 2).unwrap();
    let y_view = View::<f32>::new(&y, 0, tokens * 4).unwrap();
    wgpu.shrink(&mut encoder, &shrink, plan, pool, View::<f32>::whole(&x), weights, h).unwrap();
    wgpu.expand(&mut encoder, &expand, plan, pool, h, weights, y_view).unwrap();
    wgpu.queue().submit([encoder.finish()]);
    wgpu.download::<f32>(&y, tokens * 4).unwrap().chunks(4).map(|row| row[0]).collect()
}

#[test]
fn ids_that_name_nothing_are_skipped() {
    for wgpu in devices() {
        let pool = pool(&wgpu);
        let plan = planned(&wgpu, &pool, &[0, 4, 2, -2, i32::MAX, i32::MIN, -1, 1]);
        assert_eq!(wgpu.take_status().unwrap(), Status::ID_OUT_OF_RANGE, "{}", wgpu.describe());
        assert!(wgpu.take_status().unwrap().is_ok(), "taken once");
        let y = delta(&wgpu, &pool, &plan, Output::Sum);
        assert_eq!(y, [4.0, 0.0, 8.0, 0.0, 0.0, 0.0, 0.0, 4.0]);
        assert!(wgpu.take_status().unwrap().is_ok());
    }
}

#[test]
fn an_empty_slot_is_skipped() {
    for wgpu in devices() {
        let pool = pool(&wgpu);
        let plan = planned(&wgpu, &pool, &[0, 3, 1]);
        assert_eq!(wgpu.take_status().unwrap(), Status::STALE_SLOT, "{}", wgpu.describe());
        assert_eq!(delta(&wgpu, &pool, &plan, Output::Sum), [4.0, 0.0, 4.0]);
    }
}

#[test]
fn a_plan_does_not_outlive_its_adapters() {
    for wgpu in devices() {
        let mut pool = pool(&wgpu);
        let plan = planned(&wgpu, &pool, &[0, 1, 2]);
        assert_eq!(delta(&wgpu, &pool, &plan, Output::Sum), [4.0, 4.0, 8.0]);
        pool.evict(1).unwrap();
        assert_eq!(delta(&wgpu, &pool, &plan, Output::Sum), [4.0, 0.0, 8.0], "evicted");
        assert_eq!(wgpu.take_status().unwrap(), Status::STALE_SLOT, "{}", wgpu.describe());
        put(&mut pool, 1);
        assert_eq!(delta(&wgpu, &pool, &plan, Output::Sum), [4.0, 0.0, 8.0], "replaced");
        assert_eq!(wgpu.take_status().unwrap(), Status::STALE_SLOT);
        // The order of a token's slots does not matter, nor does the output.
        for ids in [[0, 1, 0], [1, 0, 0]] {
            let plan = planned(&wgpu, &pool, &ids);
            pool.evict(1).unwrap();
            for output in [Output::PerRoute, Output::RankSum] {
                let live: Vec<f32> = ids.iter().map(|&id| if id == 1 { 0.0 } else { 4.0 }).collect();
                assert_eq!(delta(&wgpu, &pool, &plan, output), live, "{output:?}");
                assert_eq!(wgpu.take_status().unwrap(), Status::STALE_SLOT);
            }
            put(&mut pool, 1);
        }
        let fresh = planned(&wgpu, &pool, &[0, 1, 2]);
        assert_eq!(delta(&wgpu, &pool, &fresh, Output::Sum), [4.0, 4.0, 8.0], "planned anew");
        assert!(wgpu.take_status().unwrap().is_ok());
    }
}

#[test]
fn unequal_ranks_give_their_token_no_delta() {
    for wgpu in devices() {
        let pool = pool(&wgpu);
        let buffer = wgpu.upload(&[0, 1, 1, 2]).unwrap();
        let sizes = plan::Sizes { tokens: 2, top_k: 2, experts: 4 };
        let mut encoder = wgpu.encoder();
        let ids = View::new(&buffer, 0, 4).unwrap();
        let plan = wgpu.plan(&mut encoder, &sizes, &pool, ids).unwrap();
        wgpu.queue().submit([encoder.finish()]);
        // h = 4 + 4, y = h + h.
        assert_eq!(delta(&wgpu, &pool, &plan, Output::RankSum), [16.0, 0.0]);
        assert_eq!(wgpu.take_status().unwrap(), Status::UNEQUAL_RANKS, "{}", wgpu.describe());
    }
}

#[test]
fn a_score_that_is_not_finite_selects_nothing() {
    for wgpu in devices() {
        let router = LinearRouter::new(3, 2, &[1f32; 6], None).unwrap();
        let router = WgpuRouter::new(&wgpu, router).unwrap();
        let weighting = Weighting::SoftmaxSelected;
        let sizes = route::Sizes {
            tokens: 3,
            in_features: 2,
            x_stride: 2,
            experts: 3,
            rule: route::Rule::top_k(2, weighting),
        };
        let x = wgpu.upload(&[1f32, 1.0, f32::INFINITY, 0.0, 1.0, f32::NAN]).unwrap();
        let (ids, weights) = (wgpu.upload(&[9i32; 6]).unwrap(), wgpu.upload(&[NOTHING; 6]).unwrap());
        let views = (View::new(&ids, 0, 6).unwrap(), View::new(&weights, 0, 6).unwrap());
        let mut encoder = wgpu.encoder();
        wgpu.route(
            &mut encoder,
            &sizes,
            &router,
            View::<f32>::new(&x, 0, 6).unwrap(),
            None,
            views.0,
            views.1,
        )
        .unwrap();
        wgpu.queue().submit([encoder.finish()]);
        assert_eq!(wgpu.download::<i32>(&ids, 6).unwrap(), [0, 1, -1, -1, -1, -1], "{}", wgpu.describe());
        assert_eq!(wgpu.download::<f32>(&weights, 6).unwrap(), [0.5, 0.5, 0.0, 0.0, 0.0, 0.0]);
        assert_eq!(wgpu.take_status().unwrap(), Status::SCORE_NOT_FINITE);
    }
}

#[test]
fn a_route_that_counts_for_nothing_may_have_an_infinite_h() {
    for wgpu in devices() {
        // One kernel for few rows, and, where the batch may not matter, the one for many.
        for wgpu in [wgpu.clone().batch_invariant(false), wgpu.batch_invariant(true)] {
            let pool = pool(&wgpu);
            let plan = planned(&wgpu, &pool, &[0, 1, 2]);
            let h =
                wgpu.upload(&[4f32, NOTHING, f32::INFINITY, NOTHING, f32::NEG_INFINITY, f32::NAN]).unwrap();
            let weights = wgpu.upload(&[1f32, f32::NAN, f32::INFINITY]).unwrap();
            let y = wgpu.upload(&[1f32; 12]).unwrap();
            let sizes = expand::Sizes {
                tokens: 3,
                top_k: 1,
                out_features: 4,
                h_stride: 2,
                y_stride: 4,
                output: Output::Sum,
                accumulate: true,
            };
            let (h, weights) = (View::new(&h, 0, 6).unwrap(), View::new(&weights, 0, 3).unwrap());
            let mut encoder = wgpu.encoder();
            let y_view = View::<f32>::new(&y, 0, 12).unwrap();
            wgpu.expand(&mut encoder, &sizes, &plan, &pool, h, weights, y_view).unwrap();
            wgpu.queue().submit([encoder.finish()]);
            let y = wgpu.download::<f32>(&y, 12).unwrap();
            assert_eq!(y, [[5f32; 4], [1.0; 4], [1.0; 4]].concat(), "{}", wgpu.describe());
            assert_eq!(wgpu.take_status().unwrap(), Status::WEIGHT_NOT_FINITE);
        }
    }
}

#[test]
fn errors_name_operation_argument_expected_and_got() {
    for wgpu in devices() {
        let pool = pool(&wgpu);
        let plan = planned(&wgpu, &pool, &[0, 1]);
        let (x, h) = (wgpu.upload(&[0f32; 8]).unwrap(), wgpu.upload(&[0f32; 4]).unwrap());
        let output = Output::Sum;
        let sizes = shrink::Sizes { tokens: 2, top_k: 1, in_features: 4, x_stride: 4, h_stride: 2, output };
        let mut encoder = wgpu.encoder();
        let weights = View::new(&h, 0, 2).unwrap();
        let short = View::<f32>::new(&x, 0, 7).unwrap();
        let refused = wgpu.shrink(&mut encoder, &sizes, &plan, &pool, short, weights, View::whole(&h));
        assert_eq!(
            refused.unwrap_err().to_string(),
            "shrink: x: expected at least 8 elements (2 rows of 4, stride 4), got 7"
        );
        let odd = shrink::Sizes { x_stride: 5, ..sizes };
        let halves = View::<half::f16>::whole(&x);
        let refused = wgpu.shrink(&mut encoder, &odd, &plan, &pool, halves, weights, View::whole(&h));
        assert_eq!(
            refused.unwrap_err().to_string(),
            "shrink: x_stride: expected an even stride for packed f16 rows, got 5"
        );
        let past: Result<View<'_, f32>, Error> = View::new(&x, 1, 8);
        assert_eq!(
            past.unwrap_err().to_string(),
            "view: first + len: expected within the buffer's 32 bytes, got (1 + 8) * 4 bytes"
        );
        let odd = View::<half::f16>::new(&x, 1, 2).unwrap_err().to_string();
        assert_eq!(odd, "view: first: expected an even element for packed 16-bit elements, got 1");
    }
}

/// Scores of 0.25 a rank. An evicted adapter's route counts for nothing, and a score that is not finite empties its token.
#[test]
fn attention_is_over_what_is_left() {
    for wgpu in devices() {
        let element = ElementType::F32;
        let sizes = PoolSizes { in_features: 4, out_features: 4, experts: 4, rank_capacity: 8, element };
        let mut pool = Pool::new(&wgpu, sizes).unwrap();
        pool.set_attention(&Lora::new(4, 4, 1, 9.0, &[1f32; 4], &[1f32; 4]).unwrap()).unwrap();
        (0..3).for_each(|slot| put(&mut pool, slot));
        let ids = wgpu.upload(&[0, 1, 1, -1, 2, 0, 0, 2]).unwrap();
        let (sizes, mut encoder) = (plan::Sizes { tokens: 4, top_k: 2, experts: 4 }, wgpu.encoder());
        let plan = wgpu.plan(&mut encoder, &sizes, &pool, View::whole(&ids)).unwrap();
        wgpu.queue().submit([encoder.finish()]);
        pool.evict(1).unwrap();
        let mut h = [1f32 / 64.0; 16];
        h[12] = f32::INFINITY;
        let (x, h) = (wgpu.upload(&[1f32; 16]).unwrap(), wgpu.upload(&h).unwrap());
        let weights = wgpu.upload(&[f32::NAN; 8]).unwrap();
        let sizes = attend::Sizes { tokens: 4, top_k: 2, in_features: 4, x_stride: 4, h_stride: 2 };
        let (x, mut encoder) = (View::<f32>::whole(&x), wgpu.encoder());
        let views = (View::whole(&h), View::whole(&weights));
        wgpu.attend(&mut encoder, &sizes, &plan, &pool, x, views.0, views.1).unwrap();
        wgpu.queue().submit([encoder.finish()]);
        let got: Vec<f32> = wgpu.download(&weights, 8).unwrap();
        let two = 1.0 / (1.0 + (-0.25f32).exp());
        let want = [1.0, 0.0, 0.0, 0.0, two, 1.0 - two, 0.0, 0.0];
        assert!(got.iter().zip(want).all(|(a, b)| (a - b).abs() < 1e-6), "{}: {got:?}", wgpu.describe());
        assert_eq!(wgpu.take_status().unwrap(), Status::STALE_SLOT | Status::SCORE_NOT_FINITE);
    }
}
