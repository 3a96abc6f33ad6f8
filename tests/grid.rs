//! Launches are pure functions of sizes: every row and every column has a workgroup, and the form is the one that is
//! asked for. No device.
#![cfg(feature = "wgpu")]

use molora::ElementType;
use molora::device::wgpu::{Path, Tuning};
use molora::ops::route::Weighting;
use molora::ops::{Form, Output, base, expand, plan, route, shrink};

#[test]
fn base_covers_every_token_and_column() {
    for tokens in [0, 1, 4, 5, 63, 64, 65, 1000] {
        for out_features in [1, 7, 8, 9, 63, 64, 65] {
            for fixed in [false, true] {
                let (in_features, x_stride, y_stride) = (8, 8, out_features);
                let sizes = base::Sizes { tokens, in_features, out_features, x_stride, y_stride };
                for (path, tile) in [(Path::Tiles, 64), (Path::Lanes, 16)] {
                    let grid = base::grid(&sizes, &Tuning { path, ..Tuning::plain() }, fixed);
                    assert_eq!(grid.form == Form::Few, tokens <= 4 && !fixed);
                    let rows = if grid.form == Form::Few { tokens } else { tokens.div_ceil(tile) };
                    assert_eq!(grid.groups, rows * grid.blocks);
                    assert!(grid.blocks * grid.columns >= out_features);
                    assert!((grid.blocks - 1) * grid.columns < out_features, "no block without a column");
                }
            }
        }
    }
}

#[test]
fn shrink_covers_every_route_and_rank() {
    let (tokens, top_k, in_features, x_stride, output) = (40, 2, 8, 8, Output::Sum);
    for max_rank in [1, 8, 9, 16, 17, 32, 33, 64, 256] {
        let sizes = shrink::Sizes { tokens, top_k, in_features, x_stride, h_stride: max_rank, output };
        for (live, fixed, form) in [(10, false, Form::Many), (11, false, Form::Few), (11, true, Form::Many)] {
            for path in [Path::Tiles, Path::Lanes] {
                let tuning = Tuning { path, ..Tuning::plain() };
                let grid = shrink::grid(&sizes, (live, max_rank, 13), &tuning, fixed);
                assert_eq!(grid.form, form);
                assert_eq!(grid.groups, if form == Form::Few { 80 } else { 13 } * grid.blocks);
                assert!(
                    grid.blocks * grid.columns >= max_rank && (grid.blocks - 1) * grid.columns < max_rank
                );
            }
        }
    }
    let empty = shrink::Sizes { tokens: 0, top_k, in_features, x_stride, h_stride: 16, output };
    assert_eq!(shrink::grid(&empty, (4, 16, 0), &Tuning::plain(), false).groups, 0);
}

#[test]
fn expand_covers_every_row_and_column() {
    let (top_k, h_stride, accumulate) = (2, 16, true);
    for (tokens, live, fixed, form) in [
        (15, 1, false, Form::Few),
        (16, 16, false, Form::Many),
        (16, 17, false, Form::Few),
        (1, 17, true, Form::Many),
    ] {
        for out_features in [1, 255, 256, 257] {
            for output in Output::ALL {
                let y_stride = out_features;
                let sizes =
                    expand::Sizes { tokens, top_k, out_features, h_stride, y_stride, output, accumulate };
                let y = ElementType::F32;
                let grid = expand::grid(&sizes, y, live, 1, &Tuning::plain(), fixed);
                assert_eq!(grid.form, form, "{tokens} tokens, {live} adapters");
                let rows = if form == Form::Few { output.y_rows(tokens, top_k) } else { 1 };
                assert_eq!(grid.groups, rows * grid.blocks);
                assert_eq!(grid.blocks, out_features.div_ceil(256));
            }
        }
    }
}

#[test]
fn expand_on_lanes_keeps_f32_in_whole_fours() {
    let lanes = Tuning { path: Path::Lanes, owners: 32, ..Tuning::plain() };
    let sizes = |out_features| expand::Sizes {
        tokens: 256,
        top_k: 2,
        out_features,
        h_stride: 16,
        y_stride: out_features,
        output: Output::Sum,
        accumulate: true,
    };
    // 16 chunks of 16 tokens: all of them and 256 columns a workgroup, or one.
    let groups = |out_features, y| expand::grid(&sizes(out_features), y, 8, 16, &lanes, false).groups;
    assert_eq!((groups(256, ElementType::F32), groups(260, ElementType::F32)), (1, 2));
    assert_eq!((groups(257, ElementType::F32), groups(256, ElementType::F16)), (32, 16));
}

#[test]
fn plan_and_route_do_nothing_without_routes() {
    let routes = |tokens, top_k| plan::grid(&plan::Sizes { tokens, top_k, experts: 8 });
    assert_eq!(routes(0, 2), [0, 0, 0]);
    assert_eq!(routes(9, 0), [0, 0, 0]);
    assert_eq!(routes(16, 2), [1, 1, 1]);
    assert_eq!(routes(17, 2), [2, 1, 2]);
    assert_eq!(routes(3, 256), [3, 1, 3]);
    let weighting = Weighting::SoftmaxAll;
    let route = |tokens, top_k| {
        let rule = route::Rule::top_k(top_k, weighting);
        let sizes = route::Sizes { tokens, in_features: 8, x_stride: 8, experts: 8, rule };
        route::wgpu::grid(&sizes, &Tuning::plain(), false).groups
    };
    assert_eq!([route(0, 2), route(5, 0), route(5, 2)], [0, 0, 5]);
}

#[test]
fn route_covers_every_token() {
    let sizes = |tokens: usize, experts: usize, top_k: usize| route::Sizes {
        tokens,
        in_features: 8,
        x_stride: 8,
        experts,
        rule: route::Rule::top_k(top_k, Weighting::SoftmaxAll),
    };
    for fixed in [false, true] {
        for tokens in [0, 1, 7, 8, 15, 16, 17, 512] {
            for (experts, top_k) in [(8, 2), (31, 2), (32, 2), (64, 2), (65, 32), (166, 33)] {
                let grid = route::wgpu::grid(&sizes(tokens, experts, top_k), &Tuning::plain(), fixed);
                let many = experts >= 32 && top_k <= 32 && (tokens >= 8 || fixed);
                assert_eq!(grid.form == Form::Many, many, "{tokens} tokens, {experts} experts");
                assert_eq!(grid.groups, if many { tokens.div_ceil(16) } else { tokens });
            }
        }
        assert_eq!(route::wgpu::grid(&sizes(100, 100, 0), &Tuning::plain(), fixed).groups, 0);
    }
}
