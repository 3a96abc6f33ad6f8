//! The CPU's pool: what a task takes of an adapter lies together. A is `[in_features, rank]`, so that ranks fill lanes; B
//! transposed lies in panels of columns, a row per rank, which do not fall onto the same places of a cache.

use super::kernels::ranks::Factor;
use super::shared::{SharedWords, Span};
use crate::adapter::{
    Lora,
    attention::Keys,
    slots::{PoolSizes, Put, Rows, Slot, Slots, pack},
    store::DevicePool,
};
use crate::element::{Element, ElementType};
use crate::error::{Error, Result};
use half::{bf16, f16};
use std::ops::Range;
use std::sync::Arc;

/// Columns of a panel of B.
pub(crate) const B_COLUMNS: usize = 64;

/// Adapters of one linear layer in host memory.
#[derive(Debug)]
pub struct Pool {
    slots: Slots,
    factors: Arc<Factors>,
}

/// A pool's memory, which a pool of its own has alone and a store's views share.
///
/// Why sharing it is right: a row is written by who has it alone, either a pool with its own books, of which there is one
/// and which is borrowed exclusively, or the holder of its [`Rows`], of which there is one too. A store's pool was taken
/// apart: its rows are read through views, which share the [`Rows`] of the adapters that they know, so that nobody has
/// them alone, and are asked for no row but those: plans of a view refuse other slots, and what reads all rows (the dense
/// form) refuses views. So nobody reads what is being written, with no lock on either side.
#[derive(Debug)]
pub struct Factors {
    pool: u64,
    sizes: PoolSizes,
    /// Columns of a row of B: the widest slice's.
    width: usize,
    /// An adapter's A is `[in_features, rank]`, where its rows of `[rank_capacity, in_features]` would lie.
    a: SharedWords,
    /// `[panels, rank_capacity, B_COLUMNS]`.
    b: SharedWords,
    attention: Option<Attention>,
}

/// A router adapter's A, and what scores the pool's adapters against it.
#[derive(Debug)]
pub(crate) struct Attention {
    keys: Keys,
    /// `[rank, in_features]`.
    a: Vec<f32>,
    /// `[rank_capacity, rank]`: a row of K for each row of the pool.
    k: SharedWords,
}

impl Attention {
    /// The router's rank.
    pub(crate) fn rank(&self) -> usize {
        self.keys.rank()
    }

    /// The router's A, `[rank, in_features]`.
    pub(crate) fn a(&self) -> &[f32] {
        &self.a
    }
}

impl Pool {
    /// An empty pool; its memory is taken now.
    pub fn new(sizes: PoolSizes) -> Result<Self> {
        Self::packed(sizes, &[sizes.out_features])
    }

    /// An empty pool whose output is made of slices of these widths: q, k and v, or gate and up.
    pub fn packed(sizes: PoolSizes, slices: &[usize]) -> Result<Self> {
        let slots = Slots::packed(sizes, slices)?;
        let [a, b] =
            strides(&slots).map(|s| SharedWords::zeroed(sizes.rank_capacity * s * sizes.element.bytes()));
        let (pool, width) = (slots.id(), slots.slice_width());
        Ok(Self { slots, factors: Arc::new(Factors { pool, sizes, width, a, b, attention: None }) })
    }

    /// A pool of `experts` live slots that hold nothing useful: a plan over base experts, which
    /// [`grouped`](crate::ops::grouped) products need, is made from it.
    pub fn markers(experts: usize) -> Result<Self> {
        let element = ElementType::F32;
        let sizes = PoolSizes { in_features: 1, out_features: 1, experts, rank_capacity: experts, element };
        let (mut pool, marker) = (Self::new(sizes)?, Lora::new(1, 1, 1, 1.0, &[0f32], &[0f32])?);
        (0..experts).try_for_each(|slot| pool.put(slot, &marker))?;
        Ok(pool)
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
        let k = self.factors.keys(&loras.iter().flatten().copied().collect::<Vec<_>>())?;
        let (at, loras): Put = self.slots.put(slot, loras)?;
        // SAFETY: rows that the books gave just now, of a pool that is no view and is borrowed exclusively.
        unsafe { self.factors.write(at, &loras, &k) };
        Ok(())
    }

