// Expand, many rows: a chunk of tokens by 128 columns, four a lane, in each of four warps. Warp w keeps every fourth
// row of y in shared memory: no other thread touches them, so there is no barrier. A chunk's routes come sorted by
// expert:
//
//     for every 32 routes of the chunk, one a lane:
//         for each expert among them:
//             for each eight ranks:  b = their rows of B, in registers
//                 for each route of the expert and of this warp:  acc[row of the route] += factor * <h, b>
#pragma once

#include "common.cuh"

constexpr u32 MANY_THREADS = 128, WARPS = MANY_THREADS / 32;
constexpr u32 MANY_COLUMNS = 128, OWN = 4; // a block's, a lane's

// RANKS values of a row of h.
template <u32 RANKS> __device__ __forceinline__ Raw<float, RANKS> h_ranks(const ExpandParams& p, const float* h) {
    if constexpr (RANKS % 4 == 0) {
        if (p.h_vector) return load<RANKS>(h);
    }
    return load_each<RANKS>(h, RANKS);
}

// A route as its lane knows it.
struct Route {
    u32 n, row; // row of acc
    float factor;
};

__device__ __forceinline__ Route from_lane(const Route& own, u32 lane) {
    return Route{__shfl_sync(ALL_LANES, own.n, lane), __shfl_sync(ALL_LANES, own.row, lane),
                 __shfl_sync(ALL_LANES, own.factor, lane)};
}

__device__ __forceinline__ void add(float4* acc, float factor, const float (&product)[OWN]) {
    float4 v = *acc;
    v.x = fmaf(factor, product[0], v.x), v.y = fmaf(factor, product[1], v.y);
    v.z = fmaf(factor, product[2], v.z), v.w = fmaf(factor, product[3], v.w);
    *acc = v;
}

// Adds RANKS ranks from r on for the routes of `lanes`; acc is this lane's column of fours.
template <u32 RANKS, class B>
__device__ __forceinline__ void
add_ranks(const ExpandParams& p, const B* b, u32 r, u32 lanes, const Route& own, float4* acc) {
    Raw<B, OWN> rows[RANKS];
#pragma unroll
    for (u32 i = 0; i < RANKS; i++) rows[i] = load<OWN>(b + (size_t)(r + i) * p.b_stride);
    for (; lanes != 0; lanes &= lanes - 1) {
        Route route = from_lane(own, __ffs(lanes) - 1);
        Raw<float, RANKS> h = h_ranks<RANKS>(p, h_row(p, route.n) + r);
        float product[OWN] = {};
#pragma unroll
        for (u32 i = 0; i < RANKS; i++) {
#pragma unroll
            for (u32 j = 0; j < OWN; j++) product[j] = fmaf(raw_at(h, i), raw_at(rows[i], j), product[j]);
        }
        add(acc + route.row * (MANY_COLUMNS / OWN), route.factor, product);
    }
}

// Reads route i of a chunk into its lane: the expert's slot where the route counts and its row is this warp's.
__device__ __forceinline__ bool read_route(const ExpandParams& p, u32 chunk, u32 i, u32 clock, Route& own, Slot& slot) {
    const PlanParams& plan = p.plan;
    u32 begin = chunk * plan.chunk_routes, lane = threadIdx.x % 32;
    own.n = plan.words[plan.at_chunks + begin + i];
    own.row = p.output == PER_ROUTE ? lane : (own.n - begin) / plan.top_k;
    u32 e = plan.words[plan.at_ids + own.n];
    if (e == NONE) return false;
    slot = slot_at(plan, e);
    u32 why = refusal(plan, slot, clock);
    bool mine = own.row % WARPS == threadIdx.x / 32;
    if (why != 0 && mine) atomicOr(plan.status, why);
    if (why == 0 && mine) own.factor = factor(p, slot, own.n);
    if (skips(own.factor)) slot.rank = 0; // touched, and nothing to add
    return why == 0;
}

