//! What an engine relies on with its own WebGPU memory and queue: offsets, several layers in one encoder, borrowed
//! workspaces, evictions between recording and submission, refusals instead of panics. Needs a WebGPU driver.
#![cfg(feature = "wgpu")]

use half::f16;
use molora::adapter::LinearRouter;
use molora::adapter::slots::PoolSizes;
use molora::device::cpu;
use molora::device::wgpu::{Pool, Status, View};
use molora::layer::{Base, MoeLora, Router, Routing, RoutingView, Rows};
use molora::ops::route::Weighting;
use molora::ops::{Output, base, expand, plan, shrink};
use molora::{Cpu, Element, ElementType, Error, Lora, Wgpu};

const IN: usize = 24;
const OUT: usize = 20;
const TOKENS: usize = 7;
const TOP_K: usize = 2;
const RANKS: [usize; 3] = [3, 8, 17];

fn wgpu() -> Wgpu {
    Wgpu::new().expect("a WebGPU driver; tests/run.sh installs one")
}

/// Seeded multiples of 1/8 in -1..1: exact in every element type.
fn values<E: Element>(seed: usize, len: usize) -> Vec<E> {
    (0..len).map(|i| E::from_f32((((i + 3) * (seed * 7 + 5) * 31 % 97) % 16) as f32 / 8.0 - 1.0)).collect()
}

fn sizes(element: ElementType) -> PoolSizes {
    PoolSizes { in_features: IN, out_features: OUT, experts: RANKS.len(), rank_capacity: 48, element }
}

fn lora<E: Element>(expert: usize) -> Lora {
    let rank = RANKS[expert];
    Lora::new(IN, OUT, rank, 0.5, &values::<E>(expert, rank * IN), &values::<E>(expert + 9, rank * OUT))
        .unwrap()
}

fn router(seed: usize) -> Router<LinearRouter> {
    let weight = values::<f32>(seed, RANKS.len() * IN);
    let linear = LinearRouter::new(RANKS.len(), IN, &weight, Some(&[0.25, -0.5, 0.0])).unwrap();
    Router::best(linear, TOP_K, Weighting::SoftmaxSelected)
}

fn layer<E: Element>(wgpu: &Wgpu, seed: usize) -> MoeLora<Wgpu> {
    let mut pool = Pool::new(wgpu, sizes(E::TYPE)).unwrap();
    (0..RANKS.len()).for_each(|e| pool.put(e, &lora::<E>(e)).unwrap());
    MoeLora::<Wgpu>::new(wgpu, pool, router(seed)).unwrap()
}

/// What the CPU says of the same layer: y, ids, weights.
fn expected<E: Element>(seed: usize, x: &[E], weight: &[E]) -> (Vec<E>, Vec<i32>, Vec<f32>) {
    let cpu = Cpu::new().unwrap();
    let mut pool = cpu::Pool::new(sizes(E::TYPE)).unwrap();
    (0..RANKS.len()).for_each(|e| pool.put(e, &lora::<E>(e)).unwrap());
    let layer = MoeLora::<Cpu>::new(&cpu, pool, router(seed)).unwrap();
    let (mut ids, mut weights) = (vec![9; TOKENS * TOP_K], vec![f32::NAN; TOKENS * TOP_K]);
    let mut y = vec![E::from_f32(f32::NAN); TOKENS * OUT];
    let mut workspace = vec![f32::NAN; layer.workspace_len(TOKENS)];
    let mut routing = Routing::new(&mut ids, &mut weights);
    let weight = cpu.pack(OUT, IN, weight).unwrap();
    let base = Base { weight: &weight, bias: None };
    layer.forward(&rows(), base, x, &mut routing, &mut workspace, &mut y).unwrap();
    (y, ids, weights)
}

fn rows() -> Rows {
    Rows { tokens: TOKENS, x_stride: IN, y_stride: OUT }
}

fn close<E: Element>(got: &[E], want: &[E], tolerance: f32) {
    assert_eq!(got.len(), want.len());
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        let (g, w) = (g.to_f32(), w.to_f32());
        assert!((g - w).abs() <= tolerance * (1.0 + w.abs()), "[{i}]: expected {w}, got {g}");
    }
}

