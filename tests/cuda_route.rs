//! Route on CUDA in both forms: what a mask leaves out need not be finite, offsets of any contents read nothing out of bounds,
//! and no score is written to global memory.
#![cfg(feature = "cuda")]

mod common;

use common::cuda::device;
use molora::adapter::LinearRouter;
use molora::device::cuda::{Status, View, ViewMut};
use molora::ops::route::{self, Allow, AllowLists, CudaRouter, Rule, Select, Weighting};
use molora::{Cuda, ElementType};
use molora_check::counters::count;
use molora_check::guarded::Guarded;
use molora_check::subject::CudaSubject;
use molora_check::{Case, Inputs, Op, Subject};

const IN: usize = 4;
const EXPERTS: usize = 40;
const NOTHING: f32 = -7.0;
/// More than two tiles of the form for many tokens.
const TOKENS: usize = 20;

/// Both forms: of few tokens, and the one that a batch-invariant handle takes always.
fn forms() -> Vec<Cuda> {
    device().map_or(Vec::new(), |cuda| vec![cuda.batch_invariant(true), cuda])
}

/// Scores are e / 8 where x is `[0, 1, 0, 0]`; expert 5's, and the row's behind the experts, are infinite where x begins with
/// 3e38.
fn router(rows: usize) -> LinearRouter {
    let row = |e: usize| [if e == 5 || e == EXPERTS { 2.0 } else { 0.0 }, e as f32 / 8.0, 0.0, 0.0];
    let weight: Vec<f32> = (0..rows).flat_map(row).collect();
    LinearRouter::new(rows, IN, &weight, None).unwrap()
}

/// Ids and weights of tokens that begin with `first`.
fn routed(cuda: &Cuda, rule: Rule, first: f32, allow: Option<Allow<&[u32]>>) -> (Vec<i32>, Vec<f32>) {
    let router = CudaRouter::new(cuda, router(EXPERTS + rule.select.rows())).unwrap();
    let sizes = route::Sizes { tokens: TOKENS, in_features: IN, x_stride: IN, experts: EXPERTS, rule };
    let x = cuda.upload(&[first, 1.0, 0.0, 0.0].repeat(TOKENS)).unwrap();
    let len = TOKENS * rule.width();
    let (mut ids, mut weights) =
        (cuda.upload(&vec![9i32; len]).unwrap(), cuda.upload(&vec![NOTHING; len]).unwrap());
    let lists = allow.map(|allow| [allow.offsets, allow.lists].map(|list| cuda.upload(list).unwrap()));
    {
        let x = View::<f32>::whole(cuda, &x).unwrap();
        let views = lists.as_ref().map(|lists| lists.each_ref().map(|list| View::whole(cuda, list).unwrap()));
        let allow = views.as_ref().map(|[offsets, lists]| Allow { offsets, lists });
        let mut ids = ViewMut::whole(cuda, &mut ids).unwrap();
        let mut weights = ViewMut::whole(cuda, &mut weights).unwrap();
        cuda.route(&sizes, &router, &x, allow, None, &mut ids, &mut weights).unwrap();
    }
    (cuda.download(&ids, len).unwrap(), cuda.download(&weights, len).unwrap())
}

const RULE: Rule = Rule { shared: 1, ..Rule::top_k(2, Weighting::Uniform) };

#[test]
fn a_score_that_nobody_may_take_need_not_be_finite() {
    for cuda in forms() {
        let mut lists = AllowLists::new(EXPERTS);
        lists.push(9, [3, 33]).unwrap();
        lists.push(0, [1]).unwrap();
        lists.push(TOKENS - 9, [7]).unwrap();
        let (ids, weights) = routed(&cuda, RULE, 3e38, Some(lists.as_allow()));
        assert_eq!(ids, [[33, 3, 40].repeat(9), [7, -1, 40].repeat(TOKENS - 9)].concat());
        assert_eq!(weights, [[0.5, 0.5, 1.0].repeat(9), [1.0, 0.0, 1.0].repeat(TOKENS - 9)].concat());
        assert!(cuda.take_status().unwrap().is_ok());

        let mut lists = AllowLists::new(EXPERTS);
        lists.push(9, [3, 33]).unwrap();
        lists.push(TOKENS - 10, [3, 5]).unwrap();
        let (ids, weights) = routed(&cuda, RULE, 3e38, Some(lists.as_allow()));
        let broken = TOKENS - 10;
        assert_eq!(ids, [[33, 3, 40].repeat(9), vec![-1; 3 * broken], vec![-1, -1, 40]].concat());
        assert_eq!(weights, [[0.5, 0.5, 1.0].repeat(9), vec![0.0; 3 * broken], vec![0.0, 0.0, 1.0]].concat());
        assert_eq!(cuda.take_status().unwrap(), Status::SCORE_NOT_FINITE);

        assert_eq!(routed(&cuda, RULE, 3e38, None), (vec![-1; 3 * TOKENS], vec![0.0; 3 * TOKENS]));
        assert_eq!(cuda.take_status().unwrap(), Status::SCORE_NOT_FINITE);
    }
}

