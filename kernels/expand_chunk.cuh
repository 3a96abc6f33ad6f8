// A chunk of the plan as expand on tensor cores walks over it: lists of its routes in shared memory, its steps, and
// what warps 4 to 7 bring for them.
#pragma once

#include "mma.cuh"

namespace expand_mma {

constexpr u32 THREADS = 256, WORKERS = 4, COLUMNS = 128, PIECE = 32, RANKS = 16, STAGES = 4;
constexpr u32 WORDS = CHUNK_ROUTES / 32;

// What the lists are made from; it lies where acc will.
struct Draft {
    u32 ids[CHUNK_ROUTES];       // by route
    float weights[CHUNK_ROUTES]; // by route
    u32 live[CHUNK_ROUTES];      // by route
    u32 rows[CHUNK_ROUTES];      // by place in the chunk's sorted list: the adapter's first row of B, or NONE
    u32 ranks[CHUNK_ROUTES];     // by place
    u32 heads[WORDS + 1];        // a bit per place: another adapter than before
    u32 again[WORDS + 1];        // a bit per place: adapter and token as before
    u32 begins[WORDS];           // a bit per place: a piece begins
};

struct Shared {
    union {
        alignas(16) float acc[CHUNK_TOKENS][COLUMNS];
        Draft draft;
    };
    alignas(16) float h[STAGES][PIECE][RANKS];
    // x: place, routes << 9, whether a token repeats << 15, rank << 16; y: row of B
    uint2 pieces[CHUNK_ROUTES];
    unsigned short routes[CHUNK_ROUTES]; // by place: route in the chunk, its token in the chunk << 9
    float factors[CHUNK_ROUTES];         // by place
    u32 touched[2];                      // a bit per token that has an adapter
    u32 piece_count;
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

// The slot's row and rank, and the route's factor; NONE for the row where the route is to be skipped.
__device__ __forceinline__ void list_route(const ExpandParams& p, Shared& s, u32 i, u32 route) {
    u32 row = NONE, e = s.draft.ids[route];
    if (e != NONE) {
        Slot slot = slot_at(p.plan, e);
        u32 refused = refusal(p.plan, slot, plan_clock(p.plan));
        if (refused == 0 && slot.rank > 0xffff) refused = RANK_TOO_LARGE;
        if (refused == 0) {
            float weight = s.draft.weights[route];
            row = slot.row, s.draft.ranks[i] = slot.rank;
            if (!is_finite(weight)) refused = WEIGHT_NOT_FINITE;
            s.factors[i] = is_finite(weight) ? slot.scaling * weight : __uint_as_float(SKIP);
        }
        if (refused != 0) atomicOr(p.plan.status, refused);
    }
    s.draft.rows[i] = row;
    s.draft.live[route] = row != NONE;
    s.routes[i] = (unsigned short)(route | route / p.plan.top_k << 9);
}

// The chunk's routes by place. Ids and weights are read in their own order: no sector is read for one word alone.
__device__ __forceinline__ void list_routes(const ExpandParams& p, Shared& s, const Chunk& c) {
    for (u32 i = threadIdx.x; i < c.count; i += THREADS) {
        s.draft.ids[i] = p.plan.words[p.plan.at_ids + c.n0 + i];
        bool weighted = p.output != PER_ROUTE && i < c.tokens * p.plan.top_k; // nobody may have written the others
        s.draft.weights[i] = weighted ? __ldg(p.topk_weights + c.n0 + i) : 1.0f;
    }
    __syncthreads();
    const u32* sorted = p.plan.words + p.plan.at_chunks + blockIdx.x / p.column_blocks * p.plan.chunk_routes;
    for (u32 i = threadIdx.x; i < c.count; i += THREADS) list_route(p, s, i, sorted[i] - c.n0);
    __syncthreads();
    if (threadIdx.x < CHUNK_TOKENS) {
        u32 any = 0;
        if (threadIdx.x < c.tokens) {
            for (u32 i = 0; i < p.plan.top_k; i++) any |= s.draft.live[threadIdx.x * p.plan.top_k + i];
        }
        u32 bits = __ballot_sync(ALL_LANES, any != 0);
        if (threadIdx.x % 32 == 0) s.touched[threadIdx.x / 32] = bits;
    }
}

// A bit per place for each of two questions about it; a warp answers for a word.
__device__ __forceinline__ void mark_heads(Draft& d, const unsigned short* routes, u32 count) {
    for (u32 i = threadIdx.x; i < CHUNK_ROUTES; i += THREADS) {
        bool same = i > 0 && i < count && d.rows[i] == d.rows[i - 1];
        u32 heads = __ballot_sync(ALL_LANES, !same);
        u32 again = __ballot_sync(ALL_LANES, same && routes[i] >> 9 == routes[i - 1] >> 9);
        if (i % 32 == 0) d.heads[i / 32] = heads, d.again[i / 32] = again;
    }
    if (threadIdx.x == 0) d.heads[WORDS] = ALL_LANES, d.again[WORDS] = 0;
    __syncthreads();
}

// Every 32nd place of an adapter's begins a piece.
__device__ __forceinline__ void mark_begins(Draft& d, u32 count) {
    for (u32 i = threadIdx.x; i < CHUNK_ROUTES; i += THREADS) {
        u32 word = i / 32, heads = d.heads[word] & ALL_LANES >> (31 - i % 32);
        while (heads == 0) heads = d.heads[--word];
        u32 head = 32 * word + 31 - __clz(heads);
        u32 begins = __ballot_sync(ALL_LANES, i < count && d.rows[i] != NONE && (i - head) % PIECE == 0);
        if (i % 32 == 0) d.begins[i / 32] = begins;
    }
    __syncthreads();
}

// The 32 bits behind bit i.
__device__ __forceinline__ u32 bits_behind(const u32* words, u32 i) {
    return (u32)(((size_t)words[i / 32 + 1] << 32 | words[i / 32]) >> (i % 32 + 1));
}

__device__ __forceinline__ void list_pieces(Shared& s, u32 count) {
    const Draft& d = s.draft;
    mark_heads(s.draft, s.routes, count);
    mark_begins(s.draft, count);
    for (u32 i = threadIdx.x; i < CHUNK_ROUTES; i += THREADS) {
        if ((d.begins[i / 32] >> i % 32 & 1) == 0) continue;
        u32 index = __popc(d.begins[i / 32] & ~(ALL_LANES << i % 32));
        for (u32 word = 0; word < i / 32; word++) index += __popc(d.begins[word]);
        u32 next = bits_behind(d.heads, i), routes = next == 0 ? PIECE : __ffs(next);
        bool repeats = (bits_behind(d.again, i) & ~(ALL_LANES << (routes - 1))) != 0;
        s.pieces[index] = make_uint2(i | routes << 9 | (u32)repeats << 15 | d.ranks[i] << 16, d.rows[i]);
    }
    if (threadIdx.x == 0) {
        u32 pieces = 0;
        for (u32 word = 0; word < WORDS; word++) pieces += __popc(d.begins[word]);
        s.piece_count = pieces;
    }
    __syncthreads();
}

// A step of the walk over a chunk: 16 ranks of a piece. Behind the last: count = 0.
struct Step {
    u32 piece, begin, count, row, rank, k;
    bool repeats;

