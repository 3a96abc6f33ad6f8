// Fused, few tokens: y = x weight^T + bias + sum over routes n of w_n scaling B A x in one launch, straight from the ids.
//
//     block: take a ticket
//     ticket < shrink_jobs:  a route's expert, if no earlier route names it, 16 ranks after 16 ranks:
//                                h[every route that names it][rank] = <A[rank], x[token]>
//                            publish: one more job is done
//     else:                  16 rows of the weight times all tokens
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
//    that its steps, 16 ranks of a route each, make in turn.
// 4. Each weight is read once: all tokens' rows of x are beside it, repeated where there are fewer than the product takes.
#pragma once

#include "slabs.cuh"

namespace few {

constexpr u32 THREADS = 256, WARPS = 8, ROWS = 16, TOKENS = 16;

// Words of the counters.
constexpr u32 TICKET = 0, SHRUNK = 1, LEFT = 2;

// What the experts' part needs of a route; rank 0: nothing.
struct Route {
    u32 row, rank, h; // first row of B; where its h begins
    float factor;
};

struct Shared {
    union {
        float4 products[WARPS][2 * 32];       // [warp][eight tokens][lane]
        float shares[WARPS][TOKENS][ROWS];    // of the experts' part
    };
    float sums[TOKENS][ROWS];
    Route routes[FEW_ROUTES];
    u32 tokens[TOKENS]; // whose x the rows are multiplied with: `count`, the last one again behind them
    u32 count;
};

// Rows of a matrix times tokens: of the weight, or of A. Rows behind the last repeat it.
template <class W> struct Matrix {
    const W* rows;
    u32 stride, count;

    __device__ __forceinline__ const W* row(u32 i) const { return rows + (size_t)min(i, count - 1) * stride; }
};

template <class X, u32 NT> __device__ __forceinline__ void multiply_tiles(const FewParams& p, Shared& s, const Matrix<X>& w) {
    u32 warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    slabs::Products<X, 1, NT> products;
    auto x_row = [&](u32 i) { return (const X*)p.x + (size_t)s.tokens[i] * p.x_stride; };
    products.begin([&](u32 i) { return w.row(i); }, x_row, warp, lane);
    products.add_all(p.in_features, warp, lane);
#pragma unroll
    for (u32 n = 0; n < NT; n++) {
        const float(&d)[4] = products.sums[0][n].d;
        s.products[warp][32 * n + lane] = make_float4(d[0], d[1], d[2], d[3]);
    }
    __syncthreads();
    if (warp < NT) {
        float sum[4] = {};
#pragma unroll
        for (u32 i = 0; i < WARPS; i++) {
            float4 share = s.products[i][threadIdx.x];
            sum[0] += share.x, sum[1] += share.y, sum[2] += share.z, sum[3] += share.w;
        }
#pragma unroll
        for (u32 i = 0; i < 4; i++) s.sums[8 * warp + 2 * (lane % 4) + i % 2][lane / 4 + 8 * (i / 2)] = sum[i];
    }
    __syncthreads();
}

// sums[token][row] on tensor cores.
template <class X> struct Mma {
    static __device__ __forceinline__ void multiply(const FewParams& p, Shared& s, const Matrix<X>& w, bool) {
        if (s.count > 8) multiply_tiles<X, 2>(p, s, w);
        else multiply_tiles<X, 1>(p, s, w);
    }
};

// One row times all tokens by a warp, which reads the row once. Lanes take parts of it as in rows.cuh, or, where rows do
// not start at multiples of 16 bytes, single elements.
template <class W, class X>
__device__ __forceinline__ void dot_tokens(const FewParams& p, const Shared& s, const W* w, bool vector, float (&sums)[TOKENS]) {
    constexpr u32 N = sizeof(W) == 4 && sizeof(X) == 4 ? 4 : 8;
    u32 k = p.in_features, count = s.count, lane = threadIdx.x % 32, i = vector ? N * lane : k;
    // Looked up again in each round: sixteen addresses would take 32 registers.
    const volatile u32* tokens = s.tokens;
    auto x_row = [&](u32 m) { return (const X*)p.x + (size_t)tokens[m] * p.x_stride; };
    Raw<W, N> next = {};
    if (i + N <= k) next = load<N>(w + i);
#pragma unroll 1
    for (; i + N <= k; i += 32 * N) {
        Raw<W, N> v = next;
        if (i + 33 * N <= k) next = load<N>(w + i + 32 * N);
#pragma unroll
        for (u32 m = 0; m < TOKENS; m += 4) {
            if (m >= count) break;
            Raw<X, N> u[4];
#pragma unroll
            for (u32 j = 0; j < 4; j++) u[j] = load<N>(x_row(m + j) + i);
#pragma unroll
            for (u32 j = 0; j < 4; j++) {
#pragma unroll
                for (u32 e = 0; e < N; e++) sums[m + j] = fmaf(raw_at(v, e), raw_at(u[j], e), sums[m + j]);
            }
        }
    }
    // What is left: fewer than a part of one lane's, or the whole row, an element a lane.
    u32 step = vector ? 1 : 32;
#pragma unroll 1
    for (i = vector ? i : lane; i < k; i += step) {
        float v = widen(load_one(w + i));
#pragma unroll
        for (u32 m = 0; m < TOKENS; m++) {
            if (m < count) sums[m] = fmaf(v, widen(load_one(x_row(m) + i)), sums[m]);
        }
    }
}

// sums[token][row] in f32 arithmetic, a row by a warp.
template <class X> struct Plain {
    template <class W>
    static __device__ __forceinline__ void multiply(const FewParams& p, Shared& s, const Matrix<W>& w, bool vector) {
#pragma unroll 1
        for (u32 r = threadIdx.x / 32; r < min(w.count, ROWS); r += WARPS) {
            float sums[TOKENS] = {};
            dot_tokens<W, X>(p, s, w.row(r), vector && p.x_vector, sums);
#pragma unroll
            for (u32 m = 0; m < TOKENS; m++) {
                if (m >= s.count) break;
                float sum = warp_sum(sums[m]);
                if (threadIdx.x % 32 == 0) s.sums[m][r] = sum;
            }
        }
        __syncthreads();
    }
};

// The slot that an id names; rank 0 where it names none, with the reason in the status word.
__device__ __forceinline__ Slot named_slot(const FewParams& p, int id) {
    Slot none = {};
    if (id == -1) return none;
    u32 why = ID_OUT_OF_RANGE;
    if (id >= 0 && (u32)id < p.experts) {
        uint4 v = __ldg((const uint4*)p.slots + id);
        Slot slot = {v.x, v.y, __uint_as_float(v.z), v.w};
        why = slot.rank == 0 ? STALE_SLOT : slot.rank > p.max_rank ? RANK_TOO_LARGE : 0;
        if (why == 0) return slot;
    }
    atomicOr(p.status, why);
    return none;
}

// Whether route n is the first to name its expert; if so, the tokens that name it. Also ends who still reads the last ones.
__device__ __forceinline__ bool find_tokens(const FewParams& p, Shared& s, u32 n, int id, u32 live) {
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
__device__ __forceinline__ void shrink_job(const FewParams& p, Shared& s, u32 job, u32 live) {
    u32 n = job / p.rank_blocks;
    if (n >= live * p.top_k) return;
    int id = p.topk_ids[n];
    Slot slot = named_slot(p, id);
    if (slot.rank == 0 || !find_tokens(p, s, n, id, live)) return;
    for (u32 r0 = ROWS * (job % p.rank_blocks); r0 < slot.rank; r0 += ROWS * p.rank_blocks) {
        Matrix<A> a{(const A*)p.a + (size_t)(slot.row + r0) * p.a_stride, p.a_stride, slot.rank - r0};
        Multiply::multiply(p, s, a, true);
        u32 m = threadIdx.x / ROWS, r = threadIdx.x % ROWS;
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

struct Slice {
    u32 index, first, end; // its columns
};

__device__ __forceinline__ Slice slice_at(const FewParams& p, u32 column) {
    Slice slice{0, 0, p.slice_ends[0]};
    while (column >= slice.end) slice = Slice{slice.index + 1, slice.end, p.slice_ends[slice.index + 1]};
    return slice;
}

// A slice's part of every route, and B on its way to the second-level cache.
template <class B>
__device__ __forceinline__ void list_routes(const FewParams& p, Shared& s, const Slice& slice, u32 o0, u32 live) {
    u32 n = threadIdx.x;
    if (n < live * p.top_k) {
        Route route = {};
        int id = p.topk_ids[n];
        Slot slot = named_slot(p, id);
        if (slot.rank != 0) {
            Slot part = slot;
            if (p.slices > 1) {
                uint4 v = __ldg((const uint4*)p.slots + (size_t)(1 + slice.index) * p.experts + id);
                part = Slot{v.x, v.y, __uint_as_float(v.z), v.w};
            }
            float weight = p.topk_weights[n];
            if (!is_finite(weight)) atomicOr(p.status, WEIGHT_NOT_FINITE);
            else route = Route{part.row, part.rank, part.row - slot.row, part.scaling * weight};
        }
        s.routes[n] = route;
    }
    __syncthreads();
    u32 column = max(o0, slice.first) - slice.first;
    for (u32 i = threadIdx.x / 32; i < live * p.top_k; i += WARPS) {
        const B* b = (const B*)p.b + (size_t)s.routes[i].row * p.b_stride + column;
        for (u32 r = threadIdx.x % 32; r < s.routes[i].rank; r += 32) {
            asm volatile("prefetch.global.L2 [%0];" ::"l"(b + (size_t)r * p.b_stride));
        }
    }
}

// Eight columns of a row of B from `column` of the slice on, of which the slice has those in [low, high).
template <class B>
__device__ __forceinline__ void b_columns(const B* row, int column, int low, int high, float (&v)[8]) {
    if (column % 8 == 0 && low == 0 && high == 8) {
        Raw<B, 8> raw = load<8>(row + column);
#pragma unroll
        for (u32 j = 0; j < 8; j++) v[j] = raw_at(raw, j);
        return;
    }
#pragma unroll
    for (int j = 0; j < 8; j++) v[j] = j >= low && j < high ? widen(load_one(row + column + j)) : 0.0f;
}

// The sums of the lanes with one `lane % 2`: of its eight columns, column 4 b4 + 2 b3 + b2 in lanes with these bits.
__device__ __forceinline__ float sum_columns(const float (&v)[8], u32 lane) {
    float four[4], two[2];
#pragma unroll
    for (u32 j = 0; j < 4; j++) {
        float own = lane & 16 ? v[j + 4] : v[j], other = lane & 16 ? v[j] : v[j + 4];
        four[j] = own + __shfl_xor_sync(ALL_LANES, other, 16);
    }
#pragma unroll
    for (u32 j = 0; j < 2; j++) {
        float own = lane & 8 ? four[j + 2] : four[j], other = lane & 8 ? four[j] : four[j + 2];
        two[j] = own + __shfl_xor_sync(ALL_LANES, other, 8);
    }
    float own = lane & 4 ? two[1] : two[0], other = lane & 4 ? two[0] : two[1];
    own += __shfl_xor_sync(ALL_LANES, other, 4);
    return own + __shfl_xor_sync(ALL_LANES, own, 2);
}

// A warp's shares of the experts' part of 16 columns from o0 on: step i of token t, 16 ranks of a route, belongs to
// share i % 8, which warp (i + t) % 8 makes. A lane takes a rank and eight columns.
template <class B>
__device__ __forceinline__ void make_shares(const FewParams& p, Shared& s, const Slice& slice, u32 o0, u32 live) {
    u32 warp = threadIdx.x / 32, lane = threadIdx.x % 32, own = lane / 2;
    int column = (int)(o0 + 8 * (lane % 2)) - (int)slice.first;
    int low = max(-column, 0), high = min((int)(slice.end - slice.first) - column, 8);
#pragma unroll 1
    for (u32 t = 0; t < live; t++) {
        u32 share = (warp - t) % WARPS, steps = 0;
        float sum[8] = {};
        bool any = false;
#pragma unroll 1
        for (u32 n = t * p.top_k; n < (t + 1) * p.top_k; n++) {
            Route route = s.routes[n];
            u32 k = ROWS * ((share - steps) % WARPS);
            steps += (route.rank + ROWS - 1) / ROWS;
#pragma unroll 1
            for (; k < route.rank; k += ROWS * WARPS) {
                any = true;
                if (k + own >= route.rank || low >= high) continue;
                float v[8], f = route.factor * p.h[(size_t)n * p.h_stride + route.h + k + own];
                b_columns((const B*)p.b + (size_t)(route.row + k + own) * p.b_stride, column, low, high, v);
#pragma unroll
                for (u32 j = 0; j < 8; j++) sum[j] = fmaf(f, v[j], sum[j]);
            }
        }
        float total = 0.0f;
        if (any) total = sum_columns(sum, lane);
        u32 at = 8 * (lane % 2) + lane / 16 * 4 + lane / 8 % 2 * 2 + lane / 4 % 2;
        if (lane / 2 % 2 == 0) s.shares[share][t][at] = total;
    }
}

// 16 columns of y.
template <class Multiply, class X, class B>
__device__ __forceinline__ void base_job(const FewParams& p, Shared& s, u32 o0, u32 live) {
    if (p.shrink_jobs > 0) {
        Slice slice = slice_at(p, o0);
        list_routes<B>(p, s, slice, o0, live);
    }
    if (threadIdx.x < TOKENS) s.tokens[threadIdx.x] = min(threadIdx.x, live - 1);
    if (threadIdx.x == 0) s.count = live;
    __syncthreads();
    Matrix<X> w{(const X*)p.weight + (size_t)o0 * p.in_features, p.in_features, p.out_features - o0};
    Multiply::multiply(p, s, w, p.w_vector);
    u32 t = threadIdx.x / ROWS, c = threadIdx.x % ROWS;
    bool works = t < live && c < p.out_features - o0;
    float sum = works ? s.sums[t][c] : 0.0f;
    if (p.shrink_jobs > 0) {
        wait_for_h(p);
        for (Slice slice = slice_at(p, o0);;) {
            make_shares<B>(p, s, slice, o0, live);
            __syncthreads();
            if (works) {
                float part = 0.0f;
#pragma unroll
                for (u32 i = 0; i < WARPS; i++) part += s.shares[i][t][c];
                sum += part;
            }
            if (slice.index + 1 == p.slices || slice.end >= o0 + ROWS) break;
            slice = Slice{slice.index + 1, slice.end, p.slice_ends[slice.index + 1]};
            __syncthreads();
            list_routes<B>(p, s, slice, o0, live);
        }
    }
    if (!works) return;
    if (p.bias) sum += widen(load_one((const X*)p.bias + o0 + c));
    ((X*)p.y)[(size_t)t * p.y_stride + o0 + c] = narrow<X>(sum);
}

template <class Multiply, class X, class A> __device__ __forceinline__ void fused(const FewParams& p) {
    __shared__ Shared s;
    __shared__ u32 ticket; // not beside what is written later: one load would take both
    u32 live = live_tokens(p.live_tokens, p.tokens);
    if (threadIdx.x == 0) ticket = atomicAdd(p.counters + TICKET, 1);
    __syncthreads();
    if (ticket < p.shrink_jobs) {
        shrink_job<Multiply, A>(p, s, ticket, live);
        publish(p);
    } else if (live > 0) {
        base_job<Multiply, X, A>(p, s, ROWS * (ticket - p.shrink_jobs), live);
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
