//! WebGPU: the tiled kernels beside the plain triple loop and beside kernels of 4 x 4 sums a thread without workgroup
//! memory, `forward_delta` and the fused product beside the base product, alternating in one run on every adapter.
//! `cargo bench --bench paths`, or a part of it: `cargo bench --bench paths -- route plain blocked forms`
//!
//! The case: 256 tokens, 8 experts, top 2, rank 16, 1024 x 1024 (`width=4096` takes another), f32, uniform routing; of route
//! 512 tokens, 166 experts, 2048 wide. Answers are checked against the plain loop before the clock starts. Times run from
//! recording to an empty queue, medians: of the wall, or of the processor where the device is a software driver.

#[path = "paths/blocked.rs"]
mod blocked;

use blocked::{Blocked, Product};
use molora::adapter::slots::PoolSizes;
use molora::adapter::{LinearRouter, Prototypes};
use molora::device::wgpu::{Plan, Pool, View};
use molora::layer::{MoeLora, Router, RoutingView, Rows, Workspace};
use molora::ops::fused::{self, Form};
use molora::ops::route::{self, Rule, Weighting, WgpuRouter};
use molora::ops::{Output, base, expand, grouped, plan, shrink};
use molora::{ElementType, Lora, Wgpu};
use std::cell::RefCell;
use std::sync::LazyLock;
use std::time::Instant;

const TOKENS: usize = 256;
const TOP_K: usize = 2;
const EXPERTS: usize = 8;
const RANK: usize = 16;
const ROUNDS: usize = 9;
/// For ratios that are held against a bar.
const MANY_ROUNDS: usize = 40;
/// For ratios far from 1.
const SOME_ROUNDS: usize = 15;

type Failure = Box<dyn std::error::Error>;

fn main() -> Result<(), Failure> {
    for adapter in Wgpu::adapters() {
        run(&Wgpu::open(&adapter)?)?;
    }
    Ok(())
}

/// Seeded values in -1..1.
fn values(seed: u64, len: usize) -> Vec<f32> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    (0..len).map(|_| next()).collect()
}

/// Columns of x and of y.
fn width() -> usize {
    static WIDTH: LazyLock<usize> = LazyLock::new(|| {
        let given = std::env::args().find_map(|a| a.strip_prefix("width=").map(str::to_string));
        given.map_or(1024, |width| width.parse().expect("width=COLUMNS, a whole number"))
    });
    *WIDTH
}

/// Whether a part of the run is asked for.
fn asked(part: &str) -> bool {
    let parts: Vec<String> =
        std::env::args().skip(1).filter(|a| !a.starts_with('-') && !a.contains('=')).collect();
    parts.is_empty() || parts.iter().any(|p| p == part)
}

fn run(wgpu: &Wgpu) -> Result<(), Failure> {
    println!("{}", wgpu.describe());
    let software = wgpu.info().device_type == wgpu::DeviceType::Cpu;
    if asked("route") {
        route(wgpu, software)?;
    }
    let routes = TOKENS * TOP_K;
    let ids: Vec<i32> = (0..routes).map(|n| ((n / TOP_K * 5 + n % TOP_K * 3) % EXPERTS) as i32).collect();
    let (a, b) = (values(1, EXPERTS * RANK * width()), values(2, EXPERTS * RANK * width()));
    let weights = values(3, routes);
    // [experts, rank, out]
    let b_turned: Vec<f32> = (0..b.len())
        .map(|i| (i / (RANK * width()), i / width() % RANK, i % width()))
        .map(|(e, r, o)| b[(e * width() + o) * RANK + r])
        .collect();
    let buffers = Buffers {
        ids: wgpu.upload(&ids)?,
        weights: wgpu.upload(&weights)?,
        ones: wgpu.upload(&vec![1f32; routes])?,
        x: wgpu.upload(&values(4, TOKENS * width()))?,
        a: wgpu.upload(&a)?,
        b: wgpu.upload(&b)?,
        b_turned: wgpu.upload(&b_turned)?,
        h: wgpu.upload(&vec![0f32; routes * RANK])?,
        y: wgpu.upload(&vec![0f32; TOKENS * width()])?,
        weight: wgpu.upload(&values(5, width() * width()))?,
        // Grouped products alone read these.
        expert_weights: wgpu
            .upload(&values(10, if asked("blocked") { EXPERTS * width() * width() } else { 4 }))?,
        rows: wgpu.upload(&vec![0f32; routes * width()])?,
    };
    let ours = Ours::new(wgpu, &buffers, (&a, &b), false)?;
    if asked("plain") {
        against_plain(wgpu, software, &buffers, &ours)?;
    }
    if asked("blocked") {
        against_blocked(wgpu, software, &buffers, &ours, &ids)?;
    }
    if asked("forms") {
        forms(wgpu, software, &buffers, (&a, &b), &ours)?;
    }
    Ok(())
}

