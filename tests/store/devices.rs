//! The devices as an engine would use them: begin enqueues (on the CPU: runs), end waits and reads.

use crate::{IN, OUT};
use molora::adapter::LinearRouter;
use molora::adapter::slots::PoolSizes;
use molora::adapter::store::DevicePool;
use molora::device::cpu;
use molora::layer::{Base, MoeLora, Place, Router, Routing, Rows};
use molora::{Cpu, Lora, Result};

pub trait Engine:
    Place<Pool: DevicePool + Send + Sync, Linear: Send + Sync> + Clone + Send + Sync + 'static
{
    /// What a batch leaves to wait for.
    type Pending: Send;

    /// All devices of this kind.
    fn found() -> Vec<Self>;

    /// A layer of an empty pool, ids given; with a router adapter its weights are the attention's.
    fn layer(&self, sizes: PoolSizes, top_k: usize, attention: Option<&Lora>) -> MoeLora<Self>;

    /// `base x + experts` for tokens of as many routes each, weights 1 unless the layer writes them; y starts as NaN.
    fn begin(layer: &MoeLora<Self>, base: &[f32], x: &[f32], ids: &[i32]) -> Result<Self::Pending>;

    /// y; whoever begins is told of ids that were skipped.
    fn end(layer: &MoeLora<Self>, pending: Self::Pending) -> Vec<f32>;

    /// What the device says was skipped since it was last asked.
    fn skipped(layer: &MoeLora<Self>) -> Option<String>;

    fn run(layer: &MoeLora<Self>, base: &[f32], x: &[f32], ids: &[i32]) -> Vec<f32> {
        let pending = Self::begin(layer, base, x, ids).unwrap();
        Self::end(layer, pending)
    }
}

fn router(top_k: usize, attention: Option<&Lora>) -> Router<LinearRouter> {
    attention.map_or(Router::External { top_k }, |_| Router::RankAttention { top_k })
}

fn rows(tokens: usize) -> Rows {
    Rows { tokens, x_stride: IN, y_stride: OUT }
}

impl Engine for Cpu {
    type Pending = Vec<f32>;

    fn found() -> Vec<Self> {
        vec![Cpu::new().unwrap()]
    }

    fn layer(&self, sizes: PoolSizes, top_k: usize, attention: Option<&Lora>) -> MoeLora<Self> {
        let mut pool = cpu::Pool::new(sizes).unwrap();
        attention.into_iter().for_each(|lora| pool.set_attention(lora).unwrap());
        MoeLora::<Cpu>::new(self, pool, router(top_k, attention)).unwrap()
    }

    fn begin(layer: &MoeLora<Self>, base: &[f32], x: &[f32], ids: &[i32]) -> Result<Vec<f32>> {
        let (mut ids, mut weights) = (ids.to_vec(), vec![1.0; ids.len()]);
        let mut routing = Routing::new(&mut ids, &mut weights);
        let tokens = x.len() / IN;
        let mut y = vec![f32::NAN; tokens * OUT];
        let mut workspace = vec![f32::NAN; layer.workspace_len(tokens)];
        let weight = layer.device().pack(OUT, IN, base)?;
        let base = Base { weight: &weight, bias: None };
        layer.forward(&rows(tokens), base, x, &mut routing, &mut workspace, &mut y)?;
        Ok(y)
    }

    fn end(_: &MoeLora<Self>, pending: Vec<f32>) -> Vec<f32> {
        pending
    }

    fn skipped(_: &MoeLora<Self>) -> Option<String> {
        None
    }
}

#[cfg(feature = "wgpu")]
mod wgpu {
    use super::{Engine, router, rows};
    use crate::{IN, OUT};
    use molora::adapter::slots::PoolSizes;
    use molora::device::wgpu::{Pool, View};
    use molora::layer::{Base, MoeLora, RoutingView};
    use molora::{Lora, Result, Wgpu};

    impl Engine for Wgpu {
        type Pending = (::wgpu::Buffer, usize);

        fn found() -> Vec<Self> {
            let subjects = molora_check::subjects().unwrap_or_else(|why| panic!("{why}"));
            if subjects.iter().all(|s| s.kind() != "wgpu") {
                println!("not tested: no WebGPU adapter here");
            }
            Wgpu::adapters().into_iter().filter_map(|adapter| Wgpu::open(&adapter).ok()).collect()
        }

