// Shrink on tensor cores: h_n = A x_t for a tile of the plan (up to 64 routes of one expert) and 32 ranks.
//
//     for each slab of 32 ks, slab s to warp s % 8:
//         D[rank][route] += A[rank][k] x[token of route][k]
//     h[route][rank] = the sum of the 8 warps' D in the warps' order
//
// 1. Ranks are M and routes N: 12 routes an expert fill 16 columns of 16 ranks, not 16 rows of 8 and more.
// 2. Operands go from global memory straight to registers, 16 bytes a lane: a row's four lanes take 64 bytes of it,
//    two whole sectors, and every element of A and x is read once. Lane q holds ks 8 q .. 8 q + 7 of a slab; which
//    place of k they stand for in a product is free as long as A and x agree.
// 3. Lanes of ranks and routes that are not there repeat the last one's address: no sector more, and what they
//    compute is not stored.
// 4. Which warp takes a slab depends on in_features alone: a route's bits do not depend on the rest of its batch.
#pragma once

#include "slabs.cuh"

namespace shrink_mma {

using slabs::WARPS;
constexpr u32 THREADS = 256, RANKS = 32;

struct Shared {
    float4 parts[WARPS][8 * 32]; // [warp][product][lane]
    u32 routes[TILE_ROUTES];
    u32 x_rows[TILE_ROUTES]; // in units of 16 bytes
    u32 row, ranks, count;   // of A; 0 ranks: nothing to do
};

// One warp reads what the block works on: uniform loads of eight would cost eight sectors each.
__device__ __forceinline__ void find_tile(const ShrinkParams& p, Shared& s, u32 lane) {
    const u32* words = p.plan.words;
    u32 tile = blockIdx.x / p.rank_blocks, r0 = RANKS * (blockIdx.x % p.rank_blocks);
    u32 ranks = 0;
    if (plan_live_tokens(p.plan) > 0 && tile < words[p.plan.at_tile_offsets + p.plan.experts]) {
        u32 e = words[p.plan.at_tiles + 2 * tile], first = words[p.plan.at_tiles + 2 * tile + 1];
        u32 count = min(words[p.plan.at_offsets + e + 1] - first, TILE_ROUTES);
        Slot slot = slot_at(p.plan, e);
        u32 refused = refusal(p.plan, slot, plan_clock(p.plan));
        if (refused == 0 && r0 < slot.rank) ranks = min(slot.rank - r0, RANKS);
        if (refused != 0 && lane == 0) atomicOr(p.plan.status, refused);
        for (u32 i = lane; i < count; i += 32) {
            u32 n = words[p.plan.at_sorted + first + i];
            s.routes[i] = n;
            s.x_rows[i] = n / p.plan.top_k * (p.x_stride / 8);
        }
        if (lane == 0) s.row = slot.row + r0, s.count = count;
    }
    if (lane == 0) s.ranks = ranks;
}

// A warp's share of the products of MT x 16 ranks and the tile's routes first .. first + 8 NT.
template <class X, u32 MT, u32 NT> __device__ __forceinline__ void take(const ShrinkParams& p, Shared& s, u32 first) {
    u32 warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    slabs::Products<X, MT, NT> products;
    auto a_row = [&](u32 i) { return (const X*)p.a + (size_t)(s.row + min(i, s.ranks - 1)) * p.a_stride; };
    auto x_row = [&](u32 i) { return (const X*)p.x + (size_t)s.x_rows[min(first + i, s.count - 1)] * 8; };
    products.begin(a_row, x_row, warp, lane);
    products.add_all(p.in_features, warp, lane);
#pragma unroll
    for (u32 i = 0; i < MT * NT; i++) {
        const float(&d)[4] = products.sums[i / NT][i % NT].d;
        s.parts[warp][32 * (8 / MT * (i / NT) + i % NT) + lane] = make_float4(d[0], d[1], d[2], d[3]);
    }
}

// Adds the warps' shares in their order; `width` products of eight routes beside one another.
__device__ __forceinline__ void finish(const ShrinkParams& p, const Shared& s, u32 first, u32 width) {
    u32 warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    u32 r0 = 16 * (warp / width) + lane / 4, n0 = first + 8 * (warp % width) + 2 * (lane % 4);
    if (first + 8 * (warp % width) >= s.count || r0 - lane / 4 >= s.ranks) return;
    float sum[4] = {};
#pragma unroll
    for (u32 w = 0; w < WARPS; w++) {
        float4 part = s.parts[w][threadIdx.x];
        sum[0] += part.x, sum[1] += part.y, sum[2] += part.z, sum[3] += part.w;
    }
    float* h = p.h + RANKS * (blockIdx.x % p.rank_blocks);
#pragma unroll
    for (u32 i = 0; i < 4; i++) {
        u32 r = r0 + 8 * (i / 2), n = n0 + i % 2;
        if (r < s.ranks && n < s.count) h[(size_t)s.routes[n] * p.h_stride + r] = sum[i];
    }
}

template <class X> __device__ __forceinline__ void shrink(const ShrinkParams& p) {
    __shared__ Shared s;
    if (threadIdx.x < 32) find_tile(p, s, threadIdx.x);
    __syncthreads();
    if (s.ranks == 0) return;
    u32 products = (s.count + 7) / 8;
    if (s.ranks <= 16) {
        switch (products) {
        case 1: take<X, 1, 1>(p, s, 0); break;
        case 2: take<X, 1, 2>(p, s, 0); break;
        case 3: take<X, 1, 3>(p, s, 0); break;
        case 4: take<X, 1, 4>(p, s, 0); break;
        case 5:
        case 6: take<X, 1, 6>(p, s, 0); break;
        default: take<X, 1, 8>(p, s, 0);
        }
        __syncthreads();
        return finish(p, s, 0, 8);
    }
    // Two halves: the partial sums of 64 routes and 32 ranks would not fit.
    for (u32 first = 0; first < s.count; first += 32) {
        switch ((s.count - first + 7) / 8) {
        case 1: take<X, 2, 1>(p, s, first); break;
        case 2: take<X, 2, 2>(p, s, first); break;
        case 3: take<X, 2, 3>(p, s, first); break;
        default: take<X, 2, 4>(p, s, first);
        }
        __syncthreads();
        finish(p, s, first, 4);
        __syncthreads();
    }
}

} // namespace shrink_mma

extern "C" __global__ void __launch_bounds__(shrink_mma::THREADS, 2)
shrink_mma_f16(const __grid_constant__ ShrinkParams p) {
    shrink_mma::shrink<f16>(p);
}

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
extern "C" __global__ void __launch_bounds__(shrink_mma::THREADS, 2)
shrink_mma_bf16(const __grid_constant__ ShrinkParams p) {
    shrink_mma::shrink<bf16>(p);
}
#endif
