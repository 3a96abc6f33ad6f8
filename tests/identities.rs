//! What must be equal, and what must not, whatever the kernels: on every device.

#[path = "common/devices.rs"]
mod devices;

use devices::{batch_invariant, devices};
use molora::adapter::slots::PoolSizes;
use molora::adapter::{LinearRouter, Lora};
use molora::host::{Device, HostLayer};
use molora::layer::{Router, Routing};
use molora::ops::Output;
use molora::ops::route::{AllowLists, Rule, Weighting};
use molora::preset::{Given, Parameters, Preset, System};
use molora::{ElementType, Result};
use molora_check::rng::Rng;

const IN: usize = 34;
const OUT: usize = 22;
const TOKENS: usize = 33;

fn values(name: &str, len: usize) -> Vec<f32> {
    let mut rng = Rng::named(name, 0);
    (0..len).map(|_| rng.value(1.0)).collect()
}

fn lora(name: &str, rank: usize) -> Lora {
    let (a, b) = (values(name, rank * IN), values(&format!("{name} b"), rank * OUT));
    Lora::new(IN, OUT, rank, 0.75, &a, &b).unwrap()
}

fn x() -> Vec<f32> {
    values("x", TOKENS * IN)
}

/// A layer with these adapters in its first slots, and room for more.
fn layer(device: &Device, system: System, loras: &[Lora]) -> HostLayer<f32> {
    let sizes = PoolSizes {
        in_features: IN,
        out_features: OUT,
        experts: 8,
        rank_capacity: 96,
        element: ElementType::F32,
    };
    let layer = HostLayer::new(device, sizes, system.router, values("weight", IN * OUT), None).unwrap();
    let mut layer = layer.with_output(system.output);
    loras.iter().enumerate().for_each(|(slot, lora)| layer.put(slot, lora).unwrap());
    layer
}

fn external(top_k: usize) -> System {
    System { router: Router::External { top_k }, output: Output::Sum }
}

fn five() -> Vec<Lora> {
    [4, 1, 16, 6, 8].iter().enumerate().map(|(e, &rank)| lora(&format!("expert {e}"), rank)).collect()
}

/// y of a call whose choice is given.
fn given(layer: &mut HostLayer<f32>, x: &[f32], given: &mut Given) -> Result<Vec<f32>> {
    let tokens = x.len() / IN;
    let mut y = vec![f32::NAN; tokens * OUT];
    layer.forward(tokens, x, given.routing(), &mut y)?;
    Ok(y)
}

/// y, ids and weights of a call whose choice is the layer's, under a mask or without.
fn routed(
    layer: &mut HostLayer<f32>,
    top_k: usize,
    x: &[f32],
    allow: Option<&AllowLists>,
) -> (Vec<f32>, Vec<i32>, Vec<f32>) {
    let tokens = x.len() / IN;
    let (mut ids, mut weights) = (vec![i32::MIN; tokens * top_k], vec![f32::NAN; tokens * top_k]);
    let mut y = vec![f32::NAN; tokens * OUT];
    let routing = Routing { allow: allow.map(AllowLists::as_allow), ..Routing::new(&mut ids, &mut weights) };
    layer.forward(tokens, x, routing, &mut y).unwrap();
    (y, ids, weights)
}

fn wide(values: &[f32]) -> impl Iterator<Item = f64> + Clone {
    values.iter().map(|&v| f64::from(v))
}

fn dot(a: impl Iterator<Item = f64>, b: impl Iterator<Item = f64>) -> f64 {
    a.zip(b).map(|(a, b)| a * b).sum()
}

/// The largest relative L2 distance of a row.
fn distance(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    let row = |(a, b): (&[f32], &[f32])| {
        let square = |v: f64| v * v;
        let apart: f64 = wide(a).zip(wide(b)).map(|(a, b)| square(a - b)).sum();
        (apart / wide(b).map(square).sum::<f64>()).sqrt()
    };
    // f64::max would pass over a NaN.
    let worst = |worst: f64, d: f64| if d > worst || d.is_nan() { d } else { worst };
    a.chunks(OUT).zip(b.chunks(OUT)).map(row).fold(0.0, worst)
}

