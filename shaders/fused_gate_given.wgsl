// The gate's routing as it was given; a is A.

fn w_quad(i: u32) -> vec4<f32> { return a_quad(i); }
fn w_at(i: u32) -> f32 { return a_at(i); }

fn choose(own: Invocation, t0: u32, rows: u32, writes: bool) {
    for (var i = own.lane; i < rows * TOP_K; i += THREADS) {
        let n = t0 * TOP_K + i;
        chosen[i] = choice_of(topk_ids_at(n), topk_weights_at(n));
    }
}
