// Grouped on lanes: one workgroup per 16 of a tile's routes and 8 rows of w a lane (4 of gate and the same 4 of up where
// GATED).

// The rows of 16 of a tile's routes; `add_loras` is nothing where they are to be combined.
fn lanes_rows(group: u32, own: Invocation) {
    if (group >= params.groups) { return; }
    let part = group / params.column_blocks;
    let tile = part / (TILE_M / 16u);
    if (tile >= plan[params.at_tile_offsets + params.experts]) { return; }
    let e = plan[params.at_tiles + 2u * tile];
    // Another dispatch's, where the weight is bound in parts.
    if (e < params.first_expert || e >= params.end_expert) { return; }
    let begin = plan[params.at_tiles + 2u * tile + 1u];
    let end = min(plan[params.at_offsets + e + 1u], begin + TILE_M);
    let first = begin + 16u * (part % (TILE_M / 16u));
    if (first >= end) { return; }
    let routes = min(end - first, 16u);
    let i = params.at_sorted + first + min(shared_place(own), vec4(routes - 1u));
    let n = vec4(plan[i.x], plan[i.y], plan[i.z], plan[i.w]);
    let x = n / params.routes_a_row * params.x_stride;
    let o0 = 8u / (1u + GATED) * OWNERS * (group % params.column_blocks);
    let k = params.in_features;
    let count = (1u + GATED) * (params.width - o0);
    let w0 = (e * params.out_features + o0) * k;
    let c = 8u * own.lane;
    let low = vec4(w_row(w0, k, count, c), w_row(w0, k, count, c + 1u), w_row(w0, k, count, c + 2u), w_row(w0, k, count, c + 3u));
    let high = vec4(w_row(w0, k, count, c + 4u), w_row(w0, k, count, c + 5u), w_row(w0, k, count, c + 6u), w_row(w0, k, count, c + 7u));
    var s = lanes_product(x, low, high, k);
    let o = o0 + c / (1u + GATED);
    add_loras(&s, first, routes, group % params.column_blocks, n, o, own);
    keep(s);
    for (var m = 0u; m < routes; m++) {
        finish_sums(plan[params.at_sorted + first + m], o, lane_low[m], lane_high[m]);
    }
}

@compute @workgroup_size(OWNERS)
fn grouped_lanes(
    @builtin(workgroup_id) id: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    own: Invocation,
) {
    lanes_rows(group_index(id, groups), own);
}
