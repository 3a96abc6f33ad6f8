// Base, many tokens by cooperative matrices of SIDE x SIDE: x and w f16, sums f32. See src/ops/base/matrix.rs for what it
// asks of sizes and places.
//
//     a workgroup owns 64 x 64 of y in blocks of 2 x 2 matrices, dealt out to its subgroups, however many those are
//     for each block:  sums += x w^T over the inner dimension, straight from memory
//         each of the four matrices by way of workgroup memory to y: bias added, rounded once
//
// Matrices at the end are moved back until they are whole; what another has too is computed twice and written once. A
// workgroup's columns hold at least one matrix, so that a part of the weight is never left.

const MOST_SUBGROUPS: u32 = 16u; // of 64 lanes, four at least in each
const BLOCKS_ACROSS: u32 = 64u / (2u * SIDE);
const BLOCKS: u32 = BLOCKS_ACROSS * BLOCKS_ACROSS;

var<workgroup> done: array<f32, MOST_SUBGROUPS * SIDE * SIDE>;

// Whether a block has columns and tokens of its own.
fn is_there(block: u32, t0: u32, o0: u32) -> bool {
    let t = t0 + 2u * SIDE * (block / BLOCKS_ACROSS);
    let o = o0 + 2u * SIDE * (block % BLOCKS_ACROSS);
    return block < BLOCKS && t < params.tokens && o < params.out_features;
}

// The first token and column that one of a block's four matrices has for itself.
fn corner(block: u32, part: u32, t0: u32, o0: u32) -> vec2<u32> {
    return vec2(t0, o0) + SIDE * vec2(
        2u * (block / BLOCKS_ACROSS) + part / 2u,
        2u * (block % BLOCKS_ACROSS) + part % 2u,
    );
}

// Where it begins so that it is whole.
fn whole(corner: vec2<u32>) -> vec2<u32> {
    return min(corner, vec2(params.tokens, params.out_features) - SIDE);
}

// One matrix of every subgroup from workgroup memory to y.
fn put_matrices(round: u32, part: u32, t0: u32, o0: u32, own: Invocation) {
    workgroupBarrier();
    const PAIRS = SIDE * SIDE / 2u;
    for (var i = own.lane; i < own.subgroups * PAIRS; i += 64u) {
        let block = round * own.subgroups + i / PAIRS;
        if (!is_there(block, t0, o0)) { continue; }
        let own_corner = corner(block, part, t0, o0);
        let row = i % PAIRS / (SIDE / 2u);
        let column = 2u * (i % (SIDE / 2u));
        let at = whole(own_corner) + vec2(row, column);
        if (at.x < own_corner.x || at.y < own_corner.y) { continue; }
        let place = i / PAIRS * SIDE * SIDE + row * SIDE + column;
        store(at.x, at.y, vec2(done[place], done[place + 1u]));
    }
    workgroupBarrier();
}

@compute @workgroup_size(64)
fn base_matrix(
    @builtin(workgroup_id) id: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    own: Invocation,
) {
    // Matrices want control flow without conditions: workgroups and blocks that are not there do another's work.
    let group = group_index(id, groups);
    let t0 = 64u * min(group / params.column_blocks, params.groups / params.column_blocks - 1u);
    let o0 = 64u * (group % params.column_blocks);
    let k = params.in_features;
    let slot = own.subgroup * SIDE * SIDE;
    for (var round = 0u; round * own.subgroups < BLOCKS; round++) {
        let block = round * own.subgroups + own.subgroup;
        let first = whole(corner(block, 0u, t0, o0));
        let last = whole(corner(block, 3u, t0, o0));
        var c0 = Totals();
        var c1 = Totals();
        var c2 = Totals();
        var c3 = Totals();
        let x0 = params.x_first + first.x * params.x_stride;
        let x1 = params.x_first + last.x * params.x_stride;
        let w0 = params.w_first + first.y * k;
        let w1 = params.w_first + last.y * k;
        for (var i = 0u; i < k; i += SIDE) {
            let a0 = coopLoadT<Left>(&x[x0 + i], params.x_stride);
            let a1 = coopLoadT<Left>(&x[x1 + i], params.x_stride);
            let b0 = coopLoad<Right>(&w[w0 + i], k);
            let b1 = coopLoad<Right>(&w[w1 + i], k);
            c0 = coopMultiplyAdd(a0, b0, c0);
            c1 = coopMultiplyAdd(a0, b1, c1);
            c2 = coopMultiplyAdd(a1, b0, c2);
            c3 = coopMultiplyAdd(a1, b1, c3);
        }
        coopStoreT(c0, &done[slot], SIDE);
        put_matrices(round, 0u, t0, o0, own);
        coopStoreT(c1, &done[slot], SIDE);
        put_matrices(round, 1u, t0, o0, own);
        coopStoreT(c2, &done[slot], SIDE);
        put_matrices(round, 2u, t0, o0, own);
        coopStoreT(c3, &done[slot], SIDE);
        put_matrices(round, 3u, t0, o0, own);
    }
}
