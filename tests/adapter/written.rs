//! Files that the formats' own writers wrote, and our layer's outputs with them beside the writers' own.
//! `fixtures/make_*.py` made them and say what is in them.

use molora::adapter::slots::PoolSizes;
use molora::adapter::{
    Adapter, ExpertParameter, LinearRouter, Lora, read_ming, read_peft_parameters, read_phatgoose,
};
use molora::host::{Device, HostLayer};
use molora::layer::Routing;
use molora::ops::route::Weighting;
use molora::{ElementType, Router};
use safetensors::{Dtype, SafeTensors};
use std::path::{Path, PathBuf};

pub fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/adapter/fixtures").join(name)
}

/// The writers' own figures, F64 and I64.
pub struct Expected(Vec<u8>);

impl Expected {
    pub fn read(folder: &Path) -> Self {
        Self(std::fs::read(folder.join("expected.safetensors")).unwrap())
    }

    fn bytes(&self, name: &str, dtype: Dtype) -> (Vec<usize>, Vec<[u8; 8]>) {
        let file = SafeTensors::deserialize(&self.0).unwrap();
        let view = file.tensor(name).unwrap();
        assert_eq!(view.dtype(), dtype, "{name}");
        (view.shape().to_vec(), view.data().chunks_exact(8).map(|c| c.try_into().unwrap()).collect())
    }

    pub fn f64(&self, name: &str) -> (Vec<usize>, Vec<f64>) {
        let (shape, bytes) = self.bytes(name, Dtype::F64);
        (shape, bytes.into_iter().map(f64::from_le_bytes).collect())
    }

    /// Values that were f32 before they were widened.
    pub fn f32(&self, name: &str) -> Vec<f32> {
        self.f64(name).1.into_iter().map(|v| v as f32).collect()
    }

    pub fn ids(&self, name: &str) -> Vec<i32> {
        let (_, bytes) = self.bytes(name, Dtype::I64);
        bytes.into_iter().map(|b| i64::from_le_bytes(b) as i32).collect()
    }
}

/// Our layer on the CPU over a base of these values, with external routing: one expert a slot.
struct Ours {
    layer: HostLayer<f32>,
    in_features: usize,
    out_features: usize,
}

impl Ours {
    fn new(loras: &[&Lora], top_k: usize, weight: Vec<f32>, bias: Option<Vec<f32>>) -> Self {
        Self::with_router(loras, Router::External { top_k }, weight, bias)
    }

    fn with_router(
        loras: &[&Lora],
        router: Router<LinearRouter>,
        weight: Vec<f32>,
        bias: Option<Vec<f32>>,
    ) -> Self {
        let (in_features, out_features) = (loras[0].in_features(), loras[0].out_features());
        let rank_capacity = loras.iter().map(|lora| lora.rank()).sum();
        let (experts, element) = (loras.len(), ElementType::F32);
        let sizes = PoolSizes { in_features, out_features, experts, rank_capacity, element };
        let cpu = Device::by_name("cpu").unwrap();
        let mut layer = HostLayer::new(&cpu, sizes, router, weight, bias).unwrap();
        for (slot, lora) in loras.iter().enumerate() {
            layer.put(slot, lora).unwrap();
        }
        Self { layer, in_features, out_features }
    }

    fn forward(&mut self, x: &[f32], ids: &mut [i32], weights: &mut [f32]) -> Vec<f32> {
        let tokens = x.len() / self.in_features;
        let mut y = vec![f32::NAN; tokens * self.out_features];
        self.layer.forward(tokens, x, Routing { topk_ids: ids, topk_weights: weights }, &mut y).unwrap();
        y
    }
}

/// Every element within f32's rounding of sums of some 30 terms around 1.
#[track_caller]
fn assert_close(got: &[f32], want: &[f64], what: &str) {
    assert_eq!(got.len(), want.len(), "{what}");
    for (i, (&got, &want)) in got.iter().zip(want).enumerate() {
        let far = (f64::from(got) - want).abs() / (1.0 + want.abs());
        assert!(far < 5e-6, "{what}: element {i}: expected {want}, got {got}");
    }
}

/// A linear of the fixture `peft`.
fn base(expected: &Expected, linear: &str) -> (Vec<f32>, Option<Vec<f32>>) {
    let bias = (linear == "up").then(|| expected.f32("base.up.bias"));
    (expected.f32(&format!("base.{linear}.weight")), bias)
}

