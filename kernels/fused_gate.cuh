// Fused, dense form, the first product: z[t][r] = <A_r, x_t> * gate(t, r) for all rows r of the pool, and before that,
// where a router is given, its scores and selection; one launch, a block for 16 tokens and all columns.
//
//     for every 8 experts of the router, and once for A (on tensor cores with the last of them):
//         for each slab of x, staged in shared memory, 512 bytes a token:
//             scores: a warp an expert, all tokens
//             or all rows of A
//     a warp a token: selection, ids and weights; gates[t][rows of a chosen expert] += weight * scaling
//     z = product * gate, 0 by selection elsewhere
//
// 1. On tensor cores router and A share a slab: x is read once for up to 8 experts. More sums have no registers.
// 2. Scores are route.cu's, bit by bit: lane l adds columns 4 l .. 4 l + 3 of every 128, and the lanes are added as a tree
//    once every 4,096 columns.
// 3. Tensor cores: rows of A are M, tokens N; A goes from memory to registers, 16 bytes a lane, every row once a block.
//    Up to 64 rows: several warps share a row's columns, and add in their order. Which warp adds what depends on the number
//    of columns alone.
// 4. What an expert that is not chosen would give may be infinite: its 0 is chosen, not multiplied.
#pragma once

#include "keys.cuh"
#include "mma.cuh"

namespace gate {

constexpr u32 THREADS = 256, WARPS = 8, TOKENS = 16;
constexpr u32 SUMMED = 4096;        // columns of x whose products are added before the lanes are
constexpr u32 GATES = GATE_ROWS + 4; // of one token; four more than a multiple of the banks
constexpr u32 STAGED = 4096;        // f32 of A in shared memory
constexpr u32 NOBODYS = 0xffffffffu; // the gate of a row that no chosen expert has

template <class E> struct Shared {
    static constexpr u32 SLAB = 512 / sizeof(E);
    // Rows 64 bytes more than a multiple of the banks: two rows' 64 bytes fill them.
    static constexpr u32 ROW = SLAB + 64 / sizeof(E);
    union {
        struct {
            E x[2][TOKENS][ROW];
            float a[sizeof(E) == 4 ? STAGED : 4];
        };
        u32 gates[TOKENS * GATES]; // a gate, then the value, by its bits
    };
    float scores[TOKENS][GATE_EXPERTS];
};

__device__ __forceinline__ u32 gate_stride(const GateParams& p) { return (p.columns + 7) / 8 * 8 + 4; }

// Eight elements of a row of x, zeros behind its end.
template <class X> __device__ __forceinline__ void widen_eight(const Raw<X, 8>& raw, float (&v)[8]) {
#pragma unroll
    for (u32 j = 0; j < 8; j++) v[j] = raw_at(raw, j);
}

__device__ __forceinline__ void eight_of(const void* rows, u32 type, size_t row, u32 i, u32 k, bool vector, float (&v)[8]) {
    if (type == TYPE_F32) widen_eight(load_part<8>((const float*)rows + row, i, k, vector), v);
    else if (type == TYPE_F16) widen_eight(load_part<8>((const f16*)rows + row, i, k, vector), v);
    else widen_eight(load_part<8>((const bf16*)rows + row, i, k, vector), v);
}

// This thread's part of a slab of x on its way from global to shared memory: of its own elements for tensor cores, f32
// otherwise. Tokens behind the last are zeros.
template <class E> struct Slab {
    static constexpr u32 EIGHTS = Shared<E>::SLAB / 8, EACH = TOKENS * EIGHTS / THREADS;
    Raw<E, 8> parts[EACH];

    __device__ __forceinline__ void read(const GateParams& p, u32 t0, u32 count, u32 k0) {
#pragma unroll
        for (u32 n = 0; n < EACH; n++) {
            u32 at = threadIdx.x + THREADS * n, t = at / EIGHTS, i = k0 + 8 * (at % EIGHTS);
            parts[n] = Raw<E, 8>{};
            if (t >= count || i >= p.in_features) continue;
            size_t row = (size_t)(t0 + t) * p.x_stride;
            if constexpr (sizeof(E) == 4) {
                float v[8];
                asm volatile("" : "+l"(row)); // or three addresses, one for each type, would be kept in registers
                eight_of(p.x, p.x_type, row, i, p.in_features, p.x_vector, v);
#pragma unroll
                for (u32 j = 0; j < 8; j++) parts[n].words[j] = __float_as_uint(v[j]);
            } else {
                parts[n] = load_part<8>((const E*)p.x + row, i, p.in_features, true);
            }
        }
    }

    __device__ __forceinline__ void put(E (&x)[TOKENS][Shared<E>::ROW]) const {
#pragma unroll
        for (u32 n = 0; n < EACH; n++) {
            u32 at = threadIdx.x + THREADS * n;
            uint4* to = (uint4*)&x[at / EIGHTS][8 * (at % EIGHTS)];
#pragma unroll
            for (u32 j = 0; j < Raw<E, 8>::WORDS; j += 4) {
                const u32* w = parts[n].words + j;
                to[j / 4] = make_uint4(w[0], w[1], w[2], w[3]);
            }
        }
    }
};

__device__ __forceinline__ void four_of(const float* at, float (&v)[4]) {
    float4 four = *(const float4*)at;
    v[0] = four.x, v[1] = four.y, v[2] = four.z, v[3] = four.w;
}
template <class X> __device__ __forceinline__ void four_of(const X* at, float (&v)[4]) {
    uint2 two = *(const uint2*)at;
    Raw<X, 4> raw{{two.x, two.y}};
#pragma unroll
    for (u32 j = 0; j < 4; j++) v[j] = raw_at(raw, j);
}

// The sums over the lanes by warp_sum's pairs, of N tokens: of token n in lanes 32 / N n and behind.
template <u32 N> __device__ __forceinline__ float sum_tokens(const float (&v)[N], u32 lane) {
    if constexpr (N == 1) {
        return v[0] + __shfl_xor_sync(ALL_LANES, v[0], 1);
    } else {
        float half[N / 2];
        bool upper = lane & N;
#pragma unroll
        for (u32 t = 0; t < N / 2; t++) {
            float other = __shfl_xor_sync(ALL_LANES, upper ? v[t] : v[t + N / 2], N);
            half[t] = (upper ? v[t + N / 2] : v[t]) + other;
        }
        return sum_tokens(half, lane);
    }
}

// A warp's expert of a pass, all tokens.
struct Scores {
    float sums[TOKENS] = {};

