//! Compiled pipelines outlive the process, and nothing but our own whole files reaches a driver.
#![cfg(feature = "wgpu")]

use molora::Wgpu;
use molora::device::wgpu::{CacheState, View};
use molora::ops::base;
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// Every adapter that has a pipeline cache; says so where there is none, and fails where `MOLORA_REQUIRE` names one.
fn adapters() -> Vec<wgpu::Adapter> {
    molora_check::subjects().unwrap_or_else(|why| panic!("{why}"));
    let mut adapters = Wgpu::adapters();
    adapters.retain(|adapter| adapter.features().contains(wgpu::Features::PIPELINE_CACHE));
    if adapters.is_empty() {
        println!("not tested: no WebGPU adapter with a pipeline cache here");
    }
    adapters
}

/// A base product's result, for few tokens and for many, and how long it took, compilers included.
fn product(wgpu: &Wgpu) -> (Vec<f32>, Duration) {
    let begin = Instant::now();
    let (inner, outer) = (12, 9);
    let weight = wgpu.upload(&(0..inner * outer).map(|i| i as f32).collect::<Vec<_>>()).unwrap();
    let mut all = Vec::new();
    for tokens in [3, 70] {
        let sizes =
            base::Sizes { tokens, in_features: inner, out_features: outer, x_stride: inner, y_stride: outer };
        let x = wgpu.upload(&vec![0.5f32; tokens * inner]).unwrap();
        let y = wgpu.upload(&vec![f32::NAN; tokens * outer]).unwrap();
        let [w, xv] =
            [(&weight, inner * outer), (&x, tokens * inner)].map(|(b, n)| View::<f32>::new(b, 0, n).unwrap());
        let mut encoder = wgpu.encoder();
        wgpu.base(&mut encoder, &sizes, w, None, xv, View::new(&y, 0, tokens * outer).unwrap()).unwrap();
        wgpu.queue().submit([encoder.finish()]);
        all.extend(wgpu.download::<f32>(&y, tokens * outer).unwrap());
    }
    (all, begin.elapsed())
}

fn only_file(folder: &Path) -> PathBuf {
    let files: Vec<PathBuf> = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()).collect();
    assert_eq!(files.len(), 1, "one file, and no other beside it: {files:?}");
    files[0].clone()
}

/// A folder with a product's pipelines in its one file.
fn kept(adapter: &wgpu::Adapter) -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let wgpu = Wgpu::open(adapter).unwrap();
    wgpu.use_cache(folder.path());
    product(&wgpu);
    wgpu.save_cache().unwrap();
    let file = only_file(folder.path());
    (folder, file)
}

/// Why a cache in this folder began empty; the device works all the same, and mends the file.
fn ignored(adapter: &wgpu::Adapter, folder: &Path) -> String {
    let wgpu = Wgpu::open(adapter).unwrap();
    let CacheState::Empty(why) = wgpu.use_cache(folder) else { panic!("{:?}", wgpu.cache_state()) };
    assert_eq!(product(&wgpu).0, product(&Wgpu::open(adapter).unwrap()).0);
    assert!(wgpu.save_cache().unwrap());
    let again = Wgpu::open(adapter).unwrap().use_cache(folder);
    assert!(matches!(again, CacheState::Loaded(_)), "{again:?}");
    why
}

#[test]
fn a_second_device_begins_with_what_the_first_compiled() {
    for adapter in adapters() {
        let folder = tempfile::tempdir().unwrap();
        let below = folder.path().join("made/when/needed");
        let first = Wgpu::open(&adapter).unwrap();
        assert_eq!(first.cache_state(), CacheState::Off);
        let missing = first.use_cache(&below);
        assert!(matches!(&missing, CacheState::Empty(why) if why.contains(".bin")), "{missing:?}");
        let (y, cold) = product(&first);
        assert!(first.save_cache().unwrap());
        let kept = std::fs::read(only_file(&below)).unwrap();
        assert_eq!(first.cache_data().unwrap(), kept);
        assert!(!first.save_cache().unwrap(), "nothing new");

        let second = Wgpu::open(&adapter).unwrap();
        let CacheState::Loaded(bytes) = second.use_cache(&below) else { panic!("{}", second.cache_state()) };
        assert!(bytes > 0 && bytes < kept.len());
        let (again, warm) = product(&second);
        assert_eq!(again, y);
        // Everything was there already: nothing was added, or a header.
        let grown = second.cache_data().unwrap().len() - kept.len();
        assert!(grown <= 64, "{grown} bytes more");
        assert!(!second.save_cache().unwrap(), "nothing new");
        println!("{}: {bytes} bytes, cold {cold:?}, warm {warm:?}", second.describe());

        let third = Wgpu::open(&adapter).unwrap();
        assert_eq!(third.use_cache_data(&kept), CacheState::Loaded(bytes));
        assert!(!third.save_cache().unwrap(), "there is no folder");
        assert!(matches!(third.use_cache_data(&[]), CacheState::Empty(_)));
    }
}

