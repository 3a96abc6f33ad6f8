//! An engine's own WebGPU device, buffers and encoder: molora records between the engine's other commands.

use molora::adapter::slots::PoolSizes;
use molora::device::wgpu::{Pool, View};
use molora::layer::{Base, MoeLora, Router, RoutingView, Rows};
use molora::{ElementType, Lora, Result, Wgpu};

fn main() -> Result<()> {
    let (tokens, width, rank, top_k) = (5, 64, 8, 1);

    // `Wgpu::from_device(info, device, queue)` takes the engine's; here we open one.
    let wgpu = Wgpu::new()?;
    println!("{}", wgpu.describe());
    let element = ElementType::F32;
    let sizes =
        PoolSizes { in_features: width, out_features: width, experts: 16, rank_capacity: 128, element };
    let mut pool = Pool::new(&wgpu, sizes)?;
    let factor = vec![0.125f32; width * rank];
    let adapter = pool.add(&Lora::new(width, width, rank, 1.0, &factor, &factor)?)?;
    let layer = MoeLora::<Wgpu>::new(&wgpu, pool, Router::External { top_k })?;

    // The engine's buffers: the layer's input and output lie anywhere in them.
    let x = wgpu.upload(&vec![1f32; tokens * width])?;
    let y = wgpu.upload(&vec![0f32; 1024 + tokens * width])?;
    let weight = wgpu.upload(&vec![0f32; width * width])?;
    // Every token brings its own adapter; -1 is a base-only row.
    let id = adapter as i32;
    let (ids, weights) = (wgpu.upload(&[id, -1, id, id, -1])?, wgpu.upload(&[1f32; 5])?);

    let mut workspace = layer.workspace(tokens)?;
    let mut encoder = wgpu.encoder();
    let rows = Rows { tokens, x_stride: width, y_stride: width };
    let base = Base { weight: View::new(&weight, 0, width * width)?, bias: None };
    let (x, y_view) = (View::<f32>::new(&x, 0, tokens * width)?, View::new(&y, 1024, tokens * width)?);
    let routing = RoutingView::new(View::new(&ids, 0, tokens)?, View::new(&weights, 0, tokens)?);
    layer.forward(&mut encoder, &rows, base, x, routing, &mut workspace, y_view)?;
    wgpu.queue().submit([encoder.finish()]);

    let y = wgpu.download::<f32>(&y, 1024 + tokens * width)?;
    for t in 0..tokens {
        println!("token {t}: y[0] = {}", y[1024 + t * width]);
    }
    println!("status: {}", layer.device().take_status()?);
    Ok(())
}
