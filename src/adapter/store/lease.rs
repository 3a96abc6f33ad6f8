//! What a store lends: adapters that stay where they are for as long as they are held.

use super::{DevicePool, Inner, OP};
use crate::adapter::slots::Rows;
use crate::error::{Error, Result};
use crate::layer::{MoeLora, Place};
use std::sync::Arc;

/// An adapter in the device's memory. Its rows are free again when nobody else holds it: leases and the layers made from
/// them do, by counting.
#[derive(Debug)]
pub(super) struct Resident {
    pub(super) key: Arc<str>,
    pub(super) slot: usize,
    pub(super) generation: u64,
    pub(super) bytes: u64,
    /// Of every layer's pool, where the adapter changes the layer.
    pub(super) rows: Vec<Option<Rows>>,
}

/// Adapters held in the device's memory, in the order in which they were asked for.
///
/// Neither evicted nor moved while the lease, or a layer made from it, lives. When it may be dropped:
///
/// - CPU: whenever you like; the calls end before they return, and a layer holds what it reads by itself.
/// - WebGPU: after `queue.submit` of the commands that were recorded with its layers. Whatever is uploaded later is behind
///   them in the queue. Dropped earlier, commands whose adapters left meanwhile skip them and set the status word.
/// - CUDA: after the calls returned, which enqueue; uploads that take its place go to the same stream, behind them. For a
///   captured graph: hold it through every launch of the graph.
///
/// Dropping takes no lock and waits for nothing.
pub struct Lease<D: Place<Pool: DevicePool>> {
    pub(super) inner: Arc<Inner<D>>,
    /// Each adapter once.
    pub(super) residents: Vec<Arc<Resident>>,
    /// For each key asked for, which of them.
    pub(super) order: Vec<usize>,
}

impl<D: Place<Pool: DevicePool>> std::fmt::Debug for Lease<D> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list()
            .entries(self.order.iter().map(|&i| (&self.residents[i].key, self.residents[i].slot)))
            .finish()
    }
}

impl<D: Place<Pool: DevicePool> + Clone> Lease<D> {
    /// Keys that were asked for.
    pub fn len(&self) -> usize {
        self.order.len()
    }

    /// No key was asked for.
    pub fn is_empty(&self) -> bool {
        self.order.is_empty()
    }

    /// The slot of the `i`-th key, the same in every layer.
    pub fn slot(&self, i: usize) -> Result<usize> {
        Ok(self.resident(i)?.slot)
    }

    /// Which version of the `i`-th key it is: what [`Store::register`](super::Store::register) or
    /// [`Store::replace`](super::Store::replace) returned.
    pub fn generation(&self, i: usize) -> Result<u64> {
        Ok(self.resident(i)?.generation)
    }

    /// What `topk_ids` of a layer say for the `i`-th key: its slot, or -1 where the adapter leaves the layer alone.
    pub fn id(&self, i: usize, layer: usize) -> Result<i32> {
        self.inner.layer(layer)?;
        let resident = self.resident(i)?;
        Ok(resident.rows[layer].as_ref().map_or(-1, |_| resident.slot as i32))
    }

    /// A layer to run with these adapters. It knows no others: their ids are refused (CPU), or skipped with a bit in the status
    /// word (GPUs), and neither workspace nor form depend on what else is in the pool. Its ids are given
    /// ([`Router::External`](crate::Router::External), or [`Router::RankAttention`](crate::Router::RankAttention) where the layer
    /// has that); a layer's own linear router fills them by [`Store::layer`](super::Store::layer)'s `route`. It may be kept and used from any thread, and holds its adapters like the lease.
    ///
    /// Costs a copy of the slots, 16 bytes each.
    pub fn layer(&self, layer: usize) -> Result<MoeLora<D>> {
        let served = self.inner.layer(layer)?;
        let books =
            served.template.pool().slots().view(&self.residents, |r: &Resident| r.rows[layer].as_ref())?;
        Ok(served.template.over(D::Pool::view(&served.factors, books)?))
    }

    fn resident(&self, i: usize) -> Result<&Resident> {
        let at = self
            .order
            .get(i)
            .ok_or_else(|| Error::argument(OP, "lease", format!("a key below {}", self.order.len()), i))?;
        Ok(&self.residents[*at])
    }
}
