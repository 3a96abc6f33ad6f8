//! Grouped on the CPU: every step of a call, in the order of an engine's.

use super::cpu::{pack, packed, pool_sizes, typed};
use crate::guarded::{Guarded, Tensor};
use crate::{Inputs, with_rows};
use molora::device::Cpu;
use molora::device::cpu::Pool;
use molora::error::Result;
use std::any::Any;

/// A grouped case with its adapters in place.
pub(super) struct Group<'a> {
    cpu: &'a Cpu,
    inputs: &'a Inputs,
    pool: Pool,
    markers: Pool,
    weight: Box<dyn Any>,
    h: Guarded<f32>,
}

impl<'a> Group<'a> {
    pub(super) fn new(cpu: &'a Cpu, inputs: &'a Inputs) -> Result<Self> {
        let case = &inputs.case;
        let mut pool = Pool::packed(pool_sizes(case), &case.slice_widths())?;
        for slot in 0..case.slots() {
            let loras = inputs.loras(slot)?;
            pool.put_packed(slot, &loras.iter().map(Option::as_ref).collect::<Vec<_>>())?;
        }
        let (markers, weight) = (Pool::markers(case.group.experts)?, pack(cpu, inputs)?);
        Ok(Self { cpu, inputs, pool, markers, weight, h: inputs.empty_h() })
    }

    /// Both plans, shrink, the grouped product.
    pub(super) fn run(&mut self, y: &mut Tensor) -> Result<()> {
        let Self { cpu, inputs, pool, markers, weight, h } = self;
        let (ids, weights) = (&inputs.lora_ids, &inputs.topk_weights);
        let routed = cpu.plan(&inputs.lora_plan_sizes(), pool, ids)?;
        let plan = cpu.plan(&inputs.group_plan_sizes(), markers, &inputs.topk_ids)?;
        let (shrink, sizes) = (inputs.lora_shrink_sizes(), inputs.grouped_sizes());
        with_rows!(&inputs.x, x => cpu.shrink(&shrink, &routed, pool, x.cells(), weights, h.cells_mut())?);
        with_rows!(y, y => {
            let (x, y, weight) = (typed(&inputs.x), y.cells_mut(), packed(&**weight));
            cpu.grouped(&sizes, &plan, pool, &routed, weight, x, h.cells(), weights, y)
        })
    }
}
