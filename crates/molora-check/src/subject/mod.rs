//! A subject is a device with host memory in and out: what the tests, `verify` and the benches run cases on.

mod copies;
mod cpu;
mod cpu_group;
#[cfg(feature = "cuda")]
mod cuda;
#[cfg(feature = "cuda")]
pub(crate) mod cuda_clock;
#[cfg(feature = "cuda")]
mod cuda_group;
#[cfg(feature = "wgpu")]
mod wgpu;
#[cfg(feature = "wgpu")]
pub(crate) mod wgpu_clock;
#[cfg(feature = "wgpu")]
mod wgpu_group;

use crate::Inputs;
use crate::case::{Case, Op};
use crate::ceilings::Meter;
use crate::guarded::{Guarded, Tensor};
use molora::error::Result;
use molora::ops::fused::{Form, cost};
use std::time::Duration;

pub(crate) use copies::copies_of;
pub use cpu::CpuSubject;
#[cfg(feature = "cuda")]
pub use cuda::CudaSubject;
#[cfg(feature = "wgpu")]
pub use wgpu::WgpuSubject;

/// The arrays of a plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlanArrays {
    /// Live routes grouped by expert.
    pub sorted_routes: Vec<u32>,
    /// Where each expert's routes begin.
    pub expert_offsets: Vec<u32>,
}

/// Runs the case's operation so many times, everything in the device's memory, and returns the time they took.
pub type Timer<'a> = Box<dyn FnMut(u64) -> Result<Duration> + 'a>;

/// One device. Every method runs one operation on a case's inputs; outputs hold what they start as.
pub trait Subject: Send + Sync {
    /// `cpu`, `cuda` or `wgpu`: the device in case strings.
    fn kind(&self) -> &'static str;

    /// Which one, for people: `cpu: AVX2+FMA, 8 threads`.
    fn name(&self) -> String;

    /// The handle of a WebGPU device.
    #[cfg(feature = "wgpu")]
    fn wgpu(&self) -> Option<&molora::Wgpu> {
        None
    }

    /// Limits and features, name and value.
    fn details(&self) -> Vec<(String, String)>;

    /// The same device with one form for every batch size, so that a token's bits never depend on its batch.
    fn batch_invariant(&self) -> Box<dyn Subject>;

    /// The relative error by which the device may round h on its way into expand; 0 where h stays f32.
    fn h_rounding(&self, _case: &Case) -> f64 {
        0.0
    }

    /// What the cost model knows of the device.
    fn limits(&self, problem: &cost::Problem) -> cost::Limits;

    /// The form in which the device runs a layer's case, or why not in the demanded one.
    fn form(&self, case: &Case) -> Result<Form> {
        let problem = case.problem();
        Ok(cost::choose(&problem, &self.limits(&problem), case.form)?.form)
    }

    /// Whether times on this device mean nothing: a machine that executes and counts.
    fn is_stand_in(&self) -> bool {
        false
    }

    /// What a machine that counts has counted since it was last asked, as JSON; waits for its work.
    fn take_counters(&self) -> Result<Option<String>> {
        Ok(None)
    }

    /// Why the device cannot run a case; `None` where it can.
    fn unsupported(&self, case: &Case) -> Option<String>;

    /// Scores, selection, weights.
    fn route(
        &self,
        inputs: &Inputs,
        topk_ids: &mut Guarded<i32>,
        topk_weights: &mut Guarded<f32>,
    ) -> Result<()>;

    /// The sorted routes.
    fn plan(&self, inputs: &Inputs) -> Result<PlanArrays>;

    /// x to h.
    fn shrink(&self, inputs: &Inputs, h: &mut Guarded<f32>) -> Result<()>;

    /// x and h to weights.
    fn attend(&self, inputs: &Inputs, topk_weights: &mut Guarded<f32>) -> Result<()>;

    /// h to y.
    fn expand(&self, inputs: &Inputs, y: &mut Tensor) -> Result<()>;

    /// The frozen product.
    fn base(&self, inputs: &Inputs, y: &mut Tensor) -> Result<()>;

    /// The layer's experts alone, added to y.
    fn delta(&self, inputs: &Inputs, y: &mut Tensor) -> Result<()>;

    /// Base product and experts.
    fn layer(&self, inputs: &Inputs, y: &mut Tensor) -> Result<()>;

    /// Base product and experts in the case's form.
    fn fused(&self, inputs: &Inputs, y: &mut Tensor) -> Result<()>;

    /// Base experts with their adapters: plans, shrink and the grouped product.
    fn grouped(&self, inputs: &Inputs, y: &mut Tensor) -> Result<()>;

    /// What measures the device's ceilings; none of a stand-in.
    fn meter(&self) -> Result<Option<Box<dyn Meter + '_>>>;

    /// What a timer's times are read from: `wall`, `timestamps` or `events`.
    fn clock(&self) -> Result<&'static str>;

