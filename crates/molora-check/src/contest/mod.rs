//! The contest's protocol: what is asked of a contender, and how it answers, so that programs of any language can be timed
//! beside each other.
//!
//! A case's inputs lie in a folder as `CASE.NAME.npy`: `x [T, d_in]`, `idx [T, k]` (i32), `gate [T, k]`, and
//!
//! ```text
//! molora   w [d_out, d_in], a [E, r, d_in], b [E, d_out, r], wr [E, d_in], br [E]
//!          base   y = x w^T
//!          lora   y_t = sum_j gate[t, j] scale b[e] a[e] x_t,  e = idx[t, j]
//!          layer  base + lora
//!          full   layer, with idx and gate computed from x: the k best of x wr^T + br, softmax over those k
//! ggemm    we [E, d_out, d_in]
//!          ggemm  y[t k + j] = we[idx[t, j]] x_t
//! ```
//!
//! A contender that [serves](serve) reads one JSON object a line and answers each by one line:
//!
//! ```text
//! {"do":"hello"}                                              {"name":..,"version":..}
//! {"do":"prepare","case":{..},"data":FOLDER}                  {"series":[["layer","fused"],..]}
//! {"do":"check","op":..,"variant":..,"out":FILE}              {"ok":true,"s":SECONDS}          one call, its y into FILE
//! {"do":"time","op":..,"variant":..,"budget":S,"warm":true}   {"s":[SECONDS,..],"c":[PROCESSOR SECONDS,..]}
//! {"do":"drop"}                                               {"ok":true}
//! ```
//!
//! or `{"error":..}`. Everyone owns `copies.W` copies of w and `copies.AB` of a and b, and takes the next with every call;
//! packing weights beforehand is allowed; sorting, gathering, scaling and the memory of the result belong to the call.

pub mod cases;
pub mod judge;
pub mod npy;
mod serve;

pub use serve::{Answer, Call, Contender, Series, one_shot, serve};

use serde::{Deserialize, Serialize};
use std::path::Path;

/// One case.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Case {
    /// Its name, the first part of its files' names.
    pub id: String,
    /// What is computed.
    pub kind: Kind,
    /// Rows of x.
    #[serde(rename = "T")]
    pub tokens: usize,
    /// Columns of x.
    #[serde(rename = "d_in")]
    pub in_features: usize,
    /// Columns of y.
    #[serde(rename = "d_out")]
    pub out_features: usize,
    /// Experts.
    #[serde(rename = "E")]
    pub experts: usize,
    /// Experts of a token.
    #[serde(rename = "k")]
    pub top_k: usize,
    /// Rank of every expert; 0 where there are no adapters.
    #[serde(rename = "r")]
    pub rank: usize,
    /// Every expert's scaling.
    pub scale: f32,
    /// How tokens choose: `uniform`, `zipf`, or `own`, an adapter of its own for every token.
    pub dist: String,
    /// How many copies of the weights there are, so that they come from memory.
    pub copies: Copies,
    /// What is asked: `base`, `lora`, `layer`, `full`, `ggemm`.
    pub ops: Vec<String>,
    /// `bf16`: 16-bit variants are asked for too.
    #[serde(default)]
    pub tags: Vec<String>,
}

/// What a case computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// A layer with LoRA experts.
    Molora,
    /// A grouped product.
    Ggemm,
}

/// Copies of the weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Copies {
    /// Of the base weight, or the base experts'.
    #[serde(rename = "W")]
    pub w: usize,
    /// Of the adapters.
    #[serde(rename = "AB")]
    pub ab: usize,
}

/// A file of cases.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Cases {
    /// The folder of the inputs.
    pub data: String,
    /// The cases.
    pub cases: Vec<Case>,
}

impl Case {
    /// Routes.
    pub fn routes(&self) -> usize {
        self.tokens.saturating_mul(self.top_k)
    }

    /// Rows of an operation's y.
    pub fn rows(&self, op: &str) -> usize {
        if op == "ggemm" { self.routes() } else { self.tokens }
    }

    /// Where an input lies.
    pub fn file(&self, data: &Path, name: &str) -> std::path::PathBuf {
        data.join(format!("{}.{name}.npy", self.id))
    }

    /// Refuses what no contender can compute.
    pub fn check(&self) -> Result<(), String> {
        let plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
        if self.id.is_empty() || !self.id.chars().all(plain) {
            return Err(format!("id: expected letters, digits, '.', '_' or '-', got {:?}", self.id));
        }
        let sizes = [
            ("T", self.tokens),
            ("d_in", self.in_features),
            ("d_out", self.out_features),
            ("E", self.experts),
            ("k", self.top_k),
            ("copies.W", self.copies.w),
            ("copies.AB", self.copies.ab),
        ];
        match sizes.iter().find(|(_, size)| *size == 0) {
            Some((name, _)) => Err(format!("{}: {name}: expected at least 1, got 0", self.id)),
            None if self.kind == Kind::Molora && self.rank == 0 => {
                Err(format!("{}: r: expected at least 1, got 0", self.id))
            }
            None => Ok(()),
        }
    }
}

/// A case's inputs; those that its kind does not have are empty.
#[derive(Debug, Clone, Default)]
pub struct Arrays {
    /// `[T, d_in]`.
    pub x: Vec<f32>,
    /// `[T, k]`.
    pub ids: Vec<i32>,
    /// `[T, k]`.
    pub gates: Vec<f32>,
    /// `[d_out, d_in]`, or the base experts' `[E, d_out, d_in]`.
    pub w: Vec<f32>,
    /// `[E, r, d_in]`.
    pub a: Vec<f32>,
    /// `[E, d_out, r]`.
    pub b: Vec<f32>,
    /// `[E, d_in]`.
    pub router: Vec<f32>,
    /// `[E]`.
    pub router_bias: Vec<f32>,
}

impl Arrays {
    /// Reads a case's files; the error names the file that is absent or has another shape.
    pub fn read(case: &Case, data: &Path) -> Result<Self, String> {
        case.check()?;
        let Case { tokens: t, in_features: i, out_features: o, experts: e, top_k: k, rank: r, .. } = *case;
        let floats =
            |name: &str, shape: &[usize]| -> Result<Vec<f32>, String> { input(case, data, name, shape) };
        let mut arrays = Self {
            x: floats("x", &[t, i])?,
            ids: input(case, data, "idx", &[t, k])?,
            gates: floats("gate", &[t, k])?,
            ..Self::default()
        };
        if let Some(id) = arrays.ids.iter().find(|&&id| id < 0 || id as usize >= e) {
            return Err(format!("{}: idx: expected ids below {e}, got {id}", case.id));
        }
        match case.kind {
            Kind::Ggemm => arrays.w = floats("we", &[e, o, i])?,
            Kind::Molora => {
                arrays.w = floats("w", &[o, i])?;
                (arrays.a, arrays.b) = (floats("a", &[e, r, i])?, floats("b", &[e, o, r])?);
                (arrays.router, arrays.router_bias) = (floats("wr", &[e, i])?, floats("br", &[e])?);
            }
        }
        Ok(arrays)
    }
}

fn input<T: npy::Number>(case: &Case, data: &Path, name: &str, shape: &[usize]) -> Result<Vec<T>, String> {
    let path = case.file(data, name);
    let array = npy::read::<T>(&path)?;
    if array.shape != shape {
        return Err(format!("{}: expected the shape {shape:?}, got {:?}", path.display(), array.shape));
    }
    Ok(array.values)
}
