//! MING-MOE's checkpoint: in every linear of the feed-forward block, experts with a switch of their own.
//!
//! - `model.layers.{l}.mlp.{gate,up,down}_proj.experts.{i}.lora_{A,B}_{i}.weight`
//! - `model.layers.{l}.mlp.{gate,up,down}_proj.switch.{weight,bias}`
//! - `model.layers.{l}.mlp.{gate,up,down}_proj.share_experts.lora_{A,B}.weight`, where an expert is shared
//! - any other `<module>.lora_{A,B}.weight`: a plain LoRA, as the attention has
//!
//! All of them with or without `base_model.model.` in front. The published training puts the attention's LoRA into PEFT's
//! `adapter_model.safetensors` and the experts into `non_lora_trainables.bin`, and says in `config.json` how many a token
//! takes; one file with everything in it is read as well.

use super::config::{Config, MAX_CONFIG_BYTES};
use super::json::Json;
use super::peft::{CONFIG_FILE, Factor, PREFIX, Pair, TENSOR_FILE, split_factor};
use super::router::{Part, RouterParts};
use super::tensors::{Tensor, TensorFile, index, read_bounded};
use super::{LinearRouter, Lora};
use crate::error::{Error, Result};
use std::collections::BTreeMap;
use std::path::Path;

/// A whole checkpoint.
#[derive(Debug, Clone, PartialEq)]
pub struct Ming {
    /// The linears with experts, by path, such as `model.layers.0.mlp.gate_proj`.
    pub modules: BTreeMap<String, MingModule>,
    /// The linears with one plain LoRA, by path, such as `model.layers.0.self_attn.q_proj`.
    pub plain: BTreeMap<String, Lora>,
    /// Experts per token, where `config.json` says it; weights are a softmax over these.
    pub top_k: Option<usize>,
}

/// One linear's experts and router. All experts have the same sizes, and the router one row for each.
#[derive(Debug, Clone, PartialEq)]
pub struct MingModule {
    /// The routed experts, in the order of the router's rows.
    pub experts: Vec<Lora>,
    /// The expert that every token takes with weight 1, where the checkpoint has one.
    pub shared: Option<Lora>,
    /// The checkpoint's switch.
    pub router: LinearRouter,
}

const EXPERT_FILE: &str = "non_lora_trainables.bin";
const MODEL_CONFIG: &str = "config.json";

/// Reads a checkpoint from its folder, or from one given file of tensors with the configs beside it.
///
/// `target_modules` is not compared with the file: the training code puts experts on linears of its own choice. A linear
/// with a single expert has no switch and is read as a plain LoRA, which it is. Refused by name: experts that are sampled,
/// the two-stage form (`base` and `orth` factors), and counts that contradict `config.json`.
pub fn read_ming(path: &Path) -> Result<Ming> {
    let (folder, files) = if path.is_dir() {
        let there = |name: &str| Some(path.join(name)).filter(|file| file.exists());
        let files: Vec<_> = [TENSOR_FILE, EXPERT_FILE].into_iter().filter_map(there).collect();
        (path, if files.is_empty() { vec![path.join(TENSOR_FILE)] } else { files })
    } else {
        (beside(path), vec![path.to_path_buf()])
    };
    let config = Config::read(&folder.join(CONFIG_FILE))?;
    let model = ModelConfig::read(&folder.join(MODEL_CONFIG))?;
    let files = files.iter().map(|file| TensorFile::read(file)).collect::<Result<Vec<_>>>()?;
    let mut found = Found::default();
    for file in &files {
        for (_, tensor) in file.tensors()? {
            found.sort(tensor)?;
        }
    }
    let (plain_file, expert_file) = (files[0].name(), files[files.len() - 1].name());
    let (mut modules, mut plain) = (BTreeMap::new(), BTreeMap::new());
    for (path, mut parts) in found.mixtures {
        if let Some(pair) = parts.take_single() {
            found.plain.insert(path, pair);
            continue;
        }
        let module = parts.into_module(expert_file, &path, &config)?;
        model.check(expert_file, &path, &module)?;
        modules.insert(path, module);
    }
    for (path, pair) in found.plain {
        let lora = pair.into_lora(plain_file, &path, config.rank(&path), config.scaling(&path)?)?;
        plain.insert(path, lora);
    }
    if modules.is_empty() {
        return Err(Error::format(expert_file, "tensors", "at least one module with experts", "none"));
    }
    Ok(Ming { modules, plain, top_k: model.top_k })
}

