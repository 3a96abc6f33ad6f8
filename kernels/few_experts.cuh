// The experts' part of fused_few's block: w scaling h B of every route of every token for its columns.
#pragma once

#include "few_products.cuh"

namespace few {

struct Slice {
    u32 index, first, end; // its columns
};

__device__ __forceinline__ Slice slice_at(const FewParams& p, u32 column) {
    Slice slice{0, 0, p.slice_ends[0]};
    while (column >= slice.end) slice = Slice{slice.index + 1, slice.end, p.slice_ends[slice.index + 1]};
    return slice;
}

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

// A slice's part of a route, and its id; NONE where it counts for nothing.
__device__ __forceinline__ u32 read_route(const FewParams& p, const Slice& slice, u32 n, Route& route) {
    int id = p.topk_ids[n];
    Slot slot = named_slot(p, id), part = slot;
    if (slot.rank == 0) return NONE;
    if (p.slices > 1) {
        uint4 v = __ldg((const uint4*)p.slots + (size_t)(1 + slice.index) * p.experts + id);
        part = Slot{v.x, v.y, __uint_as_float(v.z), v.w};
    }
    float weight = p.topk_weights[n];
    if (!is_finite(weight)) {
        atomicOr(p.status, WEIGHT_NOT_FINITE);
        return NONE;
    }
    route = Route{part.row, part.rank, part.row - slot.row, part.scaling * weight};
    return part.rank == 0 ? NONE : id;
}

// The slice's routes by ascending ids, how many, and B on its way to the second-level cache.
template <class B, class S>
__device__ __forceinline__ u32 list_routes(const FewParams& p, S& s, const Slice& slice, u32 o0, u32 live) {
    u32 n = threadIdx.x, routes = live * p.top_k, id = NONE;
    if (n < routes) {
        id = read_route(p, slice, n, s.routes[n]);
        s.ids[n] = id;
    }
    u32 listed = __syncthreads_count(id != NONE), place = 0;
    if (id != NONE) {
#pragma unroll 1
        for (u32 m = 0; m < routes; m++) place += s.ids[m] < id || (s.ids[m] == id && m < n);
        s.sorted[place] = n;
    }
    __syncthreads();
    u32 column = max(o0, slice.first) - slice.first;
#pragma unroll 1
    for (u32 i = threadIdx.x / 32; i < listed; i += WARPS) {
        if (i > 0 && s.ids[s.sorted[i]] == s.ids[s.sorted[i - 1]]) continue;
        Route route = s.routes[s.sorted[i]];
        const B* b = (const B*)p.b + (size_t)route.row * p.b_stride + column;
        for (u32 r = threadIdx.x % 32; r < route.rank; r += 32) {
            asm volatile("prefetch.global.L2 [%0];" ::"l"(b + (size_t)r * p.b_stride));
        }
    }
    return listed;
}

// Eight of 16 columns are a lane's, in loads of 16 bytes, so that a pair of lanes asks for whole sectors.
template <class B> constexpr u32 PIECE = 16 / sizeof(B);
template <class B> __device__ __forceinline__ u32 own_column(u32 j, u32 lane) {
    return 2 * PIECE<B> * (j / PIECE<B>) + PIECE<B> * (lane % 2) + j % PIECE<B>;
}

// The lane's columns of a row of B from `column` of a slice on, which has `width`; zeros where it has none.
template <class B>
__device__ __forceinline__ void b_columns(const B* row, int column, int width, u32 lane, float (&v)[8]) {
    constexpr int N = PIECE<B>;
#pragma unroll
    for (int j = 0; j < 8; j += N) {
        int first = column + (int)own_column<B>(j, lane);
        if (first % N == 0 && first >= 0 && first + N <= width) {
            Raw<B, N> raw = load<N>(row + first);
#pragma unroll
            for (int i = 0; i < N; i++) v[j + i] = raw_at(raw, i);
            continue;
        }
#pragma unroll
        for (int i = 0; i < N; i++) {
            bool inside = first + i >= 0 && first + i < width;
            v[j + i] = inside ? widen(load_one(row + first + i)) : 0.0f;
        }
    }
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

// 16 ranks of one expert, from k on, for its routes sorted[from .. to): B is read once for all of them. A lane takes a rank
// and eight columns of each 16; what comes next of h is asked for before the last one's sums.
template <u32 ROWS, class B>
__device__ __forceinline__ void
add_step(const FewParams& p, Shared<ROWS>& s, float (*share)[ROWS], int column, int width, u32 from, u32 to, u32 k) {
    u32 lane = threadIdx.x % 32, r = k + lane / 2;
    Route first = s.routes[s.sorted[from]];
    bool inside = r < first.rank;
    float v[ROWS / 16][8] = {};
    auto h = [&](u32 i) { return inside ? p.h[(size_t)s.sorted[i] * p.h_stride + first.h + r] : 0.0f; };
    float next = h(from);
#pragma unroll
    for (u32 g = 0; g < ROWS / 16; g++) {
        const B* row = (const B*)p.b + (size_t)(first.row + r) * p.b_stride;
        if (inside && 16 * g < p.rows) b_columns(row, column + 16 * (int)g, width, lane, v[g]);
    }
#pragma unroll 1
    for (u32 i = from; i < to; i++) {
        u32 n = s.sorted[i];
        float f = s.routes[n].factor * next;
        if (i + 1 < to) next = h(i + 1);
#pragma unroll
        for (u32 g = 0; g < ROWS / 16; g++) {
            if (16 * g >= p.rows) break; // a block of fewer rows, of all lanes alike
            float own[8];
#pragma unroll
            for (u32 j = 0; j < 8; j++) own[j] = f * v[g][j];
            float sum = sum_columns(own, lane);
            u32 at = own_column<B>(lane / 16 * 4 + lane / 8 % 2 * 2 + lane / 4 % 2, lane);
            if (lane / 2 % 2 == 0) share[n / p.top_k][16 * g + at] += sum;
        }
    }
}

// A warp's shares of the experts' part of the block's columns from o0 on: ranks 16 j .. of expert e belong to warp
// (e + j) % 8, which adds them by ascending e. Nothing of that depends on which other tokens there are.
template <u32 ROWS, class B>
__device__ __forceinline__ void
make_shares(const FewParams& p, Shared<ROWS>& s, const Slice& slice, u32 o0, u32 live, u32 listed) {
    u32 warp = threadIdx.x / 32;
    for (u32 i = threadIdx.x % 32; i < live * ROWS; i += 32) s.shares[warp][i / ROWS][i % ROWS] = 0.0f;
    __syncwarp();
#pragma unroll 1
    for (u32 from = 0, to; from < listed; from = to) {
        u32 n = s.sorted[from], e = s.ids[n];
        for (to = from + 1; to < listed && s.ids[s.sorted[to]] == e;) to++;
#pragma unroll 1
        for (u32 k = 16 * ((warp - e) % WARPS); k < s.routes[n].rank; k += 16 * WARPS) {
            int column = (int)o0 - (int)slice.first, width = (int)(slice.end - slice.first);
            add_step<ROWS, B>(p, s, s.shares[warp], column, width, from, to, k);
        }
    }
}

} // namespace few
