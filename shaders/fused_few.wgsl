// Few tokens, second dispatch: one workgroup per 4 QUADS columns and all tokens, so that each weight is read once.
//
//     lane l:  the experts' ranks l, l + 64, .. and the fours l, l + 64, .. of the inner dimension, for all tokens
//     the 64 sums of each token and column are joined (tree.wgsl or sum.wgsl)
//
// TOKENS is at least the number of tokens; the rows too many repeat the last. The first dispatch has told of ids, slots
// and weights that count for nothing.

const LANES: u32 = 64u;
const SUMS: u32 = TOKENS * QUADS;

var<workgroup> partial: array<vec4<f32>, SUMS * PARTIALS>;

// Gives this lane's share of a token's experts, eight columns from `column` of the slice on (four: the first).
fn give_experts(t: u32, own: Invocation, slice: u32, column: u32) {
    let lane = own.lane;
    var low = vec4<f32>();
    var high = vec4<f32>();
    let routes = select(0u, params.top_k, t < params.tokens);
    for (var n = t * params.top_k; n < t * params.top_k + routes; n++) {
        let e = topk_ids_at(n);
        let weight = topk_weights_at(n);
        if (e < 0 || u32(e) >= params.experts || !is_finite(weight)) { continue; }
        let slot = b_slot(u32(e));
        if (!holds(slot, params.epoch) || slot.rank > params.max_rank) { continue; }
        let part = part_of(u32(e), slice);
        let h0 = n * params.h_stride + part.row - slot.row;
        for (var r = lane; r < part.rank; r += LANES) {
            let z = weight * part.scaling * h_at(h0 + r);
            let at = (part.row + r) * params.b_stride + column;
            low += z * b_quad(at);
            if (QUADS == 2u) { high += z * b_quad(at + 4u); }
        }
    }
    give(own, t * QUADS, low);
    if (QUADS == 2u) { give(own, t * QUADS + 1u, high); }
}

fn weights_at(rows: vec4<u32>, i: u32) -> mat4x4<f32> {
    return mat4x4<f32>(w_quad(rows.x + i), w_quad(rows.y + i), w_quad(rows.z + i), w_quad(rows.w + i));
}

@compute @workgroup_size(64)
fn fused_few(
    @builtin(workgroup_id) id: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    own: Invocation,
) {
    let lane = own.lane;
    let group = group_index(id, groups);
    if (group >= params.groups) { return; }
    let columns = columns_of(group, 4u * QUADS);
    let k = params.in_features;
    let last = params.tokens - 1u;
    for (var t = 0u; t < TOKENS; t++) {
        give_experts(t, own, columns.slice, columns.begin - columns.first);
    }
    // Rows that are not there repeat the last one; nobody reads their sums.
    let low_rows = min(columns.begin + vec4(0u, 1u, 2u, 3u), vec4(columns.end - 1u)) * k;
    let high_rows = min(columns.begin + vec4(4u, 5u, 6u, 7u), vec4(columns.end - 1u)) * k;
    var sums: array<vec4<f32>, SUMS>;
    for (var i = 4u * lane; i + 4u <= k; i += 4u * LANES) {
        let low = weights_at(low_rows, i);
        var high = mat4x4<f32>();
        if (QUADS == 2u) { high = weights_at(high_rows, i); }
        for (var t = 0u; t < TOKENS; t++) {
            let v = x_quad(min(t, last) * params.x_stride + i);
            sums[t * QUADS] += v * low;
            if (QUADS == 2u) { sums[t * QUADS + QUADS - 1u] += v * high; }
        }
    }
    if (lane < (k & 3u)) {
        let i = (k & ~3u) + lane;
        for (var t = 0u; t < TOKENS; t++) {
            let v = x_at(min(t, last) * params.x_stride + i);
            let low = low_rows + i;
            sums[t * QUADS] += v * vec4(w_at(low.x), w_at(low.y), w_at(low.z), w_at(low.w));
            if (QUADS == 2u) {
                let high = high_rows + i;
                sums[t * QUADS + QUADS - 1u] += v * vec4(w_at(high.x), w_at(high.y), w_at(high.z), w_at(high.w));
            }
        }
    }
    for (var i = 0u; i < SUMS; i++) { give_more(own, i, sums[i]); }
    join(own, SUMS);
    for (var i = lane; i < params.tokens * QUADS; i += LANES) {
        store_quad(i / QUADS, columns.begin + 4u * (i % QUADS), columns.end, partial[i * PARTIALS]);
    }
}
