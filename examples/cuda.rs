//! An engine's own CUDA stream and memory: a layer captured into a graph, replayed after another adapter came.

use molora::adapter::slots::PoolSizes;
use molora::device::cuda::cudarc::driver::{CudaContext, sys};
use molora::device::cuda::{Pool, View, ViewMut};
use molora::layer::cuda::RoutingView;
use molora::layer::{Base, MoeLora, Router, Rows};
use molora::{Cuda, ElementType, Lora, Result};

fn main() -> std::result::Result<(), Box<dyn std::error::Error>> {
    let (tokens, width, rank, top_k) = (5, 64, 8, 1);

    // cudarc panics without a driver; molora says what is missing.
    Cuda::new(0)?;
    let stream = CudaContext::new(0)?.new_stream()?;
    let cuda = Cuda::from_stream(stream.clone())?;
    println!("{}", cuda.describe());
    let element = ElementType::F32;
    let sizes =
        PoolSizes { in_features: width, out_features: width, experts: 16, rank_capacity: 128, element };
    let adapter = |value: f32| -> Result<Lora> {
        let factor = vec![value; width * rank];
        Lora::new(width, width, rank, 1.0, &factor, &factor)
    };
    let mut pool = Pool::new(&cuda, sizes)?;
    pool.put(0, &adapter(0.125)?)?;
    let mut layer = MoeLora::<Cuda>::new(&cuda, pool, Router::External { top_k })?;

    // The engine's memory. Every token brings its own adapter; -1 is a base-only row. Slot 1 is empty still.
    let (x, weight) = (cuda.upload(&vec![1f32; tokens * width])?, cuda.upload(&vec![0f32; width * width])?);
    let (mut ids, mut weights) = (cuda.upload(&[0, -1, 0, 1, -1])?, cuda.upload(&[1f32; 5])?);
    let mut y = cuda.upload(&vec![0f32; tokens * width])?;
    let mut workspace = layer.workspace(tokens)?;

    // Views first, then the capture: no event of another stream gets into it.
    let graph = {
        let (x, weight) = (View::whole(&cuda, &x)?, View::whole(&cuda, &weight)?);
        let mut routing =
            RoutingView::new(ViewMut::whole(&cuda, &mut ids)?, ViewMut::whole(&cuda, &mut weights)?);
        let mut y = ViewMut::whole(&cuda, &mut y)?;
        stream.begin_capture(sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL)?;
        let rows = Rows { tokens, x_stride: width, y_stride: width };
        let base = Base { weight: &weight, bias: None };
        layer.forward(&rows, base, &x, &mut routing, &mut workspace, &mut y)?;
        stream.end_capture(sys::CUgraphInstantiate_flags(0))?.ok_or("nothing was captured")?
    };

    for round in ["one adapter", "two adapters"] {
        graph.launch()?;
        let rows = cuda.download(&y, tokens * width)?;
        let first: Vec<f32> = rows.chunks(width).map(|row| row[0]).collect();
        println!("{round}: y[.., 0] = {first:?}, status: {}", layer.device().take_status()?);
        if round == "one adapter" {
            layer.pool_mut().put(1, &adapter(0.25)?)?;
        }
    }
    Ok(())
}
