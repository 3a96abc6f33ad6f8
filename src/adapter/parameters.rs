//! PEFT's `target_parameters`: LoRA on a parameter that stacks the experts of a base, `[experts, rows, columns]`.
//!
//! A file says neither which parameter a pair of factors belongs to nor which of its dimensions lora_A is on:
//!
//! - Wrappers nest in the order in which the module registers its parameters, the last one outside: with `gate_up_proj`
//!   before `down_proj`, `experts.lora_A` is down's and `experts.base_layer.lora_A` is gate_up's.
//! - lora_A `[experts * rank, columns or rows]` is `[experts, rank, ..]`; lora_B `[the other, rank * experts]` is
//!   `[.., rank, experts]`, **experts last**. PEFT up to 0.18 always puts lora_A on the rows; 0.19.0 puts it on the columns
//!   where the base's module says `is_transposed`; from 0.19.1 on it is the other way round.
//!
//! So the caller says what the base is, and the file's version decides.

use super::config::{Config, ends_with_path};
use super::peft::{CONFIG_FILE, PREFIX, Pair, TENSOR_FILE, into_modules, split_factor};
use super::tensors::TensorFile;
use super::{Adapter, Lora};
use crate::error::{Error, Result};
use std::collections::BTreeMap;
use std::path::Path;

/// What the base model's stacked parameter is. Mixtral in transformers: `[experts, out, in]`, not marked; GPT-OSS:
/// `[experts, in, out]`, marked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExpertParameter<'a> {
    /// The parameter's own name, such as `gate_up_proj`.
    pub name: &'a str,
    /// Columns of one expert's input.
    pub in_features: usize,
    /// Columns of one expert's output.
    pub out_features: usize,
    /// Stored as `[experts, in_features, out_features]`, not as `[experts, out_features, in_features]`.
    pub in_first: bool,
    /// The module that holds it has an attribute `is_transposed` that is true, as PEFT saw it when it made the adapter.
    pub is_transposed: bool,
}

/// An adapter of stacked experts, and of linears beside them.
#[derive(Debug, Clone, PartialEq)]
pub struct PeftParameters {
    /// The ordinary linears; may be none.
    pub adapter: Adapter,
    /// By the parameter's path, such as `model.layers.0.mlp.experts.gate_up_proj`: one Lora for each expert, in order.
    pub experts: BTreeMap<String, Vec<Lora>>,
}

/// Reads a PEFT folder whose config sets `target_parameters`.
///
/// `parameters` are those of one module of experts **in the order in which the module registers them**; the same list
/// serves every layer. Ranks and alphas follow `rank_pattern` and `alpha_pattern` with the parameter's path. Refused by
/// name: a parameter of the config that the list lacks, sizes that contradict the list, and a `peft_version` whose rule
/// is not known (development versions).
pub fn read_peft_parameters(folder: &Path, parameters: &[ExpertParameter]) -> Result<PeftParameters> {
    let config = Config::read_with_parameters(&folder.join(CONFIG_FILE))?;
    let file = TensorFile::read(&folder.join(TENSOR_FILE))?;
    let (mut linears, mut stacked) = (BTreeMap::<String, Pair>::new(), BTreeMap::<String, Stacked>::new());
    for (name, tensor) in file.tensors()? {
        let Some((path, factor)) = name.strip_prefix(PREFIX).and_then(split_factor) else {
            return Err(tensor.refuse("a name like base_model.model.<module>.lora_A.weight", "this name"));
        };
        let (module, depth) = unwrap(path);
        let adapted = adapted(&config, module, parameters);
        if adapted.is_empty() && depth == 0 {
            linears.entry(module.to_owned()).or_default().put(factor, tensor)?;
            continue;
        }
        // The parameter registered last is wrapped last and lies outside.
        let Some(parameter) = adapted.len().checked_sub(depth + 1).map(|place| adapted[place]) else {
            let expected = format!("at most {} wrapped parameters of this module", adapted.len());
            return Err(tensor.refuse(expected, format!("one at depth {depth}")));
        };
        let key = format!("{module}.{}", parameter.name);
        let item = format!("{PREFIX}{path}");
        let stacked =
            stacked.entry(key).or_insert_with(|| Stacked { item, parameter, pair: Pair::default() });
        stacked.pair.put(factor, tensor)?;
    }
    check_all_there(&config, stacked.keys().map(String::as_str), parameters)?;
    let modules = into_modules(&config, file.name(), linears)?;
    let mut experts = BTreeMap::new();
    for (key, stacked) in stacked {
        let loras = stacked.into_loras(&config, file.name(), &key)?;
        experts.insert(key, loras);
    }
    if experts.is_empty() {
        return Err(Error::format(
            file.name(),
            "target_parameters",
            "at least one parameter's factors",
            "none",
        ));
    }
    let name = folder.file_name().unwrap_or(folder.as_os_str()).to_string_lossy();
    Ok(PeftParameters { adapter: Adapter::new(name, modules), experts })
}

/// The module's path without the wrappers' names, and how many there were.
fn unwrap(path: &str) -> (&str, usize) {
    let (mut module, mut depth) = (path, 0);
    while let Some(inner) = module.strip_suffix(".base_layer") {
        (module, depth) = (inner, depth + 1);
    }
    (module, depth)
}

/// The caller's parameters that the config adapts in this module, in the caller's order.
fn adapted<'p>(
    config: &Config,
    module: &str,
    parameters: &[ExpertParameter<'p>],
) -> Vec<ExpertParameter<'p>> {
    let targeted = |p: &&ExpertParameter| {
        let key = format!("{module}.{}", p.name);
        config.parameters().iter().any(|target| ends_with_path(&key, target))
    };
    parameters.iter().filter(targeted).copied().collect()
}