/// What one run leaves must not pass for the other's.
fn clear(wgpu: &Wgpu, buffers: &Buffers) {
    for (buffer, byte) in [(&buffers.h, 0xff), (&buffers.y, 0), (&buffers.rows, 0)] {
        wgpu.queue().write_buffer(buffer, 0, &vec![byte; buffer.size() as usize]);
    }
}

/// Refuses results that are further from the baseline's than `scale` products of values in -1..1 allow.
fn compare(name: &str, baseline: &[f32], ours: &[f32], scale: usize) -> Result<(), Failure> {
    let limit = 1e-5 * (scale as f32).sqrt();
    let wrong = baseline.iter().zip(ours).find(|(b, o)| b.is_nan() || o.is_nan() || (*b - *o).abs() > limit);
    match wrong {
        Some((b, o)) => Err(format!("{name}: the baseline gives {b}, the tiled kernel {o}").into()),
        None => Ok(()),
    }
}

fn against_plain(wgpu: &Wgpu, software: bool, buffers: &Buffers, ours: &Ours) -> Result<(), Failure> {
    let plain = Plain::new(wgpu, buffers);
    let (mut h, mut y) = (Vec::new(), Vec::new());
    for ours_runs in [false, true] {
        clear(wgpu, buffers);
        for step in [Step::Shrink, Step::Expand] {
            if ours_runs {
                ours.run(step)?
            } else {
                plain.run(wgpu, step)?
            };
        }
        h.push(wgpu.download::<f32>(&buffers.h, TOKENS * TOP_K * RANK)?);
        y.push(wgpu.download::<f32>(&buffers.y, TOKENS * width())?);
    }
    compare("shrink", &h[0], &h[1], width())?;
    compare("expand", &y[0], &y[1], width() * RANK)?;
    for step in [Step::Shrink, Step::Expand] {
        let [plain, ours] = alternate(software, [&mut || plain.run(wgpu, step), &mut || ours.run(step)])?;
        println!("{step:?}: plain {plain:.0} us, tiled {ours:.0} us, {:.2} x as fast", plain / ours);
    }
    Ok(())
}

