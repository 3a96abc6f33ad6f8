//! Exact search: the query times every row, by the CPU's kernel for rows times rows.
//!
//! ```text
//! for every block of rows, a task                 its part of the rows is read once for all queries of a tile
//!   for every tile of queries
//!     scores of the tile -> the task's lists of the best
//!   the task's lists -> the queries' lists
//! ```
//!
//! Rows lie without gaps in blocks that never move: a new adapter takes the row behind the last, an adapter that goes
//! leaves its row to the last one. Nothing of size `[queries, adapters]` is kept. A query with an allow list is
//! compared with the rows of its list only.

use super::list::List;
use super::{Hit, Index, Metric, OP, Query, check_embedding, check_id, ready};
use crate::device::cpu::{Cpu, DOT_ROWS, Lines, Matrix};
use crate::error::{Error, Result};
use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

/// Rows of a block of memory, and of a task.
const BLOCK_ROWS: usize = 1024;

/// Queries whose lists are kept at once.
const QUERIES_AT_ONCE: usize = 256;

/// An index that compares a query with every adapter. See the [module](self).
#[derive(Debug)]
pub struct Exact {
    cpu: Cpu,
    metric: Metric,
    dims: usize,
    /// Elements from one row to the next: whole cache lines.
    stride: usize,
    blocks: Vec<Lines<f32>>,
    /// The id of every row.
    ids: Vec<u64>,
    rows: HashMap<u64, usize>,
}

/// A query made ready: its row, and its list of those who may not answer, sorted.
struct Ready {
    row: Vec<f32>,
    deny: Vec<u64>,
}

impl Exact {
    /// An empty index of embeddings of `dims` elements, at least 1.
    pub fn new(cpu: &Cpu, dims: usize, metric: Metric) -> Result<Self> {
        if dims == 0 || dims > i32::MAX as usize / BLOCK_ROWS {
            let most = i32::MAX as usize / BLOCK_ROWS;
            return Err(Error::argument(OP, "dims", format!("1 to {most}"), dims));
        }
        let (blocks, ids, rows) = (Vec::new(), Vec::new(), HashMap::new());
        Ok(Self { cpu: cpu.clone(), metric, dims, stride: dims.next_multiple_of(16), blocks, ids, rows })
    }

    /// Bytes of memory that the embeddings take.
    pub fn bytes(&self) -> usize {
        self.blocks.len() * BLOCK_ROWS * self.stride * size_of::<f32>()
    }

    /// The ids held, ascending.
    pub fn ids(&self) -> Vec<u64> {
        let mut ids = self.ids.clone();
        ids.sort_unstable();
        ids
    }

    /// The embedding as it is stored `[dims]`, for a cosine divided by its norm.
    pub fn embedding(&self, id: u64) -> Option<&[f32]> {
        self.rows.get(&id).map(|&row| self.row(row))
    }

    /// The score of one adapter, with the bits that a search gives it; `query` is ready.
    pub(crate) fn score(&self, query: &[f32], id: u64) -> Option<Hit> {
        let row = *self.rows.get(&id)?;
        let mut score = 0.0;
        self.products(&[query], row..row + 1, |_, _, product| score = product);
        Some(Hit { id, score })
    }

    fn row(&self, row: usize) -> &[f32] {
        &self.blocks[row / BLOCK_ROWS][row % BLOCK_ROWS * self.stride..][..self.dims]
    }

    fn row_mut(&mut self, row: usize) -> &mut [f32] {
        &mut self.blocks[row / BLOCK_ROWS][row % BLOCK_ROWS * self.stride..][..self.dims]
    }

    /// The products of at most [`DOT_ROWS`] queries and rows of one block.
    fn products(&self, queries: &[&[f32]], rows: std::ops::Range<usize>, out: impl FnMut(usize, usize, f32)) {
        let (block, first) = (rows.start / BLOCK_ROWS, rows.start % BLOCK_ROWS);
        let matrix = Matrix { data: &self.blocks[block][..], stride: self.stride };
        self.cpu.dot_tile(queries.len(), |m| queries[m], matrix, first..first + rows.len(), out);
    }

    /// Offers a block's rows to the lists of some queries.
    fn scan(&self, block: usize, queries: &[(usize, Ready)], lists: &[Mutex<List>], top_k: usize) {
        let rows = block * BLOCK_ROWS..self.ids.len().min((block + 1) * BLOCK_ROWS);
        for (first, tile) in (0..).step_by(DOT_ROWS).zip(queries.chunks(DOT_ROWS)) {
            let xs: Vec<&[f32]> = tile.iter().map(|(_, query)| query.row.as_slice()).collect();
            let mut best = vec![List::new(top_k); tile.len()];
            for start in rows.clone().step_by(DOT_ROWS) {
                self.products(&xs, start..rows.end.min(start + DOT_ROWS), |m, n, score| {
                    let id = self.ids[start + n];
                    best[m].offer(Hit { id, score }, || tile[m].1.deny.binary_search(&id).is_err());
                });
            }
            for (list, best) in lists[first..].iter().zip(best) {
                list.lock().unwrap_or_else(PoisonError::into_inner).merge(best);
            }
        }
    }