#[test]
fn peft_adapters_compute_what_peft_computes() {
    let folder = fixture("peft");
    let expected = Expected::read(&folder);
    let mut compared = 0;
    for name in ["red", "green", "blue"] {
        let adapter = Adapter::from_peft(&folder.join(name)).unwrap();
        assert_eq!(adapter.name(), name);
        for (module, lora) in adapter.modules() {
            let linear = module.strip_prefix("layers.0.").unwrap();
            let (weight, bias) = base(&expected, linear);
            let mut ours = Ours::new(&[lora], 1, weight, bias);
            // The second linear's input is not of f32: rounding it is within the limit too.
            let x = expected.f32(&format!("single.{name}.{linear}.x"));
            let tokens = x.len() / lora.in_features();
            let y = ours.forward(&x, &mut vec![0; tokens], &mut vec![1.0; tokens]);
            assert_close(
                &y,
                &expected.f64(&format!("single.{name}.{linear}.y")).1,
                &format!("{name} {linear}"),
            );
            compared += 1;
        }
    }
    assert_eq!(compared, 5, "green has no down");
}

/// PEFT's mixed batch (`adapter_names`): one adapter a request, some of the base alone.
#[test]
fn a_mixed_batch_computes_what_peft_computes() {
    let folder = fixture("peft");
    let expected = Expected::read(&folder);
    let names = ["red", "green", "blue"];
    let adapters = names.map(|name| Adapter::from_peft(&folder.join(name)).unwrap());
    // In the order of the script's MIXED; 3 tokens a request.
    let requests = [Some(0), None, Some(1), Some(2), Some(0), Some(1), None];
    for linear in ["up", "down"] {
        let module = format!("layers.0.{linear}");
        let here: Vec<usize> = (0..3).filter(|&a| adapters[a].get(&module).is_some()).collect();
        let loras: Vec<&Lora> = here.iter().map(|&a| adapters[a].get(&module).unwrap()).collect();
        let slot = |request: &Option<usize>| {
            request.and_then(|a| here.iter().position(|&h| h == a)).map_or(-1, |slot| slot as i32)
        };
        let mut ids: Vec<i32> = requests.iter().flat_map(|request| [slot(request); 3]).collect();
        let (weight, bias) = base(&expected, linear);
        let x = expected.f32(&format!("mixed.{linear}.x"));
        let mut weights = vec![1.0; ids.len()];
        let y = Ours::new(&loras, 1, weight, bias).forward(&x, &mut ids, &mut weights);
        assert_close(&y, &expected.f64(&format!("mixed.{linear}.y")).1, linear);
    }
}

/// `[experts, rows, columns]` to one expert's `[out_features, in_features]`.
fn expert_weight(stacked: &(Vec<usize>, Vec<f64>), expert: usize, in_first: bool) -> Vec<f32> {
    let (rows, columns) = (stacked.0[1], stacked.0[2]);
    let of = &stacked.1[expert * rows * columns..(expert + 1) * rows * columns];
    if !in_first {
        return of.iter().map(|&w| w as f32).collect();
    }
    (0..columns).flat_map(|column| (0..rows).map(move |row| of[row * columns + column] as f32)).collect()
}

/// The base of the fixtures `peft_parameters`.
pub fn parameters(in_first: bool, is_transposed: bool) -> [ExpertParameter<'static>; 2] {
    let one =
        |name, out_features| ExpertParameter { name, in_features: 6, out_features, in_first, is_transposed };
    [one("gate_up_proj", 12), one("down_proj", 6)]
}

#[test]
fn stacked_experts_compute_what_peft_computes() {
    for (name, in_first, is_transposed) in [
        ("0.18.1", false, false),
        ("0.18.1_in_out", true, false),
        ("0.19.0", false, false),
        ("0.19.0_marked", true, true),
        ("0.21.2", false, false),
        ("0.21.2_marked", true, true),
        ("0.21.2_in_out", true, false),
        ("0.21.2_one", false, false),
    ] {
        let folder = fixture("peft_parameters").join(name);
        let expected = Expected::read(&folder);
        let read = read_peft_parameters(&folder, &parameters(in_first, is_transposed)).unwrap();
        assert!(read.adapter.modules().keys().eq(["layers.0.gate"]), "{name}");
        let keys = ["layers.0.experts.down_proj", "layers.0.experts.gate_up_proj"];
        assert!(read.experts.keys().eq(keys), "{name}");
        let ids = expected.ids("ids");
        for (key, x, y, scaling) in [(keys[1], "x", "gate_up", 1.0), (keys[0], "act", "y", 2.5)] {
            let loras = &read.experts[key];
            let stacked = expected.f64(key.rsplit_once('.').unwrap().1);
            assert_eq!((loras.len(), loras[0].scaling()), (stacked.0[0], scaling), "{name} {key}");
            let (x, (shape, y)) = (expected.f32(x), expected.f64(y));
            // Each expert has a base of its own: one layer for each, all tokens, then those that took the expert.
            for (expert, lora) in loras.iter().enumerate() {
                let mut ours = Ours::new(&[lora], 1, expert_weight(&stacked, expert, in_first), None);
                let got = ours.forward(&x, &mut vec![0; ids.len()], &mut vec![1.0; ids.len()]);
                for token in (0..ids.len()).filter(|&token| ids[token] == expert as i32) {
                    let row = token * shape[1]..(token + 1) * shape[1];
                    let what = format!("{name} {key} expert {expert} token {token}");
                    assert_close(&got[row.clone()], &y[row], &what);
                }
            }
        }
    }
}

