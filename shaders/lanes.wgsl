// Many rows without workgroup memory and barriers: sixteen rows that all lanes share, times eight rows that each lane
// owns. For devices on which a load costs the same whether its lanes share an address or not, such as software drivers.
//
//     for every four columns of the inner dimension:
//         each lane loads its own eight rows, and of each four shared rows the one that its place in the subgroup names
//         the subgroup's first four lanes hand all shared rows out: 16 x 8 products
//
// Handing out moves bits and adds none: a sum is one lane's, in the order of the inner dimension, whatever the subgroups.
// All lanes of a workgroup come along to the end. The kernel says what is shared and what is owned: shared_quad(i),
// shared_at(i), own_quad(i), own_at(i).

// Row 4 q + j of the shared ones: column j of a's or b's q-th matrix; a: the lane's first four rows, b: the next.
struct Block {
    a0: mat4x4<f32>, a1: mat4x4<f32>, a2: mat4x4<f32>, a3: mat4x4<f32>,
    b0: mat4x4<f32>, b1: mat4x4<f32>, b2: mat4x4<f32>, b3: mat4x4<f32>,
}

// Adds four columns: `low` and `high` have one of them each, over the lane's rows; x the shared rows that this lane loaded.
fn add_columns(s: ptr<function, Block>, low: mat4x4<f32>, high: mat4x4<f32>, x0: vec4<f32>, x1: vec4<f32>, x2: vec4<f32>, x3: vec4<f32>) {
    let v0 = handed_out(x0);
    (*s).a0 += low * v0;
    (*s).b0 += high * v0;
    let v1 = handed_out(x1);
    (*s).a1 += low * v1;
    (*s).b1 += high * v1;
    let v2 = handed_out(x2);
    (*s).a2 += low * v2;
    (*s).b2 += high * v2;
    let v3 = handed_out(x3);
    (*s).a3 += low * v3;
    (*s).b3 += high * v3;
}

// The last one to three columns of a row, zeros behind.
fn own_rest(i: u32, left: u32) -> vec4<f32> {
    var v = vec4(own_at(i), 0.0, 0.0, 0.0);
    if (left > 1u) { v.y = own_at(i + 1u); }
    if (left > 2u) { v.z = own_at(i + 2u); }
    return v;
}

fn shared_rest(i: u32, left: u32) -> vec4<f32> {
    var v = vec4(shared_at(i), 0.0, 0.0, 0.0);
    if (left > 1u) { v.y = shared_at(i + 1u); }
    if (left > 2u) { v.z = shared_at(i + 2u); }
    return v;
}

// `x`: where the shared rows that this lane loads begin, see shared_place; `w` and `v`: where its own eight begin.
fn lanes_product(x: vec4<u32>, w: vec4<u32>, v: vec4<u32>, k: u32) -> Block {
    var s = Block();
    let whole = k & ~3u;
    for (var i = 0u; i < whole; i += 4u) {
        let low = mat4x4<f32>(own_quad(w.x + i), own_quad(w.y + i), own_quad(w.z + i), own_quad(w.w + i));
        let high = mat4x4<f32>(own_quad(v.x + i), own_quad(v.y + i), own_quad(v.z + i), own_quad(v.w + i));
        add_columns(
            &s, transpose(low), transpose(high),
            shared_quad(x.x + i), shared_quad(x.y + i), shared_quad(x.z + i), shared_quad(x.w + i),
        );
    }
    if (whole < k) {
        let i = whole;
        let left = k - whole;
        let low = mat4x4<f32>(own_rest(w.x + i, left), own_rest(w.y + i, left), own_rest(w.z + i, left), own_rest(w.w + i, left));
        let high = mat4x4<f32>(own_rest(v.x + i, left), own_rest(v.y + i, left), own_rest(v.z + i, left), own_rest(v.w + i, left));
        add_columns(
            &s, transpose(low), transpose(high),
            shared_rest(x.x + i, left), shared_rest(x.y + i, left), shared_rest(x.z + i, left), shared_rest(x.w + i, left),
        );
    }
    return s;
}

// The sums when they are done: the m-th shared row times the lane's first four rows, and the next.
var<private> lane_low: array<vec4<f32>, 16>;
var<private> lane_high: array<vec4<f32>, 16>;

fn keep(s: Block) {
    lane_low = array<vec4<f32>, 16>(
        s.a0[0], s.a0[1], s.a0[2], s.a0[3], s.a1[0], s.a1[1], s.a1[2], s.a1[3],
        s.a2[0], s.a2[1], s.a2[2], s.a2[3], s.a3[0], s.a3[1], s.a3[2], s.a3[3],
    );
    lane_high = array<vec4<f32>, 16>(
        s.b0[0], s.b0[1], s.b0[2], s.b0[3], s.b1[0], s.b1[1], s.b1[2], s.b1[3],
        s.b2[0], s.b2[1], s.b2[2], s.b2[3], s.b3[0], s.b3[1], s.b3[2], s.b3[3],
    );
}
