// Many rows: 64 rows of x times COLUMNS rows of w, 4 x 4 sums a thread, f32 arithmetic.
//
//     for every 32 columns of the inner dimension:
//         stage x [32][64] and w [32][COLUMNS], the inner dimension outermost; meanwhile the next ones are read
//         for each column: 4 x 4 products from two vectors of four
//
// One thread adds all products of a sum in the order of the inner dimension: the same bits in every tile. SUBTOTALS: those
// of a stage by themselves first, so that k products pass some 32 + k / 32 roundings and not k, for 16 registers: what
// goes on adding experts to the sums takes it, and is more exact than a sum beside which they are added.
#pragma once

#include "common.cuh"

constexpr u32 TILE_ROWS = 64, TILE_K = 32;

template <u32 COLUMNS> struct Stages {
    float x[2][TILE_K][TILE_ROWS];
    float w[2][TILE_K][COLUMNS];
};

template <u32 COLUMNS> struct TileShape {
    static constexpr u32 ACROSS = COLUMNS / 4, THREADS = TILE_ROWS / 4 * ACROSS;
    static constexpr u32 X_PARTS = TILE_K / 8 * TILE_ROWS / THREADS; // eights of x that a thread stages; of w: one
    // This thread's first row and column in the tile.
    static __device__ __forceinline__ u32 row() { return 4 * (threadIdx.x / ACROSS); }
    static __device__ __forceinline__ u32 column() { return 4 * (threadIdx.x % ACROSS); }
};

// Eight neighbours of one row into the stage's column for it: lanes are rows, so that every bank gets one.
template <u32 WIDTH, class E>
__device__ __forceinline__ void put_eight(float (*stage)[WIDTH], u32 eight, u32 row, const Raw<E, 8>& part) {
#pragma unroll
    for (u32 j = 0; j < 8; j++) stage[8 * eight + j][row] = raw_at(part, j);
}

// `ks`: how many of the stage's columns are there, in eights.
template <u32 COLUMNS, bool SUBTOTALS>
__device__ __forceinline__ void add_stage(const Stages<COLUMNS>& stages, u32 at, float (&sums)[4][4],
                                          u32 ks = TILE_K) {
    u32 row = TileShape<COLUMNS>::row(), column = TileShape<COLUMNS>::column();
    float own[4][4] = {};
    float(&to)[4][4] = SUBTOTALS ? own : sums;
#pragma unroll 8
    for (u32 i = 0; i < ks; i++) {
        float4 x = *(const float4*)&stages.x[at][i][row], w = *(const float4*)&stages.w[at][i][column];
        float xs[4] = {x.x, x.y, x.z, x.w}, ws[4] = {w.x, w.y, w.z, w.w};
#pragma unroll
        for (u32 m = 0; m < 4; m++) {
#pragma unroll
            for (u32 n = 0; n < 4; n++) to[m][n] = fmaf(xs[m], ws[n], to[m][n]);
        }
    }
#pragma unroll
    for (u32 i = 0; SUBTOTALS && i < 16; i++) sums[i / 4][i % 4] += own[i / 4][i % 4];
}

// The thread's four rows of x times its four rows of w. x and w: this thread's row to stage; rows that are not there
// repeat one that is. `works`: whether the thread has sums of its own.
template <u32 COLUMNS, bool SUBTOTALS, class X, class W>
__device__ __forceinline__ void
tile_product(Stages<COLUMNS>& stages, const X* x, bool x_vector, const W* w, bool w_vector, u32 k, bool works,
             float (&sums)[4][4]) {
    typedef TileShape<COLUMNS> Shape;
    u32 x_row = threadIdx.x % TILE_ROWS, x_eight = threadIdx.x / TILE_ROWS;
    u32 w_row = threadIdx.x % COLUMNS, w_eight = threadIdx.x / COLUMNS;
    Raw<X, 8> x_next[Shape::X_PARTS];
    Raw<W, 8> w_next;
    auto read = [&](u32 k0) {
#pragma unroll
        for (u32 j = 0; j < Shape::X_PARTS; j++) {
            x_next[j] = load_part<8>(x, k0 + 8 * (x_eight + Shape::THREADS / TILE_ROWS * j), k, x_vector);
        }
        w_next = load_part<8>(w, k0 + 8 * w_eight, k, w_vector);
    };
    auto put = [&](u32 at) {
#pragma unroll
        for (u32 j = 0; j < Shape::X_PARTS; j++) {
            put_eight(stages.x[at], x_eight + Shape::THREADS / TILE_ROWS * j, x_row, x_next[j]);
        }
        put_eight(stages.w[at], w_eight, w_row, w_next);
    };
    u32 at = 0;
#pragma unroll 1
    for (u32 k0 = 0;; k0 += TILE_K) {
        if (k0 < k) read(k0);
        if (k0 > 0 && works) add_stage<COLUMNS, SUBTOTALS>(stages, at ^ 1, sums);
        if (k0 >= k) break;
        put(at); // read for the last time before the barrier behind us
        at ^= 1;
        __syncthreads();
    }
}
