//! WebGPU: the tiled kernels beside the plain triple loop, `forward_delta` and the fused product beside the base product,
//! alternating in one run on every adapter. `cargo bench --bench paths`
//!
//! The case: 256 tokens, 8 experts, top 2, rank 16, 1024 x 1024, f32, uniform routing. Answers are checked against
//! the plain loop before the clock starts. Times run from
//! recording to an empty queue, medians: of the wall, or of the processor where the device is a software driver.

use molora::adapter::slots::PoolSizes;
use molora::adapter::{LinearRouter, Prototypes};
use molora::device::wgpu::{Plan, Pool, View};
use molora::layer::{MoeLora, Router, RoutingView, Rows, Workspace};
use molora::ops::fused::{self, Form};
use molora::ops::route::{self, Rule, Weighting, WgpuRouter};
use molora::ops::{Output, base, expand, plan, shrink};
use molora::{ElementType, Lora, Wgpu};
use std::cell::RefCell;
use std::sync::LazyLock;
use std::time::Instant;

const TOKENS: usize = 256;
const TOP_K: usize = 2;
const EXPERTS: usize = 8;
const RANK: usize = 16;
const WIDTH: usize = 1024;
const ROUNDS: usize = 9;
/// For ratios that are held against a bar.
const MANY_ROUNDS: usize = 40;

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

fn run(wgpu: &Wgpu) -> Result<(), Failure> {
    println!("{}", wgpu.describe());
    let software = wgpu.info().device_type == wgpu::DeviceType::Cpu;
    route(wgpu, software)?;
    let routes = TOKENS * TOP_K;
    let ids: Vec<i32> = (0..routes).map(|n| ((n / TOP_K * 5 + n % TOP_K * 3) % EXPERTS) as i32).collect();
    let (a, b) = (values(1, EXPERTS * RANK * WIDTH), values(2, EXPERTS * RANK * WIDTH));
    let weights = values(3, routes);
    let buffers = Buffers {
        ids: wgpu.upload(&ids)?,
        weights: wgpu.upload(&weights)?,
        x: wgpu.upload(&values(4, TOKENS * WIDTH))?,
        a: wgpu.upload(&a)?,
        b: wgpu.upload(&b)?,
        h: wgpu.upload(&vec![0f32; routes * RANK])?,
        y: wgpu.upload(&vec![0f32; TOKENS * WIDTH])?,
        weight: wgpu.upload(&values(5, WIDTH * WIDTH))?,
    };
    let plain = Plain::new(wgpu, &buffers);
    let ours = Ours::new(wgpu, &buffers, (&a, &b), false)?;

    let (mut h, mut y) = (Vec::new(), Vec::new());
    for ours_runs in [false, true] {
        // What one run leaves must not pass for the other's.
        wgpu.queue().write_buffer(&buffers.h, 0, &vec![0xff; routes * RANK * 4]);
        wgpu.queue().write_buffer(&buffers.y, 0, &vec![0; TOKENS * WIDTH * 4]);
        for step in [Step::Shrink, Step::Expand] {
            if ours_runs {
                ours.run(step)?
            } else {
                plain.run(wgpu, step)?
            };
        }
        h.push(wgpu.download::<f32>(&buffers.h, routes * RANK)?);
        y.push(wgpu.download::<f32>(&buffers.y, TOKENS * WIDTH)?);
    }
    for (name, pair, scale) in [("shrink", &h, WIDTH as f32), ("expand", &y, (WIDTH * RANK) as f32)] {
        let limit = 1e-5 * scale.sqrt();
        if let Some((p, o)) =
            pair[0].iter().zip(&pair[1]).find(|(p, o)| o.is_nan() || (*p - *o).abs() > limit)
        {
            return Err(format!("{name}: the plain loop gives {p}, the tiled kernel {o}").into());
        }
    }

    for step in [Step::Shrink, Step::Expand] {
        let [plain, ours] = alternate(software, [&mut || plain.run(wgpu, step), &mut || ours.run(step)])?;
        println!("{step:?}: plain {plain:.0} us, tiled {ours:.0} us, {:.2} x as fast", plain / ours);
    }
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
    against_base(&ours, Step::Fused(Form::Sparse), "even")?;
    against_base(&ours, Step::Fused(Form::Beside), "even")?;
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
    against_base(&Ours::new(wgpu, &buffers, (&a, &b), false)?, Step::Fused(Form::Sparse), "drawn")?;

    let one_form = Ours::new(wgpu, &buffers, (&a, &b), true)?;
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
}

struct Buffers {
    ids: wgpu::Buffer,
    weights: wgpu::Buffer,
    x: wgpu::Buffer,
    a: wgpu::Buffer,
    b: wgpu::Buffer,
    h: wgpu::Buffer,
    y: wgpu::Buffer,
    weight: wgpu::Buffer,
}

