// What a product of a tile of tokens runs on over: the experts that the tile's tokens use, in ascending order of their
// ids, each in steps of its own ranks. A token's sums therefore do not depend on which other tokens lie in its tile: steps
// of experts that it does not use add zeros.
//
//     open:          a bit for each id of the tile's routes; ids and weights into shared memory where they fit
//     while next():  a list of up to 128 experts off the map, with their rows of B
//         a Walk over the list's steps
//             find:      the token's route to the step's expert
//             weigh:     its eight ranks of h, to be multiplied by its factor
#pragma once

#include "common.cuh"

namespace extend {

constexpr u32 THREADS = 256, LIST = 128, MAP_WORDS = 2048, STAGED = 8; // STAGED: the largest top_k whose ids are staged

// What the block's tile is: its first token, its live tokens, its first column of B, and its slice, 0 or
// 1 + the packed pool's.
struct Tile {
    u32 t0, tokens, column, slice;
};

// Of a tile of TOKENS; also the tile, which would take registers from the base's loop.
template <u32 TOKENS> struct Used {
    u32 map[MAP_WORDS]; // a bit for each expert that is not listed yet
    uint4 list[LIST];   // row of B, rank, scaling's bits, id; rank 0: skipped
    u32 first_h[LIST];  // column of h
    u32 ids[STAGED][TOKENS];
    float weights[STAGED][TOKENS];
    uint4 steps; // of 32 experts each
    u32 count;
    Tile tile;
};

// What the kernel's parameters say of it.
struct Source {
    const PlanParams& plan;
    const float *h, *topk_weights;
    u32 h_stride, output, h_vector;
};

template <u32 TOKENS> __device__ __forceinline__ void open(const Source& from, Used<TOKENS>& s, Tile tile) {
    const PlanParams& plan = from.plan;
#pragma unroll 1
    for (u32 i = threadIdx.x; i < (plan.experts + 31) / 32; i += THREADS) s.map[i] = 0;
    __syncthreads();
    if (threadIdx.x == 0) s.tile = tile;
    u32 n0 = tile.t0 * plan.top_k;
#pragma unroll 1
    for (u32 i = threadIdx.x; i < tile.tokens * plan.top_k; i += THREADS) {
        u32 e = plan.words[plan.at_ids + n0 + i];
        if (plan.top_k <= STAGED) {
            s.ids[i % plan.top_k][i / plan.top_k] = e;
            s.weights[i % plan.top_k][i / plan.top_k] = e == NONE ? 0.0f : __ldg(from.topk_weights + n0 + i);
        }
        if (e != NONE) atomicOr(&s.map[e / 32], 1u << e % 32);
    }
    __syncthreads();
}

// One warp moves up to LIST ids off the map, ascending.
template <u32 TOKENS> __device__ __forceinline__ void take_ids(Used<TOKENS>& s, u32 words) {
    u32 lane = threadIdx.x, count = 0;
#pragma unroll 1
    for (u32 w = lane; w - lane < words && count < LIST; w += 32) {
        u32 bits = w < words ? s.map[w] : 0, own = __popc(bits), upto = own;
#pragma unroll
        for (u32 step = 1; step < 32; step *= 2) {
            u32 other = __shfl_up_sync(ALL_LANES, upto, step);
            if (lane >= step) upto += other;
        }
#pragma unroll 1
        for (u32 place = count + upto - own; bits != 0 && place < LIST; place++, bits &= bits - 1) {
            s.list[place].w = 32 * w + __ffs(bits) - 1;
        }
        if (w < words) s.map[w] = bits;
        count = min(count + __shfl_sync(ALL_LANES, upto, 31), LIST);
    }
    if (lane == 0) s.count = count;
}

// The steps of the list.
template <u32 TOKENS> __device__ __forceinline__ u32 steps_of(const Used<TOKENS>& s) {
    uint4 v = s.steps;
    return v.x + v.y + v.z + v.w;
}

// Lists the next experts, whose steps are of `step` ranks; false where there are none.
template <u32 TOKENS>
__device__ __forceinline__ bool next(const Source& from, Used<TOKENS>& s, u32 step) {
    const PlanParams& plan = from.plan;
    u32 i = threadIdx.x, steps = 0;
    __syncthreads(); // the last list is read
    if (i < 32) take_ids(s, (plan.experts + 31) / 32);
    __syncthreads();
    if (i < LIST) {
        if (i < s.count) {
            u32 e = s.list[i].w;
            Slot slot = slot_at(plan, e), part = slot_at(plan, s.tile.slice * plan.experts + e);
            u32 refused = refusal(plan, slot, plan_clock(plan));
            if (refused != 0) atomicOr(plan.status, refused);
            u32 rank = refused == 0 ? part.rank : 0;
            s.list[i] = make_uint4(part.row, rank, __float_as_uint(part.scaling), e);
            s.first_h[i] = part.row - slot.row;
            steps = (rank + step - 1) / step;
        }
#pragma unroll
        for (u32 half = 16; half > 0; half /= 2) steps += __shfl_xor_sync(ALL_LANES, steps, half);
        if (i % 32 == 0) (&s.steps.x)[i / 32] = steps;
    }
    __syncthreads();
    return s.count > 0;
}

// A step: ranks k .. of one expert. Behind the last: rank 0.
struct Walk {
    u32 at, k, row, rank;

