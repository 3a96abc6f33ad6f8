//! Retrieval: which adapters suit a request, by the embedding of its text (operators, section 6).
//!
//! ```text
//! e(adapter) = mean over its sample texts of encoder(text)                 see [`mean`]
//! score      = <q, e> / (|q| |e|)   or   <q, e>                            see [`Metric`]
//! hits       = the top_k largest scores of the allowed adapters, best first, ties to the lowest id
//! ```
//!
//! An [`Index`] holds one embedding an adapter under an id that the caller chooses, and takes and gives up adapters one
//! at a time without being built anew. [`Exact`] compares with every adapter by the library's own kernels: 100,000
//! adapters of 384 numbers are 154 MB to read, once for up to 32 queries. `ExactOn` does so on a GPU, by its router. Beyond that `Approximate` (feature
//! `usearch`) walks a graph and scores what it finds as [`Exact`] does. The encoder is the caller's.

#[cfg(feature = "usearch")]
pub mod approximate;
pub mod exact;
mod list;
#[cfg(any(feature = "wgpu", feature = "cuda"))]
pub mod on_gpu;

#[cfg(feature = "usearch")]
pub use approximate::Approximate;
pub use exact::Exact;
#[cfg(any(feature = "wgpu", feature = "cuda"))]
pub use on_gpu::ExactOn;

use crate::error::{Error, Result};
use crate::ops::check_len;
use std::cmp::Ordering;

pub(crate) const OP: &str = "retrieval";

/// Largest norm of an embedding: the product of two cannot overflow f32.
pub const MAX_NORM: f64 = 1e18;

/// How near a query is to an embedding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Metric {
    /// The cosine of the angle between them; neither may be zero.
    Cosine,
    /// Their inner product.
    InnerProduct,
}

/// One question to an index: an embedding, and the adapters that may answer.
#[derive(Debug, Clone, Copy)]
pub struct Query<'a> {
    /// `[dims]`.
    pub embedding: &'a [f32],
    /// Only these ids, where there is a list; ids that the index does not hold are passed over.
    pub allow: Option<&'a [u64]>,
    /// None of these ids; stronger than `allow`.
    pub deny: &'a [u64],
}

impl<'a> Query<'a> {
    /// Every adapter may answer.
    pub const fn new(embedding: &'a [f32]) -> Self {
        Self { embedding, allow: None, deny: &[] }
    }

    /// Only these adapters may answer.
    pub const fn allow(self, ids: &'a [u64]) -> Self {
        Self { allow: Some(ids), ..self }
    }

    /// These adapters may not answer.
    pub const fn deny(self, ids: &'a [u64]) -> Self {
        Self { deny: ids, ..self }
    }
}

/// An adapter that answers a query.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Hit {
    /// The adapter's id.
    pub id: u64,
    /// The metric's value, in f32.
    pub score: f32,
}

/// Embeddings of adapters, searched by queries.
///
/// Scores are f32 products in one fixed order of summation: a query's hits do not depend on the other queries of its
/// call, and those of [`Exact`] neither on the order in which adapters came.
pub trait Index: Send + Sync {
    /// Elements of every embedding.
    fn dims(&self) -> usize;

    /// What scores mean.
    fn metric(&self) -> Metric;

    /// Adapters held.
    fn len(&self) -> usize;

    /// Whether no adapter is held.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether an adapter of this id is held.
    fn contains(&self, id: u64) -> bool;

    /// Takes an adapter's embedding `[dims]`, in place of the one under this id where there is one; says whether there
    /// was.
    ///
    /// Refuses the id `u64::MAX`, other lengths, values that are not finite, norms above [`MAX_NORM`] and, for a cosine, zero.
    fn insert(&mut self, id: u64, embedding: &[f32]) -> Result<bool>;

    /// Gives up an adapter; says whether it was there.
    fn remove(&mut self, id: u64) -> Result<bool>;

