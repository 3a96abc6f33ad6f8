// Fused, the sparse form on lanes: the base product of a chunk's tokens in registers, then the chunk's experts onto it. x,
// w and y as in base.wgsl; b is B transposed behind the pool's slots. See src/ops/fused.rs, lanes.wgsl and lanes_ranks.wgsl.
//
//     for each expert of the chunk, for each sixteen ranks:  sixteen rows of B, in registers
//         for each route:  four lanes load sixteen ranks of h and hand them out; grown[its row] += (weight scaling h) B
//
// A chunk's routes come sorted by expert: the order of a token's sums is its own experts', whatever the other tokens.

// Rows of y that grow in workgroup memory, eight columns a lane, none of which another lane touches: no barrier.
var<workgroup> grown: array<vec4<f32>, 2u * GROWN_ROWS * OWNERS>;

fn grown_at(row: u32, half: u32, own: Invocation) -> u32 { return (2u * row + half) * OWNERS + own.lane; }

// i / top_k for i below 2^16, which a reciprocal gives exactly; drivers divide integers lane by lane.
fn token_of(i: u32) -> u32 { return u32((f32(i) + 0.5) / f32(params.top_k)); }

fn route_at(chunk: u32, i: u32) -> u32 {
    return plan[params.at_chunks + chunk * params.chunk_routes + i];
}

fn expert_at(chunk: u32, i: u32, count: u32) -> u32 {
    if (i >= count) { return NONE; }
    return plan[params.at_ids + route_at(chunk, i)];
}

fn grown_row(chunk: u32, n: u32, i: u32) -> u32 {
    return token_of(n - chunk * params.chunk_routes);
}

fn h_row(n: u32) -> u32 {
    if (RANK_SUM == 1u) { return n / params.top_k * params.h_stride; }
    return n * params.h_stride;
}

fn weight_at(n: u32) -> f32 { return topk_weights_at(n); }

// Adds routes begin .. end of the chunk, all to `part`, whose ranks begin at `first` of a row of h.
fn add_routes(chunk: u32, begin: u32, end: u32, part: Slot, first: u32, column: u32, own: Invocation) {
    // Columns behind the last are computed and not stored.
    let low = min(column, params.b_stride - 4u);
    let high = min(column + 4u, params.b_stride - 4u);
    let rank4 = 4u * (own.place & 3u);
    for (var r = 0u; r < part.rank; r += 16u) {
        let a0 = rows_of_b(part, r, low);
        let a1 = rows_of_b(part, r + 4u, low);
        let a2 = rows_of_b(part, r + 8u, low);
        let a3 = rows_of_b(part, r + 12u, low);
        let b0 = rows_of_b(part, r, high);
        let b1 = rows_of_b(part, r + 4u, high);
        let b2 = rows_of_b(part, r + 8u, high);
        let b3 = rows_of_b(part, r + 12u, high);
        for (var i = begin; i < end; i++) {
            let n = route_at(chunk, i);
            let weight = weight_at(n);
            if (!is_finite(weight)) {
                atomicOr(&status, WEIGHT_NOT_FINITE);
                continue;
            }
            let mine = ranks_of_h(h_row(n) + first + r + rank4, i32(part.rank) - i32(r + rank4));
            let z = handed_out(part.scaling * weight * mine);
            let at = grown_at(grown_row(chunk, n, i - begin), 0u, own);
            grown[at] += a0 * z[0] + a1 * z[1] + a2 * z[2] + a3 * z[3];
            grown[at + OWNERS] += b0 * z[0] + b1 * z[1] + b2 * z[2] + b3 * z[3];
        }
    }
}

@compute @workgroup_size(OWNERS)
fn fused_lanes(
    @builtin(workgroup_id) id: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    own: Invocation,
) {
    let group = group_index(id, groups);
    if (group >= params.groups) { return; }
    let chunk = group / params.column_blocks;
    let columns = columns_of(group % params.column_blocks, 8u * OWNERS);
    let t0 = params.chunk_tokens * chunk;
    let rows = min(params.tokens - t0, params.chunk_tokens);
    let o = columns.begin + 8u * own.lane;
    let k = params.in_features;
    // Rows and columns that are not there repeat the last one; nobody reads their sums.
    let x = (t0 + min(shared_place(own), vec4(rows - 1u))) * params.x_stride;
    let last = vec4(columns.end - 1u);
    let w = min(o + vec4(0u, 1u, 2u, 3u), last) * k;
    keep(lanes_product(x, w, min(o + vec4(4u, 5u, 6u, 7u), last) * k, k));
    for (var m = 0u; m < rows; m++) {
        let at = grown_at(m, 0u, own);
        grown[at] = lane_low[m];
        grown[at + OWNERS] = lane_high[m];
    }
    let count = min(params.chunk_routes, params.routes - min(params.routes, chunk * params.chunk_routes));
    var begin = 0u;
    while (begin < count) {
        let e = expert_at(chunk, begin, count);
        if (e == NONE) { break; }
        var end = begin + 1u;
        while (expert_at(chunk, end, count) == e) { end++; }
        let slot = b_slot(e);
        if (holds(slot, params.epoch)) {
            let part = part_of(e, columns.slice);
            add_routes(chunk, begin, end, part, part.row - slot.row, o - columns.first, own);
        } else if (own.lane == 0u) {
            atomicOr(&status, STALE_SLOT);
        }
        begin = end;
    }
    for (var m = 0u; m < rows; m++) {
        let at = grown_at(m, 0u, own);
        store_quad(t0 + m, o, columns.end, grown[at]);
        store_quad(t0 + m, o + 4u, columns.end, grown[at + OWNERS]);
    }
}
