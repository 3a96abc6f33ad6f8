enable f16;
enable wgpu_cooperative_matrix;

@group(0) @binding(0) var<storage, read> a: array<f16>;
@group(0) @binding(1) var<storage, read> b: array<f16>;
@group(0) @binding(2) var<storage, read_write> c: array<f32>;

// A tile of c grows by the product of 16 rows of a and 16 columns of b.
@compute @workgroup_size(32)
fn matrix() {
    var sum = coopLoad<coop_mat16x16<f32, C>>(&c[0], 16u);
    for (var k = 0u; k < 64u; k += 16u) {
        let p = coopLoad<coop_mat16x16<f16, A>>(&a[k], 64u);
        let q = coopLoad<coop_mat16x16<f16, B>>(&b[k], 64u);
        sum = coopMultiplyAdd(p, q, sum);
    }
    coopStore(sum, &c[0], 16u);
}
