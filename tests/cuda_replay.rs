//! Captured layers of the systems: with other tokens, sets, masks and adapters a replay gives what a fresh call gives, bit for
//! bit, and what the CPU gives.
#![cfg(feature = "cuda")]

mod common;

use common::cuda::{device, write};
use half::{bf16, f16};
use molora::adapter::slots::PoolSizes;
use molora::adapter::store::{Limits, Served, Store};
use molora::adapter::{Adapter, LinearRouter};
use molora::device::cuda::cudarc::driver::{CudaGraph, CudaSlice, sys};
use molora::device::cuda::{Pool, Status, View, ViewMut};
use molora::host::{Device, HostLayer};
use molora::layer::cuda::{RoutingView, Workspace};
use molora::layer::{Base, MoeLora, Router, Routing, Rows};
use molora::ops::fused::Form;
use molora::ops::route::{Allow, AllowLists};
use molora::preset::{Parameters, Preset};
use molora::{Cuda, Element, ElementType, Lora};
use std::collections::BTreeMap;
use std::sync::Arc;

const IN: usize = 40;
const OUT: usize = 24;
const TOKENS: usize = 9;
const RANKS: [usize; 4] = [3, 8, 17, 5];
/// Of every mask.
const REQUESTS: usize = 3;

/// Seeded multiples of 1/8 in -1..1: exact in every element type.
fn values(seed: usize, len: usize) -> Vec<f32> {
    (0..len).map(|i| (((i + 3) * (seed * 7 + 5) * 31 % 97) % 16) as f32 / 8.0 - 1.0).collect()
}

fn sizes(element: ElementType) -> PoolSizes {
    PoolSizes { in_features: IN, out_features: OUT, experts: RANKS.len(), rank_capacity: 33, element }
}

fn lora<E: Element>(expert: usize) -> Lora {
    let of = |seed, len| values(seed, len).into_iter().map(E::from_f32).collect::<Vec<E>>();
    let rank = RANKS[expert];
    Lora::new(IN, OUT, rank, 0.25, &of(expert, rank * IN), &of(expert + 9, rank * OUT)).unwrap()
}

/// RAMoLE's router adapter, small enough that no expert has all the weight.
fn attention() -> Lora {
    let small: Vec<f32> = values(40, 4 * IN).iter().map(|v| v / 32.0).collect();
    Lora::new(IN, OUT, 4, 1.0, &small, &values(41, 4 * OUT)).unwrap()
}

/// What one call takes, in host memory.
struct Call {
    x: Vec<f32>,
    ids: Vec<i32>,
    allow: Option<AllowLists>,
    live: usize,
}

impl Call {
    /// Tokens of a seed; every token takes these ids, in turn from another one on.
    fn of(seed: usize, ids: &[i32], live: usize) -> Self {
        let ids = (0..TOKENS * ids.len()).map(|n| ids[(n + n / ids.len()) % ids.len()]).collect();
        Self { x: values(seed, TOKENS * IN), ids, allow: None, live }
    }

    /// With a mask: for each request its tokens, and what they may take.
    fn masked(mut self, requests: [(usize, &[usize]); REQUESTS]) -> Self {
        let mut lists = AllowLists::new(RANKS.len());
        requests.iter().for_each(|(tokens, may)| lists.push(*tokens, may.iter().copied()).unwrap());
        self.allow = Some(lists);
        self
    }
}

/// The same in the device's memory, at places that never change.
struct Engine<E> {
    x: CudaSlice<E>,
    weight: CudaSlice<E>,
    ids: CudaSlice<i32>,
    weights: CudaSlice<f32>,
    offsets: CudaSlice<u32>,
    lists: CudaSlice<u32>,
    live: CudaSlice<u32>,
    y: CudaSlice<E>,
}

/// What a call leaves of its live tokens: ids, weights, y.
type Left<E> = (Vec<i32>, Vec<f32>, Vec<E>);

