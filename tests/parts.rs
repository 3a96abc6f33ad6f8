//! Weights larger than a device binds at once are bound in parts, and nobody can tell from the result.
#![cfg(feature = "wgpu")]

use molora::Wgpu;
use molora::device::wgpu::trace::Command;
use molora::device::wgpu::{Path, Tuning};
use molora::element::ElementType;
use molora::ops::fused::Form;
use molora::ops::grouped::Rows;
use molora_check::case::Group;
use molora_check::guarded::Tensor;
use molora_check::subject::WgpuSubject;
use molora_check::{Case, Extent, Inputs, Op, Outcome, Subject, cases, check, subjects, with_rows};

/// Every WebGPU device; says so where there is none, and fails where `MOLORA_REQUIRE` names one.
fn devices() -> Vec<Wgpu> {
    let subjects = subjects().unwrap_or_else(|why| panic!("{why}"));
    let all: Vec<Wgpu> = subjects.iter().filter_map(|subject| subject.wgpu()).cloned().collect();
    if all.is_empty() {
        println!("not tested: no WebGPU adapter here");
    }
    all
}

/// Each device's path of many rows and, in the long run, every one that it has: drivers compile them for minutes. 64 columns
/// of y are a block of each.
fn ways() -> Vec<Wgpu> {
    let (mut all, long) = (Vec::new(), std::env::var_os("MOLORA_LONG").is_some());
    for wgpu in devices() {
        let own = *wgpu.tuning();
        let tiles = Tuning { path: Path::Tiles, ..own };
        let lanes = Tuning { path: Path::Lanes, owners: 8, ..own };
        let asked = [tiles, lanes].into_iter().filter(|way| long || way.path == own.path);
        all.extend(asked.filter_map(|way| wgpu.tuned(way).ok()));
    }
    all.extend(Wgpu::adapters().iter().filter_map(|adapter| Wgpu::open_with_matrices(adapter).ok()));
    all
}

fn by_matrices(wgpu: &Wgpu) -> bool {
    wgpu.tuning().path == Path::Matrix
}

/// All bytes of y after a case, guards and padding too, and the dispatches that it took, by their kernels.
fn run(wgpu: &Wgpu, inputs: &Inputs) -> Result<(Vec<u8>, Vec<&'static str>), String> {
    let traced = wgpu.traced();
    let subject = WgpuSubject::new(traced.clone());
    let mut y: Tensor = inputs.y.clone();
    let called = match inputs.case.op {
        Op::Base => subject.base(inputs, &mut y),
        Op::Fused => subject.fused(inputs, &mut y),
        _ => subject.grouped(inputs, &mut y),
    };
    called.map_err(|e| e.to_string())?;
    let reads = |command: &Command| match command {
        Command::Dispatch(dispatch) => {
            // There w is A.
            let shrinks = dispatch.entry.starts_with("shrink") || dispatch.entry == "fused_few_shrink";
            let reads = dispatch.bindings.iter().any(|b| b.name == "w") && !shrinks;
            reads.then_some(dispatch.entry)
        }
        Command::Clear { .. } => None,
    };
    let dispatches = traced.take_trace().commands.iter().filter_map(reads).collect();
    Ok((with_rows!(&y, y => bytemuck::cast_slice::<_, u8>(&y.all).to_vec()), dispatches))
}

/// Bytes that bind so many rows of a case's weight, wherever they begin.
fn limit(wgpu: &Wgpu, case: &Case, rows: usize) -> u64 {
    let slack = wgpu.limits().min_storage_buffer_offset_alignment + 4;
    (rows * case.in_features * case.x.bytes()) as u64 + u64::from(slack)
}

/// Cases with several blocks of columns, in every pair of elements, with slices and with every kind of rows.
fn several_blocks(op: Op) -> Vec<Case> {
    let of = |element: ElementType| Case {
        tokens: 67,
        in_features: 24,
        out_features: 330,
        ranks: vec![3, 8],
        experts: 4,
        padding: 2,
        ..Case::new(op).element(element)
    };
    let mut all = Vec::new();
    for element in ElementType::ALL {
        let case = of(element);
        match op {
            Op::Base => {
                all.extend([3, 67].map(|tokens| Case { tokens, bias: true, ..case.clone() }));
                // Rows at places that matrices take.
                let matrices = Case { padding: 8, ..case.clone() };
                all.extend((element == ElementType::F16).then_some(matrices));
                // Rows at places that no four elements share.
                all.extend((element == ElementType::F32).then(|| Case { in_features: 23, ..case.clone() }));
            }
            Op::Fused => {
                for (form, tokens) in [(Form::Sparse, 67), (Form::Dense, 67), (Form::Few, 3), (Form::Few, 12)]
                {
                    all.push(Case { form: Some(form), tokens, bias: true, ..case.clone() });
                }
                // Whole fours of f32, which lanes sum in y.
                let fours = Case { form: Some(Form::Sparse), out_features: 332, bias: true, ..case.clone() };
                all.extend((element == ElementType::F32).then_some(fours));
                for (form, tokens) in [(Form::Sparse, 67), (Form::Few, 3)] {
                    all.push(Case { form: Some(form), tokens, slices: 3, ..case.clone() });
                }
            }
            _ => all.extend(Rows::ALL.map(|rows| {
                let group = Group { experts: 5, rows, x_per_route: rows == Rows::Combined };
                Case { group, tokens: 33, ..case.clone() }
            })),
        }
    }
    all
}

