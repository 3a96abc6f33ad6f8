// Attend: one workgroup a token; w is the router's A in f32, k a row of K for each row of the pool. See src/ops/attend.rs.
//
//     query = A_r x, eight rows of A_r at a time
//     for every eight routes, eight lanes each:  score = sum over the expert's rows j of h_nj <K_j, query> / sqrt(r_r)
//     weights: softmax over the routes that have one

var<workgroup> query: array<f32, QUERY>;
var<workgroup> scores: array<f32, ROUTES>;
var<workgroup> live: array<u32, ROUTES>;
var<workgroup> parts: array<f32, 64>;
// The largest score; the sum of exp(score - largest), 0 where all weights are.
var<workgroup> softmax: vec2<f32>;

// <K_j, query>.
fn key_product(j: u32) -> f32 {
    let k0 = j * params.router_rank;
    var sum = 0.0;
    var c = 0u;
    for (; c + 4u <= params.router_rank; c += 4u) {
        sum += dot(k_quad(k0 + c), vec4(query[c], query[c + 1u], query[c + 2u], query[c + 3u]));
    }
    for (; c < params.router_rank; c++) { sum += k_at(k0 + c) * query[c]; }
    return sum;
}

// One of eight parts of a route's score.
fn score_part(n: u32, slot: Slot, part: u32) -> f32 {
    var sum = 0.0;
    for (var j = part; j < slot.rank; j += 8u) {
        sum += h_at(n * params.h_stride + j) * key_product(slot.row + j);
    }
    return sum;
}

fn softmax_over(routes: u32) -> vec2<f32> {
    var any = false;
    var finite = true;
    var largest = 0.0;
    for (var j = 0u; j < routes; j++) {
        if (live[j] == 0u) { continue; }
        finite = finite && is_finite(scores[j]);
        largest = select(scores[j], max(largest, scores[j]), any);
        any = true;
    }
    if (!finite) {
        atomicOr(&status, SCORE_NOT_FINITE);
        return vec2(0.0, 0.0);
    }
    var total = 0.0;
    for (var j = 0u; j < routes; j++) {
        if (live[j] != 0u) { total += exp(scores[j] - largest); }
    }
    return vec2(largest, total);
}

@compute @workgroup_size(64)
fn attend(
    @builtin(workgroup_id) id: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    own: Invocation,
) {
    let lane = own.lane;
    let t = group_index(id, groups);
    if (t >= params.groups) { return; }
    for (var r0 = 0u; r0 < params.router_rank; r0 += 8u) {
        let count = min(params.router_rank - r0, 8u);
        dot8(own, t * params.x_stride, r0 * params.a_stride, params.a_stride, count, params.in_features);
        if (lane < count) { query[r0 + lane] = dot8_of(lane); }
        workgroupBarrier();
    }
    let part = lane & 7u;
    for (var j0 = 0u; j0 < params.top_k; j0 += 8u) {
        let j = j0 + (lane >> 3u);
        let n = t * params.top_k + j;
        var sum = 0.0;
        var is_live = 0u;
        if (j < params.top_k) {
            let e = plan[params.at_ids + n];
            if (e != NONE) {
                let slot = slots[e];
                if (holds(slot, params.epoch)) {
                    is_live = 1u;
                    sum = score_part(n, slot, part);
                } else if (part == 0u) {
                    atomicOr(&status, STALE_SLOT);
                }
            }
        }
        parts[lane] = sum;
        workgroupBarrier();
        if (part == 0u && j < params.top_k) {
            for (var i = 1u; i < 8u; i++) { sum += parts[lane + i]; }
            scores[j] = sum / sqrt(f32(params.router_rank));
            live[j] = is_live;
        }
        workgroupBarrier();
    }
    if (lane == 0u) { softmax = softmax_over(params.top_k); }
    workgroupBarrier();
    for (var j = lane; j < params.top_k; j += 64u) {
        var weight = 0.0;
        if (live[j] != 0u && softmax.y > 0.0) { weight = exp(scores[j] - softmax.x) / softmax.y; }
        topk_weights_put(t * params.top_k + j, weight);
    }
}
