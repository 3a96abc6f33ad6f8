//! The CPU as a subject.

use super::{PlanArrays, Subject, Timer};
use crate::case::{Case, Op};
use crate::guarded::{Guarded, Tensor};
use crate::{Inputs, with_rows};
use bytemuck::Pod;
use molora::adapter::slots::PoolSizes;
use molora::device::Cpu;
use molora::device::cpu::Pool;
use molora::error::Result;
use molora::ops::plan::Plan;
use std::time::Instant;

/// The CPU.
pub struct CpuSubject {
    cpu: Cpu,
}

impl CpuSubject {
    /// With all threads.
    pub fn new() -> Result<Self> {
        Ok(Self { cpu: Cpu::new()? })
    }
}

/// The case's adapters in a pool that has just the room.
pub(crate) fn pool_sizes(case: &Case) -> PoolSizes {
    PoolSizes {
        in_features: case.in_features,
        out_features: case.out_features,
        experts: case.experts,
        rank_capacity: (0..case.experts).map(|e| case.rank(e)).sum(),
        element: case.adapters,
    }
}

/// A case with its adapters in place.
struct Ready<'a> {
    cpu: &'a Cpu,
    inputs: &'a Inputs,
    pool: Pool,
    plan: Plan,
}

impl<'a> Ready<'a> {
    fn new(cpu: &'a Cpu, inputs: &'a Inputs) -> Result<Self> {
        let mut pool = Pool::new(pool_sizes(&inputs.case))?;
        for e in 0..inputs.experts.len() {
            pool.put(e, &inputs.lora(e)?)?;
        }
        let plan = cpu.plan(&inputs.plan_sizes(), &pool, &inputs.topk_ids)?;
        Ok(Self { cpu, inputs, pool, plan })
    }

    fn shrink(&self, h: &mut [f32]) -> Result<()> {
        let sizes = self.inputs.shrink_sizes();
        with_rows!(&self.inputs.x, x => {
            self.cpu.shrink(&sizes, &self.plan, &self.pool, x.cells(), &self.inputs.topk_weights, h)
        })
    }

    fn expand(&self, h: &[f32], accumulate: bool, y: &mut Tensor) -> Result<()> {
        let sizes = molora::ops::expand::Sizes { accumulate, ..self.inputs.expand_sizes() };
        let weights = &self.inputs.topk_weights;
        with_rows!(y, y => self.cpu.expand(&sizes, &self.plan, &self.pool, h, weights, y.cells_mut()))
    }

    fn delta(&mut self, accumulate: bool, h: &mut Guarded<f32>, y: &mut Tensor) -> Result<()> {
        self.plan = self.cpu.plan(&self.inputs.plan_sizes(), &self.pool, &self.inputs.topk_ids)?;
        self.shrink(h.cells_mut())?;
        self.expand(h.cells(), accumulate, y)
    }
}

fn typed<T: Pod>(tensor: &Tensor) -> &[T] {
    with_rows!(tensor, rows => bytemuck::cast_slice(rows.cells()))
}

fn base(cpu: &Cpu, inputs: &Inputs, y: &mut Tensor) -> Result<()> {
    let (sizes, bias) = (inputs.base_sizes(), inputs.bias.as_ref());
    with_rows!(y, y => {
        let y = y.cells_mut();
        cpu.base(&sizes, typed(&inputs.weight), bias.map(typed), typed(&inputs.x), y)
    })
}

