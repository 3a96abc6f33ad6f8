// A product's sums to rows of y straight from registers: drivers read an array by a number that only the run knows lane by
// lane. For y of f32 only, rounding two elements into a word 64 times would be long. The kernel says put_quad(t, o, v).

// Four shared rows from t on, of `rows` that there are.
fn put_four_rows(t: u32, rows: i32, o: u32, low: mat4x4<f32>, high: mat4x4<f32>) {
    if (rows > 0) {
        put_quad(t, o, low[0]);
        put_quad(t, o + 4u, high[0]);
    }
    if (rows > 1) {
        put_quad(t + 1u, o, low[1]);
        put_quad(t + 1u, o + 4u, high[1]);
    }
    if (rows > 2) {
        put_quad(t + 2u, o, low[2]);
        put_quad(t + 2u, o + 4u, high[2]);
    }
    if (rows > 3) {
        put_quad(t + 3u, o, low[3]);
        put_quad(t + 3u, o + 4u, high[3]);
    }
}

fn put_rows(t: u32, rows: u32, o: u32, s: Block) {
    let left = i32(rows);
    put_four_rows(t, left, o, s.a0, s.b0);
    put_four_rows(t + 4u, left - 4, o, s.a1, s.b1);
    put_four_rows(t + 8u, left - 8, o, s.a2, s.b2);
    put_four_rows(t + 12u, left - 12, o, s.a3, s.b3);
}
