//! The engine on a tiny random model, against plain loops and against itself.

mod common;

use molora_cli::engine::expert::ExpertLinear;
use molora_cli::engine::host::with_slice;
use molora_cli::engine::mixture::{Mixture, Module, scores};
use molora_cli::engine::model::{Model, Pass};
use molora_cli::engine::projection::Projection;
use molora_cli::engine::setting::{Routing, Setting};

/// `y = x W^T + sum_e g_e s_e B_e (A_e x)` for one token, in f64.
fn definition(base: &[f32], out_features: usize, x: &[f32], module: &Module, gates: &[f64]) -> Vec<f64> {
    let dot = |row: &[f32]| row.iter().zip(x).map(|(&w, &v)| f64::from(w) * f64::from(v)).sum::<f64>();
    let mut y: Vec<f64> = base.chunks_exact(x.len()).map(dot).collect();
    for (lora, gate) in module.experts.iter().zip(gates) {
        let Some(lora) = lora else { continue };
        let (a, b): (Vec<f32>, Vec<f32>) = (lora.a().collect(), lora.b().collect());
        let h: Vec<f64> = a.chunks_exact(x.len()).map(dot).collect();
        for (out, y) in y.iter_mut().enumerate() {
            let row = &b[out * lora.rank()..(out + 1) * lora.rank()];
            let sum: f64 = row.iter().zip(&h).map(|(&b, &h)| f64::from(b) * h).sum();
            *y += gate * f64::from(lora.scaling()) * sum;
        }
    }
    assert_eq!(y.len(), out_features);
    y
}

/// The weights of all experts for one token.
fn gates(x: &[f32], module: &Module, setting: &Setting) -> Vec<f64> {
    let experts = module.experts.len();
    match setting {
        Setting::Base => vec![0.0; experts],
        Setting::Uniform => vec![1.0 / experts as f64; experts],
        Setting::Expert { id, .. } => (0..experts).map(|e| f64::from(u8::from(e == *id))).collect(),
        Setting::Top(k) => {
            let scores = scores(&module.router, x);
            let mut order: Vec<usize> = (0..experts).collect();
            order.sort_by(|&i, &j| scores[j].total_cmp(&scores[i]));
            let mut gates = vec![0.0; experts];
            order[..*k].iter().for_each(|&e| gates[e] = scores[e].exp());
            let sum: f64 = gates.iter().sum();
            gates.iter().map(|gate| gate / sum).collect()
        }
        other => panic!("{other}: tested in systems.rs"),
    }
}

fn settings() -> Vec<Setting> {
    let mut settings = Setting::all(&["a".into(), "b".into(), "c".into()]);
    settings.push(Setting::Top(3));
    settings
}

#[test]
fn expert_linear_follows_its_definition() {
    let (tokens, in_features, out_features) = (5, 12, 7);
    let base = common::random(1, out_features * in_features);
    let x = common::random(2, tokens * in_features);
    for sparse in [false, true] {
        let module = common::module(3, out_features, in_features, sparse);
        let mut linear =
            ExpertLinear::new(&common::device(), base.clone(), out_features, in_features, &module).unwrap();
        for setting in settings() {
            let mut y = vec![f32::NAN; tokens * out_features];
            let mut routing = Routing::default();
            linear.forward(tokens, &x, &setting, &mut y, &mut routing).unwrap();
            for (token, x) in x.chunks_exact(in_features).enumerate() {
                let gates = gates(x, &module, &setting);
                let want = definition(&base, out_features, x, &module, &gates);
                let got = &y[token * out_features..(token + 1) * out_features];
                for (got, want) in got.iter().zip(&want) {
                    assert!((f64::from(*got) - want).abs() < 1e-4, "{setting} {token}: {got} {want}");
                }
                for (expert, weight) in routing.of(token) {
                    assert!((f64::from(weight) - gates[expert]).abs() < 1e-5, "{setting} {token}: {weight}");
                }
            }
        }
    }
}

#[test]
fn expert_linear_refuses_wrong_lengths() {
    let module = common::module(3, 7, 12, false);
    let mut linear = ExpertLinear::new(&common::device(), common::random(1, 84), 7, 12, &module).unwrap();
    let (mut y, mut routing) = (vec![0.0; 7], Routing::default());
    assert!(linear.forward(1, &[0.0; 11], &Setting::Base, &mut y, &mut routing).is_err());
    assert!(linear.forward(1, &[0.0; 12], &Setting::Base, &mut y[..6], &mut routing).is_err());
    assert!(linear.forward(1, &[0.0; 12], &Setting::Top(4), &mut y, &mut routing).is_err());
}

