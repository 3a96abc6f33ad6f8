//! What the drivers say, in words that are the same for all.

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

/// A pipeline as its driver describes it.
#[derive(Debug, Clone)]
pub struct Pipeline {
    /// Element type, detail and entry point.
    pub name: String,
    /// Invocations of a subgroup.
    pub subgroup: u32,
    /// The driver's own figures, by its own names.
    pub statistics: Vec<(String, f64)>,
    /// The driver's own texts, by name: intermediate forms, then the assembly.
    pub texts: Vec<(String, String)>,
}

/// The figures that the table holds. `None`: the driver does not tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Figures {
    /// Invocations of a subgroup.
    pub subgroup: u64,
    /// Registers of an invocation: of 32 bits, on Adreno of four times 32 bits, on the M1 of 16 bits.
    pub registers: u64,
    /// Instructions that store a register in memory for want of registers, and on Adreno and AMD all that goes there.
    pub spills: u64,
    /// Bytes of memory of an invocation: spills, and arrays that are indexed at run time.
    pub private: Option<u64>,
    /// Bytes of workgroup memory, as allotted on AMD, as declared elsewhere.
    pub workgroup: Option<u64>,
    /// Subgroups that fit a core (AMD: a SIMD) at once; on the M1 invocations of a workgroup.
    pub occupancy: u64,
    /// Instructions, counted once.
    pub instructions: u64,
    /// Matrix instructions among them.
    pub matrix: u64,
}

impl Pipeline {
    /// The figures, from what this driver (as wgpu names it) calls them.
    pub fn figures(&self, driver: &str) -> Result<Figures> {
        let get = |name: &str| {
            let found = self.statistics.iter().find(|(n, _)| n == name).map(|(_, value)| *value as u64);
            found.with_context(|| format!("{}: {driver} tells no {name:?}", self.name))
        };
        let driver = driver.to_lowercase();
        let shared = self.shared();
        let (registers, spills, private, workgroup, occupancy, instructions) = if driver.contains("radv") {
            let spills = get("Spilled SGPRs")? + get("Spilled VGPRs")?;
            let (private, workgroup) = (Some(get("Scratch size")?), Some(get("LDS size")?));
            (get("VGPRs")?, spills, private, workgroup, get("Subgroups per SIMD")?, get("Instructions")?)
        } else if driver.contains("nvk") {
            let spills = get("Spills to memory")? + get("Fills from memory")?;
            let private = Some(get("SLM size")?);
            let (registers, occupancy) = (get("Number of GPRs")?, get("Max warps/SM")?);
            (registers, spills, private, shared, occupancy, get("Instruction count")?)
        } else if driver.contains("turnip") {
            let spills = get("STP Count")? + get("LDP Count")?;
            let (registers, occupancy) = (get("Registers used")?, get("Max Waves Per Core")?);
            (registers, spills, None, shared, occupancy, get("Instruction Count")?)
        } else if driver.contains("honeykrisp") {
            let spills = get("Spills")? + get("Fills")?;
            let private = Some(get("Scratch")?);
            (get("GPRs")?, spills, private, shared, get("Threads")?, get("Instructions")?)
        } else {
            anyhow::bail!("{driver}: no names of statistics are known for this driver")
        };
        let (subgroup, matrix) = (u64::from(self.subgroup), self.matrix());
        Ok(Figures { subgroup, registers, spills, private, workgroup, occupancy, instructions, matrix })
    }

    /// The workgroup memory that the intermediate form declares, where the driver shows one: none where it is silent
    /// within such a text.
    fn shared(&self) -> Option<u64> {
        let nir = self.texts.iter().rev().find(|(name, _)| name.contains("NIR"))?;
        let line = nir.1.lines().find_map(|line| line.trim().strip_prefix("shared_size:"));
        Some(line.and_then(|size| size.trim().parse().ok()).unwrap_or(0))
    }

    /// The text of machine instructions: the last one.
    pub fn assembly(&self) -> &str {
        self.texts
            .iter()
            .rfind(|(name, _)| name.to_lowercase().contains("assembly"))
            .map_or("", |(_, text)| text)
    }

    /// Matrix instructions: wmma on AMD, hmma and imma on NVIDIA.
    fn matrix(&self) -> u64 {
        let is_matrix = |line: &&str| {
            let line = line.to_lowercase();
            line.split(|c: char| !c.is_alphanumeric() && c != '_').any(|word| {
                word.starts_with("v_wmma") || word.starts_with("v_swmmac") || word == "hmma" || word == "imma"
            })
        };
        self.assembly().lines().filter(is_matrix).count() as u64
    }
}
