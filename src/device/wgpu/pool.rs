//! The pool on a WebGPU device: one buffer per factor, and a table of slots whose address never changes.

use super::{Wgpu, padded_bytes};
use crate::adapter::{
    Lora,
    slots::{PoolSizes, Put, Slot, Slots, pack},
};
use crate::element::{Element, ElementType};
use crate::error::{Error, Result};
use half::{bf16, f16};

/// Rows start at whole 16-byte steps of the widest element's reader.
const ROW_STEP: usize = 8;

/// Adapters of one linear layer in device memory.
///
/// Changes go through the queue: they take effect before the commands of the next submission. A kernel that was
/// recorded with an older plan skips slots that changed since and sets the status word.
#[derive(Debug)]
pub struct Pool {
    slots: Slots,
    wgpu: Wgpu,
    table: wgpu::Buffer,
    a: wgpu::Buffer,
    b: wgpu::Buffer,
}

impl Pool {
    /// An empty pool; its memory is taken now.
    pub fn new(wgpu: &Wgpu, sizes: PoolSizes) -> Result<Self> {
        Self::packed(wgpu, sizes, &[sizes.out_features])
    }

    /// An empty pool whose output is made of slices of these widths: q, k and v, or gate and up.
    pub fn packed(wgpu: &Wgpu, sizes: PoolSizes, slices: &[usize]) -> Result<Self> {
        let slots = Slots::packed(sizes, slices)?;
        let factor = |label: &'static str, stride: usize| -> Result<wgpu::Buffer> {
            let bytes = (sizes.rank_capacity * stride * sizes.element.bytes()) as u64;
            let most = wgpu.limits().max_storage_buffer_binding_size;
            if bytes > most {
                let expected = format!("at most the device's binding limit of {most} bytes");
                return Err(Error::argument("pool", label, expected, format!("{bytes} bytes")));
            }
            wgpu.storage(label, bytes)
        };
        let a = factor("lora_a", sizes.in_features.next_multiple_of(ROW_STEP))?;
        let b = factor("lora_b", slots.slice_width().next_multiple_of(ROW_STEP))?;
        let table = wgpu.storage("slots", (slots.table_len() * size_of::<Slot>()) as u64)?;
        Ok(Self { slots, wgpu: wgpu.clone(), table, a, b })
    }

    /// The device whose memory it is.
    pub(crate) fn wgpu(&self) -> &Wgpu {
        &self.wgpu
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
        self.wgpu.alive()?;
        let put = self.slots.put(slot, loras)?;
        match self.slots.sizes().element {
            ElementType::F32 => self.write::<f32>(put),
            ElementType::F16 => self.write::<f16>(put),
            ElementType::Bf16 => self.write::<bf16>(put),
        }
        self.write_slot(slot);
        Ok(())
    }

    /// Empties a slot. Kernels recorded with an older plan skip it and set the status word.
    pub fn evict(&mut self, slot: usize) -> Result<()> {
        self.slots.evict(slot)?;
        self.write_slot(slot);
        Ok(())
    }

    fn write<E: Element>(&self, (at, loras): Put) {
        let (a, b) = pack::<E>(&loras, self.a_stride(), self.b_stride());
        let write = |buffer: &wgpu::Buffer, stride: usize, rows: &[E]| {
            let offset = at.row as usize * stride * size_of::<E>();
            self.wgpu.queue().write_buffer(buffer, offset as u64, &padded_bytes(rows));
        };
        write(&self.a, self.a_stride(), &a);
        write(&self.b, self.b_stride(), &b);
    }

    fn write_slot(&self, slot: usize) {
        for (at, entry) in self.slots.table_entries(slot) {
            let offset = (at * size_of::<Slot>()) as u64;
            self.wgpu.queue().write_buffer(&self.table, offset, bytemuck::bytes_of(&entry));
        }
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
    pub(crate) fn a(&self) -> &wgpu::Buffer {
        &self.a
    }

    /// B transposed, `[rank_capacity, b_stride]`.
    pub(crate) fn b(&self) -> &wgpu::Buffer {
        &self.b
    }

    /// The slots, and the parts behind them; see `Slots::table_slice`.
    pub(crate) fn table(&self) -> &wgpu::Buffer {
        &self.table
    }

    /// Slots that hold an adapter.
    pub(crate) fn live(&self) -> usize {
        self.slots.slots().iter().filter(|s| s.rank > 0).count()
    }
}
