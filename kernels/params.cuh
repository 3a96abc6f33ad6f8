// What a launch hands to a kernel. src/device/cuda/params.rs holds the same structs; a test compares names and
// offsets. Strides, widths and places are in elements or words, never in bytes.
#pragma once

typedef unsigned int u32;

// Sizes that the host's layout of a plan and the kernels share.
constexpr u32 TILE_ROUTES = 64;   // routes of one expert in a tile of the plan
constexpr u32 CHUNK_ROUTES = 512; // most routes in a chunk: whole tokens
constexpr u32 CHUNK_TOKENS = 64;  // most tokens in a chunk
constexpr u32 NONE = 0xffffffffu; // an entry of a plan that names nothing

// Bits of the status word (device/status.rs).
constexpr u32 ID_OUT_OF_RANGE = 1, STALE_SLOT = 2, SCORE_NOT_FINITE = 4, UNEQUAL_RANKS = 8, WEIGHT_NOT_FINITE = 16,
              RANK_TOO_LARGE = 32, STALE_PLAN = 64;

// Values of ExpandParams::output and ShrinkParams::output.
constexpr u32 SUM = 0, PER_ROUTE = 1, RANK_SUM = 2;

// One slot of a pool (adapter/slots.rs).
struct Slot {
    u32 row;
    u32 rank;
    float scaling;
    u32 added_at;
};

// A plan in device memory: one buffer of words in sections, and the pool that its ids name.
//
//     header [4]                   0: the pool's clock when the plan was made, 1: live tokens, 2: `stamp`
//     ids [routes]                 ids, NONE where nothing live is named
//     chunks [chunks][chunk_routes] routes of a chunk, stably sorted by expert; those without one (NONE) last
//     places [routes]              a route's place among its expert's in its chunk (many chunks only)
//     counts [chunks][experts]     routes of each expert in each chunk, then their exclusive sums over the chunks
//     sorted [routes]              live routes, stably sorted by expert
//     offsets [experts + 1]        where each expert's routes begin in sorted
//     tile_offsets [experts + 1]   tiles before each expert's; the last is their number
//     tiles [..][2]                expert, and the tile's first place in sorted
// The stamp names pool and sizes. Kernels that read a plan of another stamp (the memory was planned for other sizes, or
// never) do nothing and say STALE_PLAN.
struct PlanParams {
    u32* words;
    const u32* clock;       // one word: the pool's clock now
    const Slot* slots;      // [experts]
    u32* status;            // one word, only ever OR-ed into
    const u32* live_tokens; // one word, or null: all tokens are live
    const int* topk_ids;    // [tokens][top_k]; null but for the kernels of plan
    u32 tokens, top_k, routes, experts;
    u32 chunk_routes, chunks, stamp, max_rank; // adapters above max_rank are skipped: RANK_TOO_LARGE
    u32 at_ids, at_chunks, at_places, at_counts;
    u32 at_sorted, at_offsets, at_tile_offsets, at_tiles;
};

constexpr u32 ROUTE_TOKENS = 8; // of a block of route_many
constexpr u32 ROUTE_TOP_K = 64; // most of route_many

// Values of RouteParams::select and RouteParams::weighting (ops/route/rule.rs).
constexpr u32 SELECT_TOP_K = 0, SELECT_THRESHOLD = 1, SELECT_LEARNED = 2;
constexpr u32 SOFTMAX_SELECTED = 0, SOFTMAX_ALL = 1, SOFTMAX_ALL_RENORMALISED = 2, SOFTMAX_TWICE = 3,
              ABOVE_THRESHOLD = 4, SIGMOID = 5, UNIFORM = 6, SCORE_ITSELF = 7;

