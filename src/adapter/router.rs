//! Linear routers, and files of them: `layers.{l}.{gate,up,down}_proj.router.{weight,bias}`.

use super::tensors::{Tensor, TensorFile, index};
use crate::element::Element;
use crate::error::{Error, Result};
use crate::ops::check_len;
use std::collections::BTreeMap;
use std::path::Path;

/// A linear router's parameters, f32: `z = x weight^T + bias`; with [prototypes](Self::prototypes) another function of the
/// same product.
#[derive(Debug, Clone, PartialEq)]
pub struct LinearRouter {
    experts: usize,
    in_features: usize,
    weight: Vec<f32>,
    bias: Option<Vec<f32>>,
    standardised: bool,
    absolute: bool,
}

/// How prototypes score, `z_e = <x, v_e> / temperature` and changes of it. Standardising is LayerNorm without affine
/// parameters, `(u - mean) / sqrt(variance + 1e-5)`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Prototypes {
    /// x is standardised.
    pub standardise_x: bool,
    /// Every prototype is standardised.
    pub standardise_v: bool,
    /// The product's absolute value counts (Arrow).
    pub absolute: bool,
    /// What scores are divided by.
    pub temperature: f32,
}

impl Prototypes {
    /// PHATGOOSE: both standardised, temperature `sqrt(in_features)`.
    pub fn phatgoose(in_features: usize) -> Self {
        let temperature = (in_features as f32).sqrt();
        Self { standardise_x: true, standardise_v: true, absolute: false, temperature }
    }

    /// Arrow: the absolute value of the product.
    pub const fn arrow() -> Self {
        Self { standardise_x: false, standardise_v: false, absolute: true, temperature: 1.0 }
    }
}

impl LinearRouter {
    /// From `weight [experts, in_features]` and `bias [experts]` of any element type, widened exactly.
    pub fn new<E: Element>(
        experts: usize,
        in_features: usize,
        weight: &[E],
        bias: Option<&[E]>,
    ) -> Result<Self> {
        let expected = experts.checked_mul(in_features).ok_or_else(|| {
            Error::argument(
                "route",
                "experts * in_features",
                "a size that fits memory",
                format!("{experts} * {in_features}"),
            )
        })?;
        check_len("route", "router.weight", expected, weight.len())?;
        if let Some(bias) = bias {
            check_len("route", "router.bias", experts, bias.len())?;
        }
        let widen = |name: &str, values: &[E]| -> Result<Vec<f32>> {
            let values: Vec<f32> = values.iter().map(|v| v.to_f32()).collect();
            match values.iter().position(|v| !v.is_finite()) {
                None => Ok(values),
                Some(i) => {
                    Err(Error::argument("route", format!("router.{name}[{i}]"), "a finite value", values[i]))
                }
            }
        };
        let (weight, bias) = (widen("weight", weight)?, bias.map(|b| widen("bias", b)).transpose()?);
        Ok(Self { experts, in_features, weight, bias, standardised: false, absolute: false })
    }

    /// From one prototype `v_e` an expert, `v [experts, in_features]` of any element type.
    ///
    /// What does not depend on x is folded into the weight, in f64: `(v_e - mean(v_e)) / (sqrt(variance + 1e-5) temperature)`
    /// where all is standardised. x's mean then drops out of the product, and only its deviation is left to divide by
    /// (operators, section 6).
    pub fn prototypes<E: Element>(
        experts: usize,
        in_features: usize,
        v: &[E],
        how: Prototypes,
    ) -> Result<Self> {
        if !how.temperature.is_finite() || how.temperature <= 0.0 {
            return Err(Error::argument("route", "temperature", "a finite number above 0", how.temperature));
        }
        let mut router = Self::new(experts, in_features, v, None)?;
        for row in router.weight.chunks_mut(in_features.max(1)) {
            let values = row.iter().map(|&v| f64::from(v));
            let mean = values.clone().sum::<f64>() / in_features as f64;
            // Without x's mean a constant part of v counts for nothing.
            let mean = if how.standardise_x || how.standardise_v { mean } else { 0.0 };
            let deviation = if how.standardise_v { crate::ops::route::deviation(values) } else { 1.0 };
            let scale = 1.0 / (deviation * f64::from(how.temperature));
            row.iter_mut().for_each(|v| *v = ((f64::from(*v) - mean) * scale) as f32);
        }
        (router.standardised, router.absolute) = (how.standardise_x, how.absolute);
        Ok(router)
    }

