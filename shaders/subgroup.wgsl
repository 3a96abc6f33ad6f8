// What a lane knows of its place where the device has subgroup operations; lane.wgsl is for those that have none.
// Nothing here or in the kernels assumes a subgroup's size (4 to 128), or which lanes form one.

struct Invocation {
    @builtin(local_invocation_index) lane: u32,
    @builtin(subgroup_invocation_id) place: u32,
    @builtin(subgroup_id) subgroup: u32,
    @builtin(num_subgroups) subgroups: u32,
}

// The same vectors of the subgroup's first four lanes, on every lane.
fn handed_out(v: vec4<f32>) -> mat4x4<f32> {
    return mat4x4<f32>(subgroupBroadcast(v, 0u), subgroupBroadcast(v, 1u), subgroupBroadcast(v, 2u), subgroupBroadcast(v, 3u));
}

// Which of sixteen rows a lane loads, for four lanes to hand out each four.
fn shared_place(own: Invocation) -> vec4<u32> {
    return vec4(0u, 4u, 8u, 12u) + (own.place & 3u);
}