/// Every product beside the same one by 4 x 4 sums a thread without workgroup memory.
fn against_blocked(
    wgpu: &Wgpu,
    software: bool,
    buffers: &Buffers,
    ours: &Ours,
    ids: &[i32],
) -> Result<(), Failure> {
    let blocked = Blocked::new(wgpu, buffers, ids)?;
    for product in Product::ALL.into_iter().filter(|p| asked_product(*p)) {
        let step = match product {
            Product::Shrink => Step::Shrink,
            Product::Expand => Step::Expand,
            Product::Base => Step::Base,
            Product::Fused => Step::Fused(Form::Sparse),
            Product::Grouped => Step::Grouped,
        };
        let (output, scale) = match product {
            Product::Shrink => (&buffers.h, width()),
            Product::Expand => (&buffers.y, width() * RANK),
            Product::Base => (&buffers.y, width()),
            Product::Fused => (&buffers.y, width() * RANK),
            Product::Grouped => (&buffers.rows, width() * RANK),
        };
        let mut results = Vec::new();
        for ours_runs in [false, true] {
            clear(wgpu, buffers);
            if [Product::Expand, Product::Grouped].contains(&product) {
                blocked.repeat(wgpu, Product::Shrink, 1)?;
            }
            if ours_runs {
                ours.run(step)?
            } else {
                blocked.repeat(wgpu, product, 1)?
            };
            results.push(wgpu.download::<f32>(output, output.size() as usize / 4)?);
        }
        compare(&format!("{product:?}"), &results[0], &results[1], scale)?;
        // Small products often, so that what a submission costs does not count.
        let times = (5e8 / product.operations()).ceil() as usize;
        let runs: [Run; 2] = [&mut || ours.repeat(step, times), &mut || blocked.repeat(wgpu, product, times)];
        let mut pairs = pairs(software, SOME_ROUNDS, runs)?;
        let often = times as f64;
        let rate = |run: usize| {
            let mut times: Vec<f64> = pairs.iter().map(|pair| pair[run]).collect();
            times.sort_by(f64::total_cmp);
            often * product.operations() / times[times.len() / 2] * 1e-3
        };
        let rates = [rate(1), rate(0)];
        let [low, middle, high] = median_ratio(&mut pairs);
        println!(
            "{product:?}: 4 x 4 blocks {:.2} GFLOP/s, ours {:.2}, {middle:.2} x ({low:.2} to {high:.2}, 95 %, \
             {SOME_ROUNDS} pairs)",
            rates[0], rates[1]
        );
    }
    Ok(())
}

/// Whether a product is asked for by name; all are without one.
fn asked_product(product: Product) -> bool {
    let name = |p: Product| format!("{p:?}").to_lowercase();
    let named = |p: Product| std::env::args().any(|a| a == name(p));
    named(product) || !Product::ALL.into_iter().any(named)
}

fn forms(
    wgpu: &Wgpu,
    software: bool,
    buffers: &Buffers,
    (a, b): (&[f32], &[f32]),
    ours: &Ours,
) -> Result<(), Failure> {
    let [base, delta] = alternate(software, [&mut || ours.run(Step::Base), &mut || ours.run(Step::Delta)])?;
    println!("forward_delta {delta:.0} us, base {base:.0} us, share {:.3}", delta / base);

    let against_base = |ours: &Ours, step: Step, routing: &str| -> Result<(), Failure> {
        let runs: [Run; 2] = [&mut || ours.run(Step::Base), &mut || ours.run(step)];
        let [low, middle, high] = median_ratio(&mut pairs(software, MANY_ROUNDS, runs)?);
        println!(
            "{step:?}, {routing} / base: {middle:.3} ({low:.3} to {high:.3}, 95 %, {MANY_ROUNDS} pairs)"
        );
        Ok(())
    };
    against_base(ours, Step::Fused(Form::Sparse), "even")?;
    against_base(ours, Step::Fused(Form::Beside), "even")?;
    // The even routing repeats every eight tokens; this one does not.
    let drawn: Vec<i32> = values(6, TOKENS)
        .iter()
        .zip(values(7, TOKENS))
        .flat_map(|(first, step)| {
            let of = |v: f32, n: usize| ((v + 1.0) / 2.0 * n as f32) as usize % n;
            let first = of(*first, EXPERTS);
            [first, (first + 1 + of(step, EXPERTS - 1)) % EXPERTS].map(|e| e as i32)
        })
        .collect();
    wgpu.queue().write_buffer(
        &buffers.ids,
        0,
        drawn.iter().flat_map(|id| id.to_le_bytes()).collect::<Vec<u8>>().as_slice(),
    );
    against_base(&Ours::new(wgpu, buffers, (a, b), false)?, Step::Fused(Form::Sparse), "drawn")?;

    let one_form = Ours::new(wgpu, buffers, (a, b), true)?;
    let [free, fixed] =
        alternate(software, [&mut || ours.run(Step::OneToken), &mut || one_form.run(Step::OneToken)])?;
    println!(
        "forward_delta of one token: {free:.0} us, batch invariant {fixed:.0} us, {:.1} x",
        fixed / free
    );
    Ok(())
}

