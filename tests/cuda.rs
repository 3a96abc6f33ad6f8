//! What an engine relies on with its own CUDA stream and memory: captured graphs that see later adapters and token counts,
//! its own stream and slices, borrowed workspaces, refusals instead of panics.
#![cfg(feature = "cuda")]

mod common;

use common::cuda::{device, write};
use half::{bf16, f16};
use molora::adapter::LinearRouter;
use molora::adapter::slots::PoolSizes;
use molora::device::cpu;
use molora::device::cuda::cudarc::driver::{CudaContext, CudaGraph, CudaSlice, sys};
use molora::device::cuda::{Plan, Pool, Status, View, ViewMut};
use molora::layer::cuda::{RoutingView, Workspace};
use molora::layer::{Base, MoeLora, Router, Routing, Rows};
use molora::ops::fused::Form;
use molora::ops::route::{CudaRouter, Rule, Weighting};
use molora::ops::{Output, base, expand, plan, route};
use molora::{Cpu, Cuda, Element, ElementType, Lora};
use std::sync::Arc;

const IN: usize = 24;
const OUT: usize = 20;
const TOKENS: usize = 7;
const TOP_K: usize = 2;
const RANKS: [usize; 4] = [3, 8, 17, 20];

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

fn pool<E: Element>(cuda: &Cuda, experts: &[usize]) -> Pool {
    let mut pool = Pool::new(cuda, sizes(E::TYPE)).unwrap();
    experts.iter().for_each(|&e| pool.put(e, &lora::<E>(e)).unwrap());
    pool
}

fn external<E: Element>(cuda: &Cuda, experts: &[usize]) -> MoeLora<Cuda> {
    MoeLora::<Cuda>::new(cuda, pool::<E>(cuda, experts), Router::External { top_k: TOP_K }).unwrap()
}

fn linear(seed: usize) -> Router<LinearRouter> {
    let weight = values::<f32>(seed, 3 * IN);
    let linear = LinearRouter::new(3, IN, &weight, Some(&[0.25, -0.5, 0.0])).unwrap();
    Router::best(linear, TOP_K, Weighting::SoftmaxSelected)
}

fn rows(tokens: usize) -> Rows {
    Rows { tokens, x_stride: IN, y_stride: OUT }
}

/// What the CPU says of the same layer, whose ids and weights are read or, with a router, written.
fn on_cpu<E: Element>(
    experts: &[usize],
    router: Router<LinearRouter>,
    (x, weight): (&[E], &[E]),
    (ids, weights): (&mut [i32], &mut [f32]),
) -> Vec<E> {
    let mut pool = cpu::Pool::new(sizes(E::TYPE)).unwrap();
    experts.iter().for_each(|&e| pool.put(e, &lora::<E>(e)).unwrap());
    let layer = MoeLora::<Cpu>::new(&Cpu::new().unwrap(), pool, router).unwrap();
    let tokens = x.len() / IN;
    let mut y = vec![E::from_f32(f32::NAN); tokens * OUT];
    let mut workspace = vec![f32::NAN; layer.workspace_len(tokens)];
    let mut routing = Routing::new(ids, weights);
    let weight = layer.device().pack(OUT, IN, weight).unwrap();
    let base = Base { weight: &weight, bias: None };
    layer.forward(&rows(tokens), base, x, &mut routing, &mut workspace, &mut y).unwrap();
    y
}

fn close<E: Element>(got: &[E], want: &[E], tolerance: f32) {
    assert_eq!(got.len(), want.len());
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        let (g, w) = (g.to_f32(), w.to_f32());
        assert!((g - w).abs() <= tolerance * (1.0 + w.abs()), "[{i}]: expected {w}, got {g}");
    }
}

/// What an engine holds for one layer.
struct Engine<E> {
    x: CudaSlice<E>,
    weight: CudaSlice<E>,
    ids: CudaSlice<i32>,
    weights: CudaSlice<f32>,
    live: CudaSlice<u32>,
    y: CudaSlice<E>,
}

impl<E: Element> Engine<E> {
    fn new(cuda: &Cuda) -> Self {
        Self {
            x: cuda.upload(&values::<E>(1, TOKENS * IN)).unwrap(),
            weight: cuda.upload(&values::<E>(5, OUT * IN)).unwrap(),
            ids: cuda.upload(&[-1i32; TOKENS * TOP_K]).unwrap(),
            weights: cuda.upload(&[0.5f32; TOKENS * TOP_K]).unwrap(),
            live: cuda.upload(&[TOKENS as u32]).unwrap(),
            y: cuda.upload(&[E::from_f32(7.0); TOKENS * OUT]).unwrap(),
        }
    }

