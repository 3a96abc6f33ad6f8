//! The inner half, under a stand-in: compiles pipelines and prints a line of JSON before and after each. A compiler that
//! ends the process has thus named the pipeline that did it.

use crate::figures::Figures;
use crate::gpu::Gpu;
use crate::{hook, list};
use anyhow::{Context, Result, ensure};
use pollster::block_on;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// A line of the inner half.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Line {
    /// The compiler gets this pipeline.
    Begin(String),
    /// It is done.
    Measured(String, Figures),
    /// All are done, by this driver.
    Done(String),
}

/// What is compiled.
#[derive(Debug, Clone, Default)]
pub struct What {
    /// Every variant instead of the table's list.
    pub all: bool,
    /// These texts instead.
    pub wgsl: Vec<PathBuf>,
    /// Names that are left out.
    pub left_out: Vec<String>,
    /// A name whose compiler ends the process, as real ones do: for the gate's own test.
    pub end: Option<String>,
    /// Where the drivers' texts are written.
    pub texts: Option<PathBuf>,
}

/// Compiles on the only adapter that is there, which must be this GPU.
pub fn run(gpu: &Gpu, what: &What) -> Result<()> {
    let end = what.end.clone();
    let announce = move |name: &str| {
        line(&Line::Begin(name.into()));
        if end.as_deref() == Some(name) {
            std::process::abort();
        }
    };
    hook::on_pipeline(Box::new(announce), what.left_out.clone());
    let instance = hook::instance()?;
    let adapters = block_on(instance.enumerate_adapters(wgpu::Backends::VULKAN));
    let names: Vec<String> = adapters.iter().map(|a| format!("{:?}", a.get_info())).collect();
    let adapter = adapters.first().with_context(|| format!("{}: no adapter", gpu.name))?;
    let info = adapter.get_info();
    ensure!(
        adapters.len() == 1 && info.name.contains(gpu.adapter) && info.driver.contains(gpu.driver),
        "{}: expected one adapter, a {} by {}, found {names:?}",
        gpu.name,
        gpu.adapter,
        gpu.driver
    );
    let mut after = || {
        for pipeline in hook::take() {
            let figures = pipeline.figures(&info.driver)?;
            line(&Line::Measured(pipeline.name.clone(), figures));
            for (kind, text) in what.texts.iter().flat_map(|_| &pipeline.texts) {
                let file = format!("{}.{kind}.txt", pipeline.name).replace(['/', ' '], "_");
                let folder = what.texts.as_ref().context("a folder")?.join(gpu.name);
                std::fs::create_dir_all(&folder)?;
                std::fs::write(folder.join(file), text)?;
            }
        }
        Ok(())
    };
    if what.wgsl.is_empty() {
        let wgpu = molora::Wgpu::open(adapter)?;
        if what.all {
            list::all(&wgpu, &mut after)?
        } else {
            list::record(&wgpu, &mut after)?
        }
        hook::clear_case();
        // Those that have no matrices say so; the table holds who has them.
        if let Ok(wgpu) = molora::Wgpu::open_with_matrices(adapter) {
            list::matrices(&wgpu, &mut after)?;
        }
    } else {
        texts(adapter, &what.wgsl)?;
        after()?;
    }
    line(&Line::Done(format!("{} {}", info.driver, info.driver_info)));
    Ok(())
}

/// Pipelines of texts that are not the library's, with every feature that the adapter has.
fn texts(adapter: &wgpu::Adapter, files: &[PathBuf]) -> Result<()> {
    let features = wgpu::Features::SUBGROUP
        | wgpu::Features::SHADER_F16
        | wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX;
    let descriptor = wgpu::DeviceDescriptor {
        required_features: adapter.features() & features,
        required_limits: adapter.limits(),
        // SAFETY: nothing runs on this device.
        experimental_features: unsafe { wgpu::ExperimentalFeatures::enabled() },
        ..Default::default()
    };
    let (device, _queue) = block_on(adapter.request_device(&descriptor))?;
    for file in files {
        let text = std::fs::read_to_string(file).with_context(|| file.display().to_string())?;
        let source = wgpu::ShaderSource::Wgsl(text.into());
        hook::set_case(&file.file_stem().unwrap_or_default().to_string_lossy());
        let scope = device.push_error_scope(wgpu::ErrorFilter::Validation);
        let module = device.create_shader_module(wgpu::ShaderModuleDescriptor { label: None, source });
        let compilation_options =
            wgpu::PipelineCompilationOptions { constants: &[], zero_initialize_workgroup_memory: false };
        let _ = device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label: None,
            layout: None,
            module: &module,
            entry_point: None,
            compilation_options,
            cache: None,
        });
        if let Some(error) = block_on(scope.pop()) {
            anyhow::bail!("{}: {error}", file.display());
        }
    }
    Ok(())
}

fn line(line: &Line) {
    println!("{}", serde_json::to_string(line).unwrap_or_default());
}
