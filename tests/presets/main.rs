//! Every published system on every device against its own formula in float64, which computes every expert and masks.
//!
//! `cargo test --test presets -- --nocapture` prints the table of worst rows; it lies in `target/presets-DEVICE.tsv` too.

mod block;
mod dense;
#[path = "../common/devices.rs"]
mod devices;
mod problem;
mod systems;

use devices::devices;
use half::{bf16, f16};
use molora::element::{Element, ElementType};
use molora::host::Device;
use molora::preset::Preset;
use problem::Shape;
use std::fmt::Write;

/// Numbers of tokens: none, one, and around what kernels take at once.
const TOKENS: [usize; 5] = [0, 1, 7, 33, 130];

/// The largest relative L2 error of a row; refuses a row that is further off than roundings explain.
fn judge(got: &[f64], want: &[Vec<f64>], limit: f64) -> Result<f64, String> {
    assert_eq!(got.len(), want.iter().map(Vec::len).sum::<usize>());
    let mut worst = 0.0;
    for (t, want) in want.iter().enumerate() {
        let got = &got[t * want.len()..][..want.len()];
        let error = got.iter().zip(want).map(|(g, w)| (g - w).powi(2)).sum::<f64>().sqrt();
        let error = error / dense::dot(want, want).sqrt();
        if error.is_nan() || error > limit {
            return Err(format!("row {t}: {error:.2e}, at most {limit:.0e}: {got:?}, {want:?}"));
        }
        worst = f64::max(worst, error);
    }
    Ok(worst)
}

/// What one rounding to the element costs a row, twice: the result, and what a device rounds on its way there.
fn limit(element: ElementType) -> f64 {
    match element {
        ElementType::F32 => 5e-6,
        ElementType::F16 => 1.0 / 1024.0,
        ElementType::Bf16 => 1.0 / 128.0,
    }
}

/// The worst row of every size in one element type.
fn worst<X: Element>(device: &Device, preset: Preset) -> f64 {
    // Two shapes of every number of tokens on the CPU; one in turn elsewhere. 16-bit rows have even strides on WebGPU.
    let odd = if X::TYPE == ElementType::F32 { (33, 21) } else { (34, 22) };
    let shapes = [odd, (64, 40)];
    let every = device.name() == "cpu";
    let mut worst = 0.0;
    for (n, tokens) in TOKENS.into_iter().enumerate() {
        for (in_features, out_features) in shapes.into_iter().skip(n % 2).take(if every { 2 } else { 1 }) {
            let shape = Shape { tokens, in_features, out_features };
            let what = format!("{} on {} in {}, {shape:?}", preset.name(), device.describe(), X::TYPE);
            let (got, want) = match preset {
                Preset::MixLora => block::mixlora::<X>(device, shape),
                _ => systems::run::<X>(device, preset, shape),
            };
            // A block rounds three times in a row.
            let roundings = if preset == Preset::MixLora { 4.0 } else { 1.0 };
            let error = judge(&got, &want, roundings * limit(X::TYPE));
            worst = f64::max(worst, error.unwrap_or_else(|why| panic!("{what}: {why}")));
        }
    }
    worst
}

#[test]
fn every_system_on_every_device() {
    let mut tables = std::collections::BTreeMap::<&str, String>::new();
    for device in devices() {
        for preset in Preset::ALL {
            let mut line = format!("{}\t{}", preset.name(), device.describe());
            let (f32, f16) = (worst::<f32>(&device, preset), worst::<f16>(&device, preset));
            for error in [f32, f16, worst::<bf16>(&device, preset)] {
                let _ = write!(line, "\t{error:.1e}");
            }
            println!("{line}");
            let table =
                tables.entry(device.name()).or_insert_with(|| "preset\tdevice\tf32\tf16\tbf16\n".into());
            let _ = writeln!(table, "{line}");
        }
    }
    for (kind, table) in tables {
        let path = format!("{}/target/presets-{kind}.tsv", env!("CARGO_MANIFEST_DIR"));
        std::fs::write(&path, table).unwrap_or_else(|e| println!("{path}: {e}"));
    }
}

#[test]
fn the_judge_finds_a_row() {
    let want = vec![vec![1.0, 2.0], vec![3.0, -4.0]];
    assert_eq!(judge(&[1.0, 2.0, 3.0, -4.0], &want, 1e-6), Ok(0.0));
    for wrong in [[1.0, 2.0, 3.0, -4.1], [3.0, -4.0, 1.0, 2.0], [1.0, f64::NAN, 3.0, -4.0], [0.0; 4]] {
        assert!(judge(&wrong, &want, 1e-2).is_err(), "{wrong:?}");
    }
}

#[test]
fn every_name_is_one_system() {
    for preset in Preset::ALL {
        assert_eq!(Preset::by_name(preset.name()).unwrap(), preset);
    }
    let refused = Preset::by_name("ming").unwrap_err().to_string();
    assert!(refused.starts_with("preset: name: expected one of ming-moe, medcare,"), "{refused}");
}
