//! Exact search on a GPU, by the router's kernels: embeddings are a router's rows, queries its tokens.
//!
//! ```text
//! for every block of rows   route(queries, rows, lists) -> the block's best      a launch; no score is written but theirs
//! the blocks' best -> the queries' lists                                         on the host
//! ```
//!
//! Ids ascend within a block and from block to block, so that the router's rule for ties, the lowest row, is the index's. A
//! block that changed goes to the device with the next search (1.5 MB of 384 columns), all others stay there. Lists become the
//! router's masks: rows that a query may not have are multiplied all the same, for which reason a short allow list is
//! searched faster by [`Exact`](super::Exact).

#[cfg(feature = "cuda")]
mod cuda;
#[cfg(feature = "wgpu")]
mod wgpu;

use super::list::List;
use super::{Hit, Index, Metric, OP, Query, check_embedding, check_id, ready};
use crate::adapter::LinearRouter;
use crate::device::status::Status;
use crate::error::{Error, Result};
use crate::layer::Place;
use crate::ops::route::{AllowLists, MAX_TOP_K, Rule, Sizes, Weighting};
use std::sync::{Mutex, PoisonError};

/// Most rows of a block.
const BLOCK_ROWS: usize = 1024;

/// Queries of a launch.
const QUERIES_AT_ONCE: usize = 256;

/// A GPU that routes: `Wgpu`, `Cuda`.
pub trait Routes: Place<Linear: Send> + Send + Sync {
    /// Its handle with a status word of its own.
    fn alone(&self) -> Result<Self>
    where
        Self: Sized;

    /// A router in the device's memory.
    fn place(&self, router: LinearRouter) -> Result<Self::Linear>;

    /// What was placed.
    fn placed(router: &Self::Linear) -> &LinearRouter;

    /// What its kernels saw since it was last asked; waits.
    fn seen(&self) -> Result<Status>;

    /// `topk_ids` and `topk_weights` of every part; waits.
    fn best(&self, parts: &[Part<Self::Linear>], x: &[f32]) -> Result<Vec<(Vec<i32>, Vec<f32>)>>;
}

/// A block's share of a search.
#[derive(Debug)]
pub struct Part<'a, R> {
    pub(crate) router: &'a R,
    pub(crate) sizes: Sizes,
    pub(crate) allow: Option<AllowLists>,
}

impl<R> Part<'_, R> {
    /// Elements of each output.
    pub(crate) fn routes(&self) -> usize {
        self.sizes.tokens * self.sizes.rule.width()
    }
}

/// An index that compares a query with every adapter, on a GPU. See the [module](self). At most 256 hits a query.
///
/// A search holds `8 top_k` bytes a query (256 at once) and block of 1,024 adapters on the device. Blocks that lose adapters stay, and a
/// launch each, until they are empty.
pub struct ExactOn<D: Routes> {
    device: D,
    metric: Metric,
    dims: usize,
    blocks: Mutex<Vec<Block<D::Linear>>>,
    len: usize,
}

struct Block<R> {
    /// Ascending, at least one.
    ids: Vec<u64>,
    rows: Rows<R>,
}

/// A block's embeddings, ready: in host memory since they changed, or placed.
enum Rows<R> {
    Changed(Vec<f32>),
    Placed(R),
}

impl<D: Routes> std::fmt::Debug for ExactOn<D> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ExactOn({} embeddings of {})", self.len, self.dims)
    }
}

impl<D: Routes> ExactOn<D> {
    /// An empty index of embeddings of `dims` elements, at least 1.
    pub fn new(device: &D, dims: usize, metric: Metric) -> Result<Self> {
        let most = i32::MAX as usize / BLOCK_ROWS;
        if dims == 0 || dims > most {
            return Err(Error::argument(OP, "dims", format!("1 to {most}"), dims));
        }
        Ok(Self { device: device.alone()?, metric, dims, blocks: Mutex::default(), len: 0 })
    }

