//! The systems of one linear: gates by the published formula, and the library's call beside them.

use crate::dense::{self, Expert, Matrix};
use crate::problem::{Linear, Shape, values, wide};
use molora::adapter::LinearRouter;
use molora::element::Element;
use molora::host::Device;
use molora::layer::Routing;
use molora::preset::{Given, Parameters, Preset, pairs};
use molora_check::rng::Rng;

/// Ranks of one pool.
const MIXED: [usize; 7] = [4, 1, 16, 6, 8, 3, 5];

/// Experts of the base model, for pairs.
const BASE_EXPERTS: usize = 3;

/// What one call takes, and the gates of every token by the formula.
struct Call {
    system: molora::preset::System,
    given: Option<Given>,
    gates: Vec<Vec<f64>>,
}

/// y of the library's call and of the formula.
pub fn run<X: Element>(device: &Device, preset: Preset, shape: Shape) -> (Vec<f64>, Vec<Vec<f64>>) {
    let Shape { tokens, in_features, out_features } = shape;
    let name = format!("{} {shape:?}", preset.name());
    let equal = matches!(preset, Preset::LoraRetrieverFusion | Preset::HydraLora);
    let ranks = if equal { [6; 7].to_vec() } else { MIXED.to_vec() };
    // Pairs fill whole adapters.
    let ranks = if preset == Preset::MoePairs { &ranks[..6] } else { &ranks };
    let one_a = preset == Preset::HydraLora;
    let mut linear = Linear::<X>::new(&name, (in_features, out_features), ranks, one_a);
    let x: Vec<X> = values(&format!("{name} x"), tokens * in_features, 1.0);
    let rows = Matrix::new(in_features, wide(&x));
    let router = (preset == Preset::Ramole).then(|| linear.attend(&name, 5));
    let mut call = if matches!(preset, Preset::MoePairs | Preset::XLora | Preset::PerRequest | Preset::Ramole)
        || preset.name().starts_with("loraretriever")
    {
        given(preset, &name, tokens, linear.experts.len())
    } else {
        scored(preset, &name, &linear, &rows)
    };
    if let Some(router) = &router {
        for (x, gates) in rows.rows().zip(&mut call.gates) {
            *gates = attention(&linear.experts, router, x, gates);
        }
    }
    let formula = if preset == Preset::LoraRetrieverFusion { dense::fusion } else { dense::sum };
    let each = rows.rows().zip(&call.gates);
    let want = each.map(|(x, gates)| formula(&linear.base, &linear.experts, gates, x)).collect();
    let routes = tokens * call.system.router.top_k();
    let mut layer = linear.layer(device, call.system);
    let mut y = vec![X::from_f32(f32::NAN); tokens * out_features];
    let (mut ids, mut weights) = (vec![i32::MIN; routes], vec![f32::NAN; routes]);
    let mut own = call.given;
    let taken = if preset == Preset::Ramole { Given::retrieved } else { Given::routing };
    let routing = own.as_mut().map_or(Routing::new(&mut ids, &mut weights), taken);
    layer.forward(tokens, &x, routing, &mut y).unwrap_or_else(|e| panic!("{name}: {e}"));
    (wide(&y), want)
}

/// Systems whose router sees x.
fn scored<X: Element>(preset: Preset, name: &str, linear: &Linear<X>, rows: &Matrix) -> Call {
    let (d, experts) = (rows.columns, linear.experts.len());
    // One expert more or less than routed ones: MedCare's shared expert, AdaMoLE's threshold.
    let scored = match preset {
        Preset::MedCare => experts - 1,
        Preset::AdaMole => experts + 1,
        _ => experts,
    };
    let (g, bias) = (values::<f32>(&format!("{name} g"), scored * d, 0.8), values::<f32>(name, scored, 0.5));
    // MixLoRA, LoRAMoE, HydraLoRA and HMoRA have none; AdaMoLE's threshold does.
    let has_bias = matches!(preset, Preset::MingMoe | Preset::MedCare | Preset::AdaMole);
    let bias: Vec<f32> = match preset {
        Preset::AdaMole => (0..scored).map(|e| if e == experts { bias[e] } else { 0.0 }).collect(),
        _ if has_bias => bias,
        _ => vec![0.0; scored],
    };
    let loras = linear.loras();
    let parameters = match preset {
        Preset::Phatgoose => Parameters::Gates { experts, in_features: d, v: &g },
        Preset::Arrow => Parameters::Adapters(&loras),
        _ => Parameters::Linear(LinearRouter::new(scored, d, &g, has_bias.then_some(&bias)).unwrap()),
    };
    let system = preset.build(parameters, None).unwrap();
    let (g, bias) = (Matrix::new(d, wide(&g)), wide(&bias));
    let directions: Vec<_> = match preset {
        Preset::Arrow => linear.experts.iter().map(dense::first_right_vector).collect(),
        _ => Vec::new(),
    };
    let gates = rows.rows().map(|x| gates(preset, &g, &bias, &directions, x)).collect();
    Call { system, given: None, gates }
}

