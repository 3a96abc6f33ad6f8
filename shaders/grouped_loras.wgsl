// A route's LoRA in a grouped product: its slot, and its part of a row; b is B transposed behind the LoRA pool's slots.
// Ranks are exact.

// What changes a row: the slot of its LoRA, NONE where there is none.
fn lora_of(n: u32) -> u32 {
    let id = lora_ids_at(n);
    if (id == -1) { return NONE; }
    if (id < 0 || u32(id) >= params.slots) {
        atomicOr(&status, ID_OUT_OF_RANGE);
        return NONE;
    }
    if (!holds(b_slot(u32(id)), params.lora_epoch)) {
        atomicOr(&status, STALE_SLOT);
        return NONE;
    }
    return u32(id);
}

// Four columns of B h of a slice, from `column` of the slice on.
fn lora_quad(n: u32, lora: u32, slice: u32, column: u32) -> vec4<f32> {
    var sum = vec4<f32>();
    if (column >= params.b_stride) { return sum; }
    let slot = b_slot(lora);
    var part = slot;
    if (GATED == 1u) { part = b_slot((1u + slice) * params.slots + lora); }
    let h = n * params.h_stride + part.row - slot.row;
    for (var r = 0u; r < part.rank; r++) {
        sum += part.scaling * h_at(h + r) * b_quad((part.row + r) * params.b_stride + column);
    }
    return sum;
}
