// Fused, few tokens: y = x weight^T + bias + sum over routes n of w_n scaling B A x in one launch, straight from the ids.
//
//     block: take a ticket
//     ticket < shrink_jobs:  a route's expert, if no earlier route names it, 16 ranks after 16 ranks:
//                                h[every route that names it][rank] = <A[rank], x[token]>
//                            publish: one more job is done
//     else:                  16 rows of the weight, or 32, times all tokens
//                            wait until all jobs are done
//                            add, for each route of each token, w scaling h B; round once
//     the last block to leave sets the counters back to zero
//
// 1. Shrink is hidden: its blocks run beside those that read the weight, which ask for h only when their own rows are
//    multiplied. B is asked for before that.
// 2. Forward progress: tickets are given in the order in which blocks begin to run, and who waits has a ticket behind all
//    of those that it waits for. So they run already, and wait for nobody. Nothing is asked of the size of the grid.
// 3. No value depends on the order of the tickets: they only say which block does what. Sums have one order each: a
//    product's of the eight warps' shares (slabs.cuh) or of a warp's lanes, a token's experts' part of the eight shares
//    that the steps of its experts, 16 ranks each, make.
// 4. Each weight is read once, and x and each active expert's B once a block, whatever the tokens share.
#pragma once

#include "few_experts.cuh"

