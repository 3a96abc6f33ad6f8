// Route, many tokens: 8 tokens in one block, which reads the router once for all of them; no [tokens, experts] matrix.
//
//     for every 64 experts:
//         for every 64 columns:  x [8][64] and w [64][64] into shared memory; meanwhile the next ones are read
//             each warp: 8 of the columns, 8 x 64 products, 4 x 4 sums a lane
//         the warps' sums into shared memory
//         a warp a token: adds them up, and merges the scores into the token's list
//     a warp a token: ids and weights
//
// 1. The inner dimension is split over the warps, not the experts: 4 x 4 sums a lane need 8 loads of 16 bytes for 64
//    products, and 8 tokens a block leave 64 blocks of 512 tokens.
// 2. Rows are 4 floats longer than a multiple of the banks: eight lanes' vectors of four fill these once.
// 3. All sums of a score run in one order, whoever its neighbours are: equal rows tie exactly.
#pragma once

#include "route_token.cuh"

namespace many {

constexpr u32 THREADS = 256, WARPS = THREADS / 32;
constexpr u32 TOKENS = ROUTE_TOKENS, EXPERTS = 64, SLAB = 64;
constexpr u32 ROW = SLAB + 4, SUMS = EXPERTS + 16; // tokens of two half warps on banks of their own
static_assert(TOKENS == WARPS && ROUTE_TOP_K <= SUMS, "a warp takes a token");

struct Stage {
    float x[TOKENS][ROW];
    float w[EXPERTS][ROW];
};

struct Shared {
    union {
        Stage stages[2];
        float sums[WARPS][TOKENS][SUMS];
    };
    u64 lists[TOKENS][ROUTE_TOP_K];
};

template <class E> __device__ __forceinline__ void put_four(float* to, const Raw<E, 4>& part) {
    *(float4*)to = make_float4(raw_at(part, 0), raw_at(part, 1), raw_at(part, 2), raw_at(part, 3));
}

// This thread's part of a slab on its way from global to shared memory: 16 lanes read a row's columns.
template <class X> struct Slab {
    static constexpr u32 EACH = EXPERTS * SLAB / 4 / THREADS, ROWS = THREADS / (SLAB / 4);
    Raw<X, 4> x;
    Raw<float, 4> w[EACH];

    static __device__ __forceinline__ u32 row() { return threadIdx.x / (SLAB / 4); }
    static __device__ __forceinline__ u32 column() { return 4 * (threadIdx.x % (SLAB / 4)); }

    __device__ __forceinline__ void read(const RouteParams& p, u32 t0, u32 tokens, u32 e0, u32 count, u32 k0) {
        u32 i = k0 + column();
        x = Raw<X, 4>{};
        if (row() < tokens) {
            x = load_part<4>((const X*)p.x + (size_t)(t0 + row()) * p.x_stride, i, p.in_features, p.x_vector);
        }
#pragma unroll
        for (u32 n = 0; n < EACH; n++) {
            u32 e = row() + ROWS * n;
            w[n] = Raw<float, 4>{};
            if (e < count) w[n] = load_part<4>(p.weight + (size_t)(e0 + e) * p.in_features, i, p.in_features, p.w_vector);
        }
    }

    __device__ __forceinline__ void put(Stage& stage) const {
        if (row() < TOKENS) put_four(&stage.x[row()][column()], x);
#pragma unroll
        for (u32 n = 0; n < EACH; n++) put_four(&stage.w[row() + ROWS * n][column()], w[n]);
    }
};

// A lane's tokens are every second from lane / 16 on, its experts every sixteenth from lane % 16 on.
struct Products {
    float sums[4][4] = {};

    __device__ __forceinline__ void add(const Stage& stage, u32 count) {
        u32 lane = threadIdx.x % 32;
#pragma unroll
        for (u32 j = 0; j < SLAB / WARPS; j += 4) {
            u32 i = threadIdx.x / 32 * (SLAB / WARPS) + j;
            float4 x[4];
#pragma unroll
            for (u32 m = 0; m < 4; m++) x[m] = *(const float4*)&stage.x[lane / 16 + 2 * m][i];
#pragma unroll
            for (u32 n = 0; n < 4; n++) {
                if (16 * n >= count) break;
                float4 w = *(const float4*)&stage.w[lane % 16 + 16 * n][i];
#pragma unroll
                for (u32 m = 0; m < 4; m++) {
                    float sum = fmaf(x[m].y, w.y, fmaf(x[m].x, w.x, sums[m][n]));
                    sums[m][n] = fmaf(x[m].w, w.w, fmaf(x[m].z, w.z, sum));
                }
            }
        }
    }

