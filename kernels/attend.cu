// Attend: the weights of a token's routes from h, one block a token; see src/ops/attend.rs.
//
//     query = A_r x, a row of A_r a warp
//     scores: a route a warp, whose lanes share the elements of the expert's K
//     weights: softmax over the routes that have one
// Scores stay in shared memory: -inf where a route has no expert, NaN for any that is not finite.

#include "rows.cuh"

constexpr u32 THREADS = 256, WARPS = THREADS / 32;

// sum over rows j and columns c of h_j K_jc query_c, in every lane.
__device__ __forceinline__ float score(const float* k, const float* h, const float* query, u32 rank, u32 width) {
    u32 lane = threadIdx.x % 32, row = lane / width, column = lane % width;
    u32 row_step = 32 / width, column_step = 32 % width;
    float sum = 0.0f;
    for (u32 i = lane; i < rank * width; i += 32) {
        sum = fmaf(h[row] * query[column], __ldg(k + i), sum);
        row += row_step, column += column_step;
        if (column >= width) row++, column -= width;
    }
    return warp_sum(sum);
}

template <class X> __device__ __forceinline__ void attend(const AttendParams& p) {
    __shared__ float query[QUERY_RANKS], scores[CHUNK_ROUTES], shares[CHUNK_ROUTES];
    const PlanParams& plan = p.plan;
    u32 t = blockIdx.x, warp = threadIdx.x / 32, lane = threadIdx.x % 32, clock = plan_clock(plan);
    if (t >= plan_live_tokens(plan)) return;
    const X* x = (const X*)p.x + (size_t)t * p.x_stride;
    for (u32 r = warp; r < p.router_rank; r += WARPS) {
        auto put = [&](u32, float sum) { query[r] = sum; };
        products(p.a + (size_t)r * p.a_stride, p.in_features, p.x_vector, 1, [&](u32) { return x; }, put);
    }
    __syncthreads();
    float root = sqrtf((float)p.router_rank);
    for (u32 j = warp; j < plan.top_k; j += WARPS) {
        u32 n = t * plan.top_k + j, e = plan.words[plan.at_ids + n], why = 0;
        float z = -INFINITY;
        if (e != NONE) {
            Slot slot = slot_at(plan, e);
            why = refusal(plan, slot, clock);
            if (why == 0) {
                const float* k = p.k + (size_t)slot.row * p.router_rank;
                z = score(k, p.h + (size_t)n * p.h_stride, query, slot.rank, p.router_rank) / root;
                if (!is_finite(z)) z = NAN;
            }
        }
        if (lane == 0) scores[j] = z;
        if (lane == 0 && why != 0) atomicOr(plan.status, why);
    }
    __syncthreads();
    float largest = -INFINITY;
    bool broken = false;
    for (u32 j = 0; j < plan.top_k; j++) {
        broken |= (bits_of(scores[j]) & 0x7fffffffu) > 0x7f800000u;
        largest = fmaxf(largest, scores[j]);
    }
    for (u32 j = threadIdx.x; j < plan.top_k; j += THREADS) {
        shares[j] = scores[j] == -INFINITY ? 0.0f : expf(scores[j] - largest);
    }
    __syncthreads();
    if (broken && threadIdx.x == 0) atomicOr(plan.status, SCORE_NOT_FINITE);
    for (u32 j = threadIdx.x; j < plan.top_k; j += THREADS) {
        float total = 0.0f;
        for (u32 i = 0; i < plan.top_k; i++) total += shares[i];
        bool none = broken || shares[j] == 0.0f;
        p.topk_weights[(size_t)t * plan.top_k + j] = none ? 0.0f : shares[j] / total;
    }
}

#define ATTEND(name, X)                                                                                   \
    extern "C" __global__ void __launch_bounds__(THREADS) name(const __grid_constant__ AttendParams p) {  \
        attend<X>(p);                                                                                     \
    }
ATTEND(attend_f32, float)
ATTEND(attend_f16, f16)
ATTEND(attend_bf16, bf16)
