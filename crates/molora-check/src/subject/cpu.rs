//! The CPU as a subject.

use super::cpu_group::Group;
use super::{PlanArrays, Subject, Timer, copies_of, refused_form};
use crate::case::{Case, Op};
use crate::ceilings::{CpuMeter, Meter};
use crate::guarded::{Guarded, Tensor};
use crate::record::Machine;
use crate::{Inputs, with_rows};
use bytemuck::Pod;
use molora::adapter::slots::PoolSizes;
use molora::device::Cpu;
use molora::device::cpu::{Pool, Weight};
use molora::element::{Element, ElementType};
use molora::error::Result;
use molora::layer::{Base, MoeLora, Router, Routing};
use molora::ops::fused::{Form, cost};
use molora::ops::plan::Plan;
use molora::ops::route::CpuRouter;
use std::any::Any;
use std::time::Instant;

/// The CPU.
pub struct CpuSubject {
    cpu: Cpu,
    /// One form of the layer for every number of tokens.
    one_form: bool,
}

impl CpuSubject {
    fn routed(
        &self,
        inputs: &Inputs,
        router: &CpuRouter,
        topk_ids: &mut Guarded<i32>,
        topk_weights: &mut Guarded<f32>,
    ) -> Result<()> {
        let (sizes, ids, weights) = (inputs.route_sizes(), topk_ids.cells_mut(), topk_weights.cells_mut());
        let allow = inputs.allow.as_ref().map(|a| a.as_allow());
        with_rows!(&inputs.x, x => self.cpu.route(&sizes, router, x.cells(), allow, ids, weights))
    }

    /// With all threads.
    pub fn new() -> Result<Self> {
        Ok(Self { cpu: Cpu::new()?, one_form: false })
    }

    /// With so many threads.
    pub fn with_threads(threads: usize) -> Result<Self> {
        Ok(Self { cpu: Cpu::with_threads(threads)?, one_form: false })
    }

    fn ready<'a>(&self, inputs: &'a Inputs) -> Result<Ready<'a>> {
        let form = if self.one_form { Some(self.form(&inputs.case)?) } else { inputs.case.form };
        Ready::new(&self.cpu, inputs, form)
    }
}

/// The case's adapters in a pool that has just the room.
pub(crate) fn pool_sizes(case: &Case) -> PoolSizes {
    PoolSizes {
        in_features: case.in_features,
        out_features: case.out_features,
        experts: case.slots(),
        rank_capacity: (0..case.slots()).map(|e| case.rank(e)).sum(),
        element: case.adapters,
    }
}

/// The smallest adapters there are: a plan reads only whether a slot holds one.
pub(crate) fn plan_case(case: &Case) -> Case {
    Case { ranks: vec![1], in_features: 1, out_features: 1, ..case.clone().element(ElementType::F32) }
}

/// A case with its adapters in place.
struct Ready<'a> {
    inputs: &'a Inputs,
    layer: MoeLora<Cpu>,
    plan: Plan,
    topk_ids: Vec<i32>,
    topk_weights: Vec<f32>,
    workspace: Vec<f32>,
    /// A [`Weight`] of x's elements; none where the case has no base.
    weight: Option<Box<dyn Any>>,
}

/// A pool for a plan, which reads only whether a slot holds an adapter: the smallest there are.
fn planned_pool(case: &Case) -> Result<Pool> {
    let mut pool = Pool::new(pool_sizes(case))?;
    let lora = molora::adapter::Lora::new(1, 1, 1, 1.0, &[1f32], &[1f32])?;
    (0..case.experts).try_for_each(|e| pool.put(e, &lora))?;
    Ok(pool)
}

impl<'a> Ready<'a> {
    fn new(cpu: &Cpu, inputs: &'a Inputs, form: Option<Form>) -> Result<Self> {
        let case = &inputs.case;
        let mut pool = Pool::packed(pool_sizes(case), &case.slice_widths())?;
        if case.op == Op::Attend {
            pool.set_attention(&inputs.attention()?)?;
        }
        for e in 0..case.slots() {
            let loras = inputs.loras(e)?;
            pool.put_packed(e, &loras.iter().map(Option::as_ref).collect::<Vec<_>>())?;
        }
        let plan = cpu.plan(&inputs.plan_sizes(), &pool, &inputs.topk_ids)?;
        let layer = MoeLora::<Cpu>::new(cpu, pool, Router::External { top_k: case.top_k })?;
        let layer = layer.with_output(case.output).with_form(form);
        Ok(Self {
            inputs,
            plan,
            topk_ids: inputs.topk_ids.clone(),
            topk_weights: inputs.topk_weights.clone(),
            workspace: vec![f32::NAN; layer.workspace_len(case.tokens)],
            weight: case.op.has_base().then(|| pack(cpu, inputs)).transpose()?,
            layer,
        })
    }

