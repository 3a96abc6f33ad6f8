// Base: y = x weight^T + bias; w is the weight. See src/ops/base.rs.

fn store(t: u32, o: u32, v: vec2<f32>) {
    let count = min(params.out_features - o, 2u);
    var biased = v;
    biased.x += bias_of(o);
    if (count == 2u) { biased.y += bias_of(o + 1u); }
    y_put_pair(t * params.y_stride + o, biased, count);
}

fn store_quad(t: u32, o: u32, v: vec4<f32>) {
    if (o + 4u <= params.out_features) {
        y_put_quad(t * params.y_stride + o, v + vec4(bias_of(o), bias_of(o + 1u), bias_of(o + 2u), bias_of(o + 3u)));
        return;
    }
    if (o < params.out_features) { store(t, o, v.xy); }
    if (o + 2u < params.out_features) { store(t, o + 2u, v.zw); }
}

// One workgroup per token and eight columns of y.
@compute @workgroup_size(64)
fn base_few(
    @builtin(workgroup_id) id: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    own: Invocation,
) {
    let lane = own.lane;
    let group = group_index(id, groups);
    if (group >= params.groups) { return; }
    let t = group / params.column_blocks;
    let o0 = 8u * (group % params.column_blocks);
    let count = min(params.out_features - o0, 8u);
    dot8(own, t * params.x_stride, o0 * params.in_features, params.in_features, count, params.in_features);
    if (2u * lane < count) {
        store(t, o0 + 2u * lane, vec2(dot8_of(2u * lane), dot8_of(2u * lane + 1u)));
    }
}

// One workgroup per 64 tokens and TILE_N columns of y.
@compute @workgroup_size(THREADS)
fn base_many(
    @builtin(workgroup_id) id: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let group = group_index(id, groups);
    if (group >= params.groups) { return; }
    let t0 = TILE_M * (group / params.column_blocks);
    let o0 = TILE_N * (group % params.column_blocks);
    let rows = min(params.tokens - t0, TILE_M);
    for (var q = thread; q < QUADS_M; q += THREADS) {
        x_rows[q] = (t0 + min(4u * q + vec4(0u, 1u, 2u, 3u), vec4(rows - 1u))) * params.x_stride;
    }
    let k = params.in_features;
    tile_product(thread, rows, o0 * k, k, params.out_features - o0, k);
    let m0 = own_row(thread);
    let o = o0 + own_column(thread);
    for (var m = m0; m < min(m0 + 8u, rows); m++) {
        store_quad(t0 + m, o, sums[m - m0]);
        store_quad(t0 + m, o + 4u, wide_sums[m - m0]);
    }
}