namespace few {

// Words of the counters.
constexpr u32 TICKET = 0, SHRUNK = 1, LEFT = 2;

constexpr u32 RANKS = 16; // of an expert at a time

// Whether route n is the first to name its expert; if so, the tokens that name it. Also ends who still reads the last ones.
template <class S>
__device__ __forceinline__ bool find_tokens(const FewParams& p, S& s, u32 n, int id, u32 live) {
    bool earlier = threadIdx.x < n && p.topk_ids[threadIdx.x] == id;
    if (__syncthreads_or(earlier)) return false;
    if (threadIdx.x < 32) {
        bool names = false;
        for (u32 i = 0; threadIdx.x < live && i < p.top_k; i++) names |= p.topk_ids[threadIdx.x * p.top_k + i] == id;
        u32 all = __ballot_sync(ALL_LANES, names);
        u32 rest = all;
        for (u32 i = 0; i < threadIdx.x && (rest & rest - 1) != 0; i++) rest &= rest - 1;
        if (threadIdx.x < TOKENS) s.tokens[threadIdx.x] = __ffs(rest) - 1;
        if (threadIdx.x == 0) s.count = __popc(all);
    }
    __syncthreads();
    return true;
}

// Every routes' h of one expert: of its ranks every rank_blocks-th 16.
template <class Multiply, class A>
__device__ __forceinline__ void shrink_job(const FewParams& p, Shared<Multiply::ROWS>& s, u32 job, u32 live) {
    u32 n = job / p.rank_blocks;
    if (n >= live * p.top_k) return;
    int id = p.topk_ids[n];
    Slot slot = named_slot(p, id);
    if (slot.rank == 0 || !find_tokens(p, s, n, id, live)) return;
    for (u32 r0 = RANKS * (job % p.rank_blocks); r0 < slot.rank; r0 += RANKS * p.rank_blocks) {
        Matrix<A> a{(const A*)p.a + (size_t)(slot.row + r0) * p.a_stride, p.a_stride, slot.rank - r0};
        Multiply::multiply(p, s, a, RANKS, true);
        u32 m = threadIdx.x / RANKS, r = threadIdx.x % RANKS;
        for (u32 i = 0; m < s.count && r < a.count && i < p.top_k; i++) {
            u32 route = s.tokens[m] * p.top_k + i;
            if (p.topk_ids[route] == id) p.h[(size_t)route * p.h_stride + r0 + r] = s.sums[m][r];
        }
        __syncthreads();
    }
}

// The job is done: what the block wrote is there for whoever sees the count.
__device__ __forceinline__ void publish(const FewParams& p) {
    __syncthreads();
    if (threadIdx.x != 0) return;
    u32* shrunk = p.counters + SHRUNK;
    asm volatile("fence.acq_rel.gpu;\n\tred.relaxed.gpu.global.add.u32 [%0], 1;" ::"l"(__cvta_generic_to_global(shrunk))
                 : "memory");
}

__device__ __forceinline__ void wait_for_h(const FewParams& p) {
    if (threadIdx.x == 0) {
        u32 done;
        do {
            asm volatile("ld.acquire.gpu.global.u32 %0, [%1];"
                         : "=r"(done)
                         : "l"(__cvta_generic_to_global(p.counters + SHRUNK))
                         : "memory");
        } while (done < p.shrink_jobs);
    }
    __syncthreads();
}

// The last block of all, behind everyone's tickets and waits, leaves the counters as it found them.
__device__ __forceinline__ void leave(const FewParams& p) {
    __syncthreads();
    if (threadIdx.x != 0) return;
    u32 before;
    asm volatile("atom.acq_rel.gpu.global.add.u32 %0, [%1], 1;"
                 : "=r"(before)
                 : "l"(__cvta_generic_to_global(p.counters + LEFT))
                 : "memory");
    if (before + 1 == gridDim.x) p.counters[TICKET] = p.counters[SHRUNK] = p.counters[LEFT] = 0;
}

// Columns o0 .. o0 + p.rows of y.
template <class Multiply, class X, class B>
__device__ __forceinline__ void base_job(const FewParams& p, Shared<Multiply::ROWS>& s, u32 o0, u32 live) {
    constexpr u32 ROWS = Multiply::ROWS, EACH = ROWS / 16; // columns of a thread, 16 apart
    u32 listed = p.shrink_jobs > 0 ? list_routes<B>(p, s, slice_at(p, o0), o0, live) : 0;
    if (threadIdx.x < TOKENS) s.tokens[threadIdx.x] = min(threadIdx.x, live - 1);
    if (threadIdx.x == 0) s.count = live;
    __syncthreads();
    Matrix<X> w{(const X*)p.weight + (size_t)o0 * p.in_features, p.in_features, p.out_features - o0};
    Multiply::multiply(p, s, w, p.rows, p.w_vector);
    u32 t = threadIdx.x / 16, c = threadIdx.x % 16, columns = t < live ? min(p.rows, p.out_features - o0) : 0;
    float sums[EACH] = {};
#pragma unroll
    for (u32 g = 0; g < EACH; g++) {
        if (c + 16 * g < columns) sums[g] = s.sums[t][c + 16 * g];
    }
    if (p.shrink_jobs > 0) {
        wait_for_h(p);
        for (Slice slice = slice_at(p, o0);;) {
            make_shares<ROWS, B>(p, s, slice, o0, live, listed);
            __syncthreads();
#pragma unroll
            for (u32 g = 0; g < EACH; g++) {
                float part = 0.0f;
#pragma unroll
                for (u32 i = 0; c + 16 * g < columns && i < WARPS; i++) part += s.shares[i][t][c + 16 * g];
                sums[g] += part;
            }
            if (slice.index + 1 == p.slices || slice.end >= o0 + p.rows) break;
            slice = Slice{slice.index + 1, slice.end, p.slice_ends[slice.index + 1]};
            __syncthreads();
            listed = list_routes<B>(p, s, slice, o0, live);
        }
    }
#pragma unroll
    for (u32 g = 0; g < EACH; g++) {
        u32 o = o0 + c + 16 * g;
        if (c + 16 * g >= columns) break;
        if (p.bias) sums[g] += widen(load_one((const X*)p.bias + o));
        ((X*)p.y)[(size_t)t * p.y_stride + o] = narrow<X>(sums[g]);
    }
}

template <class Multiply, class X, class A> __device__ __forceinline__ void fused(const FewParams& p) {
    __shared__ __align__(16) Shared<Multiply::ROWS> s;
    __shared__ u32 ticket; // not beside what is written later: one load would take both
    u32 live = live_tokens(p.live_tokens, p.tokens);
    if (threadIdx.x == 0) ticket = atomicAdd(p.counters + TICKET, 1);
    __syncthreads();
    if (ticket < p.shrink_jobs) {
        shrink_job<Multiply, A>(p, s, ticket, live);
        publish(p);
    } else if (live > 0) {
        base_job<Multiply, X, A>(p, s, p.rows * (ticket - p.shrink_jobs), live);
    }
    leave(p);
}

} // namespace few

#define FEW(x, X, a, A)                                                                                        \
    extern "C" __global__ void __launch_bounds__(few::THREADS, 2)                                              \
        fused_few_##x##_##a(const __grid_constant__ FewParams p) {                                             \
        few::fused<few::Plain<X>, X, A>(p);                                                                    \
    }
#define FEW_X(x, X) FEW(x, X, f32, float) FEW(x, X, f16, f16) FEW(x, X, bf16, bf16)
FEW_X(f32, float)
FEW_X(f16, f16)
FEW_X(bf16, bf16)

extern "C" __global__ void __launch_bounds__(few::THREADS, 2)
fused_few_mma_f16(const __grid_constant__ FewParams p) {
    few::fused<few::Mma<f16>, f16, f16>(p);
}

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
extern "C" __global__ void __launch_bounds__(few::THREADS, 2)
fused_few_mma_bf16(const __grid_constant__ FewParams p) {
    few::fused<few::Mma<bf16>, bf16, bf16>(p);
}
#endif