/// PHATGOOSE's router, 166 prototypes of 2048, top 2, on 512 tokens: all at once, which takes tiles of tokens, beside batches of
/// 7, each token of which has a workgroup of its own.
fn route(wgpu: &Wgpu, software: bool) -> Result<(), Failure> {
    const EXPERTS: usize = 166;
    const WIDTH: usize = 2048;
    const TOKENS: usize = 512;
    let how = Prototypes::phatgoose(WIDTH);
    let linear = LinearRouter::prototypes(EXPERTS, WIDTH, &values(8, EXPERTS * WIDTH), how)?;
    let router = WgpuRouter::new(wgpu, linear)?;
    let x = wgpu.upload(&values(9, TOKENS * WIDTH))?;
    let (ids, weights) = (wgpu.upload(&[-1i32; 2 * TOKENS])?, wgpu.upload(&[f32::NAN; 2 * TOKENS])?);
    let run = |batch: usize| -> Result<(), Failure> {
        let mut encoder = wgpu.encoder();
        for first in (0..TOKENS).step_by(batch) {
            let tokens = batch.min(TOKENS - first);
            let rule = Rule::top_k(2, Weighting::SoftmaxSelected);
            let sizes = route::Sizes { tokens, in_features: WIDTH, x_stride: WIDTH, experts: EXPERTS, rule };
            let x = View::<f32>::new(&x, first * WIDTH, tokens * WIDTH)?;
            let ids = View::new(&ids, 2 * first, 2 * tokens)?;
            let weights = View::new(&weights, 2 * first, 2 * tokens)?;
            wgpu.route(&mut encoder, &sizes, &router, x, None, ids, weights)?;
        }
        wgpu.queue().submit([encoder.finish()]);
        Ok(wgpu.wait()?)
    };
    let mut chosen = Vec::new();
    for batch in [7, TOKENS] {
        wgpu.queue().write_buffer(&ids, 0, &[0xff; 8 * TOKENS]);
        run(batch)?;
        chosen.push(wgpu.download::<i32>(&ids, 2 * TOKENS)?);
    }
    if chosen[0].contains(&-1) || chosen[0] != chosen[1] {
        return Err("route: the two forms choose differently".into());
    }
    let [few, many] = alternate(software, [&mut || run(7), &mut || run(TOKENS)])?;
    println!("route: a workgroup a token {few:.0} us, tiles {many:.0} us, {:.2} x as fast", few / many);
    Ok(())
}

/// Seconds: of all this process's threads where the device is software, which other processes then disturb less; of
/// the wall otherwise.
fn clock(software: bool) -> f64 {
    let on_cpu = |task: std::fs::DirEntry| {
        let text = std::fs::read_to_string(task.path().join("schedstat")).ok()?;
        text.split(' ').next()?.parse::<f64>().ok()
    };
    let tasks = std::fs::read_dir("/proc/self/task").ok().filter(|_| software);
    let spent = tasks.map(|tasks| tasks.flatten().filter_map(on_cpu).sum::<f64>());
    spent.filter(|&ns| ns > 0.0).map_or_else(|| START.elapsed().as_secs_f64(), |ns| ns * 1e-9)
}

static START: LazyLock<Instant> = LazyLock::new(Instant::now);

type Run<'a> = &'a mut dyn FnMut() -> Result<(), Failure>;

/// Microseconds of two runs that take turns.
fn pairs(software: bool, rounds: usize, [first, second]: [Run; 2]) -> Result<Vec<[f64; 2]>, Failure> {
    let time = |run: Run| -> Result<f64, Failure> {
        let begin = clock(software);
        run()?;
        Ok((clock(software) - begin) * 1e6)
    };
    let mut pairs = Vec::new();
    // The first round warms up.
    for _ in 0..=rounds {
        pairs.push([time(first)?, time(second)?]);
    }
    Ok(pairs.split_off(1))
}

