//! Shows that the gate can fail: planted shaders that spill, grow, lose their matrix instructions, and a compiler that
//! ends its process.

use crate::gate::{self, Found};
use crate::gpu::Gpu;
use crate::measure::What;
use crate::table;
use anyhow::{Result, ensure};
use std::fmt::Write;
use std::path::{Path, PathBuf};

/// Those of the GPUs whose drivers have 16 x 16 x 16 products of f16.
const MATRIX: [&str; 4] = ["navi31", "gfx1201", "turing", "ga102"];

/// `count` values alive at once: they are read before what lies under them is written, and used after.
fn alive(count: usize) -> String {
    let mut text = String::from(
        "@group(0) @binding(0) var<storage, read_write> v: array<f32>;
         @compute @workgroup_size(64)
         fn alive(@builtin(local_invocation_index) i: u32) {\n",
    );
    for n in 0..count {
        let _ = writeln!(text, "let v{n} = v[{n}u * 64u + i];");
    }
    text.push_str("var product = 1.0;\nfor (var k = 0u; k < bitcast<u32>(v0); k++) {\n");
    for n in 0..count {
        // The last are used first, and all in every round: nothing can be read again instead of kept.
        let _ = writeln!(text, "product = fma(product, v{}, v[k]);\nv[k + {n}u] = product;", count - 1 - n);
    }
    text.push_str("}\nv[i] = product;\n}\n");
    text
}

pub fn run(tree: &Path, gpus: &[&Gpu]) -> Result<()> {
    let folder = std::env::temp_dir().join(format!("molora-vendors-{}", std::process::id()));
    let result = planted(tree, gpus, &folder);
    let _ = std::fs::remove_dir_all(&folder);
    result
}

fn planted(tree: &Path, gpus: &[&Gpu], folder: &Path) -> Result<()> {
    let file = |variant: &str, text: &str| -> Result<PathBuf> {
        let folder = folder.join(variant);
        std::fs::create_dir_all(&folder)?;
        std::fs::write(folder.join("planted.wgsl"), text)?;
        Ok(folder.join("planted.wgsl"))
    };
    let compile = |gpus: &[&Gpu], variant: &str, text: &str| -> Result<Found> {
        gate::compile(tree, gpus, &What { wgsl: vec![file(variant, text)?], ..Default::default() })
    };
    let few = compile(gpus, "few", &alive(8))?;
    ensure!(
        few.table.len() == gpus.len() && few.failed.is_empty(),
        "a shader for each GPU: {:?}",
        few.failed
    );
    ensure!(table::spills(&few.table, &[]).is_empty(), "a shader of eight values spills");

    let many = compile(gpus, "many", &alive(700))?;
    let spills = table::spills(&many.table, &[]);
    ensure!(spills.len() == gpus.len(), "700 values alive at once must spill everywhere, found {spills:?}");
    println!("spills are found on {} GPUs", spills.len());

    let again = compile(gpus, "few", &alive(8))?;
    ensure!(again.table == few.table, "two compilations of one shader differ");
    let grown = compile(gpus, "grown", &alive(9))?;
    for gpu in gpus {
        let of = |found: &Found| {
            let mut table = found.table.clone();
            table.retain(|(name, _), _| name == gpu.name);
            table
        };
        ensure!(table::worse(&of(&few), &of(&again)).is_empty(), "{}: the same is worse", gpu.name);
        let worse = table::worse(&of(&few), &of(&grown));
        ensure!(
            worse.iter().any(|line| line.contains("instructions")),
            "{}: grown, said {worse:?}",
            gpu.name
        );
    }
    println!("a ninth value is found on {} GPUs, the same shader again is not", gpus.len());

    let with: Vec<&Gpu> = gpus.iter().copied().filter(|gpu| MATRIX.contains(&gpu.name)).collect();
    let matrix = compile(&with, "matrix", include_str!("matrix.wgsl"))?;
    for ((gpu, _), figures) in &matrix.table {
        ensure!(figures.matrix > 0, "{gpu}: no matrix instruction is found in a cooperative product");
    }
    ensure!(
        matrix.table.len() == with.len(),
        "a cooperative product for each of {MATRIX:?}: {:?}",
        matrix.failed
    );
    ensure!(few.table.values().all(|figures| figures.matrix == 0), "matrix instructions in a plain shader");
    let mut lost = matrix.table.clone();
    lost.values_mut().for_each(|figures| figures.matrix = 0);
    ensure!(table::worse(&matrix.table, &lost).len() == with.len(), "lost matrix instructions are not said");
    println!("matrix instructions are found on {} GPUs", with.len());

    let what =
        What { wgsl: vec![file("few", &alive(8))?], end: Some("planted/alive".into()), ..Default::default() };
    let ended = gate::compile(tree, gpus, &what)?;
    ensure!(ended.failed.len() == gpus.len() && ended.table.is_empty(), "a compiler that ends is not said");
    println!("a compiler that ends its process is found on {} GPUs", gpus.len());

    ensure!(
        gate::compile(&folder.join("nowhere"), gpus, &What::default()).is_err(),
        "a missing driver passes"
    );
    println!("a missing driver fails");
    Ok(())
}
