// Few rows: one row of x times up to eight rows of w by one workgroup of 64.
//
// Lane l adds the pairs l, l + 64, .. of the inner dimension, then the 64 sums are added as a tree: one order,
// whatever the other rows.

const LANES: u32 = 64u;

var<workgroup> partial: array<vec4<f32>, 128>;

fn dot8(lane: u32, x0: u32, w0: u32, w_stride: u32, w_count: u32, k: u32) {
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
    for (var i = 2u * lane; i + 1u < k; i += 2u * LANES) {
        let v = x_pair(x0 + i);
        low += vec4(dot(v, w_pair(w0 + i)), dot(v, w_pair(w1 + i)), dot(v, w_pair(w2 + i)), dot(v, w_pair(w3 + i)));
        high += vec4(dot(v, w_pair(w4 + i)), dot(v, w_pair(w5 + i)), dot(v, w_pair(w6 + i)), dot(v, w_pair(w7 + i)));
    }
    if ((k & 1u) == 1u && lane == 0u) {
        let i = k - 1u;
        let v = x_at(x0 + i);
        low += v * vec4(w_at(w0 + i), w_at(w1 + i), w_at(w2 + i), w_at(w3 + i));
        high += v * vec4(w_at(w4 + i), w_at(w5 + i), w_at(w6 + i), w_at(w7 + i));
    }
    partial[lane] = low;
    partial[LANES + lane] = high;
    workgroupBarrier();
    for (var step = LANES / 2u; step > 0u; step >>= 1u) {
        if (lane < step) {
            partial[lane] += partial[lane + step];
            partial[LANES + lane] += partial[LANES + lane + step];
        }
        workgroupBarrier();
    }
}

// The product with row `r` of w, after dot8.
fn dot8_of(r: u32) -> f32 {
    return partial[(r >> 2u) * LANES][r & 3u];
}
