// Sums over a workgroup of 64 as a tree in workgroup memory: any device. sum.wgsl does the same through subgroups. The kernel
// has `partial`, PARTIALS entries for each of its sums.

const PARTIALS: u32 = 64u; // of a sum in `partial`

// This lane's share of sum i.
fn give(own: Invocation, i: u32, v: vec4<f32>) { partial[i * PARTIALS + own.lane] = v; }

// More of a sum that it gave before.
fn give_more(own: Invocation, i: u32, v: vec4<f32>) { partial[i * PARTIALS + own.lane] += v; }

// Adds the shares of `count` sums into partial[i * PARTIALS]; between two barriers.
fn join(own: Invocation, count: u32) {
    workgroupBarrier();
    for (var step = PARTIALS / 2u; step > 0u; step >>= 1u) {
        for (var i = own.lane; i < count * step; i += 64u) {
            let at = i / step * PARTIALS + i % step;
            partial[at] += partial[at + step];
        }
        workgroupBarrier();
    }
}
