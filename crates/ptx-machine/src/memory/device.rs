//! Global memory: allocations with their contents and which bytes were written.

use std::collections::VecDeque;

use super::shadow::{PAGE, Page};
use super::trouble;
use crate::fault::{Kind, Trouble};

/// The first address.
const START: u64 = 0x7_0000_0000;
/// Addresses between allocations that belong to no one.
const GAP: u64 = 64 << 10;
/// Freed ranges that are remembered for reports.
const FREED: usize = 1 << 14;

/// Global memory. Addresses are never used twice, so that what was freed stays out of bounds.
#[derive(Debug)]
pub struct Device {
    /// Live allocations, ascending.
    live: Vec<Allocation>,
    freed: VecDeque<(u64, u64)>,
    next: u64,
    last: usize,
    /// The launch whose shadow state counts.
    pub(super) launch: u32,
}

impl Default for Device {
    fn default() -> Self {
        Self { live: Vec::new(), freed: VecDeque::new(), next: START, last: 0, launch: 0 }
    }
}

/// One allocation.
#[derive(Debug)]
pub(super) struct Allocation {
    base: u64,
    pub data: Vec<u8>,
    /// A bit for each byte that was written.
    written: Vec<u64>,
    /// State of the current launch, made when touched.
    pages: Vec<Option<Box<Touched>>>,
}

/// What one launch did with [`PAGE`] bytes.
#[derive(Debug, Default)]
pub(super) struct Touched {
    launch: u32,
    pub page: Page,
    pub read: [u64; PAGE / 64],
    pub written: [u64; PAGE / 64],
}

/// `bytes` ones at a bit.
#[inline(always)]
pub(super) const fn ones(at: usize, bytes: usize) -> u64 {
    (u64::MAX >> (64 - bytes)) << (at & 63)
}

impl Allocation {
    /// Whether an aligned access of up to 16 bytes reads only what was written; if not, the first byte that was not.
    #[inline(always)]
    pub fn check_written(&self, at: usize, bytes: usize) -> Result<(), usize> {
        let missing = !self.written[at / 64] & ones(at, bytes);
        if missing == 0 { Ok(()) } else { Err((at & !63) + missing.trailing_zeros() as usize) }
    }

    /// Marks an aligned access of up to 16 bytes as written.
    #[inline(always)]
    pub fn mark_written(&mut self, at: usize, bytes: usize) {
        self.written[at / 64] |= ones(at, bytes);
    }

    /// The page of a byte, fresh in each launch.
    #[inline(always)]
    pub fn touched(&mut self, launch: u32, at: usize) -> &mut Touched {
        let touched = self.pages[at / PAGE].get_or_insert_default();
        if touched.launch != launch {
            touched.launch = launch;
            touched.page.clear();
            touched.read = [0; PAGE / 64];
            touched.written = [0; PAGE / 64];
        }
        touched
    }

    fn mark(&mut self, at: usize, bytes: usize) {
        each_word(at, bytes, |word, bits| self.written[word] |= bits);
    }
}

/// Calls with each 64-byte word of a bitmap and its bits for these bytes.
fn each_word(at: usize, bytes: usize, mut with: impl FnMut(usize, u64)) {
    let mut from = at;
    while from < at + bytes {
        let count = (64 - from % 64).min(at + bytes - from);
        with(from / 64, ones(from, count));
        from += count;
    }
}

impl Device {
    /// An empty device behind this one: its addresses are new as well.
    pub fn successor(&self) -> Self {
        Self { next: self.next, launch: self.launch, ..Self::default() }
    }

    /// Takes memory, 256-byte aligned, with a gap behind it that belongs to no one; nothing of it is initialised.
    pub fn alloc(&mut self, bytes: u64) -> u64 {
        let base = self.next;
        let length = usize::try_from(bytes).unwrap_or(usize::MAX);
        let pages = length.div_ceil(PAGE);
        self.next = (base + bytes + GAP).next_multiple_of(256);
        self.live.push(Allocation {
            base,
            data: vec![0; length],
            written: vec![0; length.div_ceil(64)],
            pages: std::iter::repeat_with(|| None).take(pages).collect(),
        });
        base
    }

    /// Gives an allocation back; its addresses stay out of bounds.
    pub fn free(&mut self, address: u64) -> Result<(), Trouble> {
        let found = self.live.binary_search_by_key(&address, |allocation| allocation.base);
        let index = found.map_err(|_| trouble(Kind::OutOfBounds, 0, address, self.explain(address, 1)))?;
        let gone = self.live.remove(index);
        if self.freed.len() == FREED {
            self.freed.pop_front();
        }
        self.freed.push_back((gone.base, gone.base + gone.data.len() as u64));
        Ok(())
    }

    /// The allocation that holds an address: its base and its length.
    pub fn find(&self, address: u64) -> Option<(u64, u64)> {
        let index = self.live.partition_point(|allocation| allocation.base <= address).checked_sub(1)?;
        let allocation = &self.live[index];
        let length = allocation.data.len() as u64;
        (address - allocation.base < length).then_some((allocation.base, length))
    }

