// The dense form's first product: z = gate * (x A_all^T) for 64 tokens and TILE_N rows of the pool; w is A. See
// src/ops/fused.rs.
//
//     for every token of the tile:  route (or read) its experts and weights into `chosen`
//     sums = x A^T
//     z = sums times the gate of the row's expert where the token chose it, 0 elsewhere
//
// Every block of rows routes its tokens for itself: the first one writes ids and weights.

struct Choice {
    expert: u32, // NONE where it counts for nothing
    factor: f32,
}

var<workgroup> chosen: array<Choice, TILE_M * TOP_K + 1u>; // WGSL has no empty arrays
// What the id and weight of a route mean.
fn choice_of(id: i32, weight: f32) -> Choice {
    if (id == -1) { return Choice(NONE, 0.0); }
    if (id < 0 || u32(id) >= params.experts) {
        atomicOr(&status, ID_OUT_OF_RANGE);
        return Choice(NONE, 0.0);
    }
    let slot = slots[u32(id)];
    if (!holds(slot, params.epoch)) {
        atomicOr(&status, STALE_SLOT);
        return Choice(NONE, 0.0);
    }
    if (!is_finite(weight)) {
        atomicOr(&status, WEIGHT_NOT_FINITE);
        return Choice(NONE, 0.0);
    }
    return Choice(u32(id), weight * slot.scaling);
}

// z of the tile's row m and the pool's row r.
fn gated(m: u32, r: u32, v: f32) -> f32 {
    var gate = 0.0;
    var any = false;
    for (var j = 0u; j < TOP_K; j++) {
        let choice = chosen[m * TOP_K + j];
        if (choice.expert == NONE) { continue; }
        let slot = slots[choice.expert];
        if (r >= slot.row && r < slot.row + slot.rank) {
            gate += choice.factor;
            any = true;
        }
    }
    // Not a product with 0: v may be infinite.
    if (any) { return gate * v; }
    return 0.0;
}

fn put_quad(t: u32, m: u32, r: u32, v: vec4<f32>) {
    let at = t * params.h_stride + r;
    if (r < params.used_rows) {
        let count = min(params.used_rows - r, 2u);
        z_put_pair(at, vec2(gated(m, r, v.x), gated(m, r + 1u, v.y)), count);
    }
    if (r + 2u < params.used_rows) {
        let count = min(params.used_rows - r - 2u, 2u);
        z_put_pair(at + 2u, vec2(gated(m, r + 2u, v.z), gated(m, r + 3u, v.w)), count);
    }
}

@compute @workgroup_size(THREADS)
fn fused_gate(
    @builtin(workgroup_id) id: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    own: Invocation,
) {
    let thread = own.lane;
    let group = group_index(id, groups);
    if (group >= params.groups) { return; }
    let t0 = TILE_M * (group / params.row_blocks);
    let r0 = TILE_N * (group % params.row_blocks);
    let rows = min(params.tokens - t0, TILE_M);
    choose(own, t0, rows, r0 == 0u);
    if (r0 >= params.used_rows) { return; } // the routing was all
    for (var q = thread; q < QUADS_M; q += THREADS) {
        x_rows[q] = (t0 + min(4u * q + vec4(0u, 1u, 2u, 3u), vec4(rows - 1u))) * params.x_stride;
    }
    tile_product(thread, rows, r0 * params.a_stride, params.a_stride, params.used_rows - r0, params.in_features);
    let m0 = own_row(thread);
    let r = r0 + own_column(thread);
    for (var m = m0; m < min(m0 + 8u, rows); m++) {
        put_quad(t0 + m, m, r, sums[m - m0]);
        put_quad(t0 + m, m, r + 4u, wide_sums[m - m0]);
    }
}
