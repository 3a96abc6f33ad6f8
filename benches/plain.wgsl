// The plain triple loop, one thread a sum: what the tiled kernels are measured against in benches/paths.rs.

struct Params { tokens: u32, top_k: u32, experts: u32, rank: u32, in_features: u32, out_features: u32, }
@group(0) @binding(0) var<storage, read> ids: array<i32>;
@group(0) @binding(1) var<storage, read> weights: array<f32>;
@group(0) @binding(2) var<storage, read> x: array<f32>;
@group(0) @binding(3) var<storage, read> lora_a: array<f32>; // [experts, rank, in_features]
@group(0) @binding(4) var<storage, read> lora_b: array<f32>; // [experts, out_features, rank]
@group(0) @binding(5) var<storage, read_write> h: array<f32>;
@group(0) @binding(6) var<storage, read_write> y: array<f32>;
@group(0) @binding(7) var<uniform> p: Params;

@compute @workgroup_size(64)
fn shrink(@builtin(global_invocation_id) id: vec3<u32>) {
    let n = id.x / p.rank;
    let r = id.x % p.rank;
    if (n >= p.tokens * p.top_k) { return; }
    let a = (u32(ids[n]) * p.rank + r) * p.in_features;
    let t = n / p.top_k * p.in_features;
    var sum = 0.0;
    for (var i = 0u; i < p.in_features; i++) { sum += lora_a[a + i] * x[t + i]; }
    h[n * p.rank + r] = sum;
}

@compute @workgroup_size(64)
fn expand(@builtin(global_invocation_id) id: vec3<u32>) {
    let t = id.x / p.out_features;
    let o = id.x % p.out_features;
    if (t >= p.tokens) { return; }
    var sum = 0.0;
    for (var n = t * p.top_k; n < (t + 1u) * p.top_k; n++) {
        let b = (u32(ids[n]) * p.out_features + o) * p.rank;
        for (var r = 0u; r < p.rank; r++) { sum += weights[n] * lora_b[b + r] * h[n * p.rank + r]; }
    }
    y[id.x] += sum;
}
