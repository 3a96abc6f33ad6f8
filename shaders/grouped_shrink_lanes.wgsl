// Grouped with shrink, on lanes; see grouped_shrink.wgsl.

@compute @workgroup_size(OWNERS)
fn grouped_shrink_lanes(
    @builtin(workgroup_id) id: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    own: Invocation,
) {
    let group = id.x + id.y * groups.x;
    if (group < params.ahead) {
        shrink_tile(group, own.lane, OWNERS);
    } else {
        lanes_rows(group_index(vec3(group - params.ahead, 0u, 0u), groups), own);
    }
}
