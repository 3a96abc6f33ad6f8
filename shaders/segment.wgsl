// What expand and fused share on lanes: rows of y that grow in workgroup memory, eight columns a lane, none of which another
// lane touches, so there is no barrier.

var<workgroup> grown: array<vec4<f32>, 2u * GROWN_ROWS * OWNERS>;

fn grown_at(row: u32, half: u32, own: Invocation) -> u32 { return (2u * row + half) * OWNERS + own.lane; }

// i / top_k for i below 2^16, which a reciprocal gives exactly; drivers divide integers lane by lane.
fn token_of(i: u32) -> u32 { return u32((f32(i) + 0.5) / f32(params.top_k)); }

// Four ranks from `at` on of `left` that there are (none where it is not above 0), zeros behind.
fn ranks_of_h(at: u32, left: i32) -> vec4<f32> {
    if (left >= 4) { return h_quad(at); }
    var v = vec4<f32>();
    if (left > 0) { v.x = h_at(at); }
    if (left > 1) { v.y = h_at(at + 1u); }
    if (left > 2) { v.z = h_at(at + 2u); }
    return v;
}

// Four rows of B from rank r on; behind the last rank that one again, times zeros.
fn rows_of_b(part: Slot, r: u32, column: u32) -> mat4x4<f32> {
    let rows = (part.row + min(vec4(r, r + 1u, r + 2u, r + 3u), vec4(part.rank - 1u))) * params.b_stride + column;
    return mat4x4<f32>(b_quad(rows.x), b_quad(rows.y), b_quad(rows.z), b_quad(rows.w));
}
