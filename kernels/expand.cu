// Expand: y_t (+)= sum over routes n of w_n scaling B h_n; b is B transposed, one row per rank. See
// src/ops/expand.rs.

#include "common.cuh"

// A route's factor that says: it counts for nothing. No product of finite numbers is NaN.
__device__ __forceinline__ bool skips(float factor) { return (__float_as_uint(factor) & 0x7fffffffu) > 0x7f800000u; }
constexpr u32 SKIP = 0x7fffffff;

// What the product of route n with its expert counts for.
__device__ __forceinline__ float factor(const ExpandParams& p, const Slot& slot, u32 n) {
    if (p.output == PER_ROUTE) return slot.scaling;
    float weight = p.topk_weights[n];
    if (is_finite(weight)) return slot.scaling * weight;
    atomicOr(p.plan.status, WEIGHT_NOT_FINITE);
    return __uint_as_float(SKIP);
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

// Few rows: a row of y by 512 columns, eight a thread. A row is a sum of terms, factor * h times a row of B: the block
// lists them, then every thread adds them up with many loads under way, whatever the ranks are.
//
//     for every 32 routes of the row:
//         a lane a route: its slot and factor; where its ranks begin among the terms
//         for every 1,024 terms:  list them; add each FEW_GROUPS-th
//     the groups' sums one after the other
constexpr u32 FEW_COLUMNS = 8; // a thread's
constexpr u32 FEW_GROUPS = 4;  // of 64 threads, which share the terms
constexpr u32 FEW_THREADS = 64 * FEW_GROUPS;
constexpr u32 TERMS = 1024;

struct Terms {
    u32 rows[TERMS]; // of B
    float factors[TERMS];
    float4 sums[FEW_GROUPS][2][64]; // of the groups behind the first
    u32 begins[33], first_rows[32]; // of each route: its first term, its first row of B
    float route_factors[32];
    u32 live; // whether any of the routes has an adapter
};

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

// One warp: what up to 32 routes from n on add to the terms.
__device__ __forceinline__ void open_routes(const ExpandParams& p, Terms& s, u32 n, u32 count, u32 clock) {
    u32 lane = threadIdx.x, rank = 0;
    bool live = false;
    u32 e = lane < count ? p.plan.words[p.plan.at_ids + n + lane] : NONE;
    if (e != NONE) {
        Slot slot = slot_at(p.plan, e);
        u32 why = refusal(p.plan, slot, clock);
        if (why != 0) {
            atomicOr(p.plan.status, why);
        } else {
            float f = factor(p, slot, n + lane);
            live = true;
            rank = skips(f) ? 0 : slot.rank;
            s.first_rows[lane] = slot.row;
            s.route_factors[lane] = f;
        }
    }
    u32 upto = rank;
#pragma unroll
    for (u32 step = 1; step < 32; step *= 2) {
        u32 other = __shfl_up_sync(ALL_LANES, upto, step);
        if (lane >= step) upto += other;
    }
    s.begins[lane + 1] = upto;
    live = __any_sync(ALL_LANES, live);
    if (lane == 0) s.begins[0] = 0, s.live = live;
}

// Lists the terms from i0 on of the routes from n on.
__device__ __forceinline__ void list_terms(const ExpandParams& p, Terms& s, u32 n, u32 i0, u32 count) {
    for (u32 i = threadIdx.x; i < count; i += FEW_THREADS) {
        u32 j = 0; // the last route that begins at or before the term
#pragma unroll
        for (u32 step = 16; step > 0; step /= 2) {
            if (s.begins[j + step] <= i0 + i) j += step;
        }
        u32 r = i0 + i - s.begins[j];
        s.rows[i] = s.first_rows[j] + r;
        s.factors[i] = s.route_factors[j] * __ldg(h_row(p, n + j) + r);
    }
}

// Adds STEPS of the group's terms at a time while they last; all loads come before the first product.
template <u32 STEPS, class B>
__device__ __forceinline__ void
add_terms(const ExpandParams& p, const Terms& s, const B* b, bool high, u32& i, u32 count, float (&sum)[FEW_COLUMNS]) {
#pragma unroll 1
    for (; i + (STEPS - 1) * FEW_GROUPS < count; i += STEPS * FEW_GROUPS) {
        Raw<B, FEW_COLUMNS> rows[STEPS];
#pragma unroll
        for (u32 k = 0; k < STEPS; k++) rows[k] = b_columns(b + (size_t)s.rows[i + k * FEW_GROUPS] * p.b_stride, high);
#pragma unroll
        for (u32 k = 0; k < STEPS; k++) {
            float f = s.factors[i + k * FEW_GROUPS];
#pragma unroll
            for (u32 j = 0; j < FEW_COLUMNS; j++) sum[j] = fmaf(f, raw_at(rows[k], j), sum[j]);
        }
    }
}

// The sums of all groups into the first one's.
__device__ __forceinline__ void add_groups(Terms& s, float (&sum)[FEW_COLUMNS]) {
    u32 group = threadIdx.x / 64, own = threadIdx.x % 64;
    if (group > 0) {
        s.sums[group][0][own] = make_float4(sum[0], sum[1], sum[2], sum[3]);
        s.sums[group][1][own] = make_float4(sum[4], sum[5], sum[6], sum[7]);
    }
    __syncthreads();
    for (u32 g = 1; group == 0 && g < FEW_GROUPS; g++) {
        float4 low = s.sums[g][0][own], high = s.sums[g][1][own];
        sum[0] += low.x, sum[1] += low.y, sum[2] += low.z, sum[3] += low.w;
        sum[4] += high.x, sum[5] += high.y, sum[6] += high.z, sum[7] += high.w;
    }
}

// One block a row of y and 512 columns.
template <class Y, class B> __device__ __forceinline__ void expand_few(const ExpandParams& p) {
    __shared__ Terms s;
    const PlanParams& plan = p.plan;
    u32 row = blockIdx.x / p.column_blocks, group = threadIdx.x / 64;
    u32 column = FEW_COLUMNS * (64 * (blockIdx.x % p.column_blocks) + threadIdx.x % 64);
    u32 routes = p.output == PER_ROUTE ? 1 : plan.top_k, clock = plan_clock(plan);
    if (row * routes >= plan_live_tokens(plan) * plan.top_k) return;
    bool high = column + 4 < p.b_stride, inside = column < p.out_features, any = !p.accumulate;
    const B* b = (const B*)p.b + column;
    float sum[FEW_COLUMNS] = {};
    for (u32 n = row * routes, left = routes; left > 0; n += 32, left -= min(left, 32u)) {
        if (left < routes) __syncthreads(); // the last routes are read
        if (threadIdx.x < 32) open_routes(p, s, n, left, clock);
        __syncthreads();
        u32 total = s.begins[32];
        any |= s.live != 0;
        for (u32 i0 = 0; i0 < total; i0 += TERMS) {
            u32 count = min(total - i0, TERMS), i = group;
            if (i0 > 0) __syncthreads(); // the last terms are read
            list_terms(p, s, n, i0, count);
            __syncthreads();
            if (!inside) continue;
            add_terms<32 / sizeof(B)>(p, s, b, high, i, count, sum);
            add_terms<4>(p, s, b, high, i, count, sum);
            add_terms<1>(p, s, b, high, i, count, sum);
        }
    }
    if (FEW_GROUPS > 1) add_groups(s, sum);
    if (any && group == 0) finish<Y>(p, row, column, sum);
}

#include "expand_many.cuh"

#define EXPAND(x, X, a, A)                                                                                     \
    extern "C" __global__ void __launch_bounds__(FEW_THREADS, 8 / FEW_GROUPS)                             \
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