    /// Views first, then the capture, then the views go: with cudarc's event tracking on.
    fn capture(&mut self, layer: &MoeLora<Cuda>, workspace: &mut Workspace) -> CudaGraph {
        let cuda = layer.device();
        let (x, weight) = (View::whole(cuda, &self.x).unwrap(), View::whole(cuda, &self.weight).unwrap());
        let mut routing = RoutingView {
            live_tokens: Some(View::whole(cuda, &self.live).unwrap()),
            ..RoutingView::new(
                ViewMut::whole(cuda, &mut self.ids).unwrap(),
                ViewMut::whole(cuda, &mut self.weights).unwrap(),
            )
        };
        let mut y = ViewMut::whole(cuda, &mut self.y).unwrap();
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        cuda.stream().begin_capture(mode).unwrap();
        let base = Base { weight: &weight, bias: None };
        layer.forward(&rows(TOKENS), base, &x, &mut routing, workspace, &mut y).unwrap();
        let graph = cuda.stream().end_capture(sys::CUgraphInstantiate_flags(0)).unwrap();
        graph.expect("launches were captured")
    }

    /// Replays over `live` tokens and returns y, whose other rows hold 7.
    fn replay(&mut self, cuda: &Cuda, graph: &CudaGraph, ids: &[i32], live: usize) -> Vec<E> {
        write(cuda, &mut self.ids, ids);
        write(cuda, &mut self.live, &[live as u32]);
        write(cuda, &mut self.y, &[E::from_f32(7.0); TOKENS * OUT]);
        graph.launch().unwrap();
        cuda.download(&self.y, TOKENS * OUT).unwrap()
    }
}

/// What a replay over the first `live` tokens must give.
fn replayed<E: Element>(experts: &[usize], ids: &[i32], live: usize) -> Vec<E> {
    let (x, weight) = (values::<E>(1, TOKENS * IN), values::<E>(5, OUT * IN));
    let (mut ids, mut weights) = (ids[..live * TOP_K].to_vec(), vec![0.5; live * TOP_K]);
    let router = Router::External { top_k: TOP_K };
    let mut y = on_cpu(experts, router, (&x[..live * IN], &weight), (&mut ids, &mut weights));
    y.resize(TOKENS * OUT, E::from_f32(7.0));
    y
}

fn a_captured_layer_sees_later_adapters_and_tokens<E: Element>(tolerance: f32) {
    let Some(cuda) = device() else { return };
    assert!(cuda.stream().context().is_event_tracking(), "cudarc's own default");
    let mut layer = external::<E>(&cuda, &[0, 1]);
    layer.reserve_rank(17).unwrap();
    let (mut workspace, mut engine) = (layer.workspace(TOKENS).unwrap(), Engine::<E>::new(&cuda));
    let graph = engine.capture(&layer, &mut workspace);
    let pairs = |a: i32, b: i32| [a, b, b, a, -1, a, b, -1, -1, -1, a, a, b, b];
    let said = |layer: &MoeLora<Cuda>| layer.device().take_status().unwrap();
    for live in [TOKENS, 3, 0, 1, TOKENS] {
        let y = engine.replay(&cuda, &graph, &pairs(0, 1), live);
        close(&y, &replayed(&[0, 1], &pairs(0, 1), live), tolerance);
    }
    assert!(said(&layer).is_ok());
    // An adapter that came after the capture, in a slot that was empty then.
    layer.pool_mut().put(2, &lora::<E>(2)).unwrap();
    let y = engine.replay(&cuda, &graph, &pairs(2, 0), 5);
    close(&y, &replayed(&[0, 1, 2], &pairs(2, 0), 5), tolerance);
    assert!(said(&layer).is_ok());
    // One that left: skipped, and told.
    layer.pool_mut().evict(1).unwrap();
    let y = engine.replay(&cuda, &graph, &pairs(2, 1), TOKENS);
    close(&y, &replayed(&[0, 2], &pairs(2, -1), TOKENS), tolerance);
    assert_eq!(said(&layer), Status::STALE_SLOT);
    // One that is larger than was reserved: likewise.
    layer.pool_mut().put(3, &lora::<E>(3)).unwrap();
    let y = engine.replay(&cuda, &graph, &pairs(0, 3), TOKENS);
    close(&y, &replayed(&[0, 2], &pairs(0, -1), TOKENS), tolerance);
    assert_eq!(said(&layer), Status::RANK_TOO_LARGE);
    // Back again, in another place of the pool.
    layer.pool_mut().evict(0).unwrap();
    layer.pool_mut().put(1, &lora::<E>(1)).unwrap();
    let y = engine.replay(&cuda, &graph, &pairs(1, 2), TOKENS);
    close(&y, &replayed(&[1, 2], &pairs(1, 2), TOKENS), tolerance);
    assert!(said(&layer).is_ok());
}