// Adds what the lanes of `left` know, expert by expert: neighbours have the same. Routes of one token to one expert
// come one after the other, each with all ranks: the order of a sum is the same wherever the 32 routes begin.
template <class B>
__device__ __forceinline__ void
add_routes(const ExpandParams& p, const B* b, u32 left, const Route& own, const Slot& slot, float4* acc) {
    u32 again = __ballot_sync(ALL_LANES, own.row == __shfl_up_sync(ALL_LANES, own.row, 1));
    while (left != 0) {
        u32 leader = __ffs(left) - 1, first = __shfl_sync(ALL_LANES, slot.row, leader);
        u32 rank = __shfl_sync(ALL_LANES, slot.rank, leader);
        u32 lanes = left & __ballot_sync(ALL_LANES, slot.row == first); // live slots differ in their rows
        lanes &= ~(again & lanes << 1);
        const B* rows = b + (size_t)first * p.b_stride;
        u32 r = 0;
        for (; r + 8 <= rank; r += 8) add_ranks<8>(p, rows, r, lanes, own, acc);
        for (; r < rank; r++) add_ranks<1>(p, rows, r, lanes, own, acc);
        left &= ~lanes;
    }
}

template <class Y> __device__ __forceinline__ void finish_row(const ExpandParams& p, u32 row, u32 column, float4 v) {
    float sum[OWN] = {v.x, v.y, v.z, v.w};
    finish<Y>(p, row, column, sum);
}

template <class Y, class B> __device__ __forceinline__ void expand_many(const ExpandParams& p) {
    __shared__ float4 rows[CHUNK_TOKENS * (MANY_COLUMNS / OWN)];
    constexpr u32 STEP = MANY_COLUMNS / OWN;
    const PlanParams& plan = p.plan;
    u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    u32 chunk = blockIdx.x / p.column_blocks, column = MANY_COLUMNS * (blockIdx.x % p.column_blocks) + OWN * lane;
    u32 begin = chunk * plan.chunk_routes, count = min(plan.chunk_routes, plan.routes - begin);
    u32 live = plan_live_tokens(plan), clock = plan_clock(plan);
    if (begin / plan.top_k >= live) return;
    float4* acc = rows + lane;
    float4 zero = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    for (u32 row = warp; row < CHUNK_TOKENS; row += WARPS) acc[row * STEP] = zero;
    // Lanes behind the last column help with the first ones; nobody stores their sums.
    const B* b = (const B*)p.b + (column < p.out_features ? column : 0);
    u32 touched = 0; // a bit for each of this warp's rows
    for (u32 i = 0; i < count; i += 32) {
        Route own = {NONE, 0, 0.0f};
        Slot slot = {NONE, 0, 0.0f, 0};
        bool counts = i + lane < count && read_route(p, chunk, i + lane, clock, own, slot);
        u32 mine = __ballot_sync(ALL_LANES, counts && own.row % WARPS == warp);
        add_routes(p, b, mine & __ballot_sync(ALL_LANES, slot.rank != 0), own, slot, acc);
        if (p.output != PER_ROUTE) {
            for (u32 left = mine; left != 0; left &= left - 1) {
                touched |= 1u << __shfl_sync(ALL_LANES, own.row, __ffs(left) - 1) / WARPS;
            }
            continue;
        }
        u32 written = __ballot_sync(ALL_LANES, p.accumulate ? counts : own.n < live * plan.top_k);
        for (u32 row = warp; row < 32; row += WARPS) {
            u32 n = __shfl_sync(ALL_LANES, own.n, row);
            if (written >> row & 1) finish_row<Y>(p, n, column, acc[row * STEP]);
            acc[row * STEP] = zero;
        }
    }
    if (p.output == PER_ROUTE) return;
    u32 t0 = begin / plan.top_k, tokens = min(count / plan.top_k, live - min(live, t0));
    for (u32 row = warp; row < tokens; row += WARPS) {
        if (!p.accumulate || touched >> row / WARPS & 1) finish_row<Y>(p, t0 + row, column, acc[row * STEP]);
    }
}