    /// The best of an allow list.
    fn best_of(&self, query: &Ready, allow: &[u64], top_k: usize) -> Vec<Hit> {
        let mut allow = allow.to_vec();
        allow.sort_unstable();
        allow.dedup();
        let mut list = List::new(top_k);
        for id in allow.into_iter().filter(|id| query.deny.binary_search(id).is_err()) {
            if let Some(hit) = self.score(&query.row, id) {
                list.offer(hit, || true);
            }
        }
        list.into_hits()
    }

    fn ready(&self, n: usize, query: &Query) -> Result<Ready> {
        let name = format!("queries[{n}]");
        let factor = check_embedding(self.metric, self.dims, &name, query.embedding)?;
        let (mut row, mut deny) = (vec![0.0; self.dims], query.deny.to_vec());
        ready(factor, query.embedding, &mut row);
        deny.sort_unstable();
        Ok(Ready { row, deny })
    }

    /// One call's queries, at most [`QUERIES_AT_ONCE`].
    fn search_some(&self, queries: &[Query], ready: Vec<Ready>, top_k: usize, hits: &mut [Vec<Hit>]) {
        let (mut listed, mut open) = (Vec::new(), Vec::new());
        for (n, (query, ready)) in queries.iter().zip(ready).enumerate() {
            match query.allow {
                Some(allow) => listed.push((n, ready, allow)),
                None => open.push((n, ready)),
            }
        }
        let found: Vec<Mutex<Vec<Hit>>> = listed.iter().map(|_| Mutex::default()).collect();
        self.cpu.each(listed.len(), |i| {
            let (_, query, allow) = &listed[i];
            *found[i].lock().unwrap_or_else(PoisonError::into_inner) = self.best_of(query, allow, top_k);
        });
        for ((n, ..), found) in listed.iter().zip(found) {
            hits[*n] = found.into_inner().unwrap_or_else(PoisonError::into_inner);
        }
        if open.is_empty() {
            return;
        }
        let lists: Vec<Mutex<List>> = open.iter().map(|_| Mutex::new(List::new(top_k))).collect();
        self.cpu.each(self.ids.len().div_ceil(BLOCK_ROWS), |block| self.scan(block, &open, &lists, top_k));
        for ((n, _), list) in open.iter().zip(lists) {
            hits[*n] = list.into_inner().unwrap_or_else(PoisonError::into_inner).into_hits();
        }
    }
}

impl Index for Exact {
    fn dims(&self) -> usize {
        self.dims
    }

    fn metric(&self) -> Metric {
        self.metric
    }

    fn len(&self) -> usize {
        self.ids.len()
    }

    fn contains(&self, id: u64) -> bool {
        self.rows.contains_key(&id)
    }

    fn insert(&mut self, id: u64, embedding: &[f32]) -> Result<bool> {
        check_id(id)?;
        let factor = check_embedding(self.metric, self.dims, "embedding", embedding)?;
        let (row, replaced) = match self.rows.get(&id) {
            Some(&row) => (row, true),
            None => (self.ids.len(), false),
        };
        if !replaced {
            if row == self.blocks.len() * BLOCK_ROWS {
                self.blocks.push(Lines::zeroed(BLOCK_ROWS * self.stride));
            }
            self.ids.push(id);
            self.rows.insert(id, row);
        }
        ready(factor, embedding, self.row_mut(row));
        Ok(replaced)
    }

    fn remove(&mut self, id: u64) -> Result<bool> {
        let Some(row) = self.rows.remove(&id) else { return Ok(false) };
        let last = self.ids.len() - 1;
        if row != last {
            let moved = self.row(last).to_vec();
            self.row_mut(row).copy_from_slice(&moved);
            self.rows.insert(self.ids[last], row);
        }
        self.ids.swap_remove(row);
        // One spare block: an adapter that comes and goes at an edge allocates nothing.
        self.blocks.truncate(self.ids.len().div_ceil(BLOCK_ROWS) + 1);
        Ok(true)
    }

    fn search(&self, queries: &[Query], top_k: usize) -> Result<Vec<Vec<Hit>>> {
        let ready = queries.iter().enumerate().map(|(n, query)| self.ready(n, query));
        let mut ready = ready.collect::<Result<Vec<_>>>()?.into_iter();
        let mut hits = vec![Vec::new(); queries.len()];
        let top_k = top_k.min(self.ids.len());
        if top_k == 0 {
            return Ok(hits);
        }
        for (queries, hits) in queries.chunks(QUERIES_AT_ONCE).zip(hits.chunks_mut(QUERIES_AT_ONCE)) {
            self.search_some(queries, ready.by_ref().take(queries.len()).collect(), top_k, hits);
        }
        Ok(hits)
    }
}
