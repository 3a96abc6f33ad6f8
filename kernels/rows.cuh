// Few rows: one row of w times up to eight rows of x by one warp, which reads w once for all of them.
//
// Lane l adds the eights l, l + 32, .. of the inner dimension, then the 32 sums are added as a tree: one order,
// whatever the other rows and wherever the rows begin.
#pragma once

#include "common.cuh"

// Adds the products with ROWS rows of x. VECTOR: all rows start at multiples of 16 bytes.
template <u32 ROWS, bool VECTOR, class W, class X>
__device__ __forceinline__ void dot_rows(const W* w, const X* const (&x)[ROWS], u32 k, float (&sums)[ROWS]) {
    constexpr int UNROLL = ROWS <= 2 ? 4 : ROWS == 4 ? 2 : 1;
    float odd[ROWS] = {}; // two sums a row: half the time waiting for the last product
#pragma unroll
    for (u32 m = 0; m < ROWS; m++) sums[m] = 0.0f;
    u32 i = 8 * (threadIdx.x % 32);
#pragma unroll UNROLL
    for (; i + 8 <= k; i += 256) {
        Raw<W, 8> v = VECTOR ? load<8>(w + i) : load_each<8>(w + i, 8);
#pragma unroll
        for (u32 m = 0; m < ROWS; m++) {
            Raw<X, 8> u = VECTOR ? load<8>(x[m] + i) : load_each<8>(x[m] + i, 8);
#pragma unroll
            for (u32 j = 0; j < 8; j += 2) {
                sums[m] = fmaf(raw_at(v, j), raw_at(u, j), sums[m]);
                odd[m] = fmaf(raw_at(v, j + 1), raw_at(u, j + 1), odd[m]);
            }
        }
    }
#pragma unroll 1
    for (; i < k; i++) { // one lane's, fewer than eight
        float v = widen(load_one(w + i));
#pragma unroll
        for (u32 m = 0; m < ROWS; m++) sums[m] = fmaf(v, widen(load_one(x[m] + i)), sums[m]);
    }
#pragma unroll
    for (u32 m = 0; m < ROWS; m++) sums[m] = warp_sum(sums[m] + odd[m]);
}

// ROWS products from row m on, each put by a lane of its own.
template <u32 ROWS, bool VECTOR, class W, class Row, class Put>
__device__ __forceinline__ u32 put_rows(const W* w, u32 k, u32 m, u32 rows, Row row, Put put) {
    // Rows that are not there repeat the last one; nobody puts their sums.
    decltype(row(0)) x[ROWS];
#pragma unroll
    for (u32 j = 0; j < ROWS; j++) x[j] = row(min(m + j, rows - 1));
    float sums[ROWS];
    dot_rows<ROWS, VECTOR>(w, x, k, sums);
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
