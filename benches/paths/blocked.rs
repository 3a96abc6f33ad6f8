//! The products by kernels of 4 x 4 sums a thread without workgroup memory: a baseline for the library's own.

use super::{Buffers, EXPERTS, Failure, RANK, TOKENS, TOP_K, width};
use molora::Wgpu;

/// The products that are measured.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Product {
    Shrink,
    Expand,
    Base,
    /// Base and experts.
    Fused,
    /// Every route's expert's own weight and, from h, its LoRA.
    Grouped,
}

impl Product {
    pub(super) const ALL: [Self; 5] = [Self::Shrink, Self::Expand, Self::Base, Self::Fused, Self::Grouped];

    /// Floating-point operations, two a product.
    pub(super) fn operations(self) -> f64 {
        let (routes, lora) = (TOKENS * TOP_K, RANK * width());
        let products = match self {
            Self::Shrink | Self::Expand => routes * lora,
            Self::Base => TOKENS * width() * width(),
            Self::Fused => TOKENS * width() * width() + 2 * routes * lora,
            Self::Grouped => routes * (width() * width() + lora),
        };
        2.0 * products as f64
    }
}

pub(super) struct Blocked {
    product: wgpu::ComputePipeline,
    extend: wgpu::ComputePipeline,
    base: Pass,
    shrink: Pass,
    /// One for each slot of a token, so that no two threads add to one place.
    expand: Vec<Pass>,
    grouped: Pass,
    grouped_lora: Pass,
}

/// What a dispatch binds, and its workgroups.
struct Pass {
    group: wgpu::BindGroup,
    grid: [u32; 2],
}

/// Sizes of a dispatch, as `blocked.wgsl` names them.
struct Params {
    columns: usize,
    inner: usize,
    routes_a_row: usize,
    y_routes_a_row: usize,
}

impl Blocked {
    /// `ids` hold whole groups of four routes of each expert, in each slot.
    pub(super) fn new(wgpu: &Wgpu, b: &Buffers, ids: &[i32]) -> Result<Self, Failure> {
        let device = wgpu.device();
        let source = wgpu::ShaderSource::Wgsl(include_str!("blocked.wgsl").into());
        let module =
            device.create_shader_module(wgpu::ShaderModuleDescriptor { label: Some("blocked"), source });
        let entry = |binding: u32, ty| wgpu::BindGroupLayoutEntry {
            binding,
            visibility: wgpu::ShaderStages::COMPUTE,
            ty: wgpu::BindingType::Buffer { ty, has_dynamic_offset: false, min_binding_size: None },
            count: None,
        };
        let storage = |binding| entry(binding, wgpu::BufferBindingType::Storage { read_only: binding < 4 });
        let mut entries: Vec<_> = (0..5).map(storage).collect();
        entries.push(entry(5, wgpu::BufferBindingType::Uniform));
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
        let pass = |groups: &[[u32; 8]], x, w, weights, y, params: Params| -> Result<Pass, Failure> {
            let Params { columns, inner, routes_a_row, y_routes_a_row } = params;
            let words = [columns, inner, routes_a_row, groups.len(), y_routes_a_row, RANK, 0, 0];
            let params = device.create_buffer(&wgpu::BufferDescriptor {
                label: None,
                size: 32,
                usage: wgpu::BufferUsages::UNIFORM | wgpu::BufferUsages::COPY_DST,
                mapped_at_creation: false,
            });
            wgpu.queue().write_buffer(&params, 0, words.map(|v| (v as u32).to_le_bytes()).as_flattened());
            let groups_buffer = wgpu.upload(groups.as_flattened())?;
            let bound: [&wgpu::Buffer; 6] = [&groups_buffer, x, w, weights, y, &params];
            let entries: Vec<_> = (0..)
                .zip(bound)
                .map(|(binding, buffer)| wgpu::BindGroupEntry {
                    binding,
                    resource: buffer.as_entire_binding(),
                })
                .collect();
            let descriptor = wgpu::BindGroupDescriptor { label: None, layout: &layout, entries: &entries };
            let grid = [(columns / 4).div_ceil(8) as u32, groups.len().div_ceil(8) as u32];
            Ok(Pass { group: device.create_bind_group(&descriptor), grid })
        };
        let tokens: Vec<[u32; 8]> =
            (0..TOKENS as u32).step_by(4).map(|t| [t, t + 1, t + 2, t + 3, 0, 0, 0, 0]).collect();
        let routes = groups(ids, |_| true)?;
        let w = width();
        let wide = |y_routes_a_row| Params { columns: w, inner: w, routes_a_row: 1, y_routes_a_row };
        let shrink = Params { columns: RANK, inner: w, routes_a_row: TOP_K, y_routes_a_row: 1 };
        let by_route = Params { routes_a_row: TOP_K, ..wide(1) };
        let slots: Vec<Vec<[u32; 8]>> =
            (0..TOP_K).map(|s| groups(ids, |n| n % TOP_K == s)).collect::<Result<_, _>>()?;
        Ok(Self {
            product: pipeline("product"),
            extend: pipeline("extend"),
            base: pass(&tokens, &b.x, &b.weight, &b.weights, &b.y, wide(1))?,
            shrink: pass(&routes, &b.x, &b.a, &b.weights, &b.h, shrink)?,
            expand: slots
                .iter()
                .map(|slot| pass(slot, &b.h, &b.b_turned, &b.weights, &b.y, wide(TOP_K)))
                .collect::<Result<_, _>>()?,
            grouped: pass(&routes, &b.x, &b.expert_weights, &b.weights, &b.rows, by_route)?,
            grouped_lora: pass(&routes, &b.h, &b.b_turned, &b.ones, &b.rows, wide(1))?,
        })
    }

    /// So many times in one submission.
    pub(super) fn repeat(&self, wgpu: &Wgpu, product: Product, times: usize) -> Result<(), Failure> {
        let (multiply, extend) = (&self.product, &self.extend);
        let expand = self.expand.iter().map(|pass| (extend, pass));
        let passes: Vec<_> = match product {
            Product::Base => vec![(multiply, &self.base)],
            Product::Shrink => vec![(multiply, &self.shrink)],
            Product::Expand => expand.collect(),
            Product::Fused => {
                [(multiply, &self.base), (multiply, &self.shrink)].into_iter().chain(expand).collect()
            }
            Product::Grouped => vec![(multiply, &self.grouped), (extend, &self.grouped_lora)],
        };
        let mut encoder = wgpu.encoder();
        for (pipeline, Pass { group, grid: [x, y] }) in passes.iter().cycle().take(times * passes.len()) {
            let mut pass = encoder.begin_compute_pass(&Default::default());
            pass.set_pipeline(pipeline);
            pass.set_bind_group(0, group, &[]);
            pass.dispatch_workgroups(*x, *y, 1);
        }
        wgpu.queue().submit([encoder.finish()]);
        Ok(wgpu.wait()?)
    }
}

/// Fours of routes of one expert, then that expert.
fn groups(ids: &[i32], asked: impl Fn(usize) -> bool) -> Result<Vec<[u32; 8]>, Failure> {
    let mut all = Vec::new();
    for e in 0..EXPERTS {
        let routes: Vec<u32> =
            (0..ids.len()).filter(|&n| asked(n) && ids[n] == e as i32).map(|n| n as u32).collect();
        let (fours, rest) = routes.as_chunks::<4>();
        if !rest.is_empty() {
            return Err("the baseline wants whole fours of routes".into());
        }
        all.extend(fours.iter().map(|n| [n[0], n[1], n[2], n[3], e as u32, 0, 0, 0]));
    }
    Ok(all)
}
