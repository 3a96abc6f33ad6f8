//! PHATGOOSE's checkpoint: in every linear, experts and for each of them a gate vector.
//!
//! - `<linear>._addons.expert_lora.layer1__{i}`: A **transposed**, `[in_features, rank]`
//! - `<linear>._addons.expert_lora.layer2__{i}`: B **transposed**, `[rank, out_features]`
//! - `<linear>._addons.router.expert_embeddings__{i}`: the gate vector, `[in_features]`
//! - `<linear>._addons.expert_lora.expert_input_gate`: the gate vector of the only expert, as the gate's training writes it
//!
//! A checkpoint of one task has the expert 0; a concatenated one numbers the tasks. The two names of the base's embedding,
//! which the writer's filter of frozen parameters misses, are passed over.

use super::Lora;
use super::tensors::{Tensor, TensorFile, index};
use crate::error::{Error, Result};
use std::collections::BTreeMap;
use std::path::Path;

const EXPERTS: &str = "._addons.expert_lora.";
const ROUTER: &str = "._addons.router.expert_embeddings__";
const INPUT_GATE: &str = "expert_input_gate";
/// The base's own, tied: frozen, but found in the file.
const OF_THE_BASE: [&str; 2] = ["encoder.embed_tokens.weight", "decoder.embed_tokens.weight"];

/// One linear's experts and their gates. The experts share sizes and element type; ranks may differ.
#[derive(Debug, Clone, PartialEq)]
pub struct PhatgooseModule {
    /// In the order of their numbers; the scaling is 1 / rank.
    pub experts: Vec<Lora>,
    /// For each expert the vector v of its gate, `[in_features]`, as it was trained: the published router standardises it
    /// and the input. All zeros where no gate was fitted.
    pub gates: Vec<Vec<f32>>,
}

/// Reads a checkpoint (`best.pt`, or the same names in safetensors); the key is the linear's path, such as
/// `encoder.block.0.layer.0.SelfAttention.q`.
///
/// Refused by name: experts without a gate and gates without an expert (routers shared by several linears), output gates,
/// layer norms, expert numbers with a gap, and experts that carry their gate as a further rank.
pub fn read_phatgoose(path: &Path) -> Result<BTreeMap<String, PhatgooseModule>> {
    let file = TensorFile::read(path)?;
    let mut found: BTreeMap<String, Parts> = BTreeMap::new();
    for (name, tensor) in file.tensors()? {
        if OF_THE_BASE.contains(&name.as_str()) {
            continue;
        }
        let Some((module, part)) = split(&name) else {
            let expected =
                "an expert's layer1__{i} or layer2__{i}, its expert_embeddings__{i} or expert_input_gate";
            return Err(tensor.refuse(expected, "this name"));
        };
        let parts = found.entry(module.to_owned()).or_default();
        match part {
            Part::Layer1(number) => parts.experts.entry(number).or_default().layer1 = Some(tensor),
            Part::Layer2(number) => parts.experts.entry(number).or_default().layer2 = Some(tensor),
            Part::Gate(number) => parts.experts.entry(number).or_default().gate = Some(tensor),
            Part::InputGate => parts.input_gate = Some(tensor),
        }
    }
    if found.is_empty() {
        return Err(Error::format(file.name(), "tensors", "at least one linear with experts", "none"));
    }
    let mut modules = BTreeMap::new();
    for (path, parts) in found {
        let module = parts.into_module(file.name(), &path)?;
        modules.insert(path, module);
    }
    Ok(modules)
}

/// What a tensor is in its linear.
enum Part {
    Layer1(usize),
    Layer2(usize),
    Gate(usize),
    InputGate,
}

fn split(name: &str) -> Option<(&str, Part)> {
    if let Some((module, number)) = name.split_once(ROUTER) {
        return Some((module, Part::Gate(index(number)?)));
    }
    let (module, part) = name.split_once(EXPERTS)?;
    let part = match part.split_once("__") {
        Some(("layer1", number)) => Part::Layer1(index(number)?),
        Some(("layer2", number)) => Part::Layer2(index(number)?),
        None if part == INPUT_GATE => Part::InputGate,
        _ => return None,
    };
    Some((module, part))
}

/// One linear's tensors, as they turn up. Names are unique in a file, so that no part comes twice.
#[derive(Default)]
struct Parts<'f> {
    experts: BTreeMap<usize, Expert<'f>>,
    input_gate: Option<Tensor<'f>>,
}

