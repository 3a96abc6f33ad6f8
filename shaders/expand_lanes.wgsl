// Expand, many tokens on lanes: one workgroup per four chunks of tokens and 8 columns a lane.
//
//     for each expert of the chunks, lowest first, for each sixteen of its routes there:
//         four lanes load ids, weights and h of four routes each, and hand h out: sums of 16 routes x 8 columns
//         grown[row of a route] += weight scaling sum
//
// A token's routes come in the order of their experts, whatever the other tokens.

const_assert CHUNKS == 4u; // a vector's parts

// Where each chunk's routes to an expert begin and end.
struct Segments {
    begin: vec4<u32>,
    end: vec4<u32>,
}

// The i-th of the segments' routes, one after another.
fn route_of(chunk0: u32, s: Segments, i: u32) -> u32 {
    let lengths = s.end - s.begin;
    var c = 0u;
    var rest = i;
    if (rest >= lengths.x) { c = 1u; rest -= lengths.x; }
    if (c == 1u && rest >= lengths.y) { c = 2u; rest -= lengths.y; }
    if (c == 2u && rest >= lengths.z) { c = 3u; rest -= lengths.z; }
    return route_at(chunk0 + c, s.begin[c] + rest);
}

// A lane's four routes of sixteen.
struct Routes {
    n: vec4<u32>,
    row: vec4<u32>, // of the workgroup; NONE where nothing is added
    weight: vec4<f32>,
}

fn routes_of(chunk0: u32, s: Segments, i: vec4<u32>, count: u32) -> Routes {
    let at = min(i, vec4(count - 1u));
    let n = vec4(route_of(chunk0, s, at.x), route_of(chunk0, s, at.y), route_of(chunk0, s, at.z), route_of(chunk0, s, at.w));
    let first = chunk0 * params.chunk_routes;
    var row = vec4(token_of(n.x - first), token_of(n.y - first), token_of(n.z - first), token_of(n.w - first));
    var weight = vec4(1.0);
    if (PER_ROUTE == 1u) {
        row = n;
    } else {
        weight = vec4(topk_weights_at(n.x), topk_weights_at(n.y), topk_weights_at(n.z), topk_weights_at(n.w));
        // Not a product with 0: h may be infinite.
        let good = vec4(is_finite(weight.x), is_finite(weight.y), is_finite(weight.z), is_finite(weight.w));
        if (!all(good)) { atomicOr(&status, WEIGHT_NOT_FINITE); }
        row = select(vec4(NONE), row, good);
    }
    return Routes(n, select(vec4(NONE), row, i < vec4(count)), weight);
}

// A bit for each of the 64 rows that a route reached.
var<private> touched: vec2<u32>;

// One route's sums to their row.
fn grow(row: u32, factor: f32, low: vec4<f32>, high: vec4<f32>, column: u32, own: Invocation) {
    if (row == NONE) { return; }
    if (PER_ROUTE == 1u) {
        if (column < params.out_features) { finish(row, column, factor * low); }
        if (column + 4u < params.out_features) { finish(row, column + 4u, factor * high); }
        return;
    }
    touched |= select(vec2(1u << (row & 31u), 0u), vec2(0u, 1u << (row & 31u)), row >= 32u);
    let at = grown_at(row, 0u, own);
    grown[at] += factor * low;
    grown[at + OWNERS] += factor * high;
}

// Four routes, one of each of the subgroup's first four lanes.
fn grow_four(row: u32, factor: f32, low: mat4x4<f32>, high: mat4x4<f32>, column: u32, own: Invocation) {
    grow(subgroupBroadcast(row, 0u), subgroupBroadcast(factor, 0u), low[0], high[0], column, own);
    grow(subgroupBroadcast(row, 1u), subgroupBroadcast(factor, 1u), low[1], high[1], column, own);
    grow(subgroupBroadcast(row, 2u), subgroupBroadcast(factor, 2u), low[2], high[2], column, own);
    grow(subgroupBroadcast(row, 3u), subgroupBroadcast(factor, 3u), low[3], high[3], column, own);
}

