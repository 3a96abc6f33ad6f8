//! A device chosen at run time, with host slices in and out: for command lines, tests and first steps. Engines use
//! [`MoeLora`] on their own device.

#[cfg(feature = "cuda")]
mod cuda;

use crate::adapter::LinearRouter;
use crate::adapter::{Lora, slots::PoolSizes};
use crate::device::Cpu;
use crate::device::cpu;
#[cfg(feature = "cuda")]
use crate::device::cuda::{self as cuda_device, Cuda, cudarc::driver::CudaSlice};
#[cfg(feature = "wgpu")]
use crate::device::wgpu::{self as device, View, Wgpu};
use crate::element::Element;
use crate::error::{Error, Result};
use crate::layer::{Base, MoeLora, Router, Routing, Rows};
#[cfg(feature = "wgpu")]
use crate::layer::{RoutingView, Workspace};
use crate::ops::fused::cost::Choice;
#[cfg(any(feature = "wgpu", feature = "cuda"))]
use crate::ops::route::Allow;
#[cfg(feature = "wgpu")]
use crate::ops::route::WgpuRouter;
use crate::ops::{Output, check_len};

/// One of the devices.
#[derive(Debug, Clone)]
pub enum Device {
    /// The CPU.
    Cpu(Cpu),
    /// A CUDA device.
    #[cfg(feature = "cuda")]
    Cuda(Cuda),
    /// A WebGPU adapter.
    #[cfg(feature = "wgpu")]
    Wgpu(Wgpu),
}

impl Device {
    /// A hardware GPU where there is one, CUDA before WebGPU, else the CPU. Software drivers are never the best choice.
    pub fn best() -> Result<Self> {
        #[cfg(feature = "cuda")]
        if let Ok(cuda) = Cuda::new(0)
            && !cuda.is_stand_in()
        {
            return Ok(Self::Cuda(cuda));
        }
        #[cfg(feature = "wgpu")]
        if let Ok(wgpu) = Wgpu::new()
            && wgpu.info().device_type != wgpu::DeviceType::Cpu
        {
            return Ok(Self::Wgpu(wgpu));
        }
        Ok(Self::Cpu(Cpu::new()?))
    }

    /// `best`, `cpu`, `cuda` (the first device), or `wgpu` (software drivers included).
    pub fn by_name(name: &str) -> Result<Self> {
        match name {
            "best" => Self::best(),
            "cpu" => Ok(Self::Cpu(Cpu::new()?)),
            #[cfg(feature = "cuda")]
            "cuda" => Ok(Self::Cuda(Cuda::new(0)?)),
            #[cfg(feature = "wgpu")]
            "wgpu" => Ok(Self::Wgpu(Wgpu::new()?)),
            _ => {
                let expected = match (cfg!(feature = "cuda"), cfg!(feature = "wgpu")) {
                    (true, true) => "best, cpu, cuda or wgpu",
                    (true, false) => "best, cpu or cuda",
                    (false, true) => "best, cpu or wgpu",
                    (false, false) => "best or cpu",
                };
                Err(Error::argument("device", "name", expected, name))
            }
        }
    }

    /// `cpu`, `cuda` or `wgpu`.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Cpu(_) => "cpu",
            #[cfg(feature = "cuda")]
            Self::Cuda(_) => "cuda",
            #[cfg(feature = "wgpu")]
            Self::Wgpu(_) => "wgpu",
        }
    }

    /// The device in words.
    pub fn describe(&self) -> String {
        match self {
            Self::Cpu(cpu) => cpu.describe(),
            #[cfg(feature = "cuda")]
            Self::Cuda(cuda) => cuda.describe(),
            #[cfg(feature = "wgpu")]
            Self::Wgpu(wgpu) => wgpu.describe(),
        }
    }
}

/// A layer on a [`Device`], with its base weight resident there.
#[derive(Debug)]
pub struct HostLayer<X> {
    inner: Inner<X>,
    sizes: PoolSizes,
}

#[derive(Debug)]
enum Inner<X> {
    Cpu {
        layer: Box<MoeLora<Cpu>>,
        weight: cpu::Weight<X>,
        bias: Option<Vec<X>>,
        workspace: Vec<f32>,
    },
    #[cfg(feature = "cuda")]
    Cuda {
        layer: Box<MoeLora<Cuda>>,
        weight: CudaSlice<X>,
        bias: Option<CudaSlice<X>>,
        buffers: Box<Option<cuda::Buffers<X>>>,
    },
    #[cfg(feature = "wgpu")]
    Wgpu {
        layer: Box<MoeLora<Wgpu>>,
        weight: wgpu::Buffer,
        bias: Option<wgpu::Buffer>,
        buffers: Box<Option<Buffers>>,
    },
}