#[test]
fn a_captured_layer_sees_later_adapters_and_tokens_in_f32() {
    a_captured_layer_sees_later_adapters_and_tokens::<f32>(1e-5);
}

#[test]
fn a_captured_layer_sees_later_adapters_and_tokens_in_16_bits() {
    a_captured_layer_sees_later_adapters_and_tokens::<f16>(4e-3);
    a_captured_layer_sees_later_adapters_and_tokens::<bf16>(3e-2);
}

/// A graph of a layer has a node for each launch and no other: nothing is allocated, copied or waited for.
#[test]
fn a_captured_layer_is_its_launches() {
    let Some(cuda) = device() else { return };
    let (few, beside) = (Some(Form::Few), Some(Form::Beside));
    for (form, output, launches) in
        [(few, Output::Sum, 1), (beside, Output::Sum, 4), (beside, Output::RankSum, 5)]
    {
        let layer = external::<f32>(&cuda, &[0, 1]).with_output(output).with_form(form);
        let (mut workspace, mut engine) = (layer.workspace(TOKENS).unwrap(), Engine::<f32>::new(&cuda));
        let graph = engine.capture(&layer, &mut workspace);
        let mut nodes = 0usize;
        // SAFETY: a graph that lives, asked for the number of its nodes alone.
        let asked = unsafe { sys::cuGraphGetNodes(graph.cu_graph(), std::ptr::null_mut(), &mut nodes) };
        assert_eq!((asked, nodes), (sys::CUresult::CUDA_SUCCESS, launches), "{form:?} {output:?}");
    }
}

#[test]
fn a_captured_layer_does_not_end_with_the_adapters_of_now() {
    let Some(cuda) = device() else { return };
    let layer = external::<f32>(&cuda, &[0, 1]);
    let form = || layer.choose::<f32>(256).unwrap().form;
    assert_eq!(form(), molora::ops::fused::Form::Dense, "few adapters and many tokens");
    let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
    cuda.stream().begin_capture(mode).unwrap();
    let captured = form();
    let _ = cuda.stream().end_capture(sys::CUgraphInstantiate_flags(0)).unwrap();
    assert_ne!(captured, molora::ops::fused::Form::Dense, "its launches know the rows of now alone");
}

#[test]
fn host_memory_is_not_captured() {
    let Some(cuda) = device() else { return };
    let mut pool = pool::<f32>(&cuda, &[0]);
    let Router::Linear { linear: router, rule } = linear(3) else { unreachable!("it is linear") };
    let slots = PoolSizes { experts: 3, ..sizes(ElementType::F32) };
    let external = Router::External { top_k: 1 };
    let mut layer = MoeLora::<Cuda>::new(&cuda, Pool::new(&cuda, slots).unwrap(), external).unwrap();
    let (slice, ids) = (cuda.upload(&[1f32]).unwrap(), cuda.upload(&[0i32]).unwrap());
    let ids = View::whole(&cuda, &ids).unwrap();
    let one = plan::Sizes { tokens: 1, top_k: 1, experts: RANKS.len() };
    let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
    cuda.stream().begin_capture(mode).unwrap();
    let refused = [
        pool.put(1, &lora::<f32>(1)).unwrap_err(),
        pool.evict(0).unwrap_err(),
        cuda.take_status().unwrap_err(),
        cuda.upload(&[1f32]).unwrap_err(),
        cuda.download(&slice, 1).unwrap_err(),
        cuda.plan(&one, &pool, &ids, None).unwrap_err(),
        CudaRouter::new(&cuda, router.clone()).unwrap_err(),
        layer.set_router(Router::Linear { linear: router, rule: Rule { top_k: 1, ..rule } }).unwrap_err(),
        layer.workspace(TOKENS).unwrap_err(),
        Pool::new(&cuda, sizes(ElementType::F32)).unwrap_err(),
        cuda.with_own_status().unwrap_err(),
        Cuda::from_stream(cuda.stream().clone()).unwrap_err(),
    ];
    let _ = cuda.stream().end_capture(sys::CUgraphInstantiate_flags(0));
    for error in refused {
        assert!(error.to_string().contains("stream: expected one that captures no graph"), "{error}");
    }
    pool.put(1, &lora::<f32>(1)).unwrap();
}

