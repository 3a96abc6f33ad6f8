// Fused, the sparse form: the base product, and behind it the experts that the rows use. x, w and y as in base.wgsl; b is
// B transposed behind the pool's slots. See src/ops/fused.rs.
//
//     sort the tile's tokens by their two lowest experts: neighbouring rows then share experts
//     sums = x w^T
//     for every SLOTS slots of the tokens:
//         list the live routes of every eight rows, by expert, then by row
//         for each expert of the own eight rows, for each four ranks:  b = four rows of B, in registers
//             for each own row that chose it:  sums[row] += (weight scaling h) b
//     y = sums + bias, rounded once
//
// Ranks are exact. The order of a token's sums is its own experts', whatever the other tokens.

struct Entry {
    key: u32, // expert, then three bits of row; NONE behind the last
    h: u32,
    factor: f32,
}

const GROUP: u32 = 8u * SLOTS; // entries of eight rows

var<workgroup> order: array<u32, TILE_M>;
var<workgroup> keys: array<u32, TILE_M * SLOTS>;
var<workgroup> list: array<Entry, TILE_M * SLOTS>;
// The token's two lowest experts.
fn token_key(t: u32) -> u32 {
    var low = 0xffffu;
    var second = 0xffffu;
    for (var j = 0u; j < params.top_k; j++) {
        let e = min(plan[params.at_ids + t * params.top_k + j], 0xffffu);
        second = min(second, max(e, low));
        low = min(low, e);
    }
    return (low << 16u) | second;
}

// Fills `order`; ends behind a barrier.
fn sort_tokens(thread: u32, t0: u32, rows: u32) {
    for (var m = thread; m < TILE_M; m += THREADS) {
        var key = NONE;
        if (m < rows) { key = token_key(t0 + m); }
        keys[m] = key;
    }
    workgroupBarrier();
    for (var m = thread; m < TILE_M; m += THREADS) {
        let key = keys[m];
        var place = 0u;
        for (var i = 0u; i < TILE_M; i++) {
            let other = keys[i];
            place += select(0u, 1u, other < key || (other == key && i < m));
        }
        order[place] = m;
    }
    workgroupBarrier();
}

// The key of route n, the `row`-th of the tile; NONE where it adds nothing to the slice.
fn route_key(n: u32, row: u32, slice: u32) -> u32 {
    let e = plan[params.at_ids + n];
    if (e == NONE) { return NONE; }
    if (!holds(b_slot(e), params.epoch)) {
        atomicOr(&status, STALE_SLOT);
        return NONE;
    }
    if (!is_finite(topk_weights_at(n))) {
        atomicOr(&status, WEIGHT_NOT_FINITE);
        return NONE;
    }
    if (part_of(e, slice).rank == 0u) { return NONE; }
    return (e << 3u) | (row & 7u);
}

fn route_entry(key: u32, n: u32, slice: u32) -> Entry {
    if (key == NONE) { return Entry(NONE, 0u, 0.0); }
    let part = part_of(key >> 3u, slice);
    var row = n;
    if (RANK_SUM == 1u) { row = n / params.top_k; }
    let h = row * params.h_stride + part.row - b_slot(key >> 3u).row;
    return Entry(key, h, part.scaling * topk_weights_at(n));
}

// Lists slots s0 .. s0 + SLOTS of the tile's rows.
fn list_routes(thread: u32, t0: u32, rows: u32, s0: u32, slice: u32) {
    for (var i = thread; i < TILE_M * SLOTS; i += THREADS) {
        let row = i / SLOTS;
        let s = s0 + i % SLOTS;
        var key = NONE;
        if (row < rows && s < params.top_k) {
            key = route_key((t0 + order[row]) * params.top_k + s, row, slice);
        }
        keys[i] = key;
    }
    workgroupBarrier();
    for (var i = thread; i < TILE_M * SLOTS; i += THREADS) {
        let first = i / GROUP * GROUP;
        let key = keys[i];
        var place = first;
        for (var j = first; j < first + GROUP; j++) {
            let other = keys[j];
            place += select(0u, 1u, other < key || (other == key && j < i));
        }
        let n = (t0 + order[i / SLOTS]) * params.top_k + s0 + i % SLOTS;
        list[place] = route_entry(key, n, slice);
    }
    workgroupBarrier();
}

// Four ranks of h from `at` on, of `left` that there are.
fn h_part(at: u32, left: u32) -> vec4<f32> {
    if (WHOLE_QUADS == 1u || left >= 4u) { return h_quad(at); }
    var v = vec4(h_at(at), 0.0, 0.0, 0.0);
    if (left > 1u) { v.y = h_at(at + 1u); }
    if (left > 2u) { v.z = h_at(at + 2u); }
    return v;
}

// The weighted h of a row of a turn that begins at entry `at`.
fn z_of(turn: u32, at: u32, row: u32, r: u32, rank: u32) -> vec4<f32> {
    let i = at + countOneBits(turn & ((1u << row) - 1u));
    return list[i].factor * h_part(list[i].h + r, rank - r);
}

fn mix(z: vec4<f32>, b0: vec4<f32>, b1: vec4<f32>, b2: vec4<f32>, b3: vec4<f32>) -> vec4<f32> {
    return z.x * b0 + z.y * b1 + z.z * b2 + z.w * b3;
}

