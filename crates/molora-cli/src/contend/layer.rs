//! The layer: its base, its experts alone, both, and both behind its router. The workspace and the routing's memory are
//! made once; plans and y are made in the call.

use super::product::{Rows as Values, base_sizes, packed, rounded, weights, zeros};
use molora::adapter::LinearRouter;
use molora::adapter::slots::PoolSizes;
use molora::device::cpu::{Pool, Weight};
use molora::element::Element;
use molora::layer::{Base, MoeLora, Router, Routing, Rows};
use molora::ops::route::Weighting;
use molora::{Cpu, Lora, Result};
use molora_check::contest::{Arrays, Case, Series};
use std::rc::Rc;

/// All series of a case.
pub fn series(cpu: &Cpu, case: &Case, arrays: Arrays) -> Result<Vec<Series>> {
    let mut all = of_element::<f32>(cpu, case, &arrays, ["packed", "delta", "fused", "separate"])?;
    if case.ops.iter().any(|op| op == "full") {
        all.push(full(cpu, case, &arrays)?);
    }
    if case.tags.iter().any(|tag| tag == "bf16") {
        all.extend(of_element::<half::bf16>(cpu, case, &arrays, ["packed_bf16", "", "fused_bf16", ""])?);
        all.extend(of_element::<half::f16>(cpu, case, &arrays, ["packed_f16", "", "fused_f16", ""])?);
    }
    Ok(all)
}

/// One layer's data, of one element type.
struct Data<X> {
    cpu: Cpu,
    case: Case,
    rows: Rows,
    x: Rc<Vec<X>>,
    weights: Rc<Vec<Weight<X>>>,
    layers: Rc<Vec<MoeLora<Cpu>>>,
    ids: Vec<i32>,
    gates: Vec<f32>,
    workspace: Vec<f32>,
}

impl<X: Element> Data<X> {
    fn new(cpu: &Cpu, case: &Case, arrays: &Arrays, router: &Router<LinearRouter>) -> Result<Self> {
        let weights = weights::<X>(cpu, case, case.out_features, &arrays.w)?;
        let layers = layers::<X>(cpu, case, arrays, router)?;
        Ok(Self {
            cpu: cpu.clone(),
            case: case.clone(),
            rows: Rows { tokens: case.tokens, x_stride: case.in_features, y_stride: case.out_features },
            x: Rc::new(rounded(&arrays.x)),
            workspace: vec![0.0; layers[0].workspace_len(case.tokens)],
            weights,
            layers: Rc::new(layers),
            ids: arrays.ids.clone(),
            gates: arrays.gates.clone(),
        })
    }

    /// The same weights, x and layers, with memory of its own for what a call writes.
    fn share(&self) -> Self {
        let Self { cpu, case, rows, x, weights, layers, ids, gates, workspace } = self;
        let (x, weights, layers) = (x.clone(), weights.clone(), layers.clone());
        let (cpu, case, ids) = (cpu.clone(), case.clone(), ids.clone());
        Self {
            cpu,
            case,
            rows: *rows,
            x,
            weights,
            layers,
            ids,
            gates: gates.clone(),
            workspace: workspace.clone(),
        }
    }

    /// What `MoeLora::forward` chooses.
    fn forward(&mut self, i: usize) -> Result<Values<X>> {
        let (weight, layer) = (&self.weights[i % self.weights.len()], &self.layers[i % self.layers.len()]);
        let mut y = zeros(self.case.tokens * self.case.out_features);
        let mut routing = Routing::new(&mut self.ids, &mut self.gates);
        let base = Base { weight, bias: None };
        layer.forward(&self.rows, base, &self.x, &mut routing, &mut self.workspace, &mut y)?;
        Ok(Values(y))
    }

    /// The experts alone, onto zeros or onto the base product.
    fn delta(&mut self, i: usize, base: bool) -> Result<Values<X>> {
        let mut y = zeros(self.case.tokens * self.case.out_features);
        if base {
            let weight = &self.weights[i % self.weights.len()];
            self.cpu.base(&base_sizes(&self.case), weight, None, &self.x, &mut y)?;
        }
        let mut routing = Routing::new(&mut self.ids, &mut self.gates);
        let layer = &self.layers[i % self.layers.len()];
        layer.forward_delta(&self.rows, &self.x, &mut routing, &mut self.workspace, &mut y)?;
        Ok(Values(y))
    }
}

/// Copies of the pool, each in a layer of its own.
fn layers<X: Element>(
    cpu: &Cpu,
    case: &Case,
    arrays: &Arrays,
    router: &Router<LinearRouter>,
) -> Result<Vec<MoeLora<Cpu>>> {
    let Case { in_features, out_features, experts, rank, scale, .. } = *case;
    let (a, b) = (rounded::<X>(&arrays.a), rounded::<X>(&arrays.b));
    let lora = |e: usize| {
        let (a, b) = (&a[e * rank * in_features..][..rank * in_features], &b[e * rank * out_features..]);
        Lora::new(in_features, out_features, rank, scale, a, &b[..rank * out_features])
    };
    let loras = (0..experts).map(lora).collect::<Result<Vec<_>>>()?;
    let sizes =
        PoolSizes { in_features, out_features, experts, rank_capacity: experts * rank, element: X::TYPE };
    let layer = |_| {
        let mut pool = Pool::new(sizes)?;
        loras.iter().enumerate().try_for_each(|(slot, lora)| pool.put(slot, lora))?;
        MoeLora::<Cpu>::new(cpu, pool, router.clone())
    };
    (0..case.copies.ab).map(layer).collect()
}

/// Base, experts alone, and layer by their names; none where the name is empty.
fn of_element<X: Element>(
    cpu: &Cpu,
    case: &Case,
    arrays: &Arrays,
    [base, delta, fused, separate]: [&'static str; 4],
) -> Result<Vec<Series>> {
    let data = Data::<X>::new(cpu, case, arrays, &Router::External { top_k: case.top_k })?;
    let mut all = vec![packed(cpu, case, base, data.weights.clone(), data.x.clone())];
    let mut own = data.share();
    all.push(Series::new("layer", fused, move |i| own.forward(i)));
    for (op, variant, with_base) in [("lora", delta, false), ("layer", separate, true)] {
        let mut own = data.share();
        if !variant.is_empty() {
            all.push(Series::new(op, variant, move |i| own.delta(i, with_base)));
        }
    }
    Ok(all)
}

/// The layer with its router.
fn full(cpu: &Cpu, case: &Case, arrays: &Arrays) -> Result<Series> {
    let Arrays { router, router_bias, .. } = arrays;
    let linear = LinearRouter::new(case.experts, case.in_features, router, Some(router_bias))?;
    let router = Router::best(linear, case.top_k, Weighting::SoftmaxSelected);
    let mut data = Data::<f32>::new(cpu, case, arrays, &router)?;
    Ok(Series::new("full", "fused", move |i| data.forward(i)))
}
