//! The vector registers that the kernels are written in, one implementation per instruction set.

use crate::element::{Element, ElementType};

/// The instruction sets, widest last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Level {
    /// Plain Rust, left to the compiler.
    Portable,
    /// AVX2 with FMA and F16C.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// AVX-512 F.
    #[cfg(target_arch = "x86_64")]
    Avx512,
}

impl Level {
    /// The widest that this processor has.
    pub(crate) fn detect() -> Self {
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx512f") {
                return Self::Avx512;
            }
            if is_x86_feature_detected!("avx2")
                && is_x86_feature_detected!("fma")
                && is_x86_feature_detected!("f16c")
            {
                return Self::Avx2;
            }
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
        }
    }

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Portable => "portable",
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => "AVX2+FMA",
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => "AVX-512",
        }
    }
}

/// A register of f32 lanes.
///
/// Every method is `unsafe`: it may only run where the instruction set is present, and pointers must be good for
/// `LANES` elements. All are inlined into a function that enables the instruction set.
pub(super) trait Simd {
    const LANES: usize;
    type V: Copy;
    unsafe fn splat(value: f32) -> Self::V;
    unsafe fn load_f32(from: *const f32) -> Self::V;
    unsafe fn load_f16(from: *const u16) -> Self::V;
    unsafe fn load_bf16(from: *const u16) -> Self::V;
    unsafe fn store_f32(to: *mut f32, v: Self::V);
    /// `a * b + c`
    unsafe fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// Sum of the lanes in one fixed order.
    unsafe fn sum(v: Self::V) -> f32;

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
}

/// Eight lanes of plain Rust.
pub(super) struct Portable;

impl Simd for Portable {
    const LANES: usize = 8;
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
    unsafe fn sum(v: Self::V) -> f32 {
        ((v[0] + v[4]) + (v[1] + v[5])) + ((v[2] + v[6]) + (v[3] + v[7]))
    }
}

#[cfg(target_arch = "x86_64")]
pub(super) use x86::{Avx2, Avx512};

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::Simd;
    use std::arch::x86_64::*;

    pub(in super::super) struct Avx2;

    impl Simd for Avx2 {
        const LANES: usize = 8;
        type V = __m256;
        #[inline(always)]
        unsafe fn splat(value: f32) -> Self::V {
            // SAFETY: AVX2 is present, by the trait's contract (so in every method below).
            unsafe { _mm256_set1_ps(value) }
        }
        #[inline(always)]
        unsafe fn load_f32(from: *const f32) -> Self::V {
            // SAFETY: as above, and eight elements.
            unsafe { _mm256_loadu_ps(from) }
        }
        #[inline(always)]
        unsafe fn load_f16(from: *const u16) -> Self::V {
            // SAFETY: as above, and eight elements.
            unsafe { _mm256_cvtph_ps(_mm_loadu_si128(from.cast())) }
        }
        #[inline(always)]
        unsafe fn load_bf16(from: *const u16) -> Self::V {
            // SAFETY: as above, and eight elements.
            unsafe {
                let wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(from.cast()));
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(wide))
            }
        }
        #[inline(always)]
        unsafe fn store_f32(to: *mut f32, v: Self::V) {
            // SAFETY: as above, and eight elements.
            unsafe { _mm256_storeu_ps(to, v) }
        }
        #[inline(always)]
        unsafe fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V {
            // SAFETY: as above.
            unsafe { _mm256_fmadd_ps(a, b, c) }
        }
        #[inline(always)]
        unsafe fn sum(v: Self::V) -> f32 {
            // SAFETY: as above.
            unsafe {
                let four = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
                let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
                _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps::<1>(two, two)))
            }
        }
    }

    pub(in super::super) struct Avx512;

    impl Simd for Avx512 {
        const LANES: usize = 16;
        type V = __m512;
        #[inline(always)]
        unsafe fn splat(value: f32) -> Self::V {
            // SAFETY: AVX-512 F is present, by the trait's contract (so in every method below).
            unsafe { _mm512_set1_ps(value) }
        }
        #[inline(always)]
        unsafe fn load_f32(from: *const f32) -> Self::V {
            // SAFETY: as above, and sixteen elements.
            unsafe { _mm512_loadu_ps(from) }
        }
        #[inline(always)]
        unsafe fn load_f16(from: *const u16) -> Self::V {
            // SAFETY: as above, and sixteen elements.
            unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(from.cast())) }
        }
        #[inline(always)]
        unsafe fn load_bf16(from: *const u16) -> Self::V {
            // SAFETY: as above, and sixteen elements.
            unsafe {
                let wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.cast()));
                _mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide))
            }
        }
        #[inline(always)]
        unsafe fn store_f32(to: *mut f32, v: Self::V) {
            // SAFETY: as above, and sixteen elements.
            unsafe { _mm512_storeu_ps(to, v) }
        }
        #[inline(always)]
        unsafe fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V {
            // SAFETY: as above.
            unsafe { _mm512_fmadd_ps(a, b, c) }
        }
        #[inline(always)]
        unsafe fn sum(v: Self::V) -> f32 {
            // SAFETY: as above.
            unsafe { _mm512_reduce_add_ps(v) }
        }
    }
}