/// Two layers recorded into one encoder, every view in the middle of a larger buffer, workspaces in the engine's own
/// memory; what lies around the views stays as it was.
fn two_layers_in_one_encoder<E: Element>(tolerance: f32) {
    let wgpu = wgpu();
    let (first, weight) = (2, values::<E>(5, OUT * IN));
    let canary = |len: usize| vec![E::from_f32(7.0); len];
    let mut encoder = wgpu.encoder();
    let mut outputs = Vec::new();
    for seed in [3, 4] {
        let layer = layer::<E>(&wgpu, seed);
        let x = values::<E>(seed + 20, TOKENS * IN);
        let x_buffer = wgpu.upload(&[canary(first), x.clone(), canary(6)].concat()).unwrap();
        let y_buffer = wgpu.upload(&canary(first + TOKENS * OUT + 6)).unwrap();
        let w_buffer = wgpu.upload(&[canary(first), weight.clone()].concat()).unwrap();
        let ids = wgpu.upload(&[7i32; 3 + TOKENS * TOP_K + 3]).unwrap();
        let weights = wgpu.upload(&[7f32; 3 + TOKENS * TOP_K + 3]).unwrap();
        let [plan_bytes, h_bytes] = layer.workspace_bytes(TOKENS).unwrap();
        let words = |bytes: u64| wgpu.upload(&vec![0xffff_ffffu32; bytes as usize / 4]).unwrap();
        let mut workspace = layer.workspace_in(words(plan_bytes), words(h_bytes));
        let routing = RoutingView::new(
            View::new(&ids, 3, TOKENS * TOP_K).unwrap(),
            View::new(&weights, 3, TOKENS * TOP_K).unwrap(),
        );
        let x_view = View::<E>::new(&x_buffer, first, TOKENS * IN).unwrap();
        let y_view = View::<E>::new(&y_buffer, first, TOKENS * OUT).unwrap();
        let base = Base { weight: View::new(&w_buffer, first, OUT * IN).unwrap(), bias: None };
        layer.forward(&mut encoder, &rows(), base, x_view, routing, &mut workspace, y_view).unwrap();
        outputs.push((layer, seed, x, y_buffer, ids, weights));
    }
    wgpu.queue().submit([encoder.finish()]);
    for (layer, seed, x, y_buffer, ids, weights) in outputs {
        let (want_y, want_ids, want_weights) = expected::<E>(seed, &x, &weight);
        let y = wgpu.download::<E>(&y_buffer, first + TOKENS * OUT + 6).unwrap();
        close(&y[first..first + TOKENS * OUT], &want_y, tolerance);
        assert!(y[..first].iter().chain(&y[first + TOKENS * OUT..]).all(|v| v.to_f32() == 7.0), "around y");
        let ids = wgpu.download::<i32>(&ids, 6 + TOKENS * TOP_K).unwrap();
        assert_eq!(ids[3..3 + TOKENS * TOP_K], want_ids);
        assert!(ids[..3].iter().chain(&ids[3 + TOKENS * TOP_K..]).all(|&v| v == 7), "around topk_ids");
        let weights = wgpu.download::<f32>(&weights, 6 + TOKENS * TOP_K).unwrap();
        close(&weights[3..3 + TOKENS * TOP_K], &want_weights, 1e-6);
        assert!(layer.device().take_status().unwrap().is_ok());
    }
}

#[test]
fn two_layers_share_an_encoder_with_views_in_larger_buffers() {
    two_layers_in_one_encoder::<f32>(1e-5);
    two_layers_in_one_encoder::<f16>(2e-3);
    two_layers_in_one_encoder::<half::bf16>(2e-2);
}

/// Records a delta for routes to slot 1, lets `change` loose on the pool, submits, and returns y and the status.
fn delta_after(change: impl FnOnce(&mut Pool)) -> (Vec<f32>, Status) {
    let wgpu = wgpu();
    let mut layer = layer::<f32>(&wgpu, 3);
    layer.set_router(Router::External { top_k: 1 }).unwrap();
    let (x, y) =
        (wgpu.upload(&values::<f32>(1, TOKENS * IN)).unwrap(), wgpu.upload(&[5f32; TOKENS * OUT]).unwrap());
    let (ids, weights) = (wgpu.upload(&[1i32; TOKENS]).unwrap(), wgpu.upload(&[1f32; TOKENS]).unwrap());
    let view = |b| View::new(b, 0, TOKENS);
    let routing = RoutingView::new(view(&ids).unwrap(), View::new(&weights, 0, TOKENS).unwrap());
    let mut workspace = layer.workspace(TOKENS).unwrap();
    let mut encoder = wgpu.encoder();
    let (x, y_view) =
        (View::<f32>::new(&x, 0, TOKENS * IN).unwrap(), View::new(&y, 0, TOKENS * OUT).unwrap());
    layer.forward_delta(&mut encoder, &rows(), x, routing, &mut workspace, y_view).unwrap();
    change(layer.pool_mut());
    wgpu.queue().submit([encoder.finish()]);
    (wgpu.download(&y, TOKENS * OUT).unwrap(), layer.device().take_status().unwrap())
}