// Adds the listed routes of this thread's rows to its sums; its columns begin at `column` of the slice. A turn is an expert
// and a bit for every row that chose it; a row that chose it twice has another turn.
fn extend(thread: u32, slice: u32, column: u32, s: ptr<function, Sums>) {
    var at = own_row(thread) / 8u * GROUP;
    let end = at + GROUP;
    while (at < end && list[at].key != NONE) {
        let expert = list[at].key >> 3u;
        var turn = 0u;
        var next = at;
        while (next < end) {
            let key = list[next].key;
            let bit = 1u << (key & 7u);
            if (key >> 3u != expert || (turn & bit) != 0u) { break; }
            turn |= bit;
            next++;
        }
        let part = part_of(expert, slice);
        for (var r = 0u; r < part.rank; r += 4u) {
            // Rows behind the rank repeat the last one, times zeros.
            let ranks = min(vec4(r, r + 1u, r + 2u, r + 3u), vec4(part.rank - 1u));
            let rows = (part.row + ranks) * params.b_stride + column;
            let b0 = b_quad(rows.x);
            let b1 = b_quad(rows.y);
            let b2 = b_quad(rows.z);
            let b3 = b_quad(rows.w);
            var c0 = b0;
            var c1 = b1;
            var c2 = b2;
            var c3 = b3;
            if (WIDE == 1u) {
                c0 = b_quad(rows.x + 4u);
                c1 = b_quad(rows.y + 4u);
                c2 = b_quad(rows.z + 4u);
                c3 = b_quad(rows.w + 4u);
            }
            if ((turn & 1u) != 0u) {
                let z = z_of(turn, at, 0u, r, part.rank);
                (*s).a0 += mix(z, b0, b1, b2, b3);
                if (WIDE == 1u) { (*s).b0 += mix(z, c0, c1, c2, c3); }
            }
            if ((turn & 2u) != 0u) {
                let z = z_of(turn, at, 1u, r, part.rank);
                (*s).a1 += mix(z, b0, b1, b2, b3);
                if (WIDE == 1u) { (*s).b1 += mix(z, c0, c1, c2, c3); }
            }
            if ((turn & 4u) != 0u) {
                let z = z_of(turn, at, 2u, r, part.rank);
                (*s).a2 += mix(z, b0, b1, b2, b3);
                if (WIDE == 1u) { (*s).b2 += mix(z, c0, c1, c2, c3); }
            }
            if ((turn & 8u) != 0u) {
                let z = z_of(turn, at, 3u, r, part.rank);
                (*s).a3 += mix(z, b0, b1, b2, b3);
                if (WIDE == 1u) { (*s).b3 += mix(z, c0, c1, c2, c3); }
            }
            if ((turn & 16u) != 0u) {
                let z = z_of(turn, at, 4u, r, part.rank);
                (*s).a4 += mix(z, b0, b1, b2, b3);
                if (WIDE == 1u) { (*s).b4 += mix(z, c0, c1, c2, c3); }
            }
            if ((turn & 32u) != 0u) {
                let z = z_of(turn, at, 5u, r, part.rank);
                (*s).a5 += mix(z, b0, b1, b2, b3);
                if (WIDE == 1u) { (*s).b5 += mix(z, c0, c1, c2, c3); }
            }
            if ((turn & 64u) != 0u) {
                let z = z_of(turn, at, 6u, r, part.rank);
                (*s).a6 += mix(z, b0, b1, b2, b3);
                if (WIDE == 1u) { (*s).b6 += mix(z, c0, c1, c2, c3); }
            }
            if ((turn & 128u) != 0u) {
                let z = z_of(turn, at, 7u, r, part.rank);
                (*s).a7 += mix(z, b0, b1, b2, b3);
                if (WIDE == 1u) { (*s).b7 += mix(z, c0, c1, c2, c3); }
            }
        }
        at = next;
    }
}

// The tile of this workgroup.
struct Tile {
    t0: u32,
    rows: u32,
    columns: Columns,
}

fn tile_of(group: u32) -> Tile {
    let t0 = TILE_M * (group / params.column_blocks);
    return Tile(t0, min(params.tokens - t0, TILE_M), columns_of(group % params.column_blocks, TILE_N));
}

var<private> own: Tile;

fn behind(thread: u32, s: ptr<function, Sums>) {
    let column = own.columns.begin + own_column(thread);
    let works = own_row(thread) < own.rows && column < own.columns.end;
    for (var first = 0u; first < params.top_k; first += SLOTS) {
        list_routes(thread, own.t0, own.rows, first, own.columns.slice);
        if (works) { extend(thread, own.columns.slice, column - own.columns.first, s); }
    }
}

// One workgroup per 64 tokens and TILE_N columns of a slice.
@compute @workgroup_size(THREADS)
fn fused_sparse(
    @builtin(workgroup_id) id: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let group = group_index(id, groups);
    if (group >= params.groups) { return; }
    own = tile_of(group);
    sort_tokens(thread, own.t0, own.rows);
    for (var q = thread; q < QUADS_M; q += THREADS) {
        let m = min(4u * q + vec4(0u, 1u, 2u, 3u), vec4(own.rows - 1u));
        x_rows[q] = (own.t0 + vec4(order[m.x], order[m.y], order[m.z], order[m.w])) * params.x_stride;
    }
    let k = params.in_features;
    let columns = own.columns;
    tile_product(thread, own.rows, columns.begin * k, k, columns.end - columns.begin, k);
    let m0 = own_row(thread);
    let o = columns.begin + own_column(thread);
    if (o >= columns.end) { return; }
    for (var m = m0; m < min(m0 + 8u, own.rows); m++) {
        let t = own.t0 + order[m];
        store_quad(t, o, columns.end, sums[m - m0]);
        if (WIDE == 1u) { store_quad(t, o + 4u, columns.end, wide_sums[m - m0]); }
    }
}