impl Subject for CpuSubject {
    fn kind(&self) -> &'static str {
        "cpu"
    }

    fn name(&self) -> String {
        format!("cpu: {}", self.cpu.describe())
    }

    fn unsupported(&self, _case: &Case) -> Option<String> {
        None
    }

    fn route(
        &self,
        inputs: &Inputs,
        topk_ids: &mut Guarded<i32>,
        topk_weights: &mut Guarded<f32>,
    ) -> Result<()> {
        let (sizes, ids, weights) = (inputs.route_sizes(), topk_ids.cells_mut(), topk_weights.cells_mut());
        with_rows!(&inputs.x, x => self.cpu.route(&sizes, &inputs.router, x.cells(), ids, weights))
    }

    fn plan(&self, inputs: &Inputs) -> Result<PlanArrays> {
        // The smallest adapters there are: a plan reads only whether a slot holds one.
        let case =
            &Case { op: Op::Shrink, ranks: vec![1], in_features: 1, out_features: 1, ..inputs.case.clone() };
        let mut pool = Pool::new(pool_sizes(case))?;
        let lora = molora::adapter::Lora::new(1, 1, 1, 1.0, &[1f32], &[1f32])?;
        (0..case.experts).try_for_each(|e| pool.put(e, &lora))?;
        let plan = self.cpu.plan(&inputs.plan_sizes(), &pool, &inputs.topk_ids)?;
        Ok(PlanArrays {
            sorted_routes: plan.sorted_routes().to_vec(),
            expert_offsets: plan.expert_offsets().to_vec(),
        })
    }

    fn shrink(&self, inputs: &Inputs, h: &mut Guarded<f32>) -> Result<()> {
        Ready::new(&self.cpu, inputs)?.shrink(h.cells_mut())
    }

    fn expand(&self, inputs: &Inputs, y: &mut Tensor) -> Result<()> {
        Ready::new(&self.cpu, inputs)?.expand(inputs.h.cells(), inputs.case.accumulate, y)
    }

    fn base(&self, inputs: &Inputs, y: &mut Tensor) -> Result<()> {
        base(&self.cpu, inputs, y)
    }

    fn delta(&self, inputs: &Inputs, y: &mut Tensor) -> Result<()> {
        Ready::new(&self.cpu, inputs)?.delta(inputs.case.accumulate, &mut inputs.empty_h(), y)
    }

    fn layer(&self, inputs: &Inputs, y: &mut Tensor) -> Result<()> {
        base(&self.cpu, inputs, y)?;
        Ready::new(&self.cpu, inputs)?.delta(true, &mut inputs.empty_h(), y)
    }

    fn timer<'a>(&'a self, inputs: &'a Inputs) -> Result<Timer<'a>> {
        let (case, cpu) = (&inputs.case, &self.cpu);
        let (mut y, mut h) = (inputs.y.clone(), inputs.empty_h());
        Ok(match case.op {
            Op::Route => {
                let shape = (1, case.routes(), case.routes());
                let (mut ids, mut weights) =
                    (Guarded::output(shape, |_, _| 0), Guarded::output(shape, |_, _| 0.0));
                timed(move || self.route(inputs, &mut ids, &mut weights))
            }
            Op::Plan => {
                let sizes = inputs.plan_sizes();
                timed(move || molora::ops::plan::definition(&sizes, &inputs.topk_ids, 0).map(drop))
            }
            Op::Base => timed(move || base(cpu, inputs, &mut y)),
            Op::Shrink => {
                let ready = Ready::new(cpu, inputs)?;
                timed(move || ready.shrink(h.cells_mut()))
            }
            Op::Expand => {
                let ready = Ready::new(cpu, inputs)?;
                timed(move || ready.expand(inputs.h.cells(), case.accumulate, &mut y))
            }
            Op::Delta => {
                let mut ready = Ready::new(cpu, inputs)?;
                timed(move || ready.delta(case.accumulate, &mut h, &mut y))
            }
            Op::Layer => {
                let mut ready = Ready::new(cpu, inputs)?;
                timed(move || base(cpu, inputs, &mut y).and_then(|()| ready.delta(true, &mut h, &mut y)))
            }
        })
    }
}

fn timed<'a>(mut once: impl FnMut() -> Result<()> + 'a) -> Timer<'a> {
    Box::new(move |times| {
        let start = Instant::now();
        (0..times).try_for_each(|_| once())?;
        Ok(start.elapsed())
    })
}
