// Grouped, combined: y_t = sum of w_n (row_n + scaling B h_n) over a token's live routes n, in slot order; zero where it has
// none. One thread per token and four columns; the lanes of a workgroup ask for the same h.

fn row_quad(n: u32, o: u32) -> vec4<f32> {
    let at = n * params.width + o;
    if (o + 4u <= params.width) { return rows_quad(at); }
    var v = vec4(rows_at(at), 0.0, 0.0, 0.0);
    if (o + 1u < params.width) { v.y = rows_at(at + 1u); }
    if (o + 2u < params.width) { v.z = rows_at(at + 2u); }
    return v;
}

@compute @workgroup_size(64)
fn grouped_combine(
    @builtin(workgroup_id) id: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let index = group_index(id, groups) * 64u + lane;
    let t = index / params.quads;
    let o = 4u * (index % params.quads);
    if (t >= params.tokens) { return; }
    var sum = vec4<f32>();
    for (var n = t * params.top_k; n < (t + 1u) * params.top_k; n++) {
        if (plan[params.at_ids + n] == NONE) { continue; }
        let lora = lora_of(n);
        let weight = topk_weights_at(n);
        if (!is_finite(weight)) {
            atomicOr(&status, WEIGHT_NOT_FINITE);
            continue;
        }
        var row = row_quad(n, o);
        if (lora != NONE) { row += lora_quad(n, lora, 0u, o); }
        sum += weight * row;
    }
    let at = t * params.y_stride + o;
    y_put_pair(at, sum.xy, min(params.width - o, 2u));
    if (o + 2u < params.width) { y_put_pair(at + 2u, sum.zw, min(params.width - o - 2u, 2u)); }
}
