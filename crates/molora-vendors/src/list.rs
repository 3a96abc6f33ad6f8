//! The pipelines that the table holds: every operation, with few rows and with many, for every element type, at the
//! sizes of a layer and with what the library chooses for this device. Nothing is submitted.

use crate::hook;
use anyhow::{Result, anyhow};
use half::{bf16, f16};
use molora::adapter::LinearRouter;
use molora::adapter::slots::PoolSizes;
use molora::device::wgpu::{Plan, Pool, View};
use molora::ops::route::{Rule, Weighting, WgpuRouter};
use molora::ops::{Output, attend, base, expand, fused, grouped, plan, route, shrink};
use molora::{Element, ElementType, Lora, Wgpu};

// One list of variants for all compilers.
#[path = "../../../examples/dump_shaders.rs"]
#[expect(dead_code, reason = "its own main writes texts")]
mod variants;

const WIDTH: usize = 256;
const EXPERTS: usize = 8;
const TOP_K: usize = 2;
const RANK: usize = 16;
/// A token, a batch that still counts as few, and many.
const TOKENS: [usize; 3] = [1, 8, 256];
const ROWS: usize = TOKENS[2] * TOP_K;

/// Makes each pipeline once and tells `after` now and then, when [`hook::take`] may have something.
pub fn record(wgpu: &Wgpu, mut after: impl FnMut() -> Result<()>) -> Result<()> {
    of_elements::<f32>(wgpu, &mut after)?;
    of_elements::<f16>(wgpu, &mut after)?;
    of_elements::<bf16>(wgpu, &mut after)
}

/// The base product by cooperative matrices, on a device that has them.
pub fn matrices(wgpu: &Wgpu, mut after: impl FnMut() -> Result<()>) -> Result<()> {
    let storage = |len: usize| wgpu.upload(&vec![f16::from_f32(0.0); len]);
    let (x, y, weight, bias) =
        (storage(ROWS * WIDTH)?, storage(ROWS * WIDTH)?, storage(WIDTH * WIDTH)?, storage(WIDTH)?);
    let tokens = TOKENS[2];
    let (in_features, out_features) = (WIDTH, WIDTH);
    let sizes = base::Sizes { tokens, in_features, out_features, x_stride: WIDTH, y_stride: WIDTH };
    let (x, y, weight) =
        (view(&x, tokens * WIDTH)?, view(&y, tokens * WIDTH)?, view::<f16>(&weight, WIDTH * WIDTH)?);
    for (case, bias) in [("f16", None), ("f16.bias", Some(view(&bias, WIDTH)?))] {
        hook::set_case(case);
        wgpu.base(&mut wgpu.encoder(), &sizes, weight, bias, x, y)?;
        after()?;
    }
    Ok(())
}

/// Every variant of every shader that this device's own tuning can meet.
pub fn all(wgpu: &Wgpu, mut after: impl FnMut() -> Result<()>) -> Result<()> {
    for element in ElementType::ALL {
        for batch_invariant in [false, true] {
            // Both kinds of rows: read by fours, and one by one.
            for width in [8, 6] {
                let wgpu = wgpu.batch_invariant(batch_invariant);
                let fixed = if batch_invariant { ".fixed" } else { "" };
                let case = |x: &str| hook::set_case(&format!("{x}.{element}.{width}{fixed}"));
                case("f32");
                variants::variants::<f32>(&wgpu, element, width).map_err(|e| anyhow!("{e}"))?;
                after()?;
                case("f16");
                variants::variants::<f16>(&wgpu, element, width).map_err(|e| anyhow!("{e}"))?;
                after()?;
                case("bf16");
                variants::variants::<bf16>(&wgpu, element, width).map_err(|e| anyhow!("{e}"))?;
                after()?;
            }
        }
    }
    Ok(())
}

fn of_elements<X: Element>(wgpu: &Wgpu, after: &mut dyn FnMut() -> Result<()>) -> Result<()> {
    let buffers = Buffers {
        x: wgpu.upload(&[0f32; ROWS * WIDTH])?,
        y: wgpu.upload(&[0f32; ROWS * WIDTH])?,
        weight: wgpu.upload(&vec![0f32; 2 * EXPERTS * WIDTH * WIDTH])?,
        bias: wgpu.upload(&[0f32; WIDTH])?,
        h: wgpu.upload(&[0f32; ROWS * WIDTH])?,
        z: wgpu.upload(&[0f32; ROWS * WIDTH])?,
        concat: wgpu.upload(&vec![0f32; WIDTH * (WIDTH + EXPERTS * RANK)])?,
        ids: wgpu.upload(&[0i32; ROWS])?,
        weights: wgpu.upload(&[0f32; ROWS])?,
    };
    let zeros = Lora::new(
        WIDTH,
        WIDTH,
        RANK,
        1.0,
        &[X::from_f32(0.0); WIDTH * RANK],
        &[X::from_f32(0.0); WIDTH * RANK],
    )?;
    let mut pool = Pool::new(wgpu, sizes::<X>(WIDTH, RANK))?;
    pool.set_attention(&zeros)?;
    pool.put(0, &zeros)?;
    for tokens in TOKENS {
        let mut rig =
            Rig { wgpu, encoder: wgpu.encoder(), buffers: &buffers, zeros: &zeros, pool: &pool, tokens };
        rig.base::<X>()?;
        after()?;
        rig.route::<X>()?;
        after()?;
        rig.experts::<X>()?;
        after()?;
        rig.fused::<X>()?;
        after()?;
        rig.grouped::<X>()?;
        after()?;
    }
    Ok(())
}

