//! A WebGPU device's ceilings by small shaders: chains of multiply-adds in registers, in f32 and, where the device has it,
//! in f16; and a read of buffers far beyond any cache.
//!
//! bf16 is widened by shifts, so its multiply-adds are those of f32.

use super::{Best, Meter};
use crate::machine;
use crate::subject::wgpu_clock::WgpuClock;
use molora::device::Wgpu;
use molora::error::{Error, Result};
use std::fmt::Write;
use std::rc::Rc;
use std::time::Duration;
use wgpu::{Buffer, CommandEncoder, ComputePipeline};

/// Chains of an invocation, each as many multiply-adds a step.
const CHAINS: u32 = 8;
const A_STEP: u32 = 16;
/// Workgroups, and invocations of one: enough for the largest device, not too many for the smallest.
const GROUPS: u32 = 2048;
const INVOCATIONS: u32 = 128;
/// A measurement that takes as long is long enough.
const LONG: Duration = Duration::from_millis(10);
/// Bytes of all buffers that are read, on a GPU and on a software driver.
const BYTES: [u64; 2] = [1 << 30, 512 << 20];

/// Measures again and again; shaders are compiled and memory is taken once.
pub struct WgpuMeter {
    wgpu: Wgpu,
    clock: Rc<WgpuClock>,
    chains: Vec<Chains>,
    read: ComputePipeline,
    memory: Vec<Buffer>,
    /// Passes over a buffer that take long enough.
    passes: u32,
    rounds: usize,
    best: Best,
}

/// One shader of multiply-adds.
struct Chains {
    wgpu: Wgpu,
    clock: Rc<WgpuClock>,
    pipeline: ComputePipeline,
    /// Operations of one invocation's step.
    flops: f64,
    half: bool,
    steps: u32,
}

/// `steps` steps of `A_STEP` multiply-adds in each of `CHAINS` chains. What is never true keeps the sums alive.
fn chains_text(element: &str, fused: bool) -> String {
    let mut text = String::new();
    if element.contains("f16") {
        text += "enable f16;\n";
    }
    let scalar = if element.contains("f16") { "f16" } else { "f32" };
    let _ = write!(
        text,
        "alias Elem = {element};
@group(0) @binding(0) var<storage, read> params: array<u32>;
@group(0) @binding(1) var<storage, read_write> sums: array<f32>;
@compute @workgroup_size({INVOCATIONS})
fn main(@builtin(global_invocation_id) id: vec3<u32>) {{
    let a = Elem({scalar}(bitcast<f32>(params[1])));
    let b = Elem({scalar}(bitcast<f32>(params[2])));
"
    );
    for chain in 0..CHAINS {
        let _ = writeln!(text, "    var s{chain} = Elem({scalar}(id.x % 7u + {chain}u));");
    }
    text += "    for (var i = 0u; i < params[0]; i++) {\n";
    for _ in 0..A_STEP {
        for chain in 0..CHAINS {
            let _ = match fused {
                true => writeln!(text, "        s{chain} = fma(s{chain}, a, b);"),
                false => writeln!(text, "        s{chain} = s{chain} * a + b;"),
            };
        }
    }
    let sum: Vec<String> = (0..CHAINS).map(|chain| format!("s{chain}")).collect();
    let last = if element.starts_with("vec") { "f32(sum.x) + f32(sum.y)" } else { "f32(sum)" };
    let _ = write!(
        text,
        "    }}
    let sum = {};
    let last = {last};
    if (last == bitcast<f32>(params[3])) {{
        sums[0] = last;
    }}
}}
",
        sum.join(" + ")
    );
    text
}

