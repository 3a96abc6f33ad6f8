//! One dispatch: text, pipeline, bindings, parameters, grid.

use super::{Access, Pool, Tensor, View, Wgpu, padded_bytes, text};
use crate::element::Element;
use crate::error::{Error, Result};
use std::borrow::Cow;
use std::ops::Range;
use std::sync::Arc;

/// A compiled kernel.
#[derive(Debug, Clone)]
pub(super) struct Pipeline {
    pipeline: wgpu::ComputePipeline,
    layout: wgpu::BindGroupLayout,
    /// What it was compiled from.
    pub(super) text: Arc<str>,
}

/// One bound buffer.
#[derive(Clone)]
pub(crate) struct Binding<'a> {
    pub(super) name: &'static str,
    tensor: Tensor,
    pub(super) access: Access,
    pub(super) buffer: &'a wgpu::Buffer,
    /// Bytes of the buffer in use.
    pub(super) range: Range<u64>,
    /// Elements before them that the kernel counts all the same.
    skipped: usize,
    /// The pool whose buffer it is, where it is one's.
    pool: Option<&'a Pool>,
}

impl<'a> Binding<'a> {
    /// Elements, read.
    pub(crate) fn read<E: Element>(name: &'static str, view: View<'a, E>) -> Self {
        Self {
            name,
            tensor: Tensor::Elements(E::TYPE),
            access: Access::Read,
            buffer: view.buffer,
            range: view.bytes(),
            skipped: 0,
            pool: None,
        }
    }

    /// Elements, written.
    pub(crate) fn write<E: Element>(name: &'static str, view: View<'a, E>) -> Self {
        Self { access: Access::ReadWrite, ..Self::read(name, view) }
    }

    /// Ids, read or written.
    pub(crate) fn ids(name: &'static str, access: Access, view: View<'a, i32>) -> Self {
        Self {
            name,
            tensor: Tensor::Ids,
            access,
            buffer: view.buffer,
            range: view.bytes(),
            skipped: 0,
            pool: None,
        }
    }

    /// Words, read.
    pub(crate) fn words(name: &'static str, view: View<'a, u32>) -> Self {
        Self {
            name,
            tensor: Tensor::Words,
            access: Access::Read,
            buffer: view.buffer,
            range: view.bytes(),
            skipped: 0,
            pool: None,
        }
    }

    /// Rows of elements, read by fours where their places allow it.
    pub(crate) fn rows<E: Element>(name: &'static str, view: View<'a, E>, stride: usize) -> Self {
        let aligned = view.len > 0 && [view.first, view.len, stride].iter().all(|n| n.is_multiple_of(4));
        let tensor = if aligned { Tensor::Quads(E::TYPE) } else { Tensor::Elements(E::TYPE) };
        Self { tensor, ..Self::read(name, view) }
    }

    /// Elements, written; by fours where their rows' places allow it.
    pub(crate) fn rows_written<E: Element>(name: &'static str, view: View<'a, E>, stride: usize) -> Self {
        Self { access: Access::ReadWrite, ..Self::rows(name, view, stride) }
    }

    /// A pool's A, whose rows start at multiples of eight elements.
    pub(crate) fn pool_a(name: &'static str, pool: &'a Pool) -> Self {
        let tensor = Tensor::Quads(pool.slots().sizes().element);
        Self {
            name,
            tensor,
            access: Access::Read,
            buffer: pool.a(),
            range: 0..pool.a().size(),
            skipped: 0,
            pool: Some(pool),
        }
    }

    /// A pool's B, likewise.
    pub(crate) fn pool_b(name: &'static str, pool: &'a Pool) -> Self {
        let (buffer, before) = (pool.table_and_b(), pool.table_bytes() as u64);
        let tensor = Tensor::Quads(pool.slots().sizes().element);
        let range = before.min(buffer.size())..buffer.size();
        Self { name, tensor, access: Access::Read, buffer, range, skipped: 0, pool: Some(pool) }
    }

    /// A pool's table, as `slots`.
    pub(crate) fn slots(pool: &'a Pool) -> Self {
        let range = 0..pool.table_bytes() as u64;
        Self {
            range,
            pool: Some(pool),
            ..Self::table("slots", "array<Slot>", Access::Read, pool.table_and_b())
        }
    }

    /// A pool's table and B in one binding: for kernels that would bind too many buffers otherwise.
    pub(crate) fn slots_and_b(name: &'static str, pool: &'a Pool) -> Self {
        Self { tensor: Tensor::SlotsAndQuads(pool.slots().sizes().element), ..Self::pool_b(name, pool) }
    }

