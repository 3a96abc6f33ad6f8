//! Approximate search, for more adapters than [`Exact`] should read for every query: a graph of near neighbours (HNSW, by
//! the `usearch` library) finds candidates, the kernels of [`Exact`] score them.
//!
//! ```text
//! candidates = walk(graph, q), not denied         the nearest that the walk met, [`Approximate::candidates`] of them
//! hits       = the top_k best of the candidates, by their exact scores
//! ```
//!
//! An adapter that a walk does not meet is missed; a score is never wrong. Allow lists, few adapters, and queries of
//! which a walk finds too few that may answer (most are denied) are searched exactly. The graph keeps a second copy of the
//! embeddings.
//!
//! Adapters enter the graph one after another and walks run one at a time, since the graph draws random numbers from a
//! state of its own: the same calls in the same order give the same hits, whatever the threads.

use super::exact::Exact;
use super::list::List;
use super::{Hit, Index, Metric, OP, Query, check_embedding, ready};
use crate::device::cpu::Cpu;
use crate::error::{Error, Result};
use std::sync::{Mutex, PoisonError};
use usearch::{IndexOptions, MetricKind, ScalarKind};

/// Neighbours of an adapter in the graph's upper layers; the lowest has twice as many.
const NEIGHBOURS: usize = 16;

/// Adapters that a walk keeps while a new one looks for its neighbours.
const CANDIDATES_ADD: usize = 128;

/// Adapters that a query's walk keeps.
const CANDIDATES: usize = 256;

/// An index that compares a query with the adapters that a walk meets. See the [module](self).
pub struct Approximate {
    exact: Exact,
    /// Walks use one state.
    graph: Mutex<usearch::Index>,
    candidates: usize,
}

impl std::fmt::Debug for Approximate {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        let Self { exact, graph: _, candidates } = self;
        f.debug_struct("Approximate")
            .field("exact", exact)
            .field("candidates", candidates)
            .finish_non_exhaustive()
    }
}

impl Approximate {
    /// An empty index of embeddings of `dims` elements, at least 1.
    pub fn new(cpu: &Cpu, dims: usize, metric: Metric) -> Result<Self> {
        let exact = Exact::new(cpu, dims, metric)?;
        let options = IndexOptions {
            dimensions: dims,
            // Embeddings come with norm 1 for a cosine.
            metric: MetricKind::IP,
            quantization: ScalarKind::F32,
            connectivity: NEIGHBOURS,
            expansion_add: CANDIDATES_ADD,
            expansion_search: CANDIDATES,
            multi: false,
        };
        let graph = usearch::Index::new(&options).map_err(failed)?;
        Ok(Self { exact, graph: Mutex::new(graph), candidates: CANDIDATES })
    }

    /// Keeps this many adapters in a query's walk, at least `top_k`: more find more and take longer. 256 unless told.
    pub fn candidates(self, candidates: usize) -> Result<Self> {
        if candidates == 0 {
            return Err(Error::argument(OP, "candidates", "at least 1", 0));
        }
        self.graph.lock().unwrap_or_else(PoisonError::into_inner).change_expansion_search(candidates);
        Ok(Self { candidates, ..self })
    }

    /// The same adapters, searched exactly.
    pub fn exact(&self) -> &Exact {
        &self.exact
    }

    /// The hits of a query that is ready; `None` where an exact search must answer.
    fn walk(&self, query: &[f32], deny: &[u64], top_k: usize) -> Result<Option<Vec<Hit>>> {
        let wanted = self.candidates.max(top_k);
        if self.exact.len() <= wanted {
            return Ok(None);
        }
        let mut deny = deny.to_vec();
        deny.sort_unstable();
        let allowed = |id: &u64| deny.binary_search(id).is_err();
        let graph = self.graph.lock().unwrap_or_else(PoisonError::into_inner);
        let found = match deny.is_empty() {
            true => graph.search(query, wanted),
            false => graph.filtered_search(query, wanted, |id| allowed(&id)),
        };
        drop(graph);
        let mut ids = found.map_err(failed)?.keys;
        // Nothing is taken on trust: an id that came twice would be two hits.
        ids.sort_unstable();
        ids.dedup();
        let (mut list, mut met) = (List::new(top_k), 0);
        for hit in ids.into_iter().filter(allowed).filter_map(|id| self.exact.score(query, id)) {
            list.offer(hit, || true);
            met += 1;
        }
        Ok((met >= top_k).then(|| list.into_hits()))
    }
}

impl Index for Approximate {
    fn dims(&self) -> usize {
        self.exact.dims()
    }

    fn metric(&self) -> Metric {
        self.exact.metric()
    }

    fn len(&self) -> usize {
        self.exact.len()
    }

    fn contains(&self, id: u64) -> bool {
        self.exact.contains(id)
    }

    fn insert(&mut self, id: u64, embedding: &[f32]) -> Result<bool> {
        let replaced = self.exact.insert(id, embedding)?;
        let graph = self.graph.get_mut().unwrap_or_else(PoisonError::into_inner);
        let add = || {
            if replaced {
                graph.remove(id)?;
            }
            if graph.size() == graph.capacity() {
                // One state: see the module.
                graph.reserve_capacity_and_threads((2 * graph.capacity()).max(1024), 1)?;
            }
            graph.add(id, self.exact.embedding(id).unwrap_or_default())
        };
        if let Err(error) = add() {
            // Both hold the same adapters, or neither this one.
            self.remove(id)?;
            return Err(failed(error));
        }
        Ok(replaced)
    }

    fn remove(&mut self, id: u64) -> Result<bool> {
        let graph = self.graph.get_mut().unwrap_or_else(PoisonError::into_inner);
        graph.remove(id).map_err(failed)?;
        self.exact.remove(id)
    }

    fn search(&self, queries: &[Query], top_k: usize) -> Result<Vec<Vec<Hit>>> {
        let top_k = top_k.min(self.len());
        // All of them first: an error names the query by its place in this call.
        let mut rows = vec![0.0; queries.len() * self.dims()];
        for (n, (query, row)) in queries.iter().zip(rows.chunks_exact_mut(self.dims())).enumerate() {
            let name = format!("queries[{n}]");
            ready(check_embedding(self.metric(), self.dims(), &name, query.embedding)?, query.embedding, row);
        }
        let (mut found, mut rest) = (Vec::with_capacity(queries.len()), Vec::new());
        for (query, row) in queries.iter().zip(rows.chunks_exact(self.dims())) {
            let hits = if query.allow.is_some() { None } else { self.walk(row, query.deny, top_k)? };
            if hits.is_none() {
                rest.push(*query);
            }
            found.push(hits);
        }
        let mut rest = self.exact.search(&rest, top_k)?.into_iter();
        Ok(found.into_iter().map(|hits| hits.or_else(|| rest.next()).unwrap_or_default()).collect())
    }
}

/// What the graph's library refuses: memory, in the main.
fn failed(error: impl std::fmt::Display) -> Error {
    Error::Device { device: "cpu (usearch)".into(), reason: error.to_string() }
}
