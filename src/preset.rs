//! The published systems by name: which router, rule and output each of them is, from the parameters that its own files hold.
//!
//! ```
//! # use molora::preset::{Parameters, Preset};
//! # let (gates, experts, in_features) = (vec![0.5f32; 6], 2, 3);
//! let system = Preset::by_name("phatgoose")?.build(Parameters::Gates { experts, in_features, v: &gates }, None)?;
//! // MoeLora::new(&device, pool, system.router)?.with_output(system.output)
//! # assert_eq!(system.router.top_k(), 2);
//! # Ok::<(), molora::Error>(())
//! ```
//!
//! Where the choice is not the layer's, [`Given`] makes a call's ids and weights, and where it is,
//! [`AllowLists`](crate::ops::route::AllowLists) keeps each request to its own adapters. Formulas and sizes: operators, sections 1, 5, 6 and 8.

mod arrow;
mod given;

pub use arrow::arrow_prototype;
pub use given::{Given, pairs};

use crate::adapter::{LinearRouter, Lora, Prototypes};
use crate::element::Element;
use crate::error::{Error, Result};
use crate::layer::Router;
use crate::ops::Output;
use crate::ops::route::{Rule, Select, Weighting};

const OP: &str = "preset";

/// A published system.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Preset {
    /// MING-MOE (Liao and others, 2024): a router with bias in every linear, the 2 best, softmax over those.
    MingMoe,
    /// MedCare (Liao and others, 2024): the 2 best, their share of the softmax renormalised, and one shared expert of
    /// weight 1 in the slot behind the router's.
    MedCare,
    /// PHATGOOSE (Muqeeth and others, 2024): standardised x against every expert's standardised gate, divided by
    /// `sqrt(in_features)`; the 2 best, softmax over those.
    Phatgoose,
    /// LoraRetriever's mixture (Zhao and others, 2024): the 3 adapters that were retrieved for a request, 1/3 each.
    LoraRetrieverMixture,
    /// LoraRetriever's fusion: the same adapters, their factors averaged before the product; equal ranks.
    LoraRetrieverFusion,
    /// RAMoLE (Zhao and others, 2024): the 3 adapters that were retrieved for a request, weighed for every token by
    /// [attention](crate::ops::attend) between x and their products. The pool knows the router adapter by `set_attention`, before
    /// the others come.
    Ramole,
    /// MixLoRA (Li and others, 2024): the 2 best, renormalised, chosen once a block on its input; the weight comes behind the
    /// expert's feed-forward part. Built here is the linear that decides, gate or up; see [`System::follower`] and
    /// [`System::behind_activation`] for the others.
    MixLora,
    /// LoRAMoE (Dou and others, 2023): every expert, softmax.
    LoraMoe,
    /// HydraLoRA (Tian and others, 2024): every B, softmax, one A for all; see [`shared_a`] and [`split_shared_a`].
    HydraLora,
    /// X-LoRA (Buehler and Buehler, 2024): every expert with the weights that a first pass of the model gave; see
    /// [`Given::dense`].
    XLora,
    /// Arrow (Ostapenko and others, 2024): the magnitude of x along each adapter's [first right singular
    /// vector](arrow_prototype); the 4 best, softmax over those.
    Arrow,
    /// AdaMoLE (Liu and Luo, 2024): experts whose share is above a learned threshold of at most 1/experts, weighed by what they
    /// have above it; may be none. The threshold's row lies behind the experts'.
    AdaMole,
    /// HMoRA (Liao and others, 2025): the 2 best shares of a softmax, softmax over those again.
    Hmora,
    /// One adapter a request, or none (PEFT's mixed batches, Punica, S-LoRA, vLLM): given, weight 1.
    PerRequest,
    /// LoRA on a model whose feed-forward parts are experts (vLLM, SGLang): given, the base model's own choice and weights, in
    /// slot `adapter * experts + expert`; see [`pairs`].
    MoePairs,
}

/// How many experts a token takes unless the caller says so.
#[derive(Clone, Copy)]
enum TopK {
    /// As published, or all where there are fewer.
    Best(usize),
    All,
    /// What comes with a call.
    Given(usize),
    /// No value is right for all.
    Asked,
}

impl Preset {
    /// All of them.
    pub const ALL: [Self; 15] = [
        Self::MingMoe,
        Self::MedCare,
        Self::Phatgoose,
        Self::LoraRetrieverMixture,
        Self::LoraRetrieverFusion,
        Self::Ramole,
        Self::MixLora,
        Self::LoraMoe,
        Self::HydraLora,
        Self::XLora,
        Self::Arrow,
        Self::AdaMole,
        Self::Hmora,
        Self::PerRequest,
        Self::MoePairs,
    ];

