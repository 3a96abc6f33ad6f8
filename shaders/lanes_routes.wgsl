// Experts onto rows of y on lanes, y of f32: one workgroup per CHUNKS chunks of tokens and 8 columns a lane. y itself holds the
// sums, each of which is one lane's: no barrier, no workgroup memory, and nothing is rounded that f32 sums are not.
//
//     for each expert, for each sixteen ranks:  sixteen rows of B, in registers
//         for each of the workgroup's routes to it:  four lanes load sixteen ranks of h and hand them out; y[row] += (factor h) B
//
// A token's routes come in the order of their experts, whatever the other tokens. The kernel says slot_at(e) and h_row(n);
// behind lanes_ranks.wgsl.

// What a workgroup takes.
struct Share {
    chunk: u32,
    first: u32, // route
    end: u32,
    row: u32, // of y, the first
    tokens_a_route: f32,
}

fn share_of(group: u32) -> Share {
    let chunk = CHUNKS * (group / params.column_blocks);
    let first = chunk * params.chunk_routes;
    var row = first;
    if (PER_ROUTE == 0u) { row = first / params.top_k; }
    return Share(chunk, first, min(first + CHUNKS * params.chunk_routes, params.routes), row, 1.0 / f32(params.top_k));
}

// Which row of y route n ends in; a product with the reciprocal is exact below 2^16 routes, and drivers divide integers lane
// by lane.
fn row_of(share: Share, n: u32) -> u32 {
    if (PER_ROUTE == 1u) { return n; }
    return share.row + u32(i32((f32(i32(n - share.first)) + 0.5) * share.tokens_a_route));
}

fn weight_of(n: u32) -> f32 {
    if (PER_ROUTE == 1u) { return 1.0; }
    return topk_weights_at(n);
}

// Tells of weights that are not finite, a lane each: the loop below has no place for it.
fn tell(share: Share, own: Invocation) {
    for (var n = share.first + own.lane; n < share.end; n += OWNERS) {
        if (plan[params.at_ids + n] != NONE && !is_finite(weight_of(n))) { atomicOr(&status, WEIGHT_NOT_FINITE); }
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
            let weight = weight_of(n);
            let mine = ranks_of_h(h_row(n) + r + rank4, i32(slot.rank) - i32(r + rank4));
            // Not a product with 0: h may be infinite.
            let z = handed_out(select(vec4<f32>(), slot.scaling * weight * mine, is_finite(weight)));
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

// Adds all experts; the lane's columns begin at `column`.
fn add_experts(share: Share, column: u32, own: Invocation) {
    for (var e = 0u; e < params.experts; e++) {
        let first = plan[params.at_offsets + e];
        let before = params.at_counts + share.chunk * params.experts + e; // of its routes in earlier chunks
        let begin = first + plan[before];
        var end = plan[params.at_offsets + e + 1u];
        if (share.chunk + CHUNKS < params.chunks) { end = first + plan[before + CHUNKS * params.experts]; }
        if (begin >= end) { continue; }
        let slot = slot_at(e);
        if (holds(slot, params.epoch)) {
            add_routes(share, begin, end, slot, column, own);
        } else if (own.lane == 0u) {
            atomicOr(&status, STALE_SLOT);
        }
    }
}