struct RouteParams {
    const void* x;          // [tokens][x_stride]
    const float* weight;    // [experts][in_features], then the row of a learned threshold
    const float* bias;      // one a row, or null
    const u32* offsets;     // [requests + 1] tokens, or null: every token may take every expert
    const u32* lists;       // [requests][(experts + 31) / 32] words of bits
    int* topk_ids;          // [tokens][top_k + shared]
    float* topk_weights;    // [tokens][top_k + shared]
    u32* status;
    const u32* live_tokens;
    u32 tokens, in_features, x_stride, experts;
    u32 top_k, shared, requests, select;
    u32 weighting, sums_all, standardised, absolute; // sums_all: the rule asks for the sum over all allowed experts
    float threshold;
    u32 x_vector, w_vector, unused; // *_vector: rows start at multiples of 16 bytes
};

struct ShrinkParams {
    PlanParams plan;
    const void* x;             // [tokens][x_stride]
    const void* a;             // [rank_capacity][a_stride], rows at multiples of 16 bytes, zeros behind in_features
    const float* topk_weights; // [tokens][top_k]; read by shrink_rank_sum alone
    const float* routes_h;     // [routes][max_rank]; read by shrink_rank_sum alone
    float* h;                  // [routes or tokens][h_stride]
    u32 in_features, x_stride, a_stride, h_stride;
    u32 rank_blocks, x_vector, output, unused;
};

constexpr u32 QUERY_RANKS = 1024; // the largest rank of a router adapter

struct AttendParams {
    PlanParams plan;
    const void* x;       // [tokens][x_stride]
    const float* a;      // the router's A: [router_rank][a_stride], rows at multiples of 16 bytes
    const float* k;      // [rank_capacity][router_rank]: a row of K for each row of the pool
    const float* h;      // [routes][h_stride]
    float* topk_weights; // [tokens][top_k]
    u32 in_features, x_stride, a_stride, h_stride;
    u32 router_rank, x_vector;
};

struct ExpandParams {
    PlanParams plan;
    const float* h;            // [routes or tokens][h_stride]
    const void* b;             // B transposed: [rank_capacity][b_stride], rows at multiples of 16 bytes
    const float* topk_weights; // [tokens][top_k]
    void* y;                   // [tokens or routes][y_stride]
    u32 out_features, b_stride, h_stride, y_stride;
    u32 column_blocks, h_vector, y_vector, output;
    u32 accumulate, unused[3];
};

struct BaseParams {
    const void* x;      // [tokens][x_stride]
    const void* weight; // [out_features][in_features]
    const void* bias;   // [out_features] or null
    void* y;            // [tokens][y_stride]
    const u32* live_tokens;
    u32 tokens, in_features, out_features, x_stride;
    u32 y_stride, column_blocks, x_vector, w_vector;
    u32 y_vector, unused[3];
};

constexpr u32 FEW_ROUTES = 256; // most routes of fused_few

struct FewParams {
    const Slot* slots;         // [experts], then, where packed, [slices][experts]: each slice's part of a slot
    u32* status;
    u32* counters;             // zeros before and after every launch
    const u32* live_tokens;    // one word, or null
    const int* topk_ids;       // [tokens][top_k]
    const float* topk_weights; // [tokens][top_k]
    const void* x;             // [tokens][x_stride]
    const void* weight;        // [out_features][in_features]
    const void* bias;          // [out_features] or null
    const void* a;             // [rank_capacity][a_stride], zeros behind in_features
    const void* b;             // B transposed: [rank_capacity][b_stride]
    float* h;                  // [tokens * top_k][h_stride]
    void* y;                   // [tokens][y_stride]
    u32 tokens, top_k, experts, max_rank;
    u32 in_features, out_features, x_stride, y_stride;
    u32 a_stride, b_stride, h_stride, rank_blocks; // blocks that share the ranks of a route
    u32 shrink_jobs, x_vector, w_vector, slices;
    u32 slice_ends[4]; // the column behind each slice
    u32 rows, unused;  // rows of the weight that a block takes: 16, or 32 on tensor cores
};

