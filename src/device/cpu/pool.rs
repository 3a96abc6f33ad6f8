//! The CPU's pool: A, and B transposed, one row per rank, both in panels of columns: what a task takes of an adapter lies
//! together, and rows do not fall onto the same places of a cache.

use super::kernels::dot::{INNER, Matrix};
use super::memory::Lines;
use crate::adapter::{
    Lora,
    attention::Keys,
    slots::{PoolSizes, Put, Slots, pack},
};
use crate::element::{Element, ElementType};
use crate::error::{Error, Result};
use half::{bf16, f16};
use std::ops::Range;

/// Columns of a panel of B.
pub(crate) const B_COLUMNS: usize = 64;

/// Adapters of one linear layer in host memory.
#[derive(Debug)]
pub struct Pool {
    slots: Slots,
    /// `[blocks, rank_capacity, INNER]`; one block of whole rows where they are shorter.
    a: Words,
    /// `[panels, rank_capacity, B_COLUMNS]`.
    b: Words,
    attention: Option<Attention>,
}

/// A router adapter's A, and what scores the pool's adapters against it.
#[derive(Debug)]
pub(crate) struct Attention {
    keys: Keys,
    /// `[rank, in_features]`.
    a: Vec<f32>,
    /// `[rank_capacity, rank]`: a row of K for each row of the pool.
    k: Vec<f32>,
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

    /// K of an adapter's rows.
    pub(crate) fn k(&self, rows: Range<usize>) -> &[f32] {
        &self.k[rows.start * self.rank()..rows.end * self.rank()]
    }
}

/// Memory of one element type, aligned for all of them.
#[derive(Debug)]
struct Words(Lines<u32>);

impl Words {
    fn zeroed(elements: usize, element: ElementType) -> Self {
        Self(Lines::zeroed((elements * element.bytes()).div_ceil(4)))
    }
    fn all<E: Element>(&self) -> &[E] {
        bytemuck::cast_slice(&self.0)
    }
    fn all_mut<E: Element>(&mut self) -> &mut [E] {
        bytemuck::cast_slice_mut(&mut self.0)
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
        let a = Words::zeroed(
            sizes.rank_capacity * sizes.in_features.next_multiple_of(a_block(&sizes)),
            sizes.element,
        );
        let width = slots.slice_width().next_multiple_of(B_COLUMNS);
        let b = Words::zeroed(sizes.rank_capacity * width, sizes.element);
        Ok(Self { slots, a, b, attention: None })
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
        let k = Keys::of(self.attention.as_ref().map(|a| &a.keys), loras)?;
        let put = self.slots.put(slot, loras)?;
        if let (Some(attention), Some(k)) = (&mut self.attention, k) {
            attention.k[put.0.row as usize * attention.keys.rank()..][..k.len()].copy_from_slice(&k);
        }
        match self.slots.sizes().element {
            ElementType::F32 => self.write::<f32>(put),
            ElementType::F16 => self.write::<f16>(put),
            ElementType::Bf16 => self.write::<bf16>(put),
        }
        Ok(())
    }

    /// Makes the pool ready for [`attend`](crate::ops::attend): `router` is the adapter that scores the others, whose own
    /// scaling counts for nothing. The pool must be empty, and not packed.
    pub fn set_attention(&mut self, router: &Lora) -> Result<()> {
        let keys = Keys::new(&self.slots, router)?;
        let k = vec![0.0; self.slots.sizes().rank_capacity * keys.rank()];
        self.attention = Some(Attention { keys, a: router.a().collect(), k });
        Ok(())
    }

    /// What [`Self::set_attention`] made.
    pub(crate) fn attention(&self, op: &'static str) -> Result<&Attention> {
        let missing = || Error::argument(op, "pool", "a pool with attention (set_attention)", "one without");
        self.attention.as_ref().ok_or_else(missing)
    }

    /// Empties a slot. Plans that name it are errors from now on.
    pub fn evict(&mut self, slot: usize) -> Result<()> {
        self.slots.evict(slot)
    }

    fn write<E: Element>(&mut self, (at, loras): Put) {
        let (a_stride, b_stride) = (self.slots.sizes().in_features, self.slots.slice_width());
        let (a, b) = pack::<E>(&loras, a_stride, b_stride);
        let (row, rows) = (at.row as usize, self.slots.sizes().rank_capacity);
        put_panels::<E>(self.a.all_mut(), a_block(self.slots.sizes()), (row, rows), a.chunks(a_stride));
        put_panels::<E>(self.b.all_mut(), B_COLUMNS, (row, rows), b.chunks(b_stride));
    }

    /// Bytes of B that columns of an output take, all adapters'; nothing of a packed pool, whose panels follow slices.
    pub(crate) fn ahead(&self, columns: Range<usize>) -> Vec<&[u8]> {
        if self.slots.is_packed() {
            return Vec::new();
        }
        let columns = columns.start..columns.end.min(self.slots.sizes().out_features);
        let (used, element) = (self.slots.used_rows() * B_COLUMNS, self.slots.sizes().element);
        match element {
            ElementType::F32 => {
                self.b_panels::<f32>(columns).map(|p| bytemuck::cast_slice(&p.1[..used])).collect()
            }
            _ => self.b_panels::<f16>(columns).map(|p| bytemuck::cast_slice(&p.1[..used])).collect(),
        }
    }

    /// Every row of A.
    pub(crate) fn a_matrix<E: Element>(&self) -> Matrix<'_, E> {
        let row = a_block(self.slots.sizes());
        Matrix { data: self.a.all(), row, block: self.slots.sizes().rank_capacity * row }
    }

    /// Columns of B transposed, as wide as the widest slice of the output, panel by panel: which of them, and the panel,
    /// `[rank_capacity, B_COLUMNS]`, that starts at a multiple of [`B_COLUMNS`].
    pub(crate) fn b_panels<E: Element>(
        &self,
        columns: Range<usize>,
    ) -> impl Iterator<Item = (Range<usize>, &[E])> {
        let (len, empty) = (self.slots.sizes().rank_capacity * B_COLUMNS, columns.is_empty());
        let panels = columns.start / B_COLUMNS..columns.end.div_ceil(B_COLUMNS);
        panels.filter(move |_| !empty).map(move |panel| {
            let first = panel * B_COLUMNS;
            let own = columns.start.max(first)..columns.end.min(first + B_COLUMNS);
            (own, &self.b.all::<E>()[panel * len..][..len])
        })
    }
}

/// Elements of a row of A in one block.
fn a_block(sizes: &PoolSizes) -> usize {
    sizes.in_features.min(INNER)
}

/// Writes rows from `row` on into panels of `width` columns and `rows` rows.
fn put_panels<'a, E: Element>(
    panels: &mut [E],
    width: usize,
    (row, rows): (usize, usize),
    from: impl Iterator<Item = &'a [E]>,
) {
    for (r, values) in from.enumerate() {
        for (panel, values) in values.chunks(width).enumerate() {
            panels[(panel * rows + row + r) * width..][..values.len()].copy_from_slice(values);
        }
    }
}