fn assert_near(a: &[f32], b: &[f32], what: &str) {
    let apart = distance(a, b);
    assert!(apart < 3e-6, "{what}: {apart:.1e}");
}

#[test]
fn renormalised_softmax_is_softmax_of_the_selected() {
    let g = LinearRouter::new(5, IN, &values("g", 5 * IN), Some(&values("bias", 5))).unwrap();
    for device in devices() {
        for top_k in [1, 2, 3, 5] {
            let of = |weighting| {
                let router = Router::Linear { linear: g.clone(), rule: Rule::top_k(top_k, weighting) };
                let system = System { router, output: Output::Sum };
                routed(&mut layer(&device, system, &five()), top_k, &x(), None)
            };
            let selected = of(Weighting::SoftmaxSelected);
            let renormalised = of(Weighting::SoftmaxAllRenormalised);
            let what = format!("{} top {top_k}", device.describe());
            assert_eq!(selected.1, renormalised.1, "{what}");
            assert!(selected.2.iter().zip(&renormalised.2).all(|(a, b)| (a - b).abs() < 1e-6), "{what}");
            assert_near(&selected.0, &renormalised.0, &what);
            // Not renormalised it is another function, but over all of them.
            let all = of(Weighting::SoftmaxAll);
            assert_eq!(distance(&all.0, &selected.0) > 1e-2, top_k < 5, "{what}");
        }
    }
}

#[test]
fn folded_phatgoose_is_two_layer_norms() {
    let gates = values("gates", 5 * IN);
    let norm = |u: Vec<f64>| -> Vec<f64> {
        let n = u.len() as f64;
        let mean = u.iter().sum::<f64>() / n;
        let variance = u.iter().map(|u| (u - mean) * (u - mean)).sum::<f64>() / n;
        u.into_iter().map(|u| (u - mean) / (variance + 1e-5).sqrt()).collect()
    };
    for device in devices() {
        // A mean that must drop out, and deviations to which 1e-5 is nothing, much and almost all.
        for (mean, scale) in [(0.0, 1.0), (3.0, 1.0), (0.5, 0.01), (-0.1, 1e-3)] {
            let parameters = Parameters::Gates { experts: 5, in_features: IN, v: &gates };
            let system = Preset::Phatgoose.build(parameters, None).unwrap();
            let x: Vec<f32> = x().iter().map(|x| mean + scale * x).collect();
            let (_, ids, weights) = routed(&mut layer(&device, system, &five()), 2, &x, None);
            for (t, x) in x.chunks(IN).enumerate() {
                let u = norm(wide(x).collect());
                let z: Vec<f64> = gates
                    .chunks(IN)
                    .map(|v| dot(u.iter().copied(), norm(wide(v).collect()).into_iter()) / (IN as f64).sqrt())
                    .collect();
                let mut order: Vec<usize> = (0..5).collect();
                order.sort_by(|&i, &j| z[j].total_cmp(&z[i]));
                assert_eq!(&ids[2 * t..][..2], [order[0] as i32, order[1] as i32], "mean {mean}, token {t}");
                let first = 1.0 / (1.0 + (z[order[1]] - z[order[0]]).exp());
                let limit = if mean == 0.0 { 1e-6 } else { 1e-3 };
                assert!(
                    (f64::from(weights[2 * t]) - first).abs() < limit,
                    "{scale}: {} {first}",
                    weights[2 * t]
                );
            }
        }
    }
}

