// Route, few tokens: one workgroup a token. See src/ops/route.rs.

@compute @workgroup_size(64)
fn route_few(
    @builtin(workgroup_id) id: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    own: Invocation,
) {
    let t = group_index(id, groups);
    if (t >= params.groups) { return; }
    let good = route_token(own, t, params.experts);
    if (own.lane == 0u) { put_row(t, 0u, good); }
}
