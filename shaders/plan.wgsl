// Plan: a stable counting sort of the live routes by expert, without atomics; see src/ops/plan.rs.
//
//     plan_chunks   one workgroup a chunk of whole tokens (at most LANES routes): refuse ids that name nothing,
//                   sort the chunk by (expert, route), count the chunk's routes of each expert
//     plan_scan     one workgroup: prefix sums over the chunks of each expert, then over the experts
//     plan_place    one workgroup a chunk: every route to its place, every tile of an expert to the tile list

var<workgroup> keys: array<u32, LANES>;
var<workgroup> totals: array<vec2<u32>, LANES>;

// The id where it names a live slot of this plan's time, NONE otherwise.
fn live_id(id: i32) -> u32 {
    if (id == -1) { return NONE; }
    if (id < 0 || u32(id) >= params.experts) {
        atomicOr(&status, ID_OUT_OF_RANGE);
        return NONE;
    }
    let slot = slots[u32(id)];
    if (!holds(slot, params.epoch)) {
        atomicOr(&status, STALE_SLOT);
        return NONE;
    }
    // Rows of h are made for the pool's adapters, or for those of a lease.
    if (slot.rank > params.max_rank) {
        atomicOr(&status, RANK_TOO_LARGE);
        return NONE;
    }
    return u32(id);
}

@compute @workgroup_size(LANES)
fn plan_chunks(
    @builtin(workgroup_id) id: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) i: u32,
) {
    let chunk = group_index(id, groups);
    if (chunk >= params.groups) { return; }
    let n = chunk * params.chunk_routes + i;
    let inside = i < params.chunk_routes && n < params.routes;
    var key = NONE;
    if (inside) {
        key = live_id(topk_ids_at(n));
        plan[params.at_ids + n] = key;
    }
    keys[i] = key;
    workgroupBarrier();
    if (!inside) { return; }
    var smaller = 0u;
    var same_before = 0u;
    var same_after = 0u;
    for (var j = 0u; j < params.chunk_routes; j++) {
        let other = keys[j];
        if (other < key) {
            smaller++;
        } else if (other == key && j < i) {
            same_before++;
        } else if (other == key && j > i) {
            same_after++;
        }
    }
    plan[params.at_chunks + chunk * params.chunk_routes + smaller + same_before] = n;
    plan[params.at_places + n] = same_before;
    if (key != NONE && same_after == 0u) {
        plan[params.at_counts + chunk * params.experts + key] = same_before + 1u;
    }
}

@compute @workgroup_size(LANES)
fn plan_scan(@builtin(local_invocation_index) lane: u32) {
    let share = (params.experts + LANES - 1u) / LANES;
    let first = min(lane * share, params.experts);
    let end = min(first + share, params.experts);
    var total = vec2<u32>(); // routes, tiles
    for (var e = first; e < end; e++) {
        var count = 0u;
        for (var c = 0u; c < params.chunks; c++) {
            let at = params.at_counts + c * params.experts + e;
            let here = plan[at];
            plan[at] = count;
            count += here;
        }
        plan[params.at_offsets + e] = count;
        total += vec2(count, (count + TILE_ROUTES - 1u) / TILE_ROUTES);
    }
    totals[lane] = total;
    workgroupBarrier();
    for (var step = 1u; step < LANES; step <<= 1u) {
        var sum = totals[lane];
        if (lane >= step) { sum += totals[lane - step]; }
        workgroupBarrier();
        totals[lane] = sum;
        workgroupBarrier();
    }
    var before = totals[lane] - total;
    for (var e = first; e < end; e++) {
        let count = plan[params.at_offsets + e];
        plan[params.at_offsets + e] = before.x;
        plan[params.at_tile_offsets + e] = before.y;
        before += vec2(count, (count + TILE_ROUTES - 1u) / TILE_ROUTES);
    }
    if (lane == LANES - 1u) {
        plan[params.at_offsets + params.experts] = totals[LANES - 1u].x;
        plan[params.at_tile_offsets + params.experts] = totals[LANES - 1u].y;
    }
}

@compute @workgroup_size(LANES)
fn plan_place(
    @builtin(workgroup_id) id: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) i: u32,
) {
    let chunk = group_index(id, groups);
    let n = chunk * params.chunk_routes + i;
    if (chunk >= params.groups || i >= params.chunk_routes || n >= params.routes) { return; }
    let e = plan[params.at_ids + n];
    if (e == NONE) { return; }
    let place = plan[params.at_counts + chunk * params.experts + e] + plan[params.at_places + n];
    let begin = plan[params.at_offsets + e];
    plan[params.at_sorted + begin + place] = n;
    if (place % TILE_ROUTES == 0u) {
        let tile = params.at_tiles + 2u * (plan[params.at_tile_offsets + e] + place / TILE_ROUTES);
        plan[tile] = e;
        plan[tile + 1u] = begin + place;
    }
}
