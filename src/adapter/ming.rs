//! MING-MOE's checkpoint: in every linear of the feed-forward block, experts with a switch of their own.
//!
//! - `model.layers.{l}.mlp.{gate,up,down}_proj.experts.{i}.lora_{A,B}_{i}.weight`
//! - `model.layers.{l}.mlp.{gate,up,down}_proj.switch.{weight,bias}`
//! - `model.layers.{l}.mlp.{gate,up,down}_proj.share_experts.lora_{A,B}.weight`, where an expert is shared
//! - any other `<module>.lora_{A,B}.weight`: a plain LoRA, as the attention has
//!
//! All of them with or without `base_model.model.` in front.

use super::config::Config;
use super::peft::{CONFIG_FILE, Factor, PREFIX, Pair, TENSOR_FILE, split_factor};
use super::router::{Part, RouterParts};
use super::tensors::{Tensor, TensorFile, index};
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

/// Reads a checkpoint from its folder, or from a given safetensors file with `adapter_config.json` beside it.
///
/// `target_modules` is not compared with the file: the training code puts experts on linears of its own choice.
pub fn read_ming(path: &Path) -> Result<Ming> {
    let (folder, tensors) =
        if path.is_dir() { (path, path.join(TENSOR_FILE)) } else { (beside(path), path.to_path_buf()) };
    let config = Config::read(&folder.join(CONFIG_FILE))?;
    let file = TensorFile::read(&tensors)?;
    let mut found = Found::default();
    for (_, tensor) in file.tensors()? {
        found.sort(tensor)?;
    }
    let mut modules = BTreeMap::new();
    for (path, parts) in found.mixtures {
        let module = parts.into_module(file.name(), &path, &config)?;
        modules.insert(path, module);
    }
    let mut plain = BTreeMap::new();
    for (path, pair) in found.plain {
        let lora = pair.into_lora(file.name(), &path, config.rank(&path), config.scaling(&path)?)?;
        plain.insert(path, lora);
    }
    if modules.is_empty() {
        return Err(Error::format(file.name(), "tensors", "at least one module with experts", "none"));
    }
    Ok(Ming { modules, plain })
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

impl MixtureParts<'_> {
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
