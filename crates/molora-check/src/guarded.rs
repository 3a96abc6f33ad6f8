//! Host memory with canaries before, between and behind its rows.

use bytemuck::Pod;
use half::{bf16, f16};
use molora::element::{Element, ElementType};

/// Elements before the first row and behind the last.
pub const GUARD: usize = 16;

/// Rows of `width` elements, one every `stride`, inside a longer buffer.
#[derive(Debug, Clone, PartialEq)]
pub struct Guarded<T> {
    /// The whole buffer, guards included.
    pub all: Vec<T>,
    /// Where the first row begins.
    pub first: usize,
    /// Rows.
    pub rows: usize,
    /// Elements of a row.
    pub width: usize,
    /// Elements from one row to the next.
    pub stride: usize,
}

impl<T: Pod> Guarded<T> {
    /// Rows of `cell(row, column)`; everything else is `guard`.
    pub fn new(
        (rows, width, stride): (usize, usize, usize),
        guard: T,
        mut cell: impl FnMut(usize, usize) -> T,
    ) -> Self {
        assert!(stride >= width, "rows may not overlap");
        let span = if rows == 0 || width == 0 { 0 } else { (rows - 1) * stride + width };
        let mut all = vec![guard; GUARD + span + GUARD];
        for row in 0..rows {
            for column in 0..width {
                all[GUARD + row * stride + column] = cell(row, column);
            }
        }
        Self { all, first: GUARD, rows, width, stride }
    }

    /// An output: guards of a bit pattern that no kernel writes by chance.
    pub fn output(shape: (usize, usize, usize), cell: impl FnMut(usize, usize) -> T) -> Self {
        Self::new(shape, bytemuck::pod_read_unaligned(&[0xa5u8; 8][..size_of::<T>()]), cell)
    }

    /// Elements from the first of the first row to the last of the last.
    pub fn len(&self) -> usize {
        self.all.len() - 2 * GUARD
    }

    /// Whether there are no rows, or none with an element.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The rows, padding between them included: what an operation is given.
    pub fn cells(&self) -> &[T] {
        &self.all[GUARD..self.all.len() - GUARD]
    }

    /// As [`Self::cells`].
    pub fn cells_mut(&mut self) -> &mut [T] {
        let end = self.all.len() - GUARD;
        &mut self.all[GUARD..end]
    }

    /// One element.
    pub fn at(&self, row: usize, column: usize) -> T {
        self.all[self.first + row * self.stride + column]
    }

    /// The row and column of a place in `all`; none in guards and padding.
    pub fn place(&self, index: usize) -> Option<(usize, usize)> {
        let (row, column) = (index.checked_sub(self.first)?)
            .checked_div(self.stride)
            .map(|row| (row, index - self.first - row * self.stride))?;
        (row < self.rows && column < self.width).then_some((row, column))
    }
}

impl<T: Element> Guarded<T> {
    /// Rows of `cell(row, column)` rounded to T; a read beyond them gives NaN.
    pub fn input(shape: (usize, usize, usize), mut cell: impl FnMut(usize, usize) -> f32) -> Self {
        Self::new(shape, T::from_f32(f32::NAN), |row, column| T::from_f32(cell(row, column)))
    }

    /// The rows without padding, widened exactly.
    pub fn dense(&self) -> Vec<f32> {
        let cell = |i: usize| self.at(i / self.width, i % self.width).to_f32();
        (0..self.rows * self.width).map(cell).collect()
    }
}

/// Guarded rows whose element type is the case's.
#[derive(Debug, Clone, PartialEq)]
pub enum Tensor {
    /// f32.
    F32(Guarded<f32>),
    /// f16.
    F16(Guarded<f16>),
    /// bf16.
    Bf16(Guarded<bf16>),
}

/// Runs an expression with the typed rows of a [`Tensor`].
#[macro_export]
macro_rules! with_rows {
    ($tensor:expr, $rows:ident => $body:expr) => {
        match $tensor {
            $crate::guarded::Tensor::F32($rows) => $body,
            $crate::guarded::Tensor::F16($rows) => $body,
            $crate::guarded::Tensor::Bf16($rows) => $body,
        }
    };
}

impl Tensor {
    /// See [`Guarded::input`].
    pub fn input(
        element: ElementType,
        shape: (usize, usize, usize),
        cell: impl FnMut(usize, usize) -> f32,
    ) -> Self {
        match element {
            ElementType::F32 => Self::F32(Guarded::input(shape, cell)),
            ElementType::F16 => Self::F16(Guarded::input(shape, cell)),
            ElementType::Bf16 => Self::Bf16(Guarded::input(shape, cell)),
        }
    }

    /// See [`Guarded::output`].
    pub fn output(
        element: ElementType,
        shape: (usize, usize, usize),
        mut cell: impl FnMut(usize, usize) -> f32,
    ) -> Self {
        match element {
            ElementType::F32 => Self::F32(Guarded::output(shape, cell)),
            ElementType::F16 => Self::F16(Guarded::output(shape, |r, c| f16::from_f32(cell(r, c)))),
            ElementType::Bf16 => Self::Bf16(Guarded::output(shape, |r, c| bf16::from_f32(cell(r, c)))),
        }
    }

    /// The rows without padding, widened exactly.
    pub fn dense(&self) -> Vec<f32> {
        with_rows!(self, rows => rows.dense())
    }

    /// Elements from one row to the next.
    pub fn stride(&self) -> usize {
        with_rows!(self, rows => rows.stride)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_lie_where_the_stride_says() {
        let g = Guarded::<f32>::output((2, 3, 5), |row, column| (10 * row + column) as f32);
        assert_eq!((g.len(), g.cells()[0], g.cells()[5], g.cells()[7]), (8, 0.0, 10.0, 12.0));
        assert_eq!(g.cells()[3].to_bits(), 0xa5a5_a5a5);
        assert_eq!((g.place(g.first + 7), g.place(g.first + 4), g.place(3)), (Some((1, 2)), None, None));
        assert_eq!(Guarded::<f32>::output((0, 3, 5), |_, _| 0.0).cells().len(), 0);
        let x = Guarded::<f16>::input((2, 1, 2), |row, _| row as f32);
        assert!(x.cells()[1].is_nan() && x.dense() == [0.0, 1.0]);
    }
}
