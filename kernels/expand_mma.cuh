// Expand on tensor cores: y_t (+)= sum of factor B h_n over token t's routes, for a chunk of the plan and 128
// columns.
//
//     for each piece of the chunk (up to 32 routes of one expert), for each 16 ranks of it:
//         D[column][route] += B[rank][column] h[route][rank]
//         behind the last ranks: acc[token of route][column] += factor(route) D[column][route]
//     y[token][column] (+)= acc[token][column]
//
// 1. Columns are M and routes N: an expert's 12 routes fill 16 columns. Warps 0 to 3 own 32 columns of y each and
//    multiply; warps 4 to 7 bring h, three steps ahead, into a ring in shared memory. One barrier a step.
// 2. B goes from global memory to registers, one step ahead, 8 bytes a lane: lane (g, q) takes columns 4 g .. 4 g + 3
//    of ranks 4 q .. 4 q + 3, whole sectors, every element once, and pairs the ranks by byte permutes. The columns
//    that a product's rows stand for are free: D's four rows of a lane are its four columns.
// 3. D is dealt out so that eight neighbouring lanes hold one route's 32 columns: 16 bytes a lane and one row of acc
//    in every wavefront, whatever the tokens are. A route of another lane may be of the same token only where an
//    expert stands twice in a token's list: such pieces add one route after the other.
// 4. acc is written by the warp that owns the columns, pieces follow one another in ascending order of experts: a
//    fixed order, and a token's bits do not depend on the rest of its batch.
// 5. h is rounded to the element once, as the product's operand. f16 has not h's range: there each route's 16 ranks
//    are scaled by a power of two, exactly, and the product is scaled back.
#pragma once

#include "expand_chunk.cuh"