#[test]
fn one_active_adapter_is_that_adapter_alone() {
    for device in devices().iter().map(batch_invariant) {
        let mut among = Given::new(3);
        among.push(TOKENS, &[(2, 1.0)]).unwrap();
        let mut alone = Given::new(1);
        alone.push(TOKENS, &[(0, 1.0)]).unwrap();
        let got = given(&mut layer(&device, external(3), &five()), &x(), &mut among).unwrap();
        let own = given(&mut layer(&device, external(1), &five()[2..3]), &x(), &mut alone).unwrap();
        assert!(got == own, "{}: {:.1e}", device.describe(), distance(&got, &own));
        // And both are the merged weight's product.
        let lora = &five()[2];
        let (a, b): (Vec<f32>, Vec<f32>) = (lora.a().collect(), lora.b().collect());
        let weight = values("weight", IN * OUT);
        let merged: Vec<f64> = (0..IN * OUT)
            .map(|n| {
                let (row, column) =
                    (wide(&b[n / IN * 16..][..16]), (0..16).map(|r| f64::from(a[r * IN + n % IN])));
                f64::from(weight[n]) + f64::from(lora.scaling()) * dot(row, column)
            })
            .collect();
        let x = x();
        let want =
            x.chunks(IN).flat_map(|x| merged.chunks(IN).map(|row| dot(row.iter().copied(), wide(x)) as f32));
        assert_near(&got, &want.collect::<Vec<_>>(), &device.describe());
    }
}

#[test]
fn equal_adapters_are_one() {
    for device in devices() {
        for output in [Output::Sum, Output::RankSum] {
            let same: Vec<Lora> = (0..5).map(|_| lora("same", 6)).collect();
            let mut layer = layer(&device, System { router: Router::External { top_k: 5 }, output }, &same);
            let (mut all, mut one) = (Given::new(5), Given::new(5));
            all.push(TOKENS, &[(0, 0.1), (1, 0.4), (2, 0.2), (3, 0.05), (4, 0.25)]).unwrap();
            one.push(TOKENS, &[(3, 1.0)]).unwrap();
            let all = given(&mut layer, &x(), &mut all).unwrap();
            let one = given(&mut layer, &x(), &mut one).unwrap();
            assert_near(&all, &one, &format!("{} {}", device.describe(), output.name()));
        }
    }
}

#[test]
fn fusion_is_a_mixture_with_cross_terms() {
    let loras: Vec<Lora> = (0..3).map(|e| lora(&format!("fused {e}"), 6)).collect();
    let of = |lora: &Lora, by: &Lora, x: &[f32]| -> Vec<f64> {
        let (a, b): (Vec<f32>, Vec<f32>) = (by.a().collect(), lora.b().collect());
        let h: Vec<f64> = a.chunks(IN).map(|row| dot(wide(row), wide(x))).collect();
        b.chunks(6).map(|row| f64::from(lora.scaling()) * dot(wide(row), h.iter().copied())).collect()
    };
    for device in devices() {
        let y = |preset: Preset| {
            let mut layer = layer(&device, preset.build(Parameters::Given, None).unwrap(), &loras);
            let mut choice = Given::new(3);
            choice.push_evenly(TOKENS, &[0, 1, 2]).unwrap();
            given(&mut layer, &x(), &mut choice).unwrap()
        };
        let (mixture, fusion) = (y(Preset::LoraRetrieverMixture), y(Preset::LoraRetrieverFusion));
        assert!(distance(&fusion, &mixture) > 0.05, "{}", device.describe());
        // The mixture's terms, a third each, become a ninth each of all pairs'.
        let mut want = mixture.clone();
        for (x, want) in x().chunks(IN).zip(want.chunks_mut(OUT)) {
            let mut change = vec![0.0; OUT];
            for i in 0..3 {
                for j in 0..3 {
                    let share = 1.0 / 9.0 - if i == j { 1.0 / 3.0 } else { 0.0 };
                    change.iter_mut().zip(of(&loras[i], &loras[j], x)).for_each(|(c, v)| *c += share * v);
                }
            }
            want.iter_mut().zip(change).for_each(|(w, c)| *w = (f64::from(*w) + c) as f32);
        }
        assert_near(&fusion, &want, &device.describe());
    }
}

/// Tokens of each request of a batch.
const REQUESTS: [usize; 6] = [1, 7, 0, 16, 2, 7];

/// The slots of each request.
const SETS: [&[usize]; 6] = [&[0, 2, 4], &[1, 2, 3], &[0, 1, 2], &[], &[4, 3, 0], &[2]];

fn runs() -> impl Iterator<Item = (std::ops::Range<usize>, &'static [usize])> {
    let ends = REQUESTS.iter().scan(0, |end, run| {
        *end += run;
        Some(*end - run..*end)
    });
    ends.zip(SETS)
}

