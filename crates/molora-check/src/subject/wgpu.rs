//! A WebGPU adapter as a subject: guards and all go up, the rows are views of them, all comes back.

use super::cpu::{plan_case, pool_sizes};
use super::wgpu_clock::WgpuClock;
use super::wgpu_group::Group;
use super::{Found, PlanArrays, Subject, Timer, copies_of, refused_form};
use crate::case::{Case, Op};
use crate::ceilings::{Meter, WgpuMeter, wgpu::tried_clock};
use crate::guarded::{Guarded, Tensor};
use crate::{Inputs, with_rows};
use bytemuck::Pod;
use half::{bf16, f16};
use molora::adapter::Lora;
use molora::device::Wgpu;
use molora::device::wgpu::{Plan, Pool, View};
use molora::element::{Element, ElementType};
use molora::error::{Error, Result};
use molora::layer::{Base, MoeLora, Router, RoutingView, Workspace};
use molora::ops::fused::cost;
use molora::ops::plan;
use molora::ops::route::{Allow, WgpuRouter};
use std::sync::OnceLock;
use wgpu::{Buffer, CommandEncoder};

/// One adapter.
pub struct WgpuSubject {
    wgpu: Wgpu,
    clock: OnceLock<WgpuClock>,
}

/// Adds every adapter of this machine.
pub(super) fn find(found: &mut Found) {
    let adapters = Wgpu::adapters();
    if adapters.is_empty() {
        found.missing.push("wgpu: expected a Vulkan, Metal, DX12 or OpenGL driver, found no adapter".into());
    }
    for adapter in adapters {
        match Wgpu::open(&adapter) {
            Ok(wgpu) => found.subjects.push(Box::new(WgpuSubject::new(wgpu))),
            Err(e) => found.missing.push(e.to_string()),
        }
    }
}

/// A case in the device's memory.
struct Ready<'a> {
    inputs: &'a Inputs,
    layer: MoeLora<Wgpu>,
    plan: Plan,
    workspace: Workspace,
    ids: (Guarded<i32>, Buffer),
    weights: (Guarded<f32>, Buffer),
    x: Buffer,
    h: (Guarded<f32>, Buffer),
    weight: Buffer,
    bias: Option<Buffer>,
    y: Buffer,
    router: Option<WgpuRouter>,
    /// Offsets and lists.
    allow: Option<(Buffer, Buffer)>,
    group: Option<Group>,
}

pub(super) fn list<T: Pod>(values: &[T]) -> Guarded<T> {
    Guarded::output((1, values.len(), values.len()), |_, i| values[i])
}

pub(super) fn uploaded<T: Pod>(wgpu: &Wgpu, rows: Guarded<T>) -> Result<(Guarded<T>, Buffer)> {
    let buffer = wgpu.upload(&rows.all)?;
    Ok((rows, buffer))
}

/// The case's adapters; for a plan the smallest there are, since it reads only whether a slot holds one.
fn filled_pool(wgpu: &Wgpu, inputs: &Inputs) -> Result<Pool> {
    let case = match inputs.case.op {
        Op::Plan | Op::Route | Op::Base => plan_case(&inputs.case),
        _ => inputs.case.clone(),
    };
    let mut pool = Pool::packed(wgpu, pool_sizes(&case), &case.slice_widths())?;
    if inputs.case.op == Op::Plan {
        let lora = Lora::new(1, 1, 1, 1.0, &[1f32], &[1f32])?;
        (0..case.experts).try_for_each(|e| pool.put(e, &lora))?;
    }
    if case.op == Op::Attend {
        pool.set_attention(&inputs.attention()?)?;
    }
    let experts = if case.op.uses().adapters { case.slots() } else { 0 };
    for e in 0..experts {
        let loras = inputs.loras(e)?;
        pool.put_packed(e, &loras.iter().map(Option::as_ref).collect::<Vec<_>>())?;
    }
    Ok(pool)
}

pub(super) fn view<'a, T>((rows, buffer): &'a (Guarded<T>, Buffer)) -> Result<View<'a, T>>
where
    T: Pod,
{
    View::new(buffer, rows.first, rows.len())
}

fn tensor_view<'a, T>(tensor: &Tensor, buffer: &'a Buffer) -> Result<View<'a, T>> {
    with_rows!(tensor, rows => View::new(buffer, rows.first, rows.len()))
}

