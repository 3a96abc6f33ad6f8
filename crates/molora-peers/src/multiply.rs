//! The products of two crates behind one signature.

/// A crate's product.
pub trait Multiply: Copy + Send + Sync + 'static {
    /// `y [m, n] = x [m, k] w^T`, or added to y where `add`; w is `[n, k]`; all row by row.
    fn multiply(
        self,
        y: &mut [f32],
        x: &[f32],
        w: &[f32],
        sizes: (usize, usize, usize),
        add: bool,
        threads: usize,
    );
}

/// The gemm crate.
#[derive(Clone, Copy)]
pub struct Gemm;

impl Multiply for Gemm {
    fn multiply(
        self,
        y: &mut [f32],
        x: &[f32],
        w: &[f32],
        (m, n, k): (usize, usize, usize),
        add: bool,
        threads: usize,
    ) {
        assert!(y.len() == m * n && x.len() == m * k && w.len() == n * k, "lengths of {m} x {n} x {k}");
        let parallelism =
            if threads > 1 { gemm::Parallelism::Rayon(threads) } else { gemm::Parallelism::None };
        let [n_stride, k_stride] = [n, k].map(|stride| stride as isize);
        // SAFETY: the slices have the lengths that these sizes and strides reach, by the assertion.
        unsafe {
            let (y, x, w) = (y.as_mut_ptr(), x.as_ptr(), w.as_ptr());
            let (of_y, of_x, of_w) = ((1, n_stride), (1, k_stride), (k_stride, 1));
            let (keep, times) = (1f32, 1f32);
            gemm::gemm(
                m,
                n,
                k,
                y,
                of_y.0,
                of_y.1,
                add,
                x,
                of_x.0,
                of_x.1,
                w,
                of_w.0,
                of_w.1,
                keep,
                times,
                false,
                false,
                false,
                parallelism,
            );
        }
    }
}

/// faer.
#[derive(Clone, Copy)]
pub struct Faer;

impl Multiply for Faer {
    fn multiply(
        self,
        y: &mut [f32],
        x: &[f32],
        w: &[f32],
        (m, n, k): (usize, usize, usize),
        add: bool,
        threads: usize,
    ) {
        use faer::{Accum, MatMut, MatRef, Par};
        let parallelism = if threads > 1 { Par::rayon(threads) } else { Par::Seq };
        let y = MatMut::from_row_major_slice_mut(y, m, n);
        let (x, w) = (MatRef::from_row_major_slice(x, m, k), MatRef::from_column_major_slice(w, k, n));
        let accumulate = if add { Accum::Add } else { Accum::Replace };
        faer::linalg::matmul::matmul(y, accumulate, x, w, 1.0, parallelism);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn right(multiply: impl Multiply) {
        let (m, n, k) = (3, 4, 5);
        let [x, w] = [m * k, n * k].map(|len| (0..len).map(|i| (i % 7) as f32 - 3.0).collect::<Vec<_>>());
        for (add, threads) in [(false, 1), (true, 1), (false, 2), (true, 2)] {
            let mut y = vec![if add { 2.0 } else { f32::NAN }; m * n];
            multiply.multiply(&mut y, &x, &w, (m, n, k), add, threads);
            for (i, &got) in y.iter().enumerate() {
                let (row, column) = (&x[i / n * k..][..k], &w[i % n * k..][..k]);
                let sum: f32 = row.iter().zip(column).map(|(x, w)| x * w).sum();
                assert_eq!(got, sum + if add { 2.0 } else { 0.0 }, "{i} {add} {threads}");
            }
        }
    }

    #[test]
    fn both_multiply() {
        right(Gemm);
        right(Faer);
    }
}
