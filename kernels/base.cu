// Base: y = x weight^T + bias, the frozen layer; see src/ops/base.rs.

#include "rows.cuh"

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

#define BASE(x, X)                                                                                           \
    extern "C" __global__ void __launch_bounds__(256) base_few_##x(const __grid_constant__ BaseParams p) {   \
        base_few<X>(p);                                                                                      \
    }
BASE(f32, float)
BASE(f16, f16)
BASE(bf16, bf16)
