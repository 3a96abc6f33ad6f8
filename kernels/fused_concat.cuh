// Fused: rows [weight | B_all] for an engine's own product; copies of elements of 2 or 4 bytes.
//
//     block: 32 rows; 256 columns of the weight, or 32 rows of B, transposed in shared memory
#pragma once

#include "common.cuh"

namespace concat {

constexpr u32 THREADS = 256, ROWS = 32, COLUMNS = 256, RANKS = 32;

template <class Bits> __device__ __forceinline__ void copy(const ConcatParams& p) {
    __shared__ Bits tile[RANKS][ROWS + 1];
    u32 o0 = ROWS * (blockIdx.x / p.blocks), part = blockIdx.x % p.blocks;
    Bits* to = (Bits*)p.concat;
    if (part < p.weight_blocks) {
        u32 i = COLUMNS * part + threadIdx.x;
        for (u32 o = o0; i < p.in_features && o < min(o0 + ROWS, p.out_features); o++) {
            to[(size_t)o * p.stride + i] = __ldg((const Bits*)p.weight + (size_t)o * p.in_features + i);
        }
        return;
    }
    u32 r0 = RANKS * (part - p.weight_blocks), lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    for (u32 r = warp; r < RANKS; r += THREADS / 32) {
        if (r0 + r < p.columns && o0 + lane < p.out_features) {
            tile[r][lane] = __ldg((const Bits*)p.b + (size_t)(r0 + r) * p.b_stride + o0 + lane);
        }
    }
    __syncthreads();
    for (u32 o = warp; o < ROWS; o += THREADS / 32) {
        if (r0 + lane < p.columns && o0 + o < p.out_features) {
            to[(size_t)(o0 + o) * p.stride + p.in_features + r0 + lane] = tile[lane][o];
        }
    }
}

} // namespace concat

extern "C" __global__ void __launch_bounds__(concat::THREADS) fused_concat(const __grid_constant__ ConcatParams p) {
    if (p.bytes == 2) concat::copy<unsigned short>(p);
    else concat::copy<u32>(p);
}
