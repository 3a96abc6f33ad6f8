//! The frozen product on every device: `y = x weight^T (+ bias)`.

mod common;

use common::{Small, refuses};
use molora::ops::base;
use molora_check::{Op, check_all};

#[test]
fn every_case_on_every_device() {
    check_all(Op::Base);
}

#[test]
fn errors_name_operation_argument_expected_and_got() {
    let cpu = Small::new([1]).cpu;
    let sizes = base::Sizes { tokens: 2, in_features: 3, out_features: 4, x_stride: 3, y_stride: 4 };
    let call = |sizes: base::Sizes, weight: usize, bias: Option<usize>, x: usize, y: usize| {
        let bias = bias.map(|len| vec![0f32; len]);
        refuses(cpu.base(&sizes, &vec![0f32; weight], bias.as_deref(), &vec![0.0; x], &mut vec![0.0; y]))
    };
    assert_eq!(call(sizes, 11, None, 6, 8), "base: weight: expected 12 elements, got 11");
    assert_eq!(call(sizes, 12, Some(3), 6, 8), "base: bias: expected 4 elements, got 3");
    assert_eq!(
        call(sizes, 12, None, 5, 8),
        "base: x: expected at least 6 elements (2 rows of 3, stride 3), got 5"
    );
    assert_eq!(
        call(sizes, 12, None, 6, 7),
        "base: y: expected at least 8 elements (2 rows of 4, stride 4), got 7"
    );
    let narrow = base::Sizes { y_stride: 3, ..sizes };
    assert_eq!(call(narrow, 12, None, 6, 8), "base: y_stride: expected at least the row's 4 elements, got 3");
    let huge = base::Sizes { out_features: usize::MAX, ..sizes };
    assert!(
        call(huge, 12, None, 6, 8).starts_with("base: out_features * in_features: expected a size that fits")
    );
}
