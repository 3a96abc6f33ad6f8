//! The vector registers that the kernels are written in, one implementation per instruction set.

use crate::element::{Element, ElementType};

/// Longest vector of any level, for tails.
pub(super) const MAX_LANES: usize = 16;

/// The instruction sets, widest last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Level {
    /// Plain Rust, left to the compiler.
    Portable,
    /// AVX2 with FMA and F16C.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// AVX-512 F and VL.
    #[cfg(target_arch = "x86_64")]
    Avx512,
    /// NEON, the vectors of AArch64.
    #[cfg(target_arch = "aarch64")]
    Neon,
}

impl Level {
    /// The widest that this processor has.
    pub(crate) fn detect() -> Self {
        #[cfg(target_arch = "x86_64")]
        {
            // VL lets the compiler use all 32 registers where halves of them are taken.
            if is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512vl") {
                return Self::Avx512;
            }
            if is_x86_feature_detected!("avx2")
                && is_x86_feature_detected!("fma")
                && is_x86_feature_detected!("f16c")
            {
                return Self::Avx2;
            }
        }
        #[cfg(target_arch = "aarch64")]
        if std::arch::is_aarch64_feature_detected!("neon") {
            return Self::Neon;
        }
        Self::Portable
    }

    /// Every level that this processor can run.
    #[cfg(test)]
    pub(crate) fn all() -> Vec<Self> {
        match Self::detect() {
            Self::Portable => vec![Self::Portable],
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => vec![Self::Portable, Self::Avx2],
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => vec![Self::Portable, Self::Avx2, Self::Avx512],
            #[cfg(target_arch = "aarch64")]
            Self::Neon => vec![Self::Portable, Self::Neon],
        }
    }

    /// Columns of a register tile.
    pub(crate) const fn columns(self) -> usize {
        match self {
            Self::Portable => Portable::VECTORS * Portable::LANES,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => Avx2::VECTORS * Avx2::LANES,
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => Avx512::VECTORS * Avx512::LANES,
            #[cfg(target_arch = "aarch64")]
            Self::Neon => Neon::VECTORS * Neon::LANES,
        }
    }

    /// Most rows of a register tile.
    pub(crate) const fn rows(self) -> usize {
        match self {
            Self::Portable => Portable::ROWS,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => Avx2::ROWS,
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => Avx512::ROWS,
            #[cfg(target_arch = "aarch64")]
            Self::Neon => Neon::ROWS,
        }
    }

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Portable => "portable",
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => "AVX2+FMA",
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => "AVX-512",
            #[cfg(target_arch = "aarch64")]
            Self::Neon => "NEON",
        }
    }
}

/// A register of f32 lanes.
///
/// Every method is `unsafe`: it may only run where the instruction set is present, and pointers must be good for
/// `LANES` elements. All are inlined into a function that enables the instruction set.
pub(super) trait Simd {
    const LANES: usize;
    /// Vectors of columns of a register tile: 2 or 4.
    const VECTORS: usize = 2;
    /// Rows of a register tile, so that its sums, the columns and what is read of x fit the registers.
    const ROWS: usize;
    type V: Copy;
    unsafe fn splat(value: f32) -> Self::V;
    unsafe fn load_f32(from: *const f32) -> Self::V;
    unsafe fn load_f16(from: *const u16) -> Self::V;
    unsafe fn load_bf16(from: *const u16) -> Self::V;
    unsafe fn store_f32(to: *mut f32, v: Self::V);
    /// `a * b + c`
    unsafe fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V;
    /// Rounds to nearest, ties to even.
    unsafe fn store_f16(to: *mut u16, v: Self::V);
    /// Rounds to nearest, ties to even.
    unsafe fn store_bf16(to: *mut u16, v: Self::V);
    /// The lanes' sum of each of four registers, in one fixed order.
    unsafe fn sums(v: [Self::V; 4]) -> [f32; 4];
    /// The four values of every lane, lane l's at `to + l * stride`: 4 values at each of `LANES` places.
    unsafe fn store_lanes(to: *mut f32, stride: usize, v: [Self::V; 4]);
    /// Asks for a cache line that will be read; any address will do.
    unsafe fn prefetch(at: *const u8);
    /// Asks for it in the second-level cache.
    unsafe fn prefetch_far(at: *const u8);

    /// `sums[m][n] += x[m] * columns[n]`
    #[inline(always)]
    unsafe fn add_products<const M: usize, const N: usize>(
        x: *const f32,
        columns: [Self::V; N],
        sums: &mut [[Self::V; N]; M],
    ) {
        for (m, sums) in sums.iter_mut().enumerate() {
            // SAFETY: M elements, by the caller's promise.
            unsafe {
                let x = Self::splat(*x.add(m));
                for n in 0..N {
                    sums[n] = Self::fma(x, columns[n], sums[n]);
                }
            }
        }
    }

    /// Loads and widens `LANES` elements.
    #[inline(always)]
    unsafe fn load<E: Element>(from: *const E) -> Self::V {
        // SAFETY: the caller's promise; the element type decides which pointer this is.
        unsafe {
            match E::TYPE {
                ElementType::F32 => Self::load_f32(from.cast()),
                ElementType::F16 => Self::load_f16(from.cast()),
                ElementType::Bf16 => Self::load_bf16(from.cast()),
            }
        }
    }

