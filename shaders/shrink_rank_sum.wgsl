// RankSum: h_t = sum over the token's live routes n, in slot order, of w_n (A x)_n. One thread per token and rank.
// A token whose experts differ in rank gets zeros and sets the status word.

@compute @workgroup_size(64)
fn shrink_rank_sum(
    @builtin(workgroup_id) id: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let index = group_index(id, groups) * 64u + lane;
    let t = index / params.h_width;
    let r = index % params.h_width;
    if (t >= params.tokens) { return; }
    var rank = 0u;
    var widest = 0u;
    var sum = 0.0;
    for (var n = t * params.top_k; n < (t + 1u) * params.top_k; n++) {
        let e = plan[params.at_ids + n];
        if (e == NONE) { continue; }
        let slot = slots[e];
        if (!holds(slot, params.epoch)) { continue; } // shrink has told
        if (rank == 0u) { rank = slot.rank; }
        widest = max(widest, slot.rank);
        if (slot.rank != rank) { rank = NONE; }
        let weight = topk_weights_at(n);
        if (!is_finite(weight)) {
            atomicOr(&status, WEIGHT_NOT_FINITE);
        } else if (r < slot.rank) {
            sum += weight * routes_h_at(n * params.h_width + r);
        }
    }
    if (rank == NONE) {
        sum = 0.0;
        if (r == 0u) { atomicOr(&status, UNEQUAL_RANKS); }
    }
    if (r < widest) { h_put(t * params.h_stride + r, sum); }
}
