// Grouped on lanes, plain or gated: LoRAs onto 16 rows in registers.

// The LoRA of one of the 16 rows; nothing is told here, `lora_of` tells.
fn lora_id(n: u32) -> u32 {
    let id = lora_ids_at(n);
    if (id < 0 || u32(id) >= params.slots || !holds(b_slot(u32(id)), params.lora_epoch)) { return NONE; }
    return u32(id);
}

fn lora_rows(row: u32, rank: u32, r: u32, column: u32) -> mat4x4<f32> {
    // Columns behind B's and ranks behind the last: some that are there, times zeros or into sums that nobody reads.
    let rows = (row + min(vec4(r, r + 1u, r + 2u, r + 3u), vec4(rank - 1u))) * params.b_stride + min(column, params.b_stride - 4u);
    return mat4x4<f32>(b_quad(rows.x), b_quad(rows.y), b_quad(rows.z), b_quad(rows.w));
}

// Four ranks of scaling h, zeros behind the last.
fn lora_h(at: u32, left: u32, scaling: f32) -> vec4<f32> {
    var v = vec4(h_at(at), 0.0, 0.0, 0.0);
    if (left > 1u) { v.y = h_at(at + 1u); }
    if (left > 2u) { v.z = h_at(at + 2u); }
    if (left > 3u) { v.w = h_at(at + 3u); }
    return scaling * v;
}

// The columns of four rows that a turn reaches; not a product with 0, B may be infinite.
fn reached(turn: u32, old: mat4x4<f32>, next: mat4x4<f32>) -> mat4x4<f32> {
    return mat4x4<f32>(
        select(old[0], next[0], (turn & 1u) != 0u),
        select(old[1], next[1], (turn & 2u) != 0u),
        select(old[2], next[2], (turn & 4u) != 0u),
        select(old[3], next[3], (turn & 8u) != 0u),
    );
}

// Adds one LoRA to the rows whose bit is in `turn`; n are the routes whose h this lane loads.
fn add_lora(s: ptr<function, Block>, lora: u32, turn: u32, n: vec4<u32>, o: u32) {
    let slot = b_slot(lora);
    var low = slot;
    var high = slot;
    if (GATED == 1u) {
        low = b_slot(params.slots + lora);
        high = b_slot(2u * params.slots + lora);
    }
    let h = n * params.h_stride - slot.row;
    var added = Block();
    for (var r = 0u; r < low.rank; r += 4u) {
        let b = lora_rows(low.row, low.rank, r, o);
        let at = h + low.row + r;
        let left = low.rank - r;
        added.a0 += b * handed_out(lora_h(at.x, left, low.scaling));
        added.a1 += b * handed_out(lora_h(at.y, left, low.scaling));
        added.a2 += b * handed_out(lora_h(at.z, left, low.scaling));
        added.a3 += b * handed_out(lora_h(at.w, left, low.scaling));
    }
    for (var r = 0u; r < high.rank; r += 4u) {
        let b = lora_rows(high.row, high.rank, r, o + 4u * (1u - GATED));
        let at = h + high.row + r;
        let left = high.rank - r;
        added.b0 += b * handed_out(lora_h(at.x, left, high.scaling));
        added.b1 += b * handed_out(lora_h(at.y, left, high.scaling));
        added.b2 += b * handed_out(lora_h(at.z, left, high.scaling));
        added.b3 += b * handed_out(lora_h(at.w, left, high.scaling));
    }
    (*s).a0 = reached(turn, (*s).a0, (*s).a0 + added.a0);
    (*s).a1 = reached(turn >> 4u, (*s).a1, (*s).a1 + added.a1);
    (*s).a2 = reached(turn >> 8u, (*s).a2, (*s).a2 + added.a2);
    (*s).a3 = reached(turn >> 12u, (*s).a3, (*s).a3 + added.a3);
    (*s).b0 = reached(turn, (*s).b0, (*s).b0 + added.b0);
    (*s).b1 = reached(turn >> 4u, (*s).b1, (*s).b1 + added.b1);
    (*s).b2 = reached(turn >> 8u, (*s).b2, (*s).b2 + added.b2);
    (*s).b3 = reached(turn >> 12u, (*s).b3, (*s).b3 + added.b3);
}

// Adds every LoRA of the sorted routes from `first` on once; n are those whose h this lane loads, o is its first column.
fn add_loras(s: ptr<function, Block>, first: u32, routes: u32, block: u32, n: vec4<u32>, o: u32, own: Invocation) {
    var done = 0u;
    for (var m = 0u; m < routes; m++) {
        if (own.lane == 0u && block == 0u) { lora_of(plan[params.at_sorted + first + m]); }
        let lora = lora_id(plan[params.at_sorted + first + m]);
        if (lora == NONE || (done & (1u << m)) != 0u) { continue; }
        var turn = 0u;
        for (var j = m; j < routes; j++) {
            if (lora_id(plan[params.at_sorted + first + j]) == lora) { turn |= 1u << j; }
        }
        done |= turn;
        add_lora(s, lora, turn, n, o);
    }
}
