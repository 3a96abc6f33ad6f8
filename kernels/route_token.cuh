// One token's part of route, the same in both forms: its mask, its scores behind the products, its ids and weights.
#pragma once

#include "keys.cuh"

constexpr float VARIANCE_ADDED = 1e-5f; // as LayerNorm's default

// Experts that a token may take.
struct Mask {
    const u32* list; // a bit an expert; null: none
    bool all;

    __device__ __forceinline__ bool holds(u32 e) const {
        return all || (list && (__ldg(list + e / 32) >> e % 32 & 1));
    }
};

// The list of the last request that begins at or before the token. Whatever the offsets hold, it is one of the lists or none.
__device__ __forceinline__ Mask mask_of(const RouteParams& p, u32 t) {
    if (!p.offsets) return Mask{nullptr, true};
    u32 low = 0, high = p.requests + 1;
    while (low < high) {
        u32 middle = low + (high - low) / 2;
        if (__ldg(p.offsets + middle) <= t) low = middle + 1;
        else high = middle;
    }
    u32 request = low - 1; // wraps where none begins
    if (request >= p.requests) return Mask{nullptr, false};
    return Mask{p.lists + (size_t)request * ((p.experts + 31) / 32), false};
}

// Rows of the router: a learned threshold's lies behind the experts'.
__device__ __forceinline__ u32 router_rows(const RouteParams& p) { return p.experts + (p.select == SELECT_LEARNED); }

__device__ __forceinline__ float bias_of(const RouteParams& p, u32 e) { return p.bias ? __ldg(p.bias + e) : 0.0f; }

// A row's score, without its bias, from its product with x.
__device__ __forceinline__ float folded(const RouteParams& p, float product, float deviation) {
    if (p.standardised) product /= deviation;
    return p.absolute ? fabsf(product) : product;
}

// A score as the selection ranks it. 0 where the token may not take e; the threshold's row is no expert, but must be finite.
__device__ __forceinline__ u64 choice_of(const RouteParams& p, const Mask& mask, float score, u32 e) {
    if (e == p.experts) return is_finite(score) ? 0 : NOT_FINITE;
    return mask.holds(e) ? key_of(score, e) : 0;
}

// sqrt(variance + 1e-5) of a row, by a warp, in two passes.
template <class X> __device__ __forceinline__ float deviation_of(const RouteParams& p, const X* row) {
    float sum = 0.0f, squares = 0.0f;
#pragma unroll 1
    for (u32 i = 8 * (threadIdx.x % 32); i < p.in_features; i += 256) {
        Raw<X, 8> part = load_part<8>(row, i, p.in_features, p.x_vector);
#pragma unroll
        for (u32 j = 0; j < 8; j++) sum += raw_at(part, j); // zeros behind the end
    }
    float mean = warp_sum(sum) / p.in_features;
#pragma unroll 1
    for (u32 i = 8 * (threadIdx.x % 32); i < p.in_features; i += 256) {
        Raw<X, 8> part = load_part<8>(row, i, p.in_features, p.x_vector);
#pragma unroll
        for (u32 j = 0; j < 8; j++) {
            float distance = i + j < p.in_features ? raw_at(part, j) - mean : 0.0f;
            squares = fmaf(distance, distance, squares);
        }
    }
    return sqrtf(warp_sum(squares) / p.in_features + VARIANCE_ADDED);
}

__device__ __forceinline__ float sigmoid(float z) { return 1.0f / (1.0f + expf(-z)); }

// `share`: exp(score - the largest); `total`: of all shares.
__device__ __forceinline__ float weigh(u32 weighting, float score, float share, float total, float threshold, u32 kept) {
    switch (weighting) {
    case SOFTMAX_ALL: return share / total;
    case SOFTMAX_TWICE: return expf(share / total);
    case ABOVE_THRESHOLD: return share / total - threshold;
    case SIGMOID: return sigmoid(score);
    case UNIFORM: return 1.0f / kept;
    case SCORE_ITSELF: return score;
    default: return share;
    }
}

// Whether weights are divided by their sum.
__device__ __forceinline__ bool is_normalised(u32 weighting) {
    return weighting <= ABOVE_THRESHOLD && weighting != SOFTMAX_ALL;
}

// Ids and weights of token t, by a warp, from its list of top_k keys, best first, zeros behind. `total`: of the shares of all
// that it may take, where the rule asks for it; `last`: the score of the threshold's row; `weights`: room for top_k.
__device__ __forceinline__ void
finish(const RouteParams& p, u32 t, const u64* list, float total, float last, float* weights) {
    u32 lane = threadIdx.x % 32, kept = 0;
    bool broken = list[0] == NOT_FINITE;
    float largest = score_of(list[0]);
    float threshold = p.select == SELECT_LEARNED ? p.threshold * sigmoid(last) : p.threshold;
#pragma unroll 1
    for (u32 i = 0; i < p.top_k; i += 32) {
        u64 key = lane + i < p.top_k ? list[lane + i] : 0;
        float share = expf(score_of(key) - largest);
        bool taken = !broken && key != 0 && (p.select == SELECT_TOP_K || share / total > threshold);
        u32 missing = ~__ballot_sync(ALL_LANES, taken);
        if (kept == i) kept += missing ? __ffs(missing) - 1 : 32;
        if (lane + i < p.top_k) weights[lane + i] = share;
    }
#pragma unroll 1
    for (u32 place = lane; place < kept; place += 32) {
        weights[place] = weigh(p.weighting, score_of(list[place]), weights[place], total, threshold, kept);
    }
    __syncwarp();
    float sum = is_normalised(p.weighting) ? 0.0f : 1.0f;
#pragma unroll 1
    for (u32 place = 0; is_normalised(p.weighting) && place < kept; place++) sum += weights[place];
    size_t n = (size_t)t * (p.top_k + p.shared);
#pragma unroll 1
    for (u32 place = lane; place < p.top_k; place += 32) {
        p.topk_ids[n + place] = place < kept ? (int)~(u32)list[place] : -1;
        p.topk_weights[n + place] = place < kept ? weights[place] / sum : 0.0f;
    }
    n += p.top_k;
#pragma unroll 1
    for (u32 j = lane; j < p.shared; j += 32) {
        p.topk_ids[n + j] = broken ? -1 : (int)(p.experts + j);
        p.topk_weights[n + j] = broken ? 0.0f : 1.0f;
    }
    if (broken && lane == 0) atomicOr(p.status, SCORE_NOT_FINITE);
}