/// Two layers on the engine's stream, every view in the middle of a larger slice, workspaces in the engine's own memory; what
/// lies around the views stays as it was.
fn two_layers_on_the_engines_stream<E: Element>(first: usize, tolerance: f32) {
    if device().is_none() {
        return;
    }
    let context = CudaContext::new(0).unwrap();
    let (stream, other) = (context.new_stream().unwrap(), context.new_stream().unwrap());
    let cuda = Cuda::from_stream(stream.clone()).unwrap();
    assert!(Arc::ptr_eq(cuda.stream(), &stream));
    let weight = values::<E>(5, OUT * IN);
    let canary = |len: usize| vec![E::from_f32(7.0); len];
    for seed in [3, 4] {
        let layer = MoeLora::<Cuda>::new(&cuda, pool::<E>(&cuda, &[0, 1, 2]), linear(seed)).unwrap();
        let x = values::<E>(seed + 20, TOKENS * IN);
        // Written on another stream: the view waits for it.
        let x_slice = other.clone_htod(&[canary(first), x.clone(), canary(6)].concat()).unwrap();
        let mut y_slice = cuda.upload(&canary(first + TOKENS * OUT + 6)).unwrap();
        let w_slice = cuda.upload(&[canary(first), weight.clone()].concat()).unwrap();
        let mut ids = cuda.upload(&[7i32; 3 + TOKENS * TOP_K + 3]).unwrap();
        let mut weights = cuda.upload(&[7f32; 3 + TOKENS * TOP_K + 3]).unwrap();
        let [plan_bytes, h_bytes] = layer.workspace_bytes(TOKENS).unwrap();
        let plan = cuda.upload(&vec![u32::MAX; plan_bytes as usize / 4]).unwrap();
        let h = cuda.upload(&vec![f32::NAN; h_bytes as usize / 4]).unwrap();
        let mut workspace = layer.workspace_in(plan, h).unwrap();
        {
            let routes = 3..3 + TOKENS * TOP_K;
            let mut routing = RoutingView::new(
                ViewMut::new(&cuda, ids.slice_mut(routes.clone())).unwrap(),
                ViewMut::new(&cuda, weights.slice_mut(routes)).unwrap(),
            );
            let x = View::new(&cuda, x_slice.slice(first..first + TOKENS * IN)).unwrap();
            let mut y = ViewMut::new(&cuda, y_slice.slice_mut(first..first + TOKENS * OUT)).unwrap();
            let weight = View::new(&cuda, w_slice.slice(first..)).unwrap();
            let base = Base { weight: &weight, bias: None };
            layer.forward(&rows(TOKENS), base, &x, &mut routing, &mut workspace, &mut y).unwrap();
        }
        let (mut want_ids, mut want_weights) = (vec![9; TOKENS * TOP_K], vec![f32::NAN; TOKENS * TOP_K]);
        let want = on_cpu(&[0, 1, 2], linear(seed), (&x, &weight), (&mut want_ids, &mut want_weights));
        let y = cuda.download(&y_slice, first + TOKENS * OUT + 6).unwrap();
        close(&y[first..first + TOKENS * OUT], &want, tolerance);
        assert!(y[..first].iter().chain(&y[first + TOKENS * OUT..]).all(|v| v.to_f32() == 7.0), "around y");
        let ids = cuda.download(&ids, 6 + TOKENS * TOP_K).unwrap();
        assert_eq!(ids[3..3 + TOKENS * TOP_K], want_ids);
        assert!(ids[..3].iter().chain(&ids[3 + TOKENS * TOP_K..]).all(|&v| v == 7), "around topk_ids");
        let weights = cuda.download(&weights, 6 + TOKENS * TOP_K).unwrap();
        close(&weights[3..3 + TOKENS * TOP_K], &want_weights, 1e-6);
        assert!(layer.device().take_status().unwrap().is_ok());
    }
}

