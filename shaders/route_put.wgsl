// A token's row of ids and weights from its list; the shared experts' columns are the last.

fn put_row(t: u32, list: u32, good: bool) {
    let row = t * (TOP_K + SHARED);
    for (var j = 0u; j < TOP_K; j++) {
        topk_ids_put(row + j, i32(best_ids[j * LISTS + list]));
        topk_weights_put(row + j, best_scores[j * LISTS + list]);
    }
    for (var j = 0u; j < SHARED; j++) {
        topk_ids_put(row + TOP_K + j, select(-1, i32(params.experts + j), good));
        topk_weights_put(row + TOP_K + j, select(0.0, 1.0, good));
    }
}