fn sizes<X: Element>(out_features: usize, rank_capacity: usize) -> PoolSizes {
    PoolSizes { in_features: WIDTH, out_features, experts: EXPERTS, rank_capacity, element: X::TYPE }
}

/// Large enough for every operation; what they hold is never read.
struct Buffers {
    x: wgpu::Buffer,
    y: wgpu::Buffer,
    weight: wgpu::Buffer,
    bias: wgpu::Buffer,
    h: wgpu::Buffer,
    z: wgpu::Buffer,
    concat: wgpu::Buffer,
    ids: wgpu::Buffer,
    weights: wgpu::Buffer,
}

struct Rig<'a> {
    wgpu: &'a Wgpu,
    encoder: wgpu::CommandEncoder,
    buffers: &'a Buffers,
    zeros: &'a Lora,
    pool: &'a Pool,
    tokens: usize,
}

/// The first `len` elements.
fn view<T>(buffer: &wgpu::Buffer, len: usize) -> Result<View<'_, T>> {
    Ok(View::new(buffer, 0, len)?)
}

impl<'a> Rig<'a> {
    /// Names what follows; `detail` tells pipelines with one entry point apart.
    fn case<X: Element>(&self, detail: &str) {
        hook::set_case(&format!("{}{detail}", X::TYPE.name()));
    }