fn add_sixteen(routes: Routes, slot: Slot, column: u32, own: Invocation) {
    // Columns behind the last are computed and not stored.
    let low = min(column, params.b_stride - 4u);
    let high = min(column + 4u, params.b_stride - 4u);
    let h = vec4(h_row(routes.n.x), h_row(routes.n.y), h_row(routes.n.z), h_row(routes.n.w));
    var a0 = mat4x4<f32>();
    var a1 = mat4x4<f32>();
    var a2 = mat4x4<f32>();
    var a3 = mat4x4<f32>();
    var b0 = mat4x4<f32>();
    var b1 = mat4x4<f32>();
    var b2 = mat4x4<f32>();
    var b3 = mat4x4<f32>();
    for (var r = 0u; r < slot.rank; r += 4u) {
        let left = i32(slot.rank - r);
        let a = rows_of_b(slot, r, low);
        let b = rows_of_b(slot, r, high);
        let h0 = handed_out(ranks_of_h(h.x + r, left));
        a0 += a * h0;
        b0 += b * h0;
        let h1 = handed_out(ranks_of_h(h.y + r, left));
        a1 += a * h1;
        b1 += b * h1;
        let h2 = handed_out(ranks_of_h(h.z + r, left));
        a2 += a * h2;
        b2 += b * h2;
        let h3 = handed_out(ranks_of_h(h.w + r, left));
        a3 += a * h3;
        b3 += b * h3;
    }
    let factors = slot.scaling * routes.weight;
    grow_four(routes.row.x, factors.x, a0, b0, column, own);
    grow_four(routes.row.y, factors.y, a1, b1, column, own);
    grow_four(routes.row.z, factors.z, a2, b2, column, own);
    grow_four(routes.row.w, factors.w, a3, b3, column, own);
}

// Rows of y of one chunk's routes without an expert, which come last.
fn finish_rest(chunk: u32, begin: u32, count: u32, column: u32) {
    for (var i = begin; i < count; i++) {
        let row = route_at(chunk, i);
        if (column < params.out_features) { finish(row, column, vec4<f32>()); }
        if (column + 4u < params.out_features) { finish(row, column + 4u, vec4<f32>()); }
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
    let chunk0 = CHUNKS * (group / params.column_blocks);
    let column = 8u * (OWNERS * (group % params.column_blocks) + own.lane);
    let chunks = chunk0 + vec4(0u, 1u, 2u, 3u);
    let counts = min(vec4(params.chunk_routes), params.routes - min(chunks * params.chunk_routes, vec4(params.routes)));
    if (PER_ROUTE == 0u) {
        for (var at = own.lane; at < 2u * GROWN_ROWS * OWNERS; at += OWNERS) { grown[at] = vec4<f32>(); }
    }
    var s = Segments(vec4<u32>(), vec4<u32>());
    loop {
        let heads = vec4(
            expert_at(chunks.x, s.end.x, counts.x), expert_at(chunks.y, s.end.y, counts.y),
            expert_at(chunks.z, s.end.z, counts.z), expert_at(chunks.w, s.end.w, counts.w),
        );
        let e = min(min(heads.x, heads.y), min(heads.z, heads.w));
        if (e == NONE) { break; }
        s.begin = s.end;
        while (expert_at(chunks.x, s.end.x, counts.x) == e) { s.end.x += 1u; }
        while (expert_at(chunks.y, s.end.y, counts.y) == e) { s.end.y += 1u; }
        while (expert_at(chunks.z, s.end.z, counts.z) == e) { s.end.z += 1u; }
        while (expert_at(chunks.w, s.end.w, counts.w) == e) { s.end.w += 1u; }
        let lengths = s.end - s.begin;
        let count = lengths.x + lengths.y + lengths.z + lengths.w;
        var slot = slots[e];
        if (!holds(slot, params.epoch)) {
            if (own.lane == 0u) { atomicOr(&status, STALE_SLOT); }
            if (PER_ROUTE == 0u || ACCUMULATE == 1u) { continue; }
            slot.rank = 0u; // its rows of y become zeros
        }
        for (var i = 0u; i < count; i += 16u) {
            add_sixteen(routes_of(chunk0, s, i + shared_place(own), count), slot, column, own);
        }
    }
    if (PER_ROUTE == 1u) {
        if (ACCUMULATE == 0u) {
            finish_rest(chunks.x, s.end.x, counts.x, column);
            finish_rest(chunks.y, s.end.y, counts.y, column);
            finish_rest(chunks.z, s.end.z, counts.z, column);
            finish_rest(chunks.w, s.end.w, counts.w, column);
        }
        return;
    }
    let row0 = chunk0 * params.chunk_routes / params.top_k;
    let rows = (counts.x + counts.y + counts.z + counts.w) / params.top_k;
    for (var row = 0u; row < rows; row++) {
        if (ACCUMULATE == 1u && ((select(touched.x, touched.y, row >= 32u) >> (row & 31u)) & 1u) == 0u) { continue; }
        let at = grown_at(row, 0u, own);
        if (column < params.out_features) { finish(row0 + row, column, grown[at]); }
        if (column + 4u < params.out_features) { finish(row0 + row, column + 4u, grown[at + OWNERS]); }
    }
}