#[test]
fn a_recorded_plan_never_reads_another_adapter() {
    let (y, status) = delta_after(|_| {});
    assert!(status.is_ok() && y.iter().all(|v| v.is_finite()) && y.iter().any(|&v| v != 5.0));
    let (y, status) = delta_after(|pool| pool.evict(1).unwrap());
    assert_eq!((status, y), (Status::STALE_SLOT, vec![5.0; TOKENS * OUT]));
    let (y, status) = delta_after(|pool| {
        pool.evict(1).unwrap();
        pool.put(1, &lora::<f32>(2)).unwrap();
    });
    assert_eq!((status, y), (Status::STALE_SLOT, vec![5.0; TOKENS * OUT]));
    let (_, status) = delta_after(|pool| pool.evict(0).unwrap());
    assert!(status.is_ok(), "slot 0 is not named");
}

#[test]
fn ids_that_name_nothing_are_skipped_and_told() {
    let wgpu = wgpu().with_own_status();
    let layer = layer::<f32>(&wgpu, 3);
    let sizes = plan::Sizes { tokens: 4, top_k: 1, experts: RANKS.len() };
    let plan = |ids: [i32; 4]| {
        let mut encoder = wgpu.encoder();
        let buffer = wgpu.upload(&ids).unwrap();
        wgpu.plan(&mut encoder, &sizes, layer.pool(), View::new(&buffer, 0, 4).unwrap()).unwrap();
        wgpu.queue().submit([encoder.finish()]);
        wgpu.take_status().unwrap()
    };
    assert!(plan([0, 1, 2, -1]).is_ok());
    assert_eq!(plan([0, 1, 3, -1]), Status::ID_OUT_OF_RANGE);
    assert_eq!(plan([i32::MIN, 0, 0, 0]), Status::ID_OUT_OF_RANGE);
    assert!(plan([-1; 4]).is_ok(), "the word is cleared when it is taken");
}

#[test]
fn bad_views_are_refused_by_name() {
    let wgpu = wgpu();
    let buffer = wgpu.upload(&[0f32; 64]).unwrap();
    let text = |r: Result<View<f16>, Error>| r.unwrap_err().to_string();
    assert_eq!(
        text(View::new(&buffer, 1, 4)),
        "view: first: expected an even element for packed 16-bit elements, got 1"
    );
    assert!(text(View::new(&buffer, 0, 129)).contains("within the buffer's 256 bytes"));
    assert!(text(View::new(&buffer, usize::MAX, 2)).contains("within the buffer"));

    let sizes = base::Sizes { tokens: 1, in_features: 3, out_features: 2, x_stride: 3, y_stride: 2 };
    let mut encoder = wgpu.encoder();
    let other = wgpu.upload(&[0f32; 64]).unwrap();
    let (x, y) = (View::<f16>::new(&buffer, 0, 3).unwrap(), View::new(&other, 0, 2).unwrap());
    let odd = wgpu.base(&mut encoder, &sizes, View::new(&other, 8, 6).unwrap(), None, x, y).unwrap_err();
    assert_eq!(odd.to_string(), "base: x_stride: expected an even stride for packed f16 rows, got 3");
    let sizes = base::Sizes { in_features: 4, x_stride: 4, ..sizes };
    let (x, y) = (View::<f16>::new(&buffer, 0, 4).unwrap(), View::new(&buffer, 16, 2).unwrap());
    let shared = wgpu.base(&mut encoder, &sizes, View::new(&other, 0, 8).unwrap(), None, x, y).unwrap_err();
    assert!(shared.to_string().contains("another buffer than y's"), "{shared}");
}

#[test]
fn buffers_beyond_the_binding_limit_are_refused() {
    let wgpu = wgpu();
    let limit = wgpu.limits().max_storage_buffer_binding_size;
    let rank_capacity = (limit / 4 / 1024 + 1) as usize;
    let too_large = PoolSizes {
        in_features: 1024,
        out_features: 8,
        experts: 1,
        rank_capacity,
        element: ElementType::F32,
    };
    let error = Pool::new(&wgpu, too_large).unwrap_err().to_string();
    assert!(error.contains(&format!("binding limit of {limit} bytes")), "{error}");
}

#[test]
fn a_lost_device_is_an_error() {
    let wgpu = wgpu();
    let layer = layer::<f32>(&wgpu, 3);
    wgpu.device().destroy();
    let _ = wgpu.wait();
    let error = wgpu.upload(&[0f32; 4]).unwrap_err();
    assert!(matches!(&error, Error::Device { reason, .. } if reason.contains("lost")), "{error}");
    assert!(matches!(layer.workspace(4), Err(Error::Device { .. })));
    assert!(matches!(wgpu.take_status(), Err(Error::Device { .. })));
}

