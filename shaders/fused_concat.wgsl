// Rows [w | B_all] for an engine's own product: one thread per row and two columns. w is the weight, b is B transposed.

fn value(o: u32, c: u32) -> f32 {
    if (c < params.in_features) { return w_at(o * params.in_features + c); }
    if (c < params.width) { return b_at((c - params.in_features) * params.b_stride + o); }
    return 0.0;
}

@compute @workgroup_size(64)
fn fused_concat(
    @builtin(workgroup_id) id: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let index = 64u * group_index(id, groups) + lane;
    let o = index / params.pairs;
    let c = 2u * (index % params.pairs);
    if (o >= params.out_features) { return; }
    concat_put_pair(o * params.row_stride + c, vec2(value(o, c), value(o, c + 1u)), min(params.width - c, 2u));
}
