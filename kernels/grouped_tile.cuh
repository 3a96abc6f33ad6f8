// What the kernels of grouped share: a tile of the plan with its routes' LoRAs, the walk over these, and how rows of
// routes become rows of tokens.
#pragma once

#include "common.cuh"

namespace grouped {

// Up to 64 routes of one base expert, and the distinct LoRAs that they use.
struct Tile {
    u32 routes[TILE_ROUTES];
    u32 loras[TILE_ROUTES]; // a route's place in ids, NONE where it has none
    int ids[TILE_ROUTES];   // of the LoRAs' slots; while they are sought: of each route's
    u32 firsts[2];
    u32 finished[TILE_ROUTES]; // combined: groups whose last row came from here, NONE where another's
};

// The tile's base expert and sizes; no routes: nothing to do.
struct Extent {
    u32 expert, routes, loras;
};

__device__ __forceinline__ Slot lora_at(const GroupedParams& p, u32 at) {
    uint4 v = __ldg((const uint4*)p.loras + at);
    return Slot{v.x, v.y, __uint_as_float(v.z), v.w};
}

// Whether the memory holds the plan of LoRAs that this launch was made for.
__device__ __forceinline__ bool loras_are_planned(const GroupedParams& p) {
    if (p.lora_plan[2] == p.lora_stamp) return true;
    if (threadIdx.x == 0) atomicOr(p.plan.status, STALE_PLAN);
    return false;
}

// A route's slot, or -1 where it names none that counts, with the reason in the status word; what the plan refused, it told.
__device__ __forceinline__ int lora_of(const GroupedParams& p, u32 n) {
    u32 id = p.lora_plan[p.lora_ids + n];
    if (id == NONE) return -1;
    Slot slot = lora_at(p, id);
    u32 clock = p.lora_plan[0];
    u32 why = slot.rank == 0 || slot.added_at > clock ? STALE_SLOT : slot.rank > p.lora_rank ? RANK_TOO_LARGE : 0;
    if (why == 0) return id;
    atomicOr(p.plan.status, why);
    return -1;
}

// All threads of the block, at least 64.
__device__ __forceinline__ Extent find_tile(const GroupedParams& p, Tile& s, u32 tile) {
    const u32* words = p.plan.words;
    Extent none{0, 0, 0};
    if (plan_live_tokens(p.plan) == 0 || tile >= words[p.plan.at_tile_offsets + p.plan.experts]) return none;
    u32 e = words[p.plan.at_tiles + 2 * tile], first = words[p.plan.at_tiles + 2 * tile + 1];
    u32 count = min(words[p.plan.at_offsets + e + 1] - first, TILE_ROUTES), i = threadIdx.x;
    int id = -1;
    if (i < TILE_ROUTES) {
        u32 n = words[p.plan.at_sorted + first + min(i, count - 1)];
        if (i < count) id = lora_of(p, n);
        s.routes[i] = n;
        s.ids[i] = id;
    }
    __syncthreads();
    u32 before = i;
    if (i < TILE_ROUTES) {
        for (before = 0; before < i && s.ids[before] != id; before++) {}
        u32 firsts = __ballot_sync(ALL_LANES, id != -1 && before == i);
        if (i % 32 == 0) s.firsts[i / 32] = firsts;
    }
    __syncthreads();
    u32 low = s.firsts[0], high = s.firsts[1];
    if (i < TILE_ROUTES) {
        u32 upto = before < 32 ? __popc(low & ~(ALL_LANES << before)) : __popc(low) + __popc(high & ~(ALL_LANES << before % 32));
        s.loras[i] = id == -1 ? NONE : upto;
        if (id != -1 && before == i) s.ids[upto] = id;
    }
    __syncthreads();
    return Extent{e, count, (u32)(__popc(low) + __popc(high))};
}

// A step of the walk over a tile's LoRAs: ranks k .. of one LoRA on one slice. Behind the last: rank 0.
struct Walk {
    u32 at, slice, k, row, rank, h; // h: where the slice's h begins
    float scaling;

    __device__ __forceinline__ void open(const GroupedParams& p, const Tile& s, u32 loras, u32 next_at, u32 next_slice) {
        at = next_at, slice = next_slice, k = 0, rank = 0, row = 0;
        for (; at < loras; at++, slice = 0) {
            u32 id = s.ids[at], first = lora_at(p, id).row;
            for (; slice < p.slices; slice++) {
                Slot part = lora_at(p, p.slices > 1 ? (1 + slice) * p.slots + id : id);
                if (part.rank == 0) continue;
                row = part.row, rank = part.rank, h = part.row - first, scaling = part.scaling;
                return;
            }
        }
    }

