// Grouped on tensor cores: a tile of the plan (up to 64 routes of one base expert) and 128 rows of its weight, 64 x 32 a
// warp; the sums run on over the LoRAs that the tile's routes use, 16 ranks a step.
//
//     for each 32 ks:                         D[route][column] += x[row of route][k] weight[expert][column][k]
//     for each 16 ranks of each LoRA, slice:  D[route][column] += z[route][rank] B[rank][column]
//     plain: y = D    gated: y = silu(gate) up    combined: scratch = D; see grouped_tile.cuh
//
// 1. Tiles, ring and swizzle are base's (base_mma.cuh); rows of x are gathered by the copies.
// 2. Gated: a tile's columns are eight of gate, the same eight of up, and so on: one thread holds both of an element.
//    A LoRA's step is of one slice, and zeros on the other's columns.
// 3. z = scaling h of the routes that use the step's LoRA, 0 of all others, rounded to the element once. f16 has not h's
//    range: there each route's 16 ranks are scaled by a power of two, exactly, and the product is scaled back.
#pragma once

#include "base_mma.cuh"
#include "grouped_tile.cuh"

namespace grouped_mma {

using base_mma::PARTS;
using base_mma::place;
using base_mma::SLAB;
using base_mma::STAGES;
using grouped::Extent;
using grouped::Tile;
using grouped::Walk;
constexpr u32 THREADS = 128, ROUTES = TILE_ROUTES, COLUMNS = 128, RANKS = 16, STEP = THREADS / PARTS;

struct Stages {
    uint4 x[STAGES][ROUTES * PARTS];
    uint4 w[STAGES][COLUMNS * PARTS];
};

struct Extension {
    uint4 b[STAGES][RANKS * COLUMNS / 8];
    uint4 z[STAGES][ROUTES * RANKS / 8];
    float back[STAGES][ROUTES]; // f16: what a route's product is multiplied by
};

struct Shared {
    union {
        Stages stages;
        Extension extension;
        uint4 y[ROUTES * COLUMNS / 8]; // rows of 16 parts, part c of row r at c ^ r % 8
    };
    Tile tile;
};

template <class X> constexpr bool HAS_RANGE = false;
template <> constexpr bool HAS_RANGE<bf16> = true;

// A thread's share of the tiles of x and of the weight: one part of every 32nd row.
template <class X> struct Share {
    const X *x[2], *w;
    size_t w_step;
    u32 ks, to, w_rows; // ks: to the row's end; w_rows: a bit for each of the four rows of the weight
    bool x_rows[2];

    __device__ __forceinline__ void begin(const GroupedParams& p, const Tile& s, const Extent& extent, u32 o0) {
        u32 row = threadIdx.x / PARTS, part = threadIdx.x % PARTS;
#pragma unroll
        for (u32 i = 0; i < 2; i++) {
            x_rows[i] = row + STEP * i < extent.routes;
            x[i] = (const X*)grouped::x_row(p, s.routes[row + STEP * i], sizeof(X)) + 8 * part;
        }
        bool gated = p.rows == GATED, up = gated && row % 16 >= 8;
        u32 o = o0 + (gated ? row / 16 * 8 + row % 8 : row), step = gated ? STEP / 2 : STEP;
        w = (const X*)p.weight + ((size_t)extent.expert * p.out_features + o + (up ? p.width : 0)) * p.in_features + 8 * part;
        w_step = (size_t)step * p.in_features;
        w_rows = 0;
#pragma unroll
        for (u32 i = 0; i < 4; i++) w_rows |= (o + step * i < p.width ? 1u : 0u) << i;
        ks = p.in_features > 8 * part ? p.in_features - 8 * part : 0;
        to = place(row, part);
    }

    __device__ __forceinline__ void copy(Stages& s, u32 stage, const GroupedParams& p, u32 k0) const {
        bool more = k0 < ks;
#pragma unroll
        for (u32 i = 0; i < 2; i++) {
            bool inside = more && x_rows[i];
            copy16(s.x[stage] + to + STEP * PARTS * i, inside ? (const void*)(x[i] + k0) : p.x, inside ? 16 : 0);
        }
#pragma unroll
        for (u32 i = 0; i < 4; i++) {
            bool inside = more && w_rows >> i & 1;
            copy16(s.w[stage] + to + STEP * PARTS * i, inside ? (const void*)(w + w_step * i + k0) : p.weight, inside ? 16 : 0);
        }
        end_group();
    }
};

template <class X>
__device__ __forceinline__ void multiply_base(Product (&sums)[4][4], Stages& s, const Share<X>& share, const GroupedParams& p,
                                              u32 column) {
    u32 lane = threadIdx.x % 32, stage = 0;
#pragma unroll
    for (u32 i = 0; i < STAGES - 1; i++) share.copy(s, i, p, SLAB * i);
#pragma unroll 1
    for (u32 k0 = 0; k0 < p.in_features; k0 += SLAB) {
        wait_groups<STAGES - 2>();
        __syncthreads();
        share.copy(s, stage == 0 ? STAGES - 1 : stage - 1, p, k0 + SLAB * (STAGES - 1));
        base_mma::multiply_half<X>(sums, s.x[stage], s.w[stage], 0, 0, column, lane);
        base_mma::multiply_half<X>(sums, s.x[stage], s.w[stage], 1, 0, column, lane);
        stage = stage == STAGES - 1 ? 0 : stage + 1;
    }
    wait_groups<0>();
    __syncthreads();
}

__device__ __forceinline__ u32 b_place(u32 rank, u32 part) { return COLUMNS / 8 * rank + (part ^ rank % 8); }
__device__ __forceinline__ u32 z_place(u32 route, u32 part) { return 2 * route + (part ^ route / 4 % 2); }

// A step's rows of B, the block's columns; zeros where they are not there, or of the other slice.
template <class X> __device__ __forceinline__ void copy_b(const GroupedParams& p, uint4* b, const Walk& walk, u32 o0) {
    bool gated = p.rows == GATED;
#pragma unroll
    for (u32 i = 0; i < RANKS * COLUMNS / 8 / THREADS; i++) {
        u32 r = threadIdx.x / 16 + THREADS / 16 * i, part = threadIdx.x % 16;
        u32 column = o0 + 8 * (gated ? part / 2 : part);
        bool inside = walk.k + r < walk.rank && column < p.b_stride && (!gated || part % 2 == walk.slice);
        const X* from = (const X*)p.b + (size_t)(walk.row + walk.k + r) * p.b_stride + column;
        copy16(b + b_place(r, part), inside ? (const void*)from : p.b, inside ? 16 : 0);
    }
    end_group();
}

// A route's eight ranks of z: two threads a route.
template <class X>
__device__ __forceinline__ void put_z(Extension& s, u32 stage, const Raw<float, 8>& h, float scaling) {
    u32 route = threadIdx.x / 2, part = threadIdx.x % 2;
    float v[8], scale = 1.0f;
#pragma unroll
    for (u32 i = 0; i < 8; i++) v[i] = scaling * raw_at(h, i);
    if constexpr (!HAS_RANGE<X>) {
        float largest = 0.0f;
#pragma unroll
        for (u32 i = 0; i < 8; i++) largest = fmaxf(largest, fabsf(v[i]));
        largest = fmaxf(largest, __shfl_xor_sync(ALL_LANES, largest, 1));
        // The largest of the 16 comes to 1024 .. 2048.
        u32 exponent = max(__float_as_uint(largest) >> 23, 11u);
        scale = __uint_as_float((264 - exponent) << 23);
        if (part == 0) s.back[stage][route] = __uint_as_float((exponent - 10) << 23);
    }
    uint4 words;
    words.x = narrow_pair<X>(v[0] * scale, v[1] * scale), words.y = narrow_pair<X>(v[2] * scale, v[3] * scale);
    words.z = narrow_pair<X>(v[4] * scale, v[5] * scale), words.w = narrow_pair<X>(v[6] * scale, v[7] * scale);
    s.z[stage][z_place(route, part)] = words;
}

// A warp's products of a step. Half of the columns at a time: registers are short.
template <class X>
__device__ __forceinline__ void multiply_step(Product (&sums)[4][4], const Extension& s, u32 stage, u32 column) {
    u32 lane = threadIdx.x % 32;
#pragma unroll
    for (u32 half = 0; half < 2; half++) {
        u32 right[4];
        load_tiles_transposed(right, shared_address(s.b[stage] + b_place(lane % 16, column / 8 + 2 * half + lane / 16)));
#pragma unroll
        for (u32 m = 0; m < 4; m++) {
            Left left;
            load_tiles(left.a, shared_address(s.z[stage] + z_place(16 * m + lane % 16, lane / 16)));
            // Not all at once: registers are short.
            const volatile float* at = &s.back[stage][16 * m + lane / 4];
            float back[2];
            if constexpr (!HAS_RANGE<X>) back[0] = at[0], back[1] = at[8];
#pragma unroll
            for (u32 n = 0; n < 2; n++) {
                Right b{{right[2 * n], right[2 * n + 1]}};
                if constexpr (HAS_RANGE<X>) {
                    multiply<X>(sums[m][2 * half + n], left, b);
                } else {
                    Product product{};
                    multiply<X>(product, left, b);
                    float(&d)[4] = sums[m][2 * half + n].d;
#pragma unroll
                    for (u32 i = 0; i < 4; i++) d[i] = fmaf(product.d[i], back[i / 2], d[i]);
                }
            }
        }
    }
}

// The steps of all LoRAs of the tile: B of two and h of one are on their way while one is multiplied.
template <class X>
__device__ __forceinline__ void extend(Product (&sums)[4][4], Shared& s, const GroupedParams& p, const Extent& extent, u32 o0,
                                       u32 column) {
    u32 route = threadIdx.x / 2, r = 8 * (threadIdx.x % 2), stage = 0;
    Extension& e = s.extension;
    Walk ahead;
    ahead.open(p, s.tile, extent.loras, 0, 0);
    Raw<float, 8> h;
    float scaling;
    bool next;
    auto bring = [&](u32 to) {
        next = ahead.rank > 0;
        copy_b<X>(p, e.b[to], ahead, o0);
        h = grouped::ranks_of(p, s.tile, extent, ahead, route, ahead.k + r);
        scaling = next ? ahead.scaling : 0.0f;
        ahead.advance(p, s.tile, extent.loras, RANKS);
    };
    bring(0);
    put_z<X>(e, 0, h, scaling);
    bool there = next;
    bring(1);
#pragma unroll 1
    while (there) {
        wait_groups<STAGES - 2>();
        __syncthreads();
        u32 one = stage == STAGES - 1 ? 0 : stage + 1, two = stage == 0 ? STAGES - 1 : stage - 1;
        put_z<X>(e, one, h, scaling);
        there = next;
        bring(two);
        multiply_step<X>(sums, e, stage, column);
        stage = one;
    }
    wait_groups<0>();
    __syncthreads();
}

// Columns of y that a block writes.
__device__ __forceinline__ u32 y_columns(const GroupedParams& p) { return p.rows == GATED ? COLUMNS / 2 : COLUMNS; }

// Rows of routes, rounded, by way of shared memory.
template <class X>
__device__ __forceinline__ void
store_rows(const Product (&sums)[4][4], Shared& s, const GroupedParams& p, const Extent& extent, u32 o0, u32 column) {
    u32 lane = threadIdx.x % 32, *tile = (u32*)s.y;
    bool gated = p.rows == GATED;
#pragma unroll
    for (u32 m = 0; m < 8; m++) {
        u32 r = 8 * m + lane / 4;
#pragma unroll
        for (u32 n = 0; n < 4; n++) {
            const float* d = &sums[m / 2][n].d[2 * (m % 2)];
            u32 own = column + 8 * n + 2 * (lane % 4);
            if (!gated) tile[64 * r + 4 * (own / 8 ^ r % 8) + lane % 4] = narrow_pair<X>(d[0], d[1]);
            if (!gated || n % 2 == 1) continue;
            const float* up = &sums[m / 2][n | 1].d[2 * (m % 2)];
            own = column / 2 + 4 * n + 2 * (lane % 4);
            tile[64 * r + 4 * (own / 8 ^ r % 8) + lane % 4] = narrow_pair<X>(grouped::silu(d[0]) * up[0], grouped::silu(d[1]) * up[1]);
        }
    }
    __syncthreads();
    u32 parts = y_columns(p) / 8, part = threadIdx.x % parts, o = o0 + 8 * part;
    if (o >= p.width) return;
    for (u32 r = threadIdx.x / parts; r < extent.routes; r += THREADS / parts) {
        uint4 v = s.y[16 * r + (part ^ r % 8)];
        X* y = (X*)p.y + (size_t)s.tile.routes[r] * p.y_stride + o;
        if (p.y_vector && o + 8 <= p.width) {
            *(uint4*)y = v;
            continue;
        }
        u32 words[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
        for (u32 i = 0; i < 8; i++) {
            if (o + i < p.width) y[i] = X{(unsigned short)(words[i / 2] >> 16 * (i % 2))};
        }
    }
}

// Rows of routes in f32: four lanes a sector.
__device__ __forceinline__ void
store_scratch(const Product (&sums)[4][4], const Tile& s, const GroupedParams& p, const Extent& extent, u32 o0, u32 column) {
    u32 lane = threadIdx.x % 32;
#pragma unroll
    for (u32 m = 0; m < 8; m++) {
        u32 r = 8 * m + lane / 4;
        if (r >= extent.routes) continue;
        float* row = p.scratch + (size_t)s.routes[r] * p.out_features;
#pragma unroll
        for (u32 n = 0; n < 4; n++) {
            const float* d = &sums[m / 2][n].d[2 * (m % 2)];
            u32 o = o0 + column + 8 * n + 2 * (lane % 4);
            if (o < p.out_features) row[o] = d[0];
            if (o + 1 < p.out_features) row[o + 1] = d[1];
        }
    }
}

template <class X> __device__ __forceinline__ void grouped(const GroupedParams& p) {
    __shared__ Shared s;
    u32 block = blockIdx.x % p.column_blocks, tile = blockIdx.x / p.column_blocks, o0 = y_columns(p) * block;
    u32 column = 32 * (threadIdx.x / 32);
    if (!::grouped::loras_are_planned(p)) return;
    if (p.rows == COMBINED) ::grouped::clear_empty<X>(p, tile, o0, COLUMNS);
    Extent extent = ::grouped::find_tile(p, s.tile, tile);
    if (extent.routes == 0) return;
    Share<X> share;
    share.begin(p, s.tile, extent, o0);
    Product sums[4][4] = {};
    multiply_base<X>(sums, s.stages, share, p, column);
    if (extent.loras > 0) extend<X>(sums, s, p, extent, o0, column);
    if (p.rows != COMBINED) return store_rows<X>(sums, s, p, extent, o0, column);
    store_scratch(sums, s.tile, p, extent, o0, column);
    ::grouped::arrive<X>(p, s.tile, extent, block, o0, COLUMNS);
}

} // namespace grouped_mma

// A block less than bf16 has: what scaling takes.
extern "C" __global__ void __launch_bounds__(grouped_mma::THREADS, SM80 ? 3 : 2)
grouped_mma_f16(const __grid_constant__ GroupedParams p) {
    grouped_mma::grouped<f16>(p);
}

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
extern "C" __global__ void __launch_bounds__(grouped_mma::THREADS, 4)
grouped_mma_bf16(const __grid_constant__ GroupedParams p) {
    grouped_mma::grouped<bf16>(p);
}
#endif