/// Device memory for calls of at most so many tokens.
#[cfg(feature = "wgpu")]
#[derive(Debug)]
struct Buffers {
    tokens: usize,
    routes: usize,
    workspace_bytes: [u64; 2],
    x: wgpu::Buffer,
    y: wgpu::Buffer,
    topk_ids: wgpu::Buffer,
    topk_weights: wgpu::Buffer,
    workspace: Workspace,
}

impl<X: Element> HostLayer<X> {
    /// A layer without adapters. `weight` is `[out_features, in_features]`, `bias` `[out_features]`.
    pub fn new(
        device: &Device,
        sizes: PoolSizes,
        router: Router<LinearRouter>,
        weight: Vec<X>,
        bias: Option<Vec<X>>,
    ) -> Result<Self> {
        check_len("layer", "weight", sizes.in_features.saturating_mul(sizes.out_features), weight.len())?;
        let inner = match device {
            Device::Cpu(cpu) => {
                let layer = Box::new(MoeLora::<Cpu>::new(cpu, cpu::Pool::new(sizes)?, router)?);
                let weight = cpu.pack(sizes.out_features, sizes.in_features, &weight)?;
                Inner::Cpu { layer, weight, bias, workspace: Vec::new() }
            }
            #[cfg(feature = "cuda")]
            Device::Cuda(cuda) => {
                let pool = cuda_device::Pool::new(cuda, sizes)?;
                let layer = Box::new(MoeLora::<Cuda>::new(cuda, pool, router)?);
                let bias = bias.map(|b| cuda.upload(&b)).transpose()?;
                Inner::Cuda { layer, weight: cuda.upload(&weight)?, bias, buffers: Box::default() }
            }
            #[cfg(feature = "wgpu")]
            Device::Wgpu(wgpu) => {
                let layer = Box::new(MoeLora::<Wgpu>::new(wgpu, device::Pool::new(wgpu, sizes)?, router)?);
                let bias = bias.map(|b| wgpu.upload(&b)).transpose()?;
                Inner::Wgpu { layer, weight: wgpu.upload(&weight)?, bias, buffers: Box::default() }
            }
        };
        Ok(Self { inner, sizes })
    }

    /// What the experts' products become; `Sum` unless said otherwise.
    pub fn with_output(mut self, output: Output) -> Self {
        self.inner = match self.inner {
            Inner::Cpu { layer, weight, bias, workspace } => {
                Inner::Cpu { layer: Box::new(layer.with_output(output)), weight, bias, workspace }
            }
            #[cfg(feature = "cuda")]
            Inner::Cuda { layer, weight, bias, .. } => {
                let layer = Box::new(layer.with_output(output));
                Inner::Cuda { layer, weight, bias, buffers: Box::default() }
            }
            #[cfg(feature = "wgpu")]
            Inner::Wgpu { layer, weight, bias, .. } => {
                let layer = Box::new(layer.with_output(output));
                Inner::Wgpu { layer, weight, bias, buffers: Box::default() }
            }
        };
        self
    }

    /// The adapter that scores the others, for [`Router::RankAttention`]; before the first adapter. Its own scaling counts for
    /// nothing.
    pub fn set_attention(&mut self, router: &Lora) -> Result<()> {
        match &mut self.inner {
            Inner::Cpu { layer, .. } => layer.pool_mut().set_attention(router),
            #[cfg(feature = "cuda")]
            Inner::Cuda { layer, .. } => layer.pool_mut().set_attention(router),
            #[cfg(feature = "wgpu")]
            Inner::Wgpu { layer, .. } => layer.pool_mut().set_attention(router),
        }
    }

    /// Puts an adapter into an empty slot.
    pub fn put(&mut self, slot: usize, lora: &Lora) -> Result<()> {
        match &mut self.inner {
            Inner::Cpu { layer, .. } => layer.pool_mut().put(slot, lora),
            #[cfg(feature = "cuda")]
            Inner::Cuda { layer, .. } => layer.pool_mut().put(slot, lora),
            #[cfg(feature = "wgpu")]
            Inner::Wgpu { layer, .. } => layer.pool_mut().put(slot, lora),
        }
    }

    /// Empties a slot.
    pub fn evict(&mut self, slot: usize) -> Result<()> {
        match &mut self.inner {
            Inner::Cpu { layer, .. } => layer.pool_mut().evict(slot),
            #[cfg(feature = "cuda")]
            Inner::Cuda { layer, .. } => layer.pool_mut().evict(slot),
            #[cfg(feature = "wgpu")]
            Inner::Wgpu { layer, .. } => layer.pool_mut().evict(slot),
        }
    }