    /// Whether the product is divided by `sqrt(variance + 1e-5)` of the token's x.
    pub fn is_standardised(&self) -> bool {
        self.standardised
    }

    /// Whether the product's absolute value counts.
    pub fn is_absolute(&self) -> bool {
        self.absolute
    }

    /// Whether a score is the product and the bias alone.
    pub fn is_linear(&self) -> bool {
        !self.standardised && !self.absolute
    }

    /// Rows of the weight: one an expert, and a threshold's behind them where it is learned.
    pub fn experts(&self) -> usize {
        self.experts
    }

    /// Columns of the weight.
    pub fn in_features(&self) -> usize {
        self.in_features
    }

    /// `[experts, in_features]`.
    pub fn weight(&self) -> &[f32] {
        &self.weight
    }

    /// `[experts]`.
    pub fn bias(&self) -> Option<&[f32]> {
        self.bias.as_deref()
    }
}

/// Reads a file of routers; the key is the layer's number and `gate_proj`, `up_proj` or `down_proj`.
///
/// F16 and BF16 are widened, exactly.
pub fn read_routers(file: &Path) -> Result<BTreeMap<(usize, String), LinearRouter>> {
    let file = TensorFile::read(file)?;
    let mut parts: BTreeMap<(usize, String), RouterParts> = BTreeMap::new();
    for (name, tensor) in file.tensors()? {
        let Some((key, part)) = split_router(&name) else {
            return Err(tensor.refuse("layers.<number>.<gate, up or down>_proj.router.weight", "this name"));
        };
        parts.entry(key).or_default().put(part, tensor)?;
    }
    if parts.is_empty() {
        return Err(Error::format(file.name(), "tensors", "at least one router", "none"));
    }
    let mut routers = BTreeMap::new();
    for ((layer, linear), parts) in parts {
        let item = format!("layers.{layer}.{linear}.router");
        routers.insert((layer, linear), parts.into_router(file.name(), &item)?);
    }
    Ok(routers)
}

fn split_router(name: &str) -> Option<((usize, String), Part)> {
    let (layer, rest) = name.strip_prefix("layers.")?.split_once('.')?;
    let (linear, part) = rest.split_once(".router.")?;
    let known = ["gate_proj", "up_proj", "down_proj"].contains(&linear);
    Some(((index(layer).filter(|_| known)?, linear.to_owned()), Part::from_name(part)?))
}

/// Which half of a router a tensor is.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Part {
    Weight,
    Bias,
}

impl Part {
    pub(crate) fn from_name(name: &str) -> Option<Self> {
        match name {
            "weight" => Some(Self::Weight),
            "bias" => Some(Self::Bias),
            _ => None,
        }
    }
}

/// A router's tensors, as they turn up.
#[derive(Default)]
pub(crate) struct RouterParts<'f> {
    weight: Option<Tensor<'f>>,
    bias: Option<Tensor<'f>>,
}

impl<'f> RouterParts<'f> {
    /// Takes one part; refuses a second one in its place.
    pub(crate) fn put(&mut self, part: Part, tensor: Tensor<'f>) -> Result<()> {
        let place = if part == Part::Weight { &mut self.weight } else { &mut self.bias };
        match place {
            Some(first) => Err(tensor.refuse("one tensor for this part", format!("{} as well", first.name))),
            None => {
                *place = Some(tensor);
                Ok(())
            }
        }
    }

    /// Nothing turned up.
    pub(crate) fn is_empty(&self) -> bool {
        self.weight.is_none() && self.bias.is_none()
    }

    /// Checks the shapes and that every number is finite.
    pub(crate) fn into_router(self, file: &str, item: &str) -> Result<LinearRouter> {
        let Some(weight) = self.weight else {
            return Err(Error::format(file, format!("{item}.weight"), "a tensor of that name", "none"));
        };
        let (experts, in_features) = weight.matrix()?;
        weight.check_finite()?;
        if let Some(bias) = &self.bias {
            if bias.shape != [experts] {
                return Err(bias.refuse(format!("[{experts}]"), format!("{:?}", bias.shape)));
            }
            bias.check_finite()?;
        }
        let bias = self.bias.map(|bias| bias.to_f32());
        LinearRouter::new(experts, in_features, &weight.to_f32(), bias.as_deref())
    }
}
