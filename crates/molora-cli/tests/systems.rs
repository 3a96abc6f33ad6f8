//! The systems' settings on a tiny random model, on every device: requests in one batch, RAMoLE's attention, PHATGOOSE's gates.

mod common;

use indicatif::ProgressBar;
use molora::Lora;
use molora_cli::demo::gates;
use molora_cli::engine::host::with_slice;
use molora_cli::engine::linear::Seen;
use molora_cli::engine::mixture::Mixture;
use molora_cli::engine::model::{Model, Pass};
use molora_cli::engine::setting::{Gates, Setting};
use std::collections::BTreeMap;

const ONE: &[u32] = &[3, 1, 4, 1, 5, 9];
const TWO: &[u32] = &[2, 7, 1, 8, 2, 8];

/// The last layer's rows of some sequences; `observe` sees every linear with experts.
fn run(
    model: &mut Model,
    sequences: &[&[u32]],
    setting: &Setting,
    observe: &mut dyn FnMut(Seen),
) -> Vec<Vec<f32>> {
    let mut observe = |seen: Seen| {
        observe(seen);
        Ok(())
    };
    let x = model.embed(sequences).unwrap();
    let mut pass = Pass { setting, cache: None, observer: Some(&mut observe) };
    let x = model.run(0..3, x, &mut pass).unwrap();
    (0..sequences.len()).map(|row| with_slice(&x.get(row).unwrap(), <[f32]>::to_vec).unwrap()).collect()
}

fn expert(id: usize) -> Setting {
    Setting::Expert { id, name: "one".into() }
}

fn assert_close(a: &[f32], b: &[f32], what: &str) {
    assert_eq!(a.len(), b.len());
    assert!(a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-4), "{what}: {a:?} {b:?}");
}

/// The mixture with a router adapter in every linear.
fn attended() -> Mixture {
    let mut mixture = common::mixture();
    for (n, module) in mixture.modules.values_mut().enumerate() {
        let lora = module.experts[0].as_ref().unwrap();
        let (inputs, outputs) = (lora.in_features(), lora.out_features());
        let (a, b) = (common::random(50 + n as u64, 3 * inputs), common::random(60 + n as u64, 3 * outputs));
        module.attention = Some(Lora::new(inputs, outputs, 3, 5.0, &a, &b).unwrap());
    }
    mixture
}

/// The mixture's model on every device, named.
fn models(mixture: &Mixture) -> impl Iterator<Item = (&'static str, Model)> {
    common::devices().into_iter().map(|device| (device.name(), common::model_on(&device, mixture)))
}

#[test]
fn every_request_of_a_batch_takes_its_own_adapter() {
    for (mixture, attend) in [(common::mixture(), false), (attended(), true)] {
        models(&mixture).for_each(|(device, model)| requests_of_a_batch(device, model, attend));
    }
}

fn requests_of_a_batch(device: &str, mut model: Model, attend: bool) {
    let sets = vec![vec![1], vec![], vec![2]];
    // One adapter alone has all the weight, whoever gives it.
    let setting = if attend { Setting::Attended(sets) } else { Setting::Requests(sets) };
    let batch = run(&mut model, &[ONE, TWO, TWO], &setting, &mut |_| ());
    for (row, (ids, setting)) in [(ONE, expert(1)), (TWO, Setting::Base), (TWO, expert(2))].iter().enumerate()
    {
        let alone = run(&mut model, &[ids], setting, &mut |_| ()).remove(0);
        assert_close(&batch[row], &alone, &format!("{device} {setting} {row}"));
    }
    assert_ne!(batch[1], batch[2]);
}

#[test]
fn attention_weighs_as_published() {
    let mixture = attended();
    models(&mixture).for_each(|(device, model)| attention_of(device, model, &mixture));
}

fn attention_of(device: &str, mut model: Model, mixture: &Mixture) {
    let mut seen_linears = 0;
    let mut check = |seen: Seen| {
        let module = &mixture.modules[&(seen.layer, seen.projection)];
        let wide = |values: &mut dyn Iterator<Item = f32>| values.map(f64::from).collect::<Vec<f64>>();
        let times = |m: &[f64], x: &[f64]| -> Vec<f64> {
            m.chunks(x.len()).map(|row| row.iter().zip(x).map(|(m, x)| m * x).sum()).collect()
        };
        let product = |lora: &Lora, x: &[f64]| -> Vec<f64> {
            let h = times(&wide(&mut lora.a()), x);
            times(&wide(&mut lora.b()), &h).iter().map(|v| v * f64::from(lora.scaling())).collect()
        };
        let router = module.attention.as_ref().unwrap();
        let b_r = wide(&mut router.b());
        for (token, x) in seen.x.chunks(seen.linear.in_features()).enumerate() {
            let x: Vec<f64> = wide(&mut x.iter().copied());
            let q = times(&wide(&mut router.a()), &x);
            let score = |expert: usize| {
                let v = module.experts[expert]
                    .as_ref()
                    .map_or(vec![0.0; seen.linear.out_features()], |e| product(e, &x));
                let k = (0..3).map(|r| v.iter().zip(b_r.chunks(3)).map(|(v, b)| v * b[r]).sum::<f64>());
                k.zip(&q).map(|(k, q)| k * q).sum::<f64>() / 3f64.sqrt()
            };
            let set: Vec<(usize, f32)> = seen.routing.of(token).collect();
            assert_eq!(
                set.iter().map(|s| s.0).collect::<Vec<_>>(),
                if token < 6 { vec![0, 2] } else { vec![1, 0] }
            );
            let apart = score(set[1].0) - score(set[0].0);
            let want = 1.0 / (1.0 + apart.exp());
            assert!((f64::from(set[0].1) - want).abs() < 1e-4, "{device} {token}: {set:?} {want}");
        }
        seen_linears += 1;
    };
    let setting = Setting::Attended(vec![vec![0, 2], vec![1, 0]]);
    run(&mut model, &[ONE, TWO], &setting, &mut check);
    // q is not among them: its rows are in another order in the model than in the adapters.
    assert_eq!(seen_linears, 3);
}

