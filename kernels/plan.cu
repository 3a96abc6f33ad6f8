// Plan: a stable counting sort of the live routes by expert, without atomics on values; see src/ops/plan.rs.
//
//     plan_one      everything in one launch, where all routes fit one chunk
//
//     plan_chunks   one block a chunk of whole tokens: refuse ids that name nothing, sort the chunk by
//                   (expert, route), count the chunk's routes of each expert
//     plan_scan     one block: prefix sums over the chunks of each expert, then over the experts
//     plan_place    one block a chunk: every route to its place, every tile of an expert to the tile list
//
// A chunk is sorted by keys (expert, index in the chunk), all different: sorting them is stable.

#include "common.cuh"

constexpr u32 INDEX_BITS = 9; // of a chunk's 512 routes
constexpr u32 NOBODY = 0x10000; // sorts behind every expert: at most 65,536
constexpr u32 THREADS = 256;

// The id where it names a slot that this plan may use, NONE otherwise.
__device__ u32 live_id(const PlanParams& p, u32 clock, int id) {
    if (id == -1) return NONE;
    if (id < 0 || (u32)id >= p.experts) {
        atomicOr(p.status, ID_OUT_OF_RANGE);
        return NONE;
    }
    u32 why = refusal(p, slot_at(p, id), clock);
    if (why == 0) return id;
    atomicOr(p.status, why);
    return NONE;
}

// Sorts the first `count` of 512 keys, ascending: a bitonic network. Strides up to 32 stay within a warp's 64 keys.
__device__ void sort(u32* keys, u32 count) {
    u32 wide = 0; // whether the last stride left the warp
    for (u32 size = 2; size < 2 * count; size *= 2) {
        for (u32 stride = size / 2; stride > 0; stride /= 2) {
            if (stride > 32 || wide) __syncthreads();
            else __syncwarp();
            wide = stride > 32;
            u32 low = 2 * threadIdx.x - (threadIdx.x & (stride - 1)), high = low + stride;
            u32 a = keys[low], b = keys[high];
            bool swap = (a > b) == ((low & size) == 0);
            if (swap) keys[low] = b, keys[high] = a;
        }
    }
    __syncthreads();
}

// The first place whose expert is at least e.
__device__ u32 first_of(const u32* keys, u32 count, u32 e) {
    u32 first = 0, end = count;
    while (first < end) {
        u32 middle = (first + end) / 2;
        if (keys[middle] >> INDEX_BITS < e) first = middle + 1;
        else end = middle;
    }
    return first;
}

// Keys of a chunk's routes into shared memory, sorted; ids and the chunk's section into the plan. Returns the number
// of its routes.
__device__ u32 sort_chunk(const PlanParams& p, u32 chunk, u32* keys) {
    u32 clock = *p.clock, tokens = live_tokens(p.live_tokens, p.tokens);
    if (chunk == 0 && threadIdx.x == 0) p.words[0] = clock, p.words[1] = tokens, p.words[2] = p.stamp;
    u32 begin = chunk * p.chunk_routes, count = min(p.chunk_routes, p.routes - begin);
    for (u32 i = threadIdx.x; i < CHUNK_ROUTES; i += THREADS) {
        u32 key = NONE;
        if (i < count) {
            u32 n = begin + i, e = n < tokens * p.top_k ? live_id(p, clock, p.topk_ids[n]) : NONE;
            p.words[p.at_ids + n] = e;
            key = min(e, NOBODY) << INDEX_BITS | i;
        }
        keys[i] = key;
    }
    __syncthreads();
    sort(keys, count);
    for (u32 i = threadIdx.x; i < p.chunk_routes; i += THREADS) {
        p.words[p.at_chunks + begin + i] = i < count ? begin + keys[i] % CHUNK_ROUTES : NONE;
    }
    return count;
}

// Sum of v over the threads before this one; `total` becomes that over all. Warps' sums go through `sums`, which no thread
// still reads from a scan before.
template <u32 WARPS> __device__ u32 scan(u32 v, u32* sums, u32& total) {
    u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32, upto = v;
#pragma unroll
    for (u32 step = 1; step < 32; step *= 2) {
        u32 other = __shfl_up_sync(ALL_LANES, upto, step);
        if (lane >= step) upto += other;
    }
    if (lane == 31) sums[warp] = upto;
    __syncthreads();
    u32 before = 0;
    total = 0;
#pragma unroll 8
    for (u32 w = 0; w < WARPS; w++) {
        if (w < warp) before += sums[w];
        total += sums[w];
    }
    return before + upto - v;
}

__device__ void put_tile(const PlanParams& p, u32 tile, u32 e, u32 place) {
    u32* entry = p.words + p.at_tiles + 2 * tile;
    entry[0] = e, entry[1] = place;
}