    /// A case made ready for timing: weights, routers and adapters lie in memory several times, together beyond any cache,
    /// and a call takes the next of them.
    fn timer<'a>(&'a self, inputs: &'a Inputs) -> Result<Timer<'a>>;
}

/// Why a layer's form is not offered for a case, where it is not.
fn refused_form(subject: &dyn Subject, case: &Case) -> Option<String> {
    let layer = matches!(case.op, Op::Layer | Op::Fused);
    let why = layer.then(|| subject.form(case).err()).flatten()?.to_string();
    // Every form has its reason there; a demanded one's own is enough.
    let form = case.form.map_or(String::new(), |form| format!("{}: ", form.name()));
    let own = why.rfind(&form).map(|at| why[at..].split(';').next().unwrap_or_default().to_string());
    Some(own.filter(|own| !form.is_empty() && !own.is_empty()).unwrap_or(why))
}

/// Every device of this machine, and why others are missing.
pub struct Found {
    /// Those that run.
    pub subjects: Vec<Box<dyn Subject>>,
    /// Those that do not, with the reason.
    pub missing: Vec<String>,
}

/// Looks for every device.
pub fn find() -> Found {
    let mut found = Found { subjects: Vec::new(), missing: Vec::new() };
    match CpuSubject::new() {
        Ok(cpu) => found.subjects.push(Box::new(cpu)),
        Err(e) => found.missing.push(e.to_string()),
    }
    #[cfg(feature = "cuda")]
    cuda::find(&mut found);
    if !cfg!(feature = "cuda") {
        found.missing.push("cuda: built without the feature `cuda`".into());
    }
    #[cfg(feature = "wgpu")]
    wgpu::find(&mut found);
    if !cfg!(feature = "wgpu") {
        found.missing.push("wgpu: built without the feature `wgpu`".into());
    }
    found
}

/// Every device of this machine, or the reason why one that `MOLORA_REQUIRE` names is not there.
///
/// `MOLORA_REQUIRE=cpu,lavapipe` is a list of parts of names, see [`matches()`]; `MOLORA_DEVICE=cpu` is a part of a
/// name that leaves out all others.
pub fn subjects() -> std::result::Result<Vec<Box<dyn Subject>>, String> {
    let Found { mut subjects, missing } = find();
    let names: Vec<String> = subjects.iter().map(|s| s.name()).collect();
    for required in list("MOLORA_REQUIRE") {
        if !names.iter().any(|name| matches(&required, name)) {
            return Err(format!(
                "MOLORA_REQUIRE names {required:?}, which is not there; found: {}; missing: {}",
                names.join("; "),
                missing.join("; ")
            ));
        }
    }
    let wanted = list("MOLORA_DEVICE");
    subjects.retain(|s| wanted.is_empty() || wanted.iter().any(|w| matches(w, &s.name())));
    if subjects.is_empty() {
        return Err(format!("no device is left of {}; missing: {}", names.join("; "), missing.join("; ")));
    }
    Ok(subjects)
}

fn list(variable: &str) -> Vec<String> {
    let text = std::env::var(variable).unwrap_or_default();
    text.split(',').map(str::trim).filter(|part| !part.is_empty()).map(String::from).collect()
}

/// Whether a device's name is the wanted one: a part of it in any case of letters, or one of the well-known names
/// `lavapipe` (Mesa's Vulkan in software, which calls itself llvmpipe) and `opengl`.
pub fn matches(wanted: &str, name: &str) -> bool {
    let (wanted, name) = (wanted.to_lowercase(), name.to_lowercase());
    match wanted.as_str() {
        "lavapipe" => name.contains("llvmpipe") && name.contains("(vulkan"),
        "opengl" => name.contains("(gl"),
        part => name.contains(part),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cuda_is_found_by_its_kind_and_by_its_name() {
        let (machine, gpu) =
            ("cuda: PTX machine (compute 8.0, driver 12.8)", "cuda: NVIDIA H100 (compute 9.0, driver 12.4)");
        assert!(matches("cuda", machine) && matches("cuda", gpu) && matches("H100", gpu));
        assert!(matches("ptx machine", machine) && !matches("ptx machine", gpu));
        let Found { subjects, missing } = find();
        let found = subjects.iter().any(|s| s.kind() == "cuda");
        assert!(found != missing.iter().any(|why| why.starts_with("cuda")), "there, or why not: {missing:?}");
    }

    #[test]
    fn well_known_names_are_found() {
        let (vulkan, gl) =
            ("wgpu: llvmpipe (LLVM 15.0.7, 256 bits) (vulkan, llvmpipe)", "wgpu: llvmpipe (LLVM 15) (gl, )");
        assert!(matches("lavapipe", vulkan) && !matches("lavapipe", gl));
        assert!(matches("opengl", gl) && !matches("OpenGL", vulkan));
        assert!(
            matches("WGPU", gl) && matches("swiftshader", "wgpu: SwiftShader Device (LLVM 10) (vulkan, x)")
        );
        assert!(matches("cpu", &CpuSubject::new().unwrap().name()) && !matches("cuda", vulkan));
    }
}
