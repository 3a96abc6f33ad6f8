//! Matrices that lie across the lanes of a warp.
//!
//! With group g = lane / 4 and t = lane % 4, a register of two halves holds, of row g and of row g + 8 in turn:
//!
//! - A of m16n8k16: columns 2t, 2t + 1, and in the upper two registers those 8 further on;
//! - B: rows 2t, 2t + 1 (and 8 further on) of column g;
//! - C and D: columns 2t, 2t + 1, one register each in f32, one for both in f16.
//!
//! tf32 has one element a register: column t (and t + 4).

use super::access::addresses;
use super::float::NAN;
use super::half::{f16_to_f32, narrow};
use super::lanes::{each, two_versions};
use super::registers::{Warp, Word};
use super::warp::Core;
use crate::fault::Trouble;
use crate::memory::{Block, Lanes, SHARED_WINDOW, Values};
use crate::ptx::op::{Mma, MmaTy, Op, R, Round};

/// `ldmatrix`: lane 8 i + r gives the address of row r of matrix i; lane l gets elements 2 (l % 4) and the next of row l / 4.
pub fn load(core: &mut Core<'_>, warp: &mut Warp, memory: &mut Block, op: &Op) -> Result<(), Trouble> {
    let Op::Ldmatrix { count, trans, d, addr } = *op else { return Ok(()) };
    let address = addresses(warp, addr)
        .map(|address| if address >= SHARED_WINDOW { address - SHARED_WINDOW } else { address });
    for (matrix, &place) in d[..usize::from(count)].iter().enumerate() {
        let mask = 0xff << (8 * matrix);
        let mut rows: Values = [[0; 4]; 32];
        let lanes = Lanes { warp: warp.id, mask, address: &address, bytes: 16 };
        memory.load_shared(&mut core.launch, &lanes, &mut rows)?;
        let element =
            |row: usize, column: usize| rows[8 * matrix + row][column / 2] >> (16 * (column % 2)) & 0xffff;
        warp.words[usize::from(place)] = std::array::from_fn(|lane| {
            let (row, column) = (lane / 4, 2 * (lane % 4));
            match trans {
                false => element(row, column) | element(row, column + 1) << 16,
                true => element(column, row) | element(column + 1, row) << 16,
            }
        });
    }
    Ok(())
}

/// `movmatrix.trans`: the 8 x 8 matrix of a fragment, transposed.
pub fn transpose(warp: &mut Warp, d: R, a: R) {
    let from = warp.words[usize::from(a)];
    let element = |row: usize, column: usize| from[4 * row + column / 2] >> (16 * (column % 2)) & 0xffff;
    warp.words[usize::from(d)] = std::array::from_fn(|lane| {
        let (row, column) = (lane / 4, 2 * (lane % 4));
        element(column, row) | element(column + 1, row) << 16
    });
}

/// A register's elements, each lane's first and second; tf32 has no second.
#[inline(always)]
fn elements(ty: MmaTy, word: &Word) -> [[f32; 32]; 2] {
    match ty {
        MmaTy::F16 => {
            [each!(x in word => f16_to_f32(x as u16)), each!(x in word => f16_to_f32((x >> 16) as u16))]
        }
        MmaTy::Bf16 => {
            [each!(x in word => f32::from_bits(x << 16)), each!(x in word => f32::from_bits(x & 0xffff_0000))]
        }
        // The lower bits of a tf32 are not looked at.
        MmaTy::Tf32 => [each!(x in word => f32::from_bits(x & 0xffff_e000)), [0.0; 32]],
    }
}

/// One operation's matrices: A by rows, B by rows, and C, which becomes D.
#[derive(Default)]
pub struct Tiles {
    a: [[f64; 16]; 16],
    b: [[f64; 8]; 16],
    c: [[f64; 8]; 16],
}

