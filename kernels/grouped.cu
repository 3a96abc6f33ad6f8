// Grouped: rows of routes times their base expert's weight, plus their LoRA; see src/ops/grouped.rs.

#include "tile.cuh"

#include "grouped_tile.cuh"

namespace grouped_many {

using grouped::Extent;
using grouped::Walk;
constexpr u32 COLUMNS = 64, THREADS = 256;

struct Shared {
    Stages<COLUMNS> stages; // 16 bytes at a time
    grouped::Tile tile;
};

// Where a tile's column lies. Gated: two of gate, the same two of up, and so on.
__device__ __forceinline__ u32 y_column(const GroupedParams& p, u32 column) {
    return p.rows == GATED ? column / 4 * 2 + column % 2 : column;
}
__device__ __forceinline__ u32 slice_of(const GroupedParams& p, u32 column) { return p.rows == GATED ? column / 2 % 2 : 0; }

// The steps of all LoRAs of the tile, 16 ranks in a stage for 32 ks.
template <class A>
__device__ __forceinline__ void
extend(const GroupedParams& p, Shared& s, const Extent& extent, u32 o0, bool works, float (&sums)[4][4]) {
    Walk walk;
    u32 route = threadIdx.x % TILE_ROWS, eight = threadIdx.x / TILE_ROWS; // four eights: two of h, then 64 x 16 of B
    for (walk.open(p, s.tile, extent.loras, 0, 0); walk.rank > 0; walk.advance(p, s.tile, extent.loras, 16)) {
        __syncthreads(); // the last stage is read
        if (eight < 2) {
            Raw<float, 8> h = grouped::ranks_of(p, s.tile, extent, walk, route, walk.k + 8 * eight);
#pragma unroll
            for (u32 j = 0; j < 8; j++) s.stages.x[0][8 * eight + j][route] = walk.scaling * raw_at(h, j);
        }
        for (u32 i = threadIdx.x; i < 16 * COLUMNS; i += THREADS) {
            u32 r = i / COLUMNS, column = i % COLUMNS, o = o0 + y_column(p, column);
            bool inside = walk.k + r < walk.rank && o < p.width && slice_of(p, column) == walk.slice;
            const A* b = (const A*)p.b + (size_t)(walk.row + walk.k + r) * p.b_stride + o;
            s.stages.w[0][r][column] = inside ? widen(load_one(b)) : 0.0f;
        }
        __syncthreads();
        if (works) add_stage<COLUMNS, true>(s.stages, 0, sums, 16);
    }
}

template <class X, class A> __device__ __forceinline__ void grouped(const GroupedParams& p) {
    typedef TileShape<COLUMNS> Shape;
    __shared__ __align__(16) Shared s;
    u32 block = blockIdx.x % p.column_blocks, tile = blockIdx.x / p.column_blocks;
    u32 o0 = (p.rows == GATED ? COLUMNS / 2 : COLUMNS) * block, row = Shape::row(), column = Shape::column();
    if (!::grouped::loras_are_planned(p)) return;
    if (p.rows == COMBINED) ::grouped::clear_empty<X>(p, tile, o0, COLUMNS);
    Extent extent = ::grouped::find_tile(p, s.tile, tile);
    if (extent.routes == 0) return;
    const X* x = (const X*)::grouped::x_row(p, s.tile.routes[threadIdx.x % TILE_ROWS], sizeof(X));
    u32 own = threadIdx.x % COLUMNS, o = min(o0 + y_column(p, own), p.width - 1) + slice_of(p, own) * p.width;
    const X* w = (const X*)p.weight + ((size_t)extent.expert * p.out_features + o) * p.in_features;
    float sums[4][4] = {};
    bool works = row < extent.routes;
    tile_product<COLUMNS, true>(s.stages, x, p.x_vector, w, p.w_vector, p.in_features, works, sums);
    if (extent.loras > 0) extend<A>(p, s, extent, o0, works, sums);
    u32 first = o0 + y_column(p, column), left = p.width - min(first, p.width);
#pragma unroll
    for (u32 m = 0; m < 4; m++) {
        if (row + m >= extent.routes || left == 0) break;
        u32 n = s.tile.routes[row + m];
        X* y = (X*)p.y + (size_t)n * p.y_stride + first;
        if (p.rows == GATED) {
            y[0] = narrow<X>(::grouped::silu(sums[m][0]) * sums[m][2]);
            if (left > 1) y[1] = narrow<X>(::grouped::silu(sums[m][1]) * sums[m][3]);
        } else if (p.rows == PLAIN) {
            store_part<4>(y, sums[m], left, p.y_vector, false);
        } else {
#pragma unroll
            for (u32 i = 0; i < 4; i++) {
                if (i < left) p.scratch[(size_t)n * p.out_features + first + i] = sums[m][i];
            }
        }
    }
    if (p.rows == COMBINED) ::grouped::arrive<X>(p, s.tile, extent, block, o0, COLUMNS);
}

} // namespace grouped_many

#define GROUPED(x, X, a, A)                                                                                    \
    extern "C" __global__ void __launch_bounds__(grouped_many::THREADS, 2)                                     \
        grouped_many_##x##_##a(const __grid_constant__ GroupedParams p) {                                      \
        grouped_many::grouped<X, A>(p);                                                                        \
    }
#define GROUPED_X(x, X) GROUPED(x, X, f32, float) GROUPED(x, X, f16, f16) GROUPED(x, X, bf16, bf16)
GROUPED_X(f32, float)
GROUPED_X(f16, f16)
GROUPED_X(bf16, bf16)

#include "grouped_mma.cuh"
