//! The vectors of x86.

use super::Simd;
use std::arch::x86_64::*;

pub(in super::super) struct Avx2;

impl Simd for Avx2 {
    const LANES: usize = 8;
    const ROWS: usize = 6;
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
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V {
        // SAFETY: as above.
        unsafe { _mm256_add_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn store_f16(to: *mut u16, v: Self::V) {
        // SAFETY: as above, and eight elements.
        unsafe { _mm_storeu_si128(to.cast(), _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(v)) }
    }
    #[inline(always)]
    unsafe fn store_bf16(to: *mut u16, v: Self::V) {
        // SAFETY: as above, and eight elements.
        unsafe {
            let bits = _mm256_castps_si256(v);
            let high = _mm256_srli_epi32::<16>(bits);
            let odd = _mm256_and_si256(high, _mm256_set1_epi32(1));
            let half = _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff));
            let rounded = _mm256_srli_epi32::<16>(_mm256_add_epi32(bits, half));
            // Rounding could carry a NaN into an infinity: it is made quiet instead.
            let quiet = _mm256_or_si256(high, _mm256_set1_epi32(0x40));
            let nan = _mm256_castps_si256(_mm256_cmp_ps::<_CMP_UNORD_Q>(v, v));
            let words = _mm256_blendv_epi8(rounded, quiet, nan);
            let (low, high) = (_mm256_castsi256_si128(words), _mm256_extracti128_si256::<1>(words));
            _mm_storeu_si128(to.cast(), _mm_packus_epi32(low, high));
        }
    }
    #[inline(always)]
    unsafe fn store_lanes(to: *mut f32, stride: usize, v: [Self::V; 4]) {
        // SAFETY: as above, and four elements at every lane's place.
        unsafe {
            let low =
                [_mm256_unpacklo_ps(v[0], v[1]), _mm256_unpacklo_ps(v[2], v[3])].map(|v| _mm256_castps_pd(v));
            let high =
                [_mm256_unpackhi_ps(v[0], v[1]), _mm256_unpackhi_ps(v[2], v[3])].map(|v| _mm256_castps_pd(v));
            // Lanes 0, 1, 2 and 3 of every half.
            let lanes = [
                _mm256_unpacklo_pd(low[0], low[1]),
                _mm256_unpackhi_pd(low[0], low[1]),
                _mm256_unpacklo_pd(high[0], high[1]),
                _mm256_unpackhi_pd(high[0], high[1]),
            ];
            for (lane, v) in lanes.into_iter().enumerate() {
                let v = _mm256_castpd_ps(v);
                _mm_storeu_ps(to.add(lane * stride), _mm256_extractf128_ps::<0>(v));
                _mm_storeu_ps(to.add((lane + 4) * stride), _mm256_extractf128_ps::<1>(v));
            }
        }
    }
    #[inline(always)]
    unsafe fn prefetch(at: *const u8) {
        // SAFETY: a prefetch never faults.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(at.cast()) }
    }
    #[inline(always)]
    unsafe fn prefetch_far(at: *const u8) {
        // SAFETY: a prefetch never faults.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(at.cast()) }
    }
    #[inline(always)]
    unsafe fn sums(v: [Self::V; 4]) -> [f32; 4] {
        // SAFETY: as above.
        unsafe { sums_of_halves(v) }
    }
}

pub(in super::super) struct Avx512;