impl Tiles {
    #[inline(always)]
    fn gather(&mut self, warp: &Warp, mma: &Mma) {
        let tf32 = mma.ty == MmaTy::Tf32;
        let each = if tf32 { 1 } else { 2 };
        for (register, place) in mma.a.iter().enumerate() {
            let [first, second] = elements(mma.ty, &warp.words[usize::from(*place)]);
            for lane in 0..32 {
                let row = &mut self.a[lane / 4 + 8 * (register % 2)];
                let k = (each * (lane % 4 + 4 * (register / 2))) & 15;
                row[k] = f64::from(first[lane]);
                if !tf32 {
                    row[k | 1] = f64::from(second[lane]);
                }
            }
        }
        for (register, place) in mma.b.iter().enumerate() {
            let [first, second] = elements(mma.ty, &warp.words[usize::from(*place)]);
            for lane in 0..32 {
                let k = (each * (lane % 4 + 4 * register)) & 15;
                self.b[k][lane / 4] = f64::from(first[lane]);
                if !tf32 {
                    self.b[k | 1][lane / 4] = f64::from(second[lane]);
                }
            }
        }
        for (register, place) in mma.c.iter().enumerate() {
            let word = &warp.words[usize::from(*place)];
            for (lane, &bits) in word.iter().enumerate() {
                let column = 2 * (lane % 4);
                if mma.half_c {
                    let row = &mut self.c[lane / 4 + 8 * (register & 1)];
                    row[column] = f64::from(f16_to_f32(bits as u16));
                    row[column + 1] = f64::from(f16_to_f32((bits >> 16) as u16));
                } else {
                    let row = &mut self.c[lane / 4 + 8 * ((register / 2) & 1)];
                    row[column + register % 2] = f64::from(f32::from_bits(bits));
                }
            }
        }
    }

    /// The share of the tile that is no padding: rows of A and columns of B that are not all 0, and k where either is not.
    #[inline(always)]
    fn useful(&self, depth: usize) -> f64 {
        let (mut rows, mut in_a, mut in_b, mut columns) = (0, [false; 16], [false; 16], [false; 8]);
        for row in &self.a {
            let mut any = false;
            for (k, value) in row.iter().enumerate() {
                any |= *value != 0.0;
                in_a[k] |= *value != 0.0;
            }
            rows += usize::from(any);
        }
        for (row, in_b) in self.b.iter().zip(&mut in_b) {
            for (column, value) in row.iter().enumerate() {
                *in_b |= *value != 0.0;
                columns[column] |= *value != 0.0;
            }
        }
        let used = in_a.iter().zip(&in_b).filter(|(a, b)| **a || **b).count();
        let columns = columns.iter().filter(|column| **column).count();
        (rows * columns * used) as f64 / (16 * 8 * depth) as f64
    }

    /// Products are exact in f64; each element of D is their sum in ascending k, then C, rounded once more on its way out.
    #[inline(always)]
    fn multiply(&mut self, depth: usize) {
        for (a, c) in self.a.iter().zip(&mut self.c) {
            let mut sum = [0.0; 8];
            for (a, b) in a.iter().zip(&self.b).take(depth) {
                for column in 0..8 {
                    sum[column] += a * b[column];
                }
            }
            for column in 0..8 {
                c[column] += sum[column];
            }
        }
    }

    #[inline(always)]
    fn scatter(&self, warp: &mut Warp, mma: &Mma) {
        for (register, place) in mma.d.iter().enumerate() {
            let mut word = [0; 32];
            for (lane, bits) in word.iter_mut().enumerate() {
                let column = 2 * (lane % 4);
                *bits = if mma.half_d {
                    let row = &self.c[lane / 4 + 8 * (register & 1)];
                    let half = |value: f64| u32::from(narrow(value, false, Round::Nearest));
                    half(row[column]) | half(row[column + 1]) << 16
                } else {
                    let value = self.c[lane / 4 + 8 * ((register / 2) & 1)][column + register % 2] as f32;
                    if value.is_nan() { NAN } else { value.to_bits() }
                };
            }
            warp.words[usize::from(*place)] = word;
        }
    }
}

/// `mma`.
pub fn mma(core: &mut Core<'_>, warp: &mut Warp, mma: &Mma) {
    core.mma_issued += 1;
    execute(core.fast, warp, mma, &mut core.mma_useful);
}

two_versions!(
    /// Executes an operation and adds its useful share.
    execute, execute_fast, execute_body, (warp: &mut Warp, mma: &Mma, useful: &mut f64)
);

#[inline(always)]
fn execute_body(warp: &mut Warp, mma: &Mma, useful: &mut f64) {
    let mut tiles = Tiles::default();
    tiles.gather(warp, mma);
    *useful += tiles.useful(mma.k as usize);
    tiles.multiply(mma.k as usize);
    tiles.scatter(warp, mma);
}