/// The weight of every expert for one token.
fn gates(preset: Preset, g: &Matrix, bias: &[f64], directions: &[Vec<f64>], x: &[f64]) -> Vec<f64> {
    let z: Vec<f64> = g.times(x).iter().zip(bias).map(|(z, b)| z + b).collect();
    match preset {
        Preset::MingMoe => dense::masked_softmax(&z, &dense::best(&z, 2)),
        Preset::MedCare => {
            let mut gates = dense::renormalised(&dense::softmax(&z), &dense::best(&z, 2));
            gates.push(1.0);
            gates
        }
        Preset::Phatgoose => {
            let u = dense::layer_norm(x);
            let z = |v: &[f64]| dense::dot(&u, &dense::layer_norm(v)) / (x.len() as f64).sqrt();
            let z: Vec<f64> = g.rows().map(z).collect();
            dense::renormalised(&dense::softmax(&z), &dense::best(&z, 2))
        }
        Preset::LoraMoe | Preset::HydraLora => dense::softmax(&z),
        Preset::Arrow => {
            let z: Vec<f64> = directions.iter().map(|v| dense::dot(v, x).abs()).collect();
            dense::masked_softmax(&z, &dense::best(&z, 4))
        }
        Preset::AdaMole => {
            let (experts, threshold) = (z.len() - 1, dense::sigmoid(z[z.len() - 1]));
            let threshold = threshold / experts as f64;
            let above: Vec<f64> =
                dense::softmax(&z[..experts]).iter().map(|p| (p - threshold).max(0.0)).collect();
            dense::renormalised(&above, &vec![1.0; experts])
        }
        Preset::Hmora => {
            let p = dense::softmax(&z);
            dense::masked_softmax(&p, &dense::best(&p, 2))
        }
        _ => panic!("{preset:?} scores nothing"),
    }
}

/// RAMoLE as published: every product v of the set against x, each through its half of the router.
fn attention(experts: &[Expert], router: &Expert, x: &[f64], set: &[f64]) -> Vec<f64> {
    if set.iter().all(|&s| s == 0.0) {
        return set.to_vec();
    }
    let q = router.a.times(x);
    let rank = q.len();
    let column = |v: &[f64], r: usize| v.iter().zip(router.b.rows()).map(|(v, b)| v * b[r]).sum::<f64>();
    let score = |expert: &Expert| {
        let v = expert.times(x);
        let k: Vec<f64> = (0..rank).map(|r| column(&v, r)).collect();
        dense::dot(&q, &k) / (rank as f64).sqrt()
    };
    dense::masked_softmax(&experts.iter().map(score).collect::<Vec<_>>(), set)
}

/// Runs of tokens, of one request each.
fn requests(tokens: usize) -> Vec<usize> {
    let mut runs = Vec::new();
    let mut left = tokens;
    for run in [1, 0, 5, 2, 17, 3].into_iter().cycle() {
        if left == 0 {
            break;
        }
        runs.push(run.min(left));
        left -= run.min(left);
    }
    runs
}

/// Systems whose choice comes with the call.
fn given(preset: Preset, name: &str, tokens: usize, experts: usize) -> Call {
    let mut rng = Rng::named(name, 1);
    let top_k = match preset {
        Preset::XLora => Some(experts),
        Preset::MoePairs => Some(2),
        _ => None,
    };
    let system = preset.build(Parameters::Given, top_k).unwrap();
    let mut given = Given::new(system.router.top_k());
    let mut gates = Vec::new();
    match preset {
        Preset::XLora => {
            let weights: Vec<f32> = (0..tokens * experts).map(|_| rng.value(1.0)).collect();
            given = Given::dense(experts, &weights).unwrap();
            gates = weights.chunks(experts).map(wide::<f32>).collect();
        }
        Preset::MoePairs => {
            for _ in 0..tokens {
                let (adapter, first, step) = (rng.below(3) as i32 - 1, rng.below(3), 1 + rng.below(2));
                let own = [first as i32, ((first + step) % BASE_EXPERTS) as i32];
                let slots = pairs(&own, 2, &[adapter], BASE_EXPERTS).unwrap();
                let weights = [0.25 + rng.unit(), 0.25 + rng.unit()];
                let live = slots.iter().zip(weights).filter(|(slot, _)| **slot >= 0);
                given.push(1, &live.map(|(&slot, w)| (slot as usize, w)).collect::<Vec<_>>()).unwrap();
                // By adapter and expert, not by slot.
                let mut gate = vec![0.0; experts];
                if adapter >= 0 {
                    let mut of = gate.chunks_mut(BASE_EXPERTS).nth(adapter as usize).unwrap().iter_mut();
                    of.by_ref().enumerate().for_each(|(e, gate)| {
                        let at = own.iter().position(|&own| own == e as i32);
                        *gate = at.map_or(0.0, |at| f64::from(weights[at]));
                    });
                }
                gates.push(gate);
            }
        }
        _ => {
            for run in requests(tokens) {
                let k = match preset {
                    Preset::PerRequest => rng.below(2),
                    // Fewer than k, and none, where little was found.
                    Preset::Ramole => rng.below(4),
                    _ => 3,
                };
                let mut slots: Vec<usize> = (0..experts).collect();
                (0..k).for_each(|n| slots.swap(n, n + rng.below(experts - n)));
                given.push_evenly(run, &slots[..k]).unwrap();
                let gate = (0..experts).map(|e| if slots[..k].contains(&e) { 1.0 / k as f64 } else { 0.0 });
                let gate: Vec<f64> = gate.collect();
                gates.extend(std::iter::repeat_n(gate, run));
            }
        }
    }
    Call { system, given: Some(given), gates }
}

#[test]
fn rotations_find_the_direction_of_a_known_product() {
    let expert = Expert {
        scaling: 2.0,
        a: Matrix::new(3, vec![3.0, 0.0, 0.0, 0.0, 1.0, 1.0]),
        b: Matrix::new(2, vec![1.0, 0.0, 0.0, 1.0]),
    };
    let v = dense::first_right_vector(&expert);
    assert!((v[0].abs() - 1.0).abs() < 1e-12 && v[1].abs() < 1e-9, "{v:?}");
}
