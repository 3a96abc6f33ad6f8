//! A linear of a block: plain, with experts, or with what is being trained.

use super::expert::ExpertLinear;
use super::host::with_slice;
use super::mixture::Module;
use super::projection::Projection;
use super::setting::{Routing, Setting};
use anyhow::{Context, Result, bail, ensure};
use candle_core::{Device, Tensor};
use molora::host::Device as LoraDevice;
use molora::trace::Trace;

/// What an observer sees of one linear with experts.
pub struct Seen<'a> {
    /// The layer.
    pub layer: usize,
    /// The linear.
    pub projection: Projection,
    /// The linear itself.
    pub linear: &'a ExpertLinear,
    /// Its input, `[tokens, in]`.
    pub x: &'a [f32],
    /// The experts that it took.
    pub routing: &'a Routing,
}

impl Seen<'_> {
    /// Appends the experts to a trace, under the linear's name behind `before`.
    pub fn record(&self, before: &str, trace: &mut Trace) -> Result<()> {
        let name = format!("{before}layers.{}.{}", self.layer, self.projection.name());
        let (ids, weights) = self.routing.best_first();
        trace.record(&name, self.routing.top_k, &ids, &weights).context("trace")
    }
}

/// Called after every linear with experts.
pub type Observer<'a> = dyn FnMut(Seen<'_>) -> Result<()> + 'a;

/// What is added to a linear's output in training: of `x [tokens, in]` and `y [tokens, out]` the new y, by candle alone, so that
/// a loss has gradients.
pub type Add = Box<dyn Fn(&Tensor, Tensor) -> Result<Tensor>>;

/// `y = x W^T`, with or without experts.
pub enum Linear {
    /// `[out, in]`.
    Plain(Tensor),
    /// The same, and what is added to it.
    Trained(Tensor, Add),
    /// With experts; the buffers are kept between calls.
    Experts {
        /// The mixture.
        linear: Box<ExpertLinear>,
        /// The last routing.
        routing: Routing,
        /// Where it stands.
        at: (usize, Projection),
    },
}

impl Linear {
    /// `weight` is `[out, in]`; `module` are its experts, if it has some.
    pub fn new(
        device: &LoraDevice,
        weight: Tensor,
        at: (usize, Projection),
        module: Option<&Module>,
    ) -> Result<Self> {
        let Some(module) = module else { return Ok(Self::Plain(weight)) };
        let (out_features, in_features) = weight.dims2()?;
        let name = format!("layers.{}.{}", at.0, at.1.name());
        ensure!(
            module.router.in_features() == in_features,
            "{name}: router: expected {in_features} columns, got {}",
            module.router.in_features()
        );
        for (expert, lora) in module.experts.iter().enumerate() {
            let Some(lora) = lora else { continue };
            ensure!(
                (lora.out_features(), lora.in_features()) == (out_features, in_features),
                "{name}: expert {expert}: expected factors of [{out_features}, {in_features}], got [{}, {}]",
                lora.out_features(),
                lora.in_features()
            );
        }
        let base = weight.flatten_all()?.to_vec1()?;
        let linear =
            Box::new(ExpertLinear::new(device, base, out_features, in_features, module).context(name)?);
        Ok(Self::Experts { linear, routing: Routing::default(), at })
    }

    /// Its experts, where it has some.
    pub fn experts(&self) -> Option<&ExpertLinear> {
        match self {
            Self::Plain(_) | Self::Trained(..) => None,
            Self::Experts { linear, .. } => Some(linear),
        }
    }

    /// A linear without experts, to be trained.
    pub fn train(&mut self, add: Add) -> Result<()> {
        match self {
            Self::Plain(weight) | Self::Trained(weight, _) => *self = Self::Trained(weight.clone(), add),
            Self::Experts { .. } => bail!("train: expected a linear without experts"),
        }
        Ok(())
    }

    /// Its experts, to be changed.
    pub fn experts_mut(&mut self) -> Option<&mut ExpertLinear> {
        match self {
            Self::Plain(_) | Self::Trained(..) => None,
            Self::Experts { linear, .. } => Some(linear),
        }
    }

    /// `x` is `[tokens, in]`.
    pub fn forward(
        &mut self,
        x: &Tensor,
        setting: &Setting,
        observer: &mut Option<&mut Observer>,
    ) -> Result<Tensor> {
        match self {
            Self::Plain(weight) => Ok(x.matmul(&weight.t()?)?),
            Self::Trained(weight, add) => add(x, x.matmul(&weight.t()?)?),
            Self::Experts { linear, routing, at } => {
                let tokens = x.dim(0)?;
                let mut y = vec![0.0; tokens * linear.out_features()];
                with_slice(x, |x| -> Result<()> {
                    linear.forward(tokens, x, setting, &mut y, routing)?;
                    if let Some(observer) = observer {
                        observer(Seen { layer: at.0, projection: at.1, linear, x, routing })?;
                    }
                    Ok(())
                })??;
                Ok(Tensor::from_vec(y, (tokens, linear.out_features()), &Device::Cpu)?)
            }
        }
    }
}
