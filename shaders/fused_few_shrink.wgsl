// Few tokens, first dispatch: h of every route straight from its id; w is A. One workgroup per route and eight ranks.

@compute @workgroup_size(64)
fn fused_few_shrink(
    @builtin(workgroup_id) id: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    own: Invocation,
) {
    let lane = own.lane;
    let group = group_index(id, groups);
    if (group >= params.groups) { return; }
    let n = group / params.rank_blocks;
    let r0 = 8u * (group % params.rank_blocks);
    let e = topk_ids_at(n);
    if (e == -1) { return; }
    if (e < 0 || u32(e) >= params.experts) {
        if (lane == 0u) { atomicOr(&status, ID_OUT_OF_RANGE); }
        return;
    }
    let slot = slots[u32(e)];
    if (!holds(slot, params.epoch)) {
        if (lane == 0u) { atomicOr(&status, STALE_SLOT); }
        return;
    }
    if (slot.rank > params.max_rank) {
        if (lane == 0u) { atomicOr(&status, RANK_TOO_LARGE); }
        return;
    }
    if (lane == 0u && !is_finite(topk_weights_at(n))) { atomicOr(&status, WEIGHT_NOT_FINITE); }
    if (r0 >= slot.rank) { return; }
    let count = slot.rank - r0;
    let w0 = (slot.row + r0) * params.a_stride;
    dot8(own, n / params.top_k * params.x_stride, w0, params.a_stride, count, params.in_features);
    if (lane < min(count, 8u)) { h_put(n * params.h_stride + r0 + lane, dot8_of(lane)); }
}
