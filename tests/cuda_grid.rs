//! CUDA's launches are pure functions of sizes, alignment and the device's kernels: every row and every column has a
//! block, and the form is the one that is asked for. No device.
#![cfg(feature = "cuda")]

use molora::ElementType::{self, Bf16, F16, F32};
use molora::device::cuda::{Kernel, Launch, Offer, Plan};
use molora::ops::{Form, Output, base, expand, fused, plan, route, shrink};

const NO_MMA: Offer = Offer { batch_invariant: false, mma_f16: false, mma_bf16: false };
const AMPERE: Offer = Offer { mma_f16: true, mma_bf16: true, ..NO_MMA };
const TURING: Offer = Offer { mma_f16: true, ..NO_MMA };

fn fixed(offer: Offer) -> Offer {
    Offer { batch_invariant: true, ..offer }
}

fn covers(launch: &Launch, rows: usize, width: usize) {
    assert!(launch.blocks * launch.columns >= width);
    assert!((launch.blocks - 1) * launch.columns < width, "no block without a column");
    assert_eq!(launch.groups, rows * launch.blocks);
}

/// Blocks of few take 16 columns, or 32 on tensor cores where x is not a small part of what they read.
#[test]
fn few_covers_every_column_and_rank() {
    for tokens in [0, 1, 8, 9, 16] {
        for out_features in [1, 15, 16, 17, 31, 32, 33, 100] {
            let sizes = fused::Sizes {
                tokens,
                top_k: 2,
                in_features: 8,
                out_features,
                x_stride: 8,
                y_stride: out_features,
                h_stride: 40,
                output: Output::Sum,
            };
            for (elements, offer, kernel) in [
                ((F16, F16), AMPERE, Kernel::FusedFewMma),
                ((Bf16, Bf16), TURING, Kernel::FusedFew),
                ((F32, F32), AMPERE, Kernel::FusedFew),
            ] {
                let launch = fused::few_cuda::grid(&sizes, elements, 40, true, &offer);
                let wide = kernel == Kernel::FusedFewMma && tokens > 8;
                assert_eq!((launch.entry.kernel, launch.columns), (kernel, if wide { 32 } else { 16 }));
                // Three blocks for the 40 ranks of each route come first.
                covers(&Launch { groups: launch.groups - 6 * tokens, ..launch }, tokens.min(1), out_features);
            }
        }
    }
}

#[test]
fn base_covers_every_token_and_column() {
    for tokens in [0, 1, 8, 9, 63, 64, 65, 127, 128, 129, 1000] {
        for out_features in [1, 7, 8, 9, 63, 64, 65, 127, 128, 129] {
            let sizes =
                base::Sizes { tokens, in_features: 8, out_features, x_stride: 8, y_stride: out_features };
            let grid = |x, vector, offer| base::cuda::grid(&sizes, x, vector, &offer);
            let few = grid(F16, true, AMPERE);
            assert_eq!(few.form == Form::Few, tokens <= 8);
            if few.form == Form::Few {
                covers(&few, tokens.div_ceil(8), out_features);
            }
            for (x, vector, offer, kernel, rows) in [
                (F32, true, AMPERE, Kernel::BaseMany, 64),
                (F16, false, AMPERE, Kernel::BaseMany, 64),
                (Bf16, true, TURING, Kernel::BaseMany, 64),
                (F16, true, TURING, Kernel::BaseMma, 128),
                (Bf16, true, AMPERE, Kernel::BaseMma, 128),
            ] {
                let launch = grid(x, vector, fixed(offer));
                assert_eq!((launch.form, launch.entry.kernel), (Form::Many, kernel), "{x} {offer:?}");
                covers(&launch, tokens.div_ceil(rows), out_features);
            }
        }
    }
}