#[test]
fn two_layers_share_the_engines_stream_with_views_in_larger_slices() {
    for first in [1, 2, 8] {
        two_layers_on_the_engines_stream::<f32>(first, 1e-5);
        two_layers_on_the_engines_stream::<f16>(first, 4e-3);
        two_layers_on_the_engines_stream::<bf16>(first, 3e-2);
    }
}

#[test]
fn workspaces_are_asked_for_and_checked() {
    let Some(cuda) = device() else { return };
    let mut layer = external::<f32>(&cuda, &[0]);
    let sizes = plan::Sizes { tokens: TOKENS, top_k: TOP_K, experts: RANKS.len() };
    let h = |rank: usize| (TOKENS * TOP_K * rank * 4) as u64;
    assert_eq!(
        layer.workspace_bytes(TOKENS).unwrap(),
        [Plan::bytes(&sizes), h(4)],
        "rank 3, rows of 16 bytes"
    );
    layer.reserve_rank(17).unwrap();
    assert_eq!(layer.workspace_bytes(TOKENS).unwrap()[1], h(20));
    assert_eq!(
        layer.reserve_rank(49).unwrap_err().to_string(),
        "pool: rank: expected at most the pool's 48 ranks, got 49"
    );
    let layer = layer.with_output(Output::RankSum);
    let rank_sum = (TOKENS * 20 * 4 + TOKENS * TOP_K * 17 * 4) as u64;
    assert_eq!(layer.workspace_bytes(TOKENS).unwrap()[1], rank_sum, "one row a token, and one a route");
    for tokens in [usize::MAX, usize::MAX / 2, 1 << 40] {
        assert!(layer.workspace_bytes(tokens).is_err());
        assert!(layer.workspace(tokens).is_err());
    }
    // Small ones are refused before anything is enqueued.
    let layer = layer.with_output(Output::Sum);
    let mut small = layer.workspace(1).unwrap();
    let mut engine = Engine::<f32>::new(&cuda);
    let x = View::whole(&cuda, &engine.x).unwrap();
    let mut routing = RoutingView::new(
        ViewMut::whole(&cuda, &mut engine.ids).unwrap(),
        ViewMut::whole(&cuda, &mut engine.weights).unwrap(),
    );
    let mut y = ViewMut::whole(&cuda, &mut engine.y).unwrap();
    let refused = layer.forward_delta(&rows(TOKENS), &x, &mut routing, &mut small, &mut y).unwrap_err();
    let (needed, got) = (TOKENS * TOP_K * 20 * 4, TOP_K * 20 * 4);
    let says = format!("layer: workspace: expected at least {needed} bytes for h, got {got}");
    assert_eq!(refused.to_string(), says);
}

#[test]
fn a_pool_is_of_one_stream_and_a_plan_of_one_pool() {
    let Some(cuda) = device() else { return };
    let other = Cuda::new(0).unwrap();
    let (one, foreign) = (pool::<f32>(&cuda, &[0]), pool::<f32>(&other, &[0]));
    let error = MoeLora::<Cuda>::new(&cuda, foreign, Router::External { top_k: 1 }).unwrap_err();
    assert_eq!(error.to_string(), "layer: pool: expected a pool of this stream, got one of another stream");
    let second = pool::<f32>(&cuda, &[0]);
    let (tokens, top_k, output) = (1, 1, Output::Sum);
    let ids = cuda.upload(&[0i32]).unwrap();
    let sizes = plan::Sizes { tokens, top_k, experts: RANKS.len() };
    let plan = cuda.plan(&sizes, &one, &View::whole(&cuda, &ids).unwrap(), None).unwrap();
    let (x, weights) = (cuda.upload(&[0f32; IN]).unwrap(), cuda.upload(&[1f32]).unwrap());
    let mut h = cuda.upload(&[0f32; 3]).unwrap();
    let sizes =
        molora::ops::shrink::Sizes { tokens, top_k, in_features: IN, x_stride: IN, h_stride: 3, output };
    let (x, weights) = (View::<f32>::whole(&cuda, &x).unwrap(), View::whole(&cuda, &weights).unwrap());
    let mut h = ViewMut::whole(&cuda, &mut h).unwrap();
    let error = cuda.shrink(&sizes, &plan, &second, &x, &weights, None, &mut h).unwrap_err();
    assert_eq!(error.to_string(), "shrink: plan: expected a plan made for this pool, got another's");
    // A refused call leaves no plan where there was none, and the old one where there was.
    let two = cuda.upload(&[1u32, 1]).unwrap();
    let (two, ids) = (View::whole(&cuda, &two).unwrap(), View::whole(&cuda, &ids).unwrap());
    let mut empty = Plan::in_memory(&cuda, cuda.upload(&[0u32; 4096]).unwrap()).unwrap();
    assert!(cuda.plan_into(plan.sizes(), &one, &ids, Some(&two), &mut empty).is_err());
    assert!(cuda.shrink(&sizes, &empty, &one, &x, &weights, None, &mut h).is_err());
    let mut plan = plan;
    let sizes_of_plan = *plan.sizes();
    assert!(cuda.plan_into(&sizes_of_plan, &one, &ids, Some(&two), &mut plan).is_err());
    cuda.shrink(&sizes, &plan, &one, &x, &weights, None, &mut h).unwrap();
}

