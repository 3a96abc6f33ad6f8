// The dense form's second product: y = [x | z] [w | B_all]^T + bias; the rows of B stand in order behind the pool's slots.

var<private> own_t0: u32;
var<private> own_rows: u32;
var<private> own_block: Columns;

fn z_part(row: u32, r: u32) -> vec4<f32> {
    let at = row * params.h_stride + r;
    if (r + 4u <= params.used_rows) { return z_quad(at); }
    var v = vec4<f32>();
    if (r < params.used_rows) { v.x = z_at(at); }
    if (r + 1u < params.used_rows) { v.y = z_at(at + 1u); }
    if (r + 2u < params.used_rows) { v.z = z_at(at + 2u); }
    return v;
}

// Sixteen columns of z as x is staged, and rows of B, which already are as w is staged.
fn stage_behind(thread: u32, r0: u32) {
    for (var p = thread; p < QUADS_M * QUADS_K; p += THREADS) {
        let quad = p / QUADS_K;
        let column = 4u * (p % QUADS_K);
        let rows = own_t0 + min(4u * quad + vec4(0u, 1u, 2u, 3u), vec4(own_rows - 1u));
        let r = r0 + column;
        let turned = transpose(mat4x4<f32>(
            z_part(rows.x, r), z_part(rows.y, r), z_part(rows.z, r), z_part(rows.w, r),
        ));
        let at = column * QUADS_M + quad;
        x_tile[at] = turned[0];
        x_tile[at + QUADS_M] = turned[1];
        x_tile[at + 2u * QUADS_M] = turned[2];
        x_tile[at + 3u * QUADS_M] = turned[3];
    }
    for (var p = thread; p < QUADS_N * TILE_K; p += THREADS) {
        // Rows and columns that are not there repeat the last: times zeros, or sums that nobody reads.
        let r = min(r0 + p / QUADS_N, params.used_rows - 1u);
        let column = min(own_block.begin + 4u * (p % QUADS_N), params.b_stride - 4u);
        w_tile[p] = b_quad(r * params.b_stride + column);
    }
}

fn behind(thread: u32, s: ptr<function, Sums>) {
    let m = own_row(thread) / 4u;
    let n = own_column(thread) / 4u;
    for (var r0 = 0u; r0 < params.used_rows; r0 += TILE_K) {
        stage_behind(thread, r0);
        workgroupBarrier();
        for (var i = 0u; i < TILE_K; i++) {
            let low = x_tile[i * QUADS_M + m];
            let high = x_tile[i * QUADS_M + m + 1u];
            let w = w_tile[i * QUADS_N + n];
            let v = w_tile[i * QUADS_N + n + 1u];
            (*s).a0 += low.x * w;
            (*s).a1 += low.y * w;
            (*s).a2 += low.z * w;
            (*s).a3 += low.w * w;
            (*s).a4 += high.x * w;
            (*s).a5 += high.y * w;
            (*s).a6 += high.z * w;
            (*s).a7 += high.w * w;
            (*s).b0 += low.x * v;
            (*s).b1 += low.y * v;
            (*s).b2 += low.z * v;
            (*s).b3 += low.w * v;
            (*s).b4 += high.x * v;
            (*s).b5 += high.y * v;
            (*s).b6 += high.z * v;
            (*s).b7 += high.w * v;
        }
        workgroupBarrier();
    }
}

// One workgroup per 64 tokens and TILE_N columns; WIDE is 1.
@compute @workgroup_size(THREADS)
fn fused_dense(
    @builtin(workgroup_id) id: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let group = group_index(id, groups);
    if (group >= params.groups) { return; }
    own_t0 = TILE_M * (group / params.column_blocks);
    own_rows = min(params.tokens - own_t0, TILE_M);
    own_block = columns_of(group % params.column_blocks, TILE_N);
    for (var q = thread; q < QUADS_M; q += THREADS) {
        x_rows[q] = (own_t0 + min(4u * q + vec4(0u, 1u, 2u, 3u), vec4(own_rows - 1u))) * params.x_stride;
    }
    let k = params.in_features;
    tile_product(thread, own_rows, own_block.begin * k, k, own_block.end - own_block.begin, k);
    let m0 = own_row(thread);
    let o = own_block.begin + own_column(thread);
    for (var m = m0; m < min(m0 + 8u, own_rows); m++) {
        store_quad(own_t0 + m, o, own_block.end, sums[m - m0]);
        store_quad(own_t0 + m, o + 4u, own_block.end, wide_sums[m - m0]);
    }
}
