// Expand: y_t (+)= sum over routes n of w_n scaling B h_n; b is B transposed, one row per rank. See
// src/ops/expand.rs. A thread owns two neighbouring columns.

fn holds(slot: Slot) -> bool {
    return slot.rank > 0u && slot.added_at <= params.epoch;
}

fn factor(slot: Slot, n: u32) -> f32 {
    if (PER_ROUTE == 1u) { return slot.scaling; }
    return slot.scaling * topk_weights_at(n);
}

fn h_row(n: u32) -> u32 {
    if (RANK_SUM == 1u) { return n / params.top_k * params.h_stride; }
    return n * params.h_stride;
}

fn finish(row: u32, column: u32, sum: vec2<f32>) {
    let at = row * params.y_stride + column;
    let count = min(params.out_features - column, 2u);
    var v = sum;
    if (ACCUMULATE == 1u) {
        if (count == 2u) { v += y_pair(at); } else { v.x += y_at(at); }
    }
    y_put_pair(at, v, count);
}

// One workgroup per row of y and 128 columns.
@compute @workgroup_size(64)
fn expand_few(
    @builtin(workgroup_id) id: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let group = group_index(id, groups);
    if (group >= params.groups) { return; }
    let row = group / params.column_blocks;
    let column = 128u * (group % params.column_blocks) + 2u * lane;
    if (column >= params.out_features) { return; }
    let routes = select(params.top_k, 1u, PER_ROUTE == 1u);
    var sum = vec2<f32>();
    var any = ACCUMULATE == 0u;
    for (var n = row * routes; n < (row + 1u) * routes; n++) {
        let e = plan[params.at_ids + n];
        if (e == NONE) { continue; }
        let slot = slots[e];
        if (!holds(slot)) {
            if (lane == 0u) { atomicOr(&status, STALE_SLOT); }
            continue;
        }
        any = true;
        var product = vec2<f32>();
        let h0 = h_row(n);
        for (var r = 0u; r < slot.rank; r++) {
            product += h_at(h0 + r) * b_pair((slot.row + r) * params.b_stride + column);
        }
        sum += factor(slot, n) * product;
    }
    if (any) { finish(row, column, sum); }
}

// One workgroup per chunk of tokens and 128 columns. The chunk's routes come sorted by expert: a thread keeps
// eight rows of B in registers over all routes of one expert and adds into workgroup memory that no other thread
// touches, so there is no barrier.
//
//     for each expert of the chunk:
//         for each eight ranks:  b = B rows
//             for each route of the expert:  acc[row of the route] += factor * <h, b>

const ROWS: u32 = 32u;
var<workgroup> acc: array<vec2<f32>, 2048>; // [ROWS][64 lanes]

fn route_at(chunk: u32, i: u32) -> u32 {
    return plan[params.at_chunks + chunk * params.chunk_routes + i];
}

fn expert_at(chunk: u32, i: u32, count: u32) -> u32 {
    if (i >= count) { return NONE; }
    return plan[params.at_ids + route_at(chunk, i)];
}

// The row of acc for the i-th route of a segment that begins at `begin`.
fn acc_row(chunk: u32, begin: u32, i: u32) -> u32 {
    if (PER_ROUTE == 1u) { return i - begin; }
    return (route_at(chunk, i) - chunk * params.chunk_routes) / params.top_k;
}

fn add_segment(chunk: u32, begin: u32, end: u32, slot: Slot, column: u32, lane: u32) {
    var r = 0u;
    for (; r + 8u <= slot.rank; r += 8u) {
        let at = (slot.row + r) * params.b_stride + column;
        let b0 = b_pair(at);
        let b1 = b_pair(at + params.b_stride);
        let b2 = b_pair(at + 2u * params.b_stride);
        let b3 = b_pair(at + 3u * params.b_stride);
        let b4 = b_pair(at + 4u * params.b_stride);
        let b5 = b_pair(at + 5u * params.b_stride);
        let b6 = b_pair(at + 6u * params.b_stride);
        let b7 = b_pair(at + 7u * params.b_stride);
        for (var i = begin; i < end; i++) {
            let n = route_at(chunk, i);
            let h0 = h_row(n) + r;
            let product = h_at(h0) * b0 + h_at(h0 + 1u) * b1 + h_at(h0 + 2u) * b2 + h_at(h0 + 3u) * b3
                + h_at(h0 + 4u) * b4 + h_at(h0 + 5u) * b5 + h_at(h0 + 6u) * b6 + h_at(h0 + 7u) * b7;
            acc[acc_row(chunk, begin, i) * 64u + lane] += factor(slot, n) * product;
        }
    }
    for (; r < slot.rank; r++) {
        let b = b_pair((slot.row + r) * params.b_stride + column);
        for (var i = begin; i < end; i++) {
            let n = route_at(chunk, i);
            acc[acc_row(chunk, begin, i) * 64u + lane] += factor(slot, n) * h_at(h_row(n) + r) * b;
        }
    }
}

@compute @workgroup_size(64)
fn expand_many(
    @builtin(workgroup_id) id: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let group = group_index(id, groups);
    if (group >= params.groups) { return; }
    let chunk = group / params.column_blocks;
    let column = 128u * (group % params.column_blocks) + 2u * lane;
    if (column >= params.out_features) { return; }
    let count = min(params.chunk_routes, params.routes - chunk * params.chunk_routes);
    for (var row = 0u; row < ROWS; row++) { acc[row * 64u + lane] = vec2<f32>(); }
    var touched = 0u; // a bit per row
    var begin = 0u;
    while (begin < count) {
        let e = expert_at(chunk, begin, count);
        if (e == NONE) { break; }
        var end = begin + 1u;
        while (expert_at(chunk, end, count) == e && (PER_ROUTE == 0u || end - begin < ROWS)) { end++; }
        let slot = slots[e];
        if (holds(slot)) {
            add_segment(chunk, begin, end, slot, column, lane);
            if (PER_ROUTE == 0u) {
                for (var i = begin; i < end; i++) { touched |= 1u << acc_row(chunk, begin, i); }
            }
        } else if (lane == 0u) {
            atomicOr(&status, STALE_SLOT);
        }
        if (PER_ROUTE == 1u) {
            for (var i = begin; i < end; i++) {
                if (ACCUMULATE == 0u || holds(slot)) { finish(route_at(chunk, i), column, acc[(i - begin) * 64u + lane]); }
                acc[(i - begin) * 64u + lane] = vec2<f32>();
            }
        }
        begin = end;
    }
    if (PER_ROUTE == 1u) {
        if (ACCUMULATE == 0u) {
            for (; begin < count; begin++) { finish(route_at(chunk, begin), column, vec2<f32>()); }
        }
        return;
    }
    let row0 = chunk * params.chunk_routes / params.top_k;
    for (var row = 0u; row < count / params.top_k; row++) {
        if (ACCUMULATE == 0u || (touched & (1u << row)) != 0u) {
            finish(row0 + row, column, acc[row * 64u + lane]);
        }
    }
}