    template <class E>
    __device__ __forceinline__ void add(const GateParams& p, const E (&x)[TOKENS][Shared<E>::ROW], u32 e, u32 k0) {
        const float* row = p.router + (size_t)min(e, p.router_experts - 1) * p.in_features;
#pragma unroll 1
        for (u32 i = 4 * (threadIdx.x % 32); i < Shared<E>::SLAB; i += 128) {
            Raw<float, 4> w = load_part<4>(row, k0 + i, p.in_features, p.w_vector);
#pragma unroll
            for (u32 t = 0; t < TOKENS; t++) {
                float v[4];
                four_of(&x[t][i], v);
#pragma unroll
                for (u32 j = 0; j < 4; j++) sums[t] = fmaf(v[j], raw_at(w, j), sums[t]);
            }
        }
    }

    // Adds the lanes' sums to the scores.
    __device__ __forceinline__ void flush(const GateParams& p, float (*scores)[GATE_EXPERTS], u32 e) {
        u32 lane = threadIdx.x % 32;
        float sum = sum_tokens(sums, lane);
        if (lane % 2 == 0 && e < p.router_experts) scores[lane / 2][e] += sum;
#pragma unroll
        for (u32 t = 0; t < TOKENS; t++) sums[t] = 0.0f;
    }
};

// The value of one place from its product: the gate makes room for it.
__device__ __forceinline__ void put_value(const GateParams& p, u32* gates, u32 t, u32 r, float product) {
    u32* at = gates + t * gate_stride(p) + r;
    if (r < p.columns) *at = *at == NOBODYS ? 0 : __float_as_uint(__uint_as_float(*at) * product);
}

// Products on tensor cores: a warp takes every eighth 16 rows, or, up to four of these, a part of the columns of one.
template <class X> struct Mma {
    static constexpr u32 MOST = GATE_ROWS / 16 / WARPS;
    Product sums[MOST][2];
    u32 tile, tiles, split, splits; // the first of this warp's 16 rows, and how many; which part of the columns, of how many

    __device__ __forceinline__ void begin(const GateParams& p) {
        u32 all = (p.columns + 15) / 16, warp = threadIdx.x / 32, across = all <= 1 ? 1 : all <= 2 ? 2 : all <= 4 ? 4 : 8;
        tile = warp % across, split = warp / across, splits = WARPS / across;
        tiles = tile < all ? (all - tile + WARPS - 1) / WARPS : 0;
#pragma unroll
        for (u32 i = 0; i < 2 * MOST; i++) sums[i / 2][i % 2] = Product{};
    }

    // DEPTH times 32 columns, MT of the warp's 16 rows from FIRST on: all of A's loads come first.
    template <u32 FIRST, u32 MT, u32 DEPTH>
    __device__ __forceinline__ void add_deep(const GateParams& p, const X (&x)[TOKENS][Shared<X>::ROW], u32 k0) {
        u32 lane = threadIdx.x % 32;
        u32 rows[MT][2]; // in units of 16 bytes
#pragma unroll
        for (u32 m = 0; m < 2 * MT; m++) {
            u32 r = min(16 * (tile + WARPS * (FIRST + m / 2)) + 8 * (m % 2) + lane / 4, p.columns - 1);
            rows[m / 2][m % 2] = r * (p.a_stride / 8);
        }
#pragma unroll 1
        for (u32 s = split; s < Shared<X>::SLAB / 32; s += splits * DEPTH) {
            Raw<X, 8> a[DEPTH][MT][2];
#pragma unroll
            for (u32 d = 0; d < DEPTH; d++) {
                u32 part = s + splits * d, k = k0 + 32 * part + 8 * (lane % 4);
                bool inside = part < Shared<X>::SLAB / 32 && k < p.a_stride;
#pragma unroll
                for (u32 m = 0; m < 2 * MT; m++) {
                    a[d][m / 2][m % 2] = inside ? load<8>((const X*)p.a + 8 * (size_t)(rows[m / 2][m % 2] + k / 8)) : Raw<X, 8>{};
                }
            }
#pragma unroll
            for (u32 d = 0; d < DEPTH; d++) {
                u32 part = s + splits * d;
                if (part >= Shared<X>::SLAB / 32) break;
                uint4 v[2];
#pragma unroll
                for (u32 n = 0; n < 2; n++) v[n] = *(const uint4*)&x[8 * n + lane / 4][32 * part + 8 * (lane % 4)];
#pragma unroll
                for (u32 m = 0; m < MT; m++) {
                    const u32(&low)[4] = a[d][m][0].words;
                    const u32(&high)[4] = a[d][m][1].words;
#pragma unroll
                    for (u32 n = 0; n < 2; n++) {
                        multiply<X>(sums[FIRST + m][n], Left{{low[0], high[0], low[1], high[1]}}, Right{{v[n].x, v[n].y}});
                        multiply<X>(sums[FIRST + m][n], Left{{low[2], high[2], low[3], high[3]}}, Right{{v[n].z, v[n].w}});
                    }
                }
            }
        }
    }

    __device__ __forceinline__ void add(const GateParams& p, Shared<X>& s, u32 at, u32 k0) {
        if (tiles == 0) return;
        if (tiles == 1) add_deep<0, 1, 4>(p, s.x[at], k0);
        else add_deep<0, 2, 2>(p, s.x[at], k0);
        if (tiles > 2) add_deep<2, 2, 2>(p, s.x[at], k0);
    }

    // The parts of the columns behind the gates of 64 rows.
    __device__ __forceinline__ float4* parts(Shared<X>& s) const { return (float4*)(s.gates + TOKENS * 68); }

    __device__ __forceinline__ void share(Shared<X>& s) const {
        if (splits == 1) return;
#pragma unroll
        for (u32 n = 0; n < 2; n++) {
            const float(&d)[4] = sums[0][n].d;
            parts(s)[64 * (threadIdx.x / 32) + 32 * n + threadIdx.x % 32] = make_float4(d[0], d[1], d[2], d[3]);
        }
    }

    __device__ __forceinline__ void finish(const GateParams& p, Shared<X>& s) {
        u32 lane = threadIdx.x % 32;
        if (split != 0) return;
#pragma unroll 1
        for (u32 other = 1; other < splits; other++) {
#pragma unroll
            for (u32 n = 0; n < 2; n++) {
                float4 part = parts(s)[64 * (tile + WARPS / splits * other) + 32 * n + lane];
                float(&d)[4] = sums[0][n].d;
                d[0] += part.x, d[1] += part.y, d[2] += part.z, d[3] += part.w;
            }
        }
#pragma unroll
        for (u32 m = 0; m < MOST; m++) {
            if (m >= tiles) break;
#pragma unroll
            for (u32 i = 0; i < 8; i++) {
                u32 t = 8 * (i / 4) + 2 * (lane % 4) + i % 2, r = 16 * (tile + WARPS * m) + lane / 4 + 8 * (i / 2 % 2);
                put_value(p, s.gates, t, r, sums[m][i / 4].d[i % 4]);
            }
        }
    }
};

// Products in f32 arithmetic, of any elements: a thread takes two tokens and four rows of every 128; A is staged.
struct Plain {
    float sums[2][4][4];
    u32 row_tiles, eights; // 128 rows each; of columns at a time

