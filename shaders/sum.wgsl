// Sums over a workgroup of 64 through its subgroups, of which there are at most 16: each adds its lanes in hardware, then
// one lane adds the subgroups, the last one first. Behind subgroup.wgsl; see tree.wgsl for the words.
//
// Which lanes make up a subgroup, and the order in which it adds, are the driver's and settled when a pipeline is made: the
// same bits in every run on a device, and for a token whatever its batch, since every workgroup adds alike.

const PARTIALS: u32 = 16u;

// All lanes come along.
fn give(own: Invocation, i: u32, v: vec4<f32>) {
    let sum = subgroupAdd(v);
    if (own.place == 0u) { partial[i * PARTIALS + own.subgroup] = sum; }
}

// More of a sum that it gave before.
fn give_more(own: Invocation, i: u32, v: vec4<f32>) {
    let sum = subgroupAdd(v);
    if (own.place == 0u) { partial[i * PARTIALS + own.subgroup] += sum; }
}

fn join(own: Invocation, count: u32) {
    workgroupBarrier();
    for (var i = own.lane; i < count; i += 64u) {
        // The first hold experts too where these ride along (fused_few.wgsl): what is larger comes last, and is rounded less.
        var sum = partial[i * PARTIALS + own.subgroups - 1u];
        for (var s = own.subgroups - 1u; s > 0u; s--) { sum += partial[i * PARTIALS + s - 1u]; }
        partial[i * PARTIALS] = sum;
    }
    workgroupBarrier();
}