impl<E: Element> Engine<E> {
    fn new(cuda: &Cuda, top_k: usize) -> Self {
        Self {
            x: cuda.upload(&[E::from_f32(0.0); TOKENS * IN]).unwrap(),
            weight: cuda.upload(&rounded::<E>(&values(5, OUT * IN))).unwrap(),
            ids: cuda.upload(&vec![-1i32; TOKENS * top_k]).unwrap(),
            weights: cuda.upload(&vec![0f32; TOKENS * top_k]).unwrap(),
            offsets: cuda.upload(&[0u32; REQUESTS + 1]).unwrap(),
            lists: cuda.upload(&[0u32; REQUESTS]).unwrap(),
            live: cuda.upload(&[0u32]).unwrap(),
            y: cuda.upload(&[E::from_f32(7.0); TOKENS * OUT]).unwrap(),
        }
    }

    /// One call, recorded into a graph where `capture` says so: views first, then the capture, then the views go.
    fn forward(
        &mut self,
        layer: &MoeLora<Cuda>,
        masked: bool,
        workspace: &mut Workspace,
        capture: bool,
    ) -> Option<CudaGraph> {
        let cuda = layer.device();
        let (x, weight) = (View::whole(cuda, &self.x).unwrap(), View::whole(cuda, &self.weight).unwrap());
        let allow = masked.then(|| Allow {
            offsets: View::whole(cuda, &self.offsets).unwrap(),
            lists: View::whole(cuda, &self.lists).unwrap(),
        });
        let ids = ViewMut::whole(cuda, &mut self.ids).unwrap();
        let weights = ViewMut::whole(cuda, &mut self.weights).unwrap();
        let live_tokens = Some(View::whole(cuda, &self.live).unwrap());
        let mut routing = RoutingView { live_tokens, allow, ..RoutingView::new(ids, weights) };
        let mut y = ViewMut::whole(cuda, &mut self.y).unwrap();
        if capture {
            let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
            cuda.stream().begin_capture(mode).unwrap();
        }
        let (rows, base) =
            (Rows { tokens: TOKENS, x_stride: IN, y_stride: OUT }, Base { weight: &weight, bias: None });
        layer.forward(&rows, base, &x, &mut routing, workspace, &mut y).unwrap();
        let flags = sys::CUgraphInstantiate_flags(0);
        capture.then(|| cuda.stream().end_capture(flags).unwrap().expect("launches were captured"))
    }

    fn write(&mut self, cuda: &Cuda, call: &Call) {
        write(cuda, &mut self.x, &rounded::<E>(&call.x));
        write(cuda, &mut self.ids, &call.ids);
        write(cuda, &mut self.weights, &vec![0.5; call.ids.len()]);
        write(cuda, &mut self.live, &[call.live as u32]);
        write(cuda, &mut self.y, &[E::from_f32(7.0); TOKENS * OUT]);
        if let Some(lists) = &call.allow {
            let Allow { offsets, lists } = lists.as_allow();
            write(cuda, &mut self.offsets, offsets);
            write(cuda, &mut self.lists, lists);
        }
    }

    /// What a call left; what lies behind the live tokens is as it was.
    fn read(&self, cuda: &Cuda, call: &Call) -> Left<E> {
        let (routes, y) =
            (call.live * call.ids.len() / TOKENS, cuda.download(&self.y, TOKENS * OUT).unwrap());
        assert!(y[call.live * OUT..].iter().all(|v| v.to_f32() == 7.0), "behind the live tokens");
        let (ids, weights) = (cuda.download(&self.ids, routes), cuda.download(&self.weights, routes));
        (ids.unwrap(), weights.unwrap(), y[..call.live * OUT].to_vec())
    }

