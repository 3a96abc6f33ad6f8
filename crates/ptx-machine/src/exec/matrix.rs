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
use super::alu::two_versions;
use super::half::{f16_to_f32, narrow};
use super::warp::{Core, Warp};
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

/// One or two elements of a register, as f32.
#[inline]
fn elements(ty: MmaTy, bits: u32) -> [f32; 2] {
    match ty {
        MmaTy::F16 => [f16_to_f32(bits as u16), f16_to_f32((bits >> 16) as u16)],
        MmaTy::Bf16 => [f32::from_bits(bits << 16), f32::from_bits(bits & 0xffff_0000)],
        // The lower bits of a tf32 are not looked at.
        MmaTy::Tf32 => [f32::from_bits(bits & 0xffff_e000), 0.0],
    }
}

/// The operands of one operation: A by columns and B by rows, so that a product's loop runs along rows of D.
pub struct Operands {
    a: [[f64; 16]; 16],
    b: [[f64; 8]; 16],
}

impl Operands {
    fn gather(warp: &Warp, mma: &Mma) -> Self {
        let mut out = Self { a: [[0.0; 16]; 16], b: [[0.0; 8]; 16] };
        let each = if mma.ty == MmaTy::Tf32 { 1 } else { 2 };
        for (register, place) in mma.a.iter().enumerate() {
            let word = &warp.words[usize::from(*place)];
            for (lane, &bits) in word.iter().enumerate() {
                let (row, k) = (lane / 4 + 8 * (register % 2), each * (lane % 4 + 4 * (register / 2)));
                for (index, value) in elements(mma.ty, bits)[..each].iter().enumerate() {
                    out.a[row][k + index] = f64::from(*value);
                }
            }
        }
        for (register, place) in mma.b.iter().enumerate() {
            let word = &warp.words[usize::from(*place)];
            for (lane, &bits) in word.iter().enumerate() {
                let k = each * (lane % 4 + 4 * register);
                for (index, value) in elements(mma.ty, bits)[..each].iter().enumerate() {
                    out.b[k + index][lane / 4] = f64::from(*value);
                }
            }
        }
        out
    }

    /// The share of the tile that is no padding: rows of A and columns of B that are not all 0, and k where either is not.
    fn useful(&self, k: usize) -> f64 {
        let rows = self.a.iter().filter(|row| row.iter().any(|&x| x != 0.0)).count();
        let columns = (0..8).filter(|&column| self.b.iter().any(|row| row[column] != 0.0)).count();
        let depth = (0..k)
            .filter(|&k| self.a.iter().any(|row| row[k] != 0.0) || self.b[k].iter().any(|&x| x != 0.0))
            .count();
        (rows * columns * depth) as f64 / (16 * 8 * k) as f64
    }
}

/// `mma`: for each element of D the exact products added in f64 in ascending k, then C, then one rounding.
pub fn mma(core: &mut Core<'_>, warp: &mut Warp, mma: &Mma) {
    let depth = mma.k as usize;
    let operands = Operands::gather(warp, mma);
    core.mma_issued += 1;
    core.mma_useful += operands.useful(depth);
    let mut product = [[0.0; 8]; 16];
    multiply(core.fast, &operands, depth, &mut product);
    let mut c = [[0_u32; 32]; 4];
    for (word, &place) in c.iter_mut().zip(&mma.c) {
        *word = warp.words[usize::from(place)];
    }
    let mut out = [[0_u32; 32]; 4];
    for lane in 0..32 {
        let (group, column) = (lane / 4, 2 * (lane % 4));
        for index in 0..4 {
            let sum = product[group + 8 * (index / 2)][column + index % 2];
            let old = match mma.half_c {
                true => f16_to_f32((c[index / 2][lane] >> (16 * (index % 2))) as u16),
                false => f32::from_bits(c[index][lane]),
            };
            let sum = sum + f64::from(old);
            match mma.half_d {
                true => {
                    out[index / 2][lane] |=
                        u32::from(narrow(sum, false, Round::Nearest)) << (16 * (index % 2))
                }
                false => out[index][lane] = single(sum),
            }
        }
    }
    for (place, word) in mma.d.iter().zip(&out) {
        warp.words[usize::from(*place)] = *word;
    }
}

two_versions!(
    /// The sums of products.
    multiply, multiply_fast, multiply_body, (operands: &Operands, depth: usize, out: &mut [[f64; 8]; 16])
);

#[inline(always)]
fn multiply_body(operands: &Operands, depth: usize, out: &mut [[f64; 8]; 16]) {
    for (a, out) in operands.a.iter().zip(out) {
        let mut sum = [0.0; 8];
        for (a, b) in a.iter().zip(&operands.b).take(depth) {
            // The product of two halves is exact, so a fused and a plain sum are the same.
            for (sum, b) in sum.iter_mut().zip(b) {
                *sum += a * b;
            }
        }
        *out = sum;
    }
}

fn single(value: f64) -> u32 {
    if value.is_nan() { super::float::NAN } else { (value as f32).to_bits() }
}