/// Views, routers, plans, workspaces and slices of one stream are no other's.
#[test]
fn memory_is_of_one_stream() {
    let Some(cuda) = device() else { return };
    let other = Cuda::from_stream(cuda.stream().context().new_stream().unwrap()).unwrap();
    let says = |result: molora::Result<()>, op: &str, argument: &str| {
        let want = format!("{op}: {argument}: expected memory of this stream, got another's");
        assert_eq!(result.unwrap_err().to_string(), want);
    };
    let Router::Linear { linear, rule } = linear(3) else { unreachable!("it is linear") };
    let router = CudaRouter::new(&cuda, linear).unwrap();
    let sizes = route::Sizes { tokens: TOKENS, in_features: IN, x_stride: IN, experts: 3, rule };
    let layers = [&cuda, &other].map(|cuda| external::<f32>(cuda, &[0, 1]));
    let [mut workspace, mut foreign] = [0, 1].map(|i| layers[i].workspace(TOKENS).unwrap());
    let mut engine = Engine::<f32>::new(&cuda);
    let (x, weight) = (View::whole(&cuda, &engine.x).unwrap(), View::whole(&cuda, &engine.weight).unwrap());
    let mut routing = RoutingView::new(
        ViewMut::whole(&cuda, &mut engine.ids).unwrap(),
        ViewMut::whole(&cuda, &mut engine.weights).unwrap(),
    );
    let mut y = ViewMut::whole(&cuda, &mut engine.y).unwrap();
    let plan_sizes = plan::Sizes { tokens: TOKENS, top_k: TOP_K, experts: RANKS.len() };
    let there = other.upload(&[-1i32; TOKENS * TOP_K]).unwrap();
    let ids = View::whole(&other, &there).unwrap();
    let mut plan = other.plan(&plan_sizes, layers[1].pool(), &ids, None).unwrap();
    let (ids, weights) = (&mut routing.topk_ids, &mut routing.topk_weights);
    says(other.route(&sizes, &router, &x, None, None, ids, weights), "route", "router");
    says(cuda.plan_into(&plan_sizes, layers[0].pool(), &ids.as_view(), None, &mut plan), "plan", "plan");
    says(plan.download(&cuda).map(drop), "download", "plan");
    says(other.plan_into(&plan_sizes, layers[1].pool(), &ids.as_view(), None, &mut plan), "plan", "topk_ids");
    let base =
        base::Sizes { tokens: TOKENS, in_features: IN, out_features: OUT, x_stride: IN, y_stride: OUT };
    says(other.base(&base, &weight, None, &x, None, &mut y), "base", "weight");
    let mut of = |cuda: usize, workspace: &mut Workspace| {
        layers[cuda].forward_delta(&rows(TOKENS), &x, &mut routing, workspace, &mut y)
    };
    of(0, &mut workspace).unwrap();
    says(of(0, &mut foreign), "layer", "workspace");
    says(of(1, &mut foreign), "plan", "topk_ids");
    // cudarc frees a slice on its own stream, with no thought for ours.
    says(Plan::in_memory(&cuda, other.upload(&[0u32; 4]).unwrap()).map(drop), "cuda", "slice");
    let (words, h) = (cuda.upload(&[0u32; 4]).unwrap(), other.upload(&[0f32; 4]).unwrap());
    says(layers[0].workspace_in(words, h).map(drop), "cuda", "slice");
}

