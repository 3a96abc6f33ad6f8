// Fused on tensor cores: base's tile of 128 tokens and 128 columns, whose sums run on over the experts that the tile's
// tokens use (sparse), or over all rows of z (dense).
//
//     for each 32 ks:                D[token][column] += x[token][k] weight[column][k]
//     for each step of 16 ranks:     D[token][column] += z[token][rank] B[rank][column]
//     y = D + bias, rounded once
//
// 1. The steps have a ring of three stages in the memory that held the tiles of x and the weight: B of two steps is on
//    its way, and h of one in registers, while a step is multiplied. One barrier a step.
// 2. B's rows are ranks: ldmatrix transposes. Part c of row r lies at part c ^ r % 8; part c of a token's two parts of z
//    at c ^ (token / 4 % 2): eight rows of one part lie in 32 different banks.
// 3. z = factor h, rounded to the element once. f16 has not h's range: there each token's 16 ranks are scaled by a power
//    of two, exactly, and the token's sums are kept at the scale of the step under way.
// 4. All columns of a block lie in one slice of a packed output.
#pragma once

#include "base_mma.cuh"
#include "extend.cuh"

namespace fused_mma {

using base_mma::TILE;
constexpr u32 THREADS = base_mma::THREADS, RANKS = 16, STAGES = 3;

struct Extension {
    uint4 b[STAGES][RANKS * TILE / 8];
    uint4 z[STAGES][TILE * RANKS / 8];
    float ratio[STAGES][TILE]; // f16: what a token's sums are multiplied by before the step
    extend::Used<TILE> used;
};

union Shared {
    base_mma::Shared base;
    Extension extension;
};

// Whether the element has the range of f32.
template <class X> constexpr bool HAS_RANGE = false;
template <> constexpr bool HAS_RANGE<bf16> = true;

__device__ __forceinline__ u32 b_place(u32 rank, u32 part) { return TILE / 8 * rank + (part ^ rank % 8); }
__device__ __forceinline__ u32 z_place(u32 token, u32 part) { return 2 * token + (part ^ token / 4 % 2); }

// threadIdx.x, read again: what is made of it is made again in every step and takes no register between them.
__device__ __forceinline__ u32 thread_again() {
    u32 thread;
    asm volatile("mov.u32 %0, %%tid.x;" : "=r"(thread));
    return thread;
}

// Rows row + k .. of B, the block's columns; zeros where they are not there.
template <class X>
__device__ __forceinline__ void copy_b(const FusedParams& p, uint4* b, u32 row, u32 k, u32 rank, u32 column,
                                       u32 thread) {
    u32 r = thread / (TILE / 8), part = thread % (TILE / 8);
    bool inside = k + r < rank && column + 8 * part < p.b_stride;
    const X* from = (const X*)p.b + (size_t)(row + k + r) * p.b_stride + column + 8 * part;
    copy16(b + b_place(r, part), inside ? (const void*)from : p.b, inside ? 16 : 0);
}

// The scale of a token's sums, by its exponent: 2^(UNSCALED - exponent) brings what has that exponent to 1024 .. 2048. The
// bounds keep scaled sums and their ratios far from f32's: beyond them lies what y of f16 cannot tell from 0 or infinity.
constexpr u32 UNSCALED = 137, LEAST = 97, MOST = 217;

__device__ __forceinline__ float power(u32 biased) { return __uint_as_float(biased << 23); }

// A token's eight ranks of z: two threads a token.
template <class X>
__device__ __forceinline__ void put_z(uint4* z, float* ratio, const Raw<float, 4> (&h)[2], float factor, u32& exponent,
                                      u32 thread) {
    u32 token = thread / 2, part = thread % 2;
    float v[8], scale = 1.0f;
#pragma unroll
    for (u32 i = 0; i < 8; i++) v[i] = factor * raw_at(h[i / 4], i % 4);
    if constexpr (!HAS_RANGE<X>) {
        float largest = 0.0f;
#pragma unroll
        for (u32 i = 0; i < 8; i++) largest = fmaxf(largest, fabsf(v[i]));
        largest = fmaxf(largest, __shfl_xor_sync(ALL_LANES, largest, 1));
        u32 next = largest == 0.0f ? exponent : min(max(__float_as_uint(largest) >> 23, LEAST), MOST);
        if (part == 0) ratio[token] = power(127 + exponent - next);
        exponent = next;
        scale = power(127 + UNSCALED - exponent);
    }
    uint4 words;
    words.x = narrow_pair<X>(v[0] * scale, v[1] * scale), words.y = narrow_pair<X>(v[2] * scale, v[3] * scale);
    words.z = narrow_pair<X>(v[4] * scale, v[5] * scale), words.w = narrow_pair<X>(v[6] * scale, v[7] * scale);
    z[z_place(token, part)] = words;
}

// The sums of two rows of products at another scale.
__device__ __forceinline__ void rescale(Product (&sums)[4], const float* ratio, u32 row) {
    float own[2] = {ratio[row], ratio[row + 8]};
#pragma unroll
    for (u32 i = 0; i < 16; i++) sums[i / 4].d[i % 4] *= own[i % 4 / 2];
}

__device__ __forceinline__ void load_b(u32 (&right)[4], const Extension& s, u32 stage, u32 column, u32 lane) {
    load_tiles_transposed(right, shared_address(s.b[stage] + b_place(lane % 16, column / 8 + lane / 16)));
}

__device__ __forceinline__ void load_z(Left& left, const Extension& s, u32 stage, u32 row, u32 lane) {
    load_tiles(left.a, shared_address(s.z[stage] + z_place(row + lane % 16, lane / 16)));
}

// A warp's products of a step. SCALED: the token's sums first by its ratio.
template <class X, bool SCALED>
__device__ __forceinline__ void multiply_step(Product (&sums)[4][4], const Extension& s, u32 stage, u32 thread) {
    u32 lane = thread % 32, row = 64 * (thread / 128), column = 32 * (thread / 32 % 4);
    u32 right[2][4];
#pragma unroll
    for (u32 n = 0; n < 2; n++) load_b(right[n], s, stage, column + 16 * n, lane);
#pragma unroll
    for (u32 m = 0; m < 4; m++) {
        Left left;
        load_z(left, s, stage, row + 16 * m, lane);
        if (SCALED) rescale(sums[m], s.ratio[stage], row + 16 * m + lane / 4);
#pragma unroll
        for (u32 n = 0; n < 4; n++) {
            multiply<X>(sums[m][n], left, Right{{right[n / 2][n % 2 * 2], right[n / 2][n % 2 * 2 + 1]}});
        }
    }
}

// The steps of a list of experts. In turn i step i's B and h are asked for, step i - 1's z is written, step i - 2 is
// multiplied.
template <class X>
__device__ __forceinline__ void
add_list(Product (&sums)[4][4], const FusedParams& p, const extend::Source& from, Extension& s, u32& exponent,
         bool busy) {
    u32 stage = 0;
    extend::Walk walk;
    extend::Choice choice;
    Raw<float, 4> h[2] = {};
    float factor = 0.0f;
    walk.open(s.used, 0);
#pragma unroll 1
    for (u32 i = 0; i < extend::steps_of(s.used) + 2; i++) {
        wait_groups<STAGES - 2>();
        __syncthreads();
        u32 thread = thread_again(), token = thread / 2, r = 8 * (thread % 2);
        u32 one = stage == STAGES - 1 ? 0 : stage + 1, two = stage == 0 ? STAGES - 1 : stage - 1;
        if (SM80) put_z<X>(s.z[two], s.ratio[two], h, factor, exponent, thread);
        copy_b<X>(p, s.b[stage], walk.row, walk.k, walk.rank, s.used.tile.column, thread);
        end_group();
        if (walk.k == 0) choice = extend::find(from, s.used, walk, token);
        extend::weigh(from, s.used, walk, choice, token, walk.k + r, h, factor);
        if (!SM80) put_z<X>(s.z[stage], s.ratio[stage], h, factor, exponent, thread); // registers are short, and copies wait as well
        walk.advance(s.used, RANKS);
        if (busy && i >= 2) multiply_step<X, !HAS_RANGE<X>>(sums, s, one, thread);
        stage = one;
    }
    wait_groups<0>();
    __syncthreads();
}

// All rows of z: tiles of both factors are copied as they are.
template <class X>
__device__ __forceinline__ void add_dense(Product (&sums)[4][4], const FusedParams& p, Extension& s, u32 t0, u32 live,
                                          u32 slice_column, bool busy) {
    u32 t = t0 + threadIdx.x / 2, r = 8 * (threadIdx.x % 2), stage = 0;
    const X* z = (const X*)p.z + (size_t)t * p.z_stride;
#pragma unroll 1
    for (u32 k = 0; k < p.z_rows + 2 * RANKS; k += RANKS) {
        wait_groups<STAGES - 2>();
        __syncthreads();
        u32 one = stage == STAGES - 1 ? 0 : stage + 1;
        copy_b<X>(p, s.b[stage], 0, k, p.z_rows, slice_column, threadIdx.x);
        uint4* to = s.z[stage] + z_place(threadIdx.x / 2, threadIdx.x % 2);
        bool inside = t < live && k + r < p.z_rows;
        if (inside && k + r + 8 > p.z_rows) {
            Raw<X, 8> part = load_each<8>(z + k + r, p.z_rows - k - r);
            *to = make_uint4(part.words[0], part.words[1], part.words[2], part.words[3]);
        } else {
            copy16(to, inside ? (const void*)(z + k + r) : p.z, inside ? 16 : 0);
        }
        end_group();
        if (busy && k >= 2 * RANKS) multiply_step<X, false>(sums, s, one, threadIdx.x);
        stage = one;
    }
    wait_groups<0>();
    __syncthreads();
}

} // namespace fused_mma