// The base product continued over the experts that each tile of tokens uses (sparse), or over all rows of z (dense).
struct FusedParams {
    BaseParams base;           // column_blocks: of all slices; live_tokens: dense alone
    PlanParams plan;           // sparse alone; slots: behind the experts' own, where packed, each slice's parts
    const float* h;            // [routes or tokens][h_stride]
    const float* topk_weights; // [tokens][top_k]
    const void* b;             // B transposed: [rank_capacity][b_stride], rows at multiples of 16 bytes
    const void* z;             // [tokens][z_stride], x's element
    u32 b_stride, h_stride, z_stride, z_rows;
    u32 output, h_vector, z_vector, dense;
    u32 slices, slice_ends[4]; // the column behind each slice
    u32 unused[3];
};

// Values of GroupedParams::rows.
constexpr u32 PLAIN = 0, GATED = 1, COMBINED = 2;

struct GroupedParams {
    PlanParams plan;           // of the base experts
    const Slot* loras;         // [slots], then, where packed, [slices][slots]: each slice's part of a slot
    const u32* lora_plan;      // the plan of the LoRAs
    const void* x;             // [tokens or routes][x_stride]
    const void* weight;        // [experts][out_features][in_features]
    const float* h;            // [routes][h_stride]
    const void* b;             // B transposed: [rank_capacity][b_stride]
    const float* topk_weights; // [tokens][top_k]
    float* scratch;            // combined: [routes][out_features]
    u32* counters;             // combined: [token_groups][column_blocks], zeros before and after every launch
    void* y;                   // [routes][y_stride], combined: [tokens][y_stride]
    u32 slots, slices, lora_rank, in_features; // adapters above lora_rank are skipped: RANK_TOO_LARGE
    u32 out_features, width, x_stride, h_stride;
    u32 b_stride, y_stride, column_blocks, rows;
    u32 x_per_route, group_tokens, x_vector, w_vector; // group_tokens: how many share a counter
    u32 h_vector, y_vector, tiles;                     // tiles: of the grid
    u32 lora_ids, lora_stamp, unused;                  // lora_ids: where they lie in their plan
};

constexpr u32 GATE_ROWS = 512, GATE_EXPERTS = 64; // most rows of A, and scores of a router, of fused_gate

// Values of GateParams::x_type and GateParams::a_type.
constexpr u32 TYPE_F32 = 0, TYPE_F16 = 1, TYPE_BF16 = 2;

struct GateParams {
    const Slot* slots;        // [experts]
    u32* status;
    const u32* live_tokens;   // one word, or null
    int* topk_ids;            // [tokens][top_k]
    float* topk_weights;      // [tokens][top_k]
    const void* x;            // [tokens][x_stride]
    const void* a;            // [rank_capacity][a_stride], rows at multiples of 16 bytes, zeros behind in_features
    const float* router;      // [router_experts][in_features]
    const float* router_bias; // [router_experts] or null
    void* z;                  // [tokens][z_stride]; may lie in x's rows behind in_features
    u32 tokens, top_k, experts, router_experts; // router_experts 0: ids and weights are read
    u32 in_features, columns, x_stride, a_stride; // columns: rows of A that are multiplied
    u32 z_stride, z_columns, x_vector, w_vector;  // z_columns: columns that are written, zeros behind `columns`
    u32 z_vector, softmax_all, x_type, a_type;
};

struct ConcatParams {
    const void* weight; // [out_features][in_features]
    const void* b;      // B transposed: [rank_capacity][b_stride]
    void* concat;       // [out_features][stride]
    u32 in_features, out_features, columns, b_stride;
    u32 stride, bytes, weight_blocks, blocks; // bytes of an element; blocks for 32 rows, the first of the weight
};

struct CeilingParams {
    const float* memory; // ceiling_read: [steps][16][threads of all blocks]
    float* sums;         // [threads of all blocks]
    u32 steps, unused;
    float a, b; // factor and addend, or what A and B are full of
};