impl<'a> Ready<'a> {
    fn new(wgpu: &Wgpu, inputs: &'a Inputs) -> Result<Self> {
        let case = &inputs.case;
        let pool = filled_pool(wgpu, inputs)?;
        let (ids, weights) = match case.op {
            Op::Route => (vec![-1; case.routes()], vec![f32::NAN; case.routes()]),
            _ => (inputs.topk_ids.clone(), inputs.topk_weights.clone()),
        };
        let ids = uploaded(wgpu, list(&ids))?;
        let weights = uploaded(wgpu, list(&weights))?;
        let h = if case.op.reads_h() { inputs.h.clone() } else { inputs.empty_h() };
        // The plan is a step of its own: the timers of shrink and expand leave it out.
        let mut encoder = wgpu.encoder();
        let plan_sizes = match case.op {
            Op::Route | Op::Base | Op::Grouped => plan::Sizes { tokens: 0, ..inputs.plan_sizes() },
            _ => inputs.plan_sizes(),
        };
        let plan_ids = View::new(&ids.1, ids.0.first, plan_sizes.routes())?;
        let plan = wgpu.plan(&mut encoder, &plan_sizes, &pool, plan_ids)?;
        wgpu.queue().submit([encoder.finish()]);
        let grouped = case.op == Op::Grouped;
        let group = grouped.then(|| Group::new(wgpu, inputs, &pool, &ids)).transpose()?;
        let layer = MoeLora::<Wgpu>::new(wgpu, pool, Router::External { top_k: case.top_k })?;
        let layer = layer.with_output(case.output).with_form(case.form);
        let allow = match &inputs.allow {
            Some(lists) => {
                let Allow { offsets, lists } = lists.as_allow();
                Some((wgpu.upload(offsets)?, wgpu.upload(lists)?))
            }
            None => None,
        };
        let router =
            (case.op == Op::Route).then(|| WgpuRouter::new(wgpu, inputs.router.clone())).transpose()?;
        Ok(Self {
            workspace: layer.workspace(case.tokens)?,
            ids,
            weights,
            x: upload(wgpu, &inputs.x)?,
            h: uploaded(wgpu, h)?,
            weight: upload(wgpu, &inputs.weight)?,
            bias: inputs.bias.as_ref().map(|bias| upload(wgpu, bias)).transpose()?,
            y: upload(wgpu, &inputs.y)?,
            inputs,
            layer,
            plan,
            router,
            allow,
            group,
        })
    }

    /// Records the case's operation.
    fn record(&mut self, wgpu: &Wgpu, encoder: &mut CommandEncoder) -> Result<()> {
        match self.inputs.case.x {
            ElementType::F32 => self.record_typed::<f32>(wgpu, encoder),
            ElementType::F16 => self.record_typed::<f16>(wgpu, encoder),
            ElementType::Bf16 => self.record_typed::<bf16>(wgpu, encoder),
        }
    }

    fn record_typed<X: Element>(&mut self, wgpu: &Wgpu, encoder: &mut CommandEncoder) -> Result<()> {
        let inputs = self.inputs;
        let (x, y) = (tensor_view::<X>(&inputs.x, &self.x)?, tensor_view::<X>(&inputs.y, &self.y)?);
        let (ids, weights, h) = (view(&self.ids)?, view(&self.weights)?, view(&self.h)?);
        let weight = tensor_view::<X>(&inputs.weight, &self.weight)?;
        let bias = match (&inputs.bias, &self.bias) {
            (Some(bias), Some(buffer)) => Some(tensor_view::<X>(bias, buffer)?),
            _ => None,
        };
        let routing = RoutingView::new(ids, weights);
        let (rows, workspace, pool) = (inputs.layer_rows(), &mut self.workspace, self.layer.pool());
        if let Some(group) = &mut self.group {
            return group.record((wgpu, inputs, pool), encoder, (ids, weights), h, [weight, x, y]);
        }
        match inputs.case.op {
            Op::Route => {
                let router = self.router.as_ref().expect("made for this operation");
                let allow = match (&inputs.allow, &self.allow) {
                    (Some(lists), Some((offsets, words))) => {
                        let Allow { offsets: o, lists: l } = lists.as_allow();
                        Some(Allow {
                            offsets: View::new(offsets, 0, o.len())?,
                            lists: View::new(words, 0, l.len())?,
                        })
                    }
                    _ => None,
                };
                wgpu.route(encoder, &inputs.route_sizes(), router, x, allow, ids, weights)
            }
            Op::Grouped => unreachable!("a group"),
            Op::Plan => wgpu.plan_into(encoder, &inputs.plan_sizes(), pool, ids, &mut self.plan),
            Op::Shrink => wgpu.shrink(encoder, &inputs.shrink_sizes(), &self.plan, pool, x, weights, h),
            Op::Attend => wgpu.attend(encoder, &inputs.attend_sizes(), &self.plan, pool, x, h, weights),
            Op::Expand => wgpu.expand(encoder, &inputs.expand_sizes(), &self.plan, pool, h, weights, y),
            Op::Base => wgpu.base(encoder, &inputs.base_sizes(), weight, bias, x, y),
            Op::Delta => self.layer.forward_delta(encoder, &rows, x, routing, workspace, y),
            Op::Layer | Op::Fused => {
                self.layer.forward(encoder, &rows, Base { weight, bias }, x, routing, workspace, y)
            }
        }
    }
}

