//! Adapters on disk: what is read, and what is refused with which words.

mod files;
mod hostile;
mod ming;
mod parameters;
mod peft;
mod phatgoose;
mod torch;
mod written;

use files::{bf16_bytes, f16_bytes, f32_bytes};
use half::{bf16, f16};
use molora::adapter::Lora;
use molora::element::ElementType;
use molora::error::Error;

#[test]
fn lora_keeps_its_weights_bit_for_bit() {
    let a: Vec<f16> = (0..6).map(|i| f16::from_f32(i as f32 * 0.3)).collect();
    let b: Vec<f16> = (0..8).map(|i| f16::from_f32(-(i as f32) * 0.7)).collect();
    let lora = Lora::new(3, 4, 2, 0.5, &a, &b).unwrap();
    assert_eq!((lora.in_features(), lora.out_features(), lora.rank()), (3, 4, 2));
    assert_eq!((lora.scaling(), lora.element()), (0.5, ElementType::F16));
    assert_eq!(lora.a_as::<f16>().unwrap(), a);
    assert_eq!(lora.b_as::<f16>().unwrap(), b);
    assert_eq!(lora.a_as::<f32>(), None);
    assert_eq!(lora.b_as::<bf16>(), None);
    assert!(lora.a().eq(a.iter().map(|w| w.to_f32())));
    assert!(lora.b().eq(b.iter().map(|w| w.to_f32())));
    assert_eq!(lora.a_bytes(), f16_bytes(&a));
    assert_eq!(lora.b_bytes(), f16_bytes(&b));
    let weights = [1.5f32, -0.1];
    let lora = Lora::new(2, 2, 1, 1.0, &weights, &weights).unwrap();
    assert_eq!((lora.a_bytes(), lora.a_as::<f32>().unwrap()), (&f32_bytes(&weights)[..], weights.to_vec()));
    let weights = weights.map(bf16::from_f32);
    let lora = Lora::new(2, 2, 1, 1.0, &weights, &weights).unwrap();
    assert_eq!((lora.a_bytes(), lora.a_as::<bf16>().unwrap()), (&bf16_bytes(&weights)[..], weights.to_vec()));
}

#[test]
fn lora_refuses_by_argument() {
    let refused = |lora: Result<Lora, Error>| match lora {
        Err(Error::Argument { op: "lora", argument, .. }) => argument,
        other => panic!("{other:?}"),
    };
    let (two, nan) = ([1.0f32; 2], [1.0, f32::NAN]);
    assert_eq!(refused(Lora::new(2, 2, 0, 1.0, &two, &two)), "rank");
    assert_eq!(refused(Lora::new(0, 2, 1, 1.0, &[], &two)), "in_features");
    assert_eq!(refused(Lora::new(2, 0, 1, 1.0, &two, &[])), "out_features");
    assert_eq!(refused(Lora::new(2, 2, 1, f32::INFINITY, &two, &two)), "scaling");
    assert_eq!(refused(Lora::new(3, 2, 1, 1.0, &two, &two)), "lora_a");
    assert_eq!(refused(Lora::new(2, 3, 1, 1.0, &two, &two)), "lora_b");
    assert_eq!(refused(Lora::new(2, 2, 1, 1.0, &nan, &two)), "lora_a[1]");
    assert_eq!(refused(Lora::new(2, 2, 1, 1.0, &two, &nan)), "lora_b[1]");
    assert_eq!(refused(Lora::new(usize::MAX, 2, 2, 1.0, &two, &two)), "lora_a");
    let infinite = [f16::INFINITY, f16::ONE];
    assert_eq!(refused(Lora::new(2, 2, 1, 1.0, &infinite, &infinite)), "lora_a[0]");
}
