//! Which linears carry experts, as the adapters' and the routers' files say.

use super::projection::Projection;
use anyhow::{Context, Result, bail, ensure};
use molora::adapter::{Adapter, LinearRouter, Lora, read_routers};
use safetensors::SafeTensors;
use std::collections::BTreeMap;
use std::path::Path;

/// The experts and the router of one linear.
#[derive(Debug, Clone)]
pub struct Module {
    /// One entry for each expert, in the routers' order; an expert may leave a linear alone.
    pub experts: Vec<Option<Lora>>,
    /// Its rows are the experts.
    pub router: LinearRouter,
    /// The adapter that scores the experts in [`Setting::Attended`](super::setting::Setting).
    pub attention: Option<Lora>,
}

/// All experts of a model.
#[derive(Debug, Clone, Default)]
pub struct Mixture {
    /// The experts' names, in the order of the routers' rows.
    pub names: Vec<String>,
    /// By layer and projection.
    pub modules: BTreeMap<(usize, Projection), Module>,
}

impl Mixture {
    /// Reads one PEFT folder for each expert and the routers' file.
    ///
    /// The order of the experts is `order`, else the list that the routers' file carries, else alphabetical.
    pub fn load(folder: &Path, routers: &Path, order: Option<&[String]>) -> Result<Self> {
        let file = routers.display();
        let names = match order {
            Some(names) => names.to_vec(),
            None => match order_in_metadata(routers)? {
                Some(names) => names,
                None => folders(folder)?,
            },
        };
        ensure!(!names.is_empty(), "{}: expected one folder for each expert, got none", folder.display());
        let mut places: BTreeMap<(usize, Projection), Vec<Option<Lora>>> = BTreeMap::new();
        for (expert, name) in names.iter().enumerate() {
            let folder = folder.join(name);
            ensure!(
                folder.is_dir(),
                "{}: expected the folder of an expert that --order or the metadata of {file} names; got nothing \
                 (--order NAMES chooses others)",
                folder.display()
            );
            for (module, lora) in Adapter::from_peft(&folder)?.modules() {
                let Some(place) = Projection::parse(module) else {
                    bail!("{}: {module}: expected a linear of a llama block", folder.display());
                };
                places.entry(place).or_insert_with(|| vec![None; names.len()])[expert] = Some(lora.clone());
            }
        }
        let mut routers = read_routers(routers)?;
        let mut modules = BTreeMap::new();
        for ((layer, projection), experts) in places {
            let key = format!("layers.{layer}.{}.router", projection.name());
            let Some(router) = routers.remove(&(layer, projection.name().to_owned())) else {
                bail!("{file}: {key}.weight: expected a tensor, since there are experts; got nothing");
            };
            ensure!(
                router.experts() == names.len(),
                "{file}: {key}.weight: expected {} rows, one for each expert, got {}",
                names.len(),
                router.experts()
            );
            modules.insert((layer, projection), Module { experts, router, attention: None });
        }
        for (layer, linear) in routers.keys() {
            tracing::warn!("{file}: layers.{layer}.{linear}.router: no expert changes this linear: left out");
        }
        Ok(Self { names, modules })
    }

    /// The first layer that an expert can change; all layers below are the same in every setting.
    pub fn first_layer(&self) -> Option<usize> {
        self.modules.keys().next().map(|&(layer, _)| layer)
    }
}

/// The scores of one token, in f64: a second opinion on the routing that the device computed.
pub fn scores(router: &LinearRouter, x: &[f32]) -> Vec<f64> {
    let dot = |row: &[f32]| row.iter().zip(x).map(|(&r, &v)| f64::from(r) * f64::from(v)).sum::<f64>();
    let bias = |expert: usize| router.bias().map_or(0.0, |bias| f64::from(bias[expert]));
    router.weight().chunks_exact(x.len()).enumerate().map(|(expert, row)| dot(row) + bias(expert)).collect()
}

/// The list `experts` in the metadata of the routers' file, if it has one.
fn order_in_metadata(routers: &Path) -> Result<Option<Vec<String>>> {
    let file = routers.display();
    let bytes = std::fs::read(routers).with_context(|| format!("{file}: cannot be read"))?;
    let (_, header) =
        SafeTensors::read_metadata(&bytes).with_context(|| format!("{file}: expected safetensors"))?;
    match header.metadata().as_ref().and_then(|metadata| metadata.get("experts")) {
        Some(text) => Ok(Some(
            serde_json::from_str(text).with_context(|| format!("{file}: metadata: experts: {text}"))?,
        )),
        None => Ok(None),
    }
}

/// The subfolders of a folder, in alphabetical order.
fn folders(folder: &Path) -> Result<Vec<String>> {
    let entries =
        std::fs::read_dir(folder).with_context(|| format!("{}: cannot be listed", folder.display()))?;
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.with_context(|| format!("{}: cannot be listed", folder.display()))?;
        if entry.path().is_dir() {
            names.push(entry.file_name().to_string_lossy().into_owned());
        }
    }
    names.sort();
    Ok(names)
}