    /// All of a buffer as a table.
    pub(crate) fn table(
        name: &'static str,
        ty: &'static str,
        access: Access,
        buffer: &'a wgpu::Buffer,
    ) -> Self {
        Self {
            name,
            tensor: Tensor::Table(ty),
            access,
            buffer,
            range: 0..buffer.size(),
            skipped: 0,
            pool: None,
        }
    }

    /// The status word.
    pub(crate) fn status(wgpu: &'a Wgpu) -> Self {
        Self::table("status", "atomic<u32>", Access::ReadWrite, wgpu.status_buffer())
    }

    /// These elements alone, which the kernel counts as before.
    pub(super) fn cut(&self, elements: Range<usize>) -> Self {
        let bytes = self.element_bytes() as u64;
        let at = |element: usize| (self.range.start + element as u64 * bytes).min(self.range.end);
        Self { range: at(elements.start)..at(elements.end), skipped: elements.start, ..self.clone() }
    }

    /// Bytes of an element.
    pub(super) fn element_bytes(&self) -> usize {
        self.tensor.element_bytes().unwrap_or(4)
    }

    /// The bytes to bind: from the device's alignment on, whole words; of an empty view the buffer's first ones.
    pub(super) fn bound(&self, alignment: u64) -> Range<u64> {
        if let Tensor::SlotsAndQuads(_) = self.tensor {
            return 0..self.buffer.size();
        }
        if self.range.is_empty() {
            return 0..self.buffer.size().min(16);
        }
        self.range.start - self.lead(alignment)..self.range.end.next_multiple_of(4)
    }

    /// Bytes into the binding where the view begins, since bindings start at the device's alignment.
    fn lead(&self, alignment: u64) -> u64 {
        match self.tensor {
            Tensor::SlotsAndQuads(_) => self.range.start,
            _ => self.range.start % alignment,
        }
    }
}

/// A launch, complete but for the encoder.
pub(crate) struct Launch<'a> {
    /// The operation, for messages.
    pub(crate) op: &'static str,
    /// The kernel's entry point.
    pub(crate) entry: &'static str,
    /// Text behind the header and `common.wgsl`.
    pub(crate) body: &'a [&'static str],
    /// Compile-time sizes.
    pub(crate) constants: &'a [(&'static str, u32)],
    /// Run-time sizes. `groups`, and `NAME_first` for every binding NAME of elements, are added.
    pub(crate) params: &'a [(&'static str, u32)],
    /// In the order of their binding numbers.
    pub(crate) bindings: &'a [Binding<'a>],
    /// Workgroups.
    pub(crate) groups: u32,
}

/// Every workgroup in one dispatch; see [`Wgpu::dispatch`].
const WHOLE: [u32; 3] = [0, 1, 1];

/// The constant that kernels of cooperative matrices have, and no others.
pub(crate) const MATRIX_SIDE: &str = "SIDE";

const COMMON: &str = include_str!("../../../shaders/common.wgsl");

impl Wgpu {
    /// Records a dispatch into the caller's encoder.
    pub(crate) fn launch(&self, encoder: &mut wgpu::CommandEncoder, launch: &Launch) -> Result<()> {
        self.dispatch(encoder, launch, launch.groups, WHOLE)
    }

