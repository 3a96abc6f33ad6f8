//! Adapters: one expert's factors for one linear layer.

pub mod slots;

use crate::element::{Element, ElementType};
use crate::error::{Error, Result};

/// TEMPORARY until the reader lands.
#[derive(Debug, Clone)]
pub struct Lora {
    in_features: usize,
    out_features: usize,
    rank: usize,
    scaling: f32,
    element: ElementType,
    lora_a: Vec<f32>,
    lora_b: Vec<f32>,
}
#[expect(missing_docs)]
impl Lora {
    pub fn new<E: Element>(
        in_features: usize,
        out_features: usize,
        rank: usize,
        scaling: f32,
        lora_a: &[E],
        lora_b: &[E],
    ) -> Result<Self> {
        if lora_a.len() != rank * in_features || lora_b.len() != rank * out_features {
            return Err(Error::argument("lora", "lora_a", rank * in_features, lora_a.len()));
        }
        let f = |v: &[E]| v.iter().map(|v| v.to_f32()).collect();
        Ok(Self {
            in_features,
            out_features,
            rank,
            scaling,
            element: E::TYPE,
            lora_a: f(lora_a),
            lora_b: f(lora_b),
        })
    }
    pub fn in_features(&self) -> usize {
        self.in_features
    }
    pub fn out_features(&self) -> usize {
        self.out_features
    }
    pub fn rank(&self) -> usize {
        self.rank
    }
    pub fn scaling(&self) -> f32 {
        self.scaling
    }
    pub fn element(&self) -> ElementType {
        self.element
    }
    pub fn a(&self) -> impl Iterator<Item = f32> {
        self.lora_a.iter().copied()
    }
    pub fn b(&self) -> impl Iterator<Item = f32> {
        self.lora_b.iter().copied()
    }
}