    /// Another router from the next call on.
    pub fn set_router(&mut self, router: Router<LinearRouter>) -> Result<()> {
        match &mut self.inner {
            Inner::Cpu { layer, .. } => layer.set_router(router),
            #[cfg(feature = "cuda")]
            Inner::Cuda { layer, .. } => layer.set_router(router),
            #[cfg(feature = "wgpu")]
            Inner::Wgpu { layer, .. } => layer.set_router(router),
        }
    }

    /// `y = x weight^T (+ bias) + experts`; x `[tokens, in_features]`, y `[tokens, out_features]`. The routing is
    /// written by the router, or read where it is external.
    pub fn forward(&mut self, tokens: usize, x: &[X], routing: Routing, y: &mut [X]) -> Result<()> {
        self.run(tokens, x, routing, y, true)
    }

    /// The form in which a call over `tokens` tokens runs, and why.
    pub fn choose(&self, tokens: usize) -> Result<Choice> {
        match &self.inner {
            Inner::Cpu { layer, .. } => layer.choose::<X>(tokens),
            #[cfg(feature = "cuda")]
            Inner::Cuda { layer, .. } => layer.choose::<X>(tokens),
            #[cfg(feature = "wgpu")]
            Inner::Wgpu { layer, .. } => layer.choose::<X>(tokens),
        }
    }

    /// `y += experts`; y `[tokens, out_features]`, or `[tokens * top_k, out_features]` where the output is a row per route.
    pub fn forward_delta(&mut self, tokens: usize, x: &[X], routing: Routing, y: &mut [X]) -> Result<()> {
        self.run(tokens, x, routing, y, false)
    }

    /// Rows of y.
    fn y_rows(&self, tokens: usize) -> usize {
        match &self.inner {
            Inner::Cpu { layer, .. } => layer.y_rows(tokens),
            #[cfg(feature = "cuda")]
            Inner::Cuda { layer, .. } => layer.y_rows(tokens),
            #[cfg(feature = "wgpu")]
            Inner::Wgpu { layer, .. } => layer.y_rows(tokens),
        }
    }

    fn run(&mut self, tokens: usize, x: &[X], mut routing: Routing, y: &mut [X], base: bool) -> Result<()> {
        let PoolSizes { in_features, out_features, .. } = self.sizes;
        check_len("layer", "x", tokens.saturating_mul(in_features), x.len())?;
        check_len("layer", "y", self.y_rows(tokens).saturating_mul(out_features), y.len())?;
        let rows = Rows { tokens, x_stride: in_features, y_stride: out_features };
        match &mut self.inner {
            Inner::Cpu { layer, weight, bias, workspace } => {
                workspace.resize(layer.workspace_len(tokens), 0.0);
                if base {
                    let base = Base { weight: &*weight, bias: bias.as_deref() };
                    layer.forward(&rows, base, x, &mut routing, workspace, y)
                } else {
                    layer.forward_delta(&rows, x, &mut routing, workspace, y)
                }
            }
            #[cfg(feature = "cuda")]
            Inner::Cuda { layer, weight, bias, buffers } => {
                let base = base.then_some(Base { weight: &*weight, bias: bias.as_ref() });
                cuda::run(layer, &self.sizes, base, buffers, &rows, x, routing, y)
            }
            #[cfg(feature = "wgpu")]
            Inner::Wgpu { layer, weight, bias, buffers } => {
                let base = base.then_some(Base { weight: &*weight, bias: bias.as_ref() });
                run_wgpu(layer, &self.sizes, base, buffers, &rows, x, routing, y)
            }
        }
    }
}

/// The routing's mask, whose offsets a device cannot refuse, where the layer has a router that reads it.
#[cfg(any(feature = "wgpu", feature = "cuda"))]
fn checked_allow<'a, L>(
    router: &Router<L>,
    routing: &Routing<'a>,
    linear: impl Fn(&L) -> &LinearRouter,
) -> Result<Option<Allow<&'a [u32]>>> {
    router.check_mask(routing.allow.is_some())?;
    match (router, routing.allow) {
        (Router::Linear { linear: own, rule }, Some(allow)) => {
            allow.check(linear(own).experts().saturating_sub(rule.select.rows()))?;
            Ok(Some(allow))
        }
        _ => Ok(None),
    }
}

