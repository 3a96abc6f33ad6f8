// Expand, many tokens on lanes, y of f32: zeros where y is overwritten, then the experts; see lanes_routes.wgsl.

fn slot_at(e: u32) -> Slot { return slots[e]; }

fn clear_rows(share: Share, column: u32) {
    var rows = share.end - share.first;
    if (PER_ROUTE == 0u) { rows /= params.top_k; }
    for (var row = share.row; row < share.row + rows; row++) {
        let at = row * params.y_stride + column;
        if (column < params.out_features) { y_put_quad(at, vec4<f32>()); }
        if (column + 4u < params.out_features) { y_put_quad(at + 4u, vec4<f32>()); }
    }
}

@compute @workgroup_size(OWNERS)
fn expand_lanes(
    @builtin(workgroup_id) id: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    own: Invocation,
) {
    let group = group_index(id, groups);
    if (group >= params.groups) { return; }
    let share = share_of(group);
    let column = 8u * (OWNERS * (group % params.column_blocks) + own.lane);
    if (ACCUMULATE == 0u) { clear_rows(share, column); }
    if (PER_ROUTE == 0u && group % params.column_blocks == 0u) { tell(share, own); }
    add_experts(share, column, own);
}
