// Ceilings: what a device does at most, for the harness that judges every time by it; see src/device/cuda/ceiling.rs.
//
//     ceiling_multiply  chains of multiply-adds in registers; every thread's sum is written, so that nothing is left out
//     ceiling_mma       the same on tensor cores: D += A B with A and B full of one value each
//     ceiling_read      all blocks walk side by side through memory far beyond any cache

#include "mma.cuh"

constexpr u32 THREADS = 256;
constexpr u32 CHAINS = 16, A_STEP = 8;         // chains of a thread, multiply-adds of each a step
constexpr u32 PRODUCTS = 8, PRODUCT_STEPS = 4; // chains of a warp, products of each a step
constexpr u32 QUADS = 4;                       // loads of a thread at once

extern "C" __global__ void __launch_bounds__(THREADS) ceiling_multiply(const __grid_constant__ CeilingParams p) {
    float chains[CHAINS];
#pragma unroll
    for (u32 c = 0; c < CHAINS; c++) chains[c] = (float)c;
#pragma unroll 1
    for (u32 i = 0; i < p.steps; i++) {
#pragma unroll
        for (u32 j = 0; j < A_STEP; j++) {
#pragma unroll
            for (u32 c = 0; c < CHAINS; c++) chains[c] = fmaf(chains[c], p.a, p.b);
        }
    }
    float sum = 0.0f;
#pragma unroll
    for (u32 c = 0; c < CHAINS; c++) sum += chains[c];
    p.sums[blockIdx.x * THREADS + threadIdx.x] = sum;
}

template <class E> __device__ __forceinline__ void ceiling_mma(const CeilingParams& p) {
    Product products[PRODUCTS] = {};
    Left left;
    Right right;
#pragma unroll
    for (u32 i = 0; i < 4; i++) left.a[i] = narrow_pair<E>(p.a, p.a);
#pragma unroll
    for (u32 i = 0; i < 2; i++) right.b[i] = narrow_pair<E>(p.b, p.b);
#pragma unroll 1
    for (u32 i = 0; i < p.steps; i++) {
#pragma unroll
        for (u32 j = 0; j < PRODUCT_STEPS; j++) {
#pragma unroll
            for (u32 c = 0; c < PRODUCTS; c++) multiply<E>(products[c], left, right);
        }
    }
    float sum = 0.0f;
#pragma unroll
    for (u32 c = 0; c < PRODUCTS; c++) sum += products[c].d[0] + products[c].d[1] + products[c].d[2] + products[c].d[3];
    p.sums[blockIdx.x * THREADS + threadIdx.x] = sum;
}

extern "C" __global__ void __launch_bounds__(THREADS) ceiling_mma_f16(const __grid_constant__ CeilingParams p) {
    ceiling_mma<f16>(p);
}

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
extern "C" __global__ void __launch_bounds__(THREADS) ceiling_mma_bf16(const __grid_constant__ CeilingParams p) {
    ceiling_mma<bf16>(p);
}
#endif

extern "C" __global__ void __launch_bounds__(THREADS) ceiling_read(const __grid_constant__ CeilingParams p) {
    const float4* memory = (const float4*)p.memory;
    size_t stride = (size_t)gridDim.x * THREADS, at = (size_t)blockIdx.x * THREADS + threadIdx.x;
    float sum = 0.0f;
#pragma unroll 1
    for (u32 i = 0; i < p.steps; i++) {
        float4 quads[QUADS];
#pragma unroll
        for (u32 j = 0; j < QUADS; j++) quads[j] = memory[at + j * stride];
#pragma unroll
        for (u32 j = 0; j < QUADS; j++) sum += (quads[j].x + quads[j].y) + (quads[j].z + quads[j].w);
        at += QUADS * stride;
    }
    p.sums[blockIdx.x * THREADS + threadIdx.x] = sum;
}
