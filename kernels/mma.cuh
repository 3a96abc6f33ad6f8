// Tensor cores and asynchronous copies as inline PTX. sm_75 has neither m16n8k16, bf16 nor cp.async: there one
// product is two m16n8k8 and a copy passes through registers.
#pragma once

#include "common.cuh"

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
constexpr bool SM80 = true;
#else
constexpr bool SM80 = false;
#endif

// A and B of one 16 x 8 x 16 product, two elements a register. With g = lane / 4 and q = lane % 4:
//
//     a[0]: A[g][2q, +1]   a[1]: A[g + 8][2q, +1]   a[2]: A[g][2q + 8, +1]   a[3]: A[g + 8][2q + 8, +1]
//     b[0]: B[2q, +1][g]   b[1]: B[2q + 8, +1][g]
//     d[0, 1]: D[g][2q, +1]   d[2, 3]: D[g + 8][2q, +1]
//
// The 16 places of k may stand for any 16 ks as long as A and B agree.
struct Left {
    u32 a[4];
};
struct Right {
    u32 b[2];
};
struct Product {
    float d[4];
};

// D += A B. volatile: all lanes of a warp take part, so the compiler must not move it into a branch.
template <class E> __device__ __forceinline__ void multiply(Product& p, const Left& l, const Right& r);

template <> __device__ __forceinline__ void multiply<f16>(Product& p, const Left& l, const Right& r) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                 "{%0, %1, %2, %3};"
                 : "+f"(p.d[0]), "+f"(p.d[1]), "+f"(p.d[2]), "+f"(p.d[3])
                 : "r"(l.a[0]), "r"(l.a[1]), "r"(l.a[2]), "r"(l.a[3]), "r"(r.b[0]), "r"(r.b[1]));
#else
#pragma unroll
    for (u32 half = 0; half < 2; half++) {
        asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, "
                     "{%0, %1, %2, %3};"
                     : "+f"(p.d[0]), "+f"(p.d[1]), "+f"(p.d[2]), "+f"(p.d[3])
                     : "r"(l.a[2 * half]), "r"(l.a[2 * half + 1]), "r"(r.b[half]));
    }
#endif
}

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
template <> __device__ __forceinline__ void multiply<bf16>(Product& p, const Left& l, const Right& r) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                 "{%0, %1, %2, %3};"
                 : "+f"(p.d[0]), "+f"(p.d[1]), "+f"(p.d[2]), "+f"(p.d[3])
                 : "r"(l.a[0]), "r"(l.a[1]), "r"(l.a[2]), "r"(l.a[3]), "r"(r.b[0]), "r"(r.b[1]));
}
#endif

// Two values rounded to elements, the first in the lower half.
template <class E> __device__ __forceinline__ u32 narrow_pair(float low, float high) {
    return (u32)narrow<E>(low).bits | (u32)narrow<E>(high).bits << 16;
}

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
template <> __device__ __forceinline__ u32 narrow_pair<f16>(float low, float high) {
    u32 pair;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
    return pair;
}

template <> __device__ __forceinline__ u32 narrow_pair<bf16>(float low, float high) {
    u32 pair;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
    return pair;
}
#endif

__device__ __forceinline__ u32 shared_address(const void* at) { return (u32)__cvta_generic_to_shared(at); }

// Four 8 x 8 tiles of elements: lane i names row i % 8 of tile i / 8 (16 bytes), and gets [g][2q, +1] of each.
__device__ __forceinline__ void load_tiles(u32 (&tiles)[4], u32 row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(tiles[0]), "=r"(tiles[1]), "=r"(tiles[2]), "=r"(tiles[3])
                 : "r"(row)
                 : "memory");
}

// The same, each tile transposed: a Right whose rows in shared memory are ks.
__device__ __forceinline__ void load_tiles_transposed(u32 (&tiles)[4], u32 row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(tiles[0]), "=r"(tiles[1]), "=r"(tiles[2]), "=r"(tiles[3])
                 : "r"(row)
                 : "memory");
}

// The first `bytes` (a multiple of 4) of 16 from global to shared memory, zeros behind them.
__device__ __forceinline__ void copy16(void* to, const void* from, u32 bytes) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from), "r"(bytes)
                 : "memory");
#else
    const u32* words = (const u32*)from;
    if (bytes == 16) {
        *(uint4*)to = __ldg((const uint4*)from);
    } else {
        *(uint4*)to = make_uint4(bytes > 0 ? __ldg(words) : 0, bytes > 4 ? __ldg(words + 1) : 0,
                                 bytes > 8 ? __ldg(words + 2) : 0, 0);
    }
#endif
}

// 4 bytes from global to shared memory, or zeros.
__device__ __forceinline__ void copy4(void* to, const void* from, bool inside) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(shared_address(to)), "l"(from),
                 "r"(inside ? 4 : 0)
                 : "memory");
#else
    *(u32*)to = inside ? __ldg((const u32*)from) : 0;
#endif
}

// The thread's copies since the last call become one group.
__device__ __forceinline__ void end_group() {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
    asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// Waits until at most `YOUNGER` of the thread's groups are under way; others see them after a barrier.
template <u32 YOUNGER> __device__ __forceinline__ void wait_groups() {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
    asm volatile("cp.async.wait_group %0;" ::"n"(YOUNGER) : "memory");
#endif
}
