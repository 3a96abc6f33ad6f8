// Many rows: TILE_M rows of x times TILE_N rows of w, 8 x 4 sums a thread in registers, or 8 x 8 where WIDE is 1.
//
//     for every 16 columns of the inner dimension:
//         stage x [16][TILE_M] and w [16][TILE_N], the inner dimension outermost
//         for each column: 8 x 4 products from three vectors of four (8 x 8 from four)
//
// The kernel says where the n-th row of its w begins, w_row(w0, w_stride, w_count, n); rows behind the last repeat one
// that is there. One thread adds all products of a sum in the order of the inner dimension: the same bits in every tile.

const TILE_K: u32 = 16u;
const QUADS_M: u32 = TILE_M / 4u;
const QUADS_N: u32 = TILE_N / 4u;
const OWN_QUADS: u32 = 1u + WIDE; // of columns, per thread
const ACROSS: u32 = QUADS_N / OWN_QUADS; // threads along the columns
const THREADS: u32 = TILE_M / 8u * ACROSS;
const QUADS_K: u32 = TILE_K / 4u;

// Where each row of x begins, by fours; the kernel fills it before the product. Rows that are not there repeat one
// that is: nobody reads their sums.
var<workgroup> x_rows: array<vec4<u32>, QUADS_M>;
var<workgroup> x_tile: array<vec4<f32>, TILE_K * QUADS_M>;
var<workgroup> w_tile: array<vec4<f32>, TILE_K * QUADS_N>;
// This thread's sums while they grow: names, since drivers keep arrays in memory. a: its first four columns, b: the next.
struct Sums {
    a0: vec4<f32>, a1: vec4<f32>, a2: vec4<f32>, a3: vec4<f32>, a4: vec4<f32>, a5: vec4<f32>, a6: vec4<f32>, a7: vec4<f32>,
    b0: vec4<f32>, b1: vec4<f32>, b2: vec4<f32>, b3: vec4<f32>, b4: vec4<f32>, b5: vec4<f32>, b6: vec4<f32>, b7: vec4<f32>,
}
// And when they are done: row m of its eight, its first four columns; and the next four.
var<private> sums: array<vec4<f32>, 8>;
var<private> wide_sums: array<vec4<f32>, 8>;

// This thread's first row and column in the tile.
fn own_row(thread: u32) -> u32 { return 8u * (thread / ACROSS); }
fn own_column(thread: u32) -> u32 { return 4u * OWN_QUADS * (thread % ACROSS); }

// Four columns from i on, zeros behind the last.
fn x_part(row: u32, i: u32, k: u32) -> vec4<f32> {
    if (i + 4u <= k) { return x_quad(row + i); }
    var v = vec4<f32>();
    if (i < k) { v.x = x_at(row + i); }
    if (i + 1u < k) { v.y = x_at(row + i + 1u); }
    if (i + 2u < k) { v.z = x_at(row + i + 2u); }
    return v;
}

fn w_part(row: u32, i: u32, k: u32) -> vec4<f32> {
    if (i + 4u <= k) { return w_quad(row + i); }
    var v = vec4<f32>();
    if (i < k) { v.x = w_at(row + i); }
    if (i + 1u < k) { v.y = w_at(row + i + 1u); }
    if (i + 2u < k) { v.z = w_at(row + i + 2u); }
    return v;
}

