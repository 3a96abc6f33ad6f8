// Route: scores, selection and weights in one launch, without a [tokens, experts] matrix; see src/ops/route.rs. Here a block
// takes one token; route_many.cuh has tiles of tokens.
//
//     for every 2,048 rows of the router:
//         for every 4,096 columns:  x into shared memory; a warp adds to the scores of one, two or four experts
//         the best top_k of these and of the list so far, by repeated largest key
//     a warp: ids and weights of the list; softmax over all experts by a running maximum and sum
//
// A score is the same sum in the same order whichever warp adds it: equal rows tie exactly.

#include "route_many.cuh"

constexpr u32 THREADS = 256, WARPS = THREADS / 32;
constexpr u32 COLUMNS = 4096;
constexpr u32 EXPERTS = 2048, OWN = EXPERTS / THREADS;
constexpr u32 MAX_TOP_K = 256;

// Adds <x, w> over `width` columns to scores[8 n] for N rows of w, `step` apart; the loads of all rows overlap.
// VECTOR: rows are whole fours at multiples of 16 bytes.
template <u32 N, bool VECTOR>
__device__ __forceinline__ void add_products(const float* x, const float* w, size_t step, u32 width, float* scores) {
    constexpr int UNROLL = VECTOR ? 8 / N : 2;
    u32 lane = threadIdx.x % 32, i = 4 * lane;
    float sums[N] = {};
    auto add = [&](const Raw<float, 4>& part, u32 n) {
        float4 v = *(const float4*)(x + i);
        sums[n] = fmaf(v.x, raw_at(part, 0), sums[n]);
        sums[n] = fmaf(v.y, raw_at(part, 1), sums[n]);
        sums[n] = fmaf(v.z, raw_at(part, 2), sums[n]);
        sums[n] = fmaf(v.w, raw_at(part, 3), sums[n]);
    };
#pragma unroll UNROLL
    for (; i + 4 <= width; i += 128) {
#pragma unroll
        for (u32 n = 0; n < N; n++) {
            add(VECTOR ? load<4>(w + n * step + i) : load_each<4>(w + n * step + i, 4), n);
        }
    }
    if (!VECTOR && i < width) add(load_each<4>(w + i, width - i), 0);
#pragma unroll
    for (u32 n = 0; n < N; n++) {
        float sum = warp_sum(sums[n]);
        if (lane == 0) scores[n * WARPS] += sum;
    }
}

// The scores of every eighth expert from this warp's on.
__device__ void add_scores(const RouteParams& p, const float* x, const float* w, u32 width, u32 count, float* scores) {
    size_t step = (size_t)WARPS * p.in_features;
    u32 e = threadIdx.x / 32;
    w += (size_t)e * p.in_features;
    if (!p.w_vector || width % 4) {
        for (; e < count; e += WARPS, w += step) add_products<1, false>(x, w, step, width, scores + e);
        return;
    }
    for (; e + 3 * WARPS < count; e += 4 * WARPS, w += 4 * step) {
        add_products<4, true>(x, w, step, width, scores + e);
    }
    for (; e + WARPS < count; e += 2 * WARPS, w += 2 * step) {
        add_products<2, true>(x, w, step, width, scores + e);
    }
    if (e < count) add_products<1, true>(x, w, step, width, scores + e);
}

template <class X> __device__ void stage(const X* row, u32 width, bool vector, float* x) {
    for (u32 i = 8 * threadIdx.x; i < width; i += 8 * THREADS) {
        Raw<X, 8> part = load_part<8>(row, i, width, vector);
#pragma unroll
        for (u32 j = 0; j < 8; j += 4) {
            *(float4*)(x + i + j) =
                make_float4(raw_at(part, j), raw_at(part, j + 1), raw_at(part, j + 2), raw_at(part, j + 3));
        }
    }
}