    /// A replay's results, which are those of a fresh call of the layer; and what the status word says.
    fn replay(&mut self, layer: &MoeLora<Cuda>, graph: &CudaGraph, call: &Call) -> (Left<E>, Status) {
        let cuda = layer.device();
        self.write(cuda, call);
        graph.launch().unwrap();
        let (replayed, status) = (self.read(cuda, call), cuda.take_status().unwrap());
        self.write(cuda, call);
        let mut workspace = layer.workspace(TOKENS).unwrap();
        self.forward(layer, call.allow.is_some(), &mut workspace, false);
        assert_eq!(replayed, self.read(cuda, call), "a replay is a fresh call, {} live", call.live);
        assert_eq!(status, cuda.take_status().unwrap());
        (replayed, status)
    }
}

fn rounded<E: Element>(values: &[f32]) -> Vec<E> {
    values.iter().map(|v| E::from_f32(*v)).collect()
}

/// The CPU's answer with these adapters, in f32.
fn on_cpu(router: Router<LinearRouter>, experts: &[usize], call: &Call) -> Left<f32> {
    let attends = matches!(router, Router::RankAttention { .. });
    let (cpu, weight) = (Device::by_name("cpu").unwrap(), values(5, OUT * IN));
    let mut layer = HostLayer::<f32>::new(&cpu, sizes(ElementType::F32), router, weight, None).unwrap();
    if attends {
        layer.set_attention(&attention()).unwrap();
    }
    experts.iter().for_each(|&e| layer.put(e, &lora::<f32>(e)).unwrap());
    let top_k = call.ids.len() / TOKENS;
    let (mut ids, mut weights) = (call.ids[..call.live * top_k].to_vec(), vec![0.5; call.live * top_k]);
    let mut y = vec![f32::NAN; call.live * OUT];
    let allow = call.allow.as_ref().map(AllowLists::as_allow);
    let routing = Routing { allow, ..Routing::new(&mut ids, &mut weights) };
    layer.forward(call.live, &call.x[..call.live * IN], routing, &mut y).unwrap();
    (ids, weights, y)
}

/// f32 alone: of 16 bits the other tests know how far they may be.
fn close<E: Element>(got: &Left<E>, want: &Left<f32>) {
    assert_eq!(got.0, want.0, "ids");
    if E::TYPE != ElementType::F32 {
        return;
    }
    let near = |got: f32, want: f32| (got - want).abs() <= 1e-4 * (1.0 + want.abs());
    assert!(got.1.iter().zip(&want.1).all(|(g, w)| near(*g, *w)), "{:?} {:?}", got.1, want.1);
    assert!(got.2.iter().zip(&want.2).all(|(g, w)| near(g.to_f32(), *w)), "{:?} {:?}", got.2, want.2);
}

fn attention_is_replayed<E: Element>(form: Form) {
    let Some(cuda) = device() else { return };
    let mut pool = Pool::new(&cuda, sizes(E::TYPE)).unwrap();
    pool.set_attention(&attention()).unwrap();
    [0, 1].iter().for_each(|&e| pool.put(e, &lora::<E>(e)).unwrap());
    let router = || Router::RankAttention { top_k: 3 };
    let mut layer = MoeLora::<Cuda>::new(&cuda, pool, router()).unwrap().with_form(Some(form));
    layer.reserve_rank(17).unwrap();
    let (mut engine, mut workspace) = (Engine::<E>::new(&cuda, 3), layer.workspace(TOKENS).unwrap());
    let graph = engine.forward(&layer, false, &mut workspace, true).unwrap();
    let check = |engine: &mut Engine<E>, layer: &MoeLora<Cuda>, experts: &[usize], call: Call| {
        let (left, status) = engine.replay(layer, &graph, &call);
        assert!(status.is_ok(), "{status}");
        close(&left, &on_cpu(router(), experts, &call));
        left
    };
    let first = check(&mut engine, &layer, &[0, 1], Call::of(1, &[0, 1, -1], TOKENS));
    assert!(first.1.iter().any(|w| *w > 0.02 && *w < 0.98), "nobody has all the weight: {:?}", first.1);
    check(&mut engine, &layer, &[0, 1], Call::of(2, &[1, 0, -1], 4));
    // An adapter that came after the capture, and its keys with it; then one in the place of one that left.
    layer.pool_mut().put(2, &lora::<E>(2)).unwrap();
    check(&mut engine, &layer, &[0, 1, 2], Call::of(3, &[2, -1, 0], TOKENS));
    check(&mut engine, &layer, &[0, 1, 2], Call::of(3, &[-1, -1, -1], 2));
    layer.pool_mut().evict(0).unwrap();
    layer.pool_mut().put(3, &lora::<E>(3)).unwrap();
    check(&mut engine, &layer, &[1, 2, 3], Call::of(4, &[3, 2, 1], 7));
    // One that left takes no weight, and is told.
    let call = Call::of(4, &[0, 2, -1], TOKENS);
    let (left, status) = engine.replay(&layer, &graph, &call);
    assert_eq!(status, Status::STALE_SLOT);
    assert!(left.0.iter().zip(&left.1).all(|(id, w)| *w == f32::from(u8::from(*id == 2))), "{left:?}");
}