/// It is nobody's, so no mask leaves it out.
#[test]
fn the_thresholds_own_score_must_be_finite() {
    let rule = Rule { select: Select::LearnedThreshold(0.5), ..RULE };
    for cuda in forms() {
        let mut lists = AllowLists::new(EXPERTS);
        lists.push(TOKENS, [39]).unwrap();
        let allow = Some(lists.as_allow());
        // One expert has all; the threshold is 0.5 sigmoid(5).
        let (ids, weights) = routed(&cuda, rule, 0.0, allow);
        assert_eq!((ids, weights), ([39, -1, 40].repeat(TOKENS), [1.0, 0.0, 1.0].repeat(TOKENS)));
        assert!(cuda.take_status().unwrap().is_ok());
        assert_eq!(routed(&cuda, rule, 3e38, allow), (vec![-1; 3 * TOKENS], vec![0.0; 3 * TOKENS]));
        assert_eq!(cuda.take_status().unwrap(), Status::SCORE_NOT_FINITE);
    }
}

#[test]
fn shared_experts_alone() {
    let rule = Rule { shared: 2, ..Rule::top_k(0, Weighting::SoftmaxSelected) };
    for cuda in forms() {
        let (ids, weights) = routed(&cuda, rule, 0.0, None);
        assert_eq!((ids, weights), ([40, 41].repeat(TOKENS), vec![1.0; 2 * TOKENS]));
        assert!(cuda.take_status().unwrap().is_ok());
        assert_eq!(routed(&cuda, rule, 3e38, None).0, [-1; 2 * TOKENS], "as the CPU refuses it");
        assert_eq!(cuda.take_status().unwrap(), Status::SCORE_NOT_FINITE);
    }
}

/// The host cannot look at them: any list may be a token's, or none, and nothing else is read.
#[test]
fn offsets_in_no_order_read_nothing_out_of_bounds() {
    for cuda in forms() {
        for offsets in [[u32::MAX, 0, 7, 3], [5, u32::MAX, 2, 1], [9, 9, 9, 9], [0, 0, 0, 0]] {
            let lists = [1 << 3, 0, 1 << 4, 0, 0, 1];
            let (ids, _) = routed(&cuda, RULE, 0.0, Some(Allow { offsets: &offsets, lists: &lists }));
            for ids in ids.chunks(3) {
                assert!([3, 4, 32, -1].contains(&ids[0]) && ids[1..] == [-1, 40], "{offsets:?}: {ids:?}");
            }
            assert!(cuda.take_status().unwrap().is_ok());
        }
    }
}

#[test]
fn lists_of_other_lengths_are_refused() {
    let Some(cuda) = device() else { return };
    let router = CudaRouter::new(&cuda, router(EXPERTS)).unwrap();
    let sizes = route::Sizes { tokens: 1, in_features: IN, x_stride: IN, experts: EXPERTS, rule: RULE };
    let x = cuda.upload(&[0f32; IN]).unwrap();
    let (mut ids, mut weights) = (cuda.upload(&[0i32; 3]).unwrap(), cuda.upload(&[0f32; 3]).unwrap());
    let words = cuda.upload(&[0u32; 8]).unwrap();
    let mut says = |offsets: usize, lists: usize| {
        let [offsets, lists] = [offsets, lists].map(|len| View::new(&cuda, words.slice(..len)).unwrap());
        let (mut ids, mut weights) =
            (ViewMut::whole(&cuda, &mut ids).unwrap(), ViewMut::whole(&cuda, &mut weights).unwrap());
        let allow = Some(Allow { offsets: &offsets, lists: &lists });
        let x = View::<f32>::whole(&cuda, &x).unwrap();
        cuda.route(&sizes, &router, &x, allow, None, &mut ids, &mut weights).unwrap_err().to_string()
    };
    assert_eq!(says(0, 4), "route: allow.offsets: expected requests + 1 elements, got 0");
    assert_eq!(says(3, 3), "route: allow.lists: expected 4 elements, got 3");
}

