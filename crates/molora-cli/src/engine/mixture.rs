//! Which linears carry experts, as the adapters' and the routers' files say.

use super::peft;
use super::projection::Projection;
use anyhow::{Context, Result, bail, ensure};
use candle_core::{DType, Device, Tensor};
use safetensors::SafeTensors;
use std::collections::{BTreeMap, HashMap};
use std::path::Path;

/// The two factors of one expert on one linear.
#[derive(Debug, Clone)]
pub struct Lora {
    /// Rows of A.
    pub rank: usize,
    /// `lora_alpha / r`, or as the adapter's file says.
    pub scaling: f32,
    /// `[rank, in]`.
    pub a: Vec<f32>,
    /// `[out, rank]`.
    pub b: Vec<f32>,
}

/// Scores of the experts: `r = x R^T + bias`.
#[derive(Debug, Clone)]
pub struct Router {
    /// `[experts, in]`.
    pub weight: Vec<f32>,
    /// `[experts]`.
    pub bias: Vec<f32>,
}

impl Router {
    /// The scores of one token, in f64.
    pub fn scores(&self, x: &[f32]) -> Vec<f64> {
        let dot = |row: &[f32]| row.iter().zip(x).map(|(&r, &v)| f64::from(r) * f64::from(v)).sum::<f64>();
        self.weight
            .chunks_exact(x.len())
            .zip(&self.bias)
            .map(|(row, &bias)| dot(row) + f64::from(bias))
            .collect()
    }
}

/// The experts and the router of one linear.
#[derive(Debug, Clone)]
pub struct Module {
    /// One entry for each expert, in the routers' order; an expert may leave a linear alone.
    pub experts: Vec<Option<Lora>>,
    /// Its rows are the experts.
    pub router: Router,
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
        let routers = Routers::read(routers)?;
        let names = match order {
            Some(names) => names.to_vec(),
            None => match &routers.order {
                Some(names) => names.clone(),
                None => folders(folder)?,
            },
        };
        ensure!(!names.is_empty(), "{}: expected one folder for each expert, got none", folder.display());
        let mut modules: BTreeMap<(usize, Projection), Vec<Option<Lora>>> = BTreeMap::new();
        for (expert, name) in names.iter().enumerate() {
            for (key, lora) in peft::read(&folder.join(name))? {
                modules.entry(key).or_insert_with(|| vec![None; names.len()])[expert] = Some(lora);
            }
        }
        let modules = modules
            .into_iter()
            .map(|((layer, projection), experts)| {
                let router = routers.of(layer, projection, names.len())?;
                Ok(((layer, projection), Module { experts, router }))
            })
            .collect::<Result<_>>()?;
        Ok(Self { names, modules })
    }

    /// The first layer that an expert can change; all layers below are the same in every setting.
    pub fn first_layer(&self) -> Option<usize> {
        self.modules.keys().next().map(|&(layer, _)| layer)
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

/// The routers' file.
struct Routers {
    file: String,
    tensors: HashMap<String, Tensor>,
    order: Option<Vec<String>>,
}

impl Routers {
    fn read(path: &Path) -> Result<Self> {
        let file = path.display().to_string();
        let bytes = std::fs::read(path).with_context(|| format!("{file}: cannot be read"))?;
        let (_, header) =
            SafeTensors::read_metadata(&bytes).with_context(|| format!("{file}: not safetensors"))?;
        let order = match header.metadata().as_ref().and_then(|metadata| metadata.get("experts")) {
            Some(text) => {
                Some(serde_json::from_str(text).with_context(|| format!("{file}: metadata experts"))?)
            }
            None => None,
        };
        let tensors = candle_core::safetensors::load_buffer(&bytes, &Device::Cpu)?;
        Ok(Self { file, tensors, order })
    }

    fn of(&self, layer: usize, projection: Projection, experts: usize) -> Result<Router> {
        let read = |what: &str| -> Result<Tensor> {
            let key = format!("layers.{layer}.{}.router.{what}", projection.name());
            match self.tensors.get(&key) {
                Some(tensor) if tensor.dim(0)? == experts => Ok(tensor.to_dtype(DType::F32)?),
                Some(tensor) => {
                    bail!("{}: {key}: expected {experts} rows, got {:?}", self.file, tensor.dims())
                }
                None => bail!("{}: {key}: expected a tensor, got nothing", self.file),
            }
        };
        Ok(Router {
            weight: read("weight")?.flatten_all()?.to_vec1()?,
            bias: read("bias")?.flatten_all()?.to_vec1()?,
        })
    }
}