    __device__ __forceinline__ void begin(const GateParams& p) {
        row_tiles = (p.columns + 127) / 128, eights = row_tiles > 2 ? 1 : row_tiles > 1 ? 2 : 4;
#pragma unroll
        for (u32 i = 0; i < 32; i++) sums[i / 16][i / 4 % 4][i % 4] = 0.0f;
    }

    __device__ __forceinline__ void stage(const GateParams& p, float* a, u32 k0) {
        u32 width = 128 * row_tiles;
#pragma unroll 1
        for (u32 n = threadIdx.x; n < width * eights; n += THREADS) {
            u32 r = n % width, i = n / width;
            float v[8];
            eight_of(p.a, p.a_type, (size_t)min(r, p.columns - 1) * p.a_stride, k0 + 8 * i, p.a_stride, true, v);
#pragma unroll
            for (u32 j = 0; j < 8; j++) a[(8 * i + j) * width + r] = v[j];
        }
    }

    __device__ __forceinline__ void add(const GateParams& p, Shared<float>& s, u32 at, u32 k0) {
        u32 width = 128 * row_tiles, t = 2 * (threadIdx.x / 32), r = 4 * (threadIdx.x % 32);
#pragma unroll 1
        for (u32 k = 0; k < Shared<float>::SLAB && k0 + k < p.in_features; k += 8 * eights) {
            __syncthreads();
            stage(p, s.a, k0 + k);
            __syncthreads();
#pragma unroll 2
            for (u32 i = 0; i < 8 * eights; i++) {
                float v[2] = {s.x[at][t][k + i], s.x[at][t + 1][k + i]};
#pragma unroll
                for (u32 m = 0; m < 4; m++) {
                    if (m >= row_tiles) break;
                    float a[4];
                    four_of(&s.a[i * width + 128 * m + r], a);
#pragma unroll
                    for (u32 j = 0; j < 8; j++) sums[j / 4][m][j % 4] = fmaf(a[j % 4], v[j / 4], sums[j / 4][m][j % 4]);
                }
            }
        }
    }