/// Every target is in the file, and every module has all of its adapted parameters: else the nesting means another one.
fn check_all_there<'k>(
    config: &Config,
    found: impl Iterator<Item = &'k str> + Clone,
    parameters: &[ExpertParameter],
) -> Result<()> {
    for target in config.parameters() {
        if !found.clone().any(|key| ends_with_path(key, target)) {
            let expected = format!("{target:?} in the file, and its last part among the given parameters");
            return Err(Error::format(
                config.file(),
                "target_parameters",
                expected,
                "neither or one of them",
            ));
        }
    }
    for key in found.clone() {
        let Some((module, _)) = key.rsplit_once('.') else { continue };
        for parameter in adapted(config, module, parameters) {
            let other = format!("{module}.{}", parameter.name);
            if !found.clone().any(|key| key == other) {
                return Err(Error::format(
                    config.file(),
                    "target_parameters",
                    format!("factors of {other}"),
                    "none",
                ));
            }
        }
    }
    Ok(())
}

/// One parameter's factors as the file has them.
struct Stacked<'f, 'p> {
    item: String,
    parameter: ExpertParameter<'p>,
    pair: Pair<'f>,
}

impl Stacked<'_, '_> {
    fn into_loras(self, config: &Config, file: &str, key: &str) -> Result<Vec<Lora>> {
        let (rank, scaling) = (config.rank(key), config.scaling(key)?);
        let (a, b) = self.pair.both(file, &self.item)?;
        let ((a_rows, a_columns), (b_rows, b_columns)) = (a.matrix()?, b.matrix()?);
        if a_rows % rank != 0 {
            return Err(a.refuse(format!("experts times rank {rank} rows"), a_rows));
        }
        if b_columns != a_rows {
            return Err(b.refuse(format!("[.., {a_rows}]"), format!("{:?}", b.shape)));
        }
        let (experts, parameter) = (a_rows / rank, self.parameter);
        let on_columns = lora_a_on_columns(config, &parameter, experts)?;
        // lora_A is the Lora's A where it lies on the input's dimension, else the two change places.
        let as_they_are = on_columns != parameter.in_first;
        let (in_features, out_features) = (parameter.in_features, parameter.out_features);
        let (expected_a, expected_b) =
            if as_they_are { (in_features, out_features) } else { (out_features, in_features) };
        let version = config.version().unwrap_or("before 0.18");
        if a_columns != expected_a {
            let expected = format!("[.., {expected_a}] for {} of PEFT {version}", parameter.name);
            return Err(a.refuse(expected, format!("{:?}", a.shape)));
        }
        if b_rows != expected_b {
            let expected = format!("[{expected_b}, ..] for {} of PEFT {version}", parameter.name);
            return Err(b.refuse(expected, format!("{:?}", b.shape)));
        }
        let width = a.element.bytes();
        let of_a = |expert: usize, r: usize, column: usize| (expert * rank + r) * a_columns + column;
        let of_b = |expert: usize, r: usize, row: usize| (row * rank + r) * experts + expert;
        let one = |expert: usize| {
            let (lora_a, lora_b) = if as_they_are {
                let of_a = (0..rank).flat_map(|r| (0..in_features).map(move |i| of_a(expert, r, i)));
                let of_b = (0..out_features).flat_map(|o| (0..rank).map(move |r| of_b(expert, r, o)));
                (gather(&a.bytes, width, of_a), gather(&b.bytes, width, of_b))
            } else {
                let of_b = (0..rank).flat_map(|r| (0..in_features).map(move |i| of_b(expert, r, i)));
                let of_a = (0..out_features).flat_map(|o| (0..rank).map(move |r| of_a(expert, r, o)));
                (gather(&b.bytes, width, of_b), gather(&a.bytes, width, of_a))
            };
            Lora::from_finite(in_features, out_features, rank, scaling, a.element, lora_a, lora_b)
        };
        (0..experts).map(one).collect()
    }
}

/// The elements at these places, one after the other.
fn gather(bytes: &[u8], width: usize, places: impl Iterator<Item = usize>) -> Vec<u8> {
    places.flat_map(|place| &bytes[place * width..(place + 1) * width]).copied().collect()
}

/// Whether the PEFT that wrote the file put lora_A on the parameter's columns, the last dimension, or on its rows.
fn lora_a_on_columns(config: &Config, parameter: &ExpertParameter, experts: usize) -> Result<bool> {
    if experts == 1 {
        return Ok(true); // then PEFT adds B A as it is
    }
    let marked = parameter.is_transposed;
    let refuse =
        |expected: &str, got: String| Err(Error::format(config.file(), "peft_version", expected, got));
    let Some(version) = config.version() else {
        // Only versions before 0.18 leave it out, or someone who removed it; where the sizes cannot tell, do not guess.
        if parameter.in_features == parameter.out_features {
            return refuse(
                "a version, since a square parameter does not show which dimension lora_A is on",
                "none".to_owned(),
            );
        }
        return Ok(false);
    };
    let numbers: Option<Vec<u32>> = version.split('.').map(|part| part.parse().ok()).collect();
    match numbers.as_deref() {
        Some([0, ..=18, ..]) => Ok(false),
        Some([0, 19, 0] | [0, 19]) => Ok(marked),
        Some([_, _, ..]) => Ok(!marked),
        _ => refuse("a released version, such as 0.21.2", format!("{version:?}")),
    }
}
