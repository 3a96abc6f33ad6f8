// The routing weights, then the bias, in one buffer: for devices that bind too few buffers for both.

@compute @workgroup_size(64)
fn fused_side(
    @builtin(workgroup_id) id: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let i = 64u * group_index(id, groups) + lane;
    if (i < params.routes) {
        side_put(i, topk_weights_at(i));
    } else if (i < params.routes + params.out_features) {
        side_put(i, bias_at(i - params.routes));
    }
}
