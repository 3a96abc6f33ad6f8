//! Compiled pipelines that outlive a command: read where a WebGPU device is opened, written when the command ends.

use crate::fetch;
use molora::Wgpu;
use std::sync::Mutex;

/// Whether the command was told to do without, and the devices whose pipelines are kept.
static KEPT: Mutex<(bool, Vec<Wgpu>)> = Mutex::new((false, Vec::new()));

/// Keeps nothing, and reads nothing.
pub fn switch_off() {
    kept().0 = true;
}

/// Gives a device what an earlier command compiled.
pub fn open(wgpu: &Wgpu) {
    let mut kept = kept();
    if kept.0 {
        return;
    }
    // No place for a cache is no reason to stop.
    let Some(folder) = fetch::cache_base() else { return };
    let state = wgpu.use_cache(&folder.join("pipelines"));
    tracing::debug!("{}: {state}", wgpu.describe());
    kept.1.push(wgpu.clone());
}

/// Writes what is new.
pub fn save() {
    for wgpu in std::mem::take(&mut kept().1) {
        if let Err(error) = wgpu.save_cache() {
            tracing::warn!("compiled pipelines are not kept: {error}");
        }
    }
}

fn kept() -> std::sync::MutexGuard<'static, (bool, Vec<Wgpu>)> {
    KEPT.lock().unwrap_or_else(|p| p.into_inner())
}