/// Medians in microseconds of two runs that take turns.
fn alternate(software: bool, runs: [Run; 2]) -> Result<[f64; 2], Failure> {
    let pairs = pairs(software, ROUNDS, runs)?;
    Ok([0, 1].map(|run| {
        let mut times: Vec<f64> = pairs.iter().map(|pair| pair[run]).collect();
        times.sort_by(f64::total_cmp);
        times[times.len() / 2]
    }))
}

/// The median of second / first, between the ends of its 95 % interval: the order statistics that a fair coin puts around it.
fn median_ratio(pairs: &mut [[f64; 2]]) -> [f64; 3] {
    let ratio = |pair: &[f64; 2]| pair[1] / pair[0];
    pairs.sort_by(|a, b| ratio(a).total_cmp(&ratio(b)));
    let (middle, reach) = (pairs.len() / 2, (0.98 * (pairs.len() as f64).sqrt()).ceil() as usize);
    [middle.saturating_sub(reach), middle, (middle + reach).min(pairs.len() - 1)].map(|i| ratio(&pairs[i]))
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Step {
    Shrink,
    Expand,
    Base,
    Delta,
    OneToken,
    /// Shrink and the rest of a form; the plan is there, as the separate products' is.
    Fused(Form),
    /// Rows of routes, from h; every expert is a base expert with its LoRA.
    Grouped,
}

struct Buffers {
    ids: wgpu::Buffer,
    weights: wgpu::Buffer,
    /// Weights of products that have none.
    ones: wgpu::Buffer,
    x: wgpu::Buffer,
    a: wgpu::Buffer,
    b: wgpu::Buffer,
    /// `[experts, rank, out]`.
    b_turned: wgpu::Buffer,
    h: wgpu::Buffer,
    y: wgpu::Buffer,
    weight: wgpu::Buffer,
    /// `[experts, out, in]`.
    expert_weights: wgpu::Buffer,
    /// A row of y for every route.
    rows: wgpu::Buffer,
}

/// The library's kernels.
struct Ours<'a> {
    layer: MoeLora<Wgpu>,
    plan: Plan,
    /// Of the base experts.
    group_plan: Plan,
    workspace: RefCell<Workspace>,
    buffers: &'a Buffers,
}

impl<'a> Ours<'a> {
    fn new(
        wgpu: &Wgpu,
        buffers: &'a Buffers,
        (a, b): (&[f32], &[f32]),
        batch_invariant: bool,
    ) -> Result<Self, Failure> {
        let sizes = PoolSizes {
            in_features: width(),
            out_features: width(),
            experts: EXPERTS,
            rank_capacity: EXPERTS * RANK,
            element: ElementType::F32,
        };
        let mut pool = Pool::new(wgpu, sizes)?;
        for e in 0..EXPERTS {
            let part = e * RANK * width()..(e + 1) * RANK * width();
            pool.put(e, &Lora::new(width(), width(), RANK, 1.0, &a[part.clone()], &b[part])?)?;
        }
        let layer = MoeLora::<Wgpu>::new(wgpu, pool, Router::External { top_k: TOP_K })?;
        let layer = layer.batch_invariant(batch_invariant);
        let mut encoder = wgpu.encoder();
        let sizes = plan::Sizes { tokens: TOKENS, top_k: TOP_K, experts: EXPERTS };
        let plan = wgpu.plan(&mut encoder, &sizes, layer.pool(), View::whole(&buffers.ids))?;
        let markers = Pool::markers(wgpu, EXPERTS)?;
        let group_plan = wgpu.plan(&mut encoder, &sizes, &markers, View::whole(&buffers.ids))?;
        wgpu.queue().submit([encoder.finish()]);
        let workspace = layer.workspace(TOKENS)?.into();
        Ok(Self { layer, plan, group_plan, workspace, buffers })
    }