fn upload(wgpu: &Wgpu, tensor: &Tensor) -> Result<Buffer> {
    with_rows!(tensor, rows => wgpu.upload(&rows.all))
}

impl WgpuSubject {
    /// An opened adapter.
    pub fn new(wgpu: Wgpu) -> Self {
        Self { wgpu, clock: OnceLock::new() }
    }

    fn tried_clock(&self) -> Result<&WgpuClock> {
        if let Some(clock) = self.clock.get() {
            return Ok(clock);
        }
        let clock = tried_clock(&self.wgpu)?;
        Ok(self.clock.get_or_init(|| clock))
    }

    /// Runs the case's operation once.
    fn run<'a>(&self, inputs: &'a Inputs) -> Result<Ready<'a>> {
        self.run_ready(Ready::new(&self.wgpu, inputs)?)
    }

    fn run_ready<'a>(&self, mut ready: Ready<'a>) -> Result<Ready<'a>> {
        let mut encoder = self.wgpu.encoder();
        ready.record(&self.wgpu, &mut encoder)?;
        self.wgpu.queue().submit([encoder.finish()]);
        for wgpu in [&self.wgpu, ready.layer.device()] {
            let status = wgpu.take_status()?;
            if !status.is_ok() {
                return Err(Error::Device { device: self.name(), reason: format!("status word: {status}") });
            }
        }
        Ok(ready)
    }

    fn run_to_y(&self, inputs: &Inputs, y: &mut Tensor) -> Result<()> {
        let buffer = self.run(inputs)?.y;
        with_rows!(y, y => self.download(&buffer, y))
    }

    fn download<T: Pod>(&self, buffer: &Buffer, rows: &mut Guarded<T>) -> Result<()> {
        rows.all = self.wgpu.download(buffer, rows.all.len())?;
        Ok(())
    }
}

