//! Who touched memory last: the state that finds races.
//!
//! Cells cover 16 bytes until a smaller access comes; then their page is refined, so that neighbours that share a word are
//! told apart and wide accesses stay cheap. A cell keeps its last writer and two readers of different warps: a write that
//! follows reads of several warps with no order meets at least one of them.

use super::clocks::Viewer;

/// Bytes of a page.
pub const PAGE: usize = 1024;

/// Whether an access may meet others with no order between.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Strength {
    /// Ordinary.
    Weak = 0,
    /// Strong in its block.
    Block = 1,
    /// Strong on the device.
    Device = 2,
}

/// One access: who, when, how. Zero is no one.
///
/// Bits: 0..24 epoch, 24..26 strength, 26 several lanes, 27..32 lane, 32..37 warp, 37..64 block.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stamp(u64);

const SEVERAL: u64 = 1 << 26;

impl Stamp {
    /// No one.
    pub const NONE: Self = Self(0);

    /// The stamp of an access by lane 0; [`Self::at`] gives the others.
    pub fn new(viewer: &Viewer, strength: Strength) -> Self {
        let epoch = u64::from(viewer.epoch.min((1 << 24) - 1));
        Self(u64::from(viewer.party) << 32 | (strength as u64) << 24 | epoch)
    }
    /// The same by another lane.
    #[inline(always)]
    pub fn at(self, lane: u32) -> Self {
        Self(self.0 | u64::from(lane) << 27)
    }
    /// Block and warp in one number.
    pub const fn party_of(block: u32, warp: u32) -> u32 {
        block << 5 | warp
    }
    /// The block of a party.
    pub const fn block_of(party: u32) -> u32 {
        party >> 5
    }
    /// The warp of a party.
    pub const fn warp_of(party: u32) -> u32 {
        party & 31
    }
    /// Block and warp.
    #[inline(always)]
    pub const fn party(self) -> u32 {
        (self.0 >> 32) as u32
    }
    /// The block.
    #[inline(always)]
    pub const fn block(self) -> u32 {
        Self::block_of(self.party())
    }
    /// The warp in the block.
    #[inline(always)]
    pub const fn warp(self) -> u32 {
        Self::warp_of(self.party())
    }
    /// The warp's epoch.
    #[inline(always)]
    pub const fn epoch(self) -> u32 {
        (self.0 & 0xff_ffff) as u32
    }
    /// Whether this lane did it, and no other.
    #[inline(always)]
    pub const fn is_lane(self, lane: u32) -> bool {
        self.0 & SEVERAL == 0 && (self.0 >> 27) as u32 & 31 == lane
    }
    /// Whether it is someone.
    #[inline(always)]
    pub const fn is_some(self) -> bool {
        self.0 != 0
    }
    const fn strength(self) -> u64 {
        self.0 >> 24 & 3
    }
    /// Whether two unordered accesses may meet: both strong, each within the other's scope.
    fn may_meet(self, other: Self) -> bool {
        let least = self.strength().min(other.strength());
        least == Strength::Device as u64 || (least != 0 && self.block() == other.block())
    }
    fn describe(self, did: &str) -> String {
        let warp = self.warp();
        let how = if self.strength() == 0 { "" } else { "atomically " };
        if self.0 & SEVERAL != 0 {
            return format!("{how}{did} by several lanes of warp {warp} of block {}", self.block());
        }
        let lane = (self.0 >> 27) as u32 & 31;
        let thread = warp * 32 + lane;
        format!("{how}{did} by thread {thread} (warp {warp}, lane {lane}) of block {}", self.block())
    }
}

/// Who touched a few bytes last.
#[derive(Debug, Clone, Copy, Default)]
pub struct Cell {
    writer: Stamp,
    readers: [Stamp; 2],
}

impl Cell {
    /// A read; gives the access that it races with, or [`Stamp::NONE`].
    #[inline(always)]
    pub fn read(&mut self, viewer: &Viewer, lane: u32, stamp: Stamp) -> Stamp {
        let writer = self.writer;
        if writer.is_some() && !viewer.after(writer, lane) && !writer.may_meet(stamp) {
            return writer;
        }
        let first = self.readers[0];
        if !first.is_some() || first == stamp {
            self.readers[0] = stamp;
        } else if self.readers[1] != stamp {
            self.add_reader(viewer, lane, stamp);
        }
        Stamp::NONE
    }

    #[inline(never)]
    fn add_reader(&mut self, viewer: &Viewer, lane: u32, stamp: Stamp) {
        // A reader that is ordered before this one says nothing more: what follows this one follows it too.
        for reader in &mut self.readers {
            if reader.is_some() && viewer.after(*reader, lane) {
                *reader = Stamp::default();
            }
        }
        for reader in &mut self.readers {
            if reader.party() == stamp.party() && reader.is_some() {
                *reader = Stamp(stamp.0 | SEVERAL);
                return;
            }
        }
        let [first, second] = &mut self.readers;
        if !first.is_some() {
            *first = stamp;
        } else if !second.is_some() || (second.block() == first.block() && stamp.block() != first.block()) {
            *second = stamp;
        }
    }

    /// The access that a write would race with, or [`Stamp::NONE`].
    #[inline(always)]
    pub fn meet(&self, viewer: &Viewer, lane: u32, stamp: Stamp) -> Stamp {
        for other in [self.writer, self.readers[0], self.readers[1]] {
            if other.is_some() && !viewer.after(other, lane) && !other.may_meet(stamp) {
                return other;
            }
        }
        Stamp::NONE
    }

    /// Who `other` is and what it did here, for reports.
    #[cold]
    pub fn describe(&self, other: Stamp) -> String {
        other.describe(if other == self.writer { "written" } else { "read" })
    }

    /// Keeps a write.
    #[inline(always)]
    pub fn wrote(&mut self, stamp: Stamp) {
        self.writer = stamp;
        if stamp.strength() == 0 {
            self.readers = [Stamp::default(); 2];
        }
    }
}

/// The cells of [`PAGE`] bytes.
#[derive(Debug, Clone, Default)]
pub struct Page {
    /// Cells are `1 << shift` bytes.
    shift: u32,
    cells: Vec<Cell>,
}

impl Page {
    /// Forgets everything; the first access sets the size of cells.
    pub fn clear(&mut self) {
        self.cells.clear();
    }

    /// The cells of an aligned access of 1 to 16 bytes at an offset in the page.
    #[inline(always)]
    pub fn at(&mut self, offset: usize, bytes: usize) -> &mut [Cell] {
        if self.cells.is_empty() {
            self.shift = bytes.trailing_zeros();
            self.cells.resize(PAGE >> self.shift, Cell::default());
        }
        if bytes >> self.shift == 0 {
            self.refine(bytes.trailing_zeros());
        }
        &mut self.cells[offset >> self.shift..(offset + bytes) >> self.shift]
    }

    #[cold]
    fn refine(&mut self, shift: u32) {
        let times = 1 << (self.shift - shift);
        self.cells = self.cells.iter().flat_map(|&cell| std::iter::repeat_n(cell, times)).collect();
        self.shift = shift;
    }
}