namespace expand_mma {

// Columns 4 g .. 4 g + 3 of ranks 4 q .. 4 q + 3.
struct Block {
    uint2 ranks[4];
};

template <class X>
__device__ __forceinline__ Block load_b(const ExpandParams& p, const Step& step, u32 column, u32 lane) {
    u32 r = step.k + 4 * (lane % 4);
    column += 4 * (lane / 4);
    const X* from = (const X*)p.b + (size_t)(step.row + r) * p.b_stride + column;
    Block block;
#pragma unroll
    for (u32 j = 0; j < 4; j++) {
        bool inside = step.count > 0 && r + j < step.rank && column < p.b_stride;
        block.ranks[j] = inside ? __ldg((const uint2*)(from + (size_t)j * p.b_stride)) : make_uint2(0, 0);
    }
    return block;
}

// Rows g and g + 8 of the first product are columns 4 g and 4 g + 1, of the second 4 g + 2 and 4 g + 3.
__device__ __forceinline__ void pair_ranks(const Block& block, Left (&left)[2]) {
#pragma unroll
    for (u32 i = 0; i < 4; i++) {
        const uint2 &low = block.ranks[i / 2 * 2], &high = block.ranks[i / 2 * 2 + 1];
        u32 pick = i % 2 == 0 ? 0x5410 : 0x7632;
        left[0].a[i] = __byte_perm(low.x, high.x, pick);
        left[1].a[i] = __byte_perm(low.y, high.y, pick);
    }
}

// Whether the element has the range of f32.
template <class X> constexpr bool HAS_RANGE = false;
template <> constexpr bool HAS_RANGE<bf16> = true;

struct Sums {
    Product products[PIECE / 8][2];
};

// The power of two that brings a route's largest |h| of the step to 1024 .. 2048, and its inverse.
__device__ __forceinline__ float scale_of(float4 h, float& inverse) {
    float largest = fmaxf(fmaxf(fabsf(h.x), fabsf(h.y)), fmaxf(fabsf(h.z), fabsf(h.w)));
    largest = fmaxf(largest, __shfl_xor_sync(ALL_LANES, largest, 1));
    largest = fmaxf(largest, __shfl_xor_sync(ALL_LANES, largest, 2));
    u32 exponent = max(__float_as_uint(largest) >> 23, 11u);
    inverse = __uint_as_float((exponent - 10) << 23);
    return __uint_as_float((264 - exponent) << 23);
}

template <class X>
__device__ __forceinline__ void multiply_eight(Product (&sums)[2], const Left (&left)[2], float4 h, u32 lane) {
    if constexpr (HAS_RANGE<X>) {
        Right right{{narrow_pair<X>(h.x, h.y), narrow_pair<X>(h.z, h.w)}};
        multiply<X>(sums[0], left[0], right);
        multiply<X>(sums[1], left[1], right);
    } else {
        float inverse, scale = scale_of(h, inverse);
        Right right{{narrow_pair<X>(h.x * scale, h.y * scale), narrow_pair<X>(h.z * scale, h.w * scale)}};
        float back[2];
        back[0] = __shfl_sync(ALL_LANES, inverse, 8 * (lane % 4));
        back[1] = __shfl_sync(ALL_LANES, inverse, 8 * (lane % 4) + 4);
#pragma unroll
        for (u32 m = 0; m < 2; m++) {
            Product product{};
            multiply<X>(product, left[m], right);
#pragma unroll
            for (u32 i = 0; i < 4; i++) sums[m].d[i] = fmaf(product.d[i], back[i % 2], sums[m].d[i]);
        }
    }
}

// A lane's share of eight routes of D: four columns of two routes; eight neighbouring lanes hold a route's columns.
struct Pair {
    float d[2][4], factors[2];
    float4* to[2];
    bool inside[2];
};

__device__ __forceinline__ Pair deal(Shared& s, const Product (&sums)[2], const Step& step, u32 first, bool per_route,
                                     u32 column, u32 lane) {
    u32 from = 4 * (lane % 8) + lane / 8;
    Pair pair;
#pragma unroll
    for (u32 i = 0; i < 2; i++) {
#pragma unroll
        for (u32 j = 0; j < 4; j++) pair.d[i][j] = __shfl_sync(ALL_LANES, sums[j / 2].d[2 * (j % 2) + i], from);
        u32 n = first + 2 * (lane / 8) + i;
        pair.inside[i] = n < step.count;
        u32 at = step.begin + (pair.inside[i] ? n : 0);
        pair.factors[i] = s.factors[at];
        pair.inside[i] = pair.inside[i] && !skips(pair.factors[i]);
        pair.to[i] = (float4*)&s.acc[per_route ? n : s.routes[at] >> 9][column + 4 * (lane % 8)];
    }
    return pair;
}

// acc += factor D.
__device__ __forceinline__ void add_pair(const Pair& pair, bool first, bool second) {
    bool take[2] = {first, second};
    float4 v[2];
#pragma unroll
    for (u32 i = 0; i < 2; i++) {
        if (take[i]) v[i] = *pair.to[i];
    }
#pragma unroll
    for (u32 i = 0; i < 2; i++) {
        const float(&d)[4] = pair.d[i];
        v[i].x = fmaf(pair.factors[i], d[0], v[i].x), v[i].y = fmaf(pair.factors[i], d[1], v[i].y);
        v[i].z = fmaf(pair.factors[i], d[2], v[i].z), v[i].w = fmaf(pair.factors[i], d[3], v[i].w);
        if (take[i]) *pair.to[i] = v[i];
    }
}

// Eight routes' factor D to the rows of their tokens, or for PER_ROUTE to the rows of their places in the piece.
__device__ __forceinline__ void add_eight(Shared& s, const Product (&sums)[2], const Step& step, u32 first,
                                          bool per_route, u32 column, u32 lane) {
    Pair pair = deal(s, sums, step, first, per_route, column, lane);
    if (per_route || !step.repeats) return add_pair(pair, pair.inside[0], pair.inside[1]);
#pragma unroll 1
    for (u32 i = 0; i < 8; i++) {
        bool own = lane / 8 == i / 2;
        add_pair(pair, own && i % 2 == 0 && pair.inside[0], own && i % 2 == 1 && pair.inside[1]);
        __syncwarp();
    }
}

// z of a piece's routes, the warp's 32 columns; clears acc for the next piece, which begins behind a barrier.
template <class X>
__device__ __forceinline__ void store_piece(const ExpandParams& p, Shared& s, const Chunk& c, const Step& step,
                                            u32 column, u32 lane) {
    u32 own = column + 4 * (lane % 8), o = c.column + own;
    __syncwarp();
#pragma unroll 1
    for (u32 n = lane / 8; n < step.count && o < p.out_features; n += 4) {
        float4& place = *(float4*)&s.acc[n][own];
        float4 sum = place;
        place = float4{0.0f, 0.0f, 0.0f, 0.0f};
        float v[4] = {sum.x, sum.y, sum.z, sum.w};
        X* z = (X*)p.y + (size_t)(c.n0 + (s.routes[step.begin + n] & 0x1ff)) * p.y_stride + o;
        store_part<4>(z, v, p.out_features - o, p.y_vector, p.accumulate);
    }
}

// One step of a worker: the products, and behind a piece's last ranks their way to acc.
template <class X>
__device__ __forceinline__ void work(const ExpandParams& p, Shared& s, const Chunk& c, const Step& step,
                                     const Block& block, u32 stage, Sums& sums) {
    u32 lane = threadIdx.x % 32, column = threadIdx.x / 32 * 32;
    Left left[2];
    pair_ranks(block, left);
#pragma unroll
    for (u32 n = 0; n < PIECE / 8; n++) {
        if (8 * n >= step.count) continue;
        float4 h = *(const float4*)&s.h[stage][8 * n + lane / 4][4 * (lane % 4)];
        multiply_eight<X>(sums.products[n], left, h, lane);
    }
    if (step.k + RANKS < step.rank) return;
    bool per_route = p.output == PER_ROUTE;
#pragma unroll
    for (u32 n = 0; n < PIECE / 8; n++) {
        if (8 * n >= step.count) continue;
        add_eight(s, sums.products[n], step, 8 * n, per_route, column, lane);
        sums.products[n][0] = sums.products[n][1] = Product{};
    }
    if (per_route) store_piece<X>(p, s, c, step, column, lane);
}

// Rows of z that no adapter writes.
template <class X>
__device__ __forceinline__ void clear_rows(const ExpandParams& p, const Shared& s, const Chunk& c) {
    u32 column = c.column + 4 * (threadIdx.x % 32);
    if (column >= p.out_features) return;
    for (u32 i = threadIdx.x / 32; i < c.count; i += THREADS / 32) {
        u32 route = s.routes[i];
        if (s.draft.rows[i] != NONE || route >> 9 >= c.tokens) continue;
        float zeros[4] = {};
        X* z = (X*)p.y + (size_t)(c.n0 + (route & 0x1ff)) * p.y_stride + column;
        store_part<4>(z, zeros, p.out_features - column, p.y_vector, false);
    }
}

template <class X>
__device__ __forceinline__ void store_rows(const ExpandParams& p, const Shared& s, const Chunk& c) {
    u32 own = 4 * (threadIdx.x % 32), column = c.column + own;
    if (column >= p.out_features) return;
    for (u32 t = threadIdx.x / 32; t < c.tokens; t += THREADS / 32) {
        if (p.accumulate && (s.touched[t / 32] >> t % 32 & 1) == 0) continue;
        float4 sum = *(const float4*)&s.acc[t][own];
        float v[4] = {sum.x, sum.y, sum.z, sum.w};
        X* y = (X*)p.y + (size_t)(c.t0 + t) * p.y_stride + column;
        store_part<4>(y, v, p.out_features - column, p.y_vector, p.accumulate);
    }
}

template <class X> __device__ __forceinline__ void expand(const ExpandParams& p) {
    __shared__ Shared s;
    Chunk c = chunk_of(p);
    if (c.tokens == 0) return;
    list_routes(p, s, c);
    list_pieces(s, c.count);
    if (p.output == PER_ROUTE && !p.accumulate) {
        clear_rows<X>(p, s, c);
        __syncthreads();
    }
    for (u32 i = threadIdx.x; i < CHUNK_TOKENS * COLUMNS / 4; i += THREADS) {
        ((float4*)s.acc)[i] = float4{0.0f, 0.0f, 0.0f, 0.0f};
    }
    u32 warp = threadIdx.x / 32, lane = threadIdx.x % 32, column = c.column + 32 * warp;
    bool worker = warp < WORKERS, idle = worker && column >= p.out_features;
    u32 stage = 0;
    Step now, ahead;
    now.open(s, 0);
    ahead = now;
    Block blocks[2];
    Sums sums = {};
    if (worker) {
        blocks[0] = load_b<X>(p, ahead, column, lane);
    } else {
        for (u32 i = 0; i < STAGES - 1; i++) {
            stage_h(p, s, c, ahead, i);
            ahead.advance(s);
        }
        fetch_b<X>(p, s, c);
    }
    while (now.count > 0) {
#pragma unroll
        for (u32 i = 0; i < 2; i++) {
            if (now.count == 0) break;
            if (!worker) wait_groups<STAGES - 2>();
            __syncthreads();
            if (worker) {
                ahead.advance(s);
                blocks[1 - i] = load_b<X>(p, ahead, column, lane);
                if (!idle) work<X>(p, s, c, now, blocks[i], stage, sums);
            } else {
                stage_h(p, s, c, ahead, (stage + STAGES - 1) % STAGES);
                ahead.advance(s);
            }
            now.advance(s);
            stage = (stage + 1) % STAGES;
        }
    }
    __syncthreads();
    if (p.output != PER_ROUTE) store_rows<X>(p, s, c);
}

} // namespace expand_mma

extern "C" __global__ void __launch_bounds__(expand_mma::THREADS, 2)
expand_mma_f16(const __grid_constant__ ExpandParams p) {
    expand_mma::expand<f16>(p);
}

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
extern "C" __global__ void __launch_bounds__(expand_mma::THREADS, 2)
expand_mma_bf16(const __grid_constant__ ExpandParams p) {
    expand_mma::expand<bf16>(p);
}
#endif