    /// The `top_k` best of each query's allowed adapters, best first, ties to the lowest id; fewer where fewer are
    /// allowed.
    ///
    /// Refuses query embeddings as [`Self::insert`] does.
    fn search(&self, queries: &[Query], top_k: usize) -> Result<Vec<Vec<Hit>>>;
}

/// An adapter's embedding: the mean of its texts' embeddings `[texts, dims]`, row after row.
pub fn mean(embeddings: &[f32], dims: usize) -> Result<Vec<f32>> {
    if dims == 0 || embeddings.is_empty() || !embeddings.len().is_multiple_of(dims) {
        let expected = format!("one or more rows of {dims} elements");
        return Err(Error::argument(OP, "embeddings", expected, embeddings.len()));
    }
    let mut sums = vec![0f64; dims];
    for row in embeddings.chunks_exact(dims) {
        sums.iter_mut().zip(row).for_each(|(sum, &v)| *sum += f64::from(v));
    }
    let texts = (embeddings.len() / dims) as f64;
    Ok(sums.into_iter().map(|sum| (sum / texts) as f32).collect())
}

/// The definition: every score in f64, rounded to f32, all of them sorted.
pub fn definition(
    metric: Metric,
    adapters: &[(u64, &[f32])],
    query: &Query,
    top_k: usize,
) -> Result<Vec<Hit>> {
    let q = query.embedding;
    let dot =
        |a: &[f32], b: &[f32]| -> f64 { a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum() };
    check_embedding(metric, q.len(), "query", q)?;
    let mut hits = Vec::new();
    for &(id, e) in adapters {
        check_embedding(metric, q.len(), "embedding", e)?;
        if query.deny.contains(&id) || query.allow.is_some_and(|ids| !ids.contains(&id)) {
            continue;
        }
        let length = match metric {
            Metric::Cosine => (dot(q, q) * dot(e, e)).sqrt(),
            Metric::InnerProduct => 1.0,
        };
        hits.push(Hit { id, score: (dot(q, e) / length) as f32 });
    }
    // Both zeros are equal.
    hits.sort_by(|a, b| b.score.partial_cmp(&a.score).unwrap_or(Ordering::Equal).then(a.id.cmp(&b.id)));
    hits.truncate(top_k);
    Ok(hits)
}

/// Refuses what cannot be compared; gives back the factor that makes the embedding ready: 1 / norm for a cosine.
pub(crate) fn check_embedding(metric: Metric, dims: usize, name: &str, embedding: &[f32]) -> Result<f64> {
    check_len(OP, name, dims, embedding.len())?;
    if let Some(i) = embedding.iter().position(|v| !v.is_finite()) {
        return Err(Error::argument(OP, format!("{name}[{i}]"), "a finite value", embedding[i]));
    }
    let norm = embedding.iter().map(|&v| f64::from(v) * f64::from(v)).sum::<f64>().sqrt();
    match metric {
        Metric::Cosine if norm == 0.0 => Err(Error::argument(OP, name, "a norm above 0 for a cosine", 0)),
        Metric::Cosine => Ok(1.0 / norm),
        Metric::InnerProduct if norm > MAX_NORM => {
            Err(Error::argument(OP, name, format!("a norm of at most {MAX_NORM:e}"), format!("{norm:e}")))
        }
        Metric::InnerProduct => Ok(1.0),
    }
}

/// Refuses the id that graphs keep for a free place.
pub(crate) fn check_id(id: u64) -> Result<()> {
    if id == u64::MAX { Err(Error::argument(OP, "id", "below 2^64 - 1", id)) } else { Ok(()) }
}

/// The embedding as it is stored and multiplied.
pub(crate) fn ready(factor: f64, embedding: &[f32], to: &mut [f32]) {
    to.iter_mut().zip(embedding).for_each(|(to, &v)| *to = (f64::from(v) * factor) as f32);
}