    fn shrink(&self, h: &mut [f32]) -> Result<()> {
        let (cpu, pool, sizes) = (self.layer.device(), self.layer.pool(), self.inputs.shrink_sizes());
        with_rows!(&self.inputs.x, x => cpu.shrink(&sizes, &self.plan, pool, x.cells(), &self.topk_weights, h))
    }

    fn attend(&self, weights: &mut [f32]) -> Result<()> {
        let (cpu, pool, sizes) = (self.layer.device(), self.layer.pool(), self.inputs.attend_sizes());
        let h = self.inputs.h.cells();
        with_rows!(&self.inputs.x, x => cpu.attend(&sizes, &self.plan, pool, x.cells(), h, weights))
    }

    fn expand(&self, y: &mut Tensor) -> Result<()> {
        let (cpu, pool, sizes) = (self.layer.device(), self.layer.pool(), self.inputs.expand_sizes());
        let h = self.inputs.h.cells();
        with_rows!(y, y => cpu.expand(&sizes, &self.plan, pool, h, &self.topk_weights, y.cells_mut()))
    }

    /// The layer with its base product or without.
    fn layer(&mut self, base: bool, y: &mut Tensor) -> Result<()> {
        let inputs = self.inputs;
        let routing = &mut Routing::new(&mut self.topk_ids, &mut self.topk_weights);
        let (rows, workspace, weight) = (inputs.layer_rows(), &mut self.workspace, self.weight.as_deref());
        with_rows!(y, y => {
            let (x, y) = (typed(&inputs.x), y.cells_mut());
            if base {
                let weight = packed(weight.expect("a layer has a base"));
                let base = Base { weight, bias: inputs.bias.as_ref().map(typed) };
                self.layer.forward(&rows, base, x, routing, workspace, y)
            } else {
                self.layer.forward_delta(&rows, x, routing, workspace, y)
            }
        })
    }
}

pub(super) fn typed<T: Pod>(tensor: &Tensor) -> &[T] {
    with_rows!(tensor, rows => bytemuck::cast_slice(rows.cells()))
}

fn base(cpu: &Cpu, inputs: &Inputs, weight: &dyn Any, y: &mut Tensor) -> Result<()> {
    let (sizes, bias) = (inputs.base_sizes(), inputs.bias.as_ref());
    with_rows!(y, y => {
        let y = y.cells_mut();
        cpu.base(&sizes, packed(weight), bias.map(typed), typed(&inputs.x), y)
    })
}

/// The case's weight as an engine packs it when it loads a model: outside of every timed call.
pub(super) fn pack(cpu: &Cpu, inputs: &Inputs) -> Result<Box<dyn Any>> {
    let (rows, columns) = inputs.weight_shape();
    with_rows!(&inputs.weight, weight => Ok(Box::new(cpu.pack(rows, columns, weight.cells())?)))
}

pub(super) fn packed<X: Element>(weight: &dyn Any) -> &Weight<X> {
    weight.downcast_ref().expect("x's elements")
}

