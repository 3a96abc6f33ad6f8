//! A linear whose output is adapted by experts: `y = x W^T + sum_e g_e(x) s_e B_e (A_e x)`, by molora.
//!
//! This is the only place of the engine that knows how the mixture is computed.

use super::mixture::Module;
use super::setting::{Gates, Routing, Setting};
use anyhow::Result;
use molora::adapter::slots::PoolSizes;
use molora::adapter::{LinearRouter, Lora};
use molora::host::{Device as LoraDevice, HostLayer};
use molora::layer;
use molora::preset::{Parameters, Preset};
use molora::{ElementType, Router};
use std::collections::BTreeMap;

/// One linear with its experts and its router, resident on the device.
pub struct ExpertLinear {
    in_features: usize,
    out_features: usize,
    experts: usize,
    layer: HostLayer<f32>,
    router: LinearRouter,
    /// `[experts, in]`, where there are some.
    gates: BTreeMap<Gates, Vec<f32>>,
    /// What the layer's router was set for.
    setting: Setting,
    /// Calls by form.
    forms: Forms,
}

/// Calls of linears by the form in which they ran.
pub type Forms = BTreeMap<&'static str, usize>;

impl ExpertLinear {
    /// `base` is `[out, in]`; the module's experts and router fit it.
    pub fn new(
        device: &LoraDevice,
        base: Vec<f32>,
        out_features: usize,
        in_features: usize,
        module: &Module,
    ) -> Result<Self> {
        let experts = module.experts.len();
        // A router may choose an expert that leaves this linear alone: its slot holds a factor of zeros.
        let nothing = Lora::new(
            in_features,
            out_features,
            1,
            1.0,
            &vec![0f32; in_features],
            &vec![0f32; out_features],
        )?;
        let loras: Vec<&Lora> = module.experts.iter().map(|lora| lora.as_ref().unwrap_or(&nothing)).collect();
        let rank_capacity = loras.iter().map(|lora| lora.rank()).sum();
        let sizes =
            PoolSizes { in_features, out_features, experts, rank_capacity, element: ElementType::F32 };
        let mut layer = HostLayer::new(device, sizes, Router::External { top_k: 0 }, base, None)?;
        if let Some(router) = &module.attention {
            layer.set_attention(router)?;
        }
        for (slot, lora) in loras.into_iter().enumerate() {
            layer.put(slot, lora)?;
        }
        let router = module.router.clone();
        Ok(Self {
            in_features,
            out_features,
            experts,
            layer,
            router,
            gates: BTreeMap::new(),
            setting: Setting::Base,
            forms: Forms::new(),
        })
    }

    /// Inputs of one token.
    pub fn in_features(&self) -> usize {
        self.in_features
    }

    /// Outputs of one token.
    pub fn out_features(&self) -> usize {
        self.out_features
    }

    /// The router that this linear asks.
    pub fn router(&self) -> &LinearRouter {
        &self.router
    }

    /// The gates of [`Setting::Phatgoose`], `[experts, in]`.
    pub fn set_gates(&mut self, which: Gates, gates: Vec<f32>) -> Result<()> {
        // A router that was built from others goes.
        self.layer.set_router(Router::External { top_k: 0 })?;
        self.gates.insert(which, gates);
        self.setting = Setting::Base;
        Ok(())
    }

    /// The calls so far.
    pub fn forms(&self) -> &Forms {
        &self.forms
    }

    /// `x` is `[tokens, in]`, `y` is `[tokens, out]`; `routing` tells which experts were taken.
    pub fn forward(
        &mut self,
        tokens: usize,
        x: &[f32],
        setting: &Setting,
        y: &mut [f32],
        routing: &mut Routing,
    ) -> Result<()> {
        match setting {
            Setting::Base => routing.fill(tokens, &[]),
            Setting::Expert { id, .. } => routing.fill(tokens, &[(*id, 1.0)]),
            Setting::Uniform => {
                let all: Vec<_> = (0..self.experts).map(|id| (id, 1.0 / self.experts as f32)).collect();
                routing.fill(tokens, &all);
            }
            Setting::Top(k) => routing.fill(tokens, &vec![(0, 0.0); *k]),
            Setting::Phatgoose(_) => routing.fill(tokens, &vec![(0, 0.0); self.experts.min(2)]),
            Setting::Requests(sets) | Setting::Attended(sets) => routing.fill_sequences(tokens, sets)?,
        }
        if self.setting != *setting {
            self.layer.set_router(self.lora_router(setting, routing.top_k)?)?;
            self.setting = setting.clone();
        }
        let taken = layer::Routing::new(&mut routing.ids, &mut routing.weights);
        self.layer.forward(tokens, x, taken, y)?;
        *self.forms.entry(self.layer.choose(tokens)?.form.name()).or_default() += 1;
        Ok(())
    }

    /// The linear's own router where the setting asks it, else ids that come with the call.
    fn lora_router(&self, setting: &Setting, top_k: usize) -> molora::Result<Router<LinearRouter>> {
        let (preset, parameters) = match setting {
            Setting::Top(_) => (Preset::MingMoe, Parameters::Linear(self.router.clone())),
            Setting::Phatgoose(which) => {
                let (experts, in_features) = (self.experts, self.in_features);
                let v = self.gates.get(which).map_or(&[][..], Vec::as_slice);
                (Preset::Phatgoose, Parameters::Gates { experts, in_features, v })
            }
            Setting::Attended(_) => return Ok(Router::RankAttention { top_k }),
            _ => return Ok(Router::External { top_k }),
        };
        Ok(preset.build(parameters, Some(top_k))?.router)
    }
}
