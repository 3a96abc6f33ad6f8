// Base: y = x weight^T + bias, the frozen layer; see src/ops/base.rs.

#include "rows.cuh"
#include "tile.cuh"

template <class X> __device__ __forceinline__ float bias_at(const BaseParams& p, u32 o) {
    return p.bias ? widen(load_one((const X*)p.bias + o)) : 0.0f;
}

// One block eight tokens and eight columns of y, one a warp.
template <class X> __device__ __forceinline__ void base_few(const BaseParams& p) {
    u32 tokens = live_tokens(p.live_tokens, p.tokens), t0 = 8 * (blockIdx.x / p.column_blocks);
    u32 o = 8 * (blockIdx.x % p.column_blocks) + threadIdx.x / 32;
    if (t0 >= tokens || o >= p.out_features) return;
    const X* w = (const X*)p.weight + (size_t)o * p.in_features;
    float bias = bias_at<X>(p, o);
    auto row = [&](u32 m) { return (const X*)p.x + (size_t)(t0 + m) * p.x_stride; };
    auto put = [&](u32 m, float sum) { ((X*)p.y)[(size_t)(t0 + m) * p.y_stride + o] = narrow<X>(sum + bias); };
    products(w, p.in_features, p.x_vector && p.w_vector, min(tokens - t0, 8u), row, put);
}

constexpr u32 MANY_COLUMNS = 64;

// One block 64 tokens and 64 columns of y.
template <class X> __device__ __forceinline__ void base_many(const BaseParams& p) {
    typedef TileShape<MANY_COLUMNS> Shape;
    __shared__ __align__(16) Stages<MANY_COLUMNS> stages;
    u32 tokens = live_tokens(p.live_tokens, p.tokens), t0 = TILE_ROWS * (blockIdx.x / p.column_blocks);
    u32 o0 = MANY_COLUMNS * (blockIdx.x % p.column_blocks);
    if (t0 >= tokens) return;
    u32 rows = tokens - t0, columns = p.out_features - o0, row = Shape::row(), column = Shape::column();
    const X* x = (const X*)p.x + (size_t)(t0 + min(threadIdx.x % TILE_ROWS, rows - 1)) * p.x_stride;
    const X* w = (const X*)p.weight + (size_t)(o0 + min(threadIdx.x % MANY_COLUMNS, columns - 1)) * p.in_features;
    float sums[4][4] = {}, bias[4] = {};
    bool works = row < rows && column < columns;
    tile_product<MANY_COLUMNS, false>(stages, x, p.x_vector, w, p.w_vector, p.in_features, works, sums);
    if (!works) return;
#pragma unroll
    for (u32 n = 0; n < 4; n++) {
        if (column + n < columns) bias[n] = bias_at<X>(p, o0 + column + n);
    }
#pragma unroll
    for (u32 m = 0; m < 4; m++) {
        if (row + m >= rows) return;
#pragma unroll
        for (u32 n = 0; n < 4; n++) sums[m][n] += bias[n];
        X* y = (X*)p.y + (size_t)(t0 + row + m) * p.y_stride + o0 + column;
        store_part<4>(y, sums[m], columns - column, p.y_vector, false);
    }
}

#define BASE(x, X)                                                                                             \
    extern "C" __global__ void __launch_bounds__(256) base_few_##x(const __grid_constant__ BaseParams p) {     \
        base_few<X>(p);                                                                                        \
    }                                                                                                          \
    extern "C" __global__ void __launch_bounds__(256) base_many_##x(const __grid_constant__ BaseParams p) {    \
        base_many<X>(p);                                                                                       \
    }
BASE(f32, float)
BASE(f16, f16)
BASE(bf16, bf16)

#include "base_mma.cuh"

extern "C" __global__ void __launch_bounds__(base_mma::THREADS, 2)
base_mma_f16(const __grid_constant__ BaseParams p) {
    base_mma::base<f16>(p);
}

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
extern "C" __global__ void __launch_bounds__(base_mma::THREADS, 2)
base_mma_bf16(const __grid_constant__ BaseParams p) {
    base_mma::base<bf16>(p);
}
#endif
