//! Memory that one thread reads while another writes elsewhere in it: a pool's factors.
//!
//! No slice of all of it may exist then, not even one whose other rows nobody looks at. Kernels get a [`Span`] instead, of
//! which they read the rows that they were given and no other.

use super::memory::Line;
use bytemuck::Pod;
use std::cell::UnsafeCell;
use std::marker::PhantomData;

/// Words that start on a cache line, zeros at first.
#[derive(Debug)]
pub(super) struct SharedWords(Box<[UnsafeCell<Line>]>);

// SAFETY: the words are reached through `span` and `write` alone, which demand of their callers that nobody reads what is
// being written.
unsafe impl Sync for SharedWords {}

impl SharedWords {
    pub(super) fn zeroed(bytes: usize) -> Self {
        Self(bytemuck::zeroed_slice_box(bytes.div_ceil(size_of::<Line>())))
    }

    /// All of it as elements, to read only where nobody writes meanwhile.
    pub(super) fn span<E: Pod>(&self) -> Span<'_, E> {
        let len = size_of_val(&*self.0) / size_of::<E>();
        Span { start: self.0.as_ptr().cast(), len, _memory: PhantomData }
    }

    /// Writes elements from `first` on.
    ///
    /// # Safety
    /// Until this returns nobody else reads or writes these elements.
    pub(super) unsafe fn write<E: Pod>(&self, first: usize, values: &[E]) {
        let span = self.span::<E>();
        assert!(first.checked_add(values.len()).is_some_and(|end| end <= span.len), "within the memory");
        // SAFETY: within the memory by the assertion; cells may be written through a shared reference, and nobody else is at
        // these by the caller's promise. `values` is none of it, since no slice of it exists while it is written.
        unsafe { std::ptr::copy(values.as_ptr(), span.start.cast_mut().add(first), values.len()) }
    }
}

/// Elements of which some may be written meanwhile: to be read by address, and only those that the reader holds.
#[derive(Debug)]
pub(crate) struct Span<'a, E> {
    start: *const E,
    len: usize,
    _memory: PhantomData<&'a [E]>,
}

impl<E> Clone for Span<'_, E> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<E> Copy for Span<'_, E> {}

// SAFETY: a span is read like a slice; what may not be read is its reader's duty, on every thread.
unsafe impl<E: Sync> Send for Span<'_, E> {}
// SAFETY: as above.
unsafe impl<E: Sync> Sync for Span<'_, E> {}

impl<'a, E> From<&'a [E]> for Span<'a, E> {
    fn from(slice: &'a [E]) -> Self {
        Self { start: slice.as_ptr(), len: slice.len(), _memory: PhantomData }
    }
}

impl<'a, E> Span<'a, E> {
    pub(crate) fn len(self) -> usize {
        self.len
    }

    pub(crate) fn as_ptr(self) -> *const E {
        self.start
    }

    /// A part of it.
    pub(super) fn part(self, first: usize, len: usize) -> Self {
        assert!(first.checked_add(len).is_some_and(|end| end <= self.len), "within the memory");
        // SAFETY: within the memory by the assertion.
        Self { start: unsafe { self.start.add(first) }, len, _memory: PhantomData }
    }

    /// The elements.
    ///
    /// # Safety
    /// For as long as the slice lives nobody writes any of them.
    pub(super) unsafe fn as_slice(self) -> &'a [E] {
        // SAFETY: they are initialised elements of memory that lives for 'a, by the constructors, and by the caller's promise
        // they stay as they are.
        unsafe { std::slice::from_raw_parts(self.start, self.len) }
    }
}