impl Subject for WgpuSubject {
    fn kind(&self) -> &'static str {
        "wgpu"
    }

    fn name(&self) -> String {
        format!("wgpu: {}", self.wgpu.describe())
    }

    fn wgpu(&self) -> Option<&Wgpu> {
        Some(&self.wgpu)
    }

    fn batch_invariant(&self) -> Box<dyn Subject> {
        Box::new(Self::new(self.wgpu.batch_invariant(true)))
    }

    fn limits(&self, problem: &cost::Problem) -> cost::Limits {
        self.wgpu.fused_limits(problem)
    }

    fn unsupported(&self, case: &Case) -> Option<String> {
        let (halves, widths) = (case.x != ElementType::F32, case.slice_widths());
        let grouped = case.op == Op::Grouped;
        if halves && (grouped || case.op.has_base()) && case.in_features % 2 == 1 {
            return Some("a weight in 16 bits with rows of odd length".into());
        }
        if halves && !grouped && widths[..widths.len() - 1].iter().any(|width| width % 2 == 1) {
            return Some("slices in 16 bits that begin in the middle of a word".into());
        }
        refused_form(self, case)
    }

    fn details(&self) -> Vec<(String, String)> {
        let (info, limits) = (self.wgpu.info(), self.wgpu.limits());
        let features = self.wgpu.device().features();
        [
            ("kind", format!("{:?}", info.device_type)),
            ("features", features.iter_names().map(|(name, _)| name).collect::<Vec<_>>().join(" ")),
            ("kernels", self.wgpu.tuning().to_string()),
            ("max_buffer_size", limits.max_buffer_size.to_string()),
            ("max_storage_buffer_binding_size", limits.max_storage_buffer_binding_size.to_string()),
            ("max_compute_workgroup_storage_size", limits.max_compute_workgroup_storage_size.to_string()),
            (
                "max_compute_invocations_per_workgroup",
                limits.max_compute_invocations_per_workgroup.to_string(),
            ),
            ("max_compute_workgroups_per_dimension", limits.max_compute_workgroups_per_dimension.to_string()),
        ]
        .map(|(name, value)| (name.to_string(), value))
        .to_vec()
    }

    fn route(
        &self,
        inputs: &Inputs,
        topk_ids: &mut Guarded<i32>,
        topk_weights: &mut Guarded<f32>,
    ) -> Result<()> {
        let mut ready = Ready::new(&self.wgpu, inputs)?;
        ready.ids = (topk_ids.clone(), self.wgpu.upload(&topk_ids.all)?);
        ready.weights = (topk_weights.clone(), self.wgpu.upload(&topk_weights.all)?);
        let ready = self.run_ready(ready)?;
        self.download(&ready.ids.1, topk_ids)?;
        self.download(&ready.weights.1, topk_weights)
    }

    fn plan(&self, inputs: &Inputs) -> Result<PlanArrays> {
        let (sorted_routes, expert_offsets) = self.run(inputs)?.plan.download(&self.wgpu)?;
        Ok(PlanArrays { sorted_routes, expert_offsets })
    }

    fn shrink(&self, inputs: &Inputs, h: &mut Guarded<f32>) -> Result<()> {
        let ready = self.run(inputs)?;
        self.download(&ready.h.1, h)
    }

    fn attend(&self, inputs: &Inputs, topk_weights: &mut Guarded<f32>) -> Result<()> {
        let mut ready = Ready::new(&self.wgpu, inputs)?;
        ready.weights = (topk_weights.clone(), self.wgpu.upload(&topk_weights.all)?);
        let ready = self.run_ready(ready)?;
        self.download(&ready.weights.1, topk_weights)
    }

    fn expand(&self, inputs: &Inputs, y: &mut Tensor) -> Result<()> {
        self.run_to_y(inputs, y)
    }

    fn base(&self, inputs: &Inputs, y: &mut Tensor) -> Result<()> {
        self.run_to_y(inputs, y)
    }

    fn delta(&self, inputs: &Inputs, y: &mut Tensor) -> Result<()> {
        self.run_to_y(inputs, y)
    }

    fn layer(&self, inputs: &Inputs, y: &mut Tensor) -> Result<()> {
        self.run_to_y(inputs, y)
    }

    fn fused(&self, inputs: &Inputs, y: &mut Tensor) -> Result<()> {
        self.run_to_y(inputs, y)
    }

    fn grouped(&self, inputs: &Inputs, y: &mut Tensor) -> Result<()> {
        self.run_to_y(inputs, y)
    }

    fn meter(&self) -> Result<Option<Box<dyn Meter + '_>>> {
        Ok(Some(Box::new(WgpuMeter::new(&self.wgpu)?)))
    }

    fn clock(&self) -> Result<&'static str> {
        Ok(self.tried_clock()?.name())
    }

    fn timer<'a>(&'a self, inputs: &'a Inputs) -> Result<Timer<'a>> {
        let clock = self.tried_clock()?;
        let mut copies = Vec::new();
        let software = self.wgpu.info().device_type == wgpu::DeviceType::Cpu;
        for _ in 0..copies_of(inputs, software, true) {
            copies.push(Ready::new(&self.wgpu, inputs)?);
        }
        self.wgpu.wait()?;
        let mut calls = 0;
        Ok(Box::new(move |times| {
            clock.time(&self.wgpu, |encoder| {
                (0..times).try_for_each(|_| {
                    calls = (calls + 1) % copies.len();
                    copies[calls].record(&self.wgpu, encoder)
                })
            })
        }))
    }
}
