//! A CUDA device as a subject: guards and all go up, the rows are views of them, all comes back.

use super::cpu::{plan_case, pool_sizes};
use super::cuda_clock::CudaClock;
use super::cuda_group::Group;
use super::{Found, PlanArrays, Subject, Timer, copies_of, refused_form};
use crate::case::{Case, Op};
use crate::ceilings::{CudaMeter, Meter};
use crate::guarded::{Guarded, Tensor};
use crate::{Inputs, with_rows};
use bytemuck::Pod;
use half::{bf16, f16};
use molora::adapter::Lora;
use molora::device::Cuda;
use molora::device::cuda::cudarc::driver::{CudaSlice, DeviceRepr, sys};
use molora::device::cuda::{Plan, Pool, View, ViewMut};
use molora::element::{Element, ElementType};
use molora::error::{Error, Result};
use molora::layer::cuda::{RoutingView, Workspace};
use molora::layer::{Base, MoeLora, Router};
use molora::ops::fused::{Form, cost};
use molora::ops::route::{Allow, CudaRouter};
use molora::ops::{Output, plan, shrink};
use std::ffi::c_char;

/// One device.
pub struct CudaSubject {
    cuda: Cuda,
}

/// Adds the first CUDA device.
pub(super) fn find(found: &mut Found) {
    match Cuda::new(0) {
        Ok(cuda) => found.subjects.push(Box::new(CudaSubject::new(cuda))),
        Err(e) => found.missing.push(e.to_string()),
    }
}

/// Host rows and the same in device memory, guards included.
pub(super) struct Held<T> {
    rows: Guarded<T>,
    slice: CudaSlice<T>,
}

impl<T: Pod + DeviceRepr> Held<T> {
    fn new(cuda: &Cuda, rows: Guarded<T>) -> Result<Self> {
        Ok(Self { slice: cuda.upload(&rows.all)?, rows })
    }

    pub(super) fn list(cuda: &Cuda, values: &[T]) -> Result<Self> {
        Self::new(cuda, Guarded::output((1, values.len(), values.len()), |_, i| values[i]))
    }

    pub(super) fn view<'a>(&'a self, cuda: &'a Cuda) -> Result<View<'a, T>> {
        View::new(cuda, self.slice.slice(self.rows.first..self.rows.first + self.rows.len()))
    }

    pub(super) fn view_mut<'a>(&'a mut self, cuda: &'a Cuda) -> Result<ViewMut<'a, T>> {
        ViewMut::new(cuda, self.slice.slice_mut(self.rows.first..self.rows.first + self.rows.len()))
    }

    fn download(&self, cuda: &Cuda, rows: &mut Guarded<T>) -> Result<()> {
        rows.all = cuda.download(&self.slice, rows.all.len())?;
        Ok(())
    }
}

/// x, weight, bias and y in one element type.
pub(super) struct Tensors<X> {
    pub(super) x: Held<X>,
    pub(super) weight: Held<X>,
    bias: Option<Held<X>>,
    pub(super) y: Held<X>,
}

impl<X: Element> Tensors<X> {
    fn new(cuda: &Cuda, inputs: &Inputs) -> Result<Self> {
        let held = |tensor: &Tensor| Held::new(cuda, typed::<X>(tensor));
        let bias = inputs.bias.as_ref().map(held).transpose()?;
        Ok(Self { x: held(&inputs.x)?, weight: held(&inputs.weight)?, bias, y: held(&inputs.y)? })
    }
}

/// The tensor's rows, whose element type is X.
fn typed<X: Element>(tensor: &Tensor) -> Guarded<X> {
    with_rows!(tensor, rows => {
        let all: Vec<X> = bytemuck::cast_slice(&rows.all).to_vec();
        Guarded { all, first: rows.first, rows: rows.rows, width: rows.width, stride: rows.stride }
    })
}

/// A case in the device's memory.
struct Ready<'a, X> {
    inputs: &'a Inputs,
    layer: MoeLora<Cuda>,
    plan: Plan,
    workspace: Workspace,
    ids: Held<i32>,
    weights: Held<f32>,
    h: Held<f32>,
    scratch: Held<f32>,
    tensors: Tensors<X>,
    router: Option<CudaRouter>,
    /// Offsets and lists.
    allow: Option<(CudaSlice<u32>, CudaSlice<u32>)>,
    group: Option<Group>,
}

