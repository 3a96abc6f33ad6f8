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

// 16 bytes at once, or 8 where that is all.
template <u32 WORDS> struct Words {
    typedef uint4 At_once;
};
template <> struct Words<2> {
    typedef uint2 At_once;
};

__device__ __forceinline__ void unpack(uint4 v, u32* words) {
    words[0] = v.x, words[1] = v.y, words[2] = v.z, words[3] = v.w;
}
__device__ __forceinline__ void unpack(uint2 v, u32* words) { words[0] = v.x, words[1] = v.y; }

// The compiler may take such stores apart, but does not put them together again.
__device__ __forceinline__ void store_words(const u32* words, uint4* to) {
    asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(__cvta_generic_to_global(to)), "r"(words[0]),
                 "r"(words[1]), "r"(words[2]), "r"(words[3])
                 : "memory");
}
__device__ __forceinline__ void store_words(const u32* words, uint2* to) {
    asm volatile("st.global.v2.b32 [%0], {%1, %2};" ::"l"(__cvta_generic_to_global(to)), "r"(words[0]), "r"(words[1])
                 : "memory");
}

// N elements that nothing writes, `from` at a multiple of the bytes read at once.
template <u32 N, class E> __device__ __forceinline__ Raw<E, N> load(const E* from) {
    typedef typename Words<Raw<E, N>::WORDS>::At_once V;
    constexpr u32 EACH = sizeof(V) / 4;
    Raw<E, N> raw;
#pragma unroll
    for (u32 i = 0; i < Raw<E, N>::WORDS; i += EACH) unpack(__ldg((const V*)from + i / EACH), raw.words + i);
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

// Writes the first `count` of N columns, added to what stands there where `accumulate`; `vector` as above.
template <u32 N, class E>
__device__ __forceinline__ void store_part(E* to, const float (&v)[N], u32 count, bool vector, bool accumulate) {
    constexpr u32 WORDS = Raw<E, N>::WORDS;
    typedef typename Words<WORDS>::At_once V;
    constexpr u32 EACH = sizeof(V) / 4, PACKED = N / WORDS;
    if (!vector || count < N) {
#pragma unroll
        for (u32 i = 0; i < N; i++) {
            if (i < count) to[i] = narrow<E>(accumulate ? v[i] + widen(to[i]) : v[i]);
        }
        return;
    }
    Raw<E, N> raw = {};
    if (accumulate) {
#pragma unroll
        for (u32 i = 0; i < WORDS; i += EACH) unpack(((const V*)to)[i / EACH], raw.words + i);
    }
    u32 words[WORDS] = {};
#pragma unroll
    for (u32 i = 0; i < N; i++) {
        float sum = accumulate ? v[i] + raw_at(raw, i) : v[i];
        words[i / PACKED] |= bits_of(narrow<E>(sum)) << 16 * (i % PACKED);
    }
#pragma unroll
    for (u32 i = 0; i < WORDS; i += EACH) store_words(words + i, (V*)to + i / EACH);
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

// Its live tokens; none where the memory holds no plan that this launch was made for.
__device__ __forceinline__ u32 plan_live_tokens(const PlanParams& plan) {
    if (plan.words[2] == plan.stamp) return plan.words[1];
    if (threadIdx.x == 0) atomicOr(plan.status, STALE_PLAN);
    return 0;
}

__device__ __forceinline__ Slot slot_at(const PlanParams& plan, u32 e) {
    uint4 v = *((const uint4*)plan.slots + e);
    return Slot{v.x, v.y, __uint_as_float(v.z), v.w};
}

// 0 where ids of a plan made at `clock` may use the slot, else the bit that says why not.
__device__ __forceinline__ u32 refusal(const PlanParams& plan, const Slot& slot, u32 clock) {
    if (slot.rank == 0 || slot.added_at > clock) return STALE_SLOT;
    return slot.rank > plan.max_rank ? RANK_TOO_LARGE : 0;
}