    /// Bytes in live allocations.
    pub fn used(&self) -> u64 {
        self.live.iter().map(|allocation| allocation.data.len() as u64).sum()
    }

    /// The allocation that holds all of an access, and the offset in it.
    #[inline(always)]
    pub(super) fn locate(&mut self, address: u64, bytes: u64) -> Option<(&mut Allocation, usize)> {
        let holds = |allocation: &Allocation| {
            let length = allocation.data.len() as u64;
            address.checked_sub(allocation.base).is_some_and(|at| at < length && bytes <= length - at)
        };
        if !self.live.get(self.last).is_some_and(holds) {
            let index = self.live.partition_point(|allocation| allocation.base <= address).checked_sub(1)?;
            if !holds(&self.live[index]) {
                return None;
            }
            self.last = index;
        }
        let allocation = &mut self.live[self.last];
        let at = (address - allocation.base) as usize;
        Some((allocation, at))
    }

    /// Why an access is out of bounds.
    #[cold]
    pub(super) fn explain(&self, address: u64, bytes: u64) -> String {
        let freed = self.freed.iter().find(|&&(base, end)| (base..end).contains(&address));
        if let Some((base, end)) = freed {
            return format!("freed: it was byte {} of {}", address - base, end - base);
        }
        let index = self.live.partition_point(|allocation| allocation.base <= address);
        let Some(below) = index.checked_sub(1).map(|index| &self.live[index]) else {
            return "below every allocation".into();
        };
        let (at, length) = (address - below.base, below.data.len() as u64);
        format!("{bytes} bytes at byte {at} of an allocation of {length} at {:#x}", below.base)
    }

    fn host(&mut self, address: u64, bytes: usize) -> Result<(&mut Allocation, usize), Trouble> {
        // Borrowed twice: the reason needs the table again.
        if self.locate(address, bytes as u64).is_none() {
            return Err(trouble(Kind::OutOfBounds, 0, address, self.explain(address, bytes as u64)));
        }
        Ok(self.locate(address, bytes as u64).expect("located above"))
    }

    /// The host reads. What was never written has all bits set, which is NaN in every format: on a device it is anything.
    pub fn read(&mut self, address: u64, into: &mut [u8]) -> Result<(), Trouble> {
        if into.is_empty() {
            return Ok(());
        }
        let (allocation, at) = self.host(address, into.len())?;
        into.copy_from_slice(&allocation.data[at..at + into.len()]);
        let length = into.len();
        each_word(at, length, |word, bits| {
            let mut missing = bits & !allocation.written[word];
            while missing != 0 {
                into[word * 64 + missing.trailing_zeros() as usize - at] = 0xff;
                missing &= missing - 1;
            }
        });
        Ok(())
    }

    /// The host writes.
    pub fn write(&mut self, address: u64, from: &[u8]) -> Result<(), Trouble> {
        if from.is_empty() {
            return Ok(());
        }
        let (allocation, at) = self.host(address, from.len())?;
        allocation.data[at..at + from.len()].copy_from_slice(from);
        allocation.mark(at, from.len());
        Ok(())
    }

    /// Repeats a pattern of 1, 2 or 4 bytes `count` times.
    pub fn fill(&mut self, address: u64, pattern: &[u8], count: usize) -> Result<(), Trouble> {
        let bytes = pattern.len().saturating_mul(count);
        if bytes == 0 {
            return Ok(());
        }
        if !address.is_multiple_of(pattern.len() as u64) {
            return Err(trouble(
                Kind::Misaligned,
                0,
                address,
                format!("a pattern of {} bytes", pattern.len()),
            ));
        }
        let (allocation, at) = self.host(address, bytes)?;
        let data = &mut allocation.data[at..at + bytes];
        match *pattern {
            [byte] => data.fill(byte),
            _ => data.chunks_exact_mut(pattern.len()).for_each(|chunk| chunk.copy_from_slice(pattern)),
        }
        allocation.mark(at, bytes);
        Ok(())
    }

    /// Copies between allocations; what was not written at the source is not written at the destination.
    pub fn copy(&mut self, to: u64, from: u64, bytes: usize) -> Result<(), Trouble> {
        if bytes == 0 {
            return Ok(());
        }
        let (source, at) = self.host(from, bytes)?;
        let data = source.data[at..at + bytes].to_vec();
        let known: Vec<bool> =
            (at..at + bytes).map(|byte| source.written[byte / 64] >> (byte % 64) & 1 != 0).collect();
        let (target, at) = self.host(to, bytes)?;
        target.data[at..at + bytes].copy_from_slice(&data);
        for (byte, known) in (at..).zip(known) {
            target.written[byte / 64] &= !(1 << (byte % 64));
            target.written[byte / 64] |= u64::from(known) << (byte % 64);
        }
        Ok(())
    }
}