// Patches of four rows by four columns, turned, so that whole vectors are read and written.
fn stage(thread: u32, w0: u32, w_stride: u32, w_count: u32, k0: u32, k: u32) {
    for (var p = thread; p < QUADS_M * QUADS_K; p += THREADS) {
        let quad = p / QUADS_K;
        let column = 4u * (p % QUADS_K);
        let i = k0 + column;
        let rows = x_rows[quad];
        let turned = transpose(mat4x4<f32>(
            x_part(rows.x, i, k), x_part(rows.y, i, k), x_part(rows.z, i, k), x_part(rows.w, i, k),
        ));
        let at = column * QUADS_M + quad;
        x_tile[at] = turned[0];
        x_tile[at + QUADS_M] = turned[1];
        x_tile[at + 2u * QUADS_M] = turned[2];
        x_tile[at + 3u * QUADS_M] = turned[3];
    }
    for (var p = thread; p < QUADS_N * QUADS_K; p += THREADS) {
        let n = 4u * (p / QUADS_K);
        let column = 4u * (p % QUADS_K);
        let i = k0 + column;
        let turned = transpose(mat4x4<f32>(
            w_part(w_row(w0, w_stride, w_count, n), i, k),
            w_part(w_row(w0, w_stride, w_count, n + 1u), i, k),
            w_part(w_row(w0, w_stride, w_count, n + 2u), i, k),
            w_part(w_row(w0, w_stride, w_count, n + 3u), i, k),
        ));
        let at = column * QUADS_N + n / 4u;
        w_tile[at] = turned[0];
        w_tile[at + QUADS_N] = turned[1];
        w_tile[at + 2u * QUADS_N] = turned[2];
        w_tile[at + 3u * QUADS_N] = turned[3];
    }
}

// The thread's rows of x times its rows of w, and what the kernel adds `behind` the inner dimension, into `sums`.
fn tile_product(thread: u32, x_count: u32, w0: u32, w_stride: u32, w_count: u32, k: u32) {
    let m = own_row(thread) / 4u;
    let n = own_column(thread) / 4u;
    workgroupBarrier(); // x_rows is there
    // A thread without rows or columns only helps to stage.
    let works = 4u * m < x_count && 4u * n < w_count;
    var a0 = vec4<f32>();
    var a1 = vec4<f32>();
    var a2 = vec4<f32>();
    var a3 = vec4<f32>();
    var a4 = vec4<f32>();
    var a5 = vec4<f32>();
    var a6 = vec4<f32>();
    var a7 = vec4<f32>();
    var b0 = vec4<f32>();
    var b1 = vec4<f32>();
    var b2 = vec4<f32>();
    var b3 = vec4<f32>();
    var b4 = vec4<f32>();
    var b5 = vec4<f32>();
    var b6 = vec4<f32>();
    var b7 = vec4<f32>();
    for (var k0 = 0u; k0 < k; k0 += TILE_K) {
        stage(thread, w0, w_stride, w_count, k0, k);
        workgroupBarrier();
        if (works) {
            for (var i = 0u; i < TILE_K; i++) {
                let low = x_tile[i * QUADS_M + m];
                let high = x_tile[i * QUADS_M + m + 1u];
                let w = w_tile[i * QUADS_N + n];
                a0 += low.x * w;
                a1 += low.y * w;
                a2 += low.z * w;
                a3 += low.w * w;
                a4 += high.x * w;
                a5 += high.y * w;
                a6 += high.z * w;
                a7 += high.w * w;
                if (WIDE == 1u) {
                    let v = w_tile[i * QUADS_N + n + 1u];
                    b0 += low.x * v;
                    b1 += low.y * v;
                    b2 += low.z * v;
                    b3 += low.w * v;
                    b4 += high.x * v;
                    b5 += high.y * v;
                    b6 += high.z * v;
                    b7 += high.w * v;
                }
            }
        }
        workgroupBarrier();
    }
    var s = Sums(a0, a1, a2, a3, a4, a5, a6, a7, b0, b1, b2, b3, b4, b5, b6, b7);
    behind(thread, &s);
    sums = array<vec4<f32>, 8>(s.a0, s.a1, s.a2, s.a3, s.a4, s.a5, s.a6, s.a7);
    if (WIDE == 1u) { wide_sums = array<vec4<f32>, 8>(s.b0, s.b1, s.b2, s.b3, s.b4, s.b5, s.b6, s.b7); }
}
