//! The published formulas once more, in f64 and as matrices: every expert of every token, then a mask. Nothing here calls the
//! library.

/// `[rows, columns]`, row-major.
#[derive(Debug, Clone, PartialEq)]
pub struct Matrix {
    pub columns: usize,
    pub data: Vec<f64>,
}

impl Matrix {
    pub fn new(columns: usize, data: Vec<f64>) -> Self {
        assert!(data.len().is_multiple_of(columns));
        Self { columns, data }
    }

    pub fn rows(&self) -> impl Iterator<Item = &[f64]> {
        self.data.chunks(self.columns)
    }

    /// Times a column.
    pub fn times(&self, x: &[f64]) -> Vec<f64> {
        self.rows().map(|row| dot(row, x)).collect()
    }

    pub fn scaled(&self, by: f64) -> Self {
        Self { columns: self.columns, data: self.data.iter().map(|v| v * by).collect() }
    }

    pub fn plus(&self, other: &Self) -> Self {
        let data = self.data.iter().zip(&other.data).map(|(a, b)| a + b).collect();
        Self { columns: self.columns, data }
    }
}

/// One expert: `scaling b a`.
#[derive(Debug, Clone)]
pub struct Expert {
    pub scaling: f64,
    /// `[rank, in]`.
    pub a: Matrix,
    /// `[out, rank]`.
    pub b: Matrix,
}

impl Expert {
    pub fn times(&self, x: &[f64]) -> Vec<f64> {
        self.b.times(&self.a.times(x)).into_iter().map(|v| v * self.scaling).collect()
    }
}

pub fn dot(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// `base x + sum over all experts of gate_e expert_e x`.
pub fn sum(base: &Matrix, experts: &[Expert], gates: &[f64], x: &[f64]) -> Vec<f64> {
    let mut y = base.times(x);
    for (expert, gate) in experts.iter().zip(gates) {
        y.iter_mut().zip(expert.times(x)).for_each(|(y, v)| *y += gate * v);
    }
    y
}

/// `base x + (sum gate_e scaling_e B_e) (sum gate_e A_e) x`, of equal ranks.
pub fn fusion(base: &Matrix, experts: &[Expert], gates: &[f64], x: &[f64]) -> Vec<f64> {
    let all = experts.iter().zip(gates);
    let a = all.clone().map(|(e, &g)| e.a.scaled(g)).reduce(|s, m| s.plus(&m)).unwrap();
    let b = all.map(|(e, &g)| e.b.scaled(g * e.scaling)).reduce(|s, m| s.plus(&m)).unwrap();
    base.times(x).iter().zip(b.times(&a.times(x))).map(|(y, v)| y + v).collect()
}

pub fn softmax(z: &[f64]) -> Vec<f64> {
    let largest = z.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let e: Vec<f64> = z.iter().map(|z| (z - largest).exp()).collect();
    let sum: f64 = e.iter().sum();
    e.iter().map(|e| e / sum).collect()
}

/// 1 for the k best, 0 elsewhere; no two that decide are so close that f32 could choose either.
pub fn best(z: &[f64], k: usize) -> Vec<f64> {
    let mut sorted = z.to_vec();
    sorted.sort_by(|a, b| b.total_cmp(a));
    let edge = sorted.get(k).map_or(f64::NEG_INFINITY, |next| (sorted[k - 1] + next) / 2.0);
    assert!(sorted.get(k).is_none_or(|next| sorted[k - 1] - next > 1e-6), "a tie decides: {sorted:?}");
    z.iter().map(|&z| f64::from(u8::from(z > edge))).collect()
}

/// The shares of p that the mask leaves, divided by their sum.
pub fn renormalised(p: &[f64], mask: &[f64]) -> Vec<f64> {
    let left: f64 = dot(p, mask);
    p.iter().zip(mask).map(|(p, m)| if left > 0.0 { p * m / left } else { 0.0 }).collect()
}

/// Softmax with minus infinity where the mask is 0.
pub fn masked_softmax(z: &[f64], mask: &[f64]) -> Vec<f64> {
    let z: Vec<f64> =
        z.iter().zip(mask).map(|(&z, &m)| if m > 0.0 { z } else { f64::NEG_INFINITY }).collect();
    softmax(&z)
}

/// LayerNorm without affine parameters.
pub fn layer_norm(u: &[f64]) -> Vec<f64> {
    let n = u.len() as f64;
    let mean = u.iter().sum::<f64>() / n;
    let variance = u.iter().map(|u| (u - mean).powi(2)).sum::<f64>() / n;
    u.iter().map(|u| (u - mean) / (variance + 1e-5).sqrt()).collect()
}

pub fn sigmoid(z: f64) -> f64 {
    1.0 / (1.0 + (-z).exp())
}

pub fn silu(z: f64) -> f64 {
    z * sigmoid(z)
}

/// The first right singular vector of the expert's whole `[out, in]` product, by one-sided Jacobi rotations of its columns.
pub fn first_right_vector(expert: &Expert) -> Vec<f64> {
    let inputs = expert.a.columns;
    let unit = |n: usize| -> Vec<f64> { (0..inputs).map(|i| f64::from(u8::from(i == n))).collect() };
    // Column j of the product, and of the rotations so far.
    let mut columns: Vec<Vec<f64>> = (0..inputs).map(|j| expert.times(&unit(j))).collect();
    let mut v: Vec<Vec<f64>> = (0..inputs).map(unit).collect();
    for _ in 0..40 {
        for p in 0..inputs {
            for q in p + 1..inputs {
                let (pp, qq) = (dot(&columns[p], &columns[p]), dot(&columns[q], &columns[q]));
                let pq = dot(&columns[p], &columns[q]);
                if pq.abs() <= 1e-16 * (pp * qq).sqrt() {
                    continue;
                }
                let zeta = (qq - pp) / (2.0 * pq);
                let t = zeta.signum() / (zeta.abs() + (1.0 + zeta * zeta).sqrt());
                let c = 1.0 / (1.0 + t * t).sqrt();
                for m in [&mut columns, &mut v] {
                    for i in 0..m[p].len() {
                        let (a, b) = (m[p][i], m[q][i]);
                        (m[p][i], m[q][i]) = (c * (a - t * b), c * (t * a + b));
                    }
                }
            }
        }
    }
    let length = |j: &usize| dot(&columns[*j], &columns[*j]);
    let first = (0..inputs).max_by(|i, j| length(i).total_cmp(&length(j))).unwrap();
    v.swap_remove(first)
}
