// Route, many tokens: one workgroup for TILE_M tokens, TILE_N of the router's rows at a time; w is its weight. See
// src/ops/route.rs.
//
//     for every TILE_N rows:  sums = x w^T, into the memory of the tile of w, which they fill at most
//                             lane m meets the scores of token m
//     lane m weighs

const_assert TILE_M == LISTS && TILE_M <= TILE_K && THREADS == LISTS * SPREAD;

@compute @workgroup_size(THREADS)
fn route_many(
    @builtin(workgroup_id) id: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let group = group_index(id, groups);
    if (group >= params.groups) { return; }
    let t0 = TILE_M * group;
    let count = min(params.tokens - t0, TILE_M);
    for (var q = lane; q < QUADS_M; q += THREADS) {
        x_rows[q] = (t0 + min(4u * q + vec4(0u, 1u, 2u, 3u), vec4(count - 1u))) * params.x_stride;
    }
    let k = params.in_features;
    var deviation_x = 1.0;
    if (STANDARDISED == 1u) {
        deviation_x = deviation(lane, (t0 + min(lane / SPREAD, count - 1u)) * params.x_stride, k);
    }
    let allowed = list_of(t0 + min(lane, count - 1u));
    let rows = params.experts + select(0u, 1u, THRESHOLD == LEARNED_THRESHOLD);
    var seen = nothing_seen();
    for (var e0 = 0u; e0 < rows; e0 += TILE_N) {
        tile_product(lane, count, e0 * k, k, rows - e0, k);
        let m0 = own_row(lane);
        let quad = own_column(lane) / 4u;
        for (var m = 0u; m < 8u; m++) {
            w_tile[quad * TILE_M + m0 + m] = sums[m];
            if (WIDE == 1u) { w_tile[(quad + 1u) * TILE_M + m0 + m] = wide_sums[m]; }
        }
        workgroupBarrier();
        if (lane < count) {
            for (var i = 0u; i < min(rows - e0, TILE_N); i++) {
                let product = w_tile[(i / 4u) * TILE_M + lane][i % 4u];
                meet(lane, &seen, allowed, e0 + i, params.experts, score_of(product, e0 + i, deviation_x));
            }
        }
        // The next product's first barrier lies before it writes w_tile.
    }
    if (lane < count) { put_row(t0 + lane, lane, weigh(lane, seen)); }
}
