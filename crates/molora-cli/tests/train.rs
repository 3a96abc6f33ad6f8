//! Training on a tiny random model: gradients against differences, and the trained form against the one that is served.

mod common;

use candle_core::{Device, Tensor, Var};
use molora::Lora;
use molora_cli::engine::host::with_slice;
use molora_cli::engine::mixture::Mixture;
use molora_cli::engine::model::Pass;
use molora_cli::engine::projection::Projection;
use molora_cli::engine::setting::Setting;
use molora_cli::train::{Lesson, attention, gates};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

const IDS: [u32; 8] = [3, 1, 4, 1, 5, 9, 2, 6];

/// The tiny mixture without the query's experts, whose rows have another order.
fn mixture() -> Mixture {
    let mut mixture = common::mixture();
    mixture.modules.remove(&(1, Projection::Q));
    mixture
}

fn texts() -> BTreeMap<String, Vec<Vec<u32>>> {
    ["a", "b", "c"].map(|name| (name.to_owned(), vec![IDS.to_vec()])).into()
}

fn lesson() -> Lesson {
    Lesson::new(common::model(&Mixture::default()), mixture(), &texts()).unwrap()
}

fn variable(seed: u64, shape: (usize, usize)) -> Var {
    let values: Vec<f32> = common::random(seed, shape.0 * shape.1).iter().map(|v| v / 4.0).collect();
    Var::from_tensor(&Tensor::from_vec(values, shape, &Device::Cpu).unwrap()).unwrap()
}

/// The gradient of some elements of a variable against the loss a little to both sides.
fn judge(lesson: &mut Lesson, variable: &Var, what: &str) {
    let (_, surrogate) = lesson.loss(0).unwrap();
    let gradient = surrogate.backward().unwrap();
    let gradient = gradient.get(variable).unwrap_or_else(|| panic!("{what} has no gradient")).clone();
    let gradient: Vec<f32> = gradient.flatten_all().unwrap().to_vec1().unwrap();
    let values: Vec<f32> = variable.flatten_all().unwrap().to_vec1().unwrap();
    let largest = gradient.iter().fold(0f32, |largest, g| largest.max(g.abs()));
    assert!(largest > 0.0, "{what}");
    for i in (0..values.len()).step_by(values.len() / 5 + 1) {
        let mut at = |by: f32| {
            let mut moved = values.clone();
            moved[i] += by;
            variable.set(&Tensor::from_vec(moved, variable.shape(), &Device::Cpu).unwrap()).unwrap();
            lesson.loss(0).unwrap().0
        };
        let want = (at(0.02) - at(-0.02)) / 0.04;
        at(0.0);
        let off = (f64::from(gradient[i]) - want).abs();
        assert!(off < 0.02 * f64::from(largest) + 1e-4, "{what} {i}: {} {want}", gradient[i]);
    }
}

#[test]
fn gates_have_the_losss_gradient() {
    let (mut lesson, mut variables) = (lesson(), Vec::new());
    let place = |at: (usize, Projection), module: &molora_cli::engine::mixture::Module| {
        let v = variable(7 + variables.len() as u64, (1, common::shape(at.1).1));
        variables.push(v.clone());
        gates::gated(module.experts[1].as_ref(), v)
    };
    lesson.place(place).unwrap();
    for (n, v) in variables.iter().enumerate() {
        judge(&mut lesson, v, &format!("v of linear {n}"));
    }
}

#[test]
fn attention_has_the_losss_gradient_and_is_what_is_served() {
    let (mut lesson, mut variables) = (lesson(), BTreeMap::new());
    let set = Rc::new(RefCell::new(vec![0, 1]));
    lesson
        .place(|at, module| {
            let (outputs, inputs) = common::shape(at.1);
            let seed = 20 + variables.len() as u64;
            let factors = [variable(seed, (3, inputs)), variable(seed + 30, (outputs, 3))];
            variables.insert(at, factors.clone());
            attention::attended(module, factors, set.clone())
        })
        .unwrap();
    for ([a, b], n) in variables.values().zip(0..) {
        judge(&mut lesson, a, &format!("A of linear {n}"));
        judge(&mut lesson, b, &format!("B of linear {n}"));
    }
    // The same adapters in the layer that is served give the same loss.
    let mut mixture = mixture();
    for (at, module) in &mut mixture.modules {
        let (outputs, inputs) = common::shape(at.1);
        let [a, b] = variables[at].each_ref().map(|v| v.flatten_all().unwrap().to_vec1::<f32>().unwrap());
        module.attention = Some(Lora::new(inputs, outputs, 3, 1.0, &a, &b).unwrap());
    }
    let mut model = common::model(&mixture);
    let setting = Setting::Attended(vec![vec![0, 1]]);
    let x = model.embed(&[&IDS]).unwrap();
    let x = model.run(0..3, x, &mut Pass { setting: &setting, cache: None, observer: None }).unwrap();
    let h = x.get(0).unwrap().narrow(0, 0, IDS.len() - 1).unwrap();
    let shares = candle_nn::ops::softmax_last_dim(&model.logits(&h).unwrap()).unwrap();
    let shares = with_slice(&shares, <[f32]>::to_vec).unwrap();
    let losses = shares.chunks(common::VOCABULARY).zip(&IDS[1..]);
    let served = losses.map(|(row, &id)| -f64::from(row[id as usize]).ln()).sum::<f64>() / 7.0;
    let (trained, _) = lesson.loss(0).unwrap();
    assert!((trained - served).abs() < 1e-4, "{trained} {served}");
}

#[test]
fn training_opens_gates_and_lowers_losses() {
    let mut lesson = lesson();
    let fitted = gates::fit(&mut lesson, 30).unwrap();
    assert_eq!(fitted.len(), 2);
    for (at, rows) in &fitted {
        assert_eq!(rows.len(), 3, "a gate for every expert");
        let v: Vec<f32> = rows[0].flatten_all().unwrap().to_vec1().unwrap();
        assert!(v.len() == common::shape(at.1).1 && v.iter().any(|v| *v != 0.0), "{at:?}");
    }
    let before = Lesson::new(common::model(&mixture()), Mixture::default(), &texts());
    assert!(before.is_err(), "without experts there is nothing to learn");
    attention::fit(&mut lesson, 5).unwrap();
}

#[test]
fn queries_are_refused() {
    let mut lesson = Lesson::new(common::model(&Mixture::default()), common::mixture(), &texts()).unwrap();
    let error = gates::fit(&mut lesson, 1).unwrap_err().to_string();
    assert!(error.contains("layers.1.q_proj"), "{error}");
}
