//! The command line.

use crate::gate::{self, Found};
use crate::measure::{self, What};
use crate::{self_test, table};
use anyhow::{Context, Result, bail, ensure};
use std::path::{Path, PathBuf};

const USAGE: &str = "usage: molora-vendors [--write | --all | --self-test] [--texts FOLDER] [GPU ..]

Compiles the table's pipelines for every GPU and fails where one is worse than tests/vendors.tsv says.
  --write         makes the table anew
  --all           every variant of every shader instead, of which nothing may fail or spill
  --self-test     shows that spills, changed figures and lost matrix instructions are found
  --texts FOLDER  keeps the drivers' intermediate forms and assembly
  --wgsl FILE     compiles this text instead, and prints its figures";

const TABLE: &str = "tests/vendors.tsv";
const ALLOWED: &str = "tests/vendors_spills.tsv";

pub fn main() -> Result<()> {
    let mut what = What::default();
    let (mut write, mut self_test, mut names) = (false, false, Vec::new());
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().context(USAGE);
        match argument.as_str() {
            "--write" => write = true,
            "--self-test" => self_test = true,
            "--all" => what.all = true,
            "--wgsl" => what.wgsl.push(PathBuf::from(value()?)),
            "--end" => what.end = Some(value()?),
            "--leave-out" => what.left_out.push(value()?),
            "--texts" => what.texts = Some(PathBuf::from(value()?)),
            name if name.starts_with('-') => bail!("{USAGE}"),
            _ => names.push(argument),
        }
    }
    if let [inner, gpu] = &names[..]
        && inner == "measure"
    {
        return measure::run(gate::gpus(std::slice::from_ref(gpu))?[0], &what);
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize()?;
    let tree = root.join("target/drivers/mesa26");
    let gpus = gate::gpus(&names)?;
    if self_test {
        return self_test::run(&tree, &gpus);
    }
    let begin = std::time::Instant::now();
    let found = gate::compile(&tree, &gpus, &what)?;
    for gpu in &gpus {
        println!("{}", table::summary(&found.table, gpu.name));
    }
    println!("{} pipelines in {:.0} s", found.table.len(), begin.elapsed().as_secs_f64());
    if !what.wgsl.is_empty() {
        print!("{}", table::format(&found.table, &found.drivers.join(", ")));
        return complain(found.failed);
    }
    let allowed = table::parse_allowed(&read(&root.join(ALLOWED))?)?;
    if write {
        ensure!(names.is_empty() && !what.all, "--write takes every GPU");
        std::fs::write(root.join(TABLE), table::format(&found.table, &found.drivers.join(", ")))?;
        println!("{TABLE} is written");
    }
    let mut wrong = table::spills(&found.table, &allowed);
    wrong.extend(table::without_matrices(&found.table));
    if !what.all {
        wrong.extend(against_table(&read(&root.join(TABLE))?, &found, &gpus)?);
        if names.is_empty() {
            wrong.extend(table::stale(&found.table, &allowed));
        }
    }
    wrong.extend(found.failed);
    complain(wrong)
}

/// What is worse than the table, and whether that may be the compilers' doing.
fn against_table(text: &str, found: &Found, gpus: &[&crate::gpu::Gpu]) -> Result<Vec<String>> {
    let mut table = table::parse(text)?;
    table.retain(|(gpu, _), _| gpus.iter().any(|g| g.name == gpu));
    let mut wrong = table::worse(&table, &found.table);
    let first = text.lines().next().unwrap_or_default();
    if !wrong.is_empty() && !found.drivers.iter().all(|driver| first.contains(driver)) {
        wrong
            .push(format!("the table was made by other compilers: {first:?}, these are {:?}", found.drivers));
    }
    Ok(wrong)
}

fn complain(wrong: Vec<String>) -> Result<()> {
    ensure!(wrong.is_empty(), "{} complaints:\n{}", wrong.len(), wrong.join("\n"));
    Ok(())
}

fn read(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).with_context(|| path.display().to_string())
}

impl What {
    /// The inner half's arguments.
    pub fn arguments(&self) -> Vec<std::ffi::OsString> {
        let mut arguments: Vec<std::ffi::OsString> = Vec::new();
        if self.all {
            arguments.push("--all".into());
        }
        for (name, values) in [("--wgsl", &self.wgsl), ("--texts", &self.texts.iter().cloned().collect())] {
            for value in values {
                arguments.extend([name.into(), value.into()]);
            }
        }
        if let Some(name) = &self.end {
            arguments.extend(["--end".into(), name.into()]);
        }
        for name in &self.left_out {
            arguments.extend(["--leave-out".into(), name.into()]);
        }
        arguments
    }
}
