// Shrink: h_n = A x_t for every live route n of token t, by tiles of one expert's routes; see src/ops/shrink.rs.

#include "rows.cuh"
#include "tile.cuh"

// A tile of the plan: up to 64 routes of one expert.
struct Tile {
    const u32* routes;
    u32 count;
    Slot slot;
};

// Whether there is such a tile and its slot still is what the ids meant.
__device__ __forceinline__ bool tile_at(const PlanParams& p, u32 tile, Tile& found) {
    const u32* words = p.words;
    if (plan_live_tokens(p) == 0 || tile >= words[p.at_tile_offsets + p.experts]) return false;
    u32 e = words[p.at_tiles + 2 * tile], first = words[p.at_tiles + 2 * tile + 1];
    found.routes = words + p.at_sorted + first;
    found.count = min(words[p.at_offsets + e + 1] - first, TILE_ROUTES);
    found.slot = slot_at(p, e);
    u32 why = refusal(p, found.slot, plan_clock(p));
    if (why != 0 && threadIdx.x == 0) atomicOr(p.status, why);
    return why == 0;
}

// One block a tile and eight ranks, one a warp.
template <class X, class A> __device__ __forceinline__ void shrink_few(const ShrinkParams& p) {
    Tile tile;
    if (!tile_at(p.plan, blockIdx.x / p.rank_blocks, tile)) return;
    u32 r = 8 * (blockIdx.x % p.rank_blocks) + threadIdx.x / 32;
    if (r >= tile.slot.rank) return;
    const A* a = (const A*)p.a + (size_t)(tile.slot.row + r) * p.a_stride;
    auto row = [&](u32 m) { return (const X*)p.x + (size_t)(tile.routes[m] / p.plan.top_k) * p.x_stride; };
    auto put = [&](u32 m, float sum) { p.h[(size_t)tile.routes[m] * p.h_stride + r] = sum; };
    products(a, p.in_features, p.x_vector, tile.count, row, put);
}

constexpr u32 MANY_RANKS = 32;

// One block a tile and 32 ranks.
template <class X, class A> __device__ __forceinline__ void shrink_many(const ShrinkParams& p) {
    typedef TileShape<MANY_RANKS> Shape;
    __shared__ __align__(16) Stages<MANY_RANKS> stages;
    Tile tile;
    u32 r0 = MANY_RANKS * (blockIdx.x % p.rank_blocks);
    if (!tile_at(p.plan, blockIdx.x / p.rank_blocks, tile) || r0 >= tile.slot.rank) return;
    u32 ranks = tile.slot.rank - r0, row = Shape::row(), column = Shape::column();
    u32 t = tile.routes[min(threadIdx.x % TILE_ROWS, tile.count - 1)] / p.plan.top_k;
    u32 r = tile.slot.row + r0 + min(threadIdx.x % MANY_RANKS, ranks - 1);
    const X* x = (const X*)p.x + (size_t)t * p.x_stride;
    const A* a = (const A*)p.a + (size_t)r * p.a_stride;
    float sums[4][4] = {};
    bool works = row < tile.count && column < ranks;
    tile_product<MANY_RANKS, false>(stages, x, p.x_vector, a, true, p.in_features, works, sums);
    if (!works) return;
    bool vector = ((size_t)p.h | 4 * (size_t)p.h_stride) % 16 == 0;
#pragma unroll
    for (u32 m = 0; m < 4; m++) {
        if (row + m >= tile.count) return;
        float* h = p.h + (size_t)tile.routes[row + m] * p.h_stride + r0 + column;
        store_part<4>(h, sums[m], ranks - column, vector, false);
    }
}

// RankSum: h_t = sum over the token's live routes n, in slot order, of w_n (A x)_n. One thread a token and rank.
// A token whose experts differ in rank gets zeros and sets the status word.
extern "C" __global__ void __launch_bounds__(128) shrink_rank_sum(const __grid_constant__ ShrinkParams p) {
    const PlanParams& plan = p.plan;
    unsigned long long index = blockIdx.x * 128ull + threadIdx.x;
    u32 t = index / plan.max_rank, r = index % plan.max_rank, clock = plan_clock(plan);
    if (t >= plan_live_tokens(plan)) return;
    u32 rank = 0, widest = 0;
    float sum = 0.0f;
    for (u32 n = t * plan.top_k; n < (t + 1) * plan.top_k; n++) {
        u32 e = plan.words[plan.at_ids + n];
        if (e == NONE) continue;
        Slot slot = slot_at(plan, e);
        if (refusal(plan, slot, clock) != 0) continue; // shrink has told
        if (rank == 0) rank = slot.rank;
        if (slot.rank != rank) rank = NONE;
        widest = max(widest, slot.rank);
        float weight = p.topk_weights[n];
        if (!is_finite(weight)) atomicOr(plan.status, WEIGHT_NOT_FINITE);
        else if (r < slot.rank) sum = fmaf(weight, p.routes_h[(size_t)n * plan.max_rank + r], sum);
    }
    if (rank == NONE) {
        sum = 0.0f;
        if (r == 0) atomicOr(plan.status, UNEQUAL_RANKS);
    }
    if (r < widest) p.h[(size_t)t * p.h_stride + r] = sum;
}

#define SHRINK(x, X, a, A)                                                                                     \
    extern "C" __global__ void __launch_bounds__(256)                                                          \
        shrink_few_##x##_##a(const __grid_constant__ ShrinkParams p) {                                         \
        shrink_few<X, A>(p);                                                                                   \
    }                                                                                                          \
    extern "C" __global__ void __launch_bounds__(128)                                                          \
        shrink_many_##x##_##a(const __grid_constant__ ShrinkParams p) {                                        \
        shrink_many<X, A>(p);                                                                                  \
    }
#define SHRINK_X(x, X) SHRINK(x, X, f32, float) SHRINK(x, X, f16, f16) SHRINK(x, X, bf16, bf16)
SHRINK_X(f32, float)
SHRINK_X(f16, f16)
SHRINK_X(bf16, bf16)

#include "shrink_mma.cuh"
