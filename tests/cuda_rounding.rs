//! Expand on tensor cores rounds h to the element once, and does nothing else to it: against h rounded before, its limits
//! are those of a device that rounds nothing.
#![cfg(feature = "cuda")]

use half::{bf16, f16};
use molora::element::ElementType;
use molora_check::expect::{self, Roundings};
use molora_check::{Extent, Inputs, Op, cases, judge, subjects};

/// As f16 with a range without end: what the kernel's powers of two give.
fn rounded(value: f32, element: ElementType) -> f32 {
    let scale = f32::from_bits(value.abs().to_bits() & 0x7f80_0000).max(f32::MIN_POSITIVE);
    match element {
        ElementType::F16 => f16::from_f32(value / scale).to_f32() * scale,
        ElementType::Bf16 => bf16::from_f32(value).to_f32(),
        ElementType::F32 => value,
    }
}

#[test]
fn h_is_rounded_once() {
    let all = subjects().unwrap_or_else(|why| panic!("{why}"));
    let Some(cuda) = all.iter().find(|subject| subject.kind() == "cuda") else {
        println!("not tested: no CUDA device");
        return;
    };
    let mut judged = 0;
    for case in cases(Op::Expand, Extent::Short).into_iter().filter(|case| cuda.h_rounding(case) > 0.0) {
        let mut inputs = Inputs::new(&case);
        let mut y = inputs.y.clone();
        cuda.expand(&inputs, &mut y).unwrap_or_else(|e| panic!("{case}: {e}"));
        inputs.h.all.iter_mut().for_each(|h| *h = rounded(*h, case.x));
        let expected = expect::rows(&inputs, Roundings::default()).unwrap_or_else(|e| panic!("{case}: {e}"));
        if let Err(why) = judge::compare(&expected, &inputs.y, &y) {
            // Few rows do not go through tensor cores: nothing is rounded there.
            let plain = expect::rows(&Inputs::new(&case), Roundings::default())
                .unwrap_or_else(|e| panic!("{case}: {e}"));
            judge::compare(&plain, &inputs.y, &y).unwrap_or_else(|other| panic!("{case}: {why}; {other}"));
        } else {
            judged += 1;
        }
    }
    assert!(judged > 10, "{judged} cases");
}
