// What the forms of the fused product share: blocks of columns, which never straddle slices, and the one write of y.

struct Columns {
    slice: u32,
    first: u32, // of the slice
    begin: u32, // of the block
    end: u32,   // of the slice
}

fn slice_end(s: u32) -> u32 {
    switch (s) {
        case 0u: { return params.slice_end_0; }
        case 1u: { return params.slice_end_1; }
        case 2u: { return params.slice_end_2; }
        default: { return params.slice_end_3; }
    }
}

fn columns_of(block: u32, width: u32) -> Columns {
    var s = 0u;
    var before = 0u; // blocks
    var first = 0u;
    while (s + 1u < SLICES) {
        let blocks = (slice_end(s) - first + width - 1u) / width;
        if (block < before + blocks) { break; }
        before += blocks;
        first = slice_end(s);
        s++;
    }
    return Columns(s, first, first + (block - before) * width, slice_end(s));
}

// The part of expert e's adapter that changes a slice.
fn part_of(e: u32, slice: u32) -> Slot {
    if (SLICES == 1u) { return b_slot(e); }
    return b_slot((1u + slice) * params.experts + e);
}

fn store(t: u32, o: u32, end: u32, v: vec2<f32>) {
    let count = min(end - o, 2u);
    var biased = v;
    biased.x += bias_of(o);
    if (count == 2u) { biased.y += bias_of(o + 1u); }
    y_put_pair(t * params.y_stride + o, biased, count);
}

fn store_quad(t: u32, o: u32, end: u32, v: vec4<f32>) {
    if (o < end) { store(t, o, end, v.xy); }
    if (o + 2u < end) { store(t, o + 2u, end, v.zw); }
}