impl Simd for Avx512 {
    const LANES: usize = 16;
    const ROWS: usize = 14;
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
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V {
        // SAFETY: as above.
        unsafe { _mm512_add_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn store_f16(to: *mut u16, v: Self::V) {
        // SAFETY: as above, and sixteen elements.
        unsafe { _mm256_storeu_si256(to.cast(), _mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(v)) }
    }
    #[inline(always)]
    unsafe fn store_bf16(to: *mut u16, v: Self::V) {
        // SAFETY: as above, and sixteen elements.
        unsafe {
            let bits = _mm512_castps_si512(v);
            let high = _mm512_srli_epi32::<16>(bits);
            let odd = _mm512_and_si512(high, _mm512_set1_epi32(1));
            let half = _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff));
            let rounded = _mm512_srli_epi32::<16>(_mm512_add_epi32(bits, half));
            // Rounding could carry a NaN into an infinity: it is made quiet instead.
            let nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(v, v);
            let words = _mm512_mask_or_epi32(rounded, nan, high, _mm512_set1_epi32(0x40));
            _mm256_storeu_si256(to.cast(), _mm512_cvtepi32_epi16(words));
        }
    }
    #[inline(always)]
    unsafe fn store_lanes(to: *mut f32, stride: usize, v: [Self::V; 4]) {
        // SAFETY: as above, and four elements at every lane's place.
        unsafe {
            let low =
                [_mm512_unpacklo_ps(v[0], v[1]), _mm512_unpacklo_ps(v[2], v[3])].map(|v| _mm512_castps_pd(v));
            let high =
                [_mm512_unpackhi_ps(v[0], v[1]), _mm512_unpackhi_ps(v[2], v[3])].map(|v| _mm512_castps_pd(v));
            // Lanes 0, 1, 2 and 3 of every quarter.
            let lanes = [
                _mm512_unpacklo_pd(low[0], low[1]),
                _mm512_unpackhi_pd(low[0], low[1]),
                _mm512_unpacklo_pd(high[0], high[1]),
                _mm512_unpackhi_pd(high[0], high[1]),
            ];
            for (lane, v) in lanes.into_iter().enumerate() {
                let v = _mm512_castpd_ps(v);
                _mm_storeu_ps(to.add(lane * stride), _mm512_extractf32x4_ps::<0>(v));
                _mm_storeu_ps(to.add((lane + 4) * stride), _mm512_extractf32x4_ps::<1>(v));
                _mm_storeu_ps(to.add((lane + 8) * stride), _mm512_extractf32x4_ps::<2>(v));
                _mm_storeu_ps(to.add((lane + 12) * stride), _mm512_extractf32x4_ps::<3>(v));
            }
        }
    }
    #[inline(always)]
    unsafe fn prefetch(at: *const u8) {
        // SAFETY: a prefetch never faults.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(at.cast()) }
    }
    #[inline(always)]
    unsafe fn prefetch_far(at: *const u8) {
        // SAFETY: a prefetch never faults.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(at.cast()) }
    }
    #[inline(always)]
    unsafe fn sums(v: [Self::V; 4]) -> [f32; 4] {
        // SAFETY: as above.
        unsafe { sums_of_halves([halves(v[0]), halves(v[1]), halves(v[2]), halves(v[3])]) }
    }
}

/// Lane i and lane i + 8.
#[inline(always)]
unsafe fn halves(v: __m512) -> __m256 {
    // SAFETY: AVX-512 F is present, by the caller's promise.
    unsafe {
        let high = _mm256_castpd_ps(_mm512_extractf64x4_pd::<1>(_mm512_castps_pd(v)));
        _mm256_add_ps(_mm512_castps512_ps256(v), high)
    }
}

/// Lane i and lane i + 4.
#[inline(always)]
unsafe fn quarters(v: __m256) -> __m128 {
    // SAFETY: AVX2 is present, by the caller's promise.
    unsafe { _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v)) }
}

/// Four registers' sums: lane i and lane i + 4, then i and i + 2, then the two.
#[inline(always)]
unsafe fn sums_of_halves(v: [__m256; 4]) -> [f32; 4] {
    // SAFETY: AVX2 is present, by the caller's promise.
    unsafe {
        let (a, b, c, d) = (quarters(v[0]), quarters(v[1]), quarters(v[2]), quarters(v[3]));
        let ab = _mm_add_ps(_mm_unpacklo_ps(a, b), _mm_unpackhi_ps(a, b));
        let cd = _mm_add_ps(_mm_unpacklo_ps(c, d), _mm_unpackhi_ps(c, d));
        let sums = _mm_add_ps(_mm_movelh_ps(ab, cd), _mm_movehl_ps(cd, ab));
        let mut out = [0f32; 4];
        _mm_storeu_ps(out.as_mut_ptr(), sums);
        out
    }
}
