// What a lane knows of its place where the device has no subgroup operations; see subgroup.wgsl.

struct Invocation {
    @builtin(local_invocation_index) lane: u32,
}