    /// Records `groups` of a launch's workgroups: of each row of blocks, those from the first of `blocks` on, so many, of so
    /// many.
    pub(super) fn dispatch(
        &self,
        encoder: &mut wgpu::CommandEncoder,
        launch: &Launch,
        groups: u32,
        blocks: [u32; 3],
    ) -> Result<()> {
        self.alive()?;
        if groups == 0 {
            return Ok(());
        }
        let alignment = u64::from(self.limits().min_storage_buffer_offset_alignment);
        let mut params: Vec<(Cow<'static, str>, u32)> =
            launch.params.iter().map(|&(n, v)| (n.into(), v)).collect();
        params.push(("groups".into(), launch.groups));
        for (name, value) in ["first_block", "part_blocks", "all_blocks"].into_iter().zip(blocks) {
            params.push((name.into(), value));
        }
        for binding in launch.bindings {
            if let Some(bytes) = binding.tensor.element_bytes() {
                let first = binding.lead(alignment) / bytes as u64;
                // Wraps below zero where elements are skipped; so do the kernel's sums with it.
                let first = (first as u32).wrapping_sub(binding.skipped as u32);
                params.push((format!("{}_first", binding.name).into(), first));
            }
        }
        self.check_bindings(launch, alignment)?;
        let pipeline = self.pipeline(launch, &params)?;
        let words: Vec<u32> = params.iter().map(|(_, value)| *value).collect();
        let uniform = self.uniform(&words);
        let mut entries: Vec<wgpu::BindGroupEntry> = Vec::with_capacity(launch.bindings.len() + 1);
        for (index, binding) in launch.bindings.iter().enumerate() {
            let Range { start: offset, end } = binding.bound(alignment);
            let size = std::num::NonZeroU64::new(end - offset);
            let buffer = wgpu::BufferBinding { buffer: binding.buffer, offset, size };
            entries.push(wgpu::BindGroupEntry {
                binding: index as u32,
                resource: wgpu::BindingResource::Buffer(buffer),
            });
        }
        let binding = launch.bindings.len() as u32;
        entries.push(wgpu::BindGroupEntry { binding, resource: uniform.as_entire_binding() });
        let descriptor = wgpu::BindGroupDescriptor {
            label: Some(launch.entry),
            layout: &pipeline.layout,
            entries: &entries,
        };
        let group = self.device().create_bind_group(&descriptor);
        let [x, y] = self.grid_of(launch.op, groups)?;
        self.trace_dispatch(launch, &pipeline.text, bytemuck::cast_slice(&words).to_vec(), [x, y])?;
        let descriptor = wgpu::ComputePassDescriptor { label: Some(launch.entry), timestamp_writes: None };
        let mut pass = encoder.begin_compute_pass(&descriptor);
        pass.set_pipeline(&pipeline.pipeline);
        pass.set_bind_group(0, &group, &[]);
        pass.dispatch_workgroups(x, y, 1);
        Ok(())
    }

    /// Two dimensions where one is not enough; kernels flatten them.
    fn grid_of(&self, op: &'static str, groups: u32) -> Result<[u32; 2]> {
        let most = self.limits().max_compute_workgroups_per_dimension;
        let (x, y) = if groups <= most { (groups, 1) } else { (most, groups.div_ceil(most)) };
        if y > most {
            let expected = format!("at most {most} * {most} workgroups");
            return Err(Error::argument(op, "tokens", expected, format!("{groups} workgroups")));
        }
        Ok([x, y])
    }

    /// What wgpu would refuse later, in our words and in time.
    fn check_bindings(&self, launch: &Launch, alignment: u64) -> Result<()> {
        let most = self.limits().max_storage_buffer_binding_size;
        for (i, binding) in launch.bindings.iter().enumerate() {
            binding.pool.map_or(Ok(()), |pool| pool.check_device(launch.op, self))?;
            if !binding.buffer.usage().contains(wgpu::BufferUsages::STORAGE) {
                let got = format!("{:?}", binding.buffer.usage());
                return Err(Error::argument(launch.op, binding.name, "a buffer with the usage STORAGE", got));
            }
            let bound = binding.bound(alignment);
            if bound.end > binding.buffer.size() {
                let expected = format!("a buffer of at least {} bytes", bound.end);
                return Err(Error::argument(launch.op, binding.name, expected, binding.buffer.size()));
            }
            let size = bound.end - bound.start;
            if size > most {
                let expected = format!("at most the device's binding limit of {most} bytes");
                return Err(Error::argument(launch.op, binding.name, expected, format!("{size} bytes")));
            }
            for other in &launch.bindings[i + 1..] {
                // WebGPU takes a buffer read only, or written in several places that do not overlap.
                let bound =
                    other.bound(alignment).start.max(bound.start)..other.bound(alignment).end.min(bound.end);
                let clash = match (binding.access, other.access) {
                    (Access::Read, Access::Read) => false,
                    (Access::ReadWrite, Access::ReadWrite) => bound.start < bound.end,
                    _ => true,
                };
                if clash && binding.buffer == other.buffer {
                    let expected = format!("another buffer than {}'s (one of them is written)", other.name);
                    return Err(Error::argument(launch.op, binding.name, expected, "the same buffer"));
                }
            }
        }
        Ok(())
    }

    /// Parameters in a buffer of their own: safe for any number of layers in one encoder.
    fn uniform(&self, words: &[u32]) -> wgpu::Buffer {
        let bytes = padded_bytes(words);
        let descriptor = wgpu::BufferDescriptor {
            label: Some("params"),
            size: (bytes.len() as u64).next_multiple_of(16),
            usage: wgpu::BufferUsages::UNIFORM | wgpu::BufferUsages::COPY_DST,
            mapped_at_creation: false,
        };
        let buffer = self.device().create_buffer(&descriptor);
        self.queue().write_buffer(&buffer, 0, &bytes);
        buffer
    }

    /// The kernel of this launch, compiled once per device.
    fn pipeline(&self, launch: &Launch, params: &[(Cow<'static, str>, u32)]) -> Result<Pipeline> {
        let halves = self.tuning().f16 && launch.bindings.iter().any(|b| b.tensor.loads_halves(b.access));
        let key = launch.key([halves, self.tuning().sums_in_subgroups()]);
        let mut pipelines = self.shared.pipelines.lock().unwrap_or_else(|p| p.into_inner());
        if let Some(found) = pipelines.get(&key) {
            return Ok(found.clone());
        }
        let scope = self.device().push_error_scope(wgpu::ErrorFilter::Validation);
        let made = self.compile(launch, launch.text(params, halves));
        if let Some(error) = pollster::block_on(scope.pop()) {
            return Err(self.failed(format!("{}: kernel refused: {error}", launch.entry)));
        }
        pipelines.insert(key, made.clone());
        Ok(made)
    }

    fn compile(&self, launch: &Launch, text: String) -> Pipeline {
        let device = self.device();
        let text: Arc<str> = text.into();
        let source = wgpu::ShaderSource::Wgsl(text.as_ref().into());
        let module =
            device.create_shader_module(wgpu::ShaderModuleDescriptor { label: Some(launch.op), source });
        let entry = |binding: usize, ty: wgpu::BufferBindingType| wgpu::BindGroupLayoutEntry {
            binding: binding as u32,
            visibility: wgpu::ShaderStages::COMPUTE,
            ty: wgpu::BindingType::Buffer { ty, has_dynamic_offset: false, min_binding_size: None },
            count: None,
        };
        let mut entries: Vec<wgpu::BindGroupLayoutEntry> = Vec::new();
        for (i, b) in launch.bindings.iter().enumerate() {
            entries.push(entry(i, wgpu::BufferBindingType::Storage { read_only: b.access == Access::Read }));
        }
        entries.push(entry(launch.bindings.len(), wgpu::BufferBindingType::Uniform));
        let descriptor = wgpu::BindGroupLayoutDescriptor { label: Some(launch.entry), entries: &entries };
        let layout = device.create_bind_group_layout(&descriptor);
        let pipeline_layout = device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
            label: Some(launch.entry),
            bind_group_layouts: &[Some(&layout)],
            immediate_size: 0,
        });
        let cache = self.cache().pipelines.clone();
        let pipeline = device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label: Some(launch.entry),
            layout: Some(&pipeline_layout),
            module: &module,
            entry_point: Some(launch.entry),
            // Every kernel writes its workgroup memory before it reads it.
            compilation_options: wgpu::PipelineCompilationOptions {
                constants: &[],
                zero_initialize_workgroup_memory: false,
            },
            cache: cache.as_ref(),
        });
        Pipeline { pipeline, layout, text }
    }
}

impl Launch<'_> {
    /// What tells its text from those of all other launches: an entry point has one body and one list of parameters
    /// for the same constants, tensors and ways to read f16 and to add over a workgroup.
    fn key(&self, ways: [bool; 2]) -> String {
        let tensors: Vec<(&str, Tensor)> = self.bindings.iter().map(|b| (b.name, b.tensor)).collect();
        format!("{} {:?} {tensors:?} {ways:?}", self.entry, self.constants)
    }

    /// The whole text that is compiled.
    fn text(&self, params: &[(Cow<'static, str>, u32)], halves: bool) -> String {
        let mut text = String::from(if halves { "enable f16;\n" } else { "" });
        if self.constants.iter().any(|(name, _)| *name == MATRIX_SIDE) {
            text.push_str("enable wgpu_cooperative_matrix;\n");
        }
        text::declare_constants(&mut text, &super::Status::CONSTANTS);
        text::declare_constants(&mut text, self.constants);
        for (index, b) in self.bindings.iter().enumerate() {
            text::declare(&mut text, index, b.name, (b.tensor, b.access, halves));
        }
        text::declare_params(&mut text, self.bindings.len(), params);
        text.push_str(COMMON);
        self.body.iter().for_each(|part| text.push_str(part));
        text
    }
}
