// Expand: y_t (+)= sum over routes n of w_n scaling B h_n; b is B transposed, one row per rank. See
// src/ops/expand.rs. A thread owns four neighbouring columns.

fn factor(slot: Slot, n: u32) -> f32 {
    if (PER_ROUTE == 1u) { return slot.scaling; }
    return slot.scaling * topk_weights_at(n);
}

// Whether route n counts: 0 times its product would not do, h may be infinite.
fn counts(n: u32) -> bool {
    if (PER_ROUTE == 1u || is_finite(topk_weights_at(n))) { return true; }
    atomicOr(&status, WEIGHT_NOT_FINITE);
    return false;
}

fn h_row(n: u32) -> u32 {
    if (RANK_SUM == 1u) { return n / params.top_k * params.h_stride; }
    return n * params.h_stride;
}

fn finish(row: u32, column: u32, sum: vec4<f32>) {
    if (column + 4u <= params.out_features) {
        let at = row * params.y_stride + column;
        var v = sum;
        if (ACCUMULATE == 1u) { v += y_quad(at); }
        y_put_quad(at, v);
        return;
    }
    finish_pair(row, column, sum.xy);
    if (column + 2u < params.out_features) { finish_pair(row, column + 2u, sum.zw); }
}

fn finish_pair(row: u32, column: u32, sum: vec2<f32>) {
    let at = row * params.y_stride + column;
    let count = min(params.out_features - column, 2u);
    var v = sum;
    if (ACCUMULATE == 1u) {
        v.x += y_at(at);
        if (count == 2u) { v.y += y_at(at + 1u); }
    }
    y_put_pair(at, v, count);
}

// One workgroup per row of y and 256 columns.
@compute @workgroup_size(64)
fn expand_few(
    @builtin(workgroup_id) id: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let group = group_index(id, groups);
    if (group >= params.groups) { return; }
    let row = group / params.column_blocks;
    let column = COLUMNS * (group % params.column_blocks) + 4u * lane;
    if (column >= params.out_features) { return; }
    let routes = select(params.top_k, 1u, PER_ROUTE == 1u);
    var sum = vec4<f32>();
    var any = ACCUMULATE == 0u;
    for (var n = row * routes; n < (row + 1u) * routes; n++) {
        let e = plan[params.at_ids + n];
        if (e == NONE) { continue; }
        let slot = slots[e];
        if (!holds(slot, params.epoch)) {
            if (lane == 0u) { atomicOr(&status, STALE_SLOT); }
            continue;
        }
        any = true;
        if (!counts(n)) { continue; }
        var product = vec4<f32>();
        let h0 = h_row(n);
        for (var r = 0u; r < slot.rank; r++) {
            product += h_at(h0 + r) * b_quad((slot.row + r) * params.b_stride + column);
        }
        sum += factor(slot, n) * product;
    }
    if (any) { finish(row, column, sum); }
}

// One workgroup per chunk of tokens and 256 columns. The chunk's routes come sorted by expert: a thread keeps
// sixteen rows of B in registers over all routes of one expert and adds into workgroup memory that no other thread
// touches, so there is no barrier.
//
//     for each expert of the chunk:
//         for each sixteen (four, one) ranks:  b = rows of B
//             for each route of the expert:  acc[row of the route] += factor * <h, b>

// [ROWS][64 lanes]: 16 KiB at 16 rows.
var<workgroup> acc: array<vec4<f32>, ROWS * 64u>;

fn route_at(chunk: u32, i: u32) -> u32 {
    return plan[params.at_chunks + chunk * params.chunk_routes + i];
}

fn expert_at(chunk: u32, i: u32, count: u32) -> u32 {
    if (i >= count) { return NONE; }
    return plan[params.at_ids + route_at(chunk, i)];
}

// The row of acc for route n, the i-th of a segment.
fn acc_row(chunk: u32, n: u32, i: u32) -> u32 {
    if (PER_ROUTE == 1u) { return i; }
    return (n - chunk * params.chunk_routes) / params.top_k;
}