/// y of some requests in one batch, whose choice is given.
fn batch(layer: &mut HostLayer<f32>, requests: &[(std::ops::Range<usize>, &[usize])]) -> Vec<f32> {
    let mut choice = Given::new(3);
    let mut rows = Vec::new();
    for (run, set) in requests {
        choice.push_evenly(run.len(), set).unwrap();
        rows.extend_from_slice(&x()[run.start * IN..run.end * IN]);
    }
    given(layer, &rows, &mut choice).unwrap()
}

/// The same where the layer chooses among the request's slots.
fn masked_batch(layer: &mut HostLayer<f32>, requests: &[(std::ops::Range<usize>, &[usize])]) -> Vec<f32> {
    let mut allow = AllowLists::new(8);
    let mut rows = Vec::new();
    for (run, set) in requests {
        allow.push(run.len(), set.iter().copied()).unwrap();
        rows.extend_from_slice(&x()[run.start * IN..run.end * IN]);
    }
    routed(layer, 2, &rows, Some(&allow)).0
}

/// A system with a router of its own over 8 slots.
fn scored(preset: Preset) -> System {
    let g = values("gates", 8 * IN);
    let parameters = match preset {
        Preset::Phatgoose => Parameters::Gates { experts: 8, in_features: IN, v: &g },
        _ => Parameters::Linear(LinearRouter::new(8, IN, &g, None).unwrap()),
    };
    preset.build(parameters, Some(2)).unwrap()
}

type Call = fn(&mut HostLayer<f32>, &[(std::ops::Range<usize>, &[usize])]) -> Vec<f32>;

/// Systems whose requests choose among their own slots, as layers of five adapters and calls of requests.
fn systems(device: &Device) -> Vec<(Preset, HostLayer<f32>, Call)> {
    let mut systems: Vec<(Preset, HostLayer<f32>, Call)> = Vec::new();
    let mixture = Preset::LoraRetrieverMixture;
    let built = mixture.build(Parameters::Given, None).unwrap();
    systems.push((mixture, layer(device, built, &five()), batch));
    for preset in [Preset::MingMoe, Preset::Phatgoose, Preset::Hmora] {
        systems.push((preset, layer(device, scored(preset), &five()), masked_batch));
    }
    systems
}

#[test]
fn a_request_is_the_same_alone_and_in_a_batch() {
    for device in devices().iter().map(batch_invariant) {
        for (preset, mut layer, call) in systems(&device) {
            let all: Vec<_> = runs().collect();
            let whole = call(&mut layer, &all);
            assert_eq!(whole.len(), TOKENS * OUT);
            for (run, set) in &all {
                let alone = call(&mut layer, &[(run.clone(), set)]);
                let same = alone == whole[run.start * OUT..run.end * OUT];
                assert!(same, "{} on {}: tokens {run:?}", preset.name(), device.describe());
            }
        }
    }
}

#[test]
fn an_adapter_that_comes_or_goes_changes_nothing_for_others() {
    for device in devices().iter().map(batch_invariant) {
        for (preset, mut layer, call) in systems(&device) {
            let all: Vec<_> = runs().collect();
            let before = call(&mut layer, &all);
            layer.put(6, &lora("new", 16)).unwrap();
            let what = format!("{} on {}", preset.name(), device.describe());
            assert!(before == call(&mut layer, &all), "{what}: one came");
            layer.evict(3).unwrap();
            layer.put(3, &lora("another", 5)).unwrap();
            let after = call(&mut layer, &all);
            let mut changed = 0;
            for (run, set) in &all {
                let rows = run.start * OUT..run.end * OUT;
                match set.contains(&3) {
                    true => changed += usize::from(before[rows.clone()] != after[rows]),
                    false => {
                        assert!(before[rows.clone()] == after[rows], "{what}: {run:?} does not name slot 3")
                    }
                }
            }
            // A router may choose others of a request's slots.
            assert!(changed > 0, "{what}: requests that name slot 3 take the other one");
            layer.evict(6).unwrap();
            assert!(after == call(&mut layer, &all), "{what}: one went");
        }
    }
}
