//! A grouped case on CUDA: both plans, shrink, the grouped product.

use super::cuda::{Held, Tensors};
use crate::Inputs;
use molora::device::Cuda;
use molora::device::cuda::{Plan, Pool};
use molora::element::Element;
use molora::error::Result;
use molora::ops::grouped;

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
    pub(super) fn new(cuda: &Cuda, inputs: &Inputs, pool: &Pool, ids: &Held<i32>) -> Result<Self> {
        let markers = Pool::markers(cuda, inputs.case.group.experts)?;
        let lora_ids = Held::list(cuda, &inputs.lora_ids)?;
        let plan = cuda.plan(&inputs.group_plan_sizes(), &markers, &ids.view(cuda)?, None)?;
        let routed = cuda.plan(&inputs.lora_plan_sizes(), pool, &lora_ids.view(cuda)?, None)?;
        let scratch = vec![f32::NAN; grouped::cuda::scratch_len(&inputs.grouped_sizes())];
        let scratch = Held::list(cuda, &scratch)?;
        Ok(Self { markers, plan, routed, lora_ids, scratch })
    }

    pub(super) fn enqueue<X: Element>(
        &mut self,
        (cuda, inputs, pool): (&Cuda, &Inputs, &Pool),
        (ids, weights): (&Held<i32>, &Held<f32>),
        h: &mut Held<f32>,
        tensors: &mut Tensors<X>,
    ) -> Result<()> {
        let Self { markers, plan, routed, lora_ids, scratch } = self;
        let Tensors { x, weight, y, .. } = tensors;
        let (x, weight, mut y) = (x.view(cuda)?, weight.view(cuda)?, y.view_mut(cuda)?);
        let (ids, lora_ids, weights) = (ids.view(cuda)?, lora_ids.view(cuda)?, weights.view(cuda)?);
        let (mut h, mut scratch) = (h.view_mut(cuda)?, scratch.view_mut(cuda)?);
        cuda.plan_into(&inputs.group_plan_sizes(), markers, &ids, None, plan)?;
        cuda.plan_into(&inputs.lora_plan_sizes(), pool, &lora_ids, None, routed)?;
        cuda.shrink(&inputs.lora_shrink_sizes(), routed, pool, &x, &weights, None, &mut h)?;
        let (sizes, h) = (inputs.grouped_sizes(), h.as_view());
        cuda.grouped(&sizes, plan, pool, routed, &weight, &x, &h, &weights, &mut scratch, &mut y)
    }
}
