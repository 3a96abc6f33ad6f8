//! The CPU's pool: A as PEFT stores it, B transposed, one row per rank.

use super::memory::Lines;
use crate::adapter::{
    Lora,
    slots::{PoolSizes, Put, Slot, Slots, pack},
};
use crate::element::{Element, ElementType};
use crate::error::Result;
use half::{bf16, f16};

/// Adapters of one linear layer in host memory.
#[derive(Debug)]
pub struct Pool {
    slots: Slots,
    a: Words,
    b: Words,
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
        let a = Words::zeroed(sizes.rank_capacity * sizes.in_features, sizes.element);
        let b = Words::zeroed(sizes.rank_capacity * slots.slice_width(), sizes.element);
        Ok(Self { slots, a, b })
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
        let put = self.slots.put(slot, loras)?;
        match self.slots.sizes().element {
            ElementType::F32 => self.write::<f32>(put),
            ElementType::F16 => self.write::<f16>(put),
            ElementType::Bf16 => self.write::<bf16>(put),
        }
        Ok(())
    }

    /// Empties a slot. Plans that name it are errors from now on.
    pub fn evict(&mut self, slot: usize) -> Result<()> {
        self.slots.evict(slot)
    }

    fn write<E: Element>(&mut self, (at, loras): Put) {
        let (a_stride, b_stride) = (self.slots.sizes().in_features, self.slots.slice_width());
        let (a, b) = pack::<E>(&loras, a_stride, b_stride);
        let row = at.row as usize;
        self.a.all_mut::<E>()[row * a_stride..][..a.len()].copy_from_slice(&a);
        self.b.all_mut::<E>()[row * b_stride..][..b.len()].copy_from_slice(&b);
    }

    /// Row r of a slot's A, `[in_features]`.
    pub(crate) fn a_row<E: Element>(&self, slot: &Slot, r: usize) -> &[E] {
        let (row, width) = (slot.row as usize + r, self.slots.sizes().in_features);
        &self.a.all::<E>()[row * width..][..width]
    }

    /// Every row of A, `[rank_capacity, in_features]`.
    pub(crate) fn a_rows<E: Element>(&self) -> &[E] {
        &self.a.all::<E>()[..self.slots.sizes().rank_capacity * self.slots.sizes().in_features]
    }

    /// Every row of B transposed, `[rank_capacity, slice_width]`.
    pub(crate) fn b_rows<E: Element>(&self) -> &[E] {
        &self.b.all::<E>()[..self.slots.sizes().rank_capacity * self.slots.slice_width()]
    }
}
