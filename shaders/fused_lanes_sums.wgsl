// Fused, the sparse form on lanes, y of f32: the base product of each of a workgroup's chunks, then the experts onto y of all of
// them, so that B's rows serve many routes; see lanes_routes.wgsl and lanes_put.wgsl.

fn slot_at(e: u32) -> Slot { return b_slot(e); }

fn h_row(n: u32) -> u32 {
    if (RANK_SUM == 1u) { return n / params.top_k * params.h_stride; }
    return n * params.h_stride;
}

fn put_quad(t: u32, o: u32, v: vec4<f32>) {
    if (o >= params.out_features) { return; }
    let bias = vec4(bias_of(o), bias_of(o + 1u), bias_of(o + 2u), bias_of(o + 3u));
    y_put_quad(t * params.y_stride + o, v + bias);
}

// `rows` rows from the t0-th on times the lane's eight columns.
fn base_rows(t0: u32, rows: u32, o: u32, own: Invocation) {
    let k = params.in_features;
    // Rows and columns that are not there repeat the last one; nobody reads their sums.
    let x = (t0 + min(shared_place(own), vec4(rows - 1u))) * params.x_stride;
    let last = vec4(params.out_features - 1u);
    let w = min(o + vec4(0u, 1u, 2u, 3u), last) * k;
    put_rows(t0, rows, o, lanes_product(x, w, min(o + vec4(4u, 5u, 6u, 7u), last) * k, k));
}

@compute @workgroup_size(OWNERS)
fn fused_lanes_sums(
    @builtin(workgroup_id) id: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    own: Invocation,
) {
    let group = group_index(id, groups);
    if (group >= params.groups) { return; }
    let share = share_of(group);
    let o = 8u * (OWNERS * (group % params.column_blocks) + own.lane);
    let end = min(params.tokens, (share.chunk + CHUNKS) * params.chunk_tokens);
    for (var t0 = share.chunk * params.chunk_tokens; t0 < end; t0 += params.chunk_tokens) {
        base_rows(t0, min(end - t0, params.chunk_tokens), o, own);
    }
    if (params.routes == 0u) { return; }
    if (group % params.column_blocks == 0u) { tell(share, own); }
    add_experts(share, o, own);
}