/// PHATGOOSE's router, counted: what is written is ids and weights, and the form for many tokens reads the router once for 8.
#[test]
fn no_score_is_written_and_a_tile_reads_the_router_once() {
    let Some(cuda) = device() else { return };
    if !cuda.is_stand_in() {
        return println!("not counted: a device that does not count");
    }
    let (tokens, in_features, experts) = (64, 2048, 166);
    let case = Case { tokens, in_features, experts, ..Case::new(Op::Route) }.element(ElementType::Bf16);
    let inputs = Inputs::new(&case);
    for (cuda, kernel, reads) in
        [(cuda.batch_invariant(true), "route_many_bf16", 8), (cuda, "route_few_bf16", 64)]
    {
        let counters = count(&CudaSubject::new(cuda), &inputs).unwrap().expect("a stand-in counts");
        let counted = &counters[kernel];
        assert_eq!((counters.len(), &counted["launches"]), (1, &1.into()), "one launch of one kernel");
        assert_eq!(counted["unique_written"]["bytes"], case.routes() * 8, "ids and weights");
        let stores = counted["global_stores"].as_object().unwrap();
        let stored: u64 = stores.values().map(|width| width["bytes"].as_u64().unwrap()).sum();
        assert_eq!(stored, case.routes() as u64 * 8, "each once");
        let loads = counted["global_loads"].as_object().unwrap();
        let read: f64 = loads.values().map(|width| width["sectors"].as_f64().unwrap()).sum();
        let router = (experts * in_features * 4 / 32) as f64;
        println!("{kernel}: {:.3} times the router's sectors for {tokens} tokens", read / router);
        // x is read again for every 64 experts.
        assert!(read <= 1.1 * f64::from(reads) * router, "{kernel}: {read} sectors, the router has {router}");
    }
}

fn bits(subject: &CudaSubject, inputs: &Inputs) -> Vec<(i32, u32)> {
    let shape = (1, inputs.case.routes(), inputs.case.routes());
    let (mut ids, mut weights) = (Guarded::output(shape, |_, _| 0), Guarded::output(shape, |_, _| 0.0));
    subject.route(inputs, &mut ids, &mut weights).unwrap();
    ids.cells().iter().zip(weights.cells()).map(|(&id, weight)| (id, weight.to_bits())).collect()
}

/// In either form a token's bits are its own, wherever it lies in a tile.
#[test]
fn a_token_chooses_the_same_bits_in_every_batch() {
    for cuda in forms() {
        let subject = CudaSubject::new(cuda);
        let weighting = Weighting::SoftmaxAll;
        let case =
            Case { tokens: 100, experts: 133, in_features: 193, top_k: 5, weighting, ..Case::new(Op::Route) };
        let all = Inputs::new(&case);
        let whole = bits(&subject, &all);
        for (first, batch) in [(0, 1), (57, 1), (99, 1), (40, 2), (11, 7), (63, 33)] {
            let want = &whole[first * case.top_k..(first + batch) * case.top_k];
            assert!(bits(&subject, &all.part(first, batch)) == want, "tokens {first} to {}", first + batch);
        }
    }
}

#[test]
fn tokens_that_are_not_live_are_neither_read_nor_written() {
    let rule = Rule::top_k(2, Weighting::Uniform);
    let sizes = route::Sizes { tokens: TOKENS, in_features: IN, x_stride: IN, experts: EXPERTS, rule };
    for cuda in forms() {
        let router = CudaRouter::new(&cuda, router(EXPERTS)).unwrap();
        for live in [0, 1, 8, 9, TOKENS, TOKENS + 5] {
            let written = live.min(TOKENS);
            let x = [[0.0, 1.0, 0.0, 0.0].repeat(written), vec![f32::NAN; (TOKENS - written) * IN]].concat();
            let (x, count) = (cuda.upload(&x).unwrap(), cuda.upload(&[live as u32]).unwrap());
            let mut ids = cuda.upload(&[9i32; 2 * TOKENS]).unwrap();
            let mut weights = cuda.upload(&[NOTHING; 2 * TOKENS]).unwrap();
            {
                let (x, count) = (View::whole(&cuda, &x).unwrap(), View::whole(&cuda, &count).unwrap());
                let mut ids = ViewMut::whole(&cuda, &mut ids).unwrap();
                let mut weights = ViewMut::whole(&cuda, &mut weights).unwrap();
                cuda.route::<f32>(&sizes, &router, &x, None, Some(&count), &mut ids, &mut weights).unwrap();
            }
            let want = [[39, 38].repeat(written), vec![9; 2 * (TOKENS - written)]].concat();
            assert_eq!(cuda.download(&ids, 2 * TOKENS).unwrap(), want, "{live} live");
            let want = [vec![0.5; 2 * written], vec![NOTHING; 2 * (TOKENS - written)]].concat();
            assert_eq!(cuda.download(&weights, 2 * TOKENS).unwrap(), want, "{live} live");
            assert!(cuda.take_status().unwrap().is_ok());
        }
    }
}
