//! The pool on a CUDA device: one buffer per factor, and the clock and a table of slots whose addresses never change.

use super::{Cuda, Memory};
use crate::adapter::{
    Lora,
    attention::Keys,
    slots::{PoolSizes, Put, Slot, Slots, pack},
};
use crate::element::{Element, ElementType};
use crate::error::{Error, Result};
use half::{bf16, f16};

const OP: &str = "pool";

/// Rows start at whole 16-byte steps: 8 elements of 2 bytes.
const ROW_STEP: usize = 8;

/// The table behind the clock starts at a multiple of its slots' 16 bytes.
const CLOCK_WORDS: usize = 4;

/// Adapters of one linear layer in device memory.
///
/// Changes are copies on the stream: they take effect behind the work enqueued so far and before what comes, replayed graphs
/// included. A kernel with an older plan skips slots that changed since and sets the status word. The factors may be freed on
/// return: the driver stages them, for which a large one may hold up the host until the stream gets there.
#[derive(Debug)]
pub struct Pool {
    slots: Slots,
    cuda: Cuda,
    /// The clock, then the slots.
    table: Memory<u32>,
    a: Memory<u8>,
    b: Memory<u8>,
    reserved_rank: usize,
    attention: Option<Attention>,
}

/// A router adapter's A, and what scores the pool's adapters against it.
#[derive(Debug)]
pub(crate) struct Attention {
    keys: Keys,
    /// `[rank, a_stride]`, rows at multiples of 16 bytes.
    pub(crate) a: Memory<f32>,
    /// `[rank_capacity, rank]`: a row of K for each row of the pool.
    pub(crate) k: Memory<f32>,
}

impl Attention {
    /// The router's rank.
    pub(crate) fn rank(&self) -> usize {
        self.keys.rank()
    }
}

impl Pool {
    /// An empty pool; its memory is taken now.
    pub fn new(cuda: &Cuda, sizes: PoolSizes) -> Result<Self> {
        Self::packed(cuda, sizes, &[sizes.out_features])
    }

    /// An empty pool whose output is made of slices of these widths: q, k and v, or gate and up.
    pub fn packed(cuda: &Cuda, sizes: PoolSizes, slices: &[usize]) -> Result<Self> {
        cuda.check_not_capturing(OP)?;
        let slots = Slots::packed(sizes, slices)?;
        let factor = |width: usize| {
            let stride = width.next_multiple_of(ROW_STEP) * sizes.element.bytes();
            cuda.bind()?;
            Memory::zeroed_on(cuda.stream(), (sizes.rank_capacity * stride).max(1))
                .map_err(|e| cuda.failed("pool", e))
        };
        // Zeros: products over all rows multiply those that no adapter holds by 0.
        let (a, b) = (factor(sizes.in_features)?, factor(slots.slice_width())?);
        let words = CLOCK_WORDS + slots.table_len() * size_of::<Slot>() / 4;
        cuda.bind()?;
        let table = Memory::zeroed_on(cuda.stream(), words).map_err(|e| cuda.failed("pool", e))?;
        Ok(Self { slots, cuda: cuda.clone(), table, a, b, reserved_rank: 0, attention: None })
    }

    /// A pool of `experts` live slots that hold nothing useful: a plan over base experts, which
    /// [`grouped`](crate::ops::grouped) products need, is made from it.
    pub fn markers(cuda: &Cuda, experts: usize) -> Result<Self> {
        let element = ElementType::F32;
        let sizes = PoolSizes { in_features: 1, out_features: 1, experts, rank_capacity: experts, element };
        let (mut pool, marker) = (Self::new(cuda, sizes)?, Lora::new(1, 1, 1, 1.0, &[0f32], &[0f32])?);
        (0..experts).try_for_each(|slot| pool.put(slot, &marker))?;
        Ok(pool)
    }

    /// Launches are made for ranks up to this, whatever the pool holds: for graphs that are captured before the adapters come.
    /// What is larger still is skipped by a replay, with a bit in the status word.
    pub fn reserve_rank(&mut self, rank: usize) -> Result<()> {
        let most = self.slots.sizes().rank_capacity;
        if rank > most {
            return Err(Error::argument(OP, "rank", format!("at most the pool's {most} ranks"), rank));
        }
        self.reserved_rank = rank;
        Ok(())
    }

    /// The largest rank that launches are made for: of the adapters here, or as reserved.
    pub fn max_rank(&self) -> usize {
        self.slots.max_rank().max(self.reserved_rank)
    }

    /// Refuses a handle of another stream, whose work would not be ordered with the pool's.
    pub(crate) fn check_stream(&self, op: &'static str, cuda: &Cuda) -> Result<()> {
        if self.cuda.shares_stream(cuda) {
            return Ok(());
        }
        Err(Error::argument(op, "pool", "a pool of this stream", "one of another stream"))
    }

    /// Slots, free ranks and the clock.
    pub fn slots(&self) -> &Slots {
        &self.slots
    }

