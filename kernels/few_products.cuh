// Rows of a matrix times up to 16 tokens by one block, each row read once and x once for all rows of the block: what
// fused_few multiplies, the weight's rows and A's.
#pragma once

#include "slabs.cuh"

namespace few {

constexpr u32 THREADS = 256, WARPS = 8, TOKENS = 16;

// What the experts' part needs of a route; rank 0: nothing.
struct Route {
    u32 row, rank, h; // first row of B; where its h begins
    float factor;
};

constexpr u32 SLAB = 128; // columns of x that Plain stages at a time

// Of blocks that take up to ROWS rows at a time.
template <u32 ROWS> struct Shared {
    union {
        float4 products[WARPS][ROWS / 16 * 2 * 32]; // [warp][16 rows and eight tokens][lane]
        float x[2][TOKENS][SLAB];
        float shares[WARPS][TOKENS][ROWS]; // of the experts' part
    };
    float sums[TOKENS][ROWS];
    Route routes[FEW_ROUTES];
    u32 ids[FEW_ROUTES], sorted[FEW_ROUTES]; // of routes that count for something; these by ids
    u32 tokens[TOKENS]; // whose x the rows are multiplied with: `count`, the last one again behind them
    u32 count;
};

// Rows of a matrix times tokens: of the weight, or of A. Rows behind the last repeat it.
template <class W> struct Matrix {
    const W* rows;
    u32 stride, count;

    __device__ __forceinline__ const W* row(u32 i) const { return rows + (size_t)min(i, count - 1) * stride; }
};

// sums[token][row] on tensor cores, the inner dimension split over the warps. 32 rows share x where there are more than
// eight tokens: 16 would ask for x as often as for the weight.
template <class X> struct Mma {
    static constexpr u32 ROWS = 32;

    template <u32 MT, u32 NT>
    static __device__ __forceinline__ void multiply_tiles(const FewParams& p, Shared<ROWS>& s, const Matrix<X>& w) {
        u32 warp = threadIdx.x / 32, lane = threadIdx.x % 32;
        slabs::Products<X, MT, NT> products;
        auto x_row = [&](u32 i) { return (const X*)p.x + (size_t)s.tokens[i] * p.x_stride; };
        products.begin([&](u32 i) { return w.row(i); }, x_row, warp, lane);
        products.add_all(p.in_features, warp, lane);
#pragma unroll
        for (u32 i = 0; i < MT * NT; i++) {
            const float(&d)[4] = products.sums[i / NT][i % NT].d;
            s.products[warp][32 * i + lane] = make_float4(d[0], d[1], d[2], d[3]);
        }
        __syncthreads();
        if (warp < MT * NT) {
            float sum[4] = {};
#pragma unroll
            for (u32 i = 0; i < WARPS; i++) {
                float4 share = s.products[i][threadIdx.x];
                sum[0] += share.x, sum[1] += share.y, sum[2] += share.z, sum[3] += share.w;
            }
            u32 row = 16 * (warp / NT) + lane / 4, token = 8 * (warp % NT) + 2 * (lane % 4);
#pragma unroll
            for (u32 i = 0; i < 4; i++) s.sums[token + i % 2][row + 8 * (i / 2)] = sum[i];
        }
        __syncthreads();
    }

    static __device__ __forceinline__ void multiply(const FewParams& p, Shared<ROWS>& s, const Matrix<X>& w, u32 rows, bool) {
        if (rows > 16) multiply_tiles<2, 2>(p, s, w);
        else if (s.count > 8) multiply_tiles<1, 2>(p, s, w);
        else multiply_tiles<1, 1>(p, s, w);
    }
};

// sums[token][row] in f32 arithmetic, two rows a warp. Slabs of x are staged for all warps. Lane l adds columns 4 l .. of
// every slab, four by themselves first: chains of four and of in_features / 128, then a tree over the lanes.
template <class X> struct Plain {
    static constexpr u32 ROWS = 16, OWN = ROWS / WARPS, STAGED = TOKENS / WARPS;

    template <class W> struct Slab {
        Raw<W, 4> w[OWN];    // rows warp, warp + 8
        Raw<X, 4> x[STAGED]; // tokens warp, warp + 8

        __device__ __forceinline__ void
        read(const FewParams& p, const Shared<ROWS>& s, const Matrix<W>& rows, u32 k, bool vector) {
            u32 warp = threadIdx.x / 32;
#pragma unroll
            for (u32 i = 0; i < OWN; i++) {
                u32 row = warp + WARPS * i;
                w[i] = row < rows.count ? load_part<4>(rows.row(row), k, p.in_features, vector) : Raw<W, 4>{};
            }
#pragma unroll
            for (u32 i = 0; i < STAGED; i++) {
                u32 token = warp + WARPS * i;
                const X* from = (const X*)p.x + (size_t)s.tokens[token] * p.x_stride;
                x[i] = token < s.count ? load_part<4>(from, k, p.in_features, p.x_vector) : Raw<X, 4>{};
            }
        }

        __device__ __forceinline__ void put(float (*stage)[SLAB]) const {
#pragma unroll
            for (u32 i = 0; i < STAGED; i++) {
                float* to = &stage[threadIdx.x / 32 + WARPS * i][4 * (threadIdx.x % 32)];
                *(float4*)to = make_float4(raw_at(x[i], 0), raw_at(x[i], 1), raw_at(x[i], 2), raw_at(x[i], 3));
            }
        }
    };

    template <class W>
    static __device__ __forceinline__ void
    add(float (&sums)[OWN][TOKENS], const float (*stage)[SLAB], const Raw<W, 4> (&w)[OWN], u32 count) {
        float ws[OWN][4];
#pragma unroll
        for (u32 i = 0; i < 4 * OWN; i++) ws[i / 4][i % 4] = raw_at(w[i / 4], i % 4);
#pragma unroll
        for (u32 m = 0; m < TOKENS; m++) {
            if (m % 4 == 0 && m >= count) break;
            float4 x = *(const float4*)&stage[m][4 * (threadIdx.x % 32)];
#pragma unroll
            for (u32 i = 0; i < OWN; i++) {
                sums[i][m] += fmaf(ws[i][3], x.w, fmaf(ws[i][2], x.z, fmaf(ws[i][1], x.y, ws[i][0] * x.x)));
            }
        }
    }

    template <class W>
    static __device__ __forceinline__ void
    multiply(const FewParams& p, Shared<ROWS>& s, const Matrix<W>& w, u32, bool vector) {
        u32 k = p.in_features, count = s.count, lane = threadIdx.x % 32, warp = threadIdx.x / 32, at = 0;
        float sums[OWN][TOKENS] = {};
        Slab<W> next;
        next.read(p, s, w, 4 * lane, vector);
#pragma unroll 1
        for (u32 k0 = 0; k0 < k; k0 += SLAB) {
            Raw<W, 4> own[OWN];
#pragma unroll
            for (u32 i = 0; i < OWN; i++) own[i] = next.w[i];
            next.put(s.x[at]); // read for the last time before the barrier behind us
            __syncthreads();
            if (k0 + SLAB < k) next.read(p, s, w, k0 + SLAB + 4 * lane, vector);
            add<W>(sums, s.x[at], own, count);
            at ^= 1;
        }
#pragma unroll
        for (u32 i = 0; i < OWN * TOKENS; i++) {
            u32 m = i % TOKENS, row = warp + WARPS * (i / TOKENS);
            if (m >= count) continue;
            float sum = warp_sum(sums[i / TOKENS][m]);
            if (lane == 0) s.sums[m][row] = sum;
        }
        __syncthreads();
    }
};

} // namespace few
