//! Adapters on disk: what a LoRA file holds, checked once, so that nothing behind this door meets a broken one.
//!
//! - [`Lora`]: the two factors of one linear layer, `y += scaling * B (A x)`.
//! - [`Adapter`]: one named set of them, keyed by the module's path. [`Adapter::from_peft`] reads a PEFT folder.
//! - [`read_peft_parameters`]: a PEFT folder whose LoRA is on the base's stacked experts (`target_parameters`).
//! - [`read_ming`]: MING-MOE checkpoints, experts and their switch per linear.
//! - [`read_phatgoose`]: PHATGOOSE checkpoints, experts and their gate vectors per linear.
//!
//! Tensors come from safetensors or from what `torch.save` writes; nothing that a file holds is executed.
//! - [`read_routers`]: routers kept apart from the adapters.

pub mod attention;
mod config;
mod json;
mod ming;
mod parameters;
mod patterns;
mod peft;
mod phatgoose;
mod pickle;
mod router;
pub mod slots;
mod tensors;
mod torch;

pub use ming::{Ming, MingModule, read_ming};
pub use parameters::{ExpertParameter, PeftParameters, read_peft_parameters};
pub use phatgoose::{PhatgooseModule, read_phatgoose};
pub use router::{LinearRouter, Prototypes, read_routers};

use crate::element::{Element, ElementType};
use crate::error::{Error, Result};
use std::collections::BTreeMap;

/// One adapter's two factors for one linear layer, as PEFT stores them.
///
/// `lora_a` is `[rank, in_features]`, `lora_b` is `[out_features, rank]`, both row-major. Every weight is finite.
#[derive(Debug, Clone, PartialEq)]
pub struct Lora {
    in_features: usize,
    out_features: usize,
    rank: usize,
    scaling: f32,
    element: ElementType,
    /// Little-endian, so that they go to a device or a file as they are.
    lora_a: Vec<u8>,
    lora_b: Vec<u8>,
}

impl Lora {
    /// Takes `lora_a` `[rank, in_features]` and `lora_b` `[out_features, rank]`.
    ///
    /// Refuses sizes of 0, lengths that are not the shapes' products, and values that are not finite.
    pub fn new<E: Element>(
        in_features: usize,
        out_features: usize,
        rank: usize,
        scaling: f32,
        lora_a: &[E],
        lora_b: &[E],
    ) -> Result<Self> {
        for (name, factor) in [("lora_a", lora_a), ("lora_b", lora_b)] {
            if let Some(index) = factor.iter().position(|w| !w.to_f32().is_finite()) {
                let got = factor[index].to_f32();
                return Err(Error::argument("lora", format!("{name}[{index}]"), "a finite weight", got));
            }
        }
        let (lora_a, lora_b) = (to_le_bytes(lora_a), to_le_bytes(lora_b));
        Self::from_finite(in_features, out_features, rank, scaling, E::TYPE, lora_a, lora_b)
    }

    /// Takes little-endian factors whose weights the caller found finite.
    fn from_finite(
        in_features: usize,
        out_features: usize,
        rank: usize,
        scaling: f32,
        element: ElementType,
        lora_a: Vec<u8>,
        lora_b: Vec<u8>,
    ) -> Result<Self> {
        for (name, size) in [("in_features", in_features), ("out_features", out_features), ("rank", rank)] {
            if size == 0 {
                return Err(Error::argument("lora", name, "at least 1", size));
            }
        }
        if !scaling.is_finite() {
            return Err(Error::argument("lora", "scaling", "a finite number", scaling));
        }
        let shapes = [("lora_a", rank, in_features, &lora_a), ("lora_b", out_features, rank, &lora_b)];
        for (name, rows, columns, bytes) in shapes {
            let got = bytes.len() / element.bytes();
            if rows.checked_mul(columns) != Some(got) {
                return Err(Error::argument("lora", name, format!("{rows} x {columns} weights"), got));
            }
        }
        Ok(Self { in_features, out_features, rank, scaling, element, lora_a, lora_b })
    }

