// Expand: y_t (+)= sum over routes n of w_n scaling B h_n; b is B transposed, one row per rank. See
// src/ops/expand.rs.

#include "common.cuh"

// What the product of route n with its expert counts for.
__device__ __forceinline__ float factor(const ExpandParams& p, const Slot& slot, u32 n) {
    if (p.output == PER_ROUTE) return slot.scaling;
    float weight = p.topk_weights[n];
    if (is_finite(weight)) return slot.scaling * weight;
    atomicOr(p.plan.status, WEIGHT_NOT_FINITE);
    return 0.0f;
}

__device__ __forceinline__ const float* h_row(const ExpandParams& p, u32 n) {
    return p.h + (size_t)(p.output == RANK_SUM ? n / p.plan.top_k : n) * p.h_stride;
}

// N columns of one row of y, rounded once.
template <class Y, u32 N>
__device__ __forceinline__ void finish(const ExpandParams& p, u32 row, u32 column, const float (&sum)[N]) {
    if (column >= p.out_features) return;
    Y* y = (Y*)p.y + (size_t)row * p.y_stride + column;
    store_part<N>(y, sum, p.out_features - column, p.y_vector, p.accumulate);
}

constexpr u32 FEW_COLUMNS = 8; // a thread's
constexpr u32 FEW_THREADS = 64;

// Eight columns of a row of B. Rows end at multiples of 16 bytes: four f32 at once.
template <class B> __device__ __forceinline__ Raw<B, FEW_COLUMNS> b_columns(const B* b, bool high) {
    if constexpr (sizeof(B) == 2) return load<8>(b);
    Raw<B, 4> low = load<4>(b), rest = {};
    if (high) rest = load<4>(b + 4);
    Raw<B, 8> both;
#pragma unroll
    for (u32 i = 0; i < Raw<B, 4>::WORDS; i++) {
        both.words[i] = low.words[i], both.words[Raw<B, 4>::WORDS + i] = rest.words[i];
    }
    return both;
}

// RANKS values of a row of h.
template <u32 RANKS> __device__ __forceinline__ Raw<float, RANKS> h_ranks(const ExpandParams& p, const float* h) {
    if constexpr (RANKS % 4 == 0) {
        if (p.h_vector) return load<RANKS>(h);
    }
    return load_each<RANKS>(h, RANKS);
}

// Adds RANKS ranks at a time while they last; all loads come before the first product.
template <u32 RANKS, class B>
__device__ __forceinline__ void add_few(const ExpandParams& p, const float* h, const B* b, bool high, u32& r, u32 rank,
                                        float (&product)[FEW_COLUMNS]) {
#pragma unroll 1
    for (; r + RANKS <= rank; r += RANKS) {
        Raw<B, FEW_COLUMNS> rows[RANKS];
#pragma unroll
        for (u32 i = 0; i < RANKS; i++) rows[i] = b_columns(b + (size_t)(r + i) * p.b_stride, high);
        Raw<float, RANKS> v = h_ranks<RANKS>(p, h + r);
#pragma unroll
        for (u32 i = 0; i < RANKS; i++) {
#pragma unroll
            for (u32 j = 0; j < FEW_COLUMNS; j++) {
                product[j] = fmaf(raw_at(v, i), raw_at(rows[i], j), product[j]);
            }
        }
    }
}

// One block a row of y and 512 columns.
template <class Y, class B> __device__ __forceinline__ void expand_few(const ExpandParams& p) {
    const PlanParams& plan = p.plan;
    u32 row = blockIdx.x / p.column_blocks;
    u32 column = FEW_COLUMNS * (FEW_THREADS * (blockIdx.x % p.column_blocks) + threadIdx.x);
    u32 routes = p.output == PER_ROUTE ? 1 : plan.top_k, clock = plan_clock(plan);
    if (column >= p.out_features || row * routes >= plan_live_tokens(plan) * plan.top_k) return;
    bool high = column + 4 < p.b_stride, any = !p.accumulate;
    float sum[FEW_COLUMNS] = {};
    for (u32 n = row * routes; n < (row + 1) * routes; n++) {
        u32 e = plan.words[plan.at_ids + n];
        if (e == NONE) continue;
        Slot slot = slot_at(plan, e);
        u32 why = refusal(plan, slot, clock);
        if (why != 0) {
            if (threadIdx.x == 0) atomicOr(plan.status, why);
            continue;
        }
        any = true;
        const float* h = h_row(p, n);
        const B* b = (const B*)p.b + (size_t)slot.row * p.b_stride + column;
        float product[FEW_COLUMNS] = {};
        u32 r = 0;
        if constexpr (sizeof(B) == 2) add_few<8>(p, h, b, high, r, slot.rank, product);
        add_few<4>(p, h, b, high, r, slot.rank, product);
        add_few<1>(p, h, b, high, r, slot.rank, product);
        float f = factor(p, slot, n);
#pragma unroll
        for (u32 j = 0; j < FEW_COLUMNS; j++) sum[j] = fmaf(f, product[j], sum[j]);
    }
    if (any) finish<Y>(p, row, column, sum);
}

// Many rows: a chunk of tokens by 128 columns, four a lane, in each of four warps. Warp w keeps every fourth row of y
// in shared memory: no other thread touches them, so there is no barrier. A chunk's routes come sorted by expert:
//
//     for every 32 routes of the chunk, one a lane:
//         for each expert among them:
//             for each eight ranks:  b = their rows of B, in registers
//                 for each route of the expert and of this warp:  acc[row of the route] += factor * <h, b>
constexpr u32 MANY_THREADS = 128, WARPS = MANY_THREADS / 32;
constexpr u32 MANY_COLUMNS = 128, OWN = 4; // a block's, a lane's

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
        add_routes(p, b, mine, own, slot, acc);
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

#define EXPAND(x, X, a, A)                                                                                     \
    extern "C" __global__ void __launch_bounds__(FEW_THREADS, 12)                                                 \
        expand_few_##x##_##a(const __grid_constant__ ExpandParams p) {                                         \
        expand_few<X, A>(p);                                                                                   \
    }                                                                                                          \
    extern "C" __global__ void __launch_bounds__(MANY_THREADS)                                                 \
        expand_many_##x##_##a(const __grid_constant__ ExpandParams p) {                                        \
        expand_many<X, A>(p);                                                                                  \
    }
#define EXPAND_X(x, X) EXPAND(x, X, f32, float) EXPAND(x, X, f16, f16) EXPAND(x, X, bf16, bf16)
EXPAND_X(f32, float)
EXPAND_X(f16, f16)
EXPAND_X(bf16, bf16)

#include "expand_mma.cuh"
