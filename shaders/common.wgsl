// What every kernel shares; joined behind the generated header.

// An entry of a plan that names nothing.
const NONE: u32 = 0xffffffffu;

// One slot of a pool, as `adapter::slots::Slot` lays it out.
struct Slot {
    row: u32,
    rank: u32,
    scaling: f32,
    added_at: u32,
}

// Whether the slot still is what the ids of a plan made at `epoch` meant.
fn holds(slot: Slot, epoch: u32) -> bool {
    return slot.rank > 0u && slot.added_at <= epoch;
}

// Grids of more workgroups than one dimension takes are folded into two. A dispatch of some blocks of columns counts as
// the one of all blocks does (src/device/wgpu/parts.rs); whole dispatches have blocks of one.
fn group_index(id: vec3<u32>, groups: vec3<u32>) -> u32 {
    let group = id.x + id.y * groups.x;
    return group / params.part_blocks * params.all_blocks + params.first_block + group % params.part_blocks;
}

fn is_finite(v: f32) -> bool {
    // By its bits: a compiler may assume that floats are never NaN.
    return (bitcast<u32>(v) & 0x7f800000u) != 0x7f800000u;
}

// bf16 is the upper half of an f32: widening is exact.
fn widen_bf16(pair: u32) -> vec2<f32> {
    return vec2(bitcast<f32>(pair << 16u), bitcast<f32>(pair & 0xffff0000u));
}

// To nearest, ties to even; a NaN stays one.
fn narrow_bf16(v: f32) -> u32 {
    let bits = bitcast<u32>(v);
    if ((bits & 0x7fffffffu) > 0x7f800000u) {
        return (bits >> 16u) | 0x40u;
    }
    return (bits + 0x7fffu + ((bits >> 16u) & 1u)) >> 16u;
}

// To nearest, ties to even, by hand: pack2x16float may round either way.
fn narrow_f16(v: f32) -> u32 {
    let bits = bitcast<u32>(v);
    let sign = (bits >> 16u) & 0x8000u;
    let magnitude = bits & 0x7fffffffu;
    if (magnitude > 0x7f800000u) {
        return sign | 0x7e00u;
    }
    if (magnitude >= 0x477ff000u) { // rounds to 65536 or more
        return sign | 0x7c00u;
    }
    if (magnitude < 0x38800000u) { // below the smallest normal: in units of 2^-24
        if (magnitude < 0x33000000u) {
            return sign;
        }
        let shift = 126u - (magnitude >> 23u);
        let mantissa = (magnitude & 0x7fffffu) | 0x800000u;
        let half_unit = 1u << (shift - 1u);
        let whole = mantissa >> shift;
        let rest = mantissa & ((1u << shift) - 1u);
        let up = select(0u, 1u, rest > half_unit || (rest == half_unit && (whole & 1u) == 1u));
        return sign | (whole + up);
    }
    let rebased = magnitude - 0x38000000u;
    return sign | ((rebased + 0xfffu + ((rebased >> 13u) & 1u)) >> 13u);
}
