// The gate's own routing, by the kernel of the room `route`; a is A, g the router's weight with its bias behind.

// Whether w is the router's weight.
var<private> scoring: bool;

fn w_quad(i: u32) -> vec4<f32> {
    if (scoring) { return g_quad(i); }
    return a_quad(i);
}

fn w_at(i: u32) -> f32 {
    if (scoring) { return g_at(i); }
    return a_at(i);
}

fn bias_of(e: u32) -> f32 { return g_at(params.scores * params.in_features + e); }

// Plain choices have none.
fn threshold_given() -> f32 { return 0.0; }

fn choose(own: Invocation, t0: u32, rows: u32, writes: bool) {
    scoring = true;
    for (var m = 0u; m < rows; m++) {
        route_token(own, t0 + m, params.scores);
        if (own.lane == 0u) {
            for (var j = 0u; j < TOP_K; j++) {
                let id = i32(best_ids[j]);
                let weight = best_scores[j];
                chosen[m * TOP_K + j] = choice_of(id, weight);
                if (writes) {
                    topk_ids_put((t0 + m) * TOP_K + j, id);
                    topk_weights_put((t0 + m) * TOP_K + j, weight);
                }
            }
        }
    }
    scoring = false;
}
