//! Writes every variant of every shader, as it is compiled, to a folder: `dump_shaders DIR`. The test command pushes
//! them through a second WGSL compiler.

use half::{bf16, f16};
use molora::adapter::LinearRouter;
use molora::adapter::slots::PoolSizes;
use molora::device::wgpu::{Pool, View};
use molora::ops::route::{Weighting, WgpuRouter};
use molora::ops::{Output, base, expand, plan, route, shrink};
use molora::{Element, ElementType, Lora, Wgpu};

type Failure = Box<dyn std::error::Error>;

fn main() -> Result<(), Failure> {
    let folder = std::env::args().nth(1).ok_or("usage: dump_shaders DIR")?;
    let wgpu = Wgpu::new()?;
    for element in ElementType::ALL {
        for batch_invariant in [false, true] {
            // Both kinds of rows: read by fours, and one by one.
            for width in [8, 6] {
                for wide in [false, true] {
                    let wgpu = wgpu.batch_invariant(batch_invariant).wide_tiles(wide);
                    variants::<f32>(&wgpu, element, width)?;
                    variants::<f16>(&wgpu, element, width)?;
                    variants::<bf16>(&wgpu, element, width)?;
                }
            }
        }
    }
    std::fs::create_dir_all(&folder)?;
    let texts = wgpu.shader_texts();
    for (name, text) in &texts {
        std::fs::write(format!("{folder}/{name}.wgsl"), text)?;
    }
    println!("{} shaders", texts.len());
    Ok(())
}

/// Records every operation once for each of its constants.
fn variants<X: Element>(wgpu: &Wgpu, element: ElementType, width: usize) -> Result<(), Failure> {
    const TOKENS: usize = 2;
    const TOP_K: usize = 2;
    let mut encoder = wgpu.encoder();
    let storage = |len: usize| wgpu.upload(&vec![0f32; len]);
    let (x, y, h) = (storage(256)?, storage(256)?, storage(4096)?);
    let (ids, weights, w) = (storage(TOKENS * TOP_K)?, storage(TOKENS * TOP_K)?, storage(256)?);
    let (x, y, w) = (View::<X>::new(&x, 0, 64)?, View::<X>::new(&y, 0, 64)?, &w);
    let (ids, weights) = (View::whole(&ids), View::whole(&weights));

    for bias in [None, Some(View::<X>::new(w, 128, width)?)] {
        let (x_stride, y_stride) = (width, width);
        let sizes =
            base::Sizes { tokens: TOKENS, in_features: width, out_features: width, x_stride, y_stride };
        wgpu.base(&mut encoder, &sizes, View::new(w, 0, width * width)?, bias, x, y)?;
    }
    for weighting in Weighting::ALL {
        let router = WgpuRouter::new(wgpu, LinearRouter::new(3, width, &vec![0f32; 3 * width], None)?)?;
        let (in_features, x_stride, experts) = (width, width, 3);
        let sizes = route::Sizes { tokens: TOKENS, in_features, x_stride, experts, top_k: TOP_K, weighting };
        wgpu.route(&mut encoder, &sizes, &router, x, ids, weights)?;
    }
    for rank in [1, 16, 17, 64] {
        let (in_features, out_features, experts) = (width, width, 1);
        let sizes = PoolSizes { in_features, out_features, experts, rank_capacity: rank, element };
        let mut pool = Pool::new(wgpu, sizes)?;
        pool.put(0, &zeros(element, width, rank)?)?;
        let (tokens, top_k, x_stride, y_stride, h_stride) = (TOKENS, TOP_K, width, width, rank);
        let plan = wgpu.plan(&mut encoder, &plan::Sizes { tokens, top_k, experts }, &pool, ids)?;
        for output in Output::ALL {
            let sizes = shrink::Sizes { tokens, top_k, in_features, x_stride, h_stride, output };
            let h = View::whole(&h);
            wgpu.shrink(&mut encoder, &sizes, &plan, &pool, x, weights, h)?;
            for accumulate in [false, true] {
                let sizes =
                    expand::Sizes { tokens, top_k, out_features, h_stride, y_stride, output, accumulate };
                wgpu.expand(&mut encoder, &sizes, &plan, &pool, h, weights, y)?;
            }
        }
    }
    Ok(())
}

fn zeros(element: ElementType, width: usize, rank: usize) -> Result<Lora, molora::Error> {
    let len = width * rank;
    match element {
        ElementType::F32 => Lora::new(width, width, rank, 1.0, &vec![0f32; len], &vec![0f32; len]),
        ElementType::F16 => Lora::new(width, width, rank, 1.0, &vec![f16::ZERO; len], &vec![f16::ZERO; len]),
        ElementType::Bf16 => {
            Lora::new(width, width, rank, 1.0, &vec![bf16::ZERO; len], &vec![bf16::ZERO; len])
        }
    }
}
