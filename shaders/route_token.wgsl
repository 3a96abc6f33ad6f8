// Scores, selection and weights of one token in one workgroup of 64, without a [tokens, experts] matrix; w is the router's
// weight in f32.
//
//     for every eight experts:  eight scores; the first lane meets them

// Leaves ids and weights in the list, where the first lane sees them and whether they are good.
fn route_token(own: Invocation, t: u32, experts: u32) -> bool {
    let lane = own.lane;
    let x0 = t * params.x_stride;
    let k = params.in_features;
    var deviation_x = 1.0;
    if (STANDARDISED == 1u) { deviation_x = deviation(lane, x0, k); }
    let allowed = list_of(t);
    let rows = experts + select(0u, 1u, THRESHOLD == LEARNED_THRESHOLD);
    var seen = nothing_seen();
    for (var e0 = 0u; e0 < rows; e0 += 8u) {
        let count = min(rows - e0, 8u);
        dot8(own, x0, e0 * k, k, count, k);
        if (lane == 0u) {
            for (var i = 0u; i < count; i++) {
                meet(0u, &seen, allowed, e0 + i, experts, score_of(dot8_of(i), e0 + i, deviation_x));
            }
        }
        workgroupBarrier();
    }
    if (lane != 0u) { return true; }
    return weigh(0u, seen);
}