    /// Puts an adapter into the lowest empty slot and returns its id.
    pub fn add(&mut self, lora: &Lora) -> Result<usize> {
        let slot = self.slots.first_empty()?;
        self.put(slot, lora)?;
        Ok(slot)
    }

    /// Puts an adapter into an empty slot.
    pub fn put(&mut self, slot: usize, lora: &Lora) -> Result<()> {
        self.put_packed(slot, &[Some(lora)])
    }

    /// Puts an adapter's LoRAs for every slice of the output into an empty slot; `None` leaves a slice alone.
    pub fn put_packed(&mut self, slot: usize, loras: &[Option<&Lora>]) -> Result<()> {
        self.cuda.check_not_capturing(OP)?;
        let k = Keys::of(self.attention.as_ref().map(|a| &a.keys), loras)?;
        let put = self.slots.put(slot, loras)?;
        if let (Some(attention), Some(k)) = (&self.attention, k) {
            let before = put.0.row as u64 * attention.rank() as u64 * 4;
            self.cuda.copy_to(attention.k.address() + before, &k)?;
        }
        match self.slots.sizes().element {
            ElementType::F32 => self.write::<f32>(put),
            ElementType::F16 => self.write::<f16>(put),
            ElementType::Bf16 => self.write::<bf16>(put),
        }?;
        self.write_slot(slot)
    }

    /// Makes the pool ready for [`attend`](crate::ops::attend): `router` is the adapter that scores the others, whose own
    /// scaling counts for nothing. The pool must be empty, and not packed. A router that was set before is freed: a graph
    /// that was captured with it must not be replayed again.
    pub fn set_attention(&mut self, router: &Lora) -> Result<()> {
        self.cuda.check_not_capturing(OP)?;
        let keys = Keys::new(&self.slots, router)?;
        let (columns, stride) = (self.slots.sizes().in_features, self.a_stride());
        let mut rows = vec![0f32; keys.rank() * stride];
        router.a().enumerate().for_each(|(i, v)| rows[i / columns * stride + i % columns] = v);
        let a = Memory::of(&self.cuda, self.cuda.upload(&rows)?)?;
        let k = Memory::new(&self.cuda, keys.rank() * self.slots.sizes().rank_capacity)?;
        self.attention = Some(Attention { keys, a, k });
        Ok(())
    }

    /// What [`Self::set_attention`] made.
    pub(crate) fn attention(&self, op: &'static str) -> Result<&Attention> {
        let missing = || Error::argument(op, "pool", "a pool with attention (set_attention)", "one without");
        self.attention.as_ref().ok_or_else(missing)
    }

    /// Empties a slot. Kernels with an older plan skip it and set the status word.
    pub fn evict(&mut self, slot: usize) -> Result<()> {
        self.cuda.check_not_capturing(OP)?;
        self.slots.evict(slot)?;
        self.write_slot(slot)
    }

    fn write<E: Element>(&self, (at, loras): Put) -> Result<()> {
        let (a, b) = pack::<E>(&loras, self.a_stride(), self.b_stride());
        let row = |memory: &Memory<u8>, stride: usize| {
            memory.address() + (at.row as usize * stride * size_of::<E>()) as u64
        };
        self.cuda.copy_to(row(&self.a, self.a_stride()), &a)?;
        self.cuda.copy_to(row(&self.b, self.b_stride()), &b)
    }

    /// The clock goes last: no plan may have it and not the slot.
    fn write_slot(&self, slot: usize) -> Result<()> {
        for (at, entry) in self.slots.table_entries(slot) {
            self.cuda.copy_to(self.table() + (at * size_of::<Slot>()) as u64, &[entry])?;
        }
        self.cuda.copy_to(self.clock(), &[self.slots.epoch()])
    }

    /// Elements from one row of A to the next.
    pub(crate) fn a_stride(&self) -> usize {
        self.slots.sizes().in_features.next_multiple_of(ROW_STEP)
    }

    /// Elements from one row of B transposed to the next.
    pub(crate) fn b_stride(&self) -> usize {
        self.slots.slice_width().next_multiple_of(ROW_STEP)
    }

    /// A, `[rank_capacity, a_stride]`.
    pub(crate) fn a(&self) -> u64 {
        self.a.address()
    }

    /// B transposed, `[rank_capacity, b_stride]`.
    pub(crate) fn b(&self) -> u64 {
        self.b.address()
    }

    /// The clock's word.
    pub(crate) fn clock(&self) -> u64 {
        self.table.address()
    }

    /// The slots, and the parts behind them; see `Slots::table_slice`.
    pub(crate) fn table(&self) -> u64 {
        self.table.address() + CLOCK_WORDS as u64 * 4
    }

    /// Slots that hold an adapter.
    pub(crate) fn live(&self) -> usize {
        self.slots.slots().iter().filter(|s| s.rank > 0).count()
    }
}