    __device__ __forceinline__ void open(const Shared& s, u32 next) {
        piece = next, k = 0, count = 0;
        if (piece >= s.piece_count) return;
        uint2 v = s.pieces[piece];
        begin = v.x & 0x1ff, count = v.x >> 9 & 0x3f, repeats = v.x >> 15 & 1, rank = v.x >> 16, row = v.y;
    }

    __device__ __forceinline__ void advance(const Shared& s) {
        if (count == 0) return;
        k += RANKS;
        if (k >= rank) open(s, piece + 1);
    }
};

// h of a step, f32: 128 threads, 16 bytes each. Zeros behind the rank: what stands there in h is not h.
__device__ __forceinline__ void stage_h(const ExpandParams& p, Shared& s, const Chunk& c, const Step& step,
                                        u32 stage) {
    u32 i = (threadIdx.x - 32 * WORKERS) / 4, r = 4 * (threadIdx.x % 4);
    if (i < (step.count + 7) / 8 * 8) {
        const float* from = p.h;
        u32 ranks = 0;
        if (i < step.count && step.k + r < step.rank) {
            u32 route = s.routes[step.begin + i];
            u32 row = p.output == RANK_SUM ? c.t0 + (route >> 9) : c.n0 + (route & 0x1ff);
            from += (size_t)row * p.h_stride + step.k + r;
            ranks = min(step.rank - step.k - r, 4u);
        }
        float* to = &s.h[stage][i][r];
        if (p.h_vector) {
            copy16(to, from, 4 * ranks);
        } else {
#pragma unroll
            for (u32 j = 0; j < 4; j++) copy4(to + j, j < ranks ? from + j : from, j < ranks);
        }
    }
    end_group();
}

// Asks for all of the chunk's B: one step ahead hides the second-level cache, not memory behind it.
template <class X> __device__ __forceinline__ void fetch_b(const ExpandParams& p, const Shared& s, const Chunk& c) {
    u32 lane = threadIdx.x % 32, column = c.column + 64 * (lane % 2);
    for (u32 i = threadIdx.x / 32 - WORKERS; i < s.piece_count; i += WORKERS) {
        Step step;
        step.open(s, i);
        for (u32 r = lane / 2; column < p.b_stride && r < step.rank; r += 16) {
            const X* at = (const X*)p.b + (size_t)(step.row + r) * p.b_stride + column;
            asm volatile("prefetch.global.L2 [%0];" ::"l"(at));
        }
    }
}

} // namespace expand_mma
