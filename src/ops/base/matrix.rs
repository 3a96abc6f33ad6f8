//! When base's many tokens go through cooperative matrices.

use super::Sizes;
use crate::device::wgpu::{Path, Tuning, View};
use crate::element::{Element, ElementType};

/// What the shapes are called in `base_matrix.wgsl`.
const EIGHT: &str = "alias Left = coop_mat8x8<f16, A>;
alias Right = coop_mat8x8<f16, B>;
alias Totals = coop_mat8x8<f32, C>;
";
const SIXTEEN: &str = "alias Left = coop_mat16x16<f16, A>;
alias Right = coop_mat16x16<f16, B>;
alias Totals = coop_mat16x16<f32, C>;
";

/// Columns of a workgroup.
pub(super) const COLUMNS: usize = 64;

/// A matrix loads whole rows at multiples of 16 bytes.
const STEP: usize = 8;

/// The side of the matrices and its text, where the device has them and every matrix lies inside x, weight and y: f16, at
/// least a side of tokens, and of columns in every workgroup, whole sides of the inner dimension, whole pairs of y. Never
/// where one form must serve every batch size. Tiles take the rest.
pub(super) fn side<X: Element>(
    sizes: &Sizes,
    tuning: &Tuning,
    batch_invariant: bool,
    (weight, x): (View<X>, View<X>),
) -> Option<(u32, &'static str)> {
    let side = tuning.matrix.filter(|_| tuning.path == Path::Matrix && tuning.f16 && !batch_invariant)?;
    let n = side as usize;
    let fits = X::TYPE == ElementType::F16
        && sizes.tokens >= n
        && sizes.out_features > 0
        && (sizes.out_features - 1) % COLUMNS + 1 >= n
        && sizes.in_features > 0
        && sizes.in_features.is_multiple_of(n)
        && sizes.out_features.is_multiple_of(2)
        && [sizes.x_stride, weight.first, x.first].iter().all(|at| at.is_multiple_of(STEP));
    let text = match side {
        8 => EIGHT,
        16 => SIXTEEN,
        _ => return None,
    };
    fits.then_some((side, text))
}
