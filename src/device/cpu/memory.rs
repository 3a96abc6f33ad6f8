//! Memory that starts on a cache line: a vector load that crosses two lines costs twice.

use bytemuck::{Pod, Zeroable};
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};

#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C, align(64))]
pub(super) struct Line([u32; 16]);

/// Elements that start on a cache line.
#[derive(Debug, Clone)]
pub(crate) struct Lines<E> {
    lines: Vec<Line>,
    len: usize,
    _elements: PhantomData<E>,
}

impl<E: Pod> Lines<E> {
    /// Zeros.
    pub(crate) fn zeroed(len: usize) -> Self {
        let lines = bytemuck::zeroed_vec((len * size_of::<E>()).div_ceil(size_of::<Line>()));
        Self { lines, len, _elements: PhantomData }
    }

    /// At least `len` elements; what they hold is left over.
    pub(crate) fn at_least(&mut self, len: usize) -> &mut [E] {
        if len > self.len {
            *self = Self::zeroed(len);
        }
        &mut self[..len]
    }
}

impl<E> Default for Lines<E> {
    fn default() -> Self {
        Self { lines: Vec::new(), len: 0, _elements: PhantomData }
    }
}

impl<E: Pod> Deref for Lines<E> {
    type Target = [E];
    fn deref(&self) -> &[E] {
        &bytemuck::cast_slice(&self.lines)[..self.len]
    }
}

impl<E: Pod> DerefMut for Lines<E> {
    fn deref_mut(&mut self) -> &mut [E] {
        &mut bytemuck::cast_slice_mut(&mut self.lines)[..self.len]
    }
}