    fn x<X: Element>(&self) -> Result<View<'a, X>> {
        view(&self.buffers.x, self.tokens * WIDTH)
    }

    fn ids(&self) -> Result<View<'a, i32>> {
        view(&self.buffers.ids, self.tokens * TOP_K)
    }

    fn weights(&self) -> Result<View<'a, f32>> {
        view(&self.buffers.weights, self.tokens * TOP_K)
    }

    fn plan(&mut self, pool: &Pool) -> Result<Plan> {
        let sizes = plan::Sizes { tokens: self.tokens, top_k: TOP_K, experts: EXPERTS };
        let ids = self.ids()?;
        Ok(self.wgpu.plan(&mut self.encoder, &sizes, pool, ids)?)
    }

    fn base<X: Element>(&mut self) -> Result<()> {
        let (tokens, in_features, out_features) = (self.tokens, WIDTH, WIDTH);
        let sizes = base::Sizes { tokens, in_features, out_features, x_stride: WIDTH, y_stride: WIDTH };
        let (weight, y) =
            (view(&self.buffers.weight, WIDTH * WIDTH)?, view(&self.buffers.y, tokens * WIDTH)?);
        let x = self.x::<X>()?;
        self.case::<X>("");
        self.wgpu.base(&mut self.encoder, &sizes, weight, None, x, y)?;
        let bias = Some(view(&self.buffers.bias, WIDTH)?);
        self.case::<X>(".bias");
        Ok(self.wgpu.base(&mut self.encoder, &sizes, weight, bias, x, y)?)
    }

    fn route<X: Element>(&mut self) -> Result<()> {
        for (detail, experts) in [("", EXPERTS), (".166", 166)] {
            let linear = LinearRouter::new(experts, WIDTH, &vec![0f32; experts * WIDTH], None)?;
            let router = WgpuRouter::new(self.wgpu, linear)?;
            let rule = Rule::top_k(TOP_K, Weighting::SoftmaxAll);
            let (tokens, in_features, x_stride) = (self.tokens, WIDTH, WIDTH);
            let sizes = route::Sizes { tokens, in_features, x_stride, experts, rule };
            let (x, ids, weights) = (self.x::<X>()?, self.ids()?, self.weights()?);
            self.case::<X>(detail);
            self.wgpu.route(&mut self.encoder, &sizes, &router, x, None, ids, weights)?;
        }
        Ok(())
    }

    /// The plan, attention over the experts, and both halves of the low-rank product.
    fn experts<X: Element>(&mut self) -> Result<()> {
        let (tokens, top_k, pool) = (self.tokens, TOP_K, self.pool);
        self.case::<X>("");
        let plan = self.plan(pool)?;
        let (x, weights, h) = (self.x::<X>()?, self.weights()?, View::whole(&self.buffers.h));
        let (in_features, out_features) = (WIDTH, WIDTH);
        let (x_stride, h_stride, y_stride) = (WIDTH, RANK, WIDTH);
        let sizes = attend::Sizes { tokens, top_k, in_features, x_stride, h_stride };
        self.wgpu.attend(&mut self.encoder, &sizes, &plan, pool, x, h, weights)?;
        for output in Output::ALL {
            self.case::<X>(&format!(".{}", output.name()));
            let sizes = shrink::Sizes { tokens, top_k, in_features, x_stride, h_stride, output };
            self.wgpu.shrink(&mut self.encoder, &sizes, &plan, pool, x, weights, h)?;
            let accumulate = output == Output::Sum;
            let sizes = expand::Sizes { tokens, top_k, out_features, h_stride, y_stride, output, accumulate };
            let y = view::<X>(&self.buffers.y, output.y_rows(tokens, top_k) * WIDTH)?;
            self.wgpu.expand(&mut self.encoder, &sizes, &plan, pool, h, weights, y)?;
        }
        Ok(())
    }

    fn fused<X: Element>(&mut self) -> Result<()> {
        let (tokens, top_k, pool, wgpu) = (self.tokens, TOP_K, self.pool, self.wgpu);
        self.case::<X>("");
        let plan = self.plan(pool)?;
        let sizes = fused::Sizes {
            tokens,
            top_k,
            in_features: WIDTH,
            out_features: WIDTH,
            x_stride: WIDTH,
            y_stride: WIDTH,
            h_stride: RANK,
            output: Output::Sum,
        };
        let (x, ids, weights, h) =
            (self.x::<X>()?, self.ids()?, self.weights()?, View::whole(&self.buffers.h));
        let (weight, y) =
            (view::<X>(&self.buffers.weight, WIDTH * WIDTH)?, view::<X>(&self.buffers.y, tokens * WIDTH)?);
        let encoder = &mut self.encoder;
        if tokens <= 8 {
            wgpu.fused_few(encoder, &sizes, pool, weight, None, x, ids, weights, h, y)?;
        }
        wgpu.fused_sparse(encoder, &sizes, &plan, pool, weight, None, x, h, weights, y)?;
        let linear = LinearRouter::new(EXPERTS, WIDTH, &[0f32; EXPERTS * WIDTH], None)?;
        let router = WgpuRouter::new(wgpu, linear)?;
        let z = view::<X>(&self.buffers.z, tokens * EXPERTS * RANK)?;
        hook::set_case(&format!("{}.given", X::TYPE.name()));
        let dense = fused::Sizes { h_stride: EXPERTS * RANK, ..sizes };
        wgpu.fused_gate(encoder, &dense, pool, None, x, ids, weights, z)?;
        hook::set_case(&format!("{}.routed", X::TYPE.name()));
        wgpu.fused_gate(encoder, &dense, pool, Some((&router, Weighting::SoftmaxAll)), x, ids, weights, z)?;
        hook::set_case(X::TYPE.name());
        if X::TYPE == pool.slots().sizes().element {
            let stride = WIDTH + EXPERTS * RANK;
            wgpu.fused_concat(
                encoder,
                pool,
                weight,
                stride,
                view::<X>(&self.buffers.concat, WIDTH * stride)?,
            )?;
        }
        Ok(wgpu.fused_dense(encoder, &dense, pool, weight, None, x, z, y)?)
    }

    fn grouped<X: Element>(&mut self) -> Result<()> {
        let (tokens, top_k) = (self.tokens, TOP_K);
        for rows in grouped::Rows::ALL {
            let slices = vec![WIDTH; if rows == grouped::Rows::Gated { 2 } else { 1 }];
            let out_features = slices.iter().sum();
            let mut pool = Pool::packed(self.wgpu, sizes::<X>(out_features, slices.len() * RANK), &slices)?;
            pool.put_packed(0, &vec![Some(self.zeros); slices.len()])?;
            let markers = Pool::markers(self.wgpu, EXPERTS)?;
            self.case::<X>(&format!(".{rows:?}").to_lowercase());
            let plan = self.plan(&markers)?;
            let sizes = grouped::Sizes {
                tokens,
                top_k,
                experts: EXPERTS,
                in_features: WIDTH,
                out_features,
                x_stride: WIDTH,
                h_stride: slices.len() * RANK,
                y_stride: WIDTH,
                x_per_route: false,
                rows,
            };
            let loras = self.plan(&pool)?;
            let (x, weights) = (self.x::<X>()?, self.weights()?);
            let w = view::<X>(&self.buffers.weight, EXPERTS * out_features * WIDTH)?;
            let y = view::<X>(&self.buffers.y, tokens * top_k * WIDTH)?;
            let (h, scratch) = (View::whole(&self.buffers.h), View::whole(&self.buffers.z));
            let encoder = &mut self.encoder;
            let (wgpu, loras) = (self.wgpu, &loras);
            wgpu.grouped(encoder, &sizes, &plan, &pool, loras, w, x, h, weights, scratch, y)?;
            if rows == grouped::Rows::Combined {
                wgpu.grouped_with_shrink(encoder, &sizes, &plan, &pool, loras, w, x, h, weights, scratch, y)?;
            }
        }
        Ok(())
    }
}