/// Uploads, records, submits, downloads.
#[cfg(feature = "wgpu")]
#[expect(clippy::too_many_arguments, reason = "the parts of a layer that its caller matched apart")]
fn run_wgpu<X: Element>(
    layer: &MoeLora<Wgpu>,
    sizes: &PoolSizes,
    base: Option<Base<&wgpu::Buffer>>,
    buffers: &mut Option<Buffers>,
    rows: &Rows,
    x: &[X],
    routing: Routing,
    y: &mut [X],
) -> Result<()> {
    let (wgpu, routes) = (layer.device(), rows.tokens.saturating_mul(layer.router().top_k()));
    check_len("layer", "topk_ids", routes, routing.topk_ids.len())?;
    check_len("layer", "topk_weights", routes, routing.topk_weights.len())?;
    let b = Buffers::at_least(buffers, layer, sizes, rows.tokens, size_of::<X>())?;
    let queue = wgpu.queue();
    queue.write_buffer(&b.x, 0, &device::padded_bytes(x));
    if base.is_none() {
        queue.write_buffer(&b.y, 0, &device::padded_bytes(y));
    }
    queue.write_buffer(&b.topk_ids, 0, bytemuck::cast_slice(routing.topk_ids));
    queue.write_buffer(&b.topk_weights, 0, bytemuck::cast_slice(routing.topk_weights));
    let (x_view, y_view) = (View::<X>::new(&b.x, 0, x.len())?, View::<X>::new(&b.y, 0, y.len())?);
    let allow = checked_allow(layer.router(), &routing, WgpuRouter::linear)?;
    let lists =
        allow.map(|a| Ok::<_, Error>((a, wgpu.upload(a.offsets)?, wgpu.upload(a.lists)?))).transpose()?;
    let view = RoutingView {
        topk_ids: View::new(&b.topk_ids, 0, routes)?,
        topk_weights: View::new(&b.topk_weights, 0, routes)?,
        allow: match &lists {
            Some((a, offsets, lists)) => Some(Allow {
                offsets: View::new(offsets, 0, a.offsets.len())?,
                lists: View::new(lists, 0, a.lists.len())?,
            }),
            None => None,
        },
        given: routing.given,
    };
    let mut encoder = wgpu.encoder();
    match base {
        Some(Base { weight, bias }) => {
            let bias = bias.map(|b| View::new(b, 0, sizes.out_features)).transpose()?;
            let base = Base { weight: View::new(weight, 0, sizes.in_features * sizes.out_features)?, bias };
            layer.forward(&mut encoder, rows, base, x_view, view, &mut b.workspace, y_view)?;
        }
        None => layer.forward_delta(&mut encoder, rows, x_view, view, &mut b.workspace, y_view)?,
    }
    queue.submit([encoder.finish()]);
    y.copy_from_slice(&wgpu.download(&b.y, y.len())?);
    routing.topk_ids.copy_from_slice(&wgpu.download(&b.topk_ids, routes)?);
    routing.topk_weights.copy_from_slice(&wgpu.download(&b.topk_weights, routes)?);
    let status = wgpu.take_status()?;
    if !status.is_ok() {
        return Err(Error::argument("layer", "topk_ids", "ids of live slots, finite scores", status));
    }
    Ok(())
}

#[cfg(feature = "wgpu")]
impl Buffers {
    /// The buffers there are, or larger ones.
    fn at_least<'a>(
        held: &'a mut Option<Self>,
        layer: &MoeLora<Wgpu>,
        sizes: &PoolSizes,
        tokens: usize,
        element: usize,
    ) -> Result<&'a mut Self> {
        let wgpu = layer.device();
        let (routes, bytes) = (tokens * layer.router().top_k(), layer.workspace_bytes(tokens)?);
        let enough = |held: &[u64; 2]| held[0] >= bytes[0] && held[1] >= bytes[1];
        let fits = |b: &Self| tokens <= b.tokens && routes <= b.routes && enough(&b.workspace_bytes);
        if !held.as_ref().is_some_and(fits) {
            *held = None;
        }
        match held {
            Some(b) => Ok(b),
            None => Ok(held.insert(Self {
                tokens,
                routes,
                workspace_bytes: bytes,
                x: wgpu.storage("x", (tokens * sizes.in_features * element) as u64)?,
                y: wgpu.storage("y", (layer.y_rows(tokens) * sizes.out_features * element) as u64)?,
                topk_ids: wgpu.storage("topk_ids", routes as u64 * 4)?,
                topk_weights: wgpu.storage("topk_weights", routes as u64 * 4)?,
                workspace: layer.workspace(tokens)?,
            })),
        }
    }
}
