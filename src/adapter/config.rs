//! `adapter_config.json`: PEFT's `LoraConfig`, as far as it decides what an adapter computes.
//!
//! Options that molora does not know are refused by name as soon as they are set; nothing is ignored in silence.

use super::json::Json;
use super::patterns::{self, Pattern, regex};
use super::tensors::read_bounded;
use crate::error::{Error, Result};
use regex_lite::Regex;
use std::path::Path;

pub(crate) const MAX_CONFIG_BYTES: u64 = 4 << 20;

/// Options that say how the adapter was made or where it belongs, and nothing about what it computes.
const INERT: [&str; 11] = [
    "auto_mapping",
    "base_model_name_or_path",
    "inference_mode",
    "lora_dropout",
    "megatron_core",
    "qalora_group_size",
    "revision",
    "runtime_config",
    "task_type",
    "layers_pattern", // read below, together with layers_to_transform
    "peft_type",      // checked first
];

/// Initialisations that leave the base model's weights alone. The others (PiSSA, OLoRA, CorDA, LoftQ, ...) move a
/// part of them into the factors, so that the saved factors are wrong for the plain base model.
const BASE_KEEPING_INITS: [&str; 3] = ["gaussian", "eva", "orthogonal"];

/// What `adapter_config.json` says about ranks, scalings and modules.
pub(crate) struct Config {
    file: String,
    rank: usize,
    alpha: f64,
    rank_stabilised: bool,
    rank_pattern: Vec<Pattern<usize>>,
    alpha_pattern: Vec<Pattern<f64>>,
    targets: Option<Modules>,
    excluded: Option<Modules>,
    layers: Vec<usize>,
    layers_pattern: Vec<Regex>,
    parameters: Vec<String>,
    version: Option<String>,
}

/// A choice of modules, as `target_modules` and `exclude_modules` make it.
enum Modules {
    /// `all-linear`: whatever the file has.
    All,
    /// A regular expression for the whole path.
    Pattern(Regex),
    /// Paths, or their last parts.
    Names(Vec<String>),
}

impl Modules {
    fn has(&self, module: &str) -> bool {
        match self {
            Self::All => true,
            Self::Pattern(pattern) => pattern.is_match(module),
            Self::Names(names) => names.iter().any(|name| ends_with_path(module, name)),
        }
    }
}

pub(crate) fn ends_with_path(module: &str, name: &str) -> bool {
    module.strip_suffix(name).is_some_and(|front| front.is_empty() || front.ends_with('.'))
}

impl Config {
    /// Reads and checks the file; refuses `target_parameters`, whose factors are not a linear's.
    pub(crate) fn read(path: &Path) -> Result<Self> {
        let config = Self::read_with_parameters(path)?;
        if !config.parameters.is_empty() {
            let expected = "nothing set (adapter::read_peft_parameters reads it)";
            return Err(Error::format(
                config.file,
                "target_parameters",
                expected,
                config.parameters.join(", "),
            ));
        }
        Ok(config)
    }

    /// Reads and checks the file.
    pub(crate) fn read_with_parameters(path: &Path) -> Result<Self> {
        let file = path.display().to_string();
        let json = Json::parse(&file, &read_bounded(path, MAX_CONFIG_BYTES)?)?;
        let Json::Object(entries) = json else {
            return Err(Error::format(file, "JSON", "an object", json));
        };
        Self::from_entries(file, entries)
    }

    fn from_entries(file: String, entries: Vec<(String, Json)>) -> Result<Self> {
        let entry =
            |key: &str| entries.iter().find(|(k, _)| k == key).map_or(&Json::Null, |(_, value)| value);
        let refuse = |key: &str, expected: &str, got: &Json| Error::format(&file, key, expected, got);
        match entry("peft_type") {
            Json::Text(kind) if kind == "LORA" => {}
            other => return Err(refuse("peft_type", "\"LORA\"", other)),
        }
        let rank = entry("r").as_usize().filter(|rank| *rank > 0);
        let rank = rank.ok_or_else(|| refuse("r", "a whole number from 1", entry("r")))?;
        let alpha = match entry("lora_alpha") {
            Json::Number(alpha) => *alpha,
            other => return Err(refuse("lora_alpha", "a number", other)),
        };
        let layers_pattern = match entry("layers_pattern") {
            Json::Null => Vec::new(),
            other => other
                .as_texts()
                .ok_or_else(|| refuse("layers_pattern", "a text or a list of texts", other))?
                .into_iter()
                .filter(|pattern| !pattern.is_empty())
                .map(|p| regex(&file, "layers_pattern", &p, &format!(r"^(?:|.*?\.){p}\.(\d+)\.")))
                .collect::<Result<_>>()?,
        };
        let mut config = Self {
            file: file.clone(),
            rank,
            alpha,
            rank_stabilised: false,
            rank_pattern: Vec::new(),
            alpha_pattern: Vec::new(),
            targets: None,
            excluded: None,
            layers: Vec::new(),
            layers_pattern,
            parameters: Vec::new(),
            version: None,
        };
        for (key, value) in &entries {
            config.set(key, value)?;
        }
        config.check_layers()?;
        Ok(config)
    }

