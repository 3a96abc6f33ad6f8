// From a product to a score. SPREAD lanes share a row of x where it is standardised.

var<workgroup> parts: array<f32, LISTS * SPREAD>;

fn shared_sum(row: u32) -> f32 {
    var sum = 0.0;
    for (var i = 0u; i < SPREAD; i++) { sum += parts[row * SPREAD + i]; }
    return sum;
}

// sqrt(variance + epsilon) of row lane % LISTS, in two passes; this lane helps with row lane / SPREAD, which begins at x0.
fn deviation(lane: u32, x0: u32, k: u32) -> f32 {
    let part = lane % SPREAD;
    let tail = (k & ~3u) + part; // columns behind the last four, of the first lanes
    let columns = f32(max(k, 1u));
    var sum = 0.0;
    for (var i = 4u * part; i + 4u <= k; i += 4u * SPREAD) { sum += dot(x_quad(x0 + i), vec4(1.0)); }
    for (var i = tail; i < k; i += SPREAD) { sum += x_at(x0 + i); }
    parts[lane] = sum;
    workgroupBarrier();
    let mean = shared_sum(lane / SPREAD) / columns;
    workgroupBarrier();
    sum = 0.0;
    for (var i = 4u * part; i + 4u <= k; i += 4u * SPREAD) {
        let distance = x_quad(x0 + i) - mean;
        sum += dot(distance, distance);
    }
    for (var i = tail; i < k; i += SPREAD) {
        let distance = x_at(x0 + i) - mean;
        sum += distance * distance;
    }
    parts[lane] = sum;
    workgroupBarrier();
    return sqrt(shared_sum(lane % LISTS) / columns + bitcast<f32>(EPSILON_BITS));
}

fn score_of(product: f32, e: u32, deviation: f32) -> f32 {
    var z = product;
    if (STANDARDISED == 1u) {
        // A variance beyond f32 is no finite score either.
        z = select(z / deviation, deviation, !is_finite(deviation));
    }
    if (ABSOLUTE == 1u) { z = abs(z); }
    return z + bias_of(e);
}
