// Few rows: one row of w times up to eight rows of x by one warp, which reads w once for all of them.
//
// Lane l adds the parts l, l + 32, .. of the inner dimension, eights or (where all is f32) fours, so that a load takes
// whole sectors; then the 32 sums are added as a tree: one order, whatever the other rows and wherever the rows begin.
#pragma once

#include "common.cuh"

template <class W, class X> constexpr u32 PART = sizeof(W) == 4 && sizeof(X) == 4 ? 4 : 8;

// Adds STEPS parts of each row while they last; all loads come before the first product.
template <u32 STEPS, bool VECTOR, u32 ROWS, class W, class X>
__device__ __forceinline__ void
add_parts(const W* w, const X* const (&x)[ROWS], u32 k, u32& i, float (&even)[ROWS], float (&odd)[ROWS]) {
    constexpr u32 N = PART<W, X>;
#pragma unroll 1
    for (; i + 32 * N * (STEPS - 1) + N <= k; i += 32 * N * STEPS) {
        Raw<W, N> v[STEPS];
        Raw<X, N> u[STEPS][ROWS];
#pragma unroll
        for (u32 s = 0; s < STEPS; s++) {
            u32 at = i + 32 * N * s;
            v[s] = VECTOR ? load<N>(w + at) : load_each<N>(w + at, N);
#pragma unroll
            for (u32 m = 0; m < ROWS; m++) u[s][m] = VECTOR ? load<N>(x[m] + at) : load_each<N>(x[m] + at, N);
        }
#pragma unroll
        for (u32 s = 0; s < STEPS; s++) {
#pragma unroll
            for (u32 m = 0; m < ROWS; m++) {
#pragma unroll
                for (u32 j = 0; j < N; j += 2) {
                    even[m] = fmaf(raw_at(v[s], j), raw_at(u[s][m], j), even[m]);
                    odd[m] = fmaf(raw_at(v[s], j + 1), raw_at(u[s][m], j + 1), odd[m]);
                }
            }
        }
    }
}

// The products with ROWS rows of x. VECTOR: all rows start at multiples of 16 bytes.
template <bool VECTOR, u32 ROWS, class W, class X>
__device__ __forceinline__ void dot_rows(const W* w, const X* const (&x)[ROWS], u32 k, float (&sums)[ROWS]) {
    float even[ROWS] = {}, odd[ROWS] = {}; // two sums a row: half the time waiting for the last product
    u32 i = PART<W, X> * (threadIdx.x % 32);
    if constexpr (VECTOR && ROWS == 1) add_parts<4, VECTOR>(w, x, k, i, even, odd);
    if constexpr (VECTOR && ROWS <= 2) add_parts<2, VECTOR>(w, x, k, i, even, odd);
    add_parts<1, VECTOR>(w, x, k, i, even, odd);
#pragma unroll 1
    for (; i < k; i++) { // one lane's, fewer than a part
        float v = widen(load_one(w + i));
#pragma unroll
        for (u32 m = 0; m < ROWS; m++) even[m] = fmaf(v, widen(load_one(x[m] + i)), even[m]);
    }
#pragma unroll
    for (u32 m = 0; m < ROWS; m++) sums[m] = warp_sum(even[m] + odd[m]);
}

// ROWS products from row m on, each put by a lane of its own.
template <u32 ROWS, bool VECTOR, class W, class Row, class Put>
__device__ __forceinline__ u32 put_rows(const W* w, u32 k, u32 m, u32 rows, Row row, Put put) {
    // Rows that are not there repeat the last one; nobody puts their sums.
    decltype(row(0)) x[ROWS];
#pragma unroll
    for (u32 j = 0; j < ROWS; j++) x[j] = row(min(m + j, rows - 1));
    float sums[ROWS];
    dot_rows<VECTOR>(w, x, k, sums);
    u32 lane = threadIdx.x % 32;
    float own = sums[0];
#pragma unroll
    for (u32 j = 1; j < ROWS; j++) own = lane == j ? sums[j] : own;
    if (lane < ROWS && m + lane < rows) put(m + lane, own);
    return m + ROWS;
}

// put(m, <w, row(m)>) for every m below `rows`, at most eight at a time.
template <class W, class Row, class Put>
__device__ __forceinline__ void products(const W* w, u32 k, bool vector, u32 rows, Row row, Put put) {
    for (u32 m = 0; m < rows;) {
        u32 left = rows - m;
        if (!vector) m = put_rows<1, false>(w, k, m, rows, row, put);
        else if (left > 4) m = put_rows<8, true>(w, k, m, rows, row, put);
        else if (left > 2) m = put_rows<4, true>(w, k, m, rows, row, put);
        else if (left > 1) m = put_rows<2, true>(w, k, m, rows, row, put);
        else m = put_rows<1, true>(w, k, m, rows, row, put);
    }
}