    /// The name on command lines and in tables.
    pub const fn name(self) -> &'static str {
        match self {
            Self::MingMoe => "ming-moe",
            Self::MedCare => "medcare",
            Self::Phatgoose => "phatgoose",
            Self::LoraRetrieverMixture => "loraretriever-mixture",
            Self::LoraRetrieverFusion => "loraretriever-fusion",
            Self::Ramole => "ramole",
            Self::MixLora => "mixlora",
            Self::LoraMoe => "loramoe",
            Self::HydraLora => "hydralora",
            Self::XLora => "x-lora",
            Self::Arrow => "arrow",
            Self::AdaMole => "adamole",
            Self::Hmora => "hmora",
            Self::PerRequest => "per-request",
            Self::MoePairs => "moe-pairs",
        }
    }

    /// The system of a [name](Self::name).
    pub fn by_name(name: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|preset| preset.name() == name).ok_or_else(|| {
            let names: Vec<&str> = Self::ALL.into_iter().map(Self::name).collect();
            Error::argument(OP, "name", format!("one of {}", names.join(", ")), name)
        })
    }

    /// Router and output for one linear. `top_k` is the published one where it is `None`; X-LoRA (the number of experts) and
    /// pairs (the base model's) have none.
    ///
    /// Refuses parameters of another kind, and a `top_k` of 0 or of more experts than there are.
    pub fn build(self, parameters: Parameters, top_k: Option<usize>) -> Result<System> {
        let (rows, router) = match self.scores(parameters)? {
            Some(linear) => (linear.experts(), Some(linear)),
            None => (usize::MAX, None),
        };
        let experts = rows.checked_sub(self.select(1).rows()).ok_or_else(|| {
            Error::argument(OP, "parameters", "a row for the threshold behind the experts'", "no row")
        })?;
        let top_k = self.top_k(top_k, experts)?;
        let router = match router {
            None if self == Self::Ramole => Router::RankAttention { top_k },
            None => Router::External { top_k },
            Some(linear) => {
                let (select, weighting) = (self.select(experts), self.weighting());
                let shared = usize::from(self == Self::MedCare);
                Router::Linear { linear, rule: Rule { top_k, select, weighting, shared } }
            }
        };
        let output = match self {
            Self::LoraRetrieverFusion => Output::RankSum,
            Self::MixLora => Output::PerRoute,
            _ => Output::Sum,
        };
        Ok(System { router, output })
    }

    /// What scores the experts; `None` where the choice is given.
    fn scores(self, parameters: Parameters) -> Result<Option<LinearRouter>> {
        use Parameters::{Adapters, Gates, Linear};
        let got = parameters.name();
        let expected = match (self, parameters) {
            (Self::Phatgoose, Gates { experts, in_features, v }) => {
                let how = Prototypes::phatgoose(in_features);
                return LinearRouter::prototypes(experts, in_features, v, how).map(Some);
            }
            (Self::Phatgoose, _) => "gates",
            (Self::Arrow, Adapters(loras)) => return arrow::router(loras).map(Some),
            (Self::Arrow, _) => "adapters",
            (preset, Parameters::Given) if preset.is_given() => return Ok(None),
            (preset, _) if preset.is_given() => "given",
            (_, Linear(linear)) if linear.is_linear() => return Ok(Some(linear)),
            _ => "linear",
        };
        Err(Error::argument(OP, "parameters", format!("{expected} ({})", self.name()), got))
    }

    const fn is_given(self) -> bool {
        use Preset::{LoraRetrieverFusion, LoraRetrieverMixture, MoePairs, PerRequest, Ramole, XLora};
        matches!(self, LoraRetrieverMixture | LoraRetrieverFusion | Ramole | XLora | PerRequest | MoePairs)
    }

    fn top_k(self, asked: Option<usize>, experts: usize) -> Result<usize> {
        let published = match self {
            Self::LoraMoe | Self::HydraLora | Self::AdaMole => TopK::All,
            Self::Arrow => TopK::Best(4),
            Self::LoraRetrieverMixture | Self::LoraRetrieverFusion | Self::Ramole => TopK::Given(3),
            Self::PerRequest => TopK::Given(1),
            Self::XLora | Self::MoePairs => TopK::Asked,
            Self::MingMoe | Self::MedCare | Self::Phatgoose | Self::MixLora | Self::Hmora => TopK::Best(2),
        };
        let top_k = match (asked, published) {
            (Some(top_k), _) | (None, TopK::Given(top_k)) => top_k,
            (None, TopK::Best(top_k)) => top_k.min(experts),
            (None, TopK::All) => experts,
            (None, TopK::Asked) => {
                return Err(Error::argument(OP, "top_k", format!("a number ({})", self.name()), "none"));
            }
        };
        if top_k == 0 || top_k > experts {
            return Err(Error::argument(OP, "top_k", format!("from 1 to the {experts} experts"), top_k));
        }
        Ok(top_k)
    }

    fn select(self, experts: usize) -> Select {
        match self {
            Self::AdaMole => Select::LearnedThreshold(1.0 / experts.max(1) as f32),
            _ => Select::TopK,
        }
    }

    const fn weighting(self) -> Weighting {
        match self {
            Self::MedCare | Self::MixLora => Weighting::SoftmaxAllRenormalised,
            Self::AdaMole => Weighting::AboveThreshold,
            Self::Hmora => Weighting::SoftmaxTwice,
            _ => Weighting::SoftmaxSelected,
        }
    }
}