/// What the base model's `config.json`, as the training extends it, says about the experts.
#[derive(Default)]
struct ModelConfig {
    experts: Option<usize>,
    top_k: Option<usize>,
}

impl ModelConfig {
    /// Reads the file; one that is not there says nothing.
    fn read(path: &Path) -> Result<Self> {
        if !path.exists() {
            return Ok(Self::default());
        }
        let file = path.display().to_string();
        let Json::Object(entries) = Json::parse(&file, &read_bounded(path, MAX_CONFIG_BYTES)?)? else {
            return Err(Error::format(file, "JSON", "an object", "another value"));
        };
        let entry =
            |key: &str| entries.iter().find(|(k, _)| k == key).map_or(&Json::Null, |(_, value)| value);
        let count = |key: &str| match entry(key) {
            Json::Null => Ok(None),
            value => match value.as_usize().filter(|count| *count > 0) {
                Some(count) => Ok(Some(count)),
                None => Err(Error::format(&file, key, "a whole number from 1", value)),
            },
        };
        match entry("expert_selection") {
            Json::Null => {}
            Json::Text(selection) if selection == "top_k" => {}
            other => return Err(Error::format(&file, "expert_selection", "\"top_k\"", other)),
        }
        Ok(Self { experts: count("num_experts")?, top_k: count("num_experts_per_token")? })
    }

    fn check(&self, file: &str, path: &str, module: &MingModule) -> Result<()> {
        let got = module.experts.len();
        if let Some(expected) = self.experts.filter(|experts| *experts != got) {
            let expected = format!("{expected} experts, as {MODEL_CONFIG} says");
            return Err(Error::format(file, format!("{path}.experts"), expected, got));
        }
        if let Some(top_k) = self.top_k.filter(|top_k| *top_k > got) {
            let expected = format!("at least {top_k} experts, as {MODEL_CONFIG} gives a token");
            return Err(Error::format(file, format!("{path}.experts"), expected, got));
        }
        Ok(())
    }
}

fn beside(path: &Path) -> &Path {
    path.parent().unwrap_or(Path::new(""))
}

/// The tensors of a checkpoint, sorted by module.
#[derive(Default)]
struct Found<'f> {
    mixtures: BTreeMap<String, MixtureParts<'f>>,
    plain: BTreeMap<String, Pair<'f>>,
}

#[derive(Default)]
struct MixtureParts<'f> {
    experts: BTreeMap<usize, Pair<'f>>,
    shared: Option<Pair<'f>>,
    switch: RouterParts<'f>,
}

/// What a tensor is in its module.
enum Role {
    Expert(usize, Factor),
    Shared(Factor),
    Switch(Part),
    Plain(Factor),
}

fn split(name: &str) -> Option<(&str, Role)> {
    let name = name.strip_prefix(PREFIX).unwrap_or(name);
    if let Some((module, part)) = name.rsplit_once(".switch.") {
        return Some((module, Role::Switch(Part::from_name(part)?)));
    }
    if let Some((module, expert)) = name.split_once(".experts.") {
        let (number, factor) = expert.strip_suffix(".weight")?.split_once('.')?;
        let (factor, repeated) = match (factor.strip_prefix("lora_A_"), factor.strip_prefix("lora_B_")) {
            (Some(repeated), _) => (Factor::A, repeated),
            (_, Some(repeated)) => (Factor::B, repeated),
            _ => return None,
        };
        return (number == repeated).then_some((module, Role::Expert(index(number)?, factor)));
    }
    let (module, factor) = split_factor(name)?;
    if module.ends_with(".base") || module.ends_with(".orth") {
        return None;
    }
    match module.strip_suffix(".share_experts") {
        Some(module) => Some((module, Role::Shared(factor))),
        None => Some((module, Role::Plain(factor))),
    }
}