/// The library's kernels.
struct Ours<'a> {
    layer: MoeLora<Wgpu>,
    plan: Plan,
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
            in_features: WIDTH,
            out_features: WIDTH,
            experts: EXPERTS,
            rank_capacity: EXPERTS * RANK,
            element: ElementType::F32,
        };
        let mut pool = Pool::new(wgpu, sizes)?;
        for e in 0..EXPERTS {
            let part = e * RANK * WIDTH..(e + 1) * RANK * WIDTH;
            pool.put(e, &Lora::new(WIDTH, WIDTH, RANK, 1.0, &a[part.clone()], &b[part])?)?;
        }
        let layer = MoeLora::<Wgpu>::new(wgpu, pool, Router::External { top_k: TOP_K })?;
        let layer = layer.batch_invariant(batch_invariant);
        let mut encoder = wgpu.encoder();
        let sizes = plan::Sizes { tokens: TOKENS, top_k: TOP_K, experts: EXPERTS };
        let plan = wgpu.plan(&mut encoder, &sizes, layer.pool(), View::whole(&buffers.ids))?;
        wgpu.queue().submit([encoder.finish()]);
        let workspace = layer.workspace(TOKENS)?.into();
        Ok(Self { layer, plan, workspace, buffers })
    }

    fn run(&self, step: Step) -> Result<(), Failure> {
        let (wgpu, pool, b) = (self.layer.device(), self.layer.pool(), self.buffers);
        let (tokens, top_k, output) = (TOKENS, TOP_K, Output::Sum);
        let (x, h, y) = (View::<f32>::whole(&b.x), View::whole(&b.h), View::<f32>::whole(&b.y));
        let weights = View::whole(&b.weights);
        let mut encoder = wgpu.encoder();
        match step {
            Step::Shrink | Step::Expand => {
                let plan = &self.plan;
                if step == Step::Shrink {
                    let (in_features, x_stride, h_stride) = (WIDTH, WIDTH, RANK);
                    let sizes = shrink::Sizes { tokens, top_k, in_features, x_stride, h_stride, output };
                    wgpu.shrink(&mut encoder, &sizes, plan, pool, x, weights, h)?;
                } else {
                    let (out_features, y_stride, h_stride, accumulate) = (WIDTH, WIDTH, RANK, true);
                    let sizes =
                        expand::Sizes { tokens, top_k, out_features, h_stride, y_stride, output, accumulate };
                    wgpu.expand(&mut encoder, &sizes, plan, pool, h, weights, y)?;
                }
            }
            Step::Base => {
                let (in_features, out_features, x_stride, y_stride) = (WIDTH, WIDTH, WIDTH, WIDTH);
                let sizes = base::Sizes { tokens, in_features, out_features, x_stride, y_stride };
                wgpu.base(&mut encoder, &sizes, View::whole(&b.weight), None, x, y)?;
            }
            Step::Fused(form) => {
                let (in_features, out_features) = (WIDTH, WIDTH);
                let (x_stride, y_stride, h_stride) = (WIDTH, WIDTH, RANK);
                let shrink = shrink::Sizes { tokens, top_k, in_features, x_stride, h_stride, output };
                wgpu.shrink(&mut encoder, &shrink, &self.plan, pool, x, weights, h)?;
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
                    wgpu.fused_sparse(&mut encoder, &sizes, plan, pool, weight, None, x, h, weights, y)?;
                } else {
                    let base = base::Sizes { tokens, in_features, out_features, x_stride, y_stride };
                    wgpu.base(&mut encoder, &base, weight, None, x, y)?;
                    let accumulate = true;
                    let sizes =
                        expand::Sizes { tokens, top_k, out_features, h_stride, y_stride, output, accumulate };
                    wgpu.expand(&mut encoder, &sizes, &self.plan, pool, h, weights, y)?;
                }
            }
            Step::Delta | Step::OneToken => {
                let tokens = if step == Step::Delta { TOKENS } else { 1 };
                let rows = Rows { tokens, x_stride: WIDTH, y_stride: WIDTH };
                let routing = RoutingView::new(
                    View::new(&b.ids, 0, tokens * TOP_K)?,
                    View::new(&b.weights, 0, tokens * TOP_K)?,
                );
                let mut workspace = self.workspace.borrow_mut();
                self.layer.forward_delta(&mut encoder, &rows, x, routing, &mut workspace, y)?;
            }
        }
        wgpu.queue().submit([encoder.finish()]);
        Ok(wgpu.wait()?)
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
        let words = [TOKENS, TOP_K, EXPERTS, RANK, WIDTH, WIDTH].map(|v| (v as u32).to_le_bytes());
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
            (&self.expand, TOKENS * WIDTH)
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