/// Every invocation reads `params[0]` times four quads, `params[2]` apart, from `params[1]` times its workgroup on.
fn read_text() -> String {
    let mut text = format!(
        "@group(0) @binding(0) var<storage, read> params: array<u32>;
@group(0) @binding(1) var<storage, read_write> sums: array<f32>;
@group(0) @binding(2) var<storage, read> memory: array<vec4<f32>>;
@compute @workgroup_size({INVOCATIONS})
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {{
    var at = group.x * params[1] + lane;
    let step = params[2];
    var s0 = vec4<f32>();
    var s1 = vec4<f32>();
    var s2 = vec4<f32>();
    var s3 = vec4<f32>();
    for (var i = 0u; i < params[0]; i++) {{
"
    );
    for part in 0..4 {
        let _ = writeln!(text, "        s{part} += memory[at + {part}u * step];");
    }
    text += "        at += 4u * step;
    }
    let sum = s0 + s1 + s2 + s3;
    if (sum.x + sum.y + sum.z + sum.w == bitcast<f32>(params[3])) {
        sums[0] = sum.x;
    }
}
";
    text
}

fn compile(wgpu: &Wgpu, text: String) -> Result<ComputePipeline> {
    let (device, label) = (wgpu.device(), Some("ceiling"));
    let source = wgpu::ShaderSource::Wgsl(text.into());
    let module = device.create_shader_module(wgpu::ShaderModuleDescriptor { label, source });
    let pipeline = device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
        label,
        layout: None,
        module: &module,
        entry_point: Some("main"),
        compilation_options: wgpu::PipelineCompilationOptions::default(),
        cache: None,
    });
    wgpu.wait()?;
    Ok(pipeline)
}

/// Records a dispatch of all workgroups; the parameters are in a buffer of their own.
fn dispatch(
    wgpu: &Wgpu,
    encoder: &mut CommandEncoder,
    pipeline: &ComputePipeline,
    params: [u32; 4],
    memory: Option<&Buffer>,
) -> Result<()> {
    let buffers = [wgpu.upload(&params)?, wgpu.upload(&[0f32; 4])?];
    let buffers = buffers.iter().chain(memory).enumerate();
    let entries: Vec<_> = buffers
        .map(|(binding, buffer)| wgpu::BindGroupEntry {
            binding: binding as u32,
            resource: buffer.as_entire_binding(),
        })
        .collect();
    let (label, layout) = (Some("ceiling"), &pipeline.get_bind_group_layout(0));
    let descriptor = wgpu::BindGroupDescriptor { label, layout, entries: &entries };
    let group = wgpu.device().create_bind_group(&descriptor);
    let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor { label, timestamp_writes: None });
    pass.set_pipeline(pipeline);
    pass.set_bind_group(0, &group, &[]);
    pass.dispatch_workgroups(GROUPS, 1, 1);
    Ok(())
}

/// No sum is this one: a chain with factor and addend a half ends near 1.
const NEVER: f32 = -12345.678;

impl Chains {
    fn new(wgpu: &Wgpu, clock: &Rc<WgpuClock>, element: &str, fused: bool) -> Result<Self> {
        let clock = clock.clone();
        let pipeline = compile(wgpu, chains_text(element, fused))?;
        let lanes = if element.starts_with("vec2") { 2 } else { 1 };
        let flops = f64::from(2 * CHAINS * A_STEP * lanes);
        Ok(Self { wgpu: wgpu.clone(), clock, pipeline, flops, half: element.contains("f16"), steps: 1 })
    }

    fn record(&self, encoder: &mut CommandEncoder) -> Result<()> {
        let half = 0.5f32.to_bits();
        dispatch(&self.wgpu, encoder, &self.pipeline, [self.steps, half, half, NEVER.to_bits()], None)
    }

    /// Operations a second. As many steps as take long enough, in this round or the next.
    fn rate(&mut self) -> Result<f64> {
        loop {
            let time = self.clock.time(&self.wgpu, |encoder| self.record(encoder))?;
            if time >= LONG || self.steps >= 1 << 20 {
                let steps = f64::from(self.steps) * f64::from(GROUPS * INVOCATIONS);
                return Ok(self.flops * steps / time.as_secs_f64());
            }
            self.steps *= if time * 8 < LONG { 8 } else { 2 };
        }
    }
}

impl WgpuMeter {
    /// A meter of this device; f16 where the adapter has it, on a device of its own where this one does not ask for it.
    pub(crate) fn new(wgpu: &Wgpu) -> Result<Self> {
        let clock = Rc::new(tried_clock(wgpu)?);
        let mut chains =
            vec![Chains::new(wgpu, &clock, "f32", true)?, Chains::new(wgpu, &clock, "f32", false)?];
        if let Some(half) = with_f16(wgpu)? {
            // Timestamps belong to a device.
            let clock = Rc::new(tried_clock(&half)?);
            chains.push(Chains::new(&half, &clock, "vec2<f16>", true)?);
            chains.push(Chains::new(&half, &clock, "vec2<f16>", false)?);
        }
        let limits = wgpu.limits();
        let software = wgpu.info().device_type == wgpu::DeviceType::Cpu;
        let all = BYTES[usize::from(software)].min(if software {
            machine::memory_available() / 4
        } else {
            u64::MAX
        });
        let most = limits.max_storage_buffer_binding_size.min(limits.max_buffer_size).min(all);
        // Whole passes of all invocations.
        let unit = u64::from(GROUPS * INVOCATIONS) * 64;
        let bytes = (most / unit).max(1) * unit;
        let memory = (0..(all / bytes).clamp(1, 4)).map(|_| buffer(wgpu, bytes)).collect::<Result<_>>()?;
        let read = compile(wgpu, read_text())?;
        Ok(Self {
            wgpu: wgpu.clone(),
            clock,
            chains,
            read,
            memory,
            passes: 1,
            rounds: 0,
            best: Best::default(),
        })
    }

