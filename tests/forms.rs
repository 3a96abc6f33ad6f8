//! The shared table on GPUs in the forms that their own choice would not take: one form for every batch size, the tiles of
//! shrink that WebGPU's hardware takes and software drivers would not, and CUDA without tensor cores.
#![cfg(any(feature = "wgpu", feature = "cuda"))]

use molora_check::{Case, Extent, Op, Outcome, Subject, cases, check};

fn every_case(subject: &dyn Subject, op: Op, asked: impl Fn(&Case) -> bool) {
    let mut right = 0;
    for case in cases(op, Extent::Short).iter().filter(|case| asked(case)) {
        match check(subject, case) {
            Outcome::Right(_) => right += 1,
            Outcome::Unsupported(_) => {}
            Outcome::Wrong(why) => panic!("{}: {why}", case.label(subject.kind())),
        }
    }
    assert!(right > 0, "{op:?}: no case ran");
}

#[cfg(feature = "wgpu")]
mod on_wgpu {
    use super::every_case;
    use molora::device::wgpu::{Path, Tuning};
    use molora::{ElementType, Wgpu};
    use molora_check::subject::WgpuSubject;
    use molora_check::{Case, Op};

    /// Another choice than the table's, within what the device has.
    fn tuned(wgpu: &Wgpu, change: impl Fn(Tuning) -> Tuning) -> Wgpu {
        wgpu.tuned(change(*wgpu.tuning())).unwrap()
    }

    fn on_each(op: Op, form: impl Fn(&Wgpu) -> Wgpu) {
        on_each_of(op, form, |_| true);
    }

    /// Drivers compile for minutes what all cases in all forms need: the long run has them, others have f32 alone.
    fn in_time(case: &Case) -> bool {
        let f32 = [case.x, case.adapters] == [ElementType::F32; 2];
        f32 || std::env::var_os("MOLORA_LONG").is_some()
    }

    fn on_each_of(op: Op, form: impl Fn(&Wgpu) -> Wgpu, asked: impl Fn(&Case) -> bool) {
        // Panics where MOLORA_REQUIRE names a device that is not there.
        molora_check::subjects().unwrap_or_else(|why| panic!("{why}"));
        for adapter in Wgpu::adapters() {
            let subject = WgpuSubject::new(form(&Wgpu::open(&adapter).unwrap()));
            every_case(&subject, op, &asked);
        }
    }

    /// Every product of many rows by tiles in workgroup memory, which a software driver with subgroups would not take.
    fn in_tiles(op: Op) {
        let tiles =
            |wgpu: &Wgpu| tuned(wgpu, |t| Tuning { path: Path::Tiles, subgroups: false, f16: false, ..t });
        on_each_of(op, |wgpu| tiles(wgpu).batch_invariant(true), in_time);
    }

    #[test]
    fn shrink_in_both_tiles() {
        in_tiles(Op::Shrink);
        let narrow = |t| Tuning { path: Path::Tiles, wide_tiles: false, ..t };
        on_each(Op::Shrink, |wgpu| tuned(wgpu, narrow).batch_invariant(true));
        on_each(Op::Shrink, |wgpu| tuned(wgpu, narrow));
    }

    #[test]
    fn fused_in_narrow_tiles() {
        let narrow = |t| Tuning { path: Path::Tiles, wide_fused: false, ..t };
        on_each_of(Op::Fused, |wgpu| tuned(wgpu, narrow).batch_invariant(true), in_time);
    }

    #[test]
    fn products_for_every_batch() {
        for op in [Op::Fused, Op::Grouped, Op::Route, Op::Layer] {
            on_each_of(op, |wgpu| wgpu.batch_invariant(true), in_time);
        }
    }

    #[test]
    fn products_in_tiles() {
        for op in [Op::Base, Op::Expand, Op::Fused, Op::Grouped, Op::Route, Op::Attend] {
            in_tiles(op);
        }
    }

    #[test]
    fn shrink_for_many_routes() {
        on_each(Op::Shrink, |wgpu| wgpu.batch_invariant(true));
    }

    #[test]
    fn expand_for_many_tokens() {
        on_each(Op::Expand, |wgpu| wgpu.batch_invariant(true));
    }

    #[test]
    fn base_for_many_tokens() {
        on_each(Op::Base, |wgpu| wgpu.batch_invariant(true));
    }
}

#[cfg(feature = "cuda")]
mod on_cuda {
    use super::every_case;
    use molora::{Cuda, ElementType};
    use molora_check::subject::CudaSubject;
    use molora_check::{Case, Op};

    fn on_device(op: Op, form: impl Fn(&Cuda) -> Cuda, asked: impl Fn(&Case) -> bool) {
        // Panics where MOLORA_REQUIRE names a device that is not there.
        molora_check::subjects().unwrap_or_else(|why| panic!("{why}"));
        match Cuda::new(0) {
            Ok(cuda) => every_case(&CudaSubject::new(form(&cuda)), op, asked),
            Err(why) => println!("not tested: {why}"),
        }
    }

    /// Tensor cores take what they can, and with them off the same cases go to f32 arithmetic.
    fn in_tiles(op: Op) {
        on_device(op, |cuda| cuda.batch_invariant(true), |_| true);
        let half = |case: &Case| case.x == case.adapters && case.x != ElementType::F32;
        on_device(op, |cuda| cuda.batch_invariant(true).tensor_cores(false), half);
    }

    #[test]
    fn shrink_in_tiles() {
        in_tiles(Op::Shrink);
    }

    #[test]
    fn expand_in_tiles() {
        in_tiles(Op::Expand);
    }

    #[test]
    fn base_in_tiles() {
        in_tiles(Op::Base);
    }

    #[test]
    fn route_in_tiles() {
        on_device(Op::Route, |cuda| cuda.batch_invariant(true), |_| true);
    }
}
