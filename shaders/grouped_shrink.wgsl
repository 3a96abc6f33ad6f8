// Grouped with shrink: the first `ahead` workgroups make h = A x of the rows' LoRAs, which needs what the product needs; the
// others are grouped's. `a` is A, and `lora_plan` sorts the routes by slot.
//
//     a thread: four routes of one slot times eight ranks, straight from memory; lanes next to each other ask for the same A
//
// No workgroup memory (the product has it) and no barrier. One thread adds all products of a sum, in the order of the inner
// dimension: the same bits in every batch. Combine tells of slots that changed.

// Four columns of four rows of A.
fn a_rows(at: vec4<u32>) -> mat4x4<f32> {
    return mat4x4<f32>(a_quad(at.x), a_quad(at.y), a_quad(at.z), a_quad(at.w));
}

fn put_four(n: u32, r: u32, rank: u32, v: vec4<f32>) {
    let at = n * params.h_stride + r;
    if (r < rank) { h_put_pair(at, v.xy, min(rank - r, 2u)); }
    if (r + 2u < rank) { h_put_pair(at + 2u, v.zw, min(rank - r - 2u, 2u)); }
}

fn put_ranks(n: u32, r: u32, rank: u32, low: vec4<f32>, high: vec4<f32>) {
    put_four(n, r, rank, low);
    put_four(n, r + 4u, rank, high);
}

// Sorted routes from `first` on, at most four of `routes`, times eight ranks from r on.
fn shrink_block(slot: Slot, first: u32, routes: u32, r: u32) {
    // Routes and ranks that are not there repeat the last one; nobody stores their sums.
    let i = params.lora_at_sorted + first + min(vec4(0u, 1u, 2u, 3u), vec4(routes - 1u));
    let n = vec4(lora_plan[i.x], lora_plan[i.y], lora_plan[i.z], lora_plan[i.w]);
    let x = n / params.routes_a_row * params.x_stride;
    let place = r + vec4(0u, 1u, 2u, 3u);
    let a = (slot.row + min(place, vec4(slot.rank - 1u))) * params.a_stride;
    let b = (slot.row + min(place + 4u, vec4(slot.rank - 1u))) * params.a_stride;
    let k = params.in_features;
    // Column m: route m.
    var low = mat4x4<f32>();
    var high = mat4x4<f32>();
    for (var c = 0u; c + 4u <= k; c += 4u) {
        let v = mat4x4<f32>(x_quad(x.x + c), x_quad(x.y + c), x_quad(x.z + c), x_quad(x.w + c));
        low += transpose(a_rows(a + c)) * v;
        high += transpose(a_rows(b + c)) * v;
    }
    if ((k & 3u) != 0u) {
        // Zeros behind the last column, and in A's rows, which are whole fours.
        let c = k & ~3u;
        let v = mat4x4<f32>(x_part(x.x, c, k), x_part(x.y, c, k), x_part(x.z, c, k), x_part(x.w, c, k));
        low += transpose(a_rows(a + c)) * v;
        high += transpose(a_rows(b + c)) * v;
    }
    put_ranks(n.x, r, slot.rank, low[0], high[0]);
    if (routes > 1u) { put_ranks(n.y, r, slot.rank, low[1], high[1]); }
    if (routes > 2u) { put_ranks(n.z, r, slot.rank, low[2], high[2]); }
    if (routes > 3u) { put_ranks(n.w, r, slot.rank, low[3], high[3]); }
}

// A tile of one slot's routes times RANKS ranks.
fn shrink_tile(group: u32, thread: u32, threads: u32) {
    let tile = group / params.rank_blocks;
    if (tile >= lora_plan[params.lora_at_tile_offsets + params.slots]) { return; }
    let e = lora_plan[params.lora_at_tiles + 2u * tile];
    let first = lora_plan[params.lora_at_tiles + 2u * tile + 1u];
    let routes = min(lora_plan[params.lora_at_offsets + e + 1u] - first, TILE_M);
    let slot = slots[e];
    if (!holds(slot, params.lora_epoch)) { return; }
    for (var block = thread; block < QUADS_M * (RANKS / 8u); block += threads) {
        let m = 4u * (block % QUADS_M);
        let r = RANKS * (group % params.rank_blocks) + 8u * (block / QUADS_M);
        if (m < routes && r < slot.rank) { shrink_block(slot, first + m, routes - m, r); }
    }
}

@compute @workgroup_size(THREADS)
fn grouped_shrink(
    @builtin(workgroup_id) id: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let group = id.x + id.y * groups.x;
    if (group < params.ahead) {
        shrink_tile(group, thread, THREADS);
    } else {
        tile_rows(group_index(vec3(group - params.ahead, 0u, 0u), groups), thread);
    }
}