#[derive(Default)]
struct Expert<'f> {
    layer1: Option<Tensor<'f>>,
    layer2: Option<Tensor<'f>>,
    gate: Option<Tensor<'f>>,
}

impl Parts<'_> {
    fn into_module(mut self, file: &str, path: &str) -> Result<PhatgooseModule> {
        if let Some(gate) = self.input_gate.take() {
            if self.experts.len() != 1 {
                return Err(gate.refuse("one expert beside it", format!("{}", self.experts.len())));
            }
            for expert in self.experts.values_mut() {
                match &expert.gate {
                    // The published step copies it.
                    Some(copy) if copy.bytes != gate.bytes || copy.shape != gate.shape => {
                        return Err(gate.refuse(format!("the values of {}", copy.name), "others"));
                    }
                    _ => expert.gate = Some(gate.clone()),
                }
            }
        }
        let mut module = PhatgooseModule { experts: Vec::new(), gates: Vec::new() };
        for (expected, (number, expert)) in self.experts.into_iter().enumerate() {
            if number != expected {
                let item = format!("{path}{EXPERTS}layer1__{expected}");
                return Err(Error::format(file, item, "experts numbered from 0 without a gap", "none"));
            }
            let (lora, gate) = expert.into_lora(file, path, number)?;
            let sizes = |lora: &Lora| {
                format!("{} -> {} in {}", lora.in_features(), lora.out_features(), lora.element())
            };
            let first = module.experts.first().unwrap_or(&lora);
            if sizes(first) != sizes(&lora) {
                let item = format!("{path}{EXPERTS}layer1__{number}");
                return Err(Error::format(file, item, sizes(first), sizes(&lora)));
            }
            module.experts.push(lora);
            module.gates.push(gate);
        }
        Ok(module)
    }
}

impl Expert<'_> {
    fn into_lora(self, file: &str, path: &str, number: usize) -> Result<(Lora, Vec<f32>)> {
        let missing =
            |part: String| Err(Error::format(file, format!("{path}{part}"), "a tensor of that name", "none"));
        let Some(layer1) = self.layer1 else { return missing(format!("{EXPERTS}layer1__{number}")) };
        let Some(layer2) = self.layer2 else { return missing(format!("{EXPERTS}layer2__{number}")) };
        let Some(gate) = self.gate else { return missing(format!("{ROUTER}{number}")) };
        let ((in_features, rank), (of_layer2, out_features)) = (layer1.matrix()?, layer2.matrix()?);
        if of_layer2 != rank {
            return Err(layer2.refuse(format!("[{rank}, out_features]"), format!("{:?}", layer2.shape)));
        }
        if layer2.element != layer1.element {
            return Err(layer2.refuse(format!("{}, as layer1", layer1.element), layer2.element));
        }
        if gate.shape != [in_features] {
            return Err(gate.refuse(format!("[{in_features}]"), format!("{:?}", gate.shape)));
        }
        for tensor in [&layer1, &layer2, &gate] {
            tensor.check_finite()?;
        }
        let v = gate.to_f32();
        // A published variant puts the gate before the ranks: a first column of v that layer2 multiplies with zeros.
        let gate_rides = layer1.to_f32().iter().step_by(rank).eq(&v)
            && layer2.to_f32()[..out_features].iter().all(|w| *w == 0.0);
        if gate_rides && v.iter().any(|w| *w != 0.0) {
            return Err(layer1.refuse("ranks only", "the gate vector as the first of them"));
        }
        let width = layer1.element.bytes();
        let lora_a = transposed(&layer1.bytes, width, in_features, rank);
        let lora_b = transposed(&layer2.bytes, width, rank, out_features);
        let scaling = 1.0 / rank as f32;
        let lora =
            Lora::from_finite(in_features, out_features, rank, scaling, layer1.element, lora_a, lora_b)?;
        Ok((lora, v))
    }
}

/// `[rows, columns]` to `[columns, rows]`.
fn transposed(bytes: &[u8], width: usize, rows: usize, columns: usize) -> Vec<u8> {
    let places = (0..columns).flat_map(|column| (0..rows).map(move |row| (row * columns + column) * width));
    places.flat_map(|place| &bytes[place..place + width]).copied().collect()
}
