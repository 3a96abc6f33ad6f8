//! PEFT's folder: `adapter_config.json` and `adapter_model.safetensors`.
//!
//! A tensor `base_model.model.<module>.lora_A.weight` is `[rank, in_features]`, its partner
//! `...lora_B.weight` is `[out_features, rank]`.

use super::config::Config;
use super::tensors::{Tensor, TensorFile};
use super::{Adapter, Lora};
use crate::error::{Error, Result};
use std::collections::BTreeMap;
use std::path::Path;

pub(crate) const CONFIG_FILE: &str = "adapter_config.json";
pub(crate) const TENSOR_FILE: &str = "adapter_model.safetensors";
pub(crate) const PREFIX: &str = "base_model.model.";

impl Adapter {
    /// Reads a PEFT LoRA adapter from its folder.
    ///
    /// Honours `r`, `lora_alpha`, `use_rslora`, `rank_pattern`, `alpha_pattern`, `target_modules`,
    /// `exclude_modules`, `layers_to_transform` and `layers_pattern`. Options that change the result and that
    /// molora does not support (DoRA, biases, saved modules, ...) are refused by name, and so is every tensor
    /// that is not a LoRA factor of a linear layer. Factors of stacked experts (`target_parameters`) need to be told
    /// about the base: [`read_peft_parameters`](super::read_peft_parameters).
    pub fn from_peft(folder: &Path) -> Result<Self> {
        let config = Config::read(&folder.join(CONFIG_FILE))?;
        let file = TensorFile::read(&folder.join(TENSOR_FILE))?;
        let mut pairs: BTreeMap<String, Pair> = BTreeMap::new();
        for (name, tensor) in file.tensors()? {
            let parts = name.strip_prefix(PREFIX).and_then(split_factor);
            let Some((module, factor)) = parts else {
                return Err(tensor.refuse("a name like base_model.model.<module>.lora_A.weight", "this name"));
            };
            pairs.entry(module.to_owned()).or_default().put(factor, tensor)?;
        }
        let modules = into_modules(&config, file.name(), pairs)?;
        if modules.is_empty() {
            return Err(Error::format(file.name(), "tensors", "at least one pair of factors", "none"));
        }
        let name = folder.file_name().unwrap_or(folder.as_os_str()).to_string_lossy();
        Ok(Self::new(name, modules))
    }
}

/// The factors of linear layers, checked against the config.
pub(crate) fn into_modules(
    config: &Config,
    file: &str,
    pairs: BTreeMap<String, Pair>,
) -> Result<BTreeMap<String, Lora>> {
    config.check_complete(pairs.keys().map(String::as_str))?;
    let mut modules = BTreeMap::new();
    for (module, pair) in pairs {
        if !config.selects(&module) {
            let expected = "a module that the config's target_modules and layers select";
            return Err(Error::format(file, module, expected, "one that they leave out"));
        }
        let item = format!("{PREFIX}{module}");
        let lora = pair.into_lora(file, &item, config.rank(&module), config.scaling(&module)?)?;
        modules.insert(module, lora);
    }
    Ok(modules)
}

/// Which of the two factors a tensor is.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Factor {
    A,
    B,
}

/// Splits `<module>.lora_{A,B}[.default].weight` into the module's path and the factor.
pub(crate) fn split_factor(name: &str) -> Option<(&str, Factor)> {
    let name = name.strip_suffix(".weight")?;
    let name = name.strip_suffix(".default").unwrap_or(name);
    let (module, factor) = match (name.strip_suffix(".lora_A"), name.strip_suffix(".lora_B")) {
        (Some(module), _) => (module, Factor::A),
        (_, Some(module)) => (module, Factor::B),
        _ => return None,
    };
    (!module.is_empty()).then_some((module, factor))
}

/// The two factors of one module, as they turn up.
#[derive(Default)]
pub(crate) struct Pair<'f> {
    a: Option<Tensor<'f>>,
    b: Option<Tensor<'f>>,
}

impl<'f> Pair<'f> {
    /// Takes one factor; refuses a second one in its place.
    pub(crate) fn put(&mut self, factor: Factor, tensor: Tensor<'f>) -> Result<()> {
        let place = if factor == Factor::A { &mut self.a } else { &mut self.b };
        match place {
            Some(first) => {
                Err(tensor.refuse("one tensor for this factor", format!("{} as well", first.name)))
            }
            None => {
                *place = Some(tensor);
                Ok(())
            }
        }
    }

    /// Checks that the factors fit each other and the rank, and that every weight is finite.
    pub(crate) fn into_lora(self, file: &str, module: &str, rank: usize, scaling: f32) -> Result<Lora> {
        let (a, b) = self.both(file, module)?;
        let (a_rank, in_features) = a.matrix()?;
        let (out_features, b_rank) = b.matrix()?;
        if a_rank != rank {
            return Err(a.refuse(format!("[{rank}, in_features]"), format!("{:?}", a.shape)));
        }
        if b_rank != rank {
            return Err(b.refuse(format!("[out_features, {rank}]"), format!("{:?}", b.shape)));
        }
        let (a_bytes, b_bytes) = (a.bytes.into_owned(), b.bytes.into_owned());
        Lora::from_finite(in_features, out_features, rank, scaling, a.element, a_bytes, b_bytes)
    }

    /// Both factors, of one element type, every weight finite.
    pub(crate) fn both(self, file: &str, module: &str) -> Result<(Tensor<'f>, Tensor<'f>)> {
        let (a, b) = match (self.a, self.b) {
            (Some(a), Some(b)) => (a, b),
            (None, _) => return Err(Error::format(file, module, "lora_A and lora_B", "no lora_A")),
            (_, None) => return Err(Error::format(file, module, "lora_A and lora_B", "no lora_B")),
        };
        if a.element != b.element {
            return Err(b.refuse(format!("{}, as lora_A", a.element), b.element));
        }
        a.check_finite()?;
        b.check_finite()?;
        Ok((a, b))
    }

    /// The rank that A claims, 0 where it has no shape that could have one.
    pub(crate) fn claimed_rank(&self) -> usize {
        self.a.as_ref().and_then(|a| a.shape.first().copied()).unwrap_or(0)
    }
}