    /// Columns of the linear's input.
    pub fn in_features(&self) -> usize {
        self.in_features
    }

    /// Columns of the linear's output.
    pub fn out_features(&self) -> usize {
        self.out_features
    }

    /// Rows of A and columns of B, at least 1.
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// What `B (A x)` is multiplied by: alpha / rank, or alpha / sqrt(rank) for rank-stabilised adapters.
    pub fn scaling(&self) -> f32 {
        self.scaling
    }

    /// How both factors are stored.
    pub fn element(&self) -> ElementType {
        self.element
    }

    /// A, `[rank, in_features]`, widened exactly.
    pub fn a(&self) -> impl Iterator<Item = f32> + '_ {
        widen(self.element, &self.lora_a)
    }

    /// B, `[out_features, rank]`, widened exactly.
    pub fn b(&self) -> impl Iterator<Item = f32> + '_ {
        widen(self.element, &self.lora_b)
    }

    /// A, `[rank, in_features]`, bit for bit; `None` when `E` is not the stored type.
    pub fn a_as<E: Element>(&self) -> Option<Vec<E>> {
        (E::TYPE == self.element).then(|| from_le_bytes(&self.lora_a))
    }

    /// B, `[out_features, rank]`, bit for bit; `None` when `E` is not the stored type.
    pub fn b_as<E: Element>(&self) -> Option<Vec<E>> {
        (E::TYPE == self.element).then(|| from_le_bytes(&self.lora_b))
    }

    /// A's little-endian bytes, `rank * in_features` elements.
    pub fn a_bytes(&self) -> &[u8] {
        &self.lora_a
    }

    /// B's little-endian bytes, `out_features * rank` elements.
    pub fn b_bytes(&self) -> &[u8] {
        &self.lora_b
    }
}

/// One named adapter: the factors of every linear that it changes.
#[derive(Debug, Clone, PartialEq)]
pub struct Adapter {
    name: String,
    modules: BTreeMap<String, Lora>,
}

impl Adapter {
    /// Names a set of factors. The keys are module paths such as `model.layers.24.mlp.gate_proj`.
    pub fn new(name: impl Into<String>, modules: BTreeMap<String, Lora>) -> Self {
        Self { name: name.into(), modules }
    }

    /// The adapter's name; the folder's name when it was read from one.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Every module that the adapter changes, by path.
    pub fn modules(&self) -> &BTreeMap<String, Lora> {
        &self.modules
    }

    /// The factors of one module, `None` where the adapter leaves it alone.
    pub fn get(&self, module: &str) -> Option<&Lora> {
        self.modules.get(module)
    }
}

/// Little-endian elements as f32. Exact: f16 and bf16 are subsets of f32.
fn widen(element: ElementType, bytes: &[u8]) -> impl Iterator<Item = f32> + '_ {
    bytes.chunks_exact(element.bytes()).map(move |c| match element {
        ElementType::F32 => f32::from_le_bytes([c[0], c[1], c[2], c[3]]),
        ElementType::F16 => half::f16::from_le_bytes([c[0], c[1]]).to_f32(),
        ElementType::Bf16 => half::bf16::from_le_bytes([c[0], c[1]]).to_f32(),
    })
}

fn to_le_bytes<E: Element>(values: &[E]) -> Vec<u8> {
    let mut bytes = bytemuck::cast_slice(values).to_vec();
    reverse_on_big_endian(&mut bytes, E::TYPE.bytes());
    bytes
}

fn from_le_bytes<E: Element>(bytes: &[u8]) -> Vec<E> {
    let mut values: Vec<E> = bytemuck::pod_collect_to_vec(bytes);
    reverse_on_big_endian(bytemuck::cast_slice_mut(&mut values), E::TYPE.bytes());
    values
}

fn reverse_on_big_endian(bytes: &mut [u8], width: usize) {
    if cfg!(target_endian = "big") {
        bytes.chunks_exact_mut(width).for_each(<[u8]>::reverse);
    }
}
