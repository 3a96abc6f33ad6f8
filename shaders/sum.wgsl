// Sums over a workgroup of 64 through its subgroups, of which there are at most 16: each adds its lanes in hardware, then
// one lane adds the subgroups in order. Behind subgroup.wgsl; see tree.wgsl for the words.
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
        var sum = partial[i * PARTIALS];
        for (var s = 1u; s < own.subgroups; s++) { sum += partial[i * PARTIALS + s]; }
        partial[i * PARTIALS] = sum;
    }
    workgroupBarrier();
}
