// Fused in f32 arithmetic: base's tile of 64 tokens and 64 columns, whose sums run on over the experts that the tile's
// tokens use, or (`dense`) over all rows of z, 32 ranks a step.
#pragma once

#include "tile.cuh"

namespace fused_many {

constexpr u32 COLUMNS = 64;
typedef TileShape<COLUMNS> Shape;
static_assert(Shape::THREADS == extend::THREADS, "one walk for both");

struct Shared {
    Stages<COLUMNS> stages;
    extend::Used<TILE_ROWS> used;
};

// One step's row of B: columns 4 c .. of both halves of the tile, so that eight lanes' stores are neighbours.
template <class A> struct Rows {
    Raw<A, 4> half[2];

    __device__ __forceinline__ void read(const FusedParams& p, u32 row, u32 k, u32 rank, u32 column) {
        u32 r = threadIdx.x / 8, own = column + 4 * (threadIdx.x % 8);
#pragma unroll
        for (u32 i = 0; i < 2; i++) {
            bool inside = k + r < rank && own + 32 * i < p.b_stride;
            const A* from = (const A*)p.b + (size_t)(row + k + r) * p.b_stride + own + 32 * i;
            half[i] = inside ? load<4>(from) : Raw<A, 4>{};
        }
    }

    __device__ __forceinline__ void put(float (*stage)[COLUMNS]) const {
#pragma unroll
        for (u32 i = 0; i < 2; i++) {
            *(float4*)&stage[threadIdx.x / 8][4 * (threadIdx.x % 8) + 32 * i] = make_float4(
                raw_at(half[i], 0), raw_at(half[i], 1), raw_at(half[i], 2), raw_at(half[i], 3));
        }
    }
};

// A list of experts, or all rows of z as if they were one expert's.
template <class X, class A>
__device__ __forceinline__ void add_list(float (&sums)[4][4], const FusedParams& p, const extend::Source& from, Shared& s,
                                         u32 steps, u32 t0, u32 tokens, u32 column, bool works) {
    u32 token = threadIdx.x % TILE_ROWS, r = 8 * (threadIdx.x / TILE_ROWS), at = 0, ks = 0;
    const X* z = (const X*)p.z + (size_t)(t0 + token) * p.z_stride;
    extend::Walk walk{0, 0, 0, p.z_rows};
    if (!p.dense) walk.open(s.used, 0);
    extend::Choice choice;
    Rows<A> b;
    Raw<float, 4> h[2] = {};
    float factor = 1.0f;
#pragma unroll 1
    for (u32 i = 0;; i++) {
        u32 last = ks;
        if (i < steps) {
            b.read(p, walk.row, walk.k, walk.rank, column);
            if (!p.dense) {
                if (walk.k == 0) choice = extend::find(from, s.used, walk, token);
                extend::weigh(from, s.used, walk, choice, token, walk.k + r, h, factor);
            } else if (token < tokens) {
                Raw<X, 8> part = load_part<8>(z, walk.k + r, p.z_rows, p.z_vector);
#pragma unroll
                for (u32 j = 0; j < 8; j++) h[j / 4].words[j % 4] = __float_as_uint(raw_at(part, j));
            }
            ks = min((walk.rank - walk.k + 7) / 8 * 8, TILE_K);
            if (p.dense) walk.k += TILE_K;
            else walk.advance(s.used, TILE_K);
        }
        if (i > 0 && works) add_stage<COLUMNS, true>(s.stages, at ^ 1, sums, last);
        if (i >= steps) break;
#pragma unroll
        for (u32 j = 0; j < 8; j++) s.stages.x[at][r + j][token] = factor * raw_at(h[j / 4], j % 4); // read for the last time before the barrier behind us
        b.put(s.stages.w[at]);
        at ^= 1;
        __syncthreads();
    }
}

template <class X, class A> __device__ __forceinline__ void fused(const FusedParams& p) {
    __shared__ __align__(16) Shared s;
    const BaseParams& base = p.base;
    Columns c = columns_of(p, blockIdx.x % base.column_blocks, COLUMNS);
    u32 t0 = TILE_ROWS * (blockIdx.x / base.column_blocks);
    u32 live = p.dense ? live_tokens(base.live_tokens, base.tokens) : plan_live_tokens(p.plan);
    if (t0 >= live) return;
    u32 rows = live - t0, columns = c.end - c.begin, row = Shape::row(), column = Shape::column();
    const X* x = (const X*)base.x + (size_t)(t0 + min(threadIdx.x % TILE_ROWS, rows - 1)) * base.x_stride;
    const X* w = (const X*)base.weight + (size_t)(c.begin + min(threadIdx.x % COLUMNS, columns - 1)) * base.in_features;
    float sums[4][4] = {};
    bool works = row < rows && column < columns;
    tile_product<COLUMNS, true>(s.stages, x, base.x_vector, w, base.w_vector, base.in_features, works, sums);
    extend::Source from = source_of(p);
    if (!p.dense) extend::open(from, s.used, extend::Tile{t0, min(rows, TILE_ROWS), 0, p.slices > 1 ? 1 + c.slice : 0});
    if (p.dense) __syncthreads(); // the base's last stage is read
    for (bool left = true; left;) {
        left = !p.dense && extend::next(from, s.used, TILE_K);
        if (!p.dense && !left) break;
        u32 steps = p.dense ? (p.z_rows + TILE_K - 1) / TILE_K : extend::steps_of(s.used);
        add_list<X, A>(sums, p, from, s, steps, t0, rows, c.begin - c.first, works);
    }
    if (!works) return;
#pragma unroll
    for (u32 m = 0; m < 4; m++) {
        if (row + m >= rows) return;
#pragma unroll
        for (u32 n = 0; n < 4; n++) {
            if (base.bias && column + n < columns) sums[m][n] += widen(load_one((const X*)base.bias + c.begin + column + n));
        }
        X* y = (X*)base.y + (size_t)(t0 + row + m) * base.y_stride + c.begin + column;
        store_part<4>(y, sums[m], columns - column, base.y_vector && c.begin % 8 == 0, false);
    }
}

} // namespace fused_many

#define FUSED_MANY(x, X, a, A)                                                                                 \
    extern "C" __global__ void __launch_bounds__(extend::THREADS, 2)                                           \
        fused_many_##x##_##a(const __grid_constant__ FusedParams p) {                                          \
        fused_many::fused<X, A>(p);                                                                            \
    }
#define FUSED_MANY_X(x, X) FUSED_MANY(x, X, f32, float) FUSED_MANY(x, X, f16, f16) FUSED_MANY(x, X, bf16, bf16)
FUSED_MANY_X(f32, float)
FUSED_MANY_X(f16, f16)
FUSED_MANY_X(bf16, bf16)
