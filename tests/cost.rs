//! The cost model against what the PTX machine counts: launches, bytes of global memory, multiply-adds on tensor cores.

use molora::element::ElementType::Bf16;
use molora::ops::fused::{Form, cost};
use molora_check::counters::count;
use molora_check::{Case, Inputs, Op, Subject, subjects};

/// Multiply-adds of one tensor-core instruction.
const PER_MMA: f64 = 16.0 * 8.0 * 16.0;

/// Launches, distinct bytes of each launch together, multiply-adds on tensor cores; routing and plan aside.
fn counted(subject: &dyn Subject, case: &Case) -> (usize, f64, f64) {
    let counters = count(subject, &Inputs::new(case)).unwrap().expect("a stand-in counts");
    let (mut launches, mut sectors, mut mma) = (0, 0.0, 0.0);
    for (kernel, counters) in &counters {
        if kernel.starts_with("plan") || kernel.starts_with("route") {
            continue;
        }
        launches += counters["launches"].as_u64().unwrap() as usize;
        sectors += counters["unique_read"]["sectors"].as_f64().unwrap();
        sectors += counters["unique_written"]["sectors"].as_f64().unwrap();
        mma += counters["mma_issued"].as_f64().unwrap_or_default();
    }
    (launches, 32.0 * sectors, PER_MMA * mma)
}

#[test]
fn the_model_says_what_the_machine_counts() {
    let found = subjects().unwrap_or_else(|why| panic!("{why}"));
    let Some(subject) =
        found.iter().find(|s| s.is_stand_in() && s.details().contains(&("kernels".into(), "sm_80".into())))
    else {
        return println!("not tested: no PTX machine here with the sm_80 kernels");
    };
    // Tokens that fill their tiles, so that padding is no part of the difference.
    for (form, tokens, experts, rank) in [
        (Form::Few, 8, 8, 16),
        (Form::Few, 16, 8, 16),
        (Form::Sparse, 128, 8, 16),
        (Form::Sparse, 256, 8, 32),
        (Form::Sparse, 128, 64, 40),
        (Form::Dense, 128, 8, 16),
        (Form::Beside, 128, 8, 16),
    ] {
        let (in_features, out_features, ranks) = (1024, 512, vec![rank]);
        let case = Case { tokens, experts, ranks, in_features, out_features, ..Case::new(Op::Fused) };
        let case = Case { form: Some(form), ..case.element(Bf16) };
        let problem = case.problem();
        let choice = cost::choose(&problem, &subject.limits(&problem), Some(form)).unwrap();
        let cost = choice.costs.iter().find(|(f, _)| *f == form).unwrap().1.as_ref().unwrap();
        let (launches, bytes, multiply_adds) = counted(subject.as_ref(), &case);
        // In few, B h is f32 arithmetic: not on tensor cores.
        let expand = if form == Form::Few { (case.routes() * rank * out_features) as f64 } else { 0.0 };
        let ratios = (bytes / cost.bytes, multiply_adds / (cost.multiply_adds - expand));
        println!(
            "{case}: {launches} launches, bytes {:.3}, multiply-adds {:.3} of the model's",
            ratios.0, ratios.1
        );
        assert_eq!(launches, cost.launches, "{case}: launches");
        assert!((0.95..1.10).contains(&ratios.0), "{case}: {bytes} bytes, {}", cost.bytes);
        assert!(
            (0.98..1.15).contains(&ratios.1),
            "{case}: {multiply_adds} multiply-adds, {}",
            cost.multiply_adds
        );
    }
}

/// What one form for every batch size costs on CUDA, by counts: MING-MOE on Qwen1.5-1.8B (2048 wide, 8 experts of rank 16, top
/// 2), 512 of its columns, so that a machine that counts runs it. The CPU's kernels have one order for every batch anyway.
#[cfg(feature = "cuda")]
#[test]
fn what_batch_invariance_costs() {
    use molora_check::subject::CudaSubject;
    subjects().unwrap_or_else(|why| panic!("{why}"));
    let Ok(cuda) = molora::Cuda::new(0) else { return println!("not tested: no CUDA device here") };
    if !cuda.is_stand_in() || !cuda.offer().has_mma(Bf16, Bf16) {
        return println!("not tested: no PTX machine here with the sm_80 kernels");
    }
    println!(
        "tokens | invariant | form | launches (+ plan) | distinct bytes | multiply-adds on tensor cores, of the problem's"
    );
    for tokens in [1, 16, 64, 256] {
        let sizes =
            Case { tokens, in_features: 2048, out_features: 512, ..Case::new(Op::Fused) }.element(Bf16);
        let useful = (tokens * 2048 * 512 + sizes.routes() * 16 * (2048 + 512)) as f64;
        let [free, fixed] = [false, true].map(|invariant| {
            let subject = CudaSubject::new(cuda.batch_invariant(invariant));
            let problem = sizes.problem();
            let choice = cost::choose(&problem, &subject.limits(&problem), None).unwrap();
            let case = Case { form: Some(choice.form), ..sizes.clone() };
            let (launches, bytes, multiply_adds) = counted(&subject, &case);
            let plan =
                choice.costs.iter().find(|(form, _)| *form == choice.form).unwrap().1.as_ref().unwrap();
            println!(
                "{tokens} | {invariant} | {} | {launches} (+ {}) | {bytes} | {:.2}",
                choice.form.name(),
                plan.setup_launches,
                multiply_adds / useful
            );
            (choice.form, launches, bytes)
        });
        assert_eq!((fixed.0, fixed.1), (Form::Sparse, 2), "{tokens} tokens");
        let ratio = fixed.2 / free.2;
        assert!(ratio <= 1.10, "{tokens} tokens: {ratio:.3} of the bytes without invariance");
    }
}
