//! The outer half: runs the inner one for every GPU, a few at a time, and judges what comes back.

use crate::gpu::{GPUS, Gpu};
use crate::measure::{Line, What};
use crate::table::Table;
use anyhow::{Context, Result, bail, ensure};
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::Stdio;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// What all compilers made.
#[derive(Default)]
pub struct Found {
    /// Of each pipeline.
    pub table: Table,
    /// Pipelines that ended their compiler.
    pub failed: Vec<String>,
    /// Each driver's name and version.
    pub drivers: Vec<String>,
}

/// Compiles for these GPUs, as many at once as there are processors.
pub fn compile(tree: &Path, gpus: &[&Gpu], what: &What) -> Result<Found> {
    let next = AtomicUsize::new(0);
    let found = Mutex::new(Found::default());
    let errors = Mutex::new(Vec::new());
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get());
    // Those that take longest first.
    let mut order: Vec<&Gpu> = gpus.to_vec();
    order.sort_by_key(|gpu| usize::from(gpu.driver != "NVK"));
    std::thread::scope(|scope| {
        for _ in 0..threads.min(order.len()) {
            scope.spawn(|| {
                while let Some(gpu) = order.get(next.fetch_add(1, Ordering::Relaxed)) {
                    if let Err(error) = one(tree, gpu, what, &found) {
                        errors.lock().unwrap_or_else(|p| p.into_inner()).push(format!("{error:#}"));
                    }
                }
            });
        }
    });
    let errors = errors.into_inner().unwrap_or_else(|p| p.into_inner());
    ensure!(errors.is_empty(), "{}", errors.join("\n"));
    let mut found = found.into_inner().unwrap_or_else(|p| p.into_inner());
    found.drivers.sort();
    found.drivers.dedup();
    Ok(found)
}

/// One GPU. A compiler that ends its process costs one pipeline: the next process leaves that one out.
fn one(tree: &Path, gpu: &Gpu, what: &What, found: &Mutex<Found>) -> Result<()> {
    let mut what = what.clone();
    // A GPU whose every pipeline fails is a broken driver.
    for _ in 0..20 {
        let mut command = gpu.command(tree)?;
        command.arg("measure").arg(gpu.name).args(what.arguments());
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("{}: {command:?}", gpu.name))?;
        let errors = child.stderr.take().context("a pipe")?;
        // Read beside, or a talkative driver waits for ever.
        let errors = std::thread::spawn(move || std::io::read_to_string(errors).unwrap_or_default());
        let mut begun = None;
        let mut done = None;
        for line in BufReader::new(child.stdout.take().context("a pipe")?).lines() {
            match serde_json::from_str(&line?) {
                Ok(Line::Begin(name)) => begun = Some(name),
                Ok(Line::Measured(name, figures)) => {
                    let mut found = found.lock().unwrap_or_else(|p| p.into_inner());
                    found.table.insert((gpu.name.into(), name), figures);
                }
                Ok(Line::Done(driver)) => done = Some(driver),
                // Drivers print to stdout too.
                Err(_) => {}
            }
        }
        let status = child.wait()?;
        let errors = errors.join().unwrap_or_default();
        if let (Some(driver), true) = (done, status.success()) {
            found.lock().unwrap_or_else(|p| p.into_inner()).drivers.push(driver);
            return Ok(());
        }
        let said = errors.lines().filter(|line| !line.trim().is_empty()).collect::<Vec<_>>();
        let said = said[said.len().saturating_sub(6)..].join("\n    ");
        match begun {
            // An exit status is our own program's refusal, a signal the compiler's.
            Some(name) if status.code().is_none() => {
                let mut found = found.lock().unwrap_or_else(|p| p.into_inner());
                found
                    .failed
                    .push(format!("{} {name}: the compiler ended with {status}:\n    {said}", gpu.name));
                what.left_out.push(name);
            }
            at => bail!("{}: {status}, at {}:\n    {said}", gpu.name, at.as_deref().unwrap_or("its device")),
        }
    }
    bail!("{}: its compiler ended 20 times", gpu.name)
}

/// GPUs by name, or all.
pub fn gpus(names: &[String]) -> Result<Vec<&'static Gpu>> {
    if names.is_empty() {
        return Ok(GPUS.iter().collect());
    }
    let known = || GPUS.iter().map(|gpu| gpu.name).collect::<Vec<_>>().join(", ");
    names
        .iter()
        .map(|name| {
            GPUS.iter()
                .find(|gpu| gpu.name == name)
                .with_context(|| format!("expected {}, got {name:?}", known()))
        })
        .collect()
}
