//! The layer on every device: base product and experts, and the experts alone.

mod common;

use common::devices;
use molora::adapter::LinearRouter;
use molora::adapter::slots::PoolSizes;
use molora::host::{Device, HostLayer};
use molora::layer::{Router, Routing};
use molora::ops::route::Weighting;
use molora::{ElementType, Lora, Result};
use molora_check::rng::Rng;
use molora_check::{Op, check_all};

#[test]
fn every_case_on_every_device() {
    check_all(Op::Layer);
}

#[test]
fn every_delta_on_every_device() {
    check_all(Op::Delta);
}

const SIZES: PoolSizes =
    PoolSizes { in_features: 12, out_features: 10, experts: 5, rank_capacity: 40, element: ElementType::F32 };

fn values(name: &str, len: usize) -> Vec<f32> {
    let mut rng = Rng::named(name, 0);
    (0..len).map(|_| rng.value(1.0)).collect()
}

fn lora(name: &str, rank: usize) -> Lora {
    Lora::new(12, 10, rank, 0.5, &values(name, rank * 12), &values(&format!("{name} b"), rank * 10)).unwrap()
}

fn linear() -> Router<LinearRouter> {
    let linear = LinearRouter::new(5, 12, &values("router", 60), None).unwrap();
    Router::best(linear, 2, Weighting::SoftmaxSelected)
}

fn layer(device: &Device, router: Router<LinearRouter>) -> HostLayer<f32> {
    let mut layer = HostLayer::new(device, SIZES, router, values("weight", 120), None).unwrap();
    (0..5).for_each(|slot| layer.put(slot, &lora(&slot.to_string(), slot + 1)).unwrap());
    layer
}

/// y of a call, and the routing that it used.
fn forward(
    layer: &mut HostLayer<f32>,
    ids: &[i32],
    weights: &[f32],
) -> Result<(Vec<f32>, Vec<i32>, Vec<f32>)> {
    let (mut ids, mut weights, mut y) = (ids.to_vec(), weights.to_vec(), vec![f32::NAN; 60]);
    let routing = Routing::new(&mut ids, &mut weights);
    layer.forward(6, &values("x", 72), routing, &mut y)?;
    Ok((y, ids, weights))
}

#[test]
fn a_layers_own_router_is_the_router_called_by_hand() {
    for device in devices() {
        let (y, ids, weights) = forward(&mut layer(&device, linear()), &[-1; 12], &[0.0; 12]).unwrap();
        assert!(ids.iter().all(|id| (0..5).contains(id)), "{ids:?}");
        let mut external = layer(&device, Router::External { top_k: 2 });
        let by_hand = forward(&mut external, &ids, &weights).unwrap().0;
        // A router of its own may make another form the cheapest, whose sums round in another order.
        let close = |(a, b): (&f32, &f32)| (a - b).abs() <= 1e-5 * (1.0 + a.abs());
        assert!(y.iter().zip(&by_hand).all(close), "{}: {y:?}, {by_hand:?}", device.describe());
    }
}

#[test]
fn adapters_come_and_go_between_calls() {
    for device in devices() {
        let mut layer = layer(&device, Router::External { top_k: 2 });
        let ids = [0, 1, 2, 3, 4, 0, 1, 1, -1, 2, -1, -1];
        let weights = [0.5; 12];
        let before = forward(&mut layer, &ids, &weights).unwrap().0;
        layer.evict(3).unwrap();
        let refused = forward(&mut layer, &ids, &weights).expect_err("slot 3 is empty").to_string();
        assert!(refused.contains("slot"), "{refused}");
        layer.put(3, &lora("another", 7)).unwrap();
        let after = forward(&mut layer, &ids, &weights).unwrap().0;
        let differ = |t: usize| before[t * 10..][..10] != after[t * 10..][..10];
        assert_eq!((0..6).map(differ).collect::<Vec<_>>(), [false, true, false, false, false, false]);
        layer.evict(3).unwrap();
        layer.put(3, &lora("3", 4)).unwrap();
        assert_eq!(forward(&mut layer, &ids, &weights).unwrap().0, before, "{}", device.describe());
    }
}

#[test]
fn errors_name_operation_argument_expected_and_got() {
    for device in devices() {
        let mut layer = layer(&device, Router::External { top_k: 2 });
        let says = |layer: &mut HostLayer<f32>, ids: &[i32]| {
            forward(layer, ids, &[0.5; 12]).expect_err("refused").to_string()
        };
        let short = says(&mut layer, &[0; 11]);
        assert!(short.ends_with("topk_ids: expected 12 elements, got 11"), "{short}");
        let mut ids = [0; 12];
        ids[7] = 5;
        let out_of_range = says(&mut layer, &ids);
        assert!(out_of_range.contains("topk_ids"), "{out_of_range}");
        let wide = LinearRouter::new(6, 12, &[0f32; 72], None).unwrap();
        let router = Router::best(wide, 2, Weighting::SoftmaxAll);
        let refused = layer.set_router(router).unwrap_err().to_string();
        assert_eq!(
            refused,
            "layer: router.experts: expected at most the pool's 5 slots, shared experts included, got 6"
        );
        let greedy = LinearRouter::new(2, 12, &[0f32; 24], None).unwrap();
        let router = Router::best(greedy, 3, Weighting::SoftmaxAll);
        let refused = layer.set_router(router).unwrap_err().to_string();
        assert_eq!(refused, "layer: router.top_k: expected at most the router's 2 experts, got 3");
    }
}
