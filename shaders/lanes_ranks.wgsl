// What the products on lanes that read h and B share; behind subgroup.wgsl.

// Four ranks from `at` on of `left` that there are (none where it is not above 0), zeros behind: not a product with 0, what
// lies there may be infinite.
fn ranks_of_h(at: u32, left: i32) -> vec4<f32> {
    return select(vec4<f32>(), h_quad(at), vec4(0, 1, 2, 3) < vec4(left));
}

// Four rows of B from rank r on; behind the last rank that one again, times zeros.
fn rows_of_b(part: Slot, r: u32, column: u32) -> mat4x4<f32> {
    let rows = (part.row + min(vec4(r, r + 1u, r + 2u, r + 3u), vec4(part.rank - 1u))) * params.b_stride + column;
    return mat4x4<f32>(b_quad(rows.x), b_quad(rows.y), b_quad(rows.z), b_quad(rows.w));
}
