// Shrink, many routes on lanes: one workgroup per tile of one expert's routes and 16 ranks; a lane owns 8 routes, or 2 of an
// expert's last few, A is shared.
fn shared_quad(i: u32) -> vec4<f32> { return w_quad(i); }
fn shared_at(i: u32) -> f32 { return w_at(i); }
fn own_quad(i: u32) -> vec4<f32> { return x_quad(i); }
fn own_at(i: u32) -> f32 { return x_at(i); }

fn four_routes(first: u32, m: u32, routes: u32) -> vec4<u32> {
    let i = params.at_sorted + first + min(m + vec4(0u, 1u, 2u, 3u), vec4(routes - 1u));
    return vec4(plan[i.x], plan[i.y], plan[i.z], plan[i.w]);
}

// Rank r of four routes, those behind the last left alone.
fn put_four(n: vec4<u32>, r: u32, m: u32, routes: u32, v: vec4<f32>) {
    let at = n * params.h_stride + r;
    if (m < routes) { h_put(at.x, v.x); }
    if (m + 1u < routes) { h_put(at.y, v.y); }
    if (m + 2u < routes) { h_put(at.z, v.z); }
    if (m + 3u < routes) { h_put(at.w, v.w); }
}

fn add_to_low(s: ptr<function, Block>, low: mat4x4<f32>, x0: vec4<f32>, x1: vec4<f32>, x2: vec4<f32>, x3: vec4<f32>) {
    (*s).a0 += low * handed_out(x0);
    (*s).a1 += low * handed_out(x1);
    (*s).a2 += low * handed_out(x2);
    (*s).a3 += low * handed_out(x3);
}

// lanes_product for two rows a lane (twice each, as four): the same sums in the same order, by half the loads.
fn product_of_two(x: vec4<u32>, w: vec2<u32>, k: u32) -> Block {
    var s = Block();
    let whole = k & ~3u;
    for (var i = 0u; i < whole; i += 4u) {
        let first = own_quad(w.x + i);
        let second = own_quad(w.y + i);
        add_to_low(
            &s, transpose(mat4x4<f32>(first, second, first, second)),
            shared_quad(x.x + i), shared_quad(x.y + i), shared_quad(x.z + i), shared_quad(x.w + i),
        );
    }
    if (whole < k) {
        let i = whole;
        let left = k - whole;
        let first = own_rest(w.x + i, left);
        let second = own_rest(w.y + i, left);
        add_to_low(
            &s, transpose(mat4x4<f32>(first, second, first, second)),
            shared_rest(x.x + i, left), shared_rest(x.y + i, left), shared_rest(x.z + i, left), shared_rest(x.w + i, left),
        );
    }
    return s;
}

@compute @workgroup_size(OWNERS)
fn shrink_lanes(
    @builtin(workgroup_id) id: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    own: Invocation,
) {
    let group = group_index(id, groups);
    if (group >= params.groups) { return; }
    let tile = group / params.rank_blocks;
    let r0 = 16u * (group % params.rank_blocks);
    if (tile >= plan[params.at_tile_offsets + params.experts]) { return; }
    let e = plan[params.at_tiles + 2u * tile];
    let first = plan[params.at_tiles + 2u * tile + 1u];
    let routes = min(plan[params.at_offsets + e + 1u] - first, 8u * OWNERS);
    let slot = slots[e];
    if (!holds(slot, params.epoch)) {
        if (own.lane == 0u) { atomicOr(&status, STALE_SLOT); }
        return;
    }
    if (r0 >= slot.rank) { return; }
    let count = min(slot.rank - r0, 16u);
    // Routes and ranks that are not there repeat the last one; nobody reads their sums.
    let a = (slot.row + r0 + min(shared_place(own), vec4(count - 1u))) * params.a_stride;
    let k = params.in_features;
    if (routes <= 2u * OWNERS) {
        let m = 2u * own.lane;
        let n = four_routes(first, m, routes);
        keep(product_of_two(a, n.xy / params.top_k * params.x_stride, k));
        for (var r = 0u; r < count; r++) { put_four(n, r0 + r, m, min(routes, m + 2u), lane_low[r]); }
        return;
    }
    let m = 8u * own.lane;
    let low = four_routes(first, m, routes);
    let high = four_routes(first, m + 4u, routes);
    keep(lanes_product(a, low / params.top_k * params.x_stride, high / params.top_k * params.x_stride, k));
    for (var r = 0u; r < count; r++) {
        put_four(low, r0 + r, m, routes, lane_low[r]);
        put_four(high, r0 + r, m + 4u, routes, lane_high[r]);
    }
}