#[test]
fn shrink_covers_every_tile_and_rank() {
    let (top_k, in_features, x_stride, output) = (2, 8, 8, Output::Sum);
    for max_rank in [1, 8, 9, 16, 31, 32, 33, 64, 256] {
        for (tokens, live, form) in [
            (1, 2, Form::Few),
            (16, 5, Form::Few),
            (16, 4, Form::Many),
            (17, 500, Form::Many),
            (4, 1, Form::Many),
            (3, 1, Form::Few),
        ] {
            let sizes = shrink::Sizes { tokens, top_k, in_features, x_stride, h_stride: max_rank, output };
            let grid = |elements, vector, offer: Offer| {
                shrink::cuda::grid(&sizes, elements, (live, max_rank, 13), vector, &offer)
            };
            let launch = grid((F32, F32), true, AMPERE);
            assert_eq!(launch.form, form, "{tokens} tokens, {live} adapters");
            covers(&launch, 13, max_rank);
            assert_eq!(launch.columns, if form == Form::Few { 8 } else { 32 });
            for (elements, vector, offer, kernel) in [
                ((F16, F16), true, TURING, Kernel::ShrinkMma),
                ((Bf16, Bf16), true, AMPERE, Kernel::ShrinkMma),
                ((Bf16, Bf16), true, TURING, Kernel::ShrinkMany),
                ((F16, F16), false, AMPERE, Kernel::ShrinkMany),
                ((F16, Bf16), true, AMPERE, Kernel::ShrinkMany),
                ((F32, F32), true, AMPERE, Kernel::ShrinkMany),
            ] {
                let launch = grid(elements, vector, fixed(offer));
                assert_eq!(
                    (launch.form, launch.entry.kernel),
                    (Form::Many, kernel),
                    "{elements:?} {offer:?}"
                );
                covers(&launch, 13, max_rank);
            }
        }
    }
    let empty = shrink::Sizes { tokens: 0, top_k, in_features, x_stride, h_stride: 16, output };
    assert_eq!(shrink::cuda::grid(&empty, (F32, F32), (4, 16, 0), true, &AMPERE).groups, 0);
    let no_adapter = shrink::Sizes { tokens: 4, ..empty };
    assert_eq!(shrink::cuda::grid(&no_adapter, (F32, F32), (0, 0, 8), true, &AMPERE).groups, 0);
}

#[test]
fn expand_covers_every_row_and_column() {
    let (top_k, h_stride, accumulate) = (2, 16, true);
    let both = |x: ElementType| (x, x);
    for (tokens, live, elements, offer, kernel) in [
        (15, 1, both(F16), AMPERE, Kernel::ExpandFew),
        (16, 16, both(F32), AMPERE, Kernel::ExpandMany),
        (16, 17, both(F32), AMPERE, Kernel::ExpandFew),
        (16, 32, both(F16), AMPERE, Kernel::ExpandMma),
        (16, 33, both(F16), AMPERE, Kernel::ExpandFew),
        (16, 16, both(Bf16), TURING, Kernel::ExpandMany),
        (16, 16, (F16, Bf16), AMPERE, Kernel::ExpandMany),
        (1, 17, both(F32), fixed(AMPERE), Kernel::ExpandMany),
        (1, 17, both(Bf16), fixed(AMPERE), Kernel::ExpandMma),
    ] {
        for out_features in [1, 127, 128, 129, 511, 512, 513] {
            for output in Output::ALL {
                let y_stride = out_features;
                let sizes =
                    expand::Sizes { tokens, top_k, out_features, h_stride, y_stride, output, accumulate };
                let launch = expand::cuda::grid(&sizes, elements, (live, 8, 1), &offer);
                assert_eq!(launch.entry.kernel, kernel, "{tokens} tokens, {live} adapters, {elements:?}");
                let few = kernel == Kernel::ExpandFew;
                let rows = if few { output.y_rows(tokens, top_k) } else { 1 };
                assert_eq!(launch.columns, if few { 512 } else { 128 });
                covers(&launch, rows, out_features);
            }
        }
    }
}