/// Logits of the last token of each sequence.
fn logits(model: &mut Model, sequences: &[&[u32]], setting: &Setting) -> Vec<Vec<f32>> {
    let x = model.embed(sequences).unwrap();
    let x = model.run(0..3, x, &mut Pass { setting, cache: None, observer: None }).unwrap();
    let last = |row: usize| {
        let h = x.get(row).unwrap().narrow(0, sequences[0].len() - 1, 1).unwrap();
        with_slice(&model.logits(&h).unwrap(), <[f32]>::to_vec).unwrap()
    };
    (0..sequences.len()).map(last).collect()
}

fn assert_close(a: &[f32], b: &[f32], what: &str) {
    for (index, (a, b)) in a.iter().zip(b).enumerate() {
        assert!((a - b).abs() < 1e-3, "{what}: {index}: {a} {b}");
    }
}

#[test]
fn a_sequence_is_the_same_alone_in_a_batch_and_token_by_token() {
    let mut model = common::model(&common::mixture());
    let (one, two): (&[u32], &[u32]) = (&[3, 1, 4, 1, 5, 9], &[2, 7, 1, 8, 2, 8]);
    for setting in settings() {
        let alone = logits(&mut model, &[two], &setting).remove(0);
        let batch = logits(&mut model, &[one, two], &setting).remove(1);
        assert_close(&alone, &batch, &format!("batch {setting}"));

        let mut cache = model.cache();
        let mut last = Vec::new();
        // Two tokens at once, then one by one.
        for part in [&two[..2], &two[2..3], &two[3..4], &two[4..5], &two[5..6]] {
            let x = model.embed(&[part]).unwrap();
            let mut pass = Pass { setting: &setting, cache: Some(&mut cache), observer: None };
            let x = model.run(0..3, x, &mut pass).unwrap();
            cache.advance(part.len());
            let h = x.get(0).unwrap().narrow(0, part.len() - 1, 1).unwrap();
            last = with_slice(&model.logits(&h).unwrap(), <[f32]>::to_vec).unwrap();
        }
        assert_close(&alone, &last, &format!("cache {setting}"));
    }
}

#[test]
fn layers_below_the_experts_are_shared() {
    let mut model = common::model(&common::mixture());
    assert_eq!(model.shared_layers(), 0..1);
    assert_eq!(model.expert_layers(), 1..3);
    let mut bare = common::model(&Mixture::default());
    assert_eq!(bare.shared_layers(), 0..3);
    let ids: &[u32] = &[3, 1, 4, 1];
    let base = logits(&mut model, &[ids], &Setting::Base).remove(0);
    assert_close(&base, &logits(&mut bare, &[ids], &Setting::Base).remove(0), "base");
    let routed = logits(&mut model, &[ids], &Setting::Top(2)).remove(0);
    assert!(base.iter().zip(&routed).any(|(a, b)| (a - b).abs() > 1e-2), "experts change nothing");
}

#[test]
fn observers_see_every_linear_with_experts() {
    let mut model = common::model(&common::mixture());
    let mut seen = Vec::new();
    let mut observe = |at: molora_cli::engine::linear::Seen| {
        assert_eq!(at.x.len(), 4 * at.linear.in_features());
        assert_eq!(at.routing.ids.len(), 4 * 2);
        seen.push((at.layer, at.projection));
        Ok(())
    };
    let x = model.embed(&[&[3, 1, 4, 1]]).unwrap();
    let mut pass = Pass { setting: &Setting::Top(2), cache: None, observer: Some(&mut observe) };
    model.run(0..3, x, &mut pass).unwrap();
    assert_eq!(seen, [(1, Projection::Q), (2, Projection::Gate), (2, Projection::Down)]);
}

#[test]
fn wrong_ids_and_long_sequences_are_refused() {
    let mut model = common::model(&common::mixture());
    assert!(model.embed(&[&[common::VOCABULARY as u32]]).is_err());
    assert!(model.embed(&[&[1, 2], &[1]]).is_err());
    assert!(model.embed(&[]).is_err());
    let long = vec![1; 33];
    let x = model.embed(&[&long]).unwrap();
    assert!(model.run(0..3, x, &mut Pass { setting: &Setting::Base, cache: None, observer: None }).is_err());
}

#[test]
fn experts_that_do_not_fit_the_model_are_named() {
    let mut mixture = common::mixture();
    let module = mixture.modules[&(1, Projection::Q)].clone();
    mixture.modules.insert((2, Projection::Up), module);
    let source = |mixture: &Mixture| {
        let result = std::panic::catch_unwind(|| common::model(mixture));
        result.err().and_then(|error| error.downcast_ref::<String>().cloned())
    };
    let message = source(&mixture).expect("a module of another shape was taken");
    assert!(message.contains("layers.2.up_proj"), "{message}");
}