    fn blocks_mut(&mut self) -> &mut Vec<Block<D::Linear>> {
        self.blocks.get_mut().unwrap_or_else(PoisonError::into_inner)
    }

    /// The block that has this id, or is to have it.
    fn block_of(blocks: &[Block<D::Linear>], id: u64) -> usize {
        blocks.partition_point(|block| block.ids[0] <= id).saturating_sub(1)
    }

    /// Some queries' hits over all blocks; `queries` are ready rows.
    fn search_some(&self, queries: &[Query], x: &[f32], top_k: usize) -> Result<Vec<Vec<Hit>>> {
        let mut blocks = self.blocks.lock().unwrap_or_else(PoisonError::into_inner);
        blocks.iter_mut().try_for_each(|block| block.place(&self.device, self.dims))?;
        let part = |block| Block::part(block, queries, self.dims, top_k);
        let parts = blocks.iter().map(part).collect::<Result<Vec<_>>>()?;
        let mut lists = vec![List::new(top_k); queries.len()];
        let found = self.device.best(&parts, x);
        // Taken in any case: the next search shall not hear of this one.
        let (seen, found) = (self.device.seen()?, found?);
        if !seen.is_ok() {
            // Checked embeddings have none.
            return Err(Error::argument(OP, "scores", "finite ones", seen));
        }
        for ((block, part), (rows, scores)) in blocks.iter().zip(&parts).zip(found) {
            let width = part.sizes.rule.width();
            for (n, (row, score)) in rows.into_iter().zip(scores).enumerate() {
                // -1: fewer may answer.
                let Ok(row) = usize::try_from(row) else { continue };
                lists[n / width].offer(Hit { id: block.ids[row], score }, || true);
            }
        }
        Ok(lists.into_iter().map(List::into_hits).collect())
    }
}

impl<R> Block<R> {
    /// The embeddings in host memory, to be changed.
    fn rows_mut<D: Routes<Linear = R>>(&mut self) -> &mut Vec<f32> {
        if let Rows::Placed(router) = &self.rows {
            self.rows = Rows::Changed(D::placed(router).weight().to_vec());
        }
        match &mut self.rows {
            Rows::Changed(rows) => rows,
            Rows::Placed(_) => unreachable!("taken back above"),
        }
    }

    /// Sends what changed.
    fn place<D: Routes<Linear = R>>(&mut self, device: &D, dims: usize) -> Result<()> {
        if let Rows::Changed(rows) = &self.rows {
            let router = LinearRouter::new(self.ids.len(), dims, rows, None)?;
            self.rows = Rows::Placed(device.place(router)?);
        }
        Ok(())
    }

    /// The call over a block that is placed.
    fn part(&self, queries: &[Query], dims: usize, top_k: usize) -> Result<Part<'_, R>> {
        let Rows::Placed(router) = &self.rows else { unreachable!("placed before a search") };
        let experts = self.ids.len();
        let rule = Rule::top_k(top_k.min(experts), Weighting::Score);
        let sizes = Sizes { tokens: queries.len(), in_features: dims, x_stride: dims, experts, rule };
        let open = queries.iter().all(|query| query.allow.is_none() && query.deny.is_empty());
        Ok(Part { router, sizes, allow: if open { None } else { Some(self.lists(queries)?) } })
    }

    /// The router's masks: every query is a request of one token.
    fn lists(&self, queries: &[Query]) -> Result<AllowLists> {
        let mut lists = AllowLists::new(self.ids.len());
        for query in queries {
            let mut deny = query.deny.to_vec();
            deny.sort_unstable();
            let may = |row: &usize| deny.binary_search(&self.ids[*row]).is_err();
            match query.allow {
                Some(allow) => {
                    let rows = allow.iter().filter_map(|id| self.ids.binary_search(id).ok());
                    lists.push(1, rows.filter(may))?;
                }
                None => lists.push(1, (0..self.ids.len()).filter(may))?,
            }
        }
        Ok(lists)
    }

    /// The upper half of a block's adapters.
    fn split_off<D: Routes<Linear = R>>(&mut self, dims: usize) -> Self {
        let half = self.ids.len() / 2;
        let rows = self.rows_mut::<D>().split_off(half * dims);
        Self { ids: self.ids.split_off(half), rows: Rows::Changed(rows) }
    }
}

