// Base on tensor cores: y = x weight^T + bias, 128 tokens and 128 columns a block, 64 x 32 a warp.
//
//     for each 32 ks: D[token][column] += x[token][k] weight[column][k]
//     y = D + bias, rounded once
//
// 1. A ring of three tiles in shared memory: two are on their way while one is multiplied, one barrier a tile.
// 2. A tile's row is 64 bytes, four parts of 16; part c of row r lies at part c ^ (r / 2 % 4), so that eight rows of
//    one part, which is what ldmatrix takes, lie in 32 different banks. y leaves through the same memory, swizzled
//    alike.
// 3. Rows of tokens and columns that are not there, and ks behind the row's end, are filled with zeros by the copy.
#pragma once

#include "mma.cuh"

namespace base_mma {

constexpr u32 THREADS = 256, TILE = 128, SLAB = 32, STAGES = 3, PARTS = 4;

struct Shared {
    uint4 x[STAGES][TILE * PARTS];
    uint4 w[STAGES][TILE * PARTS];
};

__device__ __forceinline__ u32 place(u32 row, u32 part) { return PARTS * row + (part ^ (row / 2 % 4)); }

// A thread's share of a tile of x or of the weight: the same part of rows r and r + 64.
template <class X> struct Share {
    const X* from;
    size_t step; // to the second row
    u32 ks;      // from here to the row's end
    bool rows[2];
    u32 to; // of the first row; the parts of the second are swizzled alike

    __device__ __forceinline__ void begin(const X* table, u32 stride, u32 first, u32 end, u32 k) {
        u32 row = threadIdx.x / PARTS, part = threadIdx.x % PARTS;
        from = table + (size_t)(first + row) * stride + 8 * part;
        step = (size_t)stride * (TILE / 2);
        ks = k > 8 * part ? k - 8 * part : 0;
        rows[0] = first + row < end, rows[1] = first + row + TILE / 2 < end;
        to = place(row, part);
    }

    __device__ __forceinline__ void copy(uint4* tile, const void* any, u32 k0) const {
#pragma unroll
        for (u32 i = 0; i < 2; i++) {
            bool inside = rows[i] && k0 < ks;
            copy16(tile + to + TILE / 2 * PARTS * i, inside ? from + step * i + k0 : any, inside ? 16 : 0);
        }
    }

    // The same in two steps, where copies are not asynchronous.
    __device__ __forceinline__ void fetch(uint4 (&v)[2], u32 k0) const {
#pragma unroll
        for (u32 i = 0; i < 2; i++) {
            v[i] = rows[i] && k0 < ks ? __ldg((const uint4*)(from + step * i + k0)) : make_uint4(0, 0, 0, 0);
        }
    }

    __device__ __forceinline__ void put(uint4* tile, const uint4 (&v)[2]) const {
        tile[to] = v[0], tile[to + TILE / 2 * PARTS] = v[1];
    }
};

// A warp's products of half a tile, 16 ks: 4 x 4 of 16 tokens and 8 columns.
template <class X>
__device__ __forceinline__ void multiply_half(Product (&sums)[4][4], const uint4* x, const uint4* w, u32 half,
                                              u32 row, u32 column, u32 lane) {
    Left left[4];
    u32 right[2][4];
#pragma unroll
    for (u32 m = 0; m < 4; m++) {
        u32 r = row + 16 * m + lane % 16, part = 2 * half + lane / 16;
        load_tiles(left[m].a, shared_address(x + place(r, part)));
    }
#pragma unroll
    for (u32 n = 0; n < 2; n++) {
        u32 r = column + 16 * n + lane % 8 + lane / 16 * 8, part = 2 * half + lane / 8 % 2;
        load_tiles(right[n], shared_address(w + place(r, part)));
    }
#pragma unroll
    for (u32 m = 0; m < 4; m++) {
#pragma unroll
        for (u32 n = 0; n < 4; n++) {
            multiply<X>(sums[m][n], left[m], Right{{right[n / 2][n % 2 * 2], right[n / 2][n % 2 * 2 + 1]}});
        }
    }
}

template <class X>
__device__ __forceinline__ void multiply_all(Product (&sums)[4][4], Shared& s, const Share<X>& x, const Share<X>& w,
                                             const BaseParams& p, u32 row, u32 column, bool busy) {
    u32 lane = threadIdx.x % 32, k = p.in_features;
#pragma unroll
    for (u32 i = 0; i < STAGES - 1; i++) {
        x.copy(s.x[i], p.x, SLAB * i);
        w.copy(s.w[i], p.weight, SLAB * i);
        end_group();
    }
    u32 stage = 0;
#pragma unroll 1
    for (u32 k0 = 0; k0 < k; k0 += SLAB) {
        wait_groups<STAGES - 2>();
        __syncthreads();
        u32 free = stage == 0 ? STAGES - 1 : stage - 1, next = k0 + SLAB * (STAGES - 1);
        const uint4 *x_tile = s.x[stage], *w_tile = s.w[stage];
        if constexpr (SM80) {
            x.copy(s.x[free], p.x, next);
            w.copy(s.w[free], p.weight, next);
            end_group();
            if (busy) {
                multiply_half<X>(sums, x_tile, w_tile, 0, row, column, lane);
                multiply_half<X>(sums, x_tile, w_tile, 1, row, column, lane);
            }
        } else {
            uint4 parts[2];
            x.fetch(parts, next);
            if (busy) multiply_half<X>(sums, x_tile, w_tile, 0, row, column, lane);
            x.put(s.x[free], parts);
            w.fetch(parts, next);
            if (busy) multiply_half<X>(sums, x_tile, w_tile, 1, row, column, lane);
            w.put(s.w[free], parts);
        }
        stage = stage == STAGES - 1 ? 0 : stage + 1;
    }
    wait_groups<0>();
    __syncthreads();
}

// D + bias, rounded, to shared memory: rows of 16 parts, part c of row r at c ^ r % 8.
template <class X>
__device__ __forceinline__ void round_tile(u32* tile, const Product (&sums)[4][4], const BaseParams& p, u32 o0,
                                           u32 end, u32 row, u32 column, u32 lane) {
#pragma unroll
    for (u32 n = 0; n < 4; n++) {
        u32 own = column + 8 * n + 2 * (lane % 4);
        float bias[2] = {};
#pragma unroll
        for (u32 i = 0; i < 2; i++) {
            if (p.bias && o0 + own + i < end) bias[i] = widen(load_one((const X*)p.bias + o0 + own + i));
        }
#pragma unroll
        for (u32 m = 0; m < 8; m++) {
            u32 r = row + 8 * m + lane / 4;
            const float* d = &sums[m / 2][n].d[2 * (m % 2)];
            tile[64 * r + 4 * (own / 8 ^ r % 8) + lane % 4] = narrow_pair<X>(d[0] + bias[0], d[1] + bias[1]);
        }
    }
}

// Columns below `end`. `vector`: they begin at multiples of 16 bytes.
template <class X>
__device__ __forceinline__ void store_tile(const uint4* tile, const BaseParams& p, u32 t0, u32 o0, u32 end, u32 rows,
                                           bool vector) {
    u32 part = threadIdx.x % 16, o = o0 + 8 * part;
    if (o >= end) return;
    for (u32 r = threadIdx.x / 16; r < rows; r += THREADS / 16) {
        uint4 v = tile[16 * r + (part ^ r % 8)];
        X* y = (X*)p.y + (size_t)(t0 + r) * p.y_stride + o;
        if (vector && o + 8 <= end) {
            *(uint4*)y = v;
            continue;
        }
        u32 words[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
        for (u32 i = 0; i < 8; i++) {
            if (o + i < end) y[i] = X{(unsigned short)(words[i / 2] >> 16 * (i % 2))};
        }
    }
}

template <class X> __device__ __forceinline__ void base(const BaseParams& p) {
    __shared__ Shared s;
    u32 t0 = TILE * (blockIdx.x / p.column_blocks), o0 = TILE * (blockIdx.x % p.column_blocks);
    u32 live = live_tokens(p.live_tokens, p.tokens);
    if (t0 >= live) return;
    u32 warp = threadIdx.x / 32, lane = threadIdx.x % 32, row = 64 * (warp / 4), column = 32 * (warp % 4);
    Share<X> x, w;
    x.begin((const X*)p.x, p.x_stride, t0, live, p.in_features);
    w.begin((const X*)p.weight, p.in_features, o0, p.out_features, p.in_features);
    Product sums[4][4] = {};
    multiply_all<X>(sums, s, x, w, p, row, column, t0 + row < live && o0 + column < p.out_features);
    round_tile<X>((u32*)&s, sums, p, o0, p.out_features, row, column, lane);
    __syncthreads();
    store_tile<X>((const uint4*)&s, p, t0, o0, p.out_features, min(live - t0, TILE), p.y_vector);
}

} // namespace base_mma