#[test]
fn ming_checkpoints_compute_what_ming_computes() {
    let folder = fixture("ming");
    let expected = Expected::read(&folder);
    let ming = read_ming(&folder).unwrap();
    assert_eq!(ming.top_k, Some(2));
    assert!(ming.plain.keys().eq(["model.layers.0.self_attn.q_proj"]));
    assert_eq!(ming.modules.len(), 3);
    for (path, module) in &ming.modules {
        let of = |part: &str| format!("{path}.{part}");
        let loras: Vec<&Lora> = module.experts.iter().collect();
        let linear = module.router.clone();
        let router = Router::Linear { linear, top_k: 2, weighting: Weighting::SoftmaxSelected };
        let x = expected.f32(&of("x"));
        let tokens = x.len() / loras[0].in_features();
        let (mut ids, mut weights) = (vec![-1; tokens * 2], vec![f32::NAN; tokens * 2]);
        let mut ours = Ours::with_router(&loras, router, expected.f32(&of("weight")), None);
        let mut y = ours.forward(&x, &mut ids, &mut weights);
        assert_eq!(ids, expected.ids(&of("ids")), "{path}");
        assert_close(&weights, &expected.f64(&of("weights")).1, path);
        // The shared expert: weight 1 for every token, on top.
        let shared = module.shared.as_ref().unwrap();
        let zeros = vec![0.0; shared.in_features() * shared.out_features()];
        let mut ours = Ours::new(&[shared], 1, zeros, None);
        let on_top = ours.forward(&x, &mut vec![0; tokens], &mut vec![1.0; tokens]);
        y.iter_mut().zip(on_top).for_each(|(y, more)| *y += more);
        assert_close(&y, &expected.f64(&of("y")).1, path);
    }
    for (path, lora) in &ming.plain {
        let (x, weight) = (expected.f32(&format!("{path}.x")), expected.f32(&format!("{path}.weight")));
        let tokens = x.len() / lora.in_features();
        let y = Ours::new(&[lora], 1, weight, None).forward(&x, &mut vec![0; tokens], &mut vec![1.0; tokens]);
        assert_close(&y, &expected.f64(&format!("{path}.y")).1, path);
    }
}

/// A row less its mean, by its standard deviation.
fn standardised(row: &[f32]) -> Vec<f64> {
    let n = row.len() as f64;
    let mean = row.iter().map(|&v| f64::from(v)).sum::<f64>() / n;
    let variance = row.iter().map(|&v| (f64::from(v) - mean).powi(2)).sum::<f64>() / n;
    row.iter().map(|&v| (f64::from(v) - mean) / (variance + 1e-5).sqrt()).collect()
}

#[test]
fn phatgoose_checkpoints_compute_what_phatgoose_computes() {
    let folder = fixture("phatgoose");
    let expected = Expected::read(&folder);
    let modules = read_phatgoose(&folder.join("best.pt")).unwrap();
    assert_eq!(modules.len(), 2);
    for (path, module) in &modules {
        let of = |part: &str| format!("{path}.{part}");
        let x = expected.f32(&of("x"));
        let d = module.gates[0].len();
        let (shape, scores) = expected.f64(&of("scores"));
        for token in 0..shape[0] {
            let u = standardised(&x[token * d..(token + 1) * d]);
            for (expert, gate) in module.gates.iter().enumerate() {
                let v = standardised(gate);
                let score = u.iter().zip(&v).map(|(u, v)| u * v).sum::<f64>() / (d as f64).sqrt();
                let want = scores[token * shape[1] + expert];
                assert!((score - want).abs() < 1e-9, "{path}: token {token} expert {expert}");
            }
        }
        let loras: Vec<&Lora> = module.experts.iter().collect();
        assert_eq!((loras.len(), loras[0].rank(), loras[0].scaling()), (3, 4, 0.25));
        let (mut ids, mut weights) = (expected.ids(&of("ids")), expected.f32(&of("weights")));
        let mut ours = Ours::new(&loras, 2, expected.f32(&of("weight")), None);
        assert_close(&ours.forward(&x, &mut ids, &mut weights), &expected.f64(&of("y")).1, path);
    }
    // The checkpoint of one task is the second of the three.
    let task = read_phatgoose(&folder.join("task.pt")).unwrap();
    for (path, module) in &modules {
        assert_eq!(task[path].experts, module.experts[1..2], "{path}");
        assert_eq!(task[path].gates, module.gates[1..2], "{path}");
    }
}
