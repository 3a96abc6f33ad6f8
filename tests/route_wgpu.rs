//! Route on WebGPU: both forms, what they may write, and what they do with scores that are not finite behind a mask.
#![cfg(feature = "wgpu")]

use molora::Wgpu;
use molora::adapter::LinearRouter;
use molora::device::wgpu::{Status, Tuning, View};
use molora::ops::route::{self, Allow, AllowLists, Rule, Select, Weighting, WgpuRouter};
use molora_check::case::{Scores, Scoring, Threshold};
use molora_check::subject::WgpuSubject;
use molora_check::{Case, Op, Outcome, check};

const EXPERTS: usize = 40;

/// Every adapter that opens, once for each form and each shape of a thread's sums.
fn devices() -> Vec<Wgpu> {
    let subjects = molora_check::subjects().unwrap_or_else(|why| panic!("{why}"));
    if subjects.iter().all(|s| s.kind() != "wgpu") {
        println!("not tested: no WebGPU adapter here");
    }
    let all = Wgpu::adapters().into_iter().filter_map(|adapter| Wgpu::open(&adapter).ok());
    let ways = |wgpu: Wgpu| {
        [(false, true), (true, true), (true, false)]
            .map(|(fixed, wide)| (fixed, Tuning { wide_tiles: wide, ..*wgpu.tuning() }))
            .map(|(fixed, tuning)| wgpu.batch_invariant(fixed).tuned(tuning).unwrap())
    };
    all.flat_map(ways).collect()
}

#[test]
fn both_forms_and_both_shapes_of_tiles() {
    let all_at_once =
        Scoring { scores: Scores::Prototypes, threshold: Threshold::Learned, masked: true, shared: 1 };
    let case = |tokens: usize, experts: usize, top_k: usize| Case {
        tokens,
        experts,
        top_k,
        in_features: 37,
        weighting: Weighting::SoftmaxAll,
        ..Case::new(Op::Route)
    };
    for wgpu in devices() {
        let subject = WgpuSubject::new(wgpu);
        for (tokens, experts, top_k) in [(1, 33, 2), (5, 64, 3), (17, 65, 32), (7, 300, 8)] {
            for scoring in [Scoring::default(), all_at_once] {
                let case = Case { scoring, ..case(tokens, experts, top_k) };
                match check(&subject, &case) {
                    Outcome::Right(_) => (),
                    Outcome::Wrong(why) | Outcome::Unsupported(why) => panic!("{case}: {why}"),
                }
            }
        }
    }
}

/// Expert e scores `x_0 e / 64`, expert 5 `3e38 x_0`, and the threshold's row, if any, `3e38 x_1`.
fn router(wgpu: &Wgpu, select: Select) -> WgpuRouter {
    let mut weight: Vec<f32> = (0..EXPERTS).flat_map(|e| [e as f32 / 64.0, 0.0]).collect();
    weight[10] = 3e38;
    weight.extend([0.0, 3e38].iter().take(2 * select.rows()));
    WgpuRouter::new(wgpu, LinearRouter::new(weight.len() / 2, 2, &weight, None).unwrap()).unwrap()
}

/// Ids of two choices and a shared expert, and the status.
fn routed(wgpu: &Wgpu, select: Select, x: &[f32], allow: Allow<&[u32]>) -> (Vec<[i32; 3]>, Status) {
    let tokens = x.len() / 2;
    let rule = Rule { select, shared: 1, ..Rule::top_k(2, Weighting::SoftmaxAll) };
    let sizes = route::Sizes { tokens, in_features: 2, x_stride: 2, experts: EXPERTS, rule };
    let [x, weights] = [x, &vec![f32::NAN; 3 * tokens]].map(|v| wgpu.upload(v).unwrap());
    let ids = wgpu.upload(&vec![99i32; 3 * tokens]).unwrap();
    let [offsets, lists] = [allow.offsets, allow.lists].map(|v| wgpu.upload(v).unwrap());
    let allow = Allow {
        offsets: View::new(&offsets, 0, allow.offsets.len()).unwrap(),
        lists: View::new(&lists, 0, allow.lists.len()).unwrap(),
    };
    let (x, router) = (View::<f32>::new(&x, 0, 2 * tokens).unwrap(), router(wgpu, select));
    let (all_ids, all_weights) =
        (View::new(&ids, 0, 3 * tokens).unwrap(), View::new(&weights, 0, 3 * tokens).unwrap());
    let mut encoder = wgpu.encoder();
    wgpu.route(&mut encoder, &sizes, &router, x, Some(allow), all_ids, all_weights).unwrap();
    wgpu.queue().submit([encoder.finish()]);
    let weights = wgpu.download::<f32>(&weights, 3 * tokens).unwrap();
    let ids = wgpu.download::<i32>(&ids, 3 * tokens).unwrap();
    for (id, weight) in ids.iter().zip(weights) {
        assert!(if *id == -1 { weight == 0.0 } else { (0.0..=1.0).contains(&weight) }, "{id}: {weight}");
    }
    (ids.chunks(3).map(|row| [row[0], row[1], row[2]]).collect(), wgpu.take_status().unwrap())
}