    fn run(&self, step: Step) -> Result<(), Failure> {
        self.repeat(step, 1)
    }

    /// So many times in one submission.
    fn repeat(&self, step: Step, times: usize) -> Result<(), Failure> {
        let wgpu = self.layer.device();
        let mut encoder = wgpu.encoder();
        (0..times).try_for_each(|_| self.record(step, &mut encoder))?;
        wgpu.queue().submit([encoder.finish()]);
        Ok(wgpu.wait()?)
    }

    fn record(&self, step: Step, encoder: &mut wgpu::CommandEncoder) -> Result<(), Failure> {
        let (wgpu, pool, b) = (self.layer.device(), self.layer.pool(), self.buffers);
        let (tokens, top_k, output) = (TOKENS, TOP_K, Output::Sum);
        let (x, h, y) = (View::<f32>::whole(&b.x), View::whole(&b.h), View::<f32>::whole(&b.y));
        let weights = View::whole(&b.weights);
        match step {
            Step::Shrink | Step::Expand => {
                let plan = &self.plan;
                if step == Step::Shrink {
                    let (in_features, x_stride, h_stride) = (width(), width(), RANK);
                    let sizes = shrink::Sizes { tokens, top_k, in_features, x_stride, h_stride, output };
                    wgpu.shrink(encoder, &sizes, plan, pool, x, weights, h)?;
                } else {
                    let (out_features, y_stride, h_stride, accumulate) = (width(), width(), RANK, true);
                    let sizes =
                        expand::Sizes { tokens, top_k, out_features, h_stride, y_stride, output, accumulate };
                    wgpu.expand(encoder, &sizes, plan, pool, h, weights, y)?;
                }
            }
            Step::Base => {
                let (in_features, out_features, x_stride, y_stride) = (width(), width(), width(), width());
                let sizes = base::Sizes { tokens, in_features, out_features, x_stride, y_stride };
                wgpu.base(encoder, &sizes, View::whole(&b.weight), None, x, y)?;
            }
            Step::Fused(form) => {
                let (in_features, out_features) = (width(), width());
                let (x_stride, y_stride, h_stride) = (width(), width(), RANK);
                let shrink = shrink::Sizes { tokens, top_k, in_features, x_stride, h_stride, output };
                wgpu.shrink(encoder, &shrink, &self.plan, pool, x, weights, h)?;
                let weight = View::whole(&b.weight);
                if form == Form::Sparse {
                    let sizes = fused::Sizes {
                        tokens,
                        top_k,
                        in_features,
                        out_features,
                        x_stride,
                        y_stride,
                        h_stride,
                        output,
                    };
                    let plan = &self.plan;
                    wgpu.fused_sparse(encoder, &sizes, plan, pool, weight, None, x, h, weights, y)?;
                } else {
                    let base = base::Sizes { tokens, in_features, out_features, x_stride, y_stride };
                    wgpu.base(encoder, &base, weight, None, x, y)?;
                    let accumulate = true;
                    let sizes =
                        expand::Sizes { tokens, top_k, out_features, h_stride, y_stride, output, accumulate };
                    wgpu.expand(encoder, &sizes, &self.plan, pool, h, weights, y)?;
                }
            }
            Step::Grouped => {
                let sizes = grouped::Sizes {
                    tokens,
                    top_k,
                    experts: EXPERTS,
                    in_features: width(),
                    out_features: width(),
                    x_stride: width(),
                    h_stride: RANK,
                    y_stride: width(),
                    x_per_route: false,
                    rows: grouped::Rows::Plain,
                };
                let (plan, loras) = (&self.group_plan, &self.plan);
                let (w, rows) = (View::<f32>::whole(&b.expert_weights), View::<f32>::whole(&b.rows));
                let none = View::new(&b.ones, 0, 0)?;
                wgpu.grouped(encoder, &sizes, plan, pool, loras, w, x, h, weights, none, rows)?;
            }
            Step::Delta | Step::OneToken => {
                let tokens = if step == Step::Delta { TOKENS } else { 1 };
                let rows = Rows { tokens, x_stride: width(), y_stride: width() };
                let routing = RoutingView::new(
                    View::new(&b.ids, 0, tokens * TOP_K)?,
                    View::new(&b.weights, 0, tokens * TOP_K)?,
                );
                let mut workspace = self.workspace.borrow_mut();
                self.layer.forward_delta(encoder, &rows, x, routing, &mut workspace, y)?;
            }
        }
        Ok(())
    }
}