#[test]
fn attention_is_replayed_with_new_tokens_sets_and_adapters() {
    for form in [Form::Sparse, Form::Beside] {
        attention_is_replayed::<f32>(form);
        attention_is_replayed::<f16>(form);
        attention_is_replayed::<bf16>(form);
    }
}

/// A preset's router whose experts are the pool's slots, and its slots a token.
fn masked_router(preset: Preset) -> Router<LinearRouter> {
    let experts = RANKS.len();
    let (v, bias) = (values(50, (experts + 1) * IN), values(51, experts));
    let weight: Vec<f32> = v.iter().map(|v| v / 8.0).collect();
    let linear = |rows: usize, bias| LinearRouter::new(rows, IN, &weight[..rows * IN], bias).unwrap();
    let parameters = match preset {
        Preset::Phatgoose => Parameters::Gates { experts, in_features: IN, v: &v[..experts * IN] },
        Preset::AdaMole => Parameters::Linear(linear(experts + 1, None)),
        _ => Parameters::Linear(linear(experts, Some(&bias))),
    };
    preset.build(parameters, None).unwrap().router
}

fn masks_are_replayed<E: Element>(preset: Preset, (form, invariant): (Form, bool)) {
    let Some(cuda) = device() else { return };
    let mut pool = Pool::new(&cuda, sizes(E::TYPE)).unwrap();
    [0, 1].iter().for_each(|&e| pool.put(e, &lora::<E>(e)).unwrap());
    let layer = MoeLora::<Cuda>::new(&cuda, pool, masked_router(preset)).unwrap().with_form(Some(form));
    let mut layer = layer.batch_invariant(invariant);
    layer.reserve_rank(17).unwrap();
    let top_k = layer.router().top_k();
    let (mut engine, mut workspace) = (Engine::<E>::new(&cuda, top_k), layer.workspace(TOKENS).unwrap());
    let graph = engine.forward(&layer, true, &mut workspace, true).unwrap();
    let call = |seed, live| Call::of(seed, &vec![-1; top_k], live);
    let check = |engine: &mut Engine<E>, layer: &MoeLora<Cuda>, experts: &[usize], call: Call| {
        let (left, status) = engine.replay(layer, &graph, &call);
        assert!(status.is_ok(), "{preset:?}: {status}");
        close(&left, &on_cpu(masked_router(preset), experts, &call));
        left.0
    };
    let both = call(1, TOKENS).masked([(4, &[0, 1]), (3, &[1]), (2, &[0])]);
    let ids = check(&mut engine, &layer, &[0, 1], both);
    assert!(ids[4 * top_k..7 * top_k].iter().all(|id| [-1, 1].contains(id)), "{ids:?}");
    // Other runs, an empty request and one that may take nothing.
    check(&mut engine, &layer, &[0, 1], call(2, 8).masked([(0, &[0]), (5, &[1, 0]), (4, &[])]));
    // An adapter comes, and with it the requests that may take it.
    layer.pool_mut().put(2, &lora::<E>(2)).unwrap();
    let ids =
        check(&mut engine, &layer, &[0, 1, 2], call(3, TOKENS).masked([(2, &[2]), (6, &[0, 2]), (1, &[1])]));
    assert!(ids[..2 * top_k].iter().all(|id| [-1, 2].contains(id)), "{ids:?}");
    // Another in the place of one that left.
    layer.pool_mut().evict(1).unwrap();
    layer.pool_mut().put(3, &lora::<E>(3)).unwrap();
    check(&mut engine, &layer, &[0, 2, 3], call(4, TOKENS).masked([(3, &[0, 3]), (3, &[2, 3]), (3, &[3])]));
}

