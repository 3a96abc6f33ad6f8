// Expand, many tokens on lanes, y of f32: one workgroup per CHUNKS chunks of tokens and 8 columns a lane. y itself holds the
// sums, each of which is one lane's: no barrier, no workgroup memory, and nothing is rounded that f32 sums are not.
//
//     y = 0 where it is overwritten
//     for each expert, for each sixteen ranks:  sixteen rows of B, in registers
//         for each of the workgroup's routes to it:  four lanes load sixteen ranks of h and hand them out; y[row] += (factor h) B
//
// A token's routes come in the order of their experts, whatever the other tokens.

// What a workgroup takes.
struct Share {
    chunk: u32,
    first: u32, // route
    end: u32,
    row: u32, // of y, the first
}

fn share_of(group: u32) -> Share {
    let chunk = CHUNKS * (group / params.column_blocks);
    let first = chunk * params.chunk_routes;
    var row = first;
    if (PER_ROUTE == 0u) { row = first / params.top_k; }
    return Share(chunk, first, min(first + CHUNKS * params.chunk_routes, params.routes), row);
}

// Which row of y route n ends in.
fn row_of(share: Share, n: u32) -> u32 {
    if (PER_ROUTE == 1u) { return n; }
    return share.row + token_of(n - share.first);
}

fn clear_rows(share: Share, column: u32) {
    var rows = share.end - share.first;
    if (PER_ROUTE == 0u) { rows /= params.top_k; }
    for (var row = share.row; row < share.row + rows; row++) {
        let at = row * params.y_stride + column;
        if (column < params.out_features) { y_put_quad(at, vec4<f32>()); }
        if (column + 4u < params.out_features) { y_put_quad(at + 4u, vec4<f32>()); }
    }
}

// Adds the sorted routes begin .. end, all to `slot`.
fn add_routes(share: Share, begin: u32, end: u32, slot: Slot, column: u32, own: Invocation) {
    // Columns behind the last are computed and not stored.
    let low = min(column, params.b_stride - 4u);
    let high = min(column + 4u, params.b_stride - 4u);
    let rank4 = 4u * (own.place & 3u);
    for (var r = 0u; r < slot.rank; r += 16u) {
        let a0 = rows_of_b(slot, r, low);
        let a1 = rows_of_b(slot, r + 4u, low);
        let a2 = rows_of_b(slot, r + 8u, low);
        let a3 = rows_of_b(slot, r + 12u, low);
        let b0 = rows_of_b(slot, r, high);
        let b1 = rows_of_b(slot, r + 4u, high);
        let b2 = rows_of_b(slot, r + 8u, high);
        let b3 = rows_of_b(slot, r + 12u, high);
        for (var i = begin; i < end; i++) {
            let n = plan[params.at_sorted + i];
            if (!counts(n)) { continue; }
            let mine = ranks_of_h(h_row(n) + r + rank4, i32(slot.rank) - i32(r + rank4));
            let z = handed_out(factor(slot, n) * mine);
            let at = row_of(share, n) * params.y_stride + column;
            if (column < params.out_features) {
                y_put_quad(at, y_quad(at) + (a0 * z[0] + a1 * z[1] + a2 * z[2] + a3 * z[3]));
            }
            if (column + 4u < params.out_features) {
                y_put_quad(at + 4u, y_quad(at + 4u) + (b0 * z[0] + b1 * z[1] + b2 * z[2] + b3 * z[3]));
            }
        }
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
    for (var e = 0u; e < params.experts; e++) {
        let first = plan[params.at_offsets + e];
        let before = params.at_counts + share.chunk * params.experts + e; // of its routes in earlier chunks
        let begin = first + plan[before];
        var end = plan[params.at_offsets + e + 1u];
        if (share.chunk + CHUNKS < params.chunks) { end = first + plan[before + CHUNKS * params.experts]; }
        if (begin >= end) { continue; }
        let slot = slots[e];
        if (holds(slot, params.epoch)) {
            add_routes(share, begin, end, slot, column, own);
        } else if (own.lane == 0u) {
            atomicOr(&status, STALE_SLOT);
        }
    }
}