    __device__ __forceinline__ void advance(const GroupedParams& p, const Tile& s, u32 loras, u32 step) {
        if (rank == 0) return;
        k += step;
        if (k >= rank) open(p, s, loras, at, slice + 1);
    }
};

// Eight ranks of a route's h from rank r of the step's LoRA on; zeros, whatever h holds, where the route has another one
// and behind the last rank.
__device__ __forceinline__ Raw<float, 8>
ranks_of(const GroupedParams& p, const Tile& s, const Extent& extent, const Walk& walk, u32 route, u32 r) {
    Raw<float, 8> both = {};
    if (walk.rank == 0 || r >= walk.rank || route >= extent.routes || s.loras[route] != walk.at) return both;
    const float* h = p.h + (size_t)s.routes[route] * p.h_stride + walk.h;
    bool vector = p.h_vector && walk.h % 4 == 0;
    Raw<float, 4> low = load_part<4>(h, r, walk.rank, vector), high = load_part<4>(h, r + 4, walk.rank, vector);
#pragma unroll
    for (u32 i = 0; i < 4; i++) both.words[i] = low.words[i], both.words[4 + i] = high.words[i];
    return both;
}

__device__ __forceinline__ const void* x_row(const GroupedParams& p, u32 n, u32 bytes) {
    u32 row = p.x_per_route ? n : n / p.plan.top_k;
    return (const char*)p.x + (size_t)row * p.x_stride * bytes;
}

__device__ __forceinline__ float silu(float v) { return v / (1.0f + expf(-v)); }

// Rows of a group's routes that some block brings: those of live tokens with a base expert. Where all routes have one, and
// that is what plans mostly say, nothing is looked up.
__device__ __forceinline__ u32 expected_rows(const GroupedParams& p, u32 group, u32 live) {
    u32 first = group * p.group_tokens * p.plan.top_k, end = min((group + 1) * p.group_tokens, live) * p.plan.top_k, rows = 0;
    if (p.plan.words[p.plan.at_offsets + p.plan.experts] == live * p.plan.top_k) return end - first;
    for (u32 n = first; n < end; n++) rows += p.plan.words[p.plan.at_ids + n] != NONE;
    return rows;
}

// `columns` columns from o0 on of a group's tokens: the sum of their rows in slot order.
template <class X>
__device__ __forceinline__ void combine(const GroupedParams& p, u32 group, u32 live, u32 o0, u32 columns) {
    u32 end = min((group + 1) * p.group_tokens, live), own = threadIdx.x % columns, o = o0 + own;
    if (o >= p.out_features) return;
    for (u32 t = group * p.group_tokens + threadIdx.x / columns; t < end; t += blockDim.x / columns) {
        float sum = 0.0f;
        for (u32 n = t * p.plan.top_k; n < (t + 1) * p.plan.top_k; n++) {
            if (p.plan.words[p.plan.at_ids + n] == NONE) continue;
            float weight = p.topk_weights[n];
            if (is_finite(weight)) sum = fmaf(weight, p.scratch[(size_t)n * p.out_features + o], sum);
            else if (own == 0) atomicOr(p.plan.status, WEIGHT_NOT_FINITE);
        }
        ((X*)p.y)[(size_t)t * p.y_stride + o] = narrow<X>(sum);
    }
}

// The tile's rows lie in scratch: who brings the last of a group's adds them up, and leaves its counter at zero. No value
// depends on who that is.
template <class X>
__device__ __forceinline__ void
arrive(const GroupedParams& p, Tile& s, const Extent& extent, u32 block, u32 o0, u32 columns) {
    u32 i = threadIdx.x, live = plan_live_tokens(p.plan);
    __syncthreads();
    if (i < TILE_ROUTES) s.finished[i] = NONE;
    if (i < extent.routes) {
        u32 group = s.routes[i] / p.plan.top_k / p.group_tokens, before;
        u32* counter = p.counters + (size_t)group * p.column_blocks + block;
        asm volatile("fence.acq_rel.gpu;\n\tatom.relaxed.gpu.global.add.u32 %0, [%1], 1;\n\tfence.acq_rel.gpu;"
                     : "=r"(before)
                     : "l"(__cvta_generic_to_global(counter))
                     : "memory");
        if (before + 1 == expected_rows(p, group, live)) {
            asm volatile("st.relaxed.gpu.global.u32 [%0], 0;" ::"l"(__cvta_generic_to_global(counter)) : "memory");
            s.finished[i] = group;
        }
    }
    __syncthreads();
    for (u32 j = 0; j < extent.routes; j++) {
        if (s.finished[j] != NONE) combine<X>(p, s.finished[j], live, o0, columns);
    }
}

// Groups of tokens that no base expert takes get zeros: each from one row of the grid's blocks.
template <class X> __device__ __forceinline__ void clear_empty(const GroupedParams& p, u32 tile, u32 o0, u32 columns) {
    u32 live = plan_live_tokens(p.plan), groups = (live + p.group_tokens - 1) / p.group_tokens;
    for (u32 group = tile; group < groups; group += p.tiles) {
        if (expected_rows(p, group, live) == 0) combine<X>(p, group, live, o0, columns);
    }
}

} // namespace grouped