    /// Makes the pool ready for [`attend`](crate::ops::attend): `router` is the adapter that scores the others, whose own
    /// scaling counts for nothing. The pool must be empty, not packed, and no view of a store.
    pub fn set_attention(&mut self, router: &Lora) -> Result<()> {
        let keys = Keys::new(&self.slots, router)?;
        let k = SharedWords::zeroed(self.slots.sizes().rank_capacity * keys.rank() * size_of::<f32>());
        let Some(factors) = Arc::get_mut(&mut self.factors) else {
            let expected = "a pool of its own (set the router before a store takes the layer)";
            return Err(Error::argument("pool", "pool", expected, "one that a store serves"));
        };
        factors.attention = Some(Attention { keys, a: router.a().collect(), k });
        Ok(())
    }

    /// What [`Self::set_attention`] made.
    pub(crate) fn attention(&self, op: &'static str) -> Result<&Attention> {
        let missing = || Error::argument(op, "pool", "a pool with attention (set_attention)", "one without");
        self.factors.attention.as_ref().ok_or_else(missing)
    }

    /// K of the adapter in a slot, `[its rank, the router's rank]`; nothing where the pool has no attention.
    pub(crate) fn keys(&self, slot: usize) -> &[f32] {
        let (Some(attention), Some(slot)) = (&self.factors.attention, self.slots.slots().get(slot)) else {
            return &[];
        };
        let rank = attention.rank();
        let rows = attention.k.span::<f32>().part(slot.row as usize * rank, slot.rank as usize * rank);
        // SAFETY: rows of an adapter that this pool's books hold, or share where it is a view: nobody writes them. See
        // `Factors`.
        unsafe { rows.as_slice() }
    }

    /// Empties a slot. Plans that name it are errors from now on.
    pub fn evict(&mut self, slot: usize) -> Result<()> {
        self.slots.evict(slot)
    }

    /// Bytes of B that columns of an output take, all adapters'; nothing of a packed pool, whose panels follow slices, or of
    /// a view, whose adapters' rows lie scattered.
    pub(crate) fn ahead(&self, columns: Range<usize>) -> Vec<&[u8]> {
        if self.slots.is_packed() || self.slots.is_view() {
            return Vec::new();
        }
        let columns = columns.start..columns.end.min(self.slots.sizes().out_features);
        let (used, element) = (self.slots.used_rows() * B_COLUMNS, self.slots.sizes().element);
        match element {
            ElementType::F32 => {
                self.whole_b_panels::<f32>(columns).map(|p| bytemuck::cast_slice(&p.1[..used])).collect()
            }
            _ => self.whole_b_panels::<f16>(columns).map(|p| bytemuck::cast_slice(&p.1[..used])).collect(),
        }
    }

    /// The A of the adapter in a slot.
    pub(crate) fn a<E: Element>(&self, slot: usize) -> Factor<'_, E> {
        let (inner, slot) = (self.slots.sizes().in_features, &self.slots.slots()[slot]);
        let rank = slot.rank as usize;
        Factor { data: self.factors.a.span().part(slot.row as usize * inner, rank * inner), inner, rank }
    }

    /// Columns of B transposed, as wide as the widest slice of the output, panel by panel: which of them, and the panel,
    /// `[rank_capacity, B_COLUMNS]`, that starts at a multiple of [`B_COLUMNS`].
    pub(crate) fn b_panels<E: Element>(
        &self,
        columns: Range<usize>,
    ) -> impl Iterator<Item = (Range<usize>, Span<'_, E>)> {
        let (len, empty) = (self.slots.sizes().rank_capacity * B_COLUMNS, columns.is_empty());
        let panels = columns.start / B_COLUMNS..columns.end.div_ceil(B_COLUMNS);
        panels.filter(move |_| !empty).map(move |panel| {
            let first = panel * B_COLUMNS;
            let own = columns.start.max(first)..columns.end.min(first + B_COLUMNS);
            (own, self.factors.b.span::<E>().part(panel * len, len))
        })
    }

    /// The same with every row to read; nothing of a view.
    pub(crate) fn whole_b_panels<E: Element>(
        &self,
        columns: Range<usize>,
    ) -> impl Iterator<Item = (Range<usize>, &[E])> {
        let columns = if self.slots.is_view() { 0..0 } else { columns };
        // SAFETY: a pool that is no view, borrowed: nobody writes its rows for as long as it is.
        self.b_panels(columns).map(|(own, panel)| (own, unsafe { panel.as_slice() }))
    }
}