#[test]
fn the_engines_own_device_is_taken_as_it_is() {
    // WebGPU's default limits and no features: what every engine can offer.
    let own = wgpu();
    let adapter = Wgpu::adapters().into_iter().find(|a| a.get_info().name == own.info().name).unwrap();
    let request = adapter.request_device(&wgpu::DeviceDescriptor::default());
    let (device, queue) = pollster::block_on(request).unwrap();
    let wgpu = Wgpu::from_device(adapter.get_info(), device, queue);
    let x = values::<f32>(1, TOKENS * IN);
    let weight = values::<f32>(5, OUT * IN);
    let layer = layer::<f32>(&wgpu, 3);
    let mut workspace = layer.workspace(TOKENS).unwrap();
    let (x_buffer, w_buffer) = (wgpu.upload(&x).unwrap(), wgpu.upload(&weight).unwrap());
    let y_buffer = wgpu.upload(&[f32::NAN; TOKENS * OUT]).unwrap();
    let (ids, weights) =
        (wgpu.upload(&[0i32; TOKENS * TOP_K]).unwrap(), wgpu.upload(&[0f32; TOKENS * TOP_K]).unwrap());
    let routing = RoutingView::new(
        View::new(&ids, 0, TOKENS * TOP_K).unwrap(),
        View::new(&weights, 0, TOKENS * TOP_K).unwrap(),
    );
    let base = Base { weight: View::new(&w_buffer, 0, OUT * IN).unwrap(), bias: None };
    let (x_view, y_view) = (
        View::<f32>::new(&x_buffer, 0, TOKENS * IN).unwrap(),
        View::new(&y_buffer, 0, TOKENS * OUT).unwrap(),
    );
    let mut encoder = wgpu.encoder();
    layer.forward(&mut encoder, &rows(), base, x_view, routing, &mut workspace, y_view).unwrap();
    wgpu.queue().submit([encoder.finish()]);
    close(&wgpu.download::<f32>(&y_buffer, TOKENS * OUT).unwrap(), &expected(3, &x, &weight).0, 1e-5);
}

#[test]
fn empty_views_bind() {
    let wgpu = wgpu();
    let (small, y) = (wgpu.upload(&[0f32]).unwrap(), wgpu.upload(&[f32::NAN; 4]).unwrap());
    let none = View::<f32>::new(&small, 1, 0).unwrap();
    let mut encoder = wgpu.encoder();
    let sizes = base::Sizes { tokens: 2, in_features: 0, out_features: 2, x_stride: 0, y_stride: 2 };
    wgpu.base(&mut encoder, &sizes, none, None, none, View::whole(&y)).unwrap();
    wgpu.queue().submit([encoder.finish()]);
    assert_eq!(wgpu.download::<f32>(&y, 4).unwrap(), [0.0; 4]);

    // No adapter at all: nothing to shrink, and expand overwrites y with zeros.
    let (y, ids) = (wgpu.upload(&[f32::NAN; OUT]).unwrap(), wgpu.upload(&[-1i32]).unwrap());
    let pool = Pool::new(&wgpu, sizes_of_nothing()).unwrap();
    let mut encoder = wgpu.encoder();
    let (tokens, top_k, h_stride, output) = (1, 1, 0, Output::Sum);
    let ids = View::new(&ids, 0, 1).unwrap();
    let plan = wgpu.plan(&mut encoder, &plan::Sizes { tokens, top_k, experts: 1 }, &pool, ids).unwrap();
    let sizes = expand::Sizes {
        tokens,
        top_k,
        out_features: OUT,
        h_stride,
        y_stride: OUT,
        output,
        accumulate: false,
    };
    let weights = View::new(&small, 0, 1).unwrap();
    wgpu.expand(&mut encoder, &sizes, &plan, &pool, none, weights, View::<f32>::whole(&y)).unwrap();
    wgpu.queue().submit([encoder.finish()]);
    assert_eq!(wgpu.download::<f32>(&y, OUT).unwrap(), [0.0; OUT]);
}

fn sizes_of_nothing() -> PoolSizes {
    PoolSizes { experts: 1, rank_capacity: 0, ..sizes(ElementType::F32) }
}