    /// Rounds and stores `LANES` elements.
    #[inline(always)]
    unsafe fn store<E: Element>(to: *mut E, v: Self::V) {
        // SAFETY: the caller's promise; the element type decides which pointer this is.
        unsafe {
            match E::TYPE {
                ElementType::F32 => Self::store_f32(to.cast(), v),
                ElementType::F16 => Self::store_f16(to.cast(), v),
                ElementType::Bf16 => Self::store_bf16(to.cast(), v),
            }
        }
    }

    /// Loads `count <= LANES` elements, zeros behind them.
    #[inline(always)]
    unsafe fn load_part<E: Element>(from: *const E, count: usize) -> Self::V {
        let mut part = [E::zeroed(); MAX_LANES];
        // SAFETY: `count` elements are readable by the caller's promise and fit the copy.
        unsafe {
            std::ptr::copy_nonoverlapping(from, part.as_mut_ptr(), count);
            Self::load(part.as_ptr())
        }
    }

    /// Rounds and stores the first `count <= LANES` elements.
    #[inline(always)]
    unsafe fn store_part<E: Element>(to: *mut E, v: Self::V, count: usize) {
        let mut part = [E::zeroed(); MAX_LANES];
        // SAFETY: `count` elements are writable by the caller's promise and the copy holds a vector.
        unsafe {
            Self::store(part.as_mut_ptr(), v);
            std::ptr::copy_nonoverlapping(part.as_ptr(), to, count);
        }
    }
}

/// Eight lanes of plain Rust.
pub(super) struct Portable;

impl Simd for Portable {
    const LANES: usize = 8;
    const ROWS: usize = 4;
    type V = [f32; 8];
    #[inline(always)]
    unsafe fn splat(value: f32) -> Self::V {
        [value; 8]
    }
    #[inline(always)]
    unsafe fn load_f32(from: *const f32) -> Self::V {
        // SAFETY: eight elements, by the trait's contract.
        unsafe { from.cast::<[f32; 8]>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn load_f16(from: *const u16) -> Self::V {
        // SAFETY: eight elements, by the trait's contract.
        unsafe { from.cast::<[u16; 8]>().read_unaligned() }.map(|h| half::f16::from_bits(h).to_f32())
    }
    #[inline(always)]
    unsafe fn load_bf16(from: *const u16) -> Self::V {
        // SAFETY: eight elements, by the trait's contract.
        unsafe { from.cast::<[u16; 8]>().read_unaligned() }.map(|h| f32::from_bits(u32::from(h) << 16))
    }
    #[inline(always)]
    unsafe fn store_f32(to: *mut f32, v: Self::V) {
        // SAFETY: eight elements, by the trait's contract.
        unsafe { to.cast::<[f32; 8]>().write_unaligned(v) }
    }
    #[inline(always)]
    unsafe fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        // A fused multiply-add is a function call where the processor has none.
        let one = |i: usize| {
            if cfg!(target_arch = "aarch64") { a[i].mul_add(b[i], c[i]) } else { a[i] * b[i] + c[i] }
        };
        std::array::from_fn(one)
    }
    #[inline(always)]
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V {
        std::array::from_fn(|i| a[i] + b[i])
    }
    #[inline(always)]
    unsafe fn store_f16(to: *mut u16, v: Self::V) {
        // SAFETY: eight elements, by the trait's contract.
        unsafe { to.cast::<[u16; 8]>().write_unaligned(v.map(|v| half::f16::from_f32(v).to_bits())) }
    }
    #[inline(always)]
    unsafe fn store_bf16(to: *mut u16, v: Self::V) {
        // SAFETY: eight elements, by the trait's contract.
        unsafe { to.cast::<[u16; 8]>().write_unaligned(v.map(|v| half::bf16::from_f32(v).to_bits())) }
    }
    #[inline(always)]
    unsafe fn store_lanes(to: *mut f32, stride: usize, v: [Self::V; 4]) {
        for lane in 0..Self::LANES {
            let four = v.map(|v| v[lane]);
            // SAFETY: four elements, by the trait's contract.
            unsafe { to.add(lane * stride).cast::<[f32; 4]>().write_unaligned(four) };
        }
    }
    #[inline(always)]
    unsafe fn prefetch(_at: *const u8) {}
    #[inline(always)]
    unsafe fn prefetch_far(_at: *const u8) {}
    #[inline(always)]
    unsafe fn sums(v: [Self::V; 4]) -> [f32; 4] {
        v.map(|v| ((v[0] + v[4]) + (v[2] + v[6])) + ((v[1] + v[5]) + (v[3] + v[7])))
    }
}

#[cfg(target_arch = "aarch64")]
mod neon;
#[cfg(target_arch = "aarch64")]
pub(super) use neon::Neon;
#[cfg(target_arch = "x86_64")]
mod x86;
#[cfg(target_arch = "x86_64")]
pub(super) use x86::{Avx2, Avx512};