const SHARED: i32 = EXPERTS as i32;

#[test]
fn a_score_that_is_not_finite_counts_where_it_may_be_taken() {
    let mut lists = AllowLists::new(EXPERTS);
    for (tokens, experts) in [(1, vec![3, 7]), (0, vec![5]), (1, vec![]), (2, vec![7, 5, 39])] {
        lists.push(tokens, experts).unwrap();
    }
    // The last two tokens: one that may take expert 5, and one behind the last request.
    let x = [10.0, 0.0, f32::NAN, 0.0, -1e-30, 0.0, 1.0, 0.0, f32::NAN, 0.0];
    let fine = [[7, 3, SHARED], [-1, -1, SHARED], [7, 39, SHARED], [5, 39, SHARED], [-1, -1, SHARED]];
    for wgpu in devices() {
        let (ids, status) = routed(&wgpu, Select::TopK, &x, lists.as_allow());
        assert_eq!((ids, status.is_ok()), (fine.to_vec(), true), "{}", wgpu.describe());
        let mut broken = x;
        broken[6] = 2.0;
        let (ids, status) = routed(&wgpu, Select::TopK, &broken, lists.as_allow());
        let want = [fine[0], fine[1], fine[2], [-1; 3], fine[4]];
        assert_eq!(ids, want, "{}", wgpu.describe());
        assert_eq!(status, Status::SCORE_NOT_FINITE);
        // The threshold's own row counts for every token.
        let learned = Select::LearnedThreshold(0.0);
        let (ids, status) = routed(&wgpu, learned, &[10.0, 0.0, 0.0, 10.0], lists.as_allow());
        assert_eq!(ids, [[7, 3, SHARED], [-1; 3]], "{}", wgpu.describe());
        assert_eq!(status, Status::SCORE_NOT_FINITE);
    }
}

/// Offsets on a device are the engine's: whatever they hold, a token takes the experts of one list or none.
#[test]
fn offsets_may_hold_anything() {
    let x: Vec<f32> = [1.0, 0.0].repeat(18);
    let lists = [1 << 3, 0, 1 << 7, 0, 1 << 9, 0];
    for wgpu in devices() {
        for offsets in [[0; 4], [u32::MAX; 4], [9, 3, u32::MAX, 0], [5, 5, 5, 17], [0, 1 << 31, 2, 40]] {
            let allow = Allow { offsets: &offsets[..], lists: &lists[..] };
            let (ids, status) = routed(&wgpu, Select::TopK, &x, allow);
            for (t, row) in ids.iter().enumerate() {
                assert!([-1, 3, 7, 9].contains(&row[0]) && row[1] == -1, "{offsets:?}, token {t}: {row:?}");
            }
            assert!(status.is_ok());
            if offsets == [5, 5, 5, 17] {
                let first: Vec<i32> = ids.iter().map(|row| row[0]).collect();
                assert_eq!(first, [vec![-1; 5], vec![9; 12], vec![-1]].concat());
            }
        }
    }
}

/// Scores are written nowhere: what the kernels may write are the results, of a row a token, and the status word.
#[test]
fn only_ids_weights_and_the_status_are_written() {
    for wgpu in devices() {
        let mut lists = AllowLists::new(EXPERTS);
        lists.push_all(1).unwrap();
        routed(&wgpu, Select::TopK, &[1e-30, 0.0], lists.as_allow());
        let mut kernels = 0; // of the ways so far, which share them
        for (name, text) in wgpu.shader_texts().iter().filter(|(name, _)| name.starts_with("route")) {
            let written = text.split("var<storage, read_write> ").skip(1);
            let written: Vec<&str> = written.filter_map(|rest| rest.split(':').next()).collect();
            assert_eq!(written, ["topk_ids", "topk_weights", "status"], "{name}");
            kernels += 1;
        }
        assert!(kernels > 0);
    }
}