#[test]
fn route_covers_every_token() {
    for (tokens, top_k, offer, kernel, groups) in [
        (0, 2, AMPERE, Kernel::RouteFew, 0),
        (1, 2, AMPERE, Kernel::RouteFew, 1),
        (127, 64, AMPERE, Kernel::RouteFew, 127),
        (128, 64, AMPERE, Kernel::RouteMany, 16),
        (129, 2, NO_MMA, Kernel::RouteMany, 17),
        (1000, 65, AMPERE, Kernel::RouteFew, 1000),
        (1000, 0, AMPERE, Kernel::RouteMany, 0),
        (1, 2, fixed(AMPERE), Kernel::RouteMany, 1),
        (9, 64, fixed(AMPERE), Kernel::RouteMany, 2),
        (9, 65, fixed(AMPERE), Kernel::RouteFew, 9),
    ] {
        let rule = route::Rule::top_k(top_k, route::Weighting::Uniform);
        let sizes = route::Sizes { tokens, in_features: 8, x_stride: 8, experts: 100, rule };
        let launch = route::cuda::grid(&sizes, F16, &offer);
        assert_eq!((launch.entry.kernel, launch.groups), (kernel, groups), "{tokens} tokens, top {top_k}");
        assert_eq!(launch.form == Form::Many, kernel == Kernel::RouteMany);
    }
}

#[test]
fn plan_takes_one_launch_for_one_chunk() {
    let grid = |tokens, top_k| {
        plan::cuda::grid(&plan::Sizes { tokens, top_k, experts: 8 })
            .iter()
            .map(|launch| (launch.entry.name(), launch.groups))
            .collect::<Vec<_>>()
    };
    let one = |chunks: usize| match chunks {
        0 => Vec::new(),
        1 => vec![("plan_one".to_string(), 1)],
        _ => [("plan_chunks", chunks), ("plan_scan", 1), ("plan_place", chunks)]
            .map(|(name, groups)| (name.to_string(), groups))
            .to_vec(),
    };
    for (tokens, top_k, chunks) in [
        (0, 2, 0),
        (9, 0, 0),
        (1, 1, 1),
        (64, 8, 1),
        (65, 8, 2),
        (64, 1, 1),
        (65, 1, 2),
        (3, 512, 3),
        (64, 9, 2),
    ] {
        assert_eq!(grid(tokens, top_k), one(chunks), "{tokens} x {top_k}");
    }
}

/// A piece on tensor cores keeps its rank in 16 bits.
#[test]
fn expand_takes_larger_ranks_without_tensor_cores() {
    let offer = Offer { batch_invariant: false, mma_f16: true, mma_bf16: true };
    let output = Output::Sum;
    for (max_rank, kernel) in [(0xffff, Kernel::ExpandMma), (0x10000, Kernel::ExpandMany)] {
        let (tokens, top_k, out_features, h_stride, y_stride, accumulate) = (64, 1, 64, max_rank, 64, false);
        let sizes = expand::Sizes { tokens, top_k, out_features, h_stride, y_stride, output, accumulate };
        let elements = (ElementType::F16, ElementType::F16);
        assert_eq!(expand::cuda::grid(&sizes, elements, (1, max_rank, 1), &offer).entry.kernel, kernel);
    }
}

#[test]
fn absurd_sizes_saturate() {
    const MAX: usize = usize::MAX;
    for (tokens, top_k, experts) in [(MAX, MAX, MAX), (MAX, 1, 1), (1, MAX, 1), (1, 1, MAX), (MAX, 8, MAX)] {
        let sizes = plan::Sizes { tokens, top_k, experts };
        assert_eq!(Plan::bytes(&sizes), u64::MAX, "{sizes:?}");
        assert!(plan::cuda::grid(&sizes).len() <= 3);
        for live in [0, 1, MAX] {
            let (in_features, x_stride, h_stride, output) = (8, 8, MAX, Output::PerRoute);
            let sizes = shrink::Sizes { tokens, top_k, in_features, x_stride, h_stride, output };
            let launch = shrink::cuda::grid(&sizes, (F32, F32), (live, MAX, MAX), true, &AMPERE);
            assert_eq!(launch.groups, MAX);
        }
    }
}
