// What expand on tensor cores knows of a chunk of the plan: lists of its routes in shared memory, and the walk over them.
#pragma once

#include "common.cuh"

namespace expand_mma {

constexpr u32 THREADS = 256, WORKERS = 4, COLUMNS = 128, PIECE = 32, RANKS = 16, STAGES = 4;

struct Shared {
    float acc[CHUNK_TOKENS][COLUMNS];
    float h[STAGES][PIECE][RANKS];
    u32 rows[CHUNK_ROUTES];     // by place in the chunk's sorted list: the adapter's first row of B, or NONE
    u32 routes[CHUNK_ROUTES];   // route in the chunk, its token in the chunk << 9, the adapter's rank << 16
    float factors[CHUNK_ROUTES];
    u32 touched[2]; // a bit per token that has an adapter
};

// Where the chunk lies, and the block's columns.
struct Chunk {
    u32 n0, t0, count, tokens, column;
};

__device__ __forceinline__ Chunk chunk_of(const ExpandParams& p) {
    u32 chunk = blockIdx.x / p.column_blocks;
    Chunk c;
    c.n0 = chunk * p.plan.chunk_routes;
    c.t0 = c.n0 / p.plan.top_k;
    c.count = min(p.plan.chunk_routes, p.plan.routes - c.n0);
    u32 live = plan_live_tokens(p.plan);
    c.tokens = c.t0 < live ? min(c.count / p.plan.top_k, live - c.t0) : 0;
    c.column = COLUMNS * (blockIdx.x % p.column_blocks);
    return c;
}

// The slot's row, rank and the route's factor; NONE for the row where the route is to be skipped.
__device__ __forceinline__ void list_route(const ExpandParams& p, Shared& s, u32 i, u32 route, u32 e, float weight) {
    u32 row = NONE, rank = 0;
    if (e != NONE) {
        Slot slot = slot_at(p.plan, e);
        u32 refused = refusal(p.plan, slot, plan_clock(p.plan));
        if (refused == 0 && slot.rank > 0xffff) refused = RANK_TOO_LARGE;
        if (refused == 0) {
            row = slot.row, rank = slot.rank;
            if (!is_finite(weight)) refused = WEIGHT_NOT_FINITE;
            s.factors[i] = is_finite(weight) ? slot.scaling * weight : 0.0f;
        }
        if (refused != 0) atomicOr(p.plan.status, refused);
    }
    s.rows[i] = row;
    s.routes[i] = route | route / p.plan.top_k << 9 | rank << 16;
}

// The chunk's lists, by way of acc's memory: ids and weights are read in their own order, so that no sector is read
// for one word alone.
__device__ __forceinline__ void list_chunk(const ExpandParams& p, Shared& s, const Chunk& c) {
    u32* ids = (u32*)s.acc;
    float* weights = (float*)(ids + CHUNK_ROUTES);
    u32* live = ids + 2 * CHUNK_ROUTES;
    for (u32 i = threadIdx.x; i < c.count; i += THREADS) {
        ids[i] = p.plan.words[p.plan.at_ids + c.n0 + i];
        bool weighted = p.output != PER_ROUTE && i < c.tokens * p.plan.top_k; // nobody may have written the others
        weights[i] = weighted ? __ldg(p.topk_weights + c.n0 + i) : 1.0f;
    }
    __syncthreads();
    const u32* sorted = p.plan.words + p.plan.at_chunks + blockIdx.x / p.column_blocks * p.plan.chunk_routes;
    for (u32 i = threadIdx.x; i < c.count; i += THREADS) {
        u32 route = sorted[i] - c.n0;
        list_route(p, s, i, route, ids[route], weights[route]);
        live[route] = s.rows[i] != NONE;
    }
    __syncthreads();
    if (threadIdx.x < CHUNK_TOKENS) {
        u32 any = 0;
        if (threadIdx.x < c.tokens) {
            for (u32 i = 0; i < p.plan.top_k; i++) any |= live[threadIdx.x * p.plan.top_k + i];
        }
        u32 bits = __ballot_sync(ALL_LANES, any != 0);
        if (threadIdx.x % 32 == 0) s.touched[threadIdx.x / 32] = bits;
    }
    __syncthreads();
}

// A step of the walk over a chunk: 16 ranks of a piece. No step: count = 0.
struct Step {
    u32 begin, count, row, rank, k;

    // To the first live piece from place `at` on.
    __device__ __forceinline__ void open(const Shared& s, u32 at, u32 end) {
        count = 0, k = 0;
        while (at < end) {
            u32 place = at + threadIdx.x % 32;
            row = s.rows[at];
            u32 others = ~__ballot_sync(ALL_LANES, place < end && s.rows[place] == row);
            u32 run = others == 0 ? 32 : __ffs(others) - 1;
            begin = at, at += run;
            if (row == NONE) continue;
            count = run, rank = s.routes[begin] >> 16;
            return;
        }
    }

    __device__ __forceinline__ void advance(const Shared& s, u32 end) {
        if (count == 0) return;
        k += RANKS;
        if (k >= rank) open(s, begin + count, end);
    }
};

} // namespace expand_mma
