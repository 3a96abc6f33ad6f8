// Shrink: h_n = A x_t for every live route n of token t; w is A, one row per rank. See src/ops/shrink.rs.

// One workgroup per route and eight ranks.
@compute @workgroup_size(64)
fn shrink_few(
    @builtin(workgroup_id) id: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    own: Invocation,
) {
    let lane = own.lane;
    let group = group_index(id, groups);
    if (group >= params.groups) { return; }
    let n = group / params.rank_blocks;
    let r0 = 8u * (group % params.rank_blocks);
    let e = plan[params.at_ids + n];
    if (e == NONE) { return; }
    let slot = slots[e];
    if (!holds(slot, params.epoch)) {
        if (lane == 0u) { atomicOr(&status, STALE_SLOT); }
        return;
    }
    if (r0 >= slot.rank) { return; }
    let count = slot.rank - r0;
    let w0 = (slot.row + r0) * params.a_stride;
    dot8(own, n / params.top_k * params.x_stride, w0, params.a_stride, count, params.in_features);
    if (lane < min(count, 8u)) {
        h_put(n * params.h_stride + r0 + lane, dot8_of(lane));
    }
}

fn store_quad(at: u32, n: u32, count: u32, v: vec4<f32>) {
    if (n < count) { h_put(at + n, v.x); }
    if (n + 1u < count) { h_put(at + n + 1u, v.y); }
    if (n + 2u < count) { h_put(at + n + 2u, v.z); }
    if (n + 3u < count) { h_put(at + n + 3u, v.w); }
}

// One workgroup per tile of one expert's routes and TILE_N ranks.
@compute @workgroup_size(THREADS)
fn shrink_many(
    @builtin(workgroup_id) id: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let group = group_index(id, groups);
    if (group >= params.groups) { return; }
    let tile = group / params.rank_blocks;
    let r0 = TILE_N * (group % params.rank_blocks);
    if (tile >= plan[params.at_tile_offsets + params.experts]) { return; }
    let e = plan[params.at_tiles + 2u * tile];
    let first = plan[params.at_tiles + 2u * tile + 1u];
    let routes = min(plan[params.at_offsets + e + 1u] - first, TILE_M);
    let slot = slots[e];
    if (!holds(slot, params.epoch)) {
        if (thread == 0u) { atomicOr(&status, STALE_SLOT); }
        return;
    }
    if (r0 >= slot.rank) { return; }
    let count = slot.rank - r0;
    for (var q = thread; q < QUADS_M; q += THREADS) {
        let m = first + min(4u * q + vec4(0u, 1u, 2u, 3u), vec4(routes - 1u));
        let at = params.at_sorted;
        let n = vec4(plan[at + m.x], plan[at + m.y], plan[at + m.z], plan[at + m.w]);
        x_rows[q] = n / params.top_k * params.x_stride;
    }
    tile_product(thread, routes, (slot.row + r0) * params.a_stride, params.a_stride, count, params.in_features);
    let m0 = own_row(thread);
    let n0 = own_column(thread);
    for (var m = m0; m < min(m0 + 8u, routes); m++) {
        let at = plan[params.at_sorted + first + m] * params.h_stride + r0;
        store_quad(at, n0, count, sums[m - m0]);
        if (WIDE == 1u) { store_quad(at, n0 + 4u, count, wide_sums[m - m0]); }
    }
}