impl<D: Routes> Index for ExactOn<D> {
    fn dims(&self) -> usize {
        self.dims
    }

    fn metric(&self) -> Metric {
        self.metric
    }

    fn len(&self) -> usize {
        self.len
    }

    fn contains(&self, id: u64) -> bool {
        let blocks = self.blocks.lock().unwrap_or_else(PoisonError::into_inner);
        blocks.get(Self::block_of(&blocks, id)).is_some_and(|block| block.ids.binary_search(&id).is_ok())
    }

    fn insert(&mut self, id: u64, embedding: &[f32]) -> Result<bool> {
        check_id(id)?;
        let factor = check_embedding(self.metric, self.dims, "embedding", embedding)?;
        let (dims, mut row) = (self.dims, vec![0.0; self.dims]);
        ready(factor, embedding, &mut row);
        let blocks = self.blocks_mut();
        let mut at = Self::block_of(blocks, id);
        let last = blocks.len().saturating_sub(1);
        match blocks.get_mut(at) {
            // Ids that come in order fill their blocks.
            Some(block) if block.ids.len() == BLOCK_ROWS && at == last && block.ids[BLOCK_ROWS - 1] < id => {
                blocks.push(Block { ids: vec![id], rows: Rows::Changed(row) });
                self.len += 1;
                return Ok(false);
            }
            Some(block) if block.ids.len() == BLOCK_ROWS && block.ids.binary_search(&id).is_err() => {
                let upper = block.split_off::<D>(dims);
                blocks.insert(at + 1, upper);
                at = Self::block_of(blocks, id);
            }
            Some(_) => {}
            None => blocks.push(Block { ids: Vec::new(), rows: Rows::Changed(Vec::new()) }),
        }
        let block = &mut blocks[at];
        match block.ids.binary_search(&id) {
            Ok(held) => block.rows_mut::<D>()[held * dims..][..dims].copy_from_slice(&row),
            Err(place) => {
                block.rows_mut::<D>().splice(place * dims..place * dims, row);
                block.ids.insert(place, id);
                self.len += 1;
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn remove(&mut self, id: u64) -> Result<bool> {
        let (dims, blocks) = (self.dims, self.blocks_mut());
        let at = Self::block_of(blocks, id);
        let Some(block) = blocks.get_mut(at) else { return Ok(false) };
        let Ok(row) = block.ids.binary_search(&id) else { return Ok(false) };
        block.rows_mut::<D>().drain(row * dims..(row + 1) * dims);
        block.ids.remove(row);
        if block.ids.is_empty() {
            blocks.remove(at);
        }
        self.len -= 1;
        Ok(true)
    }

    fn search(&self, queries: &[Query], top_k: usize) -> Result<Vec<Vec<Hit>>> {
        let mut x = vec![0.0; queries.len() * self.dims];
        for (n, (query, row)) in queries.iter().zip(x.chunks_mut(self.dims)).enumerate() {
            let factor = check_embedding(self.metric, self.dims, &format!("queries[{n}]"), query.embedding)?;
            ready(factor, query.embedding, row);
        }
        let top_k = top_k.min(self.len);
        if top_k > MAX_TOP_K {
            return Err(Error::argument(OP, "top_k", format!("at most {MAX_TOP_K} on a GPU"), top_k));
        }
        if top_k == 0 {
            return Ok(vec![Vec::new(); queries.len()]);
        }
        let parts = queries.chunks(QUERIES_AT_ONCE).zip(x.chunks(QUERIES_AT_ONCE * self.dims));
        let hits = parts.map(|(queries, x)| self.search_some(queries, x, top_k));
        Ok(hits.collect::<Result<Vec<_>>>()?.into_iter().flatten().collect())
    }
}
