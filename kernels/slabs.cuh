// Rows times rows on tensor cores, the inner dimension split over a block's 8 warps: operands go from memory to
// registers, 16 bytes a lane, so that a row's four lanes take 64 bytes of it, two whole sectors.
//
//     for each slab of 32 ks, slab s to warp s % 8:
//         D[row of A][row of x] += A[row][k] x[row][k]
//
// Lane q holds ks 8 q .. 8 q + 7 of a slab; which place of k they stand for in a product is free as long as A and x
// agree. Which warp takes a slab depends on the row's length alone.
#pragma once

#include "mma.cuh"

namespace slabs {

constexpr u32 WARPS = 8, SLAB = 32;

// Up to eight elements before a row's end, zeros behind it: x there may be anything, or nothing.
template <class X> __device__ __forceinline__ Raw<X, 8> load_end(const X* from, u32 rest) {
    size_t pairs[2] = {};
#pragma unroll 1
    for (u32 i = 0; i < min(rest, 8u); i++) {
        size_t bits = (size_t)load_one(from + i).bits << 16 * (i % 4);
        (i < 4 ? pairs[0] : pairs[1]) |= bits;
    }
    return Raw<X, 8>{{(u32)pairs[0], (u32)(pairs[0] >> 32), (u32)pairs[1], (u32)(pairs[1] >> 32)}};
}

// MT x NT products of 16 rows of A and 8 of x.
template <class X, u32 MT, u32 NT> struct Products {
    const X* a[MT][2]; // the lane's rows
    const X* x[NT];
    Product sums[MT][NT];

    struct Slab {
        Raw<X, 8> a[MT][2], x[NT];
    };

    // a_row(i) and x_row(i): where rows i of A and of x begin.
    template <class ARow, class XRow>
    __device__ __forceinline__ void begin(ARow a_row, XRow x_row, u32 warp, u32 lane) {
        u32 at = SLAB * warp + 8 * (lane % 4);
#pragma unroll
        for (u32 m = 0; m < 2 * MT; m++) a[m / 2][m % 2] = a_row(8 * m + lane / 4) + at;
#pragma unroll
        for (u32 n = 0; n < NT; n++) x[n] = x_row(8 * n + lane / 4) + at;
#pragma unroll
        for (u32 i = 0; i < MT * NT; i++) sums[i / NT][i % NT] = Product{};
    }

    __device__ __forceinline__ Slab load_slab(u32 at) const {
        Slab slab;
#pragma unroll
        for (u32 m = 0; m < 2 * MT; m++) slab.a[m / 2][m % 2] = load<8>(a[m / 2][m % 2] + at);
#pragma unroll
        for (u32 n = 0; n < NT; n++) slab.x[n] = load<8>(x[n] + at);
        return slab;
    }

    // The last slab where in_features ends in it, `rest` elements from here: A is padded with zeros to whole loads.
    __device__ __forceinline__ Slab load_tail(u32 rest) const {
        Slab slab;
#pragma unroll
        for (u32 m = 0; m < 2 * MT; m++) slab.a[m / 2][m % 2] = rest > 0 ? load<8>(a[m / 2][m % 2]) : Raw<X, 8>{};
#pragma unroll
        for (u32 n = 0; n < NT; n++) slab.x[n] = load_end(x[n], rest);
        return slab;
    }

    __device__ __forceinline__ void advance(u32 by) {
#pragma unroll
        for (u32 m = 0; m < 2 * MT; m++) a[m / 2][m % 2] += by;
#pragma unroll
        for (u32 n = 0; n < NT; n++) x[n] += by;
    }

    __device__ __forceinline__ void add(const Slab& slab) {
#pragma unroll
        for (u32 half = 0; half < 4; half += 2) {
#pragma unroll
            for (u32 m = 0; m < MT; m++) {
                const u32(&low)[4] = slab.a[m][0].words;
                const u32(&high)[4] = slab.a[m][1].words;
                Left left{{low[half], high[half], low[half + 1], high[half + 1]}};
#pragma unroll
                for (u32 n = 0; n < NT; n++) {
                    multiply<X>(sums[m][n], left, Right{{slab.x[n].words[half], slab.x[n].words[half + 1]}});
                }
            }
        }
    }

    // Whole slabs from s on, MANY in flight at once, TIMES of these for each move of the pointers.
    template <u32 MANY, u32 TIMES> __device__ __forceinline__ void add_slabs(u32& s, u32 slabs) {
#pragma unroll 1
        for (; s + WARPS * (MANY * TIMES - 1) < slabs; s += WARPS * MANY * TIMES) {
#pragma unroll
            for (u32 j = 0; j < TIMES; j++) {
                Slab slab[MANY];
#pragma unroll
                for (u32 i = 0; i < MANY; i++) slab[i] = load_slab(WARPS * SLAB * (MANY * j + i));
#pragma unroll
                for (u32 i = 0; i < MANY; i++) add(slab[i]);
            }
            advance(WARPS * SLAB * MANY * TIMES);
        }
        if constexpr (MANY * TIMES > 1) add_slabs<TIMES == 1 ? MANY / 2 : MANY, 1>(s, slabs);
    }

    __device__ __forceinline__ void add_all(u32 k, u32 warp, u32 lane) {
        constexpr u32 REGISTERS = 8 * MT + 4 * NT, MANY = REGISTERS <= 16 ? 4 : REGISTERS <= 32 ? 2 : 1;
        u32 slabs = k / SLAB, s = warp, rest = k % SLAB, own = 8 * (lane % 4);
        add_slabs<MANY, NT == 1 ? 2 : 1>(s, slabs);
        if (s == slabs && rest != 0) add(load_tail(own < rest ? rest - own : 0));
    }
};

} // namespace slabs
