//! The pool on a WebGPU device: one buffer per factor; the table of slots lies before B, so that kernels which need both
//! bind one buffer.

use super::{Wgpu, padded_bytes};
use crate::adapter::{
    Lora,
    attention::Keys,
    slots::{PoolSizes, Put, Slot, Slots, pack},
};
use crate::element::{Element, ElementType};
use crate::error::{Error, Result};
use half::{bf16, f16};

/// Rows start at whole 16-byte steps of the widest element's reader.
const ROW_STEP: usize = 8;
/// The largest alignment that a device may demand of a binding's offset.
const OFFSET_STEP: usize = 256;

/// Adapters of one linear layer in device memory.
///
/// Changes go through the queue: they take effect before the commands of the next submission. A kernel that was
/// recorded with an older plan skips slots that changed since and sets the status word.
#[derive(Debug)]
pub struct Pool {
    slots: Slots,
    wgpu: Wgpu,
    a: wgpu::Buffer,
    /// The table, then B.
    b: wgpu::Buffer,
    attention: Option<Attention>,
}

/// A router adapter's A, and what scores the pool's adapters against it.
#[derive(Debug)]
pub(crate) struct Attention {
    keys: Keys,
    /// `[rank, a_stride]`.
    pub(crate) a: wgpu::Buffer,
    /// `[rank_capacity, rank]`: a row of K for each row of the pool.
    pub(crate) k: wgpu::Buffer,
}

impl Attention {
    /// The router's rank.
    pub(crate) fn rank(&self) -> usize {
        self.keys.rank()
    }
}

impl Pool {
    /// An empty pool; its memory is taken now.
    pub fn new(wgpu: &Wgpu, sizes: PoolSizes) -> Result<Self> {
        Self::packed(wgpu, sizes, &[sizes.out_features])
    }

