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
    let call = |sizes: base::Sizes, rows: usize, bias: Option<usize>, x: usize, y: usize| {
        let bias = bias.map(|len| vec![0f32; len]);
        let weight = cpu.pack(rows, 3, &vec![0f32; 3 * rows]).unwrap();
        refuses(cpu.base(&sizes, &weight, bias.as_deref(), &vec![0.0; x], &mut vec![0.0; y]))
    };
    assert_eq!(refuses(cpu.pack(4, 3, &[0f32; 11])), "pack: weight: expected 12 elements, got 11");
    let huge = refuses(cpu.pack(usize::MAX, 3, &[0f32; 12]));
    assert!(huge.starts_with("pack: out_features * in_features: expected a size that fits"), "{huge}");
    assert_eq!(call(sizes, 5, None, 6, 8), "base: weight.out_features: expected 4, got 5");
    assert_eq!(call(sizes, 4, Some(3), 6, 8), "base: bias: expected 4 elements, got 3");
    assert_eq!(
        call(sizes, 4, None, 5, 8),
        "base: x: expected at least 6 elements (2 rows of 3, stride 3), got 5"
    );
    assert_eq!(
        call(sizes, 4, None, 6, 7),
        "base: y: expected at least 8 elements (2 rows of 4, stride 4), got 7"
    );
    let narrow = base::Sizes { y_stride: 3, ..sizes };
    assert_eq!(call(narrow, 4, None, 6, 8), "base: y_stride: expected at least the row's 4 elements, got 3");
}
