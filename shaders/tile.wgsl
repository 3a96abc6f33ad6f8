// Many rows: 64 rows of x times TILE_N rows of w by 2 * TILE_N threads, 8 x 4 sums a thread in registers.
//
//     for every 16 columns of the inner dimension:
//         stage x [16][64] and w [16][TILE_N], the inner dimension outermost
//         for each column: 8 x 4 products from three vectors of four
//
// One thread adds all products of a sum in the order of the inner dimension: the same bits in every tile.

const TILE_M: u32 = 64u;
const TILE_K: u32 = 16u;
const THREADS: u32 = 2u * TILE_N;
const QUADS_M: u32 = TILE_M / 4u;
const QUADS_N: u32 = TILE_N / 4u;
const PAIRS: u32 = TILE_K / 2u;

// Where each row of x begins, or NONE; the kernel fills it before the product.
var<workgroup> x_rows: array<u32, TILE_M>;
var<workgroup> x_tile: array<vec4<f32>, TILE_K * QUADS_M>;
var<workgroup> w_tile: array<vec4<f32>, TILE_K * QUADS_N>;
// This thread's sums: row m of its eight, four columns.
var<private> sums: array<vec4<f32>, 8>;

fn x_part(row: u32, i: u32, k: u32) -> vec2<f32> {
    if (row == NONE || i >= k) { return vec2<f32>(); }
    if (i + 1u == k) { return vec2(x_at(row + i), 0.0); }
    return x_pair(row + i);
}

fn w_part(inside: bool, row: u32, i: u32, k: u32) -> vec2<f32> {
    if (!inside || i >= k) { return vec2<f32>(); }
    if (i + 1u == k) { return vec2(w_at(row + i), 0.0); }
    return w_pair(row + i);
}

// Patches of four rows by two columns, so that whole vectors are written.
fn stage(thread: u32, w0: u32, w_stride: u32, w_count: u32, k0: u32, k: u32) {
    for (var p = thread; p < QUADS_M * PAIRS; p += THREADS) {
        let quad = p / PAIRS;
        let pair = p % PAIRS;
        let i = k0 + 2u * pair;
        let a = x_part(x_rows[4u * quad], i, k);
        let b = x_part(x_rows[4u * quad + 1u], i, k);
        let c = x_part(x_rows[4u * quad + 2u], i, k);
        let d = x_part(x_rows[4u * quad + 3u], i, k);
        x_tile[2u * pair * QUADS_M + quad] = vec4(a.x, b.x, c.x, d.x);
        x_tile[(2u * pair + 1u) * QUADS_M + quad] = vec4(a.y, b.y, c.y, d.y);
    }
    for (var p = thread; p < QUADS_N * PAIRS; p += THREADS) {
        let quad = p / PAIRS;
        let pair = p % PAIRS;
        let i = k0 + 2u * pair;
        let n = 4u * quad;
        let row = w0 + n * w_stride;
        let a = w_part(n < w_count, row, i, k);
        let b = w_part(n + 1u < w_count, row + w_stride, i, k);
        let c = w_part(n + 2u < w_count, row + 2u * w_stride, i, k);
        let d = w_part(n + 3u < w_count, row + 3u * w_stride, i, k);
        w_tile[2u * pair * QUADS_N + quad] = vec4(a.x, b.x, c.x, d.x);
        w_tile[(2u * pair + 1u) * QUADS_N + quad] = vec4(a.y, b.y, c.y, d.y);
    }
}

// Rows 8 * (thread / QUADS_N) .. of x times rows 4 * (thread % QUADS_N) .. of w, into `sums`.
fn tile_product(thread: u32, w0: u32, w_stride: u32, w_count: u32, k: u32) {
    let m = 2u * (thread / QUADS_N);
    let n = thread % QUADS_N;
    workgroupBarrier(); // x_rows is there
    // A thread without rows or columns only helps to stage.
    let works = x_rows[4u * m] != NONE && 4u * n < w_count;
    var a0 = vec4<f32>();
    var a1 = vec4<f32>();
    var a2 = vec4<f32>();
    var a3 = vec4<f32>();
    var a4 = vec4<f32>();
    var a5 = vec4<f32>();
    var a6 = vec4<f32>();
    var a7 = vec4<f32>();
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
            }
        }
        workgroupBarrier();
    }
    sums = array<vec4<f32>, 8>(a0, a1, a2, a3, a4, a5, a6, a7);
}