    /// Bytes a second; `apart`: every workgroup reads a part of its own, else all walk side by side.
    fn read(&mut self, apart: bool) -> Result<f64> {
        let memory = &self.memory[self.rounds % self.memory.len()];
        let times = (memory.size() / 64 / u64::from(GROUPS * INVOCATIONS)) as u32;
        let [first, step] = match apart {
            true => [INVOCATIONS * times * 4, INVOCATIONS],
            false => [INVOCATIONS, GROUPS * INVOCATIONS],
        };
        let params = [times, first, step, NEVER.to_bits()];
        loop {
            let time = self.clock.time(&self.wgpu, |encoder| {
                (0..self.passes)
                    .try_for_each(|_| dispatch(&self.wgpu, encoder, &self.read, params, Some(memory)))
            })?;
            if time >= LONG || self.passes >= 64 {
                return Ok(memory.size() as f64 * f64::from(self.passes) / time.as_secs_f64());
            }
            self.passes *= 2;
        }
    }
}

impl Meter for WgpuMeter {
    fn round(&mut self) -> Result<()> {
        let (mut full, mut half) = (0f64, 0f64);
        for chains in &mut self.chains {
            let rate = chains.rate()?;
            let best = if chains.half { &mut half } else { &mut full };
            *best = best.max(rate);
        }
        let bytes = self.read(false)?.max(self.read(true)?);
        self.rounds += 1;
        // f16 can always be widened.
        self.best = self.best.better(Best { flops: [full, half.max(full), full], bytes });
        Ok(())
    }

    fn best(&self) -> Best {
        self.best
    }
}

/// A clock that was tried on work of some milliseconds.
pub(crate) fn tried_clock(wgpu: &Wgpu) -> Result<WgpuClock> {
    let mut chains = Chains::new(wgpu, &Rc::new(WgpuClock::wall()), "f32", true)?;
    chains.rate()?;
    WgpuClock::new(wgpu, |encoder| chains.record(encoder))
}

/// A buffer for reading, written once by the device itself, which fills new buffers with zeros.
fn buffer(wgpu: &Wgpu, size: u64) -> Result<Buffer> {
    let usage = wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_DST;
    let descriptor =
        wgpu::BufferDescriptor { label: Some("ceiling"), size, usage, mapped_at_creation: false };
    let buffer = wgpu.device().create_buffer(&descriptor);
    let mut encoder = wgpu.encoder();
    encoder.clear_buffer(&buffer, 0, None);
    wgpu.queue().submit([encoder.finish()]);
    wgpu.wait()?;
    Ok(buffer)
}

/// A device with f16 on the same adapter.
fn with_f16(wgpu: &Wgpu) -> Result<Option<Wgpu>> {
    let wanted = wgpu::Features::SHADER_F16;
    if wgpu.device().features().contains(wanted) {
        return Ok(Some(wgpu.clone()));
    }
    let same = |adapter: &wgpu::Adapter| adapter.get_info() == *wgpu.info();
    let adapter =
        Wgpu::adapters().into_iter().find(|adapter| same(adapter) && adapter.features().contains(wanted));
    let Some(adapter) = adapter else { return Ok(None) };
    let descriptor = wgpu::DeviceDescriptor {
        label: Some("ceiling"),
        required_features: wanted | (adapter.features() & wgpu::Features::TIMESTAMP_QUERY),
        required_limits: adapter.limits(),
        ..Default::default()
    };
    let lost = |e: wgpu::RequestDeviceError| Error::Device {
        device: format!("wgpu {}", wgpu.info().name),
        reason: format!("with f16: {e}"),
    };
    let (device, queue) = pollster::block_on(adapter.request_device(&descriptor)).map_err(lost)?;
    Ok(Some(Wgpu::from_device(wgpu.info().clone(), device, queue)))
}