    /// Takes one option, or refuses it.
    fn set(&mut self, key: &str, value: &Json) -> Result<()> {
        let refuse = |expected: &str| Error::format(&self.file, key, expected, value);
        match key {
            "r" | "lora_alpha" => {}
            _ if INERT.contains(&key) => {}
            "use_rslora" => {
                self.rank_stabilised = match value {
                    Json::Bool(value) => *value,
                    Json::Null => false,
                    _ => return Err(refuse("true or false")),
                }
            }
            "bias" => match value {
                Json::Null => {}
                Json::Text(bias) if bias == "none" => {}
                _ => return Err(refuse("\"none\"")),
            },
            "init_lora_weights" => match value {
                Json::Null | Json::Bool(_) => {}
                Json::Text(init) if BASE_KEEPING_INITS.contains(&init.as_str()) => {}
                _ => return Err(refuse("an initialisation that leaves the base model's weights alone")),
            },
            "rank_pattern" => {
                let rank = |value: &Json| value.as_usize().filter(|rank| *rank > 0);
                self.rank_pattern = patterns::read(&self.file, key, value, "a whole number from 1", rank)?;
            }
            "alpha_pattern" => {
                let alpha = |value: &Json| if let Json::Number(alpha) = value { Some(*alpha) } else { None };
                self.alpha_pattern = patterns::read(&self.file, key, value, "a number", alpha)?;
            }
            "target_parameters" if value.is_unset() => {}
            "target_parameters" => match value {
                Json::List(_) => {
                    self.parameters = value.as_texts().ok_or_else(|| refuse("a list of texts"))?
                }
                _ => return Err(refuse("a list of texts")),
            },
            "peft_version" => match value {
                Json::Null => {}
                Json::Text(version) => self.version = Some(version.clone()),
                _ => return Err(refuse("a text")),
            },
            "target_modules" => self.targets = modules(&self.file, key, value)?,
            "exclude_modules" if value.is_unset() => {}
            "exclude_modules" => self.excluded = modules(&self.file, key, value)?,
            "layers_to_transform" => {
                let layers = match value {
                    Json::Null => Some(Vec::new()),
                    Json::List(list) => list.iter().map(Json::as_usize).collect(),
                    one => one.as_usize().map(|layer| vec![layer]),
                };
                self.layers = layers.ok_or_else(|| refuse("a layer's number or a list of them"))?;
            }
            _ if value.is_unset() => {}
            _ => return Err(refuse("nothing set, molora does not support this option")),
        }
        Ok(())
    }

    /// PEFT has no meaning for layers without a list of target names, nor for a layer pattern without layers.
    fn check_layers(&self) -> Result<()> {
        let names = matches!(self.targets, Some(Modules::Names(_)) | None);
        if !self.layers.is_empty() && !names {
            let expected = "a list of names where layers_to_transform is set";
            return Err(Error::format(&self.file, "target_modules", expected, "a pattern"));
        }
        if self.layers.is_empty() && !self.layers_pattern.is_empty() {
            let expected = "layers where layers_pattern is set";
            return Err(Error::format(&self.file, "layers_to_transform", expected, "none"));
        }
        Ok(())
    }

    /// The parameters that carry experts' factors, as `target_parameters` names them: paths, or their last parts.
    pub(crate) fn parameters(&self) -> &[String] {
        &self.parameters
    }

    /// The PEFT that wrote the file; 0.17 and older do not say.
    pub(crate) fn version(&self) -> Option<&str> {
        self.version.as_deref()
    }