    /// An empty pool whose output is made of slices of these widths: q, k and v, or gate and up.
    pub fn packed(wgpu: &Wgpu, sizes: PoolSizes, slices: &[usize]) -> Result<Self> {
        let slots = Slots::packed(sizes, slices)?;
        let factor = |label: &'static str, before: usize, stride: usize| -> Result<wgpu::Buffer> {
            let bytes = (before + sizes.rank_capacity * stride * sizes.element.bytes()) as u64;
            let most = wgpu.limits().max_storage_buffer_binding_size;
            if bytes > most {
                let expected = format!("at most the device's binding limit of {most} bytes");
                return Err(Error::argument("pool", label, expected, format!("{bytes} bytes")));
            }
            wgpu.storage(label, bytes)
        };
        let a = factor("lora_a", 0, sizes.in_features.next_multiple_of(ROW_STEP))?;
        let b = factor("lora_b", table_bytes(&slots), slots.slice_width().next_multiple_of(ROW_STEP))?;
        Ok(Self { slots, wgpu: wgpu.clone(), a, b, attention: None })
    }

    /// A pool of `experts` live slots that hold nothing useful: a plan over base experts, which
    /// [`grouped`](crate::ops::grouped) products need, is made from it.
    pub fn markers(wgpu: &Wgpu, experts: usize) -> Result<Self> {
        let element = ElementType::F32;
        let sizes = PoolSizes { in_features: 1, out_features: 1, experts, rank_capacity: experts, element };
        let (mut pool, marker) = (Self::new(wgpu, sizes)?, Lora::new(1, 1, 1, 1.0, &[0f32], &[0f32])?);
        (0..experts).try_for_each(|slot| pool.put(slot, &marker))?;
        Ok(pool)
    }

    /// Refuses a pool of another device, whose buffers this one cannot bind.
    pub(crate) fn check_device(&self, op: &'static str, wgpu: &Wgpu) -> Result<()> {
        if self.wgpu.shares_device(wgpu) {
            return Ok(());
        }
        let expected = format!("a pool on {}", wgpu.describe());
        Err(Error::argument(op, "pool", expected, "one of another device"))
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
        let k = Keys::of(self.attention.as_ref().map(|a| &a.keys), loras)?;
        let put = self.slots.put(slot, loras)?;
        if let (Some(attention), Some(k)) = (&self.attention, k) {
            let offset = put.0.row as u64 * attention.rank() as u64 * 4;
            self.wgpu.queue().write_buffer(&attention.k, offset, bytemuck::cast_slice(&k));
        }
        match self.slots.sizes().element {
            ElementType::F32 => self.write::<f32>(put),
            ElementType::F16 => self.write::<f16>(put),
            ElementType::Bf16 => self.write::<bf16>(put),
        }
        self.write_slot(slot);
        Ok(())
    }

    /// Makes the pool ready for [`attend`](crate::ops::attend): `router` is the adapter that scores the others, whose own
    /// scaling counts for nothing. The pool must be empty, and not packed.
    pub fn set_attention(&mut self, router: &Lora) -> Result<()> {
        let keys = Keys::new(&self.slots, router)?;
        let (columns, stride) = (self.slots.sizes().in_features, self.a_stride());
        let mut rows = vec![0f32; keys.rank() * stride];
        router.a().enumerate().for_each(|(i, v)| rows[i / columns * stride + i % columns] = v);
        let k = keys.rank() * self.slots.sizes().rank_capacity;
        let most = self.wgpu.limits().max_storage_buffer_binding_size;
        let bytes = rows.len().max(k) as u64 * 4;
        if bytes > most {
            let expected = format!("factors of at most the device's binding limit of {most} bytes");
            return Err(Error::argument("pool", "router.rank", expected, format!("{bytes} bytes")));
        }
        let (a, k) = (self.wgpu.upload(&rows)?, self.wgpu.storage("keys", k as u64 * 4)?);
        self.attention = Some(Attention { keys, a, k });
        Ok(())
    }

    /// What [`Self::set_attention`] made.
    pub(crate) fn attention(&self, op: &'static str) -> Result<&Attention> {
        let missing = || Error::argument(op, "pool", "a pool with attention (set_attention)", "one without");
        self.attention.as_ref().ok_or_else(missing)
    }

    /// Empties a slot. Kernels recorded with an older plan skip it and set the status word.
    pub fn evict(&mut self, slot: usize) -> Result<()> {
        self.slots.evict(slot)?;
        self.write_slot(slot);
        Ok(())
    }

    fn write<E: Element>(&self, (at, loras): Put) {
        let (a, b) = pack::<E>(&loras, self.a_stride(), self.b_stride());
        let write = |buffer: &wgpu::Buffer, before: usize, stride: usize, rows: &[E]| {
            let offset = before + at.row as usize * stride * size_of::<E>();
            self.wgpu.queue().write_buffer(buffer, offset as u64, &padded_bytes(rows));
        };
        write(&self.a, 0, self.a_stride(), &a);
        write(&self.b, self.table_bytes(), self.b_stride(), &b);
    }

    fn write_slot(&self, slot: usize) {
        for (at, entry) in self.slots.table_entries(slot) {
            let offset = (at * size_of::<Slot>()) as u64;
            self.wgpu.queue().write_buffer(&self.b, offset, bytemuck::bytes_of(&entry));
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

    /// The table, then from [`Self::table_bytes`] on B transposed, `[rank_capacity, b_stride]`.
    pub(crate) fn table_and_b(&self) -> &wgpu::Buffer {
        &self.b
    }

    /// Bytes before B: the slots, and the parts behind them; see `Slots::table_slice`.
    pub(crate) fn table_bytes(&self) -> usize {
        table_bytes(&self.slots)
    }

    /// Slots that hold an adapter.
    pub(crate) fn live(&self) -> usize {
        self.slots.slots().iter().filter(|s| s.rank > 0).count()
    }
}

fn table_bytes(slots: &Slots) -> usize {
    (slots.table_len() * size_of::<Slot>()).next_multiple_of(OFFSET_STEP)
}
