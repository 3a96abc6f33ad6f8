// What every kernel shares: elements, loads, sums over a warp, slots, a plan's sections.
#pragma once

#include "params.cuh"

constexpr u32 ALL_LANES = 0xffffffffu;

// Elements. Arithmetic is f32; 16-bit elements are bits that are widened by a load and rounded once by a store.
struct f16 {
    unsigned short bits;
};
struct bf16 {
    unsigned short bits;
};

__device__ __forceinline__ float widen(float v) { return v; }

__device__ __forceinline__ float widen(f16 v) {
    float wide;
    asm("cvt.f32.f16 %0, %1;" : "=f"(wide) : "h"(v.bits));
    return wide;
}

// bf16 is the upper half of an f32: widening is exact.
__device__ __forceinline__ float widen(bf16 v) { return __uint_as_float((u32)v.bits << 16); }

template <class E> __device__ __forceinline__ E narrow(float v);

template <> __device__ __forceinline__ float narrow<float>(float v) { return v; }

template <> __device__ __forceinline__ f16 narrow<f16>(float v) {
    f16 narrowed;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(narrowed.bits) : "f"(v));
    return narrowed;
}

// To nearest, ties to even; a NaN stays one. By its bits: sm_75 has no instruction for it.
template <> __device__ __forceinline__ bf16 narrow<bf16>(float v) {
    u32 bits = __float_as_uint(v);
    u32 rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    bool nan = (bits & 0x7fffffffu) > 0x7f800000u;
    return bf16{(unsigned short)(nan ? (bits >> 16) | 0x40u : rounded)};
}

// N neighbouring elements as they lie in memory.
template <class E, u32 N> struct Raw {
    static constexpr u32 WORDS = N * sizeof(E) / 4;
    u32 words[WORDS];
};

template <u32 N> __device__ __forceinline__ float raw_at(const Raw<float, N>& raw, u32 i) {
    return __uint_as_float(raw.words[i]);
}

template <u32 N> __device__ __forceinline__ float raw_at(const Raw<f16, N>& raw, u32 i) {
    return widen(f16{(unsigned short)(raw.words[i / 2] >> 16 * (i % 2))});
}

template <u32 N> __device__ __forceinline__ float raw_at(const Raw<bf16, N>& raw, u32 i) {
    u32 word = raw.words[i / 2];
    return __uint_as_float(i % 2 ? word & 0xffff0000u : word << 16);
}

// Eight or four elements, `from` at a multiple of 16 bytes (8 where they fill only 8); nothing else writes there.
template <u32 N, class E> __device__ __forceinline__ Raw<E, N> load(const E* from) {
    Raw<E, N> raw;
    if constexpr (Raw<E, N>::WORDS == 2) {
        uint2 v = __ldg((const uint2*)from);
        raw.words[0] = v.x, raw.words[1] = v.y;
    } else {
#pragma unroll
        for (u32 i = 0; i < Raw<E, N>::WORDS; i += 4) {
            uint4 v = __ldg((const uint4*)from + i / 4);
            raw.words[i] = v.x, raw.words[i + 1] = v.y, raw.words[i + 2] = v.z, raw.words[i + 3] = v.w;
        }
    }
    return raw;
}

__device__ __forceinline__ u32 bits_of(float v) { return __float_as_uint(v); }
__device__ __forceinline__ u32 bits_of(f16 v) { return v.bits; }
__device__ __forceinline__ u32 bits_of(bf16 v) { return v.bits; }

// One element that nothing writes.
__device__ __forceinline__ float load_one(const float* from) { return __ldg(from); }
__device__ __forceinline__ f16 load_one(const f16* from) { return f16{__ldg(&from->bits)}; }
__device__ __forceinline__ bf16 load_one(const bf16* from) { return bf16{__ldg(&from->bits)}; }

