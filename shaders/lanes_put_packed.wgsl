// A product's sums to rows of y of two elements a word; see lanes_put.wgsl.
fn put_rows(t: u32, rows: u32, o: u32, s: Block) {
    keep(s);
    for (var m = 0u; m < rows; m++) {
        put_quad(t + m, o, lane_low[m]);
        put_quad(t + m, o + 4u, lane_high[m]);
    }
}
