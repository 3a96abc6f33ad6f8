//! The experts' part of a product: for every row the rows of B that it takes, with their factors, slice by slice.

use super::kernels::terms::Terms;
use super::pool::B_COLUMNS;
use super::{Cpu, Pool, Sums};
use crate::adapter::slots::Slots;
use crate::element::{Element, ElementType};
use half::{bf16, f16};

/// Factors and rows of B, `[slices, rows]` lists behind each other.
pub(crate) struct Extension {
    list: Vec<(f32, u32)>,
    starts: Vec<usize>,
    rows: usize,
}

/// A route of a row: a slot that holds an adapter, its weight, and its row of h.
pub(crate) type Route<'a> = (usize, f32, &'a [f32]);

impl Extension {
    /// Lists every row's routes in their order.
    pub(crate) fn new<'a, R: Iterator<Item = Route<'a>>>(
        slots: &Slots,
        rows: usize,
        routes: impl Fn(usize) -> R,
    ) -> Self {
        let slices = slots.slices().len();
        let (mut list, mut starts) = (Vec::new(), Vec::with_capacity(slices * rows + 1));
        for slice in 0..slices {
            for row in 0..rows {
                starts.push(list.len());
                for (id, weight, h) in routes(row) {
                    let (slot, part) = (&slots.slots()[id], &slots.parts(slice)[id]);
                    if part.rank > 0 {
                        let h = &h[(part.row - slot.row) as usize..][..part.rank as usize];
                        let factor = weight * part.scaling;
                        list.extend(h.iter().zip(part.row..).map(|(&h, row)| (factor * h, row)));
                    }
                }
            }
        }
        starts.push(list.len());
        Self { list, starts, rows }
    }

    /// Adds them to sums, whose rows are this extension's and whose column `origin` is the pool's first.
    pub(crate) fn add(&self, cpu: &Cpu, pool: &Pool, sums: &mut Sums, origin: usize) {
        match pool.slots().sizes().element {
            ElementType::F32 => self.add_rows::<f32>(cpu, pool, sums, origin),
            ElementType::F16 => self.add_rows::<f16>(cpu, pool, sums, origin),
            ElementType::Bf16 => self.add_rows::<bf16>(cpu, pool, sums, origin),
        }
    }

    fn add_rows<B: Element>(&self, cpu: &Cpu, pool: &Pool, sums: &mut Sums, origin: usize) {
        let (all, mut first) = (sums.columns.clone(), origin);
        for (slice, &width) in pool.slots().slices().iter().enumerate() {
            let columns =
                all.start.clamp(first, first + width) - first..all.end.clamp(first, first + width) - first;
            // What the pool has of a panel's columns stays in the first-level cache from row to row.
            for (columns, rows) in pool.b_panels::<B>(columns) {
                for row in sums.rows.clone() {
                    let at = slice * self.rows + row;
                    let list = &self.list[self.starts[at]..self.starts[at + 1]];
                    let terms = Terms { list, rows, stride: B_COLUMNS, column: columns.start % B_COLUMNS };
                    cpu.add_terms(terms, sums.part(row, &(first + columns.start..first + columns.end)));
                }
            }
            first += width;
        }
    }
}