/// Alone in its process it is the last handle that goes: the module stays.
#[test]
fn kernels_outlive_their_handles() {
    if device().is_none() {
        return;
    }
    let stream = CudaContext::new(0).unwrap().new_stream().unwrap();
    let cuda = Cuda::from_stream(stream.clone()).unwrap();
    let (x, weight) = (cuda.upload(&[2f32; IN]).unwrap(), cuda.upload(&[1f32; IN]).unwrap());
    let mut y = cuda.upload(&[7f32]).unwrap();
    let sizes = base::Sizes { tokens: 1, in_features: IN, out_features: 1, x_stride: IN, y_stride: 1 };
    let graph = {
        let (x, weight) = (View::whole(&cuda, &x).unwrap(), View::whole(&cuda, &weight).unwrap());
        let mut y = ViewMut::whole(&cuda, &mut y).unwrap();
        stream.begin_capture(sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL).unwrap();
        cuda.base(&sizes, &weight, None, &x, None, &mut y).unwrap();
        stream.end_capture(sys::CUgraphInstantiate_flags(0)).unwrap().expect("a launch was captured")
    };
    drop(cuda);
    graph.launch().unwrap();
    assert_eq!(stream.clone_dtoh(&y).unwrap(), [2.0 * IN as f32]);
}

#[test]
fn empty_problems_leave_early() {
    let Some(cuda) = device() else { return };
    let layer = external::<f32>(&cuda, &[]);
    let mut workspace = layer.workspace(TOKENS).unwrap();
    let mut engine = Engine::<f32>::new(&cuda);
    let graphless = |engine: &mut Engine<f32>, workspace: &mut Workspace, tokens: usize| {
        let x = View::whole(&cuda, &engine.x).unwrap();
        let weight = View::whole(&cuda, &engine.weight).unwrap();
        let mut routing = RoutingView::new(
            ViewMut::new(&cuda, engine.ids.slice_mut(..tokens * TOP_K)).unwrap(),
            ViewMut::new(&cuda, engine.weights.slice_mut(..tokens * TOP_K)).unwrap(),
        );
        let mut y = ViewMut::whole(&cuda, &mut engine.y).unwrap();
        let base = Base { weight: &weight, bias: None };
        layer.forward(&rows(tokens), base, &x, &mut routing, workspace, &mut y).unwrap();
    };
    graphless(&mut engine, &mut workspace, 0);
    assert!(cuda.download(&engine.y, TOKENS * OUT).unwrap().iter().all(|&v| v == 7.0), "no token, no row");
    // No adapter at all: the base product alone.
    graphless(&mut engine, &mut workspace, TOKENS);
    let want = replayed::<f32>(&[], &[-1; TOKENS * TOP_K], TOKENS);
    close(&cuda.download(&engine.y, TOKENS * OUT).unwrap(), &want, 1e-5);
    assert!(layer.device().take_status().unwrap().is_ok());
}

#[test]
fn absurd_sizes_are_errors() {
    let Some(cuda) = device() else { return };
    let slice = cuda.upload(&[0f32; 4]).unwrap();
    assert_eq!(
        cuda.download(&slice, usize::MAX).unwrap_err().to_string(),
        "download: len: expected at most the slice's 4 elements, got 18446744073709551615"
    );
    let element = ElementType::F32;
    let huge =
        PoolSizes { in_features: 1 << 20, out_features: 8, experts: 1, rank_capacity: 1 << 12, element };
    assert!(Pool::new(&cuda, huge).unwrap_err().to_string().contains("below 2^32 elements"));
}

#[test]
fn a_gpu_is_the_best_device_and_a_machine_never_is() {
    let Some(cuda) = device() else { return };
    assert_eq!(molora::host::Device::by_name("cuda").unwrap().name(), "cuda");
    let best = molora::host::Device::best().unwrap();
    assert_eq!(best.name() == "cuda", !cuda.is_stand_in(), "{}", best.describe());
}

