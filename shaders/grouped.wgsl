// Grouped: rows of routes of one base expert, row_n = w[e(n)] x_m + scaling B h_n; w is the experts' weights. See
// src/ops/grouped.rs.
//
//     sums = x w^T                         a tile of the plan times TILE_N rows of its expert's weight
//     finish: for each own row, its LoRA's ranks:  sums[row] += (scaling h) b; not where the rows are to be combined
//     y_n = sums, or silu(gate) * up
//
// Where GATED, every eight rows of w in a tile are four of gate and the same four of up: a thread holds both. A row's sum
// is its own, whatever the other rows.

// Columns of y, or of gate and of up, that a workgroup takes.
const BLOCK: u32 = TILE_N / (1u + GATED);

// The n-th row of w in the tile; w_count counts the rows of both halves.
fn w_row(w0: u32, w_stride: u32, w_count: u32, n: u32) -> u32 {
    if (GATED == 0u) { return w0 + min(n, w_count - 1u) * w_stride; }
    let column = min(n / 8u * 4u + n % 4u, w_count / 2u - 1u);
    return w0 + (n / 4u % 2u * params.width + column) * w_stride;
}

fn silu(v: f32) -> f32 {
    // No exponential overflows.
    let small = exp(-abs(v));
    return v * select(small, 1.0, v >= 0.0) / (1.0 + small);
}

fn store_quad(n: u32, o: u32, v: vec4<f32>) {
    let at = n * params.y_stride + o;
    if (o < params.width) { y_put_pair(at, v.xy, min(params.width - o, 2u)); }
    if (o + 2u < params.width) { y_put_pair(at + 2u, v.zw, min(params.width - o - 2u, 2u)); }
}

fn finish_sums(n: u32, o: u32, a: vec4<f32>, b: vec4<f32>) {
    if (GATED == 1u) {
        store_quad(n, o, vec4(silu(a.x), silu(a.y), silu(a.z), silu(a.w)) * b);
    } else {
        store_quad(n, o, a);
        store_quad(n, o + 4u, b);
    }
}

// The rows of one tile of one expert's routes, in BLOCK columns; WIDE is 1.
fn tile_rows(group: u32, thread: u32) {
    if (group >= params.groups) { return; }
    let tile = group / params.column_blocks;
    let o0 = BLOCK * (group % params.column_blocks);
    if (tile >= plan[params.at_tile_offsets + params.experts]) { return; }
    let e = plan[params.at_tiles + 2u * tile];
    // Another dispatch's, where the weight is bound in parts.
    if (e < params.first_expert || e >= params.end_expert) { return; }
    let first = plan[params.at_tiles + 2u * tile + 1u];
    let routes = min(plan[params.at_offsets + e + 1u] - first, TILE_M);
    for (var q = thread; q < QUADS_M; q += THREADS) {
        let m = params.at_sorted + first + min(4u * q + vec4(0u, 1u, 2u, 3u), vec4(routes - 1u));
        let n = vec4(plan[m.x], plan[m.y], plan[m.z], plan[m.w]);
        x_rows[q] = n / params.routes_a_row * params.x_stride;
    }
    let k = params.in_features;
    let count = (1u + GATED) * (params.width - o0);
    tile_product(thread, routes, (e * params.out_features + o0) * k, k, count, k);
    let o = o0 + own_column(thread) / (1u + GATED);
    if (o >= params.width) { return; }
    let m0 = own_row(thread);
    for (var m = m0; m < min(m0 + 8u, routes); m++) {
        finish(plan[params.at_sorted + first + m], o, sums[m - m0], wide_sums[m - m0]);
    }
}

@compute @workgroup_size(THREADS)
fn grouped(
    @builtin(workgroup_id) id: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    tile_rows(group_index(id, groups), thread);
}