/// The triple loops of `plain.wgsl`.
struct Plain {
    shrink: wgpu::ComputePipeline,
    expand: wgpu::ComputePipeline,
    group: wgpu::BindGroup,
}

impl Plain {
    fn new(wgpu: &Wgpu, b: &Buffers) -> Self {
        let device = wgpu.device();
        let source = wgpu::ShaderSource::Wgsl(include_str!("plain.wgsl").into());
        let module =
            device.create_shader_module(wgpu::ShaderModuleDescriptor { label: Some("plain"), source });
        let entry = |binding: u32, ty| wgpu::BindGroupLayoutEntry {
            binding,
            visibility: wgpu::ShaderStages::COMPUTE,
            ty: wgpu::BindingType::Buffer { ty, has_dynamic_offset: false, min_binding_size: None },
            count: None,
        };
        let storage = |binding| entry(binding, wgpu::BufferBindingType::Storage { read_only: binding < 5 });
        let mut entries: Vec<_> = (0..7).map(storage).collect();
        entries.push(entry(7, wgpu::BufferBindingType::Uniform));
        let descriptor = wgpu::BindGroupLayoutDescriptor { label: None, entries: &entries };
        let layout = device.create_bind_group_layout(&descriptor);
        let pipeline_layout = device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
            label: None,
            bind_group_layouts: &[Some(&layout)],
            immediate_size: 0,
        });
        let pipeline = |name| {
            device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
                label: Some(name),
                layout: Some(&pipeline_layout),
                module: &module,
                entry_point: Some(name),
                compilation_options: Default::default(),
                cache: None,
            })
        };
        let params = device.create_buffer(&wgpu::BufferDescriptor {
            label: None,
            size: 32,
            usage: wgpu::BufferUsages::UNIFORM | wgpu::BufferUsages::COPY_DST,
            mapped_at_creation: false,
        });
        let words = [TOKENS, TOP_K, EXPERTS, RANK, width(), width()].map(|v| (v as u32).to_le_bytes());
        wgpu.queue().write_buffer(&params, 0, words.as_flattened());
        let bound = [&b.ids, &b.weights, &b.x, &b.a, &b.b, &b.h, &b.y, &params];
        let entries: Vec<_> = (0..)
            .zip(bound)
            .map(|(binding, buffer)| wgpu::BindGroupEntry { binding, resource: buffer.as_entire_binding() })
            .collect();
        let descriptor = wgpu::BindGroupDescriptor { label: None, layout: &layout, entries: &entries };
        let group = device.create_bind_group(&descriptor);
        Self { shrink: pipeline("shrink"), expand: pipeline("expand"), group }
    }

    fn run(&self, wgpu: &Wgpu, step: Step) -> Result<(), Failure> {
        let (pipeline, threads) = if step == Step::Shrink {
            (&self.shrink, TOKENS * TOP_K * RANK)
        } else {
            (&self.expand, TOKENS * width())
        };
        let mut encoder = wgpu.encoder();
        {
            let mut pass = encoder.begin_compute_pass(&Default::default());
            pass.set_pipeline(pipeline);
            pass.set_bind_group(0, &self.group, &[]);
            pass.dispatch_workgroups(threads.div_ceil(64) as u32, 1, 1);
        }
        wgpu.queue().submit([encoder.finish()]);
        Ok(wgpu.wait()?)
    }
}
