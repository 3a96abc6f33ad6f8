//! A grouped case on WebGPU: both plans, shrink, the grouped product.

use super::wgpu::{list, uploaded, view};
use crate::Inputs;
use crate::guarded::Guarded;
use molora::device::Wgpu;
use molora::device::wgpu::{Plan, Pool, View};
use molora::element::Element;
use molora::error::Result;
use molora::ops::{grouped, plan};
use wgpu::{Buffer, CommandEncoder};

type Held<T> = (Guarded<T>, Buffer);

/// What a grouped case holds beside other cases.
pub(super) struct Group {
    markers: Pool,
    /// Over the base experts.
    plan: Plan,
    /// Over the adapters' slots.
    routed: Plan,
    lora_ids: Held<i32>,
    scratch: Held<f32>,
}

impl Group {
    pub(super) fn new(wgpu: &Wgpu, inputs: &Inputs, pool: &Pool, ids: &Held<i32>) -> Result<Self> {
        let markers = Pool::markers(wgpu, inputs.case.group.experts)?;
        let lora_ids = uploaded(wgpu, list(&inputs.lora_ids))?;
        let mut encoder = wgpu.encoder();
        let mut plan = |sizes: &plan::Sizes, pool: &Pool, ids: &Held<i32>| {
            wgpu.plan(&mut encoder, sizes, pool, view(ids)?)
        };
        let routed = plan(&inputs.lora_plan_sizes(), pool, &lora_ids)?;
        let plan = plan(&inputs.group_plan_sizes(), &markers, ids)?;
        wgpu.queue().submit([encoder.finish()]);
        let scratch = vec![f32::NAN; grouped::wgpu::scratch_len(&inputs.grouped_sizes())];
        let scratch = uploaded(wgpu, list(&scratch))?;
        Ok(Self { markers, plan, routed, lora_ids, scratch })
    }

    /// `weight`, `x`, `y` in this order.
    pub(super) fn record<X: Element>(
        &mut self,
        (wgpu, inputs, pool): (&Wgpu, &Inputs, &Pool),
        encoder: &mut CommandEncoder,
        (ids, weights): (View<i32>, View<f32>),
        h: View<f32>,
        [weight, x, y]: [View<X>; 3],
    ) -> Result<()> {
        let (lora_ids, scratch) = (view(&self.lora_ids)?, view(&self.scratch)?);
        wgpu.plan_into(encoder, &inputs.group_plan_sizes(), &self.markers, ids, &mut self.plan)?;
        wgpu.plan_into(encoder, &inputs.lora_plan_sizes(), pool, lora_ids, &mut self.routed)?;
        let (sizes, plan, loras) = (inputs.grouped_sizes(), &self.plan, &self.routed);
        if sizes.rows == grouped::Rows::Combined {
            return wgpu
                .grouped_with_shrink(encoder, &sizes, plan, pool, loras, weight, x, h, weights, scratch, y);
        }
        wgpu.shrink(encoder, &inputs.lora_shrink_sizes(), loras, pool, x, weights, h)?;
        wgpu.grouped(encoder, &sizes, plan, pool, loras, weight, x, h, weights, scratch, y)
    }
}
