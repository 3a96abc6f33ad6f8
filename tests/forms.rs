//! The shared table on WebGPU in the forms that its own choice would not take: one form for every batch size, and the
//! tiles of shrink that GPUs take, which software drivers would not.
#![cfg(feature = "wgpu")]

use molora::Wgpu;
use molora_check::subject::WgpuSubject;
use molora_check::{Extent, Op, Outcome, cases, check};

fn every_case(op: Op, form: impl Fn(&Wgpu) -> Wgpu) {
    // Panics where MOLORA_REQUIRE names a device that is not there.
    molora_check::subjects().unwrap_or_else(|why| panic!("{why}"));
    for adapter in Wgpu::adapters() {
        let subject = WgpuSubject::new(form(&Wgpu::open(&adapter).unwrap()));
        let mut right = 0;
        for case in cases(op, Extent::Short) {
            match check(&subject, &case) {
                Outcome::Right(_) => right += 1,
                Outcome::Unsupported(_) => {}
                Outcome::Wrong(why) => panic!("{}: {why}", case.label("wgpu")),
            }
        }
        assert!(right > 0, "{op:?}: no case ran");
    }
}

#[test]
fn shrink_in_both_tiles() {
    every_case(Op::Shrink, |wgpu| wgpu.batch_invariant(true).wide_tiles(false));
    every_case(Op::Shrink, |wgpu| wgpu.batch_invariant(true).wide_tiles(true));
    every_case(Op::Shrink, |wgpu| wgpu.wide_tiles(false));
}

#[test]
fn expand_for_many_tokens() {
    every_case(Op::Expand, |wgpu| wgpu.batch_invariant(true));
}

#[test]
fn base_for_many_tokens() {
    every_case(Op::Base, |wgpu| wgpu.batch_invariant(true));
}
