// Rows of x are shared, rows of w owned.
fn shared_quad(i: u32) -> vec4<f32> { return x_quad(i); }
fn shared_at(i: u32) -> f32 { return x_at(i); }
fn own_quad(i: u32) -> vec4<f32> { return w_quad(i); }
fn own_at(i: u32) -> f32 { return w_at(i); }
