// Scores, selection and weights of one token in one workgroup, without a [tokens, experts] matrix; w is the router's
// weight in f32.
//
//     for every eight experts:  eight scores; the first thread inserts them into the sorted list of the best
//     weights: softmax over the list, or over all experts by a running maximum and sum

const LIST: u32 = TOP_K + 1u; // WGSL has no empty arrays
var<workgroup> best_scores: array<f32, LIST>;
var<workgroup> best_ids: array<u32, LIST>;

// Leaves ids, NONE for nothing, and weights in the list, where the first thread sees them.
fn route_token(lane: u32, t: u32, experts: u32) {
    var chosen = 0u;
    var finite = true;
    var largest = 0.0;
    var total = 0.0; // of exp(score - largest)
    for (var e0 = 0u; e0 < experts; e0 += 8u) {
        let count = min(experts - e0, 8u);
        dot8(lane, t * params.x_stride, e0 * params.in_features, params.in_features, count, params.in_features);
        if (lane == 0u) {
            for (var i = 0u; i < count; i++) {
                let z = dot8_of(i) + bias_of(e0 + i);
                finite = finite && is_finite(z);
                if (e0 + i == 0u || z > largest) {
                    total = total * exp(largest - z);
                    largest = z;
                    if (e0 + i == 0u) { total = 0.0; }
                }
                total += exp(z - largest);
                // Insertion; an equal score stays behind the lower expert.
                var place = chosen;
                while (place > 0u && z > best_scores[place - 1u]) { place--; }
                if (place < TOP_K) {
                    chosen = min(chosen + 1u, TOP_K);
                    for (var j = chosen - 1u; j > place; j--) {
                        best_scores[j] = best_scores[j - 1u];
                        best_ids[j] = best_ids[j - 1u];
                    }
                    best_scores[place] = z;
                    best_ids[place] = e0 + i;
                }
            }
        }
        workgroupBarrier();
    }
    if (lane != 0u) { return; }
    if (!finite) {
        atomicOr(&status, SCORE_NOT_FINITE);
        for (var j = 0u; j < TOP_K; j++) {
            best_ids[j] = NONE;
            best_scores[j] = 0.0;
        }
        return;
    }
    if (SOFTMAX_ALL == 0u) {
        total = 0.0;
        for (var j = 0u; j < TOP_K; j++) { total += exp(best_scores[j] - largest); }
    }
    for (var j = 0u; j < TOP_K; j++) { best_scores[j] = exp(best_scores[j] - largest) / total; }
}