    /// The file as it was named.
    pub(crate) fn file(&self) -> &str {
        &self.file
    }

    /// The rank of one module: the first matching entry of `rank_pattern`, else `r`.
    pub(crate) fn rank(&self, module: &str) -> usize {
        patterns::value(&self.rank_pattern, module).unwrap_or(self.rank)
    }

    /// What the config says `B (A x)` is multiplied by in one module: alpha / rank, or alpha / sqrt(rank).
    ///
    /// Refuses patterns that older versions read otherwise, unless the config says that a newer one wrote it.
    pub(crate) fn scaling(&self, module: &str) -> Result<f32> {
        let (ranks, alphas) = (&self.rank_pattern, &self.alpha_pattern);
        if self.version.is_none() && !patterns::always_meant_the_same(ranks, alphas, module) {
            let expected =
                format!("a version, since PEFT up to 0.14 read the patterns for {module} otherwise");
            return Err(Error::format(&self.file, "peft_version", expected, "none"));
        }
        let alpha = patterns::value(&self.alpha_pattern, module).unwrap_or(self.alpha);
        let rank = self.rank(module) as f64;
        let scaling = (alpha / if self.rank_stabilised { rank.sqrt() } else { rank }) as f32;
        if !scaling.is_finite() {
            return Err(Error::format(&self.file, "lora_alpha", "a scaling that f32 holds", alpha));
        }
        Ok(scaling)
    }

    /// Whether PEFT would put an adapter on this module. It would skip the file's tensors of any other one.
    pub(crate) fn selects(&self, module: &str) -> bool {
        if self.excluded.as_ref().is_some_and(|excluded| excluded.has(module)) {
            return false;
        }
        match &self.targets {
            None => false,
            // A full path outranks layers_to_transform.
            Some(Modules::Names(names)) if names.iter().any(|name| name == module) => true,
            Some(targets) if !targets.has(module) => false,
            _ if self.layers.is_empty() => true,
            _ => self.layer(module).is_some_and(|layer| self.layers.contains(&layer)),
        }
    }

    /// The module's layer: the first number after the layer pattern, or after any name.
    fn layer(&self, module: &str) -> Option<usize> {
        let found = if self.layers_pattern.is_empty() {
            let parts: Vec<&str> = module.split('.').collect();
            let last = parts.len().checked_sub(1)?;
            (2..last)
                .map(|i| parts[i])
                .find(|part| part.bytes().all(|b| b.is_ascii_digit()) && !part.is_empty())
        } else {
            let captures = self.layers_pattern.iter().find_map(|pattern| pattern.captures(module))?;
            captures.get(captures.len() - 1).map(|number| number.as_str())
        };
        found?.parse().ok()
    }

    /// Refuses a file that lacks what the config promises: a target name, or a layer, that no module has.
    pub(crate) fn check_complete<'m>(&self, found: impl Iterator<Item = &'m str> + Clone) -> Result<()> {
        let refuse =
            |item: &str, expected: String| Error::format(&self.file, item, expected, "none in the file");
        match &self.targets {
            None if !self.parameters.is_empty() => {}
            None => return Err(refuse("target_modules", "the names of the adapted modules".to_owned())),
            Some(Modules::Names(names)) => {
                for name in names {
                    if !found.clone().any(|module| ends_with_path(module, name)) {
                        return Err(refuse("target_modules", format!("tensors of a module {name:?}")));
                    }
                }
            }
            Some(_) => {}
        }
        for layer in &self.layers {
            if !found.clone().any(|module| self.layer(module) == Some(*layer)) {
                return Err(refuse("layers_to_transform", format!("tensors of layer {layer}")));
            }
        }
        Ok(())
    }
}

fn modules(file: &str, item: &str, value: &Json) -> Result<Option<Modules>> {
    match value {
        Json::Null => Ok(None),
        Json::Text(text) if text == "all-linear" => Ok(Some(Modules::All)),
        Json::Text(text) => Ok(Some(Modules::Pattern(regex(file, item, text, &format!("^(?:{text})$"))?))),
        other => match other.as_texts() {
            Some(names) => Ok(Some(Modules::Names(names))),
            None => Err(Error::format(file, item, "a text or a list of texts", other)),
        },
    }
}