    __device__ __forceinline__ void share(Shared<float>&) const {}

    __device__ __forceinline__ void finish(const GateParams& p, Shared<float>& s) {
        u32 t = 2 * (threadIdx.x / 32), r = 4 * (threadIdx.x % 32);
#pragma unroll
        for (u32 i = 0; i < 32; i++) put_value(p, s.gates, t + i / 16, 128 * (i / 4 % 4) + r + i % 4, sums[i / 16][i / 4 % 4][i % 4]);
    }
};

// One token's ids and weights from its scores by a warp: what route.cu's block writes. A lane has experts lane and lane + 32.
__device__ __forceinline__ void select(const GateParams& p, const float* scores, size_t n0) {
    u32 lane = threadIdx.x % 32;
    u64 keys[2], list[2] = {}; // of the selection: places lane and lane + 32
    float own[2];
#pragma unroll
    for (u32 j = 0; j < 2; j++) {
        u32 e = lane + 32 * j;
        own[j] = e < p.router_experts ? scores[e] : 0.0f;
        keys[j] = e < p.router_experts ? key_of(own[j], e) : 0;
    }
    u64 first = 0;
#pragma unroll 1
    for (u32 place = 0; place < p.top_k; place++) {
        u64 largest = warp_largest(max(keys[0], keys[1]));
        if (place == 0) first = largest;
#pragma unroll
        for (u32 j = 0; j < 2; j++) {
            if (lane + 32 * j == place) list[j] = largest;
            if (keys[j] == largest) keys[j] = 0;
        }
    }
    bool broken = first == NOT_FINITE;
    float best = score_of(first), total = 0.0f, shares[2], all[2];
#pragma unroll
    for (u32 j = 0; j < 2; j++) {
        shares[j] = list[j] == 0 ? 0.0f : expf(score_of(list[j]) - best);
        all[j] = warp_sum(lane + 32 * j < p.router_experts ? expf(own[j] - best) : 0.0f);
    }
    if (p.softmax_all) total = all[0] + all[1];
#pragma unroll 1
    for (u32 place = 0; !p.softmax_all && place < p.top_k; place++) {
        total += __shfl_sync(ALL_LANES, place < 32 ? shares[0] : shares[1], place % 32);
    }
    if (broken && lane == 0) atomicOr(p.status, SCORE_NOT_FINITE);
#pragma unroll
    for (u32 j = 0; j < 2; j++) {
        if (lane + 32 * j >= p.top_k) continue;
        bool none = broken || list[j] == 0;
        p.topk_ids[n0 + lane + 32 * j] = none ? -1 : (int)~(u32)list[j];
        p.topk_weights[n0 + lane + 32 * j] = none ? 0.0f : shares[j] / total;
    }
}

// Adds a token's routes to its gates, in their order; what counts for nothing is said in the status word.
__device__ __forceinline__ void open_gates(const GateParams& p, u32* gates, size_t n0) {
    u32 lane = threadIdx.x % 32;
#pragma unroll 1
    for (size_t n = n0; n < n0 + p.top_k; n++) {
        int id = p.topk_ids[n];
        if (id == -1) continue;
        float weight = p.topk_weights[n];
        Slot slot = {};
        u32 why = ID_OUT_OF_RANGE;
        if (id >= 0 && (u32)id < p.experts) {
            uint4 v = __ldg((const uint4*)p.slots + id);
            slot = Slot{v.x, v.y, __uint_as_float(v.z), v.w};
            why = slot.rank == 0                       ? STALE_SLOT
                  : slot.row + slot.rank > p.columns   ? RANK_TOO_LARGE
                  : !is_finite(weight)                 ? WEIGHT_NOT_FINITE
                                                       : 0;
        }
        if (why != 0) {
            if (lane == 0) atomicOr(p.status, why);
            continue;
        }
        // One lane has a row of an expert however often the token names it.
        for (u32 r = slot.row + lane; r < slot.row + slot.rank; r += 32) {
            float before = gates[r] == NOBODYS ? 0.0f : __uint_as_float(gates[r]);
            gates[r] = __float_as_uint(before + weight * slot.scaling);
        }
    }
}

template <class Z> __device__ __forceinline__ void write_rows(const GateParams& p, const u32* gates, u32 t0, u32 count) {
    u32 eights = (p.z_columns + 7) / 8;
#pragma unroll 1
    for (u32 n = threadIdx.x; n < count * eights; n += THREADS) {
        u32 t = n / eights, r = 8 * (n % eights);
        float v[8];
#pragma unroll
        for (u32 j = 0; j < 8; j++) v[j] = r + j < p.columns ? __uint_as_float(gates[t * gate_stride(p) + r + j]) : 0.0f;
        store_part<8>((Z*)p.z + (size_t)(t0 + t) * p.z_stride + r, v, p.z_columns - r, p.z_vector, false);
    }
}

// Goes over x once: SCORE: an expert a warp from e0 on; MULTIPLY and `multiply`: the rows of A.
template <bool SCORE, bool MULTIPLY, class Multiply, class E>
__device__ __forceinline__ void
go_over(const GateParams& p, Shared<E>& s, Multiply& products, u32 t0, u32 count, u32 e0, bool multiply, u32& at) {
    Slab<E> next;
    Scores scores;
    next.read(p, t0, count, 0);
#pragma unroll 1
    for (u32 k0 = 0; k0 < p.in_features; k0 += Shared<E>::SLAB) {
        next.put(s.x[at]); // read for the last time before the barrier behind us
        __syncthreads();
        u32 k1 = k0 + Shared<E>::SLAB;
        if (k1 < p.in_features) next.read(p, t0, count, k1);
        if (SCORE && p.router_experts > 0) {
            scores.add<E>(p, s.x[at], e0 + threadIdx.x / 32, k0);
            if (k1 % SUMMED == 0 || k1 >= p.in_features) scores.flush(p, s.scores, e0 + threadIdx.x / 32);
        }
        if (MULTIPLY && multiply) products.add(p, s, at, k0);
        at ^= 1;
    }
}

template <class Multiply, class E> __device__ __forceinline__ void gate(const GateParams& p) {
    __shared__ __align__(16) Shared<E> s;
    u32 t0 = TOKENS * blockIdx.x, live = live_tokens(p.live_tokens, p.tokens);
    if (t0 >= live) return;
    u32 count = min(live - t0, TOKENS), warp = threadIdx.x / 32;
    for (u32 i = threadIdx.x; i < TOKENS * p.router_experts; i += THREADS) {
        u32 e = i % p.router_experts;
        s.scores[i / p.router_experts][e] = p.router_bias ? __ldg(p.router_bias + e) : 0.0f;
    }
    Multiply products;
    if (sizeof(E) == 2) products.begin(p);
    u32 passes = (p.router_experts + WARPS - 1) / WARPS, at = 0;
    if constexpr (sizeof(E) == 2) {
#pragma unroll 1
        for (u32 pass = 0; pass < max(passes, 1); pass++) {
            go_over<true, true>(p, s, products, t0, count, WARPS * pass, pass + 1 >= passes && p.columns > 0, at);
        }
    } else {
        // There are no registers for both at once.
#pragma unroll 1
        for (u32 pass = 0; pass < passes; pass++) go_over<true, false>(p, s, products, t0, count, WARPS * pass, false, at);
        if (p.columns > 0) {
            products.begin(p);
            go_over<false, true>(p, s, products, t0, count, 0, true, at);
        }
    }
    __syncthreads();
    for (u32 i = threadIdx.x; i < TOKENS * gate_stride(p); i += THREADS) s.gates[i] = NOBODYS;
    products.share(s);
    __syncthreads();
#pragma unroll 1
    for (u32 t = warp; t < count; t += WARPS) {
        size_t n0 = (size_t)(t0 + t) * p.top_k;
        if (p.router_experts > 0 && p.top_k > 0) select(p, s.scores[t], n0);
        __syncwarp();
        open_gates(p, s.gates + t * gate_stride(p), n0);
    }
    __syncthreads();
    products.finish(p, s);
    __syncthreads();
    if constexpr (sizeof(E) == 2) {
        write_rows<E>(p, s.gates, t0, count);
    } else {
        if (p.x_type == TYPE_F32) write_rows<float>(p, s.gates, t0, count);
        else if (p.x_type == TYPE_F16) write_rows<f16>(p, s.gates, t0, count);
        else write_rows<bf16>(p, s.gates, t0, count);
    }
}

} // namespace gate

// Any elements, said by the params: f32 arithmetic.
extern "C" __global__ void __launch_bounds__(gate::THREADS, 2) fused_gate(const __grid_constant__ GateParams p) {
    gate::gate<gate::Plain, float>(p);
}

extern "C" __global__ void __launch_bounds__(gate::THREADS, 2) fused_gate_mma_f16(const __grid_constant__ GateParams p) {
    gate::gate<gate::Mma<f16>, f16>(p);
}

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
extern "C" __global__ void __launch_bounds__(gate::THREADS, 2) fused_gate_mma_bf16(const __grid_constant__ GateParams p) {
    gate::gate<gate::Mma<bf16>, bf16>(p);
}
#endif
