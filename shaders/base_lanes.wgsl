// Base, many tokens on lanes: one workgroup per 16 tokens and 8 columns of y a lane.
fn put_quad(t: u32, o: u32, v: vec4<f32>) { store_quad(t, o, v); }

@compute @workgroup_size(OWNERS)
fn base_lanes(
    @builtin(workgroup_id) id: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    own: Invocation,
) {
    let group = group_index(id, groups);
    if (group >= params.groups) { return; }
    let t0 = 16u * (group / params.column_blocks);
    let o = 8u * (OWNERS * (group % params.column_blocks) + own.lane);
    let rows = min(params.tokens - t0, 16u);
    let k = params.in_features;
    // Rows and columns that are not there repeat the last one; nobody reads their sums.
    let x = (t0 + min(shared_place(own), vec4(rows - 1u))) * params.x_stride;
    let last = vec4(params.out_features - 1u);
    let w = min(o + vec4(0u, 1u, 2u, 3u), last) * k;
    put_rows(t0, rows, o, lanes_product(x, w, min(o + vec4(4u, 5u, 6u, 7u), last) * k, k));
}
