//! A typed part of an engine's buffer.

use crate::error::{Error, Result};
use std::marker::PhantomData;

/// `len` elements of type T in a buffer, from element `first` on. Copies nothing.
///
/// T is f32, f16, bf16, or i32 for ids. 16-bit elements are read in pairs: `first` is even.
#[derive(Debug)]
pub struct View<'a, T> {
    pub(crate) buffer: &'a wgpu::Buffer,
    pub(crate) first: usize,
    pub(crate) len: usize,
    _element: PhantomData<T>,
}

impl<T> Clone for View<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for View<'_, T> {}

impl<'a, T> View<'a, T> {
    /// Elements `first .. first + len` of the buffer, counted from its start.
    pub fn new(buffer: &'a wgpu::Buffer, first: usize, len: usize) -> Result<Self> {
        let size = size_of::<T>();
        let end = first.checked_add(len).and_then(|n| n.checked_mul(size));
        // Kernels read and write whole words.
        let words_end = end.and_then(|end| end.checked_next_multiple_of(4));
        if words_end.is_none_or(|end| end as u64 > buffer.size()) {
            let expected = format!("within the buffer's {} bytes", buffer.size());
            return Err(Error::argument(
                "view",
                "first + len",
                expected,
                format!("({first} + {len}) * {size} bytes"),
            ));
        }
        if size == 2 && !first.is_multiple_of(2) {
            return Err(Error::argument(
                "view",
                "first",
                "an even element for packed 16-bit elements",
                first,
            ));
        }
        Ok(Self { buffer, first, len, _element: PhantomData })
    }

    /// All of a buffer.
    pub fn whole(buffer: &'a wgpu::Buffer) -> Self {
        Self { buffer, first: 0, len: buffer.size() as usize / size_of::<T>(), _element: PhantomData }
    }

    /// The bytes of the buffer that it covers.
    pub(crate) fn bytes(&self) -> std::ops::Range<u64> {
        let size = size_of::<T>() as u64;
        self.first as u64 * size..(self.first + self.len) as u64 * size
    }

    /// Elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// No elements.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}
