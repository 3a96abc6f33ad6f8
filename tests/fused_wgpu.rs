//! What the shared table of cases does not ask of the fused product on WebGPU: packed pools, slots that change, weights and
//! values that are not finite, batch invariance, devices of the fewest bindings.
#![cfg(feature = "wgpu")]

mod common;

use common::values;
use half::{bf16, f16};
use molora::adapter::LinearRouter;
use molora::adapter::slots::PoolSizes;
use molora::device::wgpu::{Pool, Status, View};
use molora::ops::route::{self, Weighting, WgpuRouter};
use molora::ops::{Expert, Output, fused, plan, shrink};
use molora::{Element, ElementType, Lora, Wgpu};

/// Every adapter that opens; says so where there is none, and fails where `MOLORA_REQUIRE` names one.
fn devices() -> Vec<Wgpu> {
    let subjects = molora_check::subjects().unwrap_or_else(|why| panic!("{why}"));
    if subjects.iter().all(|s| s.kind() != "wgpu") {
        println!("not tested: no WebGPU adapter here");
    }
    Wgpu::adapters().into_iter().filter_map(|adapter| Wgpu::open(&adapter).ok()).collect()
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Way {
    Sparse,
    Few,
    Dense,
}

/// A layer of one slice, in host memory.
struct Case<X, A> {
    sizes: fused::Sizes,
    ranks: Vec<usize>,
    loras: Vec<(Vec<A>, Vec<A>)>,
    weight: Vec<X>,
    bias: Option<Vec<X>>,
    x: Vec<X>,
    ids: Vec<i32>,
    weights: Vec<f32>,
}

const SCALING: f32 = 0.5;
/// Behind every row of y, and in y before a call.
const PADDING: f32 = 7.0;

impl<X: Element, A: Element> Case<X, A> {
    fn new(tokens: usize, top_k: usize, ranks: &[usize], (inner, outer): (usize, usize)) -> Self {
        let (x_stride, y_stride) = (inner.next_multiple_of(2) + 2, outer.next_multiple_of(2) + 2);
        let h_stride = ranks.iter().copied().max().unwrap().max(1);
        let (in_features, out_features, output) = (inner, outer, Output::Sum);
        let sizes =
            fused::Sizes { tokens, top_k, in_features, out_features, x_stride, y_stride, h_stride, output };
        let live: Vec<i32> = (0..ranks.len() as i32).filter(|&e| ranks[e as usize] > 0).collect();
        let id = |n: usize| {
            let place = (n / top_k.max(1) * 5 + n % top_k.max(1) * 3 + n / 7) % (live.len() + 1);
            live.get(place).copied().unwrap_or(-1)
        };
        Self {
            sizes,
            ranks: ranks.to_vec(),
            loras: (0..ranks.len())
                .map(|e| (values(e + 1, ranks[e] * inner), values(e + 90, outer * ranks[e])))
                .collect(),
            weight: values(31, outer * inner),
            bias: None,
            x: values(32, tokens * x_stride),
            ids: (0..tokens * top_k).map(id).collect(),
            weights: values(33, tokens * top_k),
        }
    }

    fn pool(&self, wgpu: &Wgpu) -> Pool {
        let fused::Sizes { in_features, out_features, .. } = self.sizes;
        let (experts, rank_capacity) = (self.ranks.len(), self.ranks.iter().sum());
        let sizes = PoolSizes { in_features, out_features, experts, rank_capacity, element: A::TYPE };
        let mut pool = Pool::new(wgpu, sizes).unwrap();
        (0..experts).filter(|&e| self.ranks[e] > 0).for_each(|e| pool.put(e, &self.lora(e)).unwrap());
        pool
    }

    fn lora(&self, e: usize) -> Lora {
        let fused::Sizes { in_features, out_features, .. } = self.sizes;
        Lora::new(in_features, out_features, self.ranks[e], SCALING, &self.loras[e].0, &self.loras[e].1)
            .unwrap()
    }

    fn plan_sizes(&self) -> plan::Sizes {
        plan::Sizes { tokens: self.sizes.tokens, top_k: self.sizes.top_k, experts: self.ranks.len() }
    }

    fn expected(&self) -> Vec<X> {
        let plan = plan::definition(&self.plan_sizes(), &self.ids, 0).unwrap();
        let expert = |e: usize| {
            let (lora_a, lora_b) = (&self.loras[e].0[..], &self.loras[e].1[..]);
            Expert { rank: self.ranks[e], scaling: SCALING, lora_a, lora_b }
        };
        let experts: Vec<Expert<A>> = (0..self.ranks.len()).map(expert).collect();
        let mut y = vec![X::from_f32(PADDING); self.sizes.tokens * self.sizes.y_stride];
        let bias = self.bias.as_deref();
        fused::definition(&self.sizes, &plan, &experts, &self.weight, bias, &self.x, &self.weights, &mut y)
            .unwrap();
        y
    }

    /// `change` happens between recording and submission.
    fn run(&self, wgpu: &Wgpu, way: Way, change: impl FnOnce(&mut Pool)) -> Vec<X> {
        let mut pool = self.pool(wgpu);
        let sizes = &self.sizes;
        let shrink = shrink::Sizes {
            tokens: sizes.tokens,
            top_k: sizes.top_k,
            in_features: sizes.in_features,
            x_stride: sizes.x_stride,
            h_stride: sizes.h_stride,
            output: sizes.output,
        };
        let len = sizes.tokens * sizes.y_stride;
        let y = wgpu.upload(&vec![X::from_f32(PADDING); len]).unwrap();
        let h = wgpu.upload(&vec![f32::NAN; (sizes.routes() * sizes.h_stride).max(1)]).unwrap();
        let (ids, weights) = (wgpu.upload(&self.ids).unwrap(), wgpu.upload(&self.weights).unwrap());
        let (x, weight) = (wgpu.upload(&self.x).unwrap(), wgpu.upload(&self.weight).unwrap());
        let bias = self.bias.as_ref().map(|bias| wgpu.upload(bias).unwrap());
        let bias = bias.as_ref().map(|b| View::<X>::new(b, 0, sizes.out_features).unwrap());
        let (x, weight) =
            (View::new(&x, 0, self.x.len()).unwrap(), View::new(&weight, 0, self.weight.len()).unwrap());
        let (ids, weights) = (
            View::new(&ids, 0, self.ids.len()).unwrap(),
            View::new(&weights, 0, self.weights.len()).unwrap(),
        );
        let (h, y_view) = (View::whole(&h), View::new(&y, 0, len).unwrap());
        let mut encoder = wgpu.encoder();
        match way {
            Way::Sparse => {
                let plan = wgpu.plan(&mut encoder, &self.plan_sizes(), &pool, ids).unwrap();
                wgpu.shrink(&mut encoder, &shrink, &plan, &pool, x, weights, h).unwrap();
                wgpu.fused_sparse(&mut encoder, sizes, &plan, &pool, weight, bias, x, h, weights, y_view)
                    .unwrap();
            }
            Way::Dense => {
                let h_stride = pool.slots().used_rows().next_multiple_of(2);
                let (dense, tokens) = (fused::Sizes { h_stride, ..*sizes }, sizes.tokens);
                let z = wgpu.upload(&vec![f32::NAN; (tokens * h_stride).max(1)]).unwrap();
                let z = View::<f32>::whole(&z);
                wgpu.fused_gate(&mut encoder, &dense, &pool, None, x, ids, weights, z).unwrap();
                wgpu.fused_dense(&mut encoder, &dense, &pool, weight, bias, x, z, y_view).unwrap();
            }
            Way::Few => {
                wgpu.fused_few(&mut encoder, sizes, &pool, weight, bias, x, ids, weights, h, y_view).unwrap();
            }
        }
        change(&mut pool);
        wgpu.queue().submit([encoder.finish()]);
        wgpu.download(&y, len).unwrap()
    }

    fn check(&self, wgpu: &Wgpu, way: Way) {
        close(&self.run(wgpu, way, |_| ()), &self.expected(), &format!("{way:?} {:?}", self.sizes));
        assert!(wgpu.take_status().unwrap().is_ok());
    }
}

fn close<X: Element>(got: &[X], want: &[X], label: &str) {
    let tolerance = match X::TYPE {
        ElementType::F32 => 1e-5,
        ElementType::F16 => 1e-3,
        ElementType::Bf16 => 8e-3,
    };
    for (i, (got, want)) in got.iter().zip(want).enumerate() {
        let (got, want) = (got.to_f32(), want.to_f32());
        assert!((got - want).abs() <= tolerance * (1.0 + want.abs()), "{label}: [{i}] is {got}, not {want}");
    }
}

const RANKS: [usize; 6] = [1, 4, 0, 7, 16, 33];

#[test]
fn as_the_definition_says() {
    for wgpu in devices() {
        for (way, tokens) in [1, 3, 8, 16, 65]
            .map(|t| (Way::Sparse, t))
            .into_iter()
            .chain([1, 2, 3, 8, 13, 16].map(|t| (Way::Few, t)))
            .chain([1, 63, 65].map(|t| (Way::Dense, t)))
        {
            for top_k in [0, 1, 2, 5, 9].into_iter().filter(|&k| way != Way::Dense || k < 9) {
                for shape in [(24, 20), (37, 130)] {
                    Case::<f32, f32>::new(tokens, top_k, &RANKS, shape).check(&wgpu, way);
                }
            }
            let shape = (70, 67);
            let bias = Some(values(50, 67));
            Case { bias, ..Case::<f16, f32>::new(tokens, 2, &RANKS, shape) }.check(&wgpu, way);
            let bias = Some(values(50, 67));
            Case { bias, ..Case::<bf16, bf16>::new(tokens, 2, &RANKS, shape) }.check(&wgpu, way);
            Case::<f32, f16>::new(tokens, 3, &RANKS, shape).check(&wgpu, way);
        }
        let mut case = Case::<f32, f32>::new(70, 2, &[5; 6], (24, 20));
        case.sizes.output = Output::RankSum;
        case.check(&wgpu, Way::Sparse);
    }
}

/// Between recording and submission: an adapter goes, or goes and another takes its slot.
#[test]
fn slots_that_change_are_skipped() {
    for wgpu in devices() {
        for (way, tokens) in [(Way::Sparse, 66), (Way::Few, 7), (Way::Dense, 66)] {
            let case = Case::<f32, f32>::new(tokens, 2, &RANKS, (24, 20));
            let mut without = Case::<f32, f32>::new(tokens, 2, &RANKS, (24, 20));
            without.ids.iter_mut().filter(|id| **id == 3).for_each(|id| *id = -1);
            let other = Lora::new(24, 20, 7, 3.0, &vec![1f32; 7 * 24], &vec![1f32; 7 * 20]).unwrap();
            for replaced in [false, true] {
                let y = case.run(&wgpu, way, |pool| {
                    pool.evict(3).unwrap();
                    if replaced {
                        pool.put(3, &other).unwrap();
                    }
                });
                close(&y, &without.expected(), &format!("{way:?}"));
                assert_eq!(wgpu.take_status().unwrap(), Status::STALE_SLOT, "{way:?}");
            }
        }
    }
}

/// A pool that holds nothing has no h to compute, and its ids still name nothing.
#[test]
fn an_empty_pool_tells_of_its_ids() {
    for wgpu in devices() {
        for (way, tokens) in [(Way::Sparse, 66), (Way::Few, 7), (Way::Dense, 66)] {
            for (id, told) in
                [(1, Status::STALE_SLOT), (2, Status::ID_OUT_OF_RANGE), (-2, Status::ID_OUT_OF_RANGE)]
            {
                let mut case = Case::<f32, f32>::new(tokens, 2, &[0, 0], (24, 20));
                let want = case.expected();
                case.ids[5] = id;
                close(&case.run(&wgpu, way, |_| ()), &want, &format!("{way:?} {id}"));
                assert_eq!(wgpu.take_status().unwrap(), told, "{way:?} {id}");
            }
        }
    }
}

/// What another token's expert makes of it never reaches a token, and a weight that is no number counts for nothing.
#[test]
fn nothing_leaks() {
    for wgpu in devices() {
        for (way, tokens) in [(Way::Sparse, 66), (Way::Few, 7), (Way::Dense, 66)] {
            let mut case = Case::<f32, f32>::new(tokens, 2, &RANKS, (24, 20));
            let mut expected = case.expected();
            // Token 5's h overflows for expert 4 alone; token 2's second weight is none.
            case.loras[4].0.iter_mut().for_each(|a| *a = 3e38);
            // In whatever order they are added.
            case.x[5 * case.sizes.x_stride..][..24].fill(1.0);
            case.ids[..].iter_mut().filter(|id| **id == 4).for_each(|id| *id = 1);
            case.ids[10] = 4;
            case.weights[5] = f32::NAN;
            let y = case.run(&wgpu, way, |_| ());
            assert_eq!(wgpu.take_status().unwrap(), Status::WEIGHT_NOT_FINITE, "{way:?}");
            (case.weights[5], case.ids[5], case.ids[10]) = (0.0, -1, -1);
            expected.copy_from_slice(&case.expected());
            let row = case.sizes.y_stride;
            assert!(y[5 * row..5 * row + 20].iter().all(|v| !v.is_finite()), "{way:?}: the case overflows");
            close(&y[..5 * row], &expected[..5 * row], &format!("{way:?}"));
            close(&y[6 * row..], &expected[6 * row..], &format!("{way:?}"));
        }
    }
}

/// A token's bits do not depend on its batch.
#[test]
fn bits_are_a_tokens_own() {
    for wgpu in devices() {
        for (way, tokens) in [(Way::Sparse, 130), (Way::Few, 16), (Way::Dense, 130)] {
            let mut all = Case::<f32, f32>::new(tokens, 3, &RANKS, (70, 67));
            // Not exact: the order of the sums shows.
            all.x.iter_mut().enumerate().for_each(|(i, x)| *x += (i as f32 * 0.37).sin());
            let y = all.run(&wgpu, way, |_| ());
            let (x_row, y_row) = (all.sizes.x_stride, all.sizes.y_stride);
            for t in [0, 7, tokens - 1] {
                let mut one = Case::<f32, f32>::new(1, 3, &RANKS, (70, 67));
                one.x.copy_from_slice(&all.x[t * x_row..(t + 1) * x_row]);
                one.ids.copy_from_slice(&all.ids[t * 3..t * 3 + 3]);
                one.weights.copy_from_slice(&all.weights[t * 3..t * 3 + 3]);
                // The same shrink in both: its own forms are not what is asked here.
                let alone = one.run(&wgpu.batch_invariant(true), way, |_| ());
                let all = all.run(&wgpu.batch_invariant(true), way, |_| ());
                let bits = |y: &[f32]| y.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
                assert_eq!(bits(&alone), bits(&all[t * y_row..(t + 1) * y_row]), "{way:?}, token {t}");
            }
            assert!(y.iter().all(|v| v.is_finite()));
            assert!(wgpu.take_status().unwrap().is_ok());
        }
    }
}

/// WebGPU's default limits: eight bindings, one less than the sparse form with a bias takes otherwise.
#[test]
fn few_bindings_suffice() {
    for adapter in Wgpu::adapters() {
        let Ok(wgpu) = Wgpu::open_with(&adapter, wgpu::Limits::default()) else { continue };
        assert_eq!(wgpu.limits().max_storage_buffers_per_shader_stage, 8);
        for (way, tokens) in [(Way::Sparse, 66), (Way::Few, 7), (Way::Dense, 66)] {
            let bias = Some(values(50, 20));
            Case { bias, ..Case::<f32, f32>::new(tokens, 2, &RANKS, (24, 20)) }.check(&wgpu, way);
        }
    }
}

/// The gate's own routing is the room's, to the bit.
#[test]
fn a_pool_of_another_device_is_refused() {
    let Some(adapter) = Wgpu::adapters().into_iter().next() else {
        return println!("not tested: no adapter here");
    };
    let (wgpu, other) = (Wgpu::open(&adapter).unwrap(), Wgpu::open(&adapter).unwrap());
    let case = Case::<f32, f32>::new(3, 2, &RANKS, (24, 20));
    let pool = case.pool(&other);
    let upload = |values: &[f32]| wgpu.upload(values).unwrap();
    let (x, weight, y) =
        (upload(&case.x), upload(&case.weight), upload(&vec![0f32; 3 * case.sizes.y_stride]));
    let (ids, weights, h) =
        (wgpu.upload(&case.ids).unwrap(), upload(&case.weights), upload(&vec![0f32; 6 * 64]));
    let (x, weight) = (
        View::<f32>::new(&x, 0, case.x.len()).unwrap(),
        View::<f32>::new(&weight, 0, case.weight.len()).unwrap(),
    );
    let (ids, weights) = (View::new(&ids, 0, 6).unwrap(), View::new(&weights, 0, 6).unwrap());
    let (h, y) = (View::whole(&h), View::<f32>::whole(&y));
    let mut encoder = wgpu.encoder();
    let refused = wgpu.fused_few(&mut encoder, &case.sizes, &pool, weight, None, x, ids, weights, h, y);
    let why = refused.unwrap_err().to_string();
    assert!(why.contains("one of another device"), "{why}");
    let refused = wgpu.plan(&mut encoder, &case.plan_sizes(), &pool, ids).unwrap_err().to_string();
    assert!(refused.contains("one of another device"), "{refused}");
}

/// Nothing is computed from a size before it is checked.
#[test]
fn absurd_sizes_are_refused() {
    let Some(wgpu) = devices().into_iter().next() else { return };
    let (case, huge) = (Case::<f32, f32>::new(3, 2, &[5, 4], (24, 20)), usize::MAX);
    let (pool, sizes) = (case.pool(&wgpu), case.sizes);
    let upload = |len: usize| wgpu.upload(&vec![0f32; len]).unwrap();
    let (x, weight, y) = (upload(case.x.len()), upload(24 * 20), upload(3 * sizes.y_stride));
    let (h, weights, ids) = (upload(6 * 10), upload(6), wgpu.upload(&case.ids).unwrap());
    let (ids, weights) = (View::new(&ids, 0, 6).unwrap(), View::<f32>::new(&weights, 0, 6).unwrap());
    let (x, weight) = (View::<f32>::whole(&x), View::<f32>::whole(&weight));
    let (h, y) = (View::<f32>::whole(&h), View::<f32>::whole(&y));
    let mut encoder = wgpu.encoder();
    let plan = wgpu.plan(&mut encoder, &case.plan_sizes(), &pool, ids).unwrap();
    for bad in [
        fused::Sizes { tokens: huge, ..sizes },
        fused::Sizes { tokens: huge, top_k: 0, ..sizes },
        fused::Sizes { top_k: huge, ..sizes },
        fused::Sizes { in_features: huge, ..sizes },
        fused::Sizes { x_stride: huge, ..sizes },
        fused::Sizes { x_stride: 23, ..sizes },
        fused::Sizes { h_stride: huge, ..sizes },
        fused::Sizes { h_stride: 4, ..sizes },
        fused::Sizes { y_stride: huge, ..sizes },
        fused::Sizes { out_features: huge, ..sizes },
    ] {
        let few = wgpu.fused_few(&mut encoder, &bad, &pool, weight, None, x, ids, weights, h, y);
        assert!(few.is_err(), "few {bad:?}");
        let sparse = wgpu.fused_sparse(&mut encoder, &bad, &plan, &pool, weight, None, x, h, weights, y);
        assert!(sparse.is_err(), "sparse {bad:?}");
        let bad = if bad.h_stride == sizes.h_stride { fused::Sizes { h_stride: 10, ..bad } } else { bad };
        let dense = wgpu.fused_dense(&mut encoder, &bad, &pool, weight, None, x, h, y);
        assert!(dense.is_err(), "dense {bad:?}");
        if bad.y_stride == sizes.y_stride && bad.out_features == sizes.out_features {
            let gate = wgpu.fused_gate(&mut encoder, &bad, &pool, None, x, ids, weights, h);
            assert!(gate.is_err(), "gate {bad:?}");
        }
    }
}

#[test]
fn the_gate_routes_as_route_does() {
    const EXPERTS: usize = 13;
    for wgpu in devices() {
        let case = Case::<f32, f32>::new(70, 3, &[2; EXPERTS], (37, 20));
        let (pool, sizes) = (case.pool(&wgpu), case.sizes);
        let x: Vec<f32> = (0..case.x.len()).map(|i| (i as f32 * 0.71).sin()).collect();
        let weight: Vec<f32> = (0..EXPERTS * 37).map(|i| (i as f32 * 0.13).cos()).collect();
        let bias: Vec<f32> = (0..EXPERTS).map(|e| e as f32 / 16.0).collect();
        let linear = LinearRouter::new(EXPERTS, 37, &weight, Some(&bias)).unwrap();
        let router = WgpuRouter::new(&wgpu, linear).unwrap();
        let (x, routes) = (wgpu.upload(&x).unwrap(), sizes.routes());
        for weighting in Weighting::PLAIN {
            let run = |gate: bool| {
                let (ids, weights) = (
                    wgpu.upload(&vec![9i32; routes]).unwrap(),
                    wgpu.upload(&vec![f32::NAN; routes]).unwrap(),
                );
                let z = wgpu.upload(&vec![f32::NAN; 70 * 26]).unwrap();
                let (ids_view, weights_view) =
                    (View::new(&ids, 0, routes).unwrap(), View::new(&weights, 0, routes).unwrap());
                let (x, mut encoder) = (View::<f32>::whole(&x), wgpu.encoder());
                if gate {
                    let sizes = fused::Sizes { h_stride: 26, ..sizes };
                    let (router, z) = (Some((&router, weighting)), View::<f32>::whole(&z));
                    wgpu.fused_gate(&mut encoder, &sizes, &pool, router, x, ids_view, weights_view, z)
                        .unwrap();
                } else {
                    let route = route::Sizes {
                        tokens: 70,
                        in_features: 37,
                        x_stride: sizes.x_stride,
                        experts: EXPERTS,
                        rule: route::Rule::top_k(3, weighting),
                    };
                    wgpu.route(&mut encoder, &route, &router, x, None, ids_view, weights_view).unwrap();
                }
                wgpu.queue().submit([encoder.finish()]);
                let weights: Vec<u32> = wgpu.download(&weights, routes).unwrap();
                (wgpu.download::<i32>(&ids, routes).unwrap(), weights)
            };
            assert_eq!(run(true), run(false), "{weighting:?}");
        }
    }
}
