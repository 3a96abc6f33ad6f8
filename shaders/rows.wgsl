// Few rows: one row of x times up to eight rows of w by one workgroup of 64.
//
// Lane l adds the fours l, l + 64, .. of the inner dimension, then the 64 sums are joined (tree.wgsl or sum.wgsl): one
// order, whatever the other rows.

const LANES: u32 = 64u;

var<workgroup> partial: array<vec4<f32>, 2u * PARTIALS>;

fn dot8(own: Invocation, x0: u32, w0: u32, w_stride: u32, w_count: u32, k: u32) {
    let lane = own.lane;
    // Rows that are not there repeat the last one; nobody reads their sums.
    let last = w_count - 1u;
    let w1 = w0 + min(1u, last) * w_stride;
    let w2 = w0 + min(2u, last) * w_stride;
    let w3 = w0 + min(3u, last) * w_stride;
    let w4 = w0 + min(4u, last) * w_stride;
    let w5 = w0 + min(5u, last) * w_stride;
    let w6 = w0 + min(6u, last) * w_stride;
    let w7 = w0 + min(7u, last) * w_stride;
    var low = vec4<f32>();
    var high = vec4<f32>();
    for (var i = 4u * lane; i + 4u <= k; i += 4u * LANES) {
        let v = x_quad(x0 + i);
        low += vec4(dot(v, w_quad(w0 + i)), dot(v, w_quad(w1 + i)), dot(v, w_quad(w2 + i)), dot(v, w_quad(w3 + i)));
        high += vec4(dot(v, w_quad(w4 + i)), dot(v, w_quad(w5 + i)), dot(v, w_quad(w6 + i)), dot(v, w_quad(w7 + i)));
    }
    if (lane < (k & 3u)) {
        let i = (k & ~3u) + lane;
        let v = x_at(x0 + i);
        low += v * vec4(w_at(w0 + i), w_at(w1 + i), w_at(w2 + i), w_at(w3 + i));
        high += v * vec4(w_at(w4 + i), w_at(w5 + i), w_at(w6 + i), w_at(w7 + i));
    }
    give(own, 0u, low);
    give(own, 1u, high);
    join(own, 2u);
}

// The product with row `r` of w, after dot8.
fn dot8_of(r: u32) -> f32 {
    return partial[(r >> 2u) * PARTIALS][r & 3u];
}
