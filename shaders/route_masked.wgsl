// Allow-lists: request r owns tokens offsets[r] .. offsets[r + 1] and list r.

// Where the list of a token's request begins in words; NONE behind the last request.
fn list_of(t: u32) -> u32 {
    // The first offset above t; whatever the offsets hold, it is one of requests + 1, or none.
    var low = 0u;
    var high = params.requests + 1u;
    while (low < high) {
        let middle = (low + high) / 2u;
        if (offsets_at(middle) <= t) { low = middle + 1u; } else { high = middle; }
    }
    if (low == 0u || low > params.requests) { return NONE; }
    return (low - 1u) * ((params.experts + 31u) / 32u);
}

fn allows(list: u32, e: u32) -> bool {
    if (list == NONE) { return false; }
    return ((lists_at(list + e / 32u) >> (e % 32u)) & 1u) == 1u;
}