#[test]
fn parts_give_the_bits_of_the_whole() {
    for wgpu in ways() {
        let (mut most, mut kernels) = (0, Vec::new());
        for op in [Op::Base, Op::Fused, Op::Grouped] {
            for case in several_blocks(op) {
                let inputs = Inputs::new(&case);
                let (whole, one) = run(&wgpu, &inputs).unwrap();
                assert_eq!(one.len(), 1, "{case}");
                kernels.extend(one);
                let gated = op == Op::Grouped && case.group.rows == Rows::Gated;
                // A block alone and two of them; of experts one and two; an expert of gate and up cannot be cut.
                let rows: &[usize] = match op {
                    Op::Grouped if gated => &[330, 660],
                    Op::Grouped => &[64, 128, 330, 660],
                    _ => &[64, 130],
                };
                for &rows in rows {
                    let (parts, dispatches) =
                        run(&wgpu.with_binding_limit(limit(&wgpu, &case, rows)), &inputs)
                            .unwrap_or_else(|why| panic!("{case}, {rows} rows: {why}"));
                    assert!(dispatches.len() > 1, "{case}: {rows} rows in one dispatch");
                    assert!(parts == whole, "{case}: parts of {rows} rows");
                    most = most.max(dispatches.len());
                }
            }
        }
        assert_eq!(by_matrices(&wgpu), kernels.contains(&"base_matrix"), "{kernels:?}");
        let lanes = wgpu.tuning().path == Path::Lanes;
        for kernel in ["base_lanes", "fused_lanes", "fused_lanes_sums", "grouped_lanes"] {
            assert_eq!(lanes, kernels.contains(&kernel), "{kernels:?}");
        }
        println!("{}, {}: up to {most} parts", wgpu.describe(), wgpu.tuning());
    }
}

/// The table's own cases, sizes 0 and 1 and around every tile's edge, through parts of a block and judged as ever.
#[test]
fn every_case_in_parts() {
    for wgpu in ways().into_iter().filter(|wgpu| !by_matrices(wgpu)) {
        for op in [Op::Base, Op::Fused, Op::Grouped] {
            let (mut right, mut wrong) = (0, Vec::new());
            let table = cases(op, Extent::Short);
            // Some of them: the whole tables have tests of their own.
            let step = if op == Op::Base { 3 } else { 13 };
            for case in table.iter().skip(1).step_by(step) {
                let gated = op == Op::Grouped && case.group.rows == Rows::Gated;
                let rows = if gated { case.out_features.max(64) } else { 64 };
                let subject = WgpuSubject::new(wgpu.with_binding_limit(limit(&wgpu, case, rows)));
                match check(&subject, case) {
                    Outcome::Right(_) => right += 1,
                    Outcome::Unsupported(_) => {}
                    Outcome::Wrong(why) => wrong.push(format!("{case}: {why}")),
                }
            }
            assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));
            assert!(right > 10, "{right}");
        }
    }
}

#[test]
fn a_block_that_cannot_be_bound_is_an_error() {
    for wgpu in devices() {
        let case = several_blocks(Op::Base).remove(0);
        let small = wgpu.with_binding_limit(limit(&wgpu, &case, 7) - 1);
        let why = run(&small, &Inputs::new(&case)).unwrap_err();
        assert!(why.starts_with("base: weight: expected parts of at most the binding limit"), "{why}");
        let gated = several_blocks(Op::Grouped).into_iter().find(|c| c.group.rows == Rows::Gated).unwrap();
        let small = wgpu.with_binding_limit(limit(&wgpu, &gated, 200));
        let why = run(&small, &Inputs::new(&gated)).unwrap_err();
        assert!(why.contains("one of 330 rows of 24 elements"), "{why}");
    }
}

/// Weights of 150 MiB and more, above what software drivers bind (128 MiB on lavapipe).
#[test]
fn weights_above_128_mib() {
    if std::env::var_os("MOLORA_LONG").is_none() {
        println!("not tested: MOLORA_LONG is not set");
        return;
    }
    let wide =
        |op: Op| Case { tokens: 2, in_features: 1024, out_features: 40_000, ranks: vec![2], ..Case::new(op) };
    let fused = |form, tokens| Case { form: Some(form), tokens, ..wide(Op::Fused) };
    let group = Group { experts: 40, rows: Rows::Plain, x_per_route: false };
    let all = [
        wide(Op::Base),
        Case { tokens: 5, ..wide(Op::Base) },
        fused(Form::Few, 2),
        fused(Form::Sparse, 5),
        fused(Form::Dense, 5),
        Case { group, out_features: 1024, experts: 1, tokens: 5, ..wide(Op::Grouped) },
    ];
    for wgpu in devices() {
        for case in &all {
            let outcome = check(&WgpuSubject::new(wgpu.clone()), case);
            assert!(matches!(outcome, Outcome::Right(_)), "{case}: {outcome:?}");
            println!("{case} on {}: right", wgpu.describe());
        }
    }
}