// The best of this chunk's keys and of the list, into the list. Nobody reads `winners` of the round before last.
__device__ void select(u64 (&keys)[OWN], u64* list, u32 places, u64 (*winners)[WARPS]) {
    u64 listed = threadIdx.x < places ? list[threadIdx.x] : 0;
    for (u32 place = 0; place < places; place++) {
        u64 largest = listed;
#pragma unroll
        for (u32 j = 0; j < OWN; j++) largest = max(largest, keys[j]);
        largest = warp_largest(largest);
        u64* round = winners[place % 2];
        if (threadIdx.x % 32 == 0) round[threadIdx.x / 32] = largest;
        __syncthreads();
        largest = round[0];
#pragma unroll
        for (u32 w = 1; w < WARPS; w++) largest = max(largest, round[w]);
        if (threadIdx.x == 0) list[place] = largest;
        if (listed == largest) listed = 0;
#pragma unroll
        for (u32 j = 0; j < OWN; j++) keys[j] = keys[j] == largest ? 0 : keys[j];
    }
}

// The sum over the block, in every thread and always in the same order. Barriers lie between two calls.
__device__ float block_sum(float v, float* sums) {
    v = warp_sum(v);
    if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = v;
    __syncthreads();
    float sum = 0.0f;
#pragma unroll
    for (u32 w = 0; w < WARPS; w++) sum += sums[w];
    return sum;
}

template <class X> __device__ __forceinline__ void route(const RouteParams& p) {
    __shared__ __align__(16) float x[COLUMNS];
    __shared__ float scores[EXPERTS], sums[WARPS], last, deviation;
    __shared__ u64 list[MAX_TOP_K], winners[2][WARPS];
    u32 t = blockIdx.x, rows = router_rows(p);
    if (t >= live_tokens(p.live_tokens, p.tokens)) return;
    const X* row = (const X*)p.x + (size_t)t * p.x_stride;
    Mask mask = mask_of(p, t);
    // Linear scores begin with the bias, as fused_gate's do.
    bool linear = !p.standardised && !p.absolute;
    list[threadIdx.x] = 0;
    if (p.standardised && threadIdx.x < 32) {
        float of_row = deviation_of(p, row);
        if (threadIdx.x == 0) deviation = of_row;
    }
    __syncthreads();
    float total = 0.0f; // of exp(score - the largest so far)
    for (u32 e0 = 0; e0 < rows; e0 += EXPERTS) {
        u32 count = min(rows - e0, EXPERTS);
        for (u32 e = threadIdx.x; e < count; e += THREADS) scores[e] = linear ? bias_of(p, e0 + e) : 0.0f;
        for (u32 i0 = 0; i0 < p.in_features; i0 += COLUMNS) {
            u32 width = min(p.in_features - i0, COLUMNS);
            if (e0 == 0 || p.in_features > COLUMNS) stage(row + i0, width, p.x_vector, x);
            __syncthreads();
            const float* w = p.weight + (size_t)e0 * p.in_features + i0;
            add_scores(p, x, w, width, count, scores);
            __syncthreads();
        }
        u64 keys[OWN];
        float own[OWN];
        u32 may = 0;
#pragma unroll
        for (u32 j = 0; j < OWN; j++) {
            u32 e = threadIdx.x + THREADS * j;
            keys[j] = 0, own[j] = 0.0f;
            if (e >= count) continue;
            own[j] = linear ? scores[e] : folded(p, scores[e], deviation) + bias_of(p, e0 + e);
            keys[j] = choice_of(p, mask, own[j], e0 + e);
            may |= (keys[j] != 0) << j;
            if (e0 + e == p.experts) last = own[j];
        }
        u64 before = list[0];
        select(keys, list, max(p.top_k, 1), winners);
        __syncthreads();
        if (!p.sums_all || list[0] == 0) continue;
        float largest = score_of(list[0]), sum = 0.0f;
#pragma unroll
        for (u32 j = 0; j < OWN; j++) {
            if (may >> j & 1) sum += expf(own[j] - largest);
        }
        // No product in the first round: before stands for nothing there, and 0 * inf is NaN.
        float kept = before == 0 ? 0.0f : total * expf(score_of(before) - largest);
        total = kept + block_sum(sum, sums);
    }
    if (threadIdx.x < 32) finish(p, t, list, total, last, scores);
}

#define ROUTE_FEW(name, X)                                                                                   \
    extern "C" __global__ void __launch_bounds__(THREADS, 3) name(const __grid_constant__ RouteParams p) { \
        route<X>(p);                                                                                         \
    }
ROUTE_FEW(route_few_f32, float)
ROUTE_FEW(route_few_f16, f16)
ROUTE_FEW(route_few_bf16, bf16)