/// What a system's own files hold for one linear's choice.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Parameters<'a> {
    /// A trained router: one row an expert; AdaMoLE's threshold is one row more.
    Linear(LinearRouter),
    /// One gate an expert, in slot order (PHATGOOSE).
    Gates {
        /// Rows.
        experts: usize,
        /// Columns.
        in_features: usize,
        /// `[experts, in_features]`, as trained.
        v: &'a [f32],
    },
    /// The adapters themselves, in slot order (Arrow).
    Adapters(&'a [&'a Lora]),
    /// Nothing: ids and weights come with every call; RAMoLE's ids alone.
    Given,
}

impl Parameters<'_> {
    const fn name(&self) -> &'static str {
        match self {
            Self::Linear(_) => "linear",
            Self::Gates { .. } => "gates",
            Self::Adapters(_) => "adapters",
            Self::Given => "given",
        }
    }
}

/// What a layer is made with.
#[derive(Debug, Clone)]
pub struct System {
    /// For `MoeLora::new`, or [`HostLayer::new`](crate::host::HostLayer::new).
    pub router: Router<LinearRouter>,
    /// For [`MoeLora::with_output`](crate::MoeLora::with_output).
    pub output: Output,
}

impl System {
    /// Another linear of the same input that takes this one's ids and weights, as MixLoRA's up takes its gate's.
    pub fn follower(&self) -> Self {
        Self { router: Router::External { top_k: self.router.top_k() }, output: self.output }
    }

    /// The linear behind a per-route activation, as MixLoRA's down: its rows are routes, each of its one expert and weight.
    ///
    /// `sum w_n W h_n = W sum w_n h_n`: its base product runs once a token over `sum w_n h_n`, and the rows that
    /// `forward_delta` makes, weights included, are added to it token by token.
    pub fn behind_activation(&self) -> Self {
        Self { router: Router::External { top_k: 1 }, output: Output::Sum }
    }
}

/// HydraLoRA's experts: one `lora_a [rank, in_features]` with every `lora_b [out_features, rank]`.
///
/// One layer over one pool, which keeps A with each of them and computes a token's `A x` once a route: right, and dearer than it
/// need be; [`split_shared_a`] has each once.
pub fn shared_a<E: Element>(
    (in_features, out_features, rank): (usize, usize, usize),
    scaling: f32,
    lora_a: &[E],
    lora_b: &[&[E]],
) -> Result<Vec<Lora>> {
    lora_b.iter().map(|b| Lora::new(in_features, out_features, rank, scaling, lora_a, b)).collect()
}

/// HydraLoRA's factors apart, for two pools: A alone, `in_features` to 1, and the Bs, 1 to `out_features`.
///
/// ```text
/// h = shrink over the pool of A, [tokens, rank]    every token has one route, to A's slot
/// y = expand over the pool of Bs, RankSum          which reads one row of h a token: y_t += sum w_n scaling B_n h_t
/// ```
///
/// With E experts a layer keeps `rank (in + E out)` numbers instead of `rank E (in + out)` (and up to 8 more a row of rank, 64 on
/// the CPU, the other factor's one column), and a token takes `rank (in + E out)` multiply-adds instead of as many again: at 4096 x 4096 and 8
/// experts 0.56 times both. It takes a plan more a call, and what is fused into a layer's base product is not.
pub fn split_shared_a<E: Element>(
    (in_features, out_features, rank): (usize, usize, usize),
    scaling: f32,
    lora_a: &[E],
    lora_b: &[&[E]],
) -> Result<(Lora, Vec<Lora>)> {
    let nothing = vec![E::zeroed(); rank];
    let b = |b: &&[E]| Lora::new(1, out_features, rank, scaling, &nothing, b);
    let a = Lora::new(in_features, 1, rank, 1.0, lora_a, &nothing)?;
    Ok((a, lora_b.iter().map(b).collect::<Result<_>>()?))
}