impl Factors {
    /// The rows of K of what comes into the pool, which is not packed; none where it has no attention.
    fn keys(&self, loras: &[&Lora]) -> Result<Vec<f32>> {
        match (&self.attention, loras) {
            (Some(attention), [lora]) => attention.keys.rows(lora),
            _ => Ok(Vec::new()),
        }
    }

    /// Writes an adapter's LoRAs, which follow each other, to its rows.
    ///
    /// # Safety
    /// The rows are this memory's, and until this returns nobody else reads or writes them.
    unsafe fn write(&self, at: Slot, loras: &[&Lora], k: &[f32]) {
        // SAFETY: the caller's promise.
        unsafe {
            if let Some(attention) = &self.attention {
                attention.k.write(at.row as usize * attention.rank(), k);
            }
            match self.sizes.element {
                ElementType::F32 => self.write_as::<f32>(at, loras),
                ElementType::F16 => self.write_as::<f16>(at, loras),
                ElementType::Bf16 => self.write_as::<bf16>(at, loras),
            }
        }
    }

    unsafe fn write_as<E: Element>(&self, at: Slot, loras: &[&Lora]) {
        let inner = self.sizes.in_features;
        let (a, b) = pack::<E>(loras, inner, self.width);
        let rank = a.len() / inner;
        let mut lanes = vec![E::zeroed(); a.len()];
        for (r, row) in a.chunks(inner).enumerate() {
            lanes[r..].iter_mut().step_by(rank).zip(row).for_each(|(place, &v)| *place = v);
        }
        // SAFETY: the caller's promise.
        unsafe { self.a.write(at.row as usize * inner, &lanes) };
        for (r, values) in b.chunks(self.width).enumerate() {
            for (panel, values) in values.chunks(B_COLUMNS).enumerate() {
                let first = (panel * self.sizes.rank_capacity + at.row as usize + r) * B_COLUMNS;
                // SAFETY: a part of one of the caller's rows.
                unsafe { self.b.write(first, values) };
            }
        }
    }
}

impl DevicePool for Pool {
    type Factors = Arc<Factors>;

    fn slots(&self) -> &Slots {
        &self.slots
    }

    fn take_apart(self) -> (Slots, Arc<Factors>) {
        (self.slots, self.factors)
    }

    fn view(factors: &Arc<Factors>, slots: Slots) -> Result<Self> {
        slots.check_view_of(factors.pool)?;
        Ok(Self { slots, factors: factors.clone() })
    }

    fn check(_: &Arc<Factors>) -> Result<()> {
        Ok(())
    }

    fn fill(factors: &Arc<Factors>, rows: &mut Rows, loras: &[&Lora]) -> Result<()> {
        let ranks: usize = loras.iter().map(|lora| lora.rank()).sum();
        crate::ops::check_equal("pool", "ranks", rows.slot().rank as usize, ranks)?;
        rows.check_pool(factors.pool)?;
        let k = factors.keys(loras)?;
        // SAFETY: rows of this pool, as many as the LoRAs have; the exclusive borrow of their one right says that no view
        // shares it. See `Factors`.
        unsafe { factors.write(rows.slot(), loras, &k) };
        Ok(())
    }

    fn tell(_: &Arc<Factors>, _: &Slots, _: usize) -> Result<()> {
        Ok(())
    }

    fn row_bytes(slots: &Slots) -> usize {
        strides(slots).iter().sum::<usize>() * slots.sizes().element.bytes()
    }
}

/// Elements that a rank takes of A and of B.
fn strides(slots: &Slots) -> [usize; 2] {
    [slots.sizes().in_features, slots.slice_width().next_multiple_of(B_COLUMNS)]
}
