// Expand, many tokens on lanes: one workgroup per four chunks of tokens and 8 columns a lane.
//
//     for each expert of the chunks, lowest first, for each sixteen of its routes there:
//         four lanes load ids, weights and h of four routes each, and hand h out: sums of 16 routes x 8 columns
//         grown[row of a route] += weight scaling sum; a token's first route stores, its last one adds to y where AT_ONCE
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

// Beside a row: the token has no route behind this one.
const LAST: u32 = 0x80000000u;
// More routes of a token cost more to look through than its row in workgroup memory does.
const FEW_ROUTES: u32 = 8u;

// LAST, where it is of use, for a token's last route, whose expert is the highest; the `row`-th token behind route `first` owns route n.
fn last_of(row: u32, first: u32, n: u32) -> u32 {
    if (AT_ONCE == 0u || params.top_k > FEW_ROUTES) { return 0u; }
    let e = plan[params.at_ids + n];
    let begin = first + row * params.top_k;
    for (var i = begin; i < begin + params.top_k; i++) {
        let other = plan[params.at_ids + i];
        if (other != NONE && (other > e || (other == e && i > n))) { return 0u; }
    }
    return LAST;
}

// A lane's four routes of sixteen.
struct Routes {
    n: vec4<u32>,
    row: vec4<u32>, // of the workgroup, and LAST; NONE where nothing is added
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
        row |= vec4(last_of(row.x, first, n.x), last_of(row.y, first, n.y), last_of(row.z, first, n.z), last_of(row.w, first, n.w));
        weight = vec4(topk_weights_at(n.x), topk_weights_at(n.y), topk_weights_at(n.z), topk_weights_at(n.w));
        // Not a product with 0: h may be infinite.
        let good = vec4(is_finite(weight.x), is_finite(weight.y), is_finite(weight.z), is_finite(weight.w));
        if (!all(good)) { atomicOr(&status, WEIGHT_NOT_FINITE); }
        row = select(vec4(NONE), row, good);
    }
    return Routes(n, select(vec4(NONE), row, i < vec4(count)), weight);
}

// A bit for each of the 64 rows: those that a route reached, and those that are in y.
var<private> touched: vec2<u32>;
var<private> finished: vec2<u32>;

fn bit_of(row: u32) -> vec2<u32> {
    return select(vec2(1u << (row & 31u), 0u), vec2(0u, 1u << (row & 31u)), row >= 32u);
}

fn finish_both(row: u32, column: u32, low: vec4<f32>, high: vec4<f32>) {
    if (column < params.out_features) { finish(row, column, low); }
    if (column + 4u < params.out_features) { finish(row, column + 4u, high); }
}

// The same where y is f32 in whole fours: few instructions, since drivers have sixteen copies of them.
fn finish_fours(row: u32, column: u32, low: vec4<f32>, high: vec4<f32>) {
    let at = row * params.y_stride + column;
    if (column < params.out_features) { y_put_quad(at, add_old(at, low)); }
    if (column + 4u < params.out_features) { y_put_quad(at + 4u, add_old(at + 4u, high)); }
}

fn add_old(at: u32, v: vec4<f32>) -> vec4<f32> {
    if (ACCUMULATE == 1u) { return v + y_quad(at); }
    return v;
}

// One route's sums to their row; row0 is the workgroup's first.
fn grow(row0: u32, marked: u32, factor: f32, low: vec4<f32>, high: vec4<f32>, column: u32, own: Invocation) {
    if (marked == NONE) { return; }
    if (PER_ROUTE == 1u) {
        finish_both(marked, column, factor * low, factor * high);
        return;
    }
    let row = marked & ~LAST;
    let bit = bit_of(row);
    let at = grown_at(row, 0u, own);
    var a = factor * low;
    var b = factor * high;
    if (any((touched & bit) != vec2<u32>())) {
        a += grown[at];
        b += grown[at + OWNERS];
    }
    touched |= bit;
    if (marked != row) {
        finished |= bit;
        finish_fours(row0 + row, column, a, b);
    } else {
        grown[at] = a;
        grown[at + OWNERS] = b;
    }
}

// Four routes, one of each of the subgroup's first four lanes.
fn grow_four(row0: u32, row: u32, factor: f32, low: mat4x4<f32>, high: mat4x4<f32>, column: u32, own: Invocation) {
    grow(row0, subgroupBroadcast(row, 0u), subgroupBroadcast(factor, 0u), low[0], high[0], column, own);
    grow(row0, subgroupBroadcast(row, 1u), subgroupBroadcast(factor, 1u), low[1], high[1], column, own);
    grow(row0, subgroupBroadcast(row, 2u), subgroupBroadcast(factor, 2u), low[2], high[2], column, own);
    grow(row0, subgroupBroadcast(row, 3u), subgroupBroadcast(factor, 3u), low[3], high[3], column, own);
}

fn add_sixteen(row0: u32, routes: Routes, slot: Slot, column: u32, own: Invocation) {
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
    grow_four(row0, routes.row.x, factors.x, a0, b0, column, own);
    grow_four(row0, routes.row.y, factors.y, a1, b1, column, own);
    grow_four(row0, routes.row.z, factors.z, a2, b2, column, own);
    grow_four(row0, routes.row.w, factors.w, a3, b3, column, own);
}

// Rows of y of one chunk's routes without an expert, which come last.
fn finish_rest(chunk: u32, begin: u32, count: u32, column: u32) {
    for (var i = begin; i < count; i++) {
        let row = route_at(chunk, i);
        finish_both(row, column, vec4<f32>(), vec4<f32>());
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
    let row0 = chunk0 * params.chunk_routes / params.top_k;
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
            add_sixteen(row0, routes_of(chunk0, s, i + shared_place(own), count), slot, column, own);
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
    // What no last route finished: rows of many routes, without any, or whose last one did not count.
    let rows = (counts.x + counts.y + counts.z + counts.w) / params.top_k;
    for (var row = 0u; row < rows; row++) {
        let bit = bit_of(row);
        if (any((finished & bit) != vec2<u32>())) { continue; }
        if (any((touched & bit) != vec2<u32>())) {
            let at = grown_at(row, 0u, own);
            finish_both(row0 + row, column, grown[at], grown[at + OWNERS]);
        } else if (ACCUMULATE == 0u) {
            finish_both(row0 + row, column, vec4<f32>(), vec4<f32>());
        }
    }
}
