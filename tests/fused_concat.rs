//! The pair that an engine multiplies itself on WebGPU: z behind x in x's own rows, and `[weight | B_all]`.
#![cfg(feature = "wgpu")]

mod common;

use common::values;
use half::{bf16, f16};
use molora::adapter::LinearRouter;
use molora::adapter::slots::PoolSizes;
use molora::device::wgpu::{Pool, View};
use molora::ops::fused::Sizes;
use molora::ops::route::{Weighting, WgpuRouter};
use molora::ops::{Output, base};
use molora::{Element, Lora, Wgpu};

const TOKENS: usize = 67;
const TOP_K: usize = 2;
const OUT: usize = 38;
const RANKS: [usize; 4] = [5, 0, 4, 12];
/// What lies in an engine's memory before.
const BASE: f32 = 7.0;

/// Every adapter that opens; fails where `MOLORA_REQUIRE` names one that is not there.
fn devices() -> Vec<Wgpu> {
    molora_check::subjects().unwrap_or_else(|why| panic!("{why}"));
    Wgpu::adapters().iter().map(|adapter| Wgpu::open(adapter).unwrap()).collect()
}

fn filled_pool<E: Element>(wgpu: &Wgpu, inner: usize) -> Pool {
    let (experts, rank_capacity) = (RANKS.len(), RANKS.iter().sum());
    let sizes = PoolSizes { in_features: inner, out_features: OUT, experts, rank_capacity, element: E::TYPE };
    let mut pool = Pool::new(wgpu, sizes).unwrap();
    for (e, &rank) in RANKS.iter().enumerate().filter(|(_, rank)| **rank > 0) {
        let (a, b) = (values::<E>(e + 1, rank * inner), values::<E>(e + 9, rank * OUT));
        pool.put(e, &Lora::new(inner, OUT, rank, 0.5, &a, &b).unwrap()).unwrap();
    }
    pool
}

/// Of rows `[x | z]`.
fn sizes_of(inner: usize, stride: usize) -> Sizes {
    Sizes {
        tokens: TOKENS,
        top_k: TOP_K,
        in_features: inner,
        out_features: OUT,
        x_stride: stride,
        y_stride: OUT,
        h_stride: stride,
        output: Output::Sum,
    }
}

/// Rows `[x | ..]` of this stride, something else behind x.
fn rows_of<E: Element>(inner: usize, stride: usize) -> Vec<E> {
    let x = values::<E>(40, TOKENS * inner);
    let mut rows = vec![E::from_f32(BASE); TOKENS * stride];
    (0..TOKENS).for_each(|t| rows[t * stride..][..inner].copy_from_slice(&x[t * inner..][..inner]));
    rows
}

/// `[x | z]` as `fused_gate` leaves it, and as z of its own says that it should be left.
fn joined<E: Element>(wgpu: &Wgpu, pool: &Pool, sizes: &Sizes, routed: bool) -> [Vec<E>; 2] {
    let (inner, stride, columns) = (sizes.in_features, sizes.x_stride, pool.slots().used_rows());
    let rows = rows_of::<E>(inner, stride);
    let router =
        LinearRouter::new(RANKS.len(), inner, &values::<f32>(50, RANKS.len() * inner), None).unwrap();
    let router = WgpuRouter::new(wgpu, router).unwrap();
    let router = routed.then_some((&router, Weighting::SoftmaxSelected));
    // Slot 1 holds nothing.
    let ids: Vec<i32> = (0..TOKENS * TOP_K).map(|n| [0, 2, 3, -1][(n * 5 + n / 3) % 4]).collect();
    let own = wgpu.upload(&vec![E::from_f32(BASE); TOKENS * stride]).unwrap();
    let memory = wgpu.upload(&rows).unwrap();
    for z in [&own, &memory] {
        let first = if z == &memory { inner } else { 0 };
        let (ids, weights) =
            (wgpu.upload(&ids).unwrap(), wgpu.upload(&values::<f32>(51, ids.len())).unwrap());
        let x = View::<E>::new(&memory, 0, TOKENS * stride).unwrap();
        let z = View::<E>::new(z, first, TOKENS * stride - first).unwrap();
        let mut encoder = wgpu.encoder();
        let (ids, weights) =
            (View::new(&ids, 0, TOKENS * TOP_K).unwrap(), View::new(&weights, 0, TOKENS * TOP_K).unwrap());
        wgpu.fused_gate(&mut encoder, sizes, pool, router, x, ids, weights, z).unwrap();
        wgpu.queue().submit([encoder.finish()]);
    }
    let z = wgpu.download::<E>(&own, rows.len()).unwrap();
    let mut want = rows;
    for t in 0..TOKENS {
        want[t * stride + inner..][..columns].copy_from_slice(&z[t * stride..][..columns]);
    }
    [wgpu.download::<E>(&memory, want.len()).unwrap(), want]
}