#[test]
fn gates_are_fitted_and_score_between_layer_norms() {
    let mixture = common::mixture();
    models(&mixture).for_each(|(device, model)| gates_of(device, model, &mixture));
}

fn gates_of(device: &str, mut model: Model, mixture: &Mixture) {
    let sequences = |seed: u64| -> Vec<Vec<u32>> {
        let ids = |n: u64| common::random(seed + n, 16).iter().map(|v| ((v + 1.0) * 19.0) as u32).collect();
        (0..5).map(ids).collect()
    };
    let texts = BTreeMap::from([
        ("a".into(), sequences(1)),
        ("b".into(), sequences(20)),
        ("c".into(), sequences(40)),
    ]);
    let fitted = gates::fit(&mut model, &texts, &mixture.names, &ProgressBar::hidden()).unwrap();
    assert!(fitted.gates.keys().eq(mixture.modules.keys()));
    assert_eq!(model.expert_places(), mixture.modules.keys().copied().collect::<Vec<_>>());
    // 30 random inputs of three domains in a few dimensions: not all apart, but far more than the third that chance gives.
    assert!(fitted.right > 0.6, "{device}: {}", fitted.right);
    for (&at, gates) in &fitted.gates {
        model.expert_linear_mut(at).unwrap().set_gates(Gates::Logistic, gates.clone()).unwrap();
    }
    let norm = |u: &[f32]| -> Vec<f64> {
        let n = u.len() as f64;
        let mean = u.iter().map(|&u| f64::from(u)).sum::<f64>() / n;
        let variance = u.iter().map(|&u| (f64::from(u) - mean).powi(2)).sum::<f64>() / n;
        u.iter().map(|&u| (f64::from(u) - mean) / (variance + 1e-5).sqrt()).collect()
    };
    let mut check = |seen: Seen| {
        let width = seen.linear.in_features();
        let gates = &fitted.gates[&(seen.layer, seen.projection)];
        for (token, x) in seen.x.chunks(width).enumerate() {
            let u = norm(x);
            let dot =
                |v: &[f32]| norm(v).iter().zip(&u).map(|(v, u)| v * u).sum::<f64>() / (width as f64).sqrt();
            let mut scores: Vec<(usize, f64)> = gates.chunks(width).map(dot).enumerate().collect();
            scores.sort_by(|a, b| b.1.total_cmp(&a.1));
            let got: Vec<(usize, f32)> = seen.routing.of(token).collect();
            assert_eq!(got.iter().map(|g| g.0).collect::<Vec<_>>(), [scores[0].0, scores[1].0]);
            let first = 1.0 / (1.0 + (scores[1].1 - scores[0].1).exp());
            assert!((f64::from(got[0].1) - first).abs() < 1e-4, "{device} {token}: {got:?} {first}");
        }
    };
    run(&mut model, &[ONE], &Setting::Phatgoose(Gates::Logistic), &mut check);
    // Other gates count from the next call on.
    let before = run(&mut model, &[ONE], &Setting::Phatgoose(Gates::Logistic), &mut |_| ());
    for at in model.expert_places() {
        let turned = fitted.gates[&at].iter().map(|v| -v).collect();
        model.expert_linear_mut(at).unwrap().set_gates(Gates::Logistic, turned).unwrap();
    }
    assert_ne!(before, run(&mut model, &[ONE], &Setting::Phatgoose(Gates::Logistic), &mut |_| ()));
}

/// Every system through the whole model, on every device what it is on the CPU: a token's weights, and the last layer's rows.
#[test]
fn devices_agree() {
    let mixture = attended();
    let mut cpu = common::model(&mixture);
    for (device, mut model) in models(&mixture) {
        for (n, at) in cpu.expert_places().into_iter().enumerate() {
            let width = common::shape(at.1).1;
            for model in [&mut cpu, &mut model] {
                let gates = common::random(70 + n as u64, 3 * width);
                model.expert_linear_mut(at).unwrap().set_gates(Gates::Logistic, gates).unwrap();
            }
        }
        let sets = vec![vec![2, 0], vec![1]];
        let systems = [Setting::Top(2), Setting::Phatgoose(Gates::Logistic), Setting::Requests(sets.clone())];
        for setting in systems.into_iter().chain([Setting::Attended(sets)]) {
            let mut both = [&mut cpu, &mut model].map(|model| {
                let mut weights = Vec::new();
                let mut observe = |seen: Seen| weights.extend_from_slice(&seen.routing.weights);
                let rows = run(model, &[ONE, TWO], &setting, &mut observe).concat();
                (rows, weights)
            });
            let ((rows, weights), (want_rows, want_weights)) = (std::mem::take(&mut both[1]), &both[0]);
            assert_close(&rows, want_rows, &format!("{device} {setting}"));
            assert_close(&weights, want_weights, &format!("{device} {setting}: weights"));
        }
    }
}

#[test]
fn gates_of_a_domain_without_an_expert_are_refused() {
    let mixture = common::mixture();
    let mut model = common::model(&mixture);
    let texts = BTreeMap::from([("z".into(), vec![ONE.to_vec()])]);
    let refused = gates::fit(&mut model, &texts, &mixture.names, &ProgressBar::hidden());
    assert!(refused.err().unwrap().to_string().starts_with("z: expected an expert"));
}