/// Rows from the live tokens on are neither read nor written, by the router and the base product too.
#[test]
fn tokens_that_are_not_live_are_left_alone() {
    let Some(cuda) = device() else { return };
    let Router::Linear { linear, rule } = linear(3) else { unreachable!("it is linear") };
    let router = CudaRouter::new(&cuda, linear).unwrap();
    let sizes = route::Sizes { tokens: TOKENS, in_features: IN, x_stride: IN, experts: 3, rule };
    let sizes_base =
        base::Sizes { tokens: TOKENS, in_features: IN, out_features: OUT, x_stride: IN, y_stride: OUT };
    for live in [0, 1, 3, TOKENS, TOKENS + 5] {
        let mut x = values::<f32>(1, TOKENS * IN);
        x.iter_mut().skip(live * IN).for_each(|v| *v = f32::NAN);
        let (x, weight) = (cuda.upload(&x).unwrap(), cuda.upload(&values::<f32>(5, OUT * IN)).unwrap());
        let count = cuda.upload(&[live as u32]).unwrap();
        let mut ids = cuda.upload(&[9i32; TOKENS * TOP_K]).unwrap();
        let mut weights = cuda.upload(&[9f32; TOKENS * TOP_K]).unwrap();
        let mut y = cuda.upload(&[7f32; TOKENS * OUT]).unwrap();
        {
            let (x, count) = (View::whole(&cuda, &x).unwrap(), View::whole(&cuda, &count).unwrap());
            let mut ids = ViewMut::whole(&cuda, &mut ids).unwrap();
            let mut weights = ViewMut::whole(&cuda, &mut weights).unwrap();
            cuda.route::<f32>(&sizes, &router, &x, None, Some(&count), &mut ids, &mut weights).unwrap();
            let weight = View::whole(&cuda, &weight).unwrap();
            for cuda in [cuda.clone(), cuda.batch_invariant(true)] {
                let mut y = ViewMut::whole(&cuda, &mut y).unwrap();
                cuda.base::<f32>(&sizes_base, &weight, None, &x, Some(&count), &mut y).unwrap();
            }
        }
        assert!(cuda.take_status().unwrap().is_ok(), "{live} live");
        let untouched = |from: usize, row: usize, all: &[f32], value: f32| {
            all.iter().skip(from * row).all(|&v| v == value)
                && all.iter().take(from * row).all(|v| *v != value)
        };
        let ids: Vec<f32> =
            cuda.download(&ids, TOKENS * TOP_K).unwrap().iter().map(|&id| id as f32).collect();
        assert!(untouched(live, TOP_K, &ids, 9.0), "{live} live: {ids:?}");
        assert!(untouched(live, TOP_K, &cuda.download(&weights, TOKENS * TOP_K).unwrap(), 9.0));
        assert!(untouched(live, OUT, &cuda.download(&y, TOKENS * OUT).unwrap(), 7.0));
    }
}

#[test]
fn tokens_without_routes_get_zeros_or_stay() {
    let Some(cuda) = device() else { return };
    without_routes::<f32>(&cuda, TOKENS);
    // More tokens than few: the zeros come from tensor cores.
    without_routes::<f16>(&cuda, 16);
    without_routes::<bf16>(&cuda, 16);
}

fn without_routes<E: Element>(cuda: &Cuda, tokens: usize) {
    let pool = pool::<E>(cuda, &[0]);
    let none = cuda.upload::<i32>(&[]).unwrap();
    let sizes = plan::Sizes { tokens, top_k: 0, experts: RANKS.len() };
    let plan = cuda.plan(&sizes, &pool, &View::new(cuda, none.slice(..0)).unwrap(), None).unwrap();
    let nothing = cuda.upload::<f32>(&[]).unwrap();
    let nothing = View::new(cuda, nothing.slice(..0)).unwrap();
    for (accumulate, want) in [(true, 7.0), (false, 0.0)] {
        // A row's end that is padding stays.
        let (stride, output) = (OUT + 3, Output::Sum);
        let mut y = cuda.upload(&vec![E::from_f32(7.0); tokens * stride]).unwrap();
        let sizes = expand::Sizes {
            tokens,
            top_k: 0,
            out_features: OUT,
            h_stride: 3,
            y_stride: stride,
            output,
            accumulate,
        };
        let mut view = ViewMut::<E>::whole(cuda, &mut y).unwrap();
        cuda.expand(&sizes, &plan, &pool, &nothing, &nothing, &mut view).unwrap();
        drop(view);
        let y = cuda.download(&y, tokens * stride).unwrap();
        let right = |(i, v): (usize, &E)| v.to_f32() == if i % stride < OUT { want } else { 7.0 };
        assert!(y.iter().enumerate().all(right), "{y:?}");
    }
}

#[test]
fn handles_go_to_other_threads() {
    fn moves<T: Send + Sync>() {}
    moves::<Cuda>();
    let Some(cuda) = device() else { return };
    let slice = cuda.upload(&[3f32; 5]).unwrap();
    let (cuda, slice) = (&cuda, &slice);
    let there = std::thread::scope(|s| s.spawn(move || cuda.download(slice, 5).unwrap()).join().unwrap());
    assert_eq!(there, [3.0; 5]);
}