impl<'f> Found<'f> {
    fn sort(&mut self, tensor: Tensor<'f>) -> Result<()> {
        let name = tensor.name.clone();
        let Some((module, role)) = split(&name) else {
            return Err(tensor.refuse("an expert's factor, a switch or a plain LoRA's factor", "this name"));
        };
        if let Role::Plain(factor) = role {
            return self.plain.entry(module.to_owned()).or_default().put(factor, tensor);
        }
        let linears = [".mlp.gate_proj", ".mlp.up_proj", ".mlp.down_proj"];
        if !linears.iter().any(|linear| module.ends_with(linear)) {
            return Err(tensor.refuse("experts in mlp.gate_proj, mlp.up_proj or mlp.down_proj", "this name"));
        }
        let parts = self.mixtures.entry(module.to_owned()).or_default();
        match role {
            Role::Expert(number, factor) => parts.experts.entry(number).or_default().put(factor, tensor),
            Role::Shared(factor) => parts.shared.get_or_insert_default().put(factor, tensor),
            Role::Switch(part) => parts.switch.put(part, tensor),
            Role::Plain(_) => Ok(()),
        }
    }
}

impl<'f> MixtureParts<'f> {
    /// The only expert of a linear without a switch.
    fn take_single(&mut self) -> Option<Pair<'f>> {
        let single = self.experts.len() == 1 && self.switch.is_empty() && self.shared.is_none();
        if single { self.experts.remove(&0) } else { None }
    }

    fn into_module(self, file: &str, path: &str, config: &Config) -> Result<MingModule> {
        let (rank, scaling) = (config.rank(path), config.scaling(path)?);
        let router = self.switch.into_router(file, &format!("{path}.switch"))?;
        let mut experts: Vec<Lora> = Vec::new();
        for (expected, (number, pair)) in self.experts.into_iter().enumerate() {
            if number != expected {
                let item = format!("{path}.experts.{expected}");
                return Err(Error::format(file, item, "experts numbered from 0 without a gap", "none"));
            }
            let item = format!("{path}.experts.{number}");
            let lora = pair.into_lora(file, &item, rank, scaling)?;
            check_sizes(file, &item, experts.first().unwrap_or(&lora), &lora)?;
            experts.push(lora);
        }
        let Some(first) = experts.first() else {
            return Err(Error::format(file, format!("{path}.experts.0"), "at least one expert", "none"));
        };
        if (router.experts(), router.in_features()) != (experts.len(), first.in_features()) {
            let expected = format!("[{}, {}]", experts.len(), first.in_features());
            let got = format!("[{}, {}]", router.experts(), router.in_features());
            return Err(Error::format(file, format!("{path}.switch.weight"), expected, got));
        }
        // A shared expert is several ranks of r side by side, under the scaling of one.
        let shared = match self.shared {
            None => None,
            Some(pair) => {
                let item = format!("{path}.share_experts");
                let claimed = pair.claimed_rank();
                if claimed % rank != 0 {
                    return Err(Error::format(file, item, format!("a multiple of rank {rank}"), claimed));
                }
                let lora = pair.into_lora(file, &item, claimed, scaling)?;
                check_sizes(file, &item, first, &lora)?;
                Some(lora)
            }
        };
        Ok(MingModule { experts, shared, router })
    }
}

/// Experts of one linear share its sizes and the element type.
fn check_sizes(file: &str, item: &str, first: &Lora, lora: &Lora) -> Result<()> {
    let sizes =
        |lora: &Lora| format!("{} -> {} in {}", lora.in_features(), lora.out_features(), lora.element());
    if sizes(first) == sizes(lora) {
        return Ok(());
    }
    Err(Error::format(file, item, sizes(first), sizes(lora)))
}
