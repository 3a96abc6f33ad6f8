// The baseline of benches/paths.rs: 4 x 4 sums a thread in registers, no workgroup memory. Four rows of one expert a
// group; all inner dimensions and widths are multiples of four.

struct Group { n: vec4<u32>, expert: vec4<u32> }
struct Params {
    columns: u32, // of y, rows of w an expert
    inner: u32, // of x and w
    routes_a_row: u32, // of x
    groups: u32,
    y_routes_a_row: u32, // of `extend`; h has a row for every route
    rank: u32,
}
@group(0) @binding(0) var<storage, read> groups: array<Group>;
@group(0) @binding(1) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> w: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read> weights: array<f32>;
@group(0) @binding(4) var<storage, read_write> y: array<vec4<f32>>;
@group(0) @binding(5) var<uniform> p: Params;

// y_n = w[expert] x, rows of w [columns, inner].
@compute @workgroup_size(8, 8)
fn product(@builtin(global_invocation_id) id: vec3<u32>) {
    if (id.x >= p.columns / 4u || id.y >= p.groups) { return; }
    let group = groups[id.y];
    let inner = p.inner / 4u;
    let r = group.n / p.routes_a_row * inner;
    let c = (group.expert.x * p.columns + 4u * id.x + vec4(0u, 1u, 2u, 3u)) * inner;
    var s0 = vec4<f32>();
    var s1 = vec4<f32>();
    var s2 = vec4<f32>();
    var s3 = vec4<f32>();
    for (var i = 0u; i < inner; i++) {
        let w0 = w[c.x + i];
        let w1 = w[c.y + i];
        let w2 = w[c.z + i];
        let w3 = w[c.w + i];
        let x0 = x[r.x + i];
        let x1 = x[r.y + i];
        let x2 = x[r.z + i];
        let x3 = x[r.w + i];
        s0 += vec4(dot(x0, w0), dot(x0, w1), dot(x0, w2), dot(x0, w3));
        s1 += vec4(dot(x1, w0), dot(x1, w1), dot(x1, w2), dot(x1, w3));
        s2 += vec4(dot(x2, w0), dot(x2, w1), dot(x2, w2), dot(x2, w3));
        s3 += vec4(dot(x3, w0), dot(x3, w1), dot(x3, w2), dot(x3, w3));
    }
    let at = group.n * (p.columns / 4u) + id.x;
    y[at.x] = s0;
    y[at.y] = s1;
    y[at.z] = s2;
    y[at.w] = s3;
}

// y += weight B h, w is B transposed [rank, columns], x is h; rows of y are the groups' alone.
@compute @workgroup_size(8, 8)
fn extend(@builtin(global_invocation_id) id: vec3<u32>) {
    if (id.x >= p.columns / 4u || id.y >= p.groups) { return; }
    let group = groups[id.y];
    let columns = p.columns / 4u;
    let h = group.n * (p.rank / 4u);
    let b = group.expert.x * p.rank * columns + id.x;
    var s0 = vec4<f32>();
    var s1 = vec4<f32>();
    var s2 = vec4<f32>();
    var s3 = vec4<f32>();
    for (var i = 0u; i < p.rank / 4u; i++) {
        let b0 = w[b + 4u * i * columns];
        let b1 = w[b + (4u * i + 1u) * columns];
        let b2 = w[b + (4u * i + 2u) * columns];
        let b3 = w[b + (4u * i + 3u) * columns];
        let h0 = x[h.x + i];
        let h1 = x[h.y + i];
        let h2 = x[h.z + i];
        let h3 = x[h.w + i];
        s0 += h0.x * b0 + h0.y * b1 + h0.z * b2 + h0.w * b3;
        s1 += h1.x * b0 + h1.y * b1 + h1.z * b2 + h1.w * b3;
        s2 += h2.x * b0 + h2.y * b1 + h2.z * b2 + h2.w * b3;
        s3 += h3.x * b0 + h3.y * b1 + h3.z * b2 + h3.w * b3;
    }
    let at = group.n / p.y_routes_a_row * columns + id.x;
    let own = vec4(weights[group.n.x], weights[group.n.y], weights[group.n.z], weights[group.n.w]);
    y[at.x] += own.x * s0;
    y[at.y] += own.y * s1;
    y[at.z] += own.z * s2;
    y[at.w] += own.w * s3;
}