// The first `count` of N elements wherever they lie, zeros behind.
template <u32 N, class E> __device__ __forceinline__ Raw<E, N> load_each(const E* from, u32 count) {
    constexpr u32 EACH = 4 / sizeof(E);
    Raw<E, N> raw;
#pragma unroll
    for (u32 i = 0; i < N; i++) {
        u32 bits = i < count ? bits_of(load_one(from + i)) : 0;
        raw.words[i / EACH] = i % EACH ? raw.words[i / EACH] | bits << 16 : bits;
    }
    return raw;
}

// N elements from column i of a row of k on, zeros behind its end. `vector`: rows start at multiples of 16 bytes.
template <u32 N, class E> __device__ __forceinline__ Raw<E, N> load_part(const E* row, u32 i, u32 k, bool vector) {
    if (vector && i + N <= k) return load<N>(row + i);
    return load_each<N>(row + i, i < k ? k - i : 0);
}

// The first `count` of N columns, added to what stands there where `accumulate`; `vector` as above.
template <u32 N, class E>
__device__ __forceinline__ void store_part(E* to, const float (&v)[N], u32 count, bool vector, bool accumulate) {
    constexpr u32 EACH = 4 / sizeof(E), WORDS = N / EACH;
    if (vector && count >= N) {
        u32 words[WORDS];
        if (accumulate) {
            Raw<E, N> old;
#pragma unroll
            for (u32 i = 0; i < WORDS; i += 2) {
                uint2 pair = ((const uint2*)to)[i / 2];
                old.words[i] = pair.x, old.words[i + 1] = pair.y;
            }
#pragma unroll
            for (u32 i = 0; i < N; i++) {
                u32 bits = bits_of(narrow<E>(v[i] + raw_at(old, i)));
                words[i / EACH] = i % EACH ? words[i / EACH] | bits << 16 : bits;
            }
        } else {
#pragma unroll
            for (u32 i = 0; i < N; i++) {
                u32 bits = bits_of(narrow<E>(v[i]));
                words[i / EACH] = i % EACH ? words[i / EACH] | bits << 16 : bits;
            }
        }
        if constexpr (WORDS == 2) {
            *(uint2*)to = make_uint2(words[0], words[1]);
        } else {
#pragma unroll
            for (u32 i = 0; i < WORDS; i += 4) {
                ((uint4*)to)[i / 4] = make_uint4(words[i], words[i + 1], words[i + 2], words[i + 3]);
            }
        }
        return;
    }
#pragma unroll
    for (u32 i = 0; i < N; i++) {
        if (i < count) to[i] = narrow<E>(accumulate ? v[i] + widen(to[i]) : v[i]);
    }
}

// By its bits: a compiler may assume that floats are never NaN.
__device__ __forceinline__ bool is_finite(float v) { return (__float_as_uint(v) & 0x7f800000u) != 0x7f800000u; }

// The sum over a warp's lanes, in every lane and always in the same order.
__device__ __forceinline__ float warp_sum(float v) {
#pragma unroll
    for (u32 step = 16; step > 0; step /= 2) v += __shfl_xor_sync(ALL_LANES, v, step);
    return v;
}

__device__ __forceinline__ u32 live_tokens(const u32* live, u32 tokens) { return live ? min(tokens, *live) : tokens; }

// What a plan remembers of the time when it was made.
__device__ __forceinline__ u32 plan_clock(const PlanParams& plan) { return plan.words[0]; }
__device__ __forceinline__ u32 plan_live_tokens(const PlanParams& plan) { return plan.words[1]; }

__device__ __forceinline__ Slot slot_at(const PlanParams& plan, u32 e) {
    uint4 v = *((const uint4*)plan.slots + e);
    return Slot{v.x, v.y, __uint_as_float(v.z), v.w};
}

// 0 where ids of a plan made at `clock` may use the slot, else the bit that says why not.
__device__ __forceinline__ u32 refusal(const PlanParams& plan, const Slot& slot, u32 clock) {
    if (slot.rank == 0 || slot.added_at > clock) return STALE_SLOT;
    return slot.rank > plan.max_rank ? RANK_TOO_LARGE : 0;
}