impl Subject for CpuSubject {
    fn kind(&self) -> &'static str {
        "cpu"
    }

    fn name(&self) -> String {
        format!("cpu: {}", self.cpu.describe())
    }

    fn batch_invariant(&self) -> Box<dyn Subject> {
        Box::new(Self { cpu: self.cpu.clone(), one_form: true })
    }

    fn limits(&self, problem: &cost::Problem) -> cost::Limits {
        let limits = self.cpu.fused_limits(problem);
        cost::Limits { batch_invariant: limits.batch_invariant || self.one_form, ..limits }
    }

    fn unsupported(&self, case: &Case) -> Option<String> {
        refused_form(self, case)
    }

    fn details(&self) -> Vec<(String, String)> {
        let text = self.cpu.describe();
        let (simd, threads) = text.split_once(", ").unwrap_or((&text, ""));
        vec![("simd".into(), simd.into()), ("threads".into(), threads.trim_end_matches(" threads").into())]
    }

    fn route(
        &self,
        inputs: &Inputs,
        topk_ids: &mut Guarded<i32>,
        topk_weights: &mut Guarded<f32>,
    ) -> Result<()> {
        let router = CpuRouter::new(&self.cpu, inputs.router.clone())?;
        self.routed(inputs, &router, topk_ids, topk_weights)
    }

    fn plan(&self, inputs: &Inputs) -> Result<PlanArrays> {
        let pool = planned_pool(&plan_case(&inputs.case))?;
        let plan = self.cpu.plan(&inputs.plan_sizes(), &pool, &inputs.topk_ids)?;
        Ok(PlanArrays {
            sorted_routes: plan.sorted_routes().to_vec(),
            expert_offsets: plan.expert_offsets().to_vec(),
        })
    }

    fn shrink(&self, inputs: &Inputs, h: &mut Guarded<f32>) -> Result<()> {
        self.ready(inputs)?.shrink(h.cells_mut())
    }

    fn attend(&self, inputs: &Inputs, topk_weights: &mut Guarded<f32>) -> Result<()> {
        self.ready(inputs)?.attend(topk_weights.cells_mut())
    }

    fn expand(&self, inputs: &Inputs, y: &mut Tensor) -> Result<()> {
        self.ready(inputs)?.expand(y)
    }

    fn base(&self, inputs: &Inputs, y: &mut Tensor) -> Result<()> {
        base(&self.cpu, inputs, &*pack(&self.cpu, inputs)?, y)
    }

    fn delta(&self, inputs: &Inputs, y: &mut Tensor) -> Result<()> {
        self.ready(inputs)?.layer(false, y)
    }

    fn layer(&self, inputs: &Inputs, y: &mut Tensor) -> Result<()> {
        self.ready(inputs)?.layer(true, y)
    }

    fn fused(&self, inputs: &Inputs, y: &mut Tensor) -> Result<()> {
        self.ready(inputs)?.layer(true, y)
    }

    fn grouped(&self, inputs: &Inputs, y: &mut Tensor) -> Result<()> {
        Group::new(&self.cpu, inputs)?.run(y)
    }

    fn meter(&self) -> Result<Option<Box<dyn Meter + '_>>> {
        Ok(Some(Box::new(CpuMeter::new(Machine::here().threads))))
    }

    fn clock(&self) -> Result<&'static str> {
        Ok("wall")
    }

    fn timer<'a>(&'a self, inputs: &'a Inputs) -> Result<Timer<'a>> {
        let (case, cpu) = (&inputs.case, &self.cpu);
        let (mut y, mut h) = (inputs.y.clone(), inputs.empty_h());
        let copies = copies_of(inputs, true, false);
        let ready = || self.ready(inputs);
        Ok(match case.op {
            Op::Route => {
                let shape = (1, case.routes(), case.routes());
                let (mut ids, mut weights) =
                    (Guarded::output(shape, |_, _| 0), Guarded::output(shape, |_, _| 0.0));
                let router = || CpuRouter::new(&self.cpu, inputs.router.clone());
                timed(copies, router, move |router| self.routed(inputs, router, &mut ids, &mut weights))?
            }
            Op::Plan => {
                let sizes = inputs.plan_sizes();
                let pool = || planned_pool(&plan_case(case));
                timed(copies, pool, move |pool| cpu.plan(&sizes, pool, &inputs.topk_ids).map(drop))?
            }
            Op::Base => {
                timed(copies, || pack(cpu, inputs), move |weight| base(cpu, inputs, &**weight, &mut y))?
            }
            Op::Shrink => timed(copies, ready, move |ready| ready.shrink(h.cells_mut()))?,
            Op::Attend => {
                let mut weights = inputs.empty_weights();
                timed(copies, ready, move |ready| ready.attend(weights.cells_mut()))?
            }
            Op::Expand => timed(copies, ready, move |ready| ready.expand(&mut y))?,
            Op::Grouped => timed(copies, || Group::new(cpu, inputs), move |group| group.run(&mut y))?,
            Op::Delta | Op::Layer | Op::Fused => {
                timed(copies, ready, move |ready| ready.layer(case.op != Op::Delta, &mut y))?
            }
        })
    }
}

/// Every call takes the next copy.
fn timed<'a, T: 'a>(
    copies: usize,
    new: impl Fn() -> Result<T>,
    mut once: impl FnMut(&mut T) -> Result<()> + 'a,
) -> Result<Timer<'a>> {
    let mut copies = (0..copies).map(|_| new()).collect::<Result<Vec<T>>>()?;
    let mut calls = 0;
    Ok(Box::new(move |times| {
        let start = Instant::now();
        for _ in 0..times {
            calls = (calls + 1) % copies.len();
            once(&mut copies[calls])?;
        }
        Ok(start.elapsed())
    }))
}
