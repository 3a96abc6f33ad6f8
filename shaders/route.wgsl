// Route: one workgroup a token. See src/ops/route.rs.

@compute @workgroup_size(64)
fn route(
    @builtin(workgroup_id) id: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let t = group_index(id, groups);
    if (t >= params.groups) { return; }
    route_token(lane, t, params.experts);
    if (lane != 0u) { return; }
    for (var j = 0u; j < TOP_K; j++) {
        topk_ids_put(t * TOP_K + j, i32(best_ids[j]));
        topk_weights_put(t * TOP_K + j, best_scores[j]);
    }
}