        fn layer(&self, sizes: PoolSizes, top_k: usize, attention: Option<&Lora>) -> MoeLora<Self> {
            let mut pool = Pool::new(self, sizes).unwrap();
            attention.into_iter().for_each(|lora| pool.set_attention(lora).unwrap());
            MoeLora::<Wgpu>::new(self, pool, router(top_k, attention)).unwrap()
        }

        fn begin(layer: &MoeLora<Self>, base: &[f32], x: &[f32], ids: &[i32]) -> Result<Self::Pending> {
            let (wgpu, tokens, routes) = (layer.device(), x.len() / IN, ids.len());
            let (x, weight, ids) = (wgpu.upload(x)?, wgpu.upload(base)?, wgpu.upload(ids)?);
            let (weights, y) =
                (wgpu.upload(&vec![1f32; routes])?, wgpu.upload(&vec![f32::NAN; tokens * OUT])?);
            let routing = RoutingView::new(View::new(&ids, 0, routes)?, View::new(&weights, 0, routes)?);
            let (mut workspace, mut encoder) = (layer.workspace(tokens)?, wgpu.encoder());
            let base = Base { weight: View::<f32>::whole(&weight), bias: None };
            let (x, y_view) = (View::whole(&x), View::whole(&y));
            layer.forward(&mut encoder, &rows(tokens), base, x, routing, &mut workspace, y_view)?;
            wgpu.queue().submit([encoder.finish()]);
            Ok((y, tokens * OUT))
        }

        fn end(layer: &MoeLora<Self>, (y, len): Self::Pending) -> Vec<f32> {
            layer.device().download(&y, len).unwrap()
        }

        fn skipped(layer: &MoeLora<Self>) -> Option<String> {
            let status = layer.device().take_status().unwrap();
            (!status.is_ok()).then(|| status.to_string())
        }
    }
}

#[cfg(feature = "cuda")]
mod cuda {
    use super::{Engine, router, rows};
    use crate::{IN, OUT};
    use molora::adapter::slots::PoolSizes;
    use molora::device::cuda::cudarc::driver::CudaSlice;
    use molora::device::cuda::{Pool, View, ViewMut};
    use molora::layer::cuda::RoutingView;
    use molora::layer::{Base, MoeLora};
    use molora::{Cuda, Lora, Result};

    impl Engine for Cuda {
        type Pending = CudaSlice<f32>;

        fn found() -> Vec<Self> {
            molora_check::subjects().unwrap_or_else(|why| panic!("{why}"));
            Cuda::new(0).inspect_err(|why| println!("not tested: {why}")).into_iter().collect()
        }

        fn layer(&self, sizes: PoolSizes, top_k: usize, attention: Option<&Lora>) -> MoeLora<Self> {
            let mut pool = Pool::new(self, sizes).unwrap();
            attention.into_iter().for_each(|lora| pool.set_attention(lora).unwrap());
            MoeLora::<Cuda>::new(self, pool, router(top_k, attention)).unwrap()
        }

        fn begin(layer: &MoeLora<Self>, base: &[f32], x: &[f32], ids: &[i32]) -> Result<Self::Pending> {
            let (cuda, tokens) = (layer.device(), x.len() / IN);
            let mut weights = cuda.upload(&vec![1f32; ids.len()])?;
            let (x, weight, mut ids) = (cuda.upload(x)?, cuda.upload(base)?, cuda.upload(ids)?);
            let mut y = cuda.upload(&vec![f32::NAN; tokens * OUT])?;
            let mut workspace = layer.workspace(tokens)?;
            let (x, weight) = (View::whole(cuda, &x)?, View::whole(cuda, &weight)?);
            let mut routing =
                RoutingView::new(ViewMut::whole(cuda, &mut ids)?, ViewMut::whole(cuda, &mut weights)?);
            let mut y_view = ViewMut::whole(cuda, &mut y)?;
            let base = Base { weight: &weight, bias: None };
            layer.forward(&rows(tokens), base, &x, &mut routing, &mut workspace, &mut y_view)?;
            drop(y_view);
            Ok(y)
        }

        fn end(layer: &MoeLora<Self>, y: Self::Pending) -> Vec<f32> {
            let len = molora::device::cuda::cudarc::driver::DeviceSlice::len(&y);
            layer.device().download(&y, len).unwrap()
        }

        fn skipped(layer: &MoeLora<Self>) -> Option<String> {
            let status = layer.device().take_status().unwrap();
            (!status.is_ok()).then(|| status.to_string())
        }
    }
}
