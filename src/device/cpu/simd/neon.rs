//! The vectors of AArch64.
//!
//! A vector is one register of four lanes, and a register tile takes four of them, so that panels are 16 columns wide. Of
//! the 32 registers 6 rows take 6 x 4 for sums, 4 for the columns and 2 for the rows' own values (four in one register, two in
//! the other, each multiplied by its lane): 30. A step is 24 multiply-adds for 64 + 24 bytes of f32. Seven rows would take
//! 28 + 4 + 2 = 34; panels of 8 columns would leave one row two chains of sums, where the multiply-add takes four cycles.
//!
//! Optimised, a full tile takes 1.23 instructions a multiply-add with f32 (eight steps: 192 fmla by lane, 32 loads, 13 of the
//! loop), 1.42 with f16 and 1.54 with bf16, whose columns are widened by an instruction each; nothing is spilt.

use super::Simd;
use std::arch::aarch64::*;

pub(in super::super) struct Neon;

impl Simd for Neon {
    const LANES: usize = 4;
    const VECTORS: usize = 4;
    const ROWS: usize = 6;
    type V = float32x4_t;
    #[inline(always)]
    unsafe fn splat(value: f32) -> Self::V {
        // SAFETY: NEON is present, by the trait's contract (so in every method below).
        unsafe { vdupq_n_f32(value) }
    }
    #[inline(always)]
    unsafe fn load_f32(from: *const f32) -> Self::V {
        // SAFETY: as above, and four elements.
        unsafe { vld1q_f32(from) }
    }
    #[inline(always)]
    unsafe fn load_f16(from: *const u16) -> Self::V {
        // SAFETY: as above, and four elements. Conversions, unlike sums of f16, are in every AArch64.
        unsafe { vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(from))) }
    }
    #[inline(always)]
    unsafe fn load_bf16(from: *const u16) -> Self::V {
        // SAFETY: as above, and four elements.
        unsafe { vreinterpretq_f32_u32(vshll_n_u16::<16>(vld1_u16(from))) }
    }
    #[inline(always)]
    unsafe fn store_f32(to: *mut f32, v: Self::V) {
        // SAFETY: as above, and four elements.
        unsafe { vst1q_f32(to, v) }
    }
    #[inline(always)]
    unsafe fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        // SAFETY: as above.
        unsafe { vfmaq_f32(c, a, b) }
    }
    #[inline(always)]
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V {
        // SAFETY: as above.
        unsafe { vaddq_f32(a, b) }
    }
    #[inline(always)]
    unsafe fn store_f16(to: *mut u16, v: Self::V) {
        // SAFETY: as above, and four elements. Rust keeps the processor's rounding to nearest, ties to even.
        unsafe { vst1_u16(to, vreinterpret_u16_f16(vcvt_f16_f32(v))) }
    }
    #[inline(always)]
    unsafe fn store_bf16(to: *mut u16, v: Self::V) {
        // SAFETY: as above, and four elements.
        unsafe {
            let bits = vreinterpretq_u32_f32(v);
            let odd = vandq_u32(vshrq_n_u32::<16>(bits), vdupq_n_u32(1));
            let rounded = vaddq_u32(bits, vaddq_u32(odd, vdupq_n_u32(0x7fff)));
            // Rounding could carry a NaN into an infinity: it is made quiet instead.
            let quiet = vorrq_u32(bits, vdupq_n_u32(0x40_0000));
            let words = vbslq_u32(vceqq_f32(v, v), rounded, quiet);
            vst1_u16(to, vshrn_n_u32::<16>(words));
        }
    }
    #[inline(always)]
    unsafe fn sums(v: [Self::V; 4]) -> [f32; 4] {
        // SAFETY: as above. Neighbours, then the two sums of each.
        unsafe {
            let sums = vpaddq_f32(vpaddq_f32(v[0], v[1]), vpaddq_f32(v[2], v[3]));
            let mut out = [0f32; 4];
            vst1q_f32(out.as_mut_ptr(), sums);
            out
        }
    }
    #[inline(always)]
    unsafe fn store_lanes(to: *mut f32, stride: usize, v: [Self::V; 4]) {
        // SAFETY: as above, and four elements at every lane's place.
        unsafe {
            let even = [vtrn1q_f32(v[0], v[1]), vtrn1q_f32(v[2], v[3])].map(|v| vreinterpretq_f64_f32(v));
            let odd = [vtrn2q_f32(v[0], v[1]), vtrn2q_f32(v[2], v[3])].map(|v| vreinterpretq_f64_f32(v));
            let lanes = [
                vtrn1q_f64(even[0], even[1]),
                vtrn1q_f64(odd[0], odd[1]),
                vtrn2q_f64(even[0], even[1]),
                vtrn2q_f64(odd[0], odd[1]),
            ];
            for (lane, v) in lanes.into_iter().enumerate() {
                vst1q_f32(to.add(lane * stride), vreinterpretq_f32_f64(v));
            }
        }
    }
    #[inline(always)]
    unsafe fn prefetch(at: *const u8) {
        // SAFETY: a prefetch never faults and changes neither memory nor flags.
        unsafe {
            std::arch::asm!("prfm pldl1keep, [{at}]", at = in(reg) at, options(nomem, nostack, preserves_flags));
        }
    }
    #[inline(always)]
    unsafe fn prefetch_far(at: *const u8) {
        // SAFETY: as above.
        unsafe {
            std::arch::asm!("prfm pldl2keep, [{at}]", at = in(reg) at, options(nomem, nostack, preserves_flags));
        }
    }
    /// By lane: a splat would be an instruction a row.
    #[inline(always)]
    unsafe fn add_products<const M: usize, const N: usize>(
        x: *const f32,
        columns: [Self::V; N],
        sums: &mut [[Self::V; N]; M],
    ) {
        // SAFETY: as above, and M elements.
        unsafe {
            let mut m = 0;
            while m + 4 <= M {
                let four = vld1q_f32(x.add(m));
                for n in 0..N {
                    sums[m][n] = vfmaq_laneq_f32::<0>(sums[m][n], columns[n], four);
                    sums[m + 1][n] = vfmaq_laneq_f32::<1>(sums[m + 1][n], columns[n], four);
                    sums[m + 2][n] = vfmaq_laneq_f32::<2>(sums[m + 2][n], columns[n], four);
                    sums[m + 3][n] = vfmaq_laneq_f32::<3>(sums[m + 3][n], columns[n], four);
                }
                m += 4;
            }
            if m + 2 <= M {
                let two = vld1_f32(x.add(m));
                for n in 0..N {
                    sums[m][n] = vfmaq_lane_f32::<0>(sums[m][n], columns[n], two);
                    sums[m + 1][n] = vfmaq_lane_f32::<1>(sums[m + 1][n], columns[n], two);
                }
                m += 2;
            }
            if m < M {
                for n in 0..N {
                    sums[m][n] = vfmaq_n_f32(sums[m][n], columns[n], *x.add(m));
                }
            }
        }
    }
}
