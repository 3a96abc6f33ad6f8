//! What is asked of an answer, and what its least work is.

use super::cases::reference;
use super::{Case, npy};
use crate::report::Work;
use std::collections::BTreeSet;
use std::path::Path;

/// Relative L2 error of the worst row of an answer against its reference; the error says what is wrong with it.
pub fn error(case: &Case, op: &str, data: &Path, answer: &Path) -> Result<f64, String> {
    let expected = npy::read::<f64>(&case.file(data, reference(op)))?;
    let got = npy::read::<f32>(answer)?;
    if got.values.len() != expected.values.len() {
        return Err(format!("expected {:?} values, got {:?}", expected.shape, got.shape));
    }
    let rows = got.values.chunks(case.out_features).zip(expected.values.chunks(case.out_features));
    let row_error = |(got, expected): (&[f32], &[f64])| {
        let far: f64 =
            got.iter().zip(expected).map(|(&got, expected)| (f64::from(got) - expected).powi(2)).sum();
        (far / expected.iter().map(|value| value * value).sum::<f64>()).sqrt()
    };
    // `max` would lose what is not a number.
    let worst = |worst: f64, error: f64| if error > worst || error.is_nan() { error } else { worst };
    Ok(rows.map(row_error).fold(0.0, worst))
}

/// The largest error that a variant may have, by the type in its name.
pub fn tolerance(variant: &str) -> f64 {
    match bits(variant) {
        Bits::F32 => 1e-5,
        Bits::F16 => 5e-3,
        Bits::Bf16 => 2e-2,
        Bits::Q8 => 3e-2,
    }
}

/// The type of a variant's weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bits {
    /// 32 bits, unless the name says otherwise.
    F32,
    /// `f16` in the name.
    F16,
    /// `bf16` in the name.
    Bf16,
    /// `q8_0` in the name.
    Q8,
}

/// By a variant's name.
pub fn bits(variant: &str) -> Bits {
    match variant {
        v if v.contains("bf16") => Bits::Bf16,
        v if v.contains("f16") => Bits::F16,
        v if v.contains("q8_0") => Bits::Q8,
        _ => Bits::F32,
    }
}

/// The base experts, or adapters, that a case's tokens use.
pub fn used(case: &Case, data: &Path) -> Result<usize, String> {
    let ids = npy::read::<i32>(&case.file(data, "idx"))?;
    Ok(ids.values.iter().collect::<BTreeSet<_>>().len())
}

/// Operations and least bytes of one call: every weight that is used, x and y, each once. An operation of the experts alone
/// makes a new y too. x, y and the router are f32.
pub fn work(case: &Case, op: &str, used: usize, variant: &str) -> Work {
    let weight_bytes = match bits(variant) {
        Bits::F32 => 4.0,
        Bits::F16 | Bits::Bf16 => 2.0,
        Bits::Q8 => 34.0 / 32.0,
    };
    let [t, k, i, o, e, r, used] =
        [case.tokens, case.top_k, case.in_features, case.out_features, case.experts, case.rank, used]
            .map(|size| size as f64);
    if op == "ggemm" {
        let bytes = used * i * o * weight_bytes + 4.0 * (t * i + t * k * o);
        return Work { flops: 2.0 * t * k * i * o, bytes };
    }
    let ends = Work { flops: 0.0, bytes: 4.0 * t * (i + o) };
    let base = Work { flops: 2.0 * t * i * o, bytes: i * o * weight_bytes };
    let lora = Work { flops: 2.0 * t * k * r * (i + o), bytes: used * r * (i + o) * weight_bytes };
    let router = Work { flops: 2.0 * t * i * e, bytes: 4.0 * e * i };
    match op {
        "base" => base + ends,
        "lora" => lora + ends,
        "full" => base + lora + ends + router,
        _ => base + lora + ends,
    }
}

#[cfg(test)]
mod tests {
    use super::super::cases;
    use super::*;

    #[test]
    fn the_work_is_what_the_formulas_need() {
        let case = cases::all().into_iter().find(|case| case.id == "T8_2048x2048_E8k2r16").unwrap();
        let base = work(&case, "base", 7, "f32");
        assert_eq!(base, Work { flops: 67_108_864.0, bytes: 16_777_216.0 + 131_072.0 });
        assert_eq!(work(&case, "base", 7, "f32_bf16").bytes, 8_388_608.0 + 131_072.0);
        let lora = work(&case, "lora", 7, "f32");
        assert_eq!(lora, Work { flops: 2_097_152.0, bytes: 1_835_008.0 + 131_072.0 });
        assert_eq!(work(&case, "layer", 7, "f32").flops, base.flops + lora.flops);
        assert_eq!(work(&case, "full", 7, "f32").bytes, base.bytes + 1_835_008.0 + 65_536.0);
        let grouped = cases::all().pop().unwrap();
        let expected = Work { flops: 5_905_580_032.0, bytes: 4.0 * (3.0 * 2048.0 * 1408.0 + 512.0 * 4864.0) };
        assert_eq!(work(&grouped, "ggemm", 3, "f32"), expected);
    }

    #[test]
    fn one_wrong_row_or_number_shows() {
        let folder = tempfile::tempdir().unwrap();
        let mut case = cases::all().remove(0);
        (case.tokens, case.out_features) = (3, 4);
        let (expected, answer) = (vec![1f64; 12], folder.path().join("y.npy"));
        npy::write(&case.file(folder.path(), "ref_base"), &[3, 4], &expected).unwrap();
        let judged = |values: &[f32]| {
            npy::write(&answer, &[values.len()], values).unwrap();
            error(&case, "base", folder.path(), &answer)
        };
        assert_eq!(judged(&[1.0; 12]), Ok(0.0));
        let mut wrong = [1f32; 12];
        wrong[5] = 1.5;
        assert_eq!(judged(&wrong), Ok(0.25));
        wrong[4..8].fill(0.0);
        assert_eq!(judged(&wrong), Ok(1.0));
        wrong[5] = f32::NAN;
        assert!(judged(&wrong).unwrap().is_nan());
        assert!(judged(&[1.0; 11]).unwrap_err().contains("[11]"));
    }
}