    template <u32 TOKENS> __device__ __forceinline__ void open(const Used<TOKENS>& s, u32 i) {
        k = 0, rank = 0;
#pragma unroll 1
        for (at = i; at < s.count; at++) {
            uint4 v = s.list[at];
            if (v.y == 0) continue;
            row = v.x, rank = v.y;
            return;
        }
    }

    template <u32 TOKENS> __device__ __forceinline__ void advance(const Used<TOKENS>& s, u32 step) {
        if (rank == 0) return;
        k += step;
        if (k >= rank) open(s, at + 1);
    }
};

// A token's route to a step's expert: its slot, NONE where it has none; AGAIN: it has more than one.
struct Choice {
    u32 slot;
    float factor;
};
constexpr u32 AGAIN = 1u << 31;

// The routes of the tile's token to the step's expert, from its slot j on: the next one's slot, or top_k.
template <u32 TOKENS>
__device__ __forceinline__ u32
next_slot(const Source& from, const Used<TOKENS>& s, const Walk& walk, u32 token, u32 j, float& factor) {
    const PlanParams& plan = from.plan;
    u32 n = (s.tile.t0 + token) * plan.top_k;
    uint4 expert = s.list[walk.at];
#pragma unroll 1
    for (; j < plan.top_k; j++) {
        u32 e = plan.top_k <= STAGED ? s.ids[j % STAGED][token] : plan.words[plan.at_ids + n + j];
        if (e != expert.w) continue;
        float weight = plan.top_k <= STAGED ? s.weights[j % STAGED][token] : __ldg(from.topk_weights + n + j);
        factor = __uint_as_float(expert.z) * weight;
        if (is_finite(weight)) break;
        atomicOr(plan.status, WEIGHT_NOT_FINITE);
    }
    return j;
}

template <u32 TOKENS>
__device__ __forceinline__ Choice find(const Source& from, const Used<TOKENS>& s, const Walk& walk, u32 token) {
    Choice choice{NONE, 0.0f};
    if (walk.rank == 0 || token >= s.tile.tokens) return choice;
    float other;
    u32 j = next_slot(from, s, walk, token, 0, choice.factor);
    if (j >= from.plan.top_k) return choice;
    choice.slot = next_slot(from, s, walk, token, j + 1, other) < from.plan.top_k ? j | AGAIN : j;
    return choice;
}

// Four ranks of h from rank r of the step's expert on, zeros behind its last.
template <u32 TOKENS>
__device__ __forceinline__ Raw<float, 4>
ranks_of(const Source& from, const Used<TOKENS>& s, const Walk& walk, u32 token, u32 j, u32 r) {
    u32 t = s.tile.t0 + token, n = from.output == RANK_SUM ? t : t * from.plan.top_k + j, first = s.first_h[walk.at];
    const float* h = from.h + (size_t)n * from.h_stride + first;
    return load_part<4>(h, r, walk.rank, from.h_vector && first % 4 == 0);
}

// Eight ranks of the token's h, to be multiplied by `factor`; zeros, whatever h holds, where it does not use the expert.
template <u32 TOKENS>
__device__ __forceinline__ void weigh(const Source& from, const Used<TOKENS>& s, const Walk& walk, const Choice& choice,
                                      u32 token, u32 r, Raw<float, 4> (&h)[2], float& factor) {
    factor = choice.factor;
    if (choice.slot == NONE) {
        h[0] = h[1] = Raw<float, 4>{};
        return;
    }
    u32 j = choice.slot & ~AGAIN;
#pragma unroll
    for (u32 half = 0; half < 2; half++) h[half] = ranks_of(from, s, walk, token, j, r + 4 * half);
    if (choice.slot == j) return;
    // An expert that stands more than once in a token's list: the sum of its routes, in their order.
#pragma unroll
    for (u32 i = 0; i < 8; i++) h[i / 4].words[i % 4] = __float_as_uint(factor * raw_at(h[i / 4], i % 4));
#pragma unroll 1
    while ((j = next_slot(from, s, walk, token, j + 1, factor)) < from.plan.top_k) {
#pragma unroll
        for (u32 half = 0; half < 2; half++) {
            Raw<float, 4> other = ranks_of(from, s, walk, token, j, r + 4 * half);
#pragma unroll
            for (u32 i = 0; i < 4; i++) {
                h[half].words[i] = __float_as_uint(fmaf(factor, raw_at(other, i), raw_at(h[half], i)));
            }
        }
    }
    factor = 1.0f;
}

} // namespace extend
