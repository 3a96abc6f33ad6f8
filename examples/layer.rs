//! The smallest layer: two experts of different ranks, a router, three tokens, on the CPU.

use molora::adapter::LinearRouter;
use molora::adapter::slots::PoolSizes;
use molora::device::cpu::Pool;
use molora::layer::{Base, MoeLora, Router, Routing, Rows};
use molora::ops::route::Weighting;
use molora::{Cpu, ElementType, Lora, Result};

fn main() -> Result<()> {
    let (tokens, in_features, out_features, top_k) = (3, 4, 2, 1);

    // Adapters come from PEFT folders (`Adapter::from_peft`) or, as here, from slices: A [rank, in], B [out, rank].
    let sizes =
        PoolSizes { in_features, out_features, experts: 2, rank_capacity: 3, element: ElementType::F32 };
    let mut pool = Pool::new(sizes)?;
    pool.add(&Lora::new(in_features, out_features, 1, 2.0, &[1f32; 4], &[1f32; 2])?)?;
    pool.add(&Lora::new(in_features, out_features, 2, 2.0, &[-1f32; 8], &[1f32; 4])?)?;

    let linear = LinearRouter::new(2, in_features, &[1f32, 0., 0., 0., 0., 1., 0., 0.], None)?;
    let router = Router::best(linear, top_k, Weighting::SoftmaxSelected);
    let layer = MoeLora::<Cpu>::new(&Cpu::new()?, pool, router)?;

    let x = [1f32, 0., 0., 0., 0., 1., 0., 0., 2., 1., 0., 0.];
    let (mut topk_ids, mut topk_weights) = ([0; 3], [0.0; 3]);
    let mut routing = Routing::new(&mut topk_ids, &mut topk_weights);
    let mut workspace = vec![0.0; layer.workspace_len(tokens)];
    let mut y = [0f32; 6];
    let rows = Rows { tokens, x_stride: in_features, y_stride: out_features };
    let weight = layer.device().pack(out_features, in_features, &[0.5f32; 8])?;
    let base = Base { weight: &weight, bias: None };
    layer.forward(&rows, base, &x, &mut routing, &mut workspace, &mut y)?;

    for t in 0..tokens {
        println!(
            "token {t}: expert {} with weight {}, y = {:?}",
            topk_ids[t],
            topk_weights[t],
            &y[2 * t..][..2]
        );
    }
    Ok(())
}
