//! Arrow's prototypes: the direction in which an adapter changes its input most.

use super::OP;
use crate::adapter::{LinearRouter, Lora, Prototypes};
use crate::error::{Error, Result};

/// Squarings of the power iteration's matrix: 2^40 steps tell singular values apart that differ by a billionth.
const SQUARINGS: usize = 40;

/// Plain steps behind them, which take the squarings' roundings away.
const STEPS: usize = 4;

/// The first right singular vector of `B A`, `[in_features]`, of length 1 with its largest element positive; zeros where the
/// product is zero. The scaling does not change it.
///
/// In rank space: `v = A^T c` where c is the first eigenvector of `B^T B A A^T`, by power iteration in f64; a power of two
/// steps at a time. Equal singular values share a plane, of which some vector is taken, the same on every machine and run.
pub fn arrow_prototype(lora: &Lora) -> Vec<f32> {
    let (rank, in_features) = (lora.rank(), lora.in_features());
    let a: Vec<f64> = lora.a().map(f64::from).collect();
    let b: Vec<f64> = lora.b().map(f64::from).collect();
    let gram = |i: usize, j: usize| b.chunks(rank).map(|row| row[i] * row[j]).sum::<f64>();
    let outer = |i: usize, j: usize| {
        let (i, j) = (&a[i * in_features..][..in_features], &a[j * in_features..][..in_features]);
        i.iter().zip(j).map(|(i, j)| i * j).sum::<f64>()
    };
    let of = |f: &dyn Fn(usize, usize) -> f64| (0..rank * rank).map(|n| f(n / rank, n % rank)).collect();
    let (gram, outer): (Vec<f64>, Vec<f64>) = (of(&gram), of(&outer));
    let step = normalised(product(&gram, &outer, rank));
    let power = (0..SQUARINGS).fold(step.clone(), |power, _| normalised(product(&power, &power, rank)));
    // All columns of a high power are multiples of the eigenvector: the longest has the most of it.
    let length = |j: usize| (0..rank).map(|i| power[i * rank + j].powi(2)).sum::<f64>();
    let longest = (0..rank).fold(0, |best, j| if length(j) > length(best) { j } else { best });
    let mut c: Vec<f64> = (0..rank).map(|i| power[i * rank + longest]).collect();
    for _ in 0..STEPS {
        c = step.chunks(rank).map(|row| row.iter().zip(&c).map(|(s, c)| s * c).sum()).collect();
        c = normalised(c);
    }
    let v: Vec<f64> =
        (0..in_features).map(|i| (0..rank).map(|r| a[r * in_features + i] * c[r]).sum()).collect();
    let length = v.iter().map(|v| v * v).sum::<f64>().sqrt();
    let largest = v.iter().fold(0.0, |largest: f64, &v| if v.abs() > largest.abs() { v } else { largest });
    if length == 0.0 {
        return vec![0.0; in_features];
    }
    v.iter().map(|v| (v / (length * largest.signum())) as f32).collect()
}

/// One prototype an adapter, in slot order.
pub(super) fn router(loras: &[&Lora]) -> Result<LinearRouter> {
    let Some(first) = loras.first() else {
        return Err(Error::argument(OP, "adapters", "at least one", 0));
    };
    let in_features = first.in_features();
    if let Some(e) = loras.iter().position(|lora| lora.in_features() != in_features) {
        let got = loras[e].in_features();
        return Err(Error::argument(OP, format!("adapters[{e}]"), format!("{in_features} columns"), got));
    }
    let v: Vec<f32> = loras.iter().flat_map(|lora| arrow_prototype(lora)).collect();
    LinearRouter::prototypes(loras.len(), in_features, &v, Prototypes::arrow())
}

/// `[n, n]` times `[n, n]`.
fn product(a: &[f64], b: &[f64], n: usize) -> Vec<f64> {
    let mut c = vec![0.0; n * n];
    for (row, c) in a.chunks(n).zip(c.chunks_mut(n)) {
        for (a, b) in row.iter().zip(b.chunks(n)) {
            c.iter_mut().zip(b).for_each(|(c, b)| *c += a * b);
        }
    }
    c
}

/// Divided by the largest magnitude; zeros stay.
fn normalised(mut values: Vec<f64>) -> Vec<f64> {
    let largest = values.iter().fold(0.0, |largest: f64, v| largest.max(v.abs()));
    if largest > 0.0 {
        values.iter_mut().for_each(|v| *v /= largest);
    }
    values
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `B A` of two columns of B along the axes, with singular values as given and right vectors e0 and (e1 - e2) / sqrt 2.
    fn known(first: f32, second: f32) -> Lora {
        let (a, b) = ([first, 0.0, 0.0, 0.0, second, -second], [1.0, 0.0, 0.0, 1.0]);
        Lora::new(3, 2, 2, -3.0, &a, &b).unwrap()
    }

    #[test]
    fn the_larger_singular_value_wins_however_close() {
        let half = std::f32::consts::FRAC_1_SQRT_2;
        assert_eq!(arrow_prototype(&known(2.0, 1.0)), [1.0, 0.0, 0.0]);
        let near = |v: Vec<f32>, want: [f32; 3]| v.iter().zip(want).all(|(v, w)| (v - w).abs() < 1e-6);
        assert!(near(arrow_prototype(&known(1.0, 1.0)), [0.0, half, -half]));
        // Singular values 1.0000001 and 1: a thousand plain steps would mix both.
        let a = [1.000_000_1f32, 0.0, 0.0, 1.0];
        assert!(near3(&arrow_prototype(&Lora::new(2, 2, 2, 1.0, &a, &[1.0, 0.0, 0.0, 1.0]).unwrap())));
        fn near3(v: &[f32]) -> bool {
            (v[0] - 1.0).abs() < 1e-6 && v[1].abs() < 1e-6
        }
    }

    #[test]
    fn a_product_of_zero_has_no_direction() {
        let zero = Lora::new(3, 2, 1, 1.0, &[1.0f32, 2.0, 3.0], &[0.0, 0.0]).unwrap();
        assert_eq!(arrow_prototype(&zero), [0.0; 3]);
        assert!(router(&[]).is_err());
        let other = Lora::new(2, 2, 1, 1.0, &[1.0f32, 2.0], &[0.0, 0.0]).unwrap();
        assert!(router(&[&zero, &other]).is_err());
    }

    #[test]
    fn no_other_direction_is_changed_more() {
        let value = |n: usize| ((n * 7919 + 13) % 101) as f32 / 50.0 - 1.0;
        let (a, b): (Vec<f32>, Vec<f32>) =
            ((0..5 * 9).map(value).collect(), (0..6 * 5).map(|n| value(n + 64)).collect());
        let lora = Lora::new(9, 6, 5, 1.0, &a, &b).unwrap();
        // |B A v| by plain loops.
        let change = |v: &[f32]| {
            let h: Vec<f64> =
                a.chunks(9).map(|row| row.iter().zip(v).map(|(a, v)| f64::from(a * v)).sum()).collect();
            let y = b.chunks(5).map(|row| row.iter().zip(&h).map(|(&b, h)| f64::from(b) * h).sum::<f64>());
            y.map(|y| y * y).sum::<f64>().sqrt() / v.iter().map(|&v| f64::from(v * v)).sum::<f64>().sqrt()
        };
        let v = arrow_prototype(&lora);
        let most = change(&v);
        for n in 0..9 {
            for by in [-0.01, 0.01] {
                let mut other = v.clone();
                other[n] += by;
                assert!(change(&other) <= most, "{n} {by}: {} > {most}", change(&other));
            }
        }
    }
}