fn add_segment(chunk: u32, begin: u32, end: u32, slot: Slot, column: u32, lane: u32) {
    let step = params.b_stride;
    var r = 0u;
    for (; r + 16u <= slot.rank; r += 16u) {
        let at = (slot.row + r) * step + column;
        let b0 = b_quad(at);
        let b1 = b_quad(at + step);
        let b2 = b_quad(at + 2u * step);
        let b3 = b_quad(at + 3u * step);
        let b4 = b_quad(at + 4u * step);
        let b5 = b_quad(at + 5u * step);
        let b6 = b_quad(at + 6u * step);
        let b7 = b_quad(at + 7u * step);
        let b8 = b_quad(at + 8u * step);
        let b9 = b_quad(at + 9u * step);
        let b10 = b_quad(at + 10u * step);
        let b11 = b_quad(at + 11u * step);
        let b12 = b_quad(at + 12u * step);
        let b13 = b_quad(at + 13u * step);
        let b14 = b_quad(at + 14u * step);
        let b15 = b_quad(at + 15u * step);
        for (var i = begin; i < end; i++) {
            let n = route_at(chunk, i);
            if (!counts(n)) { continue; }
            let h0 = h_row(n) + r;
            let ha = h_quad(h0);
            let hb = h_quad(h0 + 4u);
            let hc = h_quad(h0 + 8u);
            let hd = h_quad(h0 + 12u);
            let product = ha.x * b0 + ha.y * b1 + ha.z * b2 + ha.w * b3
                + hb.x * b4 + hb.y * b5 + hb.z * b6 + hb.w * b7
                + hc.x * b8 + hc.y * b9 + hc.z * b10 + hc.w * b11
                + hd.x * b12 + hd.y * b13 + hd.z * b14 + hd.w * b15;
            acc[acc_row(chunk, n, i - begin) * 64u + lane] += factor(slot, n) * product;
        }
    }
    for (; r + 4u <= slot.rank; r += 4u) {
        let at = (slot.row + r) * step + column;
        let b0 = b_quad(at);
        let b1 = b_quad(at + step);
        let b2 = b_quad(at + 2u * step);
        let b3 = b_quad(at + 3u * step);
        for (var i = begin; i < end; i++) {
            let n = route_at(chunk, i);
            if (!counts(n)) { continue; }
            let h0 = h_row(n) + r;
            let ha = h_quad(h0);
            let product = ha.x * b0 + ha.y * b1 + ha.z * b2 + ha.w * b3;
            acc[acc_row(chunk, n, i - begin) * 64u + lane] += factor(slot, n) * product;
        }
    }
    for (; r < slot.rank; r++) {
        let b = b_quad((slot.row + r) * step + column);
        for (var i = begin; i < end; i++) {
            let n = route_at(chunk, i);
            if (!counts(n)) { continue; }
            acc[acc_row(chunk, n, i - begin) * 64u + lane] += factor(slot, n) * h_at(h_row(n) + r) * b;
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
    let column = COLUMNS * (group % params.column_blocks) + 4u * lane;
    if (column >= params.out_features) { return; }
    let count = min(params.chunk_routes, params.routes - chunk * params.chunk_routes);
    for (var row = 0u; row < ROWS; row++) { acc[row * 64u + lane] = vec4<f32>(); }
    var touched = 0u; // a bit per row
    var begin = 0u;
    while (begin < count) {
        let e = expert_at(chunk, begin, count);
        if (e == NONE) { break; }
        var end = begin + 1u;
        while (expert_at(chunk, end, count) == e && (PER_ROUTE == 0u || end - begin < ROWS)) { end++; }
        let slot = slots[e];
        let live = holds(slot, params.epoch);
        if (live) {
            add_segment(chunk, begin, end, slot, column, lane);
        } else if (lane == 0u) {
            atomicOr(&status, STALE_SLOT);
        }
        for (var i = begin; i < end; i++) {
            let n = route_at(chunk, i);
            if (PER_ROUTE == 0u) {
                if (live) { touched |= 1u << acc_row(chunk, n, i - begin); }
            } else {
                let at = (i - begin) * 64u + lane;
                if (ACCUMULATE == 0u || live) { finish(n, column, acc[at]); }
                acc[at] = vec4<f32>();
            }
        }
        begin = end;
    }
    if (PER_ROUTE == 1u) {
        if (ACCUMULATE == 0u) {
            for (; begin < count; begin++) { finish(route_at(chunk, begin), column, vec4<f32>()); }
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