extern "C" __global__ void __launch_bounds__(THREADS) plan_one(const __grid_constant__ PlanParams p) {
    __shared__ u32 keys[CHUNK_ROUTES], tiles[CHUNK_ROUTES + 1], sums[THREADS / 32];
    u32 count = sort_chunk(p, 0, keys), live = first_of(keys, count, NOBODY);
    // Two neighbouring places a thread: does a tile begin there?
    u32 begins[2], total;
    for (u32 j = 0; j < 2; j++) {
        u32 i = 2 * threadIdx.x + j;
        begins[j] = i < live && (i - first_of(keys, count, keys[i] >> INDEX_BITS)) % TILE_ROUTES == 0;
    }
    u32 tile = scan<THREADS / 32>(begins[0] + begins[1], sums, total);
    for (u32 j = 0; j < 2; j++) {
        u32 i = 2 * threadIdx.x + j;
        tiles[i] = tile;
        if (i < live) p.words[p.at_sorted + i] = keys[i] % CHUNK_ROUTES;
        if (begins[j]) put_tile(p, tile, keys[i] >> INDEX_BITS, i);
        tile += begins[j];
    }
    if (threadIdx.x == 0) tiles[CHUNK_ROUTES] = total;
    __syncthreads();
    for (u32 e = threadIdx.x; e <= p.experts; e += THREADS) {
        u32 first = first_of(keys, live, e);
        p.words[p.at_offsets + e] = first;
        p.words[p.at_tile_offsets + e] = tiles[first];
    }
}

extern "C" __global__ void __launch_bounds__(THREADS) plan_chunks(const __grid_constant__ PlanParams p) {
    __shared__ u32 keys[CHUNK_ROUTES];
    u32 chunk = blockIdx.x, count = sort_chunk(p, chunk, keys);
    u32* counts = p.words + p.at_counts + (size_t)chunk * p.experts;
    for (u32 e = threadIdx.x; e < p.experts; e += THREADS) counts[e] = 0;
    __syncthreads();
    for (u32 i = threadIdx.x; i < count; i += THREADS) {
        u32 e = keys[i] >> INDEX_BITS, place = i - first_of(keys, count, e);
        p.words[p.at_places + chunk * p.chunk_routes + keys[i] % CHUNK_ROUTES] = place;
        bool last = i + 1 == count || keys[i + 1] >> INDEX_BITS != e;
        if (e != NOBODY && last) counts[e] = place + 1;
    }
}

constexpr u32 SCAN_THREADS = 1024;

// Up to four counts become the sums before them; the loads overlap. Returns the sum behind them.
__device__ u32 exclude(u32* counts, u32 step, u32 left, u32 before) {
    u32 here[4];
#pragma unroll
    for (u32 j = 0; j < 4; j++) here[j] = j < left ? counts[(size_t)j * step] : 0;
#pragma unroll
    for (u32 j = 0; j < 4; j++) {
        if (j < left) counts[(size_t)j * step] = before;
        before += here[j];
    }
    return before;
}

// 1,024 threads are `parts` ranges of chunks by `width` experts: neighbours read neighbouring counts.
extern "C" __global__ void __launch_bounds__(SCAN_THREADS, 1) plan_scan(const __grid_constant__ PlanParams p) {
    __shared__ u32 part_sums[SCAN_THREADS], sums[2][SCAN_THREADS / 32];
    u32 width = 32;
    while (width < min(p.experts, SCAN_THREADS)) width *= 2;
    u32 parts = SCAN_THREADS / width, part = threadIdx.x / width, column = threadIdx.x % width;
    u32 share = (p.chunks + parts - 1) / parts;
    u32 first = min(part * share, p.chunks), end = min(first + share, p.chunks);
    u32 routes = 0, tiles = 0; // of the experts before
    for (u32 e0 = 0; e0 < p.experts; e0 += width) {
        u32 e = e0 + column;
        bool inside = e < p.experts;
        u32* counts = p.words + p.at_counts + e;
        u32 own = 0;
        if (inside) {
#pragma unroll 4
            for (u32 c = first; c < end; c++) own += counts[(size_t)c * p.experts];
        }
        part_sums[threadIdx.x] = own;
        __syncthreads();
        u32 before = 0, all = 0;
        for (u32 q = 0; q < parts; q++) {
            u32 sum = part_sums[q * width + column];
            if (q < part) before += sum;
            all += sum;
        }
        if (inside) {
            for (u32 c = first; c < end; c += 4) {
                before = exclude(counts + (size_t)c * p.experts, p.experts, end - c, before);
            }
        }
        bool speaks = part == 0 && inside;
        u32 route_sum, tile_sum;
        u32 own_routes = speaks ? all : 0, own_tiles = (own_routes + TILE_ROUTES - 1) / TILE_ROUTES;
        u32 route = routes + scan<SCAN_THREADS / 32>(own_routes, sums[0], route_sum);
        u32 tile = tiles + scan<SCAN_THREADS / 32>(own_tiles, sums[1], tile_sum);
        if (speaks) p.words[p.at_offsets + e] = route, p.words[p.at_tile_offsets + e] = tile;
        routes += route_sum, tiles += tile_sum;
    }
    if (threadIdx.x == 0) {
        p.words[p.at_offsets + p.experts] = routes;
        p.words[p.at_tile_offsets + p.experts] = tiles;
    }
}

extern "C" __global__ void __launch_bounds__(THREADS) plan_place(const __grid_constant__ PlanParams p) {
    u32 chunk = blockIdx.x;
    for (u32 i = threadIdx.x; i < p.chunk_routes; i += THREADS) {
        u32 n = chunk * p.chunk_routes + i;
        if (n >= p.routes) return;
        u32 e = p.words[p.at_ids + n];
        if (e == NONE) continue;
        u32 place = p.words[p.at_counts + (size_t)chunk * p.experts + e] + p.words[p.at_places + n];
        u32 begin = p.words[p.at_offsets + e];
        p.words[p.at_sorted + begin + place] = n;
        if (place % TILE_ROUTES == 0) {
            put_tile(p, p.words[p.at_tile_offsets + e] + place / TILE_ROUTES, e, begin + place);
        }
    }
}