/// The case's adapters; for a plan the smallest there are, since it reads only whether a slot holds one.
fn filled_pool(cuda: &Cuda, inputs: &Inputs) -> Result<Pool> {
    let case = match inputs.case.op {
        Op::Plan | Op::Route | Op::Base => plan_case(&inputs.case),
        _ => inputs.case.clone(),
    };
    let mut pool = Pool::packed(cuda, pool_sizes(&case), &case.slice_widths())?;
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

impl<'a, X: Element> Ready<'a, X> {
    fn new(cuda: &Cuda, inputs: &'a Inputs) -> Result<Self> {
        let case = &inputs.case;
        let pool = filled_pool(cuda, inputs)?;
        let (ids, weights) = match case.op {
            Op::Route => (vec![-1; case.routes()], vec![f32::NAN; case.routes()]),
            _ => (inputs.topk_ids.clone(), inputs.topk_weights.clone()),
        };
        let (ids, weights) = (Held::list(cuda, &ids)?, Held::list(cuda, &weights)?);
        let h = if case.op.reads_h() { inputs.h.clone() } else { inputs.empty_h() };
        // The plan is a step of its own: the timers of shrink and expand leave it out.
        let no_plan = matches!(case.op, Op::Route | Op::Base | Op::Grouped);
        let tokens = if no_plan { 0 } else { case.tokens };
        let plan_sizes = plan::Sizes { tokens, ..inputs.plan_sizes() };
        let first = ids.rows.first;
        let plan_ids = View::new(cuda, ids.slice.slice(first..first + plan_sizes.routes()))?;
        let plan = cuda.plan(&plan_sizes, &pool, &plan_ids, None)?;
        drop(plan_ids);
        let rank_sum = if case.op == Op::Shrink { case.output } else { Output::Sum };
        let scratch = shrink::cuda::scratch_len(rank_sum, case.routes(), pool.max_rank());
        let grouped = case.op == Op::Grouped;
        let group = grouped.then(|| Group::new(cuda, inputs, &pool, &ids)).transpose()?;
        let layer = MoeLora::<Cuda>::new(cuda, pool, Router::External { top_k: case.top_k })?;
        let layer = layer.with_output(case.output).with_form(case.form);
        let allow = match &inputs.allow {
            Some(lists) => {
                let Allow { offsets, lists } = lists.as_allow();
                Some((cuda.upload(offsets)?, cuda.upload(lists)?))
            }
            None => None,
        };
        let router =
            (case.op == Op::Route).then(|| CudaRouter::new(cuda, inputs.router.clone())).transpose()?;
        Ok(Self {
            workspace: layer.workspace(case.tokens)?,
            ids,
            weights,
            h: Held::new(cuda, h)?,
            scratch: Held::list(cuda, &vec![f32::NAN; scratch])?,
            tensors: Tensors::new(cuda, inputs)?,
            inputs,
            layer,
            plan,
            router,
            allow,
            group,
        })
    }

    /// Enqueues the case's operation.
    fn enqueue(&mut self, cuda: &Cuda) -> Result<()> {
        let (inputs, pool) = (self.inputs, self.layer.pool());
        if let Some(group) = &mut self.group {
            let (routing, h) = ((&self.ids, &self.weights), &mut self.h);
            return group.enqueue((cuda, inputs, pool), routing, h, &mut self.tensors);
        }
        let Tensors { x, weight, bias, y } = &mut self.tensors;
        let (x, mut y) = (x.view(cuda)?, y.view_mut(cuda)?);
        match inputs.case.op {
            Op::Route => {
                let router = self.router.as_ref().expect("made for this operation");
                let (mut ids, mut weights) = (self.ids.view_mut(cuda)?, self.weights.view_mut(cuda)?);
                // Of no requests the slice of lists is longer: none is empty.
                let views = match (&self.allow, &inputs.allow) {
                    (Some((offsets, lists)), Some(host)) => {
                        let len = host.as_allow().lists.len();
                        Some((View::new(cuda, offsets.slice(..))?, View::new(cuda, lists.slice(..len))?))
                    }
                    _ => None,
                };
                let allow = views.as_ref().map(|(offsets, lists)| Allow { offsets, lists });
                cuda.route(&inputs.route_sizes(), router, &x, allow, None, &mut ids, &mut weights)
            }
            Op::Grouped => unreachable!("a group"),
            Op::Plan => {
                let ids = self.ids.view(cuda)?;
                cuda.plan_into(&inputs.plan_sizes(), pool, &ids, None, &mut self.plan)
            }
            Op::Shrink => {
                let (weights, mut h) = (self.weights.view(cuda)?, self.h.view_mut(cuda)?);
                let mut scratch = self.scratch.view_mut(cuda)?;
                let sizes = inputs.shrink_sizes();
                cuda.shrink(&sizes, &self.plan, pool, &x, &weights, Some(&mut scratch), &mut h)
            }
            Op::Attend => {
                let (h, mut weights) = (self.h.view(cuda)?, self.weights.view_mut(cuda)?);
                cuda.attend(&inputs.attend_sizes(), &self.plan, pool, &x, &h, &mut weights)
            }
            Op::Expand => {
                let (weights, h) = (self.weights.view(cuda)?, self.h.view(cuda)?);
                cuda.expand(&inputs.expand_sizes(), &self.plan, pool, &h, &weights, &mut y)
            }
            Op::Base => {
                let (weight, bias) = (weight.view(cuda)?, bias.as_ref().map(|b| b.view(cuda)).transpose()?);
                cuda.base(&inputs.base_sizes(), &weight, bias.as_ref(), &x, None, &mut y)
            }
            Op::Delta | Op::Layer | Op::Fused => {
                let (weight, bias) = (weight.view(cuda)?, bias.as_ref().map(|b| b.view(cuda)).transpose()?);
                let (topk_ids, topk_weights) = (self.ids.view_mut(cuda)?, self.weights.view_mut(cuda)?);
                let routing = &mut RoutingView::new(topk_ids, topk_weights);
                let (rows, workspace, layer) = (inputs.layer_rows(), &mut self.workspace, &self.layer);
                if inputs.case.op == Op::Delta {
                    return layer.forward_delta(&rows, &x, routing, workspace, &mut y);
                }
                let base = Base { weight: &weight, bias: bias.as_ref() };
                layer.forward(&rows, base, &x, routing, workspace, &mut y)
            }
        }
    }
}

/// Runs an expression with the element type of a case's x.
macro_rules! with_element {
    ($case:expr, $X:ident => $body:expr) => {
        match $case.x {
            ElementType::F32 => {
                type $X = f32;
                $body
            }
            ElementType::F16 => {
                type $X = f16;
                $body
            }
            ElementType::Bf16 => {
                type $X = bf16;
                $body
            }
        }
    };
}

impl CudaSubject {
    /// An opened device.
    pub fn new(cuda: Cuda) -> Self {
        Self { cuda }
    }

    /// The device.
    pub fn cuda(&self) -> &Cuda {
        &self.cuda
    }

    fn run<X: Element>(
        &self,
        mut ready: Ready<'_, X>,
        mut take: impl FnMut(&Ready<'_, X>) -> Result<()>,
    ) -> Result<()> {
        ready.enqueue(&self.cuda)?;
        for cuda in [&self.cuda, ready.layer.device()] {
            let status = cuda.take_status()?;
            if !status.is_ok() {
                return Err(Error::Device { device: self.name(), reason: format!("status word: {status}") });
            }
        }
        take(&ready)
    }

    fn run_to_y(&self, inputs: &Inputs, y: &mut Tensor) -> Result<()> {
        with_element!(inputs.case, X => {
            self.run(Ready::<X>::new(&self.cuda, inputs)?, |ready| {
                let mut rows = ready.tensors.y.rows.clone();
                ready.tensors.y.download(&self.cuda, &mut rows)?;
                with_rows!(&mut *y, y => y.all = bytemuck::cast_slice(&rows.all).to_vec());
                Ok(())
            })
        })
    }

    /// Whether h, or the weighted h of the fused forms, is rounded to x's element: on tensor cores, and as z of the dense
    /// form, which is stored so.
    fn rounds_h(&self, case: &Case) -> bool {
        let mma = self.cuda.offer().has_mma(case.x, case.adapters);
        match case.op {
            Op::Expand | Op::Delta | Op::Grouped => mma,
            Op::Layer | Op::Fused => match self.form(case) {
                Ok(Form::Dense) => true,
                Ok(Form::Beside | Form::Sparse) => mma,
                Ok(Form::Few) | Err(_) => false,
            },
            _ => false,
        }
    }
}

/// What the PTX machine counted since it was last asked, by the one function that it has beyond a driver's.
fn machine_counters() -> Option<String> {
    type Take = unsafe extern "C" fn(*mut c_char, usize) -> usize;
    // SAFETY: the driver's library is loaded, since there is a device; the symbol is looked up with its own signature.
    let take = unsafe { sys::culib().get::<Take>(b"ptxMachineTakeCounters\0") }.ok()?;
    let mut text = vec![0u8; 1 << 20];
    // SAFETY: the buffer has the length that goes with it.
    let length = unsafe { take(text.as_mut_ptr().cast(), text.len()) }.min(text.len());
    text.truncate(length);
    let text = String::from_utf8(text).ok()?;
    Some(text.trim_end_matches('\0').to_string())
}

impl Subject for CudaSubject {
    fn kind(&self) -> &'static str {
        "cuda"
    }

    fn name(&self) -> String {
        format!("cuda: {}", self.cuda.describe())
    }

    fn batch_invariant(&self) -> Box<dyn Subject> {
        Box::new(Self { cuda: self.cuda.batch_invariant(true) })
    }

    fn h_rounding(&self, case: &Case) -> f64 {
        match case.x {
            ElementType::F16 if self.rounds_h(case) => 1.0 / 2048.0,
            ElementType::Bf16 if self.rounds_h(case) => 1.0 / 256.0,
            _ => 0.0,
        }
    }

    fn is_stand_in(&self) -> bool {
        self.cuda.is_stand_in()
    }

    fn take_counters(&self) -> Result<Option<String>> {
        if !self.is_stand_in() {
            return Ok(None);
        }
        self.cuda.wait()?;
        Ok(machine_counters())
    }

    fn limits(&self, problem: &cost::Problem) -> cost::Limits {
        self.cuda.fused_limits(problem)
    }

    fn unsupported(&self, case: &Case) -> Option<String> {
        refused_form(self, case)
    }

    fn details(&self) -> Vec<(String, String)> {
        let p = self.cuda.properties();
        let offer = self.cuda.offer();
        let mma: Vec<&str> =
            [("f16", offer.mma_f16), ("bf16", offer.mma_bf16)].iter().filter(|m| m.1).map(|m| m.0).collect();
        [
            ("kernels", self.cuda.kernels().to_string()),
            ("compute_capability", format!("{}.{}", p.compute_capability.0, p.compute_capability.1)),
            ("driver", p.driver.to_string()),
            ("tensor_cores", mma.join(" ")),
            ("multiprocessors", p.multiprocessors.to_string()),
            ("shared_memory_per_block", p.shared_memory_per_block.to_string()),
            ("memory", p.memory.to_string()),
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
        with_element!(inputs.case, X => {
            let mut ready = Ready::<X>::new(&self.cuda, inputs)?;
            ready.ids = Held::new(&self.cuda, topk_ids.clone())?;
            ready.weights = Held::new(&self.cuda, topk_weights.clone())?;
            self.run(ready, |ready| {
                ready.ids.download(&self.cuda, topk_ids)?;
                ready.weights.download(&self.cuda, topk_weights)
            })
        })
    }

    fn plan(&self, inputs: &Inputs) -> Result<PlanArrays> {
        let mut arrays = PlanArrays { sorted_routes: Vec::new(), expert_offsets: Vec::new() };
        with_element!(inputs.case, X => {
            self.run(Ready::<X>::new(&self.cuda, inputs)?, |ready| {
                (arrays.sorted_routes, arrays.expert_offsets) = ready.plan.download(&self.cuda)?;
                Ok(())
            })
        })?;
        Ok(arrays)
    }

    fn shrink(&self, inputs: &Inputs, h: &mut Guarded<f32>) -> Result<()> {
        with_element!(inputs.case, X => {
            self.run(Ready::<X>::new(&self.cuda, inputs)?, |ready| ready.h.download(&self.cuda, h))
        })
    }

    fn attend(&self, inputs: &Inputs, topk_weights: &mut Guarded<f32>) -> Result<()> {
        with_element!(inputs.case, X => {
            let mut ready = Ready::<X>::new(&self.cuda, inputs)?;
            ready.weights = Held::new(&self.cuda, topk_weights.clone())?;
            self.run(ready, |ready| ready.weights.download(&self.cuda, topk_weights))
        })
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
        if self.is_stand_in() {
            return Ok(None);
        }
        Ok(Some(Box::new(CudaMeter::new(&self.cuda)?)))
    }

    fn clock(&self) -> Result<&'static str> {
        Ok("events")
    }

    fn timer<'a>(&'a self, inputs: &'a Inputs) -> Result<Timer<'a>> {
        // A machine that counts counts one call.
        let copies = if self.is_stand_in() { 1 } else { copies_of(inputs, false, true) };
        with_element!(inputs.case, X => {
            let mut copies =
                (0..copies).map(|_| Ready::<X>::new(&self.cuda, inputs)).collect::<Result<Vec<_>>>()?;
            self.cuda.wait()?;
            let mut calls = 0;
            Ok(Box::new(move |times| {
                let clock = CudaClock::start(&self.cuda)?;
                for _ in 0..times {
                    calls = (calls + 1) % copies.len();
                    copies[calls].enqueue(&self.cuda)?;
                }
                clock.stop()
            }))
        })
    }
}
