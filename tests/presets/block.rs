//! MixLoRA: a SwiGLU block whose experts differ by LoRAs, chosen once, weighed behind each expert's feed-forward part.

use crate::dense::{self, Matrix};
use crate::problem::{Linear, Shape, values, wide};
use molora::adapter::LinearRouter;
use molora::element::Element;
use molora::host::{Device, HostLayer};
use molora::layer::{Router, Routing};
use molora::ops::Output;
use molora::preset::{Parameters, Preset, System};

const RANKS: [usize; 5] = [4, 1, 16, 6, 8];

/// Ids and weights of one call.
struct Choice {
    ids: Vec<i32>,
    weights: Vec<f32>,
}

impl Choice {
    fn routing(&mut self) -> Routing<'_> {
        Routing { given: true, ..Routing::new(&mut self.ids, &mut self.weights) }
    }
}

/// The base product alone.
fn base<X: Element>(device: &Device, linear: &Linear<X>, tokens: usize, x: &[X]) -> Vec<X> {
    let system = System { router: Router::External { top_k: 0 }, output: Output::Sum };
    let mut y = vec![X::from_f32(f32::NAN); tokens * linear.out_features];
    linear.layer(device, system).forward(tokens, x, Routing::new(&mut [], &mut []), &mut y).unwrap();
    y
}

/// A row of the base product for every route of its token.
fn repeated<X: Element>(rows: &[X], width: usize, top_k: usize) -> Vec<X> {
    rows.chunks(width).flat_map(|row| row.repeat(top_k)).collect()
}

/// y of the library's calls and of the formula.
pub fn mixlora<X: Element>(device: &Device, shape: Shape) -> (Vec<f64>, Vec<Vec<f64>>) {
    let Shape { tokens, in_features: hidden, out_features: width } = shape;
    let name = format!("mixlora {shape:?}");
    let gate = Linear::<X>::new(&format!("{name} gate"), (hidden, width), &RANKS, false);
    let up = Linear::<X>::new(&format!("{name} up"), (hidden, width), &RANKS, false);
    let down = Linear::<X>::new(&format!("{name} down"), (width, hidden), &RANKS, false);
    let x: Vec<X> = values(&format!("{name} x"), tokens * hidden, 1.0);
    let g = values::<f32>(&format!("{name} g"), RANKS.len() * hidden, 0.8);
    let router = LinearRouter::new(RANKS.len(), hidden, &g, None).unwrap();
    let system = Preset::MixLora.build(Parameters::Linear(router), None).unwrap();

    let g = Matrix::new(hidden, wide(&g));
    let want = Matrix::new(hidden, wide(&x)).rows().map(|x| formula(&g, [&gate, &up, &down], x)).collect();
    let got = block(device, system, [&gate, &up, &down], tokens, &x);
    (got, want)
}

/// `sum over all experts of w_e down_e (silu(gate_e x) * (up_e x))`.
fn formula<X: Element>(g: &Matrix, [gate, up, down]: [&Linear<X>; 3], x: &[f64]) -> Vec<f64> {
    let z = g.times(x);
    let weights = dense::renormalised(&dense::softmax(&z), &dense::best(&z, 2));
    let mut y = vec![0.0; down.out_features];
    for (e, weight) in weights.iter().enumerate() {
        let one: Vec<f64> = (0..RANKS.len()).map(|n| f64::from(u8::from(n == e))).collect();
        let of = |linear: &Linear<X>, x: &[f64]| dense::sum(&linear.base, &linear.experts, &one, x);
        let act: Vec<f64> = of(gate, x).iter().zip(of(up, x)).map(|(g, u)| dense::silu(*g) * u).collect();
        y.iter_mut().zip(of(down, &act)).for_each(|(y, v)| *y += weight * v);
    }
    y
}

/// The block as an engine runs it: one base product a linear and token.
fn block<X: Element>(
    device: &Device,
    system: System,
    [gate, up, down]: [&Linear<X>; 3],
    tokens: usize,
    x: &[X],
) -> Vec<f64> {
    let (top_k, width, hidden) = (system.router.top_k(), gate.out_features, down.out_features);
    let (follower, behind) = (system.follower(), system.behind_activation());
    let routes = tokens * top_k;
    let mut choice = Choice { ids: vec![i32::MIN; routes], weights: vec![f32::NAN; routes] };
    let mut gates = repeated(&base(device, gate, tokens, x), width, top_k);
    let routing = Routing::new(&mut choice.ids, &mut choice.weights);
    gate.layer(device, system).forward_delta(tokens, x, routing, &mut gates).unwrap();
    let mut ups = repeated(&base(device, up, tokens, x), width, top_k);
    let mut layer: HostLayer<X> = up.layer(device, follower);
    layer.forward_delta(tokens, x, choice.routing(), &mut ups).unwrap();

    let act: Vec<X> =
        wide(&gates).iter().zip(wide(&ups)).map(|(&g, u)| X::from_f32((dense::silu(g) * u) as f32)).collect();
    let mut sums = vec![0f32; tokens * width];
    let mut deltas = vec![X::from_f32(0.0); routes * hidden];
    for (n, act) in act.chunks(width).enumerate() {
        let sum = &mut sums[n / top_k * width..][..width];
        sum.iter_mut().zip(act).for_each(|(s, a)| *s += choice.weights[n] * a.to_f32());
    }
    let sums: Vec<X> = sums.into_iter().map(X::from_f32).collect();
    down.layer(device, behind).forward_delta(routes, &act, choice.routing(), &mut deltas).unwrap();
    let mut y = wide(&base(device, down, tokens, &sums));
    for (n, delta) in deltas.chunks(hidden).enumerate() {
        y[n / top_k * hidden..][..hidden].iter_mut().zip(wide(delta)).for_each(|(y, d)| *y += d);
    }
    y
}
