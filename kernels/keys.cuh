// Scores as keys that compare as the selection ranks them: what route.cu and fused_gate.cuh share.
#pragma once

#include "common.cuh"

typedef unsigned long long u64;

constexpr u64 NOT_FINITE = ~0ull; // larger than every key

// Larger for a larger score, then for a lower expert; 0 is no key.
__device__ u64 key_of(float score, u32 e) {
    if (!is_finite(score)) return NOT_FINITE;
    u32 bits = score == 0.0f ? 0 : __float_as_uint(score); // -0 ties with 0
    bits ^= bits >> 31 ? 0xffffffffu : 0x80000000u;
    return (u64)bits << 32 | ~e;
}

__device__ float score_of(u64 key) {
    u32 bits = key >> 32;
    return __uint_as_float(bits ^ (bits >> 31 ? 0x80000000u : 0xffffffffu));
}

__device__ u64 warp_largest(u64 v) {
#pragma unroll
    for (u32 step = 16; step > 0; step /= 2) v = max(v, __shfl_xor_sync(ALL_LANES, v, step));
    return v;
}