#[test]
fn a_plan_is_of_one_pool_and_a_pool_of_one_device() {
    let wgpu = wgpu();
    let (one, other) = (layer::<f32>(&wgpu, 3), layer::<f32>(&wgpu, 3));
    let ids = wgpu.upload(&[0i32]).unwrap();
    let (tokens, top_k, output) = (1, 1, Output::Sum);
    let mut encoder = wgpu.encoder();
    let sizes = plan::Sizes { tokens, top_k, experts: RANKS.len() };
    let plan = wgpu.plan(&mut encoder, &sizes, one.pool(), View::new(&ids, 0, 1).unwrap()).unwrap();
    let (x, weights) = (wgpu.upload(&[0f32; IN]).unwrap(), wgpu.upload(&[1f32; 4]).unwrap());
    let h = wgpu.upload(&[0f32; 20]).unwrap();
    let sizes = shrink::Sizes { tokens, top_k, in_features: IN, x_stride: IN, h_stride: 20, output };
    let (x, weights, h) = (View::<f32>::whole(&x), View::new(&weights, 0, 1).unwrap(), View::whole(&h));
    let error = wgpu.shrink(&mut encoder, &sizes, &plan, other.pool(), x, weights, h).unwrap_err();
    assert_eq!(error.to_string(), "shrink: plan: expected a plan made for this pool, got another's");

    let foreign = Pool::new(&self::wgpu(), self::sizes(ElementType::F32)).unwrap();
    let error = MoeLora::<Wgpu>::new(&wgpu, foreign, Router::External { top_k: 1 }).unwrap_err();
    assert!(error.to_string().contains("one of another device"), "{error}");
}

#[test]
fn absurd_sizes_are_errors() {
    let layer = layer::<f32>(&wgpu(), 3);
    for tokens in [usize::MAX, usize::MAX / 2, 1 << 40] {
        assert!(layer.workspace_bytes(tokens).is_err());
        assert!(layer.workspace(tokens).is_err());
    }
    let buffer = layer.device().upload(&[0f32; 4]).unwrap();
    assert!(View::<f16>::new(&buffer, 0, usize::MAX / 2).is_err());
    assert!(layer.device().download::<f32>(&buffer, usize::MAX).is_err());
}

#[test]
fn weights_that_are_not_finite_never_reach_y() {
    let mut weights = [1.0; TOKENS];
    weights[2] = f32::NAN;
    let x = values::<f32>(1, TOKENS * IN);

    let mut pool = cpu::Pool::new(sizes(ElementType::F32)).unwrap();
    pool.put(1, &lora::<f32>(1)).unwrap();
    let layer = MoeLora::<Cpu>::new(&Cpu::new().unwrap(), pool, Router::External { top_k: 1 }).unwrap();
    let (mut workspace, mut y) = (vec![0.0; layer.workspace_len(TOKENS)], vec![7f32; TOKENS * OUT]);
    let mut ids = [1; TOKENS];
    let mut routing = Routing::new(&mut ids, &mut weights);
    let weight = values::<f32>(5, OUT * IN);
    let weight = layer.device().pack(OUT, IN, &weight).unwrap();
    let base = Base { weight: &weight, bias: None };
    let error = layer.forward(&rows(), base, &x, &mut routing, &mut workspace, &mut y).unwrap_err();
    assert_eq!(error.to_string(), "fused: topk_weights[2, 0]: expected a finite weight, got NaN");
    assert!(y.iter().all(|&v| v == 7.0), "a refused call leaves y alone");

    let wgpu = wgpu();
    let mut layer = self::layer::<f32>(&wgpu, 3);
    layer.set_router(Router::External { top_k: 1 }).unwrap();
    let (x, y) = (wgpu.upload(&x).unwrap(), wgpu.upload(&[5f32; TOKENS * OUT]).unwrap());
    let (ids, weights) = (wgpu.upload(&ids).unwrap(), wgpu.upload(&weights).unwrap());
    let (topk_ids, topk_weights) =
        (View::new(&ids, 0, TOKENS).unwrap(), View::new(&weights, 0, TOKENS).unwrap());
    let (mut workspace, mut encoder) = (layer.workspace(TOKENS).unwrap(), wgpu.encoder());
    let (x, y_view) = (View::<f32>::whole(&x), View::whole(&y));
    let routing = RoutingView::new(topk_ids, topk_weights);
    layer.forward_delta(&mut encoder, &rows(), x, routing, &mut workspace, y_view).unwrap();
    wgpu.queue().submit([encoder.finish()]);
    let y = wgpu.download::<f32>(&y, TOKENS * OUT).unwrap();
    assert_eq!(layer.device().take_status().unwrap(), Status::WEIGHT_NOT_FINITE);
    assert!(y.iter().all(|v| v.is_finite()) && y[2 * OUT..3 * OUT].iter().all(|&v| v == 5.0));
    assert!(y[..OUT].iter().any(|&v| v != 5.0));
}
