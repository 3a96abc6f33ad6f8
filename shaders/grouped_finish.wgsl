// Grouped, plain or gated: rows end with their LoRAs.

// The row of route n: `low` and `high` are this thread's eight sums, `o` is its first column of y.
fn finish(n: u32, o: u32, low: vec4<f32>, high: vec4<f32>) {
    let lora = lora_of(n);
    var a = low;
    var b = high;
    if (lora != NONE) {
        a += lora_quad(n, lora, 0u, o);
        b += lora_quad(n, lora, GATED, o + 4u * (1u - GATED));
    }
    finish_sums(n, o, a, b);
}
