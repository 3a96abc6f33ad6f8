//! Commands keep the pipelines that they compiled, unless told not to.
#![cfg(feature = "wgpu")]

use molora::Wgpu;
use molora::device::wgpu::CacheState;
use std::path::{Path, PathBuf};
use std::process::Command;

fn verify(home: &Path, arguments: &[&str]) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_molora"));
    command.args(["verify", "--case", "base/wgpu/f32/t3_i8_o8"]).args(arguments);
    let output = command.env("XDG_CACHE_HOME", home).output().expect("molora starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(String::from_utf8_lossy(&output.stdout).contains(" 0 wrong"));
}

fn files(home: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(home.join("molora/pipelines")) else { return Vec::new() };
    entries.map(|entry| entry.unwrap().path()).collect()
}

#[test]
fn a_command_keeps_its_pipelines() {
    molora_check::subjects().unwrap_or_else(|why| panic!("{why}"));
    let home = tempfile::tempdir().unwrap();
    let devices: Vec<Wgpu> = Wgpu::adapters().iter().filter_map(|a| Wgpu::open(a).ok()).collect();
    let caches = |wgpu: &&Wgpu| matches!(wgpu.use_cache(home.path()), CacheState::Empty(_));
    if devices.iter().filter(caches).count() == 0 {
        println!("not tested: no WebGPU adapter with a pipeline cache here");
        return;
    }
    verify(home.path(), &["--no-cache"]);
    assert!(files(home.path()).is_empty(), "kept in spite of --no-cache");
    verify(home.path(), &[]);
    let kept = files(home.path());
    assert!(!kept.is_empty(), "nothing was kept");
    let (whole, mut damaged) = (std::fs::read(&kept[0]).unwrap(), std::fs::read(&kept[0]).unwrap());
    *damaged.last_mut().unwrap() ^= 1;
    std::fs::write(&kept[0], &damaged).unwrap();
    verify(home.path(), &[]);
    assert_eq!(std::fs::read(&kept[0]).unwrap().len(), whole.len(), "mended");
    assert_ne!(std::fs::read(&kept[0]).unwrap(), damaged);
}