// Where a block's columns lie.
struct Columns {
    u32 slice, first, begin, end; // first: of the slice; begin .. end: the block's, cut off where the slice ends
};

// blockIdx.x, read again: what is made of it need not stay in a register over the base's loop.
__device__ __forceinline__ u32 block_again() {
    u32 block;
    asm volatile("mov.u32 %0, %%ctaid.x;" : "=r"(block));
    return block;
}

// Blocks of `width` columns, each slice's behind the last one's.
__device__ __forceinline__ Columns columns_of(const FusedParams& p, u32 block, u32 width) {
    Columns c{0, 0, 0, 0};
    for (;; c.slice++) {
        c.end = p.slice_ends[c.slice % 4];
        u32 blocks = (c.end - c.first + width - 1) / width;
        if (block < blocks || c.slice + 1 >= p.slices) break;
        block -= blocks, c.first = c.end;
    }
    c.begin = c.first + width * block;
    return c;
}

__device__ __forceinline__ extend::Source source_of(const FusedParams& p) {
    return extend::Source{p.plan, p.h, p.topk_weights, p.h_stride, p.output, p.h_vector};
}

namespace fused_mma {

template <class X, bool DENSE> __device__ __forceinline__ void fused(const FusedParams& p) {
    __shared__ Shared s;
    const BaseParams& base = p.base;
    Columns c = columns_of(p, blockIdx.x % base.column_blocks, TILE);
    u32 t0 = TILE * (blockIdx.x / base.column_blocks);
    u32 live = DENSE ? live_tokens(base.live_tokens, base.tokens) : plan_live_tokens(p.plan);
    if (t0 >= live) return;
    u32 warp = threadIdx.x / 32, lane = threadIdx.x % 32, row = 64 * (warp / 4), column = 32 * (warp % 4);
    u32 rows = min(live - t0, TILE);
    bool busy = row < rows && c.begin + column < c.end;
    base_mma::Share<X> x, w;
    x.begin((const X*)base.x, base.x_stride, t0, live, base.in_features);
    w.begin((const X*)base.weight, base.in_features, c.begin, c.end, base.in_features);
    Product sums[4][4] = {};
    base_mma::multiply_all<X>(sums, s.base, x, w, base, row, column, busy);
    c = columns_of(p, block_again() % base.column_blocks, TILE);
    t0 = TILE * (block_again() / base.column_blocks);
    if constexpr (DENSE) {
        add_dense<X>(sums, p, s.extension, t0, live, c.begin - c.first, busy);
    } else {
        extend::Source from = source_of(p);
        extend::open(from, s.extension.used, extend::Tile{t0, rows, c.begin - c.first, p.slices > 1 ? 1 + c.slice : 0});
        u32 exponent = UNSCALED;
        while (extend::next(from, s.extension.used, RANKS)) add_list<X>(sums, p, from, s.extension, exponent, busy);
        if constexpr (!HAS_RANGE<X>) {
            if (threadIdx.x % 2 == 0) s.extension.ratio[0][threadIdx.x / 2] = power(127 + exponent - UNSCALED);
            __syncthreads();
#pragma unroll
            for (u32 m = 0; m < 4; m++) rescale(sums[m], s.extension.ratio[0], row + 16 * m + lane / 4);
            __syncthreads();
        }
    }
    base_mma::round_tile<X>((u32*)&s, sums, base, c.begin, c.end, row, column, lane);
    __syncthreads();
    base_mma::store_tile<X>((const uint4*)&s, base, t0, c.begin, c.end, rows, base.y_vector && c.begin % 8 == 0);
}

} // namespace fused_mma

#define FUSED_MMA(name, X, DENSE)                                                                              \
    extern "C" __global__ void __launch_bounds__(fused_mma::THREADS, 2)                                        \
        name(const __grid_constant__ FusedParams p) {                                                          \
        fused_mma::fused<X, DENSE>(p);                                                                         \
    }
FUSED_MMA(fused_sparse_mma_f16, f16, false)
FUSED_MMA(fused_dense_mma_f16, f16, true)
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
FUSED_MMA(fused_sparse_mma_bf16, bf16, false)
FUSED_MMA(fused_dense_mma_bf16, bf16, true)
#endif