    __device__ __forceinline__ void share(float (&to)[TOKENS][SUMS]) const {
        u32 lane = threadIdx.x % 32;
#pragma unroll
        for (u32 m = 0; m < 4; m++) {
#pragma unroll
            for (u32 n = 0; n < 4; n++) to[lane / 16 + 2 * m][lane % 16 + 16 * n] = sums[m][n];
        }
    }
};

// The products of 8 tokens and up to 64 rows of the router, in parts by warp, into s.sums; barriers lie around it.
template <class X>
__device__ __forceinline__ void
multiply(const RouteParams& p, Shared& s, u32 t0, u32 tokens, u32 e0, u32 count) {
    Slab<X> next;
    Products products;
    u32 at = 0;
#pragma unroll 1
    for (u32 k0 = 0;; k0 += SLAB) {
        if (k0 < p.in_features) next.read(p, t0, tokens, e0, count, k0);
        if (k0 > 0) products.add(s.stages[at ^ 1], count);
        if (k0 >= p.in_features) break;
        next.put(s.stages[at]); // read for the last time before the barrier behind us
        at ^= 1;
        __syncthreads();
    }
    __syncthreads(); // the sums lie where the stages do
    products.share(s.sums[threadIdx.x / 32]);
    __syncthreads();
}

// A token's selection, in the registers of its warp and its list in shared memory.
struct Choice {
    Mask mask;
    float deviation = 1.0f, total = 0.0f, last = 0.0f;

    // Merges two keys a lane into the list.
    static __device__ __forceinline__ void merge(u64* list, u64 (&keys)[2], u32 places) {
        u32 lane = threadIdx.x % 32;
        if (warp_largest(max(keys[0], keys[1])) <= list[places - 1]) return;
        u64 listed[2] = {list[lane], list[lane + 32]};
        __syncwarp();
#pragma unroll 1
        for (u32 place = 0; place < places; place++) {
            u64 best = warp_largest(max(max(keys[0], keys[1]), max(listed[0], listed[1])));
            if (best == 0) break;
            if (lane == 0) list[place] = best;
#pragma unroll
            for (u32 i = 0; i < 2; i++) {
                if (keys[i] == best) keys[i] = 0;
                if (listed[i] == best) listed[i] = 0;
            }
        }
        __syncwarp();
    }

    // The token's scores of `count` rows from e0 on.
    __device__ __forceinline__ void take(const RouteParams& p, const float (&sums)[WARPS][TOKENS][SUMS], u64* list, u32 e0, u32 count) {
        u32 lane = threadIdx.x % 32, t = threadIdx.x / 32;
        u64 keys[2];
        float scores[2];
        bool may[2];
#pragma unroll
        for (u32 i = 0; i < 2; i++) {
            u32 e = lane + 32 * i;
            float product = 0.0f;
#pragma unroll
            for (u32 w = 0; w < WARPS; w++) product += sums[w][t][e];
            bool inside = e < count;
            scores[i] = inside ? folded(p, product, deviation) + bias_of(p, e0 + e) : 0.0f;
            keys[i] = inside ? choice_of(p, mask, scores[i], e0 + e) : 0;
            may[i] = keys[i] != 0;
        }
        u32 place = p.experts - e0; // of the threshold's row; wraps where it was before
        if (place < count) last = __shfl_sync(ALL_LANES, place < 32 ? scores[0] : scores[1], place % 32);
        u64 before = list[0];
        __syncwarp();
        merge(list, keys, max(p.top_k, 1));
        u64 first = list[0];
        if (!p.sums_all || first == 0) return;
        float largest = score_of(first), sum = 0.0f;
#pragma unroll
        for (u32 i = 0; i < 2; i++) sum += may[i] ? expf(scores[i] - largest) : 0.0f;
        float kept = before == 0 ? 0.0f : total * expf(score_of(before) - largest);
        total = kept + warp_sum(sum);
    }
};

template <class X> __device__ __forceinline__ void route(const RouteParams& p) {
    __shared__ __align__(16) Shared s;
    u32 t0 = TOKENS * blockIdx.x, live = live_tokens(p.live_tokens, p.tokens);
    if (t0 >= live) return;
    u32 tokens = min(live - t0, TOKENS), warp = threadIdx.x / 32, lane = threadIdx.x % 32, t = t0 + warp;
    bool works = warp < tokens;
    u64* list = s.lists[warp];
    list[lane] = list[lane + 32] = 0;
    __syncwarp();
    Choice choice;
    if (works) choice.mask = mask_of(p, t);
    if (works && p.standardised) choice.deviation = deviation_of(p, (const X*)p.x + (size_t)t * p.x_stride);
    u32 rows = router_rows(p);
#pragma unroll 1
    for (u32 e0 = 0; e0 < rows; e0 += EXPERTS) {
        u32 count = min(rows - e0, EXPERTS);
        multiply<X>(p, s, t0, tokens, e0, count);
        if (works) choice.take(p, s.sums, list, e0, count);
        __syncthreads();
    }
    if (works) finish(p, t, list, choice.total, choice.last, s.sums[warp][0]);
}

} // namespace many

#define ROUTE_MANY(name, X)                                                                                      \
    extern "C" __global__ void __launch_bounds__(many::THREADS, 2) name(const __grid_constant__ RouteParams p) { \
        many::route<X>(p);                                                                                       \
    }
ROUTE_MANY(route_many_f32, float)
ROUTE_MANY(route_many_f16, f16)
ROUTE_MANY(route_many_bf16, bf16)