fn the_pair<E: Element>(wgpu: &Wgpu, inner: usize, padding: usize) {
    let pool = filled_pool::<E>(wgpu, inner);
    let columns = pool.slots().used_rows();
    let stride = inner + columns + padding;
    let label = format!("{} {inner} + {columns} + {padding} on {}", E::TYPE, wgpu.describe());
    let sizes = sizes_of(inner, stride);
    for routed in [false, true] {
        let [got, want] = joined::<E>(wgpu, &pool, &sizes, routed);
        assert!(got == want, "{label}: [x | z], routed: {routed}");
    }
    wgpu.take_status().unwrap(); // a router may choose the empty slot

    let weight = values::<E>(5, OUT * inner);
    let mut want = vec![E::from_f32(BASE); OUT * stride];
    for o in 0..OUT {
        want[o * stride..][..inner].copy_from_slice(&weight[o * inner..][..inner]);
        for (e, slot) in pool.slots().slots().iter().enumerate() {
            let rank = slot.rank as usize;
            let b = values::<E>(e + 9, rank * OUT);
            want[o * stride + inner + slot.row as usize..][..rank].copy_from_slice(&b[o * rank..][..rank]);
        }
    }
    let (weight, concat) =
        (wgpu.upload(&weight).unwrap(), wgpu.upload(&vec![E::from_f32(BASE); OUT * stride]).unwrap());
    let mut encoder = wgpu.encoder();
    let view = View::new(&concat, 0, OUT * stride).unwrap();
    let weight = View::<E>::new(&weight, 0, OUT * inner).unwrap();
    wgpu.fused_concat(&mut encoder, &pool, weight, stride, view).unwrap();
    wgpu.queue().submit([encoder.finish()]);
    let got = wgpu.download::<E>(&concat, want.len()).unwrap();
    assert!(got == want, "{label}: [weight | B]");
}

#[test]
fn an_engine_may_multiply_itself() {
    for wgpu in devices() {
        // 21 rows of the pool: an odd number, whose last word is half padding.
        for (inner, padding) in [(64, 3), (40, 11), (38, 1)] {
            the_pair::<f32>(&wgpu, inner, padding);
            the_pair::<f16>(&wgpu, inner, padding);
            the_pair::<bf16>(&wgpu, inner, padding);
        }
        the_pair::<f32>(&wgpu, 37, 0);
    }
}

/// A plain product of the pair is the layer's: sums of these values are exact, whatever their order.
#[test]
fn the_product_of_the_pair_is_the_dense_form() {
    for wgpu in devices() {
        let (inner, pool) = (24, filled_pool::<f32>(&wgpu, 24));
        let stride = inner + pool.slots().used_rows();
        let sizes = sizes_of(inner, stride);
        let [rows, _] = joined::<f32>(&wgpu, &pool, &sizes, false);
        let [rows, weight, concat] = [rows, values(5, OUT * inner), vec![f32::NAN; OUT * stride]]
            .map(|v: Vec<f32>| wgpu.upload(&v).unwrap());
        let ys = [0, 1].map(|_| wgpu.upload(&vec![f32::NAN; TOKENS * OUT]).unwrap());
        let z = View::<f32>::new(&rows, inner, TOKENS * stride - inner).unwrap();
        let rows = View::<f32>::new(&rows, 0, TOKENS * stride).unwrap();
        let weight = View::<f32>::new(&weight, 0, OUT * inner).unwrap();
        let concat = View::<f32>::new(&concat, 0, OUT * stride).unwrap();
        let mut encoder = wgpu.encoder();
        wgpu.fused_concat(&mut encoder, &pool, weight, stride, concat).unwrap();
        let plain = base::Sizes {
            tokens: TOKENS,
            in_features: stride,
            out_features: OUT,
            x_stride: stride,
            y_stride: OUT,
        };
        wgpu.base(&mut encoder, &plain, concat, None, rows, View::whole(&ys[0])).unwrap();
        wgpu.fused_dense(&mut encoder, &sizes, &pool, weight, None, rows, z, View::whole(&ys[1])).unwrap();
        wgpu.queue().submit([encoder.finish()]);
        let [plain, dense] = ys.map(|y| wgpu.download::<f32>(&y, TOKENS * OUT).unwrap());
        assert!(plain.iter().all(|v| v.is_finite()));
        assert_eq!(plain, dense);
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    for wgpu in devices() {
        let pool = filled_pool::<f16>(&wgpu, 8);
        let weight = wgpu.upload(&values::<f32>(1, 8 * OUT)).unwrap();
        let concat = wgpu.upload(&vec![0f32; 30 * OUT]).unwrap();
        let (weight, concat) = (View::<f32>::whole(&weight), View::<f32>::whole(&concat));
        let refused = wgpu.fused_concat(&mut wgpu.encoder(), &pool, weight, 30, concat).unwrap_err();
        assert_eq!(refused.to_string(), "fused: pool's element: expected f32, the weight's, got f16");

        let (pool, stride) = (filled_pool::<f32>(&wgpu, 8), 29);
        let refused = wgpu.fused_concat(&mut wgpu.encoder(), &pool, weight, 28, concat).unwrap_err();
        assert!(refused.to_string().contains("row_stride: expected at least 29"), "{refused}");
        let memory = wgpu.upload(&rows_of::<f32>(8, stride)).unwrap();
        let (ids, weights) =
            (wgpu.upload(&[-1i32; TOKENS * TOP_K]).unwrap(), wgpu.upload(&[0f32; TOKENS * TOP_K]).unwrap());
        let sizes = sizes_of(8, stride);
        // Over the last column of x; of another stride; ranks that reach into the next row.
        for (first, h_stride) in [(7, stride), (8, stride - 1), (9, stride)] {
            let sizes = Sizes { h_stride, ..sizes };
            let x = View::<f32>::whole(&memory);
            let z = View::<f32>::new(&memory, first, x.len() - first).unwrap();
            let ids = View::new(&ids, 0, TOKENS * TOP_K).unwrap();
            let weights = View::new(&weights, 0, TOKENS * TOP_K).unwrap();
            let gate = wgpu.fused_gate(&mut wgpu.encoder(), &sizes, &pool, None, x, ids, weights, z);
            let refused = gate.unwrap_err().to_string();
            assert!(refused.contains("z: expected"), "{first}, {h_stride}: {refused}");
        }
    }
}
