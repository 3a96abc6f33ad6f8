//! The GPUs whose compilers are run, and how: Mesa's own drivers over a stand-in for the kernel's.

use anyhow::{Result, ensure};
use std::path::Path;
use std::process::Command;

/// A GPU that is not there.
pub struct Gpu {
    /// The name in the table.
    pub name: &'static str,
    /// The library that stands in for the kernel's driver.
    stand_in: &'static str,
    /// The Vulkan driver's manifest.
    manifest: &'static str,
    /// Which GPU it plays.
    variable: Option<(&'static str, &'static str)>,
    /// What its adapter must call itself, and its driver: a wrong path must not measure another.
    pub adapter: &'static str,
    /// Likewise.
    pub driver: &'static str,
}

const AMD: &str = "libamdgpu_noop_drm_shim.so";
const NVIDIA: &str = "libnouveau_noop_drm_shim.so";

/// Those of the table.
pub const GPUS: [Gpu; 7] = [
    gpu("navi21", AMD, "radeon", Some(("AMDGPU_GPU_ID", "navi21")), "NAVI21", "radv"),
    gpu("navi31", AMD, "radeon", Some(("AMDGPU_GPU_ID", "navi31")), "NAVI31", "radv"),
    gpu("gfx1201", AMD, "radeon", Some(("AMDGPU_GPU_ID", "gfx1201")), "GFX1201", "radv"),
    gpu("turing", NVIDIA, "nouveau", Some(("NOUVEAU_CHIPSET", "0x164")), "NVK", "NVK"),
    gpu("ga102", NVIDIA, "nouveau", Some(("NOUVEAU_CHIPSET", "0x172")), "NVK", "NVK"),
    gpu(
        "adreno740",
        "libfreedreno_noop_drm_shim.so",
        "freedreno",
        Some(("FD_GPU_ID", "740")),
        "740",
        "turnip",
    ),
    gpu("m1", "libasahi_noop_drm_shim.so", "asahi", None, "Apple M1", "Honeykrisp"),
];

const fn gpu(
    name: &'static str,
    stand_in: &'static str,
    manifest: &'static str,
    variable: Option<(&'static str, &'static str)>,
    adapter: &'static str,
    driver: &'static str,
) -> Gpu {
    Gpu { name, stand_in, manifest, variable, adapter, driver }
}

impl Gpu {
    /// This program under the tree's own loader, with this GPU in front of it.
    pub fn command(&self, tree: &Path) -> Result<Command> {
        let libraries = tree.join("usr/lib/x86_64-linux-gnu");
        let manifest = tree.join(format!("usr/share/vulkan/icd.d/{}_icd.json", self.manifest));
        let loader = tree.join("usr/lib64/ld-linux-x86-64.so.2");
        let stand_in = libraries.join(self.stand_in);
        for file in [&loader, &stand_in, &manifest] {
            ensure!(file.exists(), "{}: {} is missing: run tests/lavapipe26.sh", self.name, file.display());
        }
        let mut command = Command::new(loader);
        command.arg("--preload").arg(stand_in).arg("--library-path").arg(libraries);
        command.arg(std::env::current_exe()?);
        // Nothing of an earlier run, of this machine's own drivers or of a developer's settings gets in between.
        for (name, _) in std::env::vars().filter(|(name, _)| {
            ["VK_", "MESA_", "RADV_", "NAK_", "NVK_", "IR3_", "TU_", "AGX_", "WGPU_"]
                .iter()
                .any(|p| name.starts_with(p))
        }) {
            command.env_remove(name);
        }
        command.env("VK_DRIVER_FILES", &manifest).env("VK_ICD_FILENAMES", &manifest);
        command.env("MESA_SHADER_CACHE_DISABLE", "true").env("RUST_BACKTRACE", "0");
        if let Some((name, value)) = self.variable {
            command.env(name, value);
        }
        Ok(command)
    }
}