#[test]
fn masks_are_replayed_with_new_requests_and_adapters() {
    for preset in [Preset::MingMoe, Preset::Phatgoose, Preset::AdaMole] {
        for form in [(Form::Sparse, false), (Form::Sparse, true), (Form::Beside, false)] {
            masks_are_replayed::<f32>(preset, form);
        }
    }
    masks_are_replayed::<f16>(Preset::Phatgoose, (Form::Sparse, false));
    masks_are_replayed::<bf16>(Preset::MingMoe, (Form::Beside, false));
}

/// A graph of what a store lent, held through every launch, is the same whatever else comes and goes.
#[test]
fn a_lease_is_replayed_while_others_come_and_go() {
    let Some(cuda) = device() else { return };
    // Beside the lease's 11 ranks one of the others fits.
    let few = PoolSizes { rank_capacity: 30, ..sizes(ElementType::F32) };
    let mut pool = Pool::new(&cuda, few).unwrap();
    pool.set_attention(&attention()).unwrap();
    let router = || Router::RankAttention { top_k: 2 };
    let layer = MoeLora::<Cuda>::new(&cuda, pool, router()).unwrap().with_form(Some(Form::Sparse));
    let store = Store::new(Limits::default(), vec![Served::new("m", layer)]).unwrap();
    for e in 0..RANKS.len() {
        let modules = BTreeMap::from([("m".to_owned(), lora::<f32>(e))]);
        store.register(&e.to_string(), Arc::new(Adapter::new("adapter", modules))).unwrap();
    }
    let lease = store.acquire(&["1", "0"]).unwrap();
    let (layer, ids) = (lease.layer(0).unwrap(), [lease.id(0, 0).unwrap(), lease.id(1, 0).unwrap()]);
    // The slots in the order of the lease; the CPU's are the adapters' own numbers.
    assert_eq!(ids, [0, 1]);
    let (mut engine, mut workspace) = (Engine::<f32>::new(&cuda, 2), layer.workspace(TOKENS).unwrap());
    let graph = engine.forward(&layer, false, &mut workspace, true).unwrap();
    let check = |engine: &mut Engine<f32>, seed: usize, live: usize| {
        let call = Call::of(seed, &ids, live);
        let ((_, weights, y), status) = engine.replay(&layer, &graph, &call);
        assert!(status.is_ok(), "{status}");
        let own = Call { ids: call.ids.iter().map(|id| 1 - id).collect(), ..call };
        let (_, want_weights, want) = on_cpu(router(), &[0, 1], &own);
        close(&(vec![], weights, y), &(vec![], want_weights, want));
    };
    check(&mut engine, 1, TOKENS);
    // The others take turns in the rows that are left.
    for turn in 0..6 {
        drop(store.acquire(&[["2", "3"][turn % 2]]).unwrap());
        check(&mut engine, 2 + turn, TOKENS - turn);
    }
    assert_eq!(store.counters().evictions, 5);
    // Another version serves new leases; the graph keeps the one that it was captured with.
    let modules = BTreeMap::from([("m".to_owned(), lora::<f32>(3))]);
    store.replace("0", Arc::new(Adapter::new("adapter", modules))).unwrap();
    check(&mut engine, 9, TOKENS);
}