#[test]
fn damaged_and_foreign_files_are_ignored_with_a_reason() {
    for adapter in adapters() {
        let (folder, file) = kept(&adapter);
        let kept = std::fs::read(&file).unwrap();
        let says = |content: &[u8], what: &str| {
            std::fs::write(&file, content).unwrap();
            let why = ignored(&adapter, folder.path());
            assert!(why.contains(what), "{why}");
        };
        for at in [0, 40, 60, kept.len() - 1] {
            let mut damaged = kept.clone();
            damaged[at] ^= 0x10;
            says(&damaged, if (32..48).contains(&at) { "not a pipeline cache" } else { "damaged" });
        }
        says(&kept[..kept.len() / 2], "damaged");
        says(&kept[..7], "too short");
        says(b"", "too short");
        says(&vec![0x5a; 100_000], "not a pipeline cache");
        // wgpu's own bytes without our seal, as another program would leave them.
        let raw = kept.windows(8).position(|window| window == b"WGPUPLCH").unwrap();
        says(&kept[raw..], "not a pipeline cache");
        // Whole, but of another driver: a letter of its name is another, and the seal is made anew.
        let mut foreign = kept.clone();
        foreign[raw - 1] ^= 1;
        let hash = Sha256::digest(&foreign[32..]);
        foreign[..32].copy_from_slice(&hash);
        says(&foreign, "made for");
        // Ours by its seal, but wgpu's header says that the driver has changed since: its turn to refuse.
        let mut older = kept.clone();
        older[raw + 40] ^= 1;
        let hash = Sha256::digest(&older[32..]);
        older[..32].copy_from_slice(&hash);
        says(&older, "out of date");
    }
}

#[cfg(unix)]
#[test]
fn a_file_that_others_may_write_is_ignored() {
    use std::os::unix::fs::PermissionsExt;
    for adapter in adapters() {
        let (folder, file) = kept(&adapter);
        let mode = |file: &Path| std::fs::metadata(file).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&file), 0o600);
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o666)).unwrap();
        assert!(ignored(&adapter, folder.path()).contains("others may write it"));
        assert_eq!(mode(&file), 0o600);
        // A folder that cannot be written: an error, not a panic.
        let wgpu = Wgpu::open(&adapter).unwrap();
        wgpu.use_cache(&file.join("below a file"));
        assert!(wgpu.save_cache().unwrap_err().to_string().contains("below a file"));
    }
}

/// The device's own features decide, whoever made it.
#[test]
fn an_engines_device_has_a_cache_where_its_feature_is_on() {
    for adapter in adapters() {
        for on in [false, true] {
            let required_features = if on { wgpu::Features::PIPELINE_CACHE } else { wgpu::Features::empty() };
            let descriptor = wgpu::DeviceDescriptor { required_features, ..Default::default() };
            let (device, queue) = pollster::block_on(adapter.request_device(&descriptor)).unwrap();
            let wgpu = Wgpu::from_device(adapter.get_info(), device, queue);
            let folder = tempfile::tempdir().unwrap();
            let state = wgpu.use_cache(folder.path());
            assert_eq!(matches!(state, CacheState::Empty(_)), on, "{state}");
            assert_eq!(matches!(&state, CacheState::Unsupported(why) if why.contains("PIPELINE_CACHE")), !on);
            product(&wgpu);
            assert_eq!(wgpu.cache_data().is_some(), on);
            assert_eq!(wgpu.save_cache().unwrap(), on);
        }
    }
}
