//! What one rounding of y less is worth: every fused form against float64, beside the separate launches on the same inputs.

use molora::element::ElementType;
use molora::ops::fused::Form;
use molora_check::guarded::Tensor;
use molora_check::{Case, Inputs, Op, Subject, subjects};

/// `y [tokens, out_features]` in float64 from the inputs as they are rounded to their elements.
fn oracle(inputs: &Inputs) -> Vec<f64> {
    let (case, wide) = (&inputs.case, |rows: &Tensor| rows.dense().into_iter().map(f64::from).collect());
    let (x, weight): (Vec<f64>, Vec<f64>) = (wide(&inputs.x), wide(&inputs.weight));
    let dot = |a: &[f64], b: &mut dyn Iterator<Item = f64>| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    let mut y = Vec::with_capacity(case.tokens * case.out_features);
    for (t, x) in x.chunks(case.in_features).enumerate() {
        let mut row: Vec<f64> =
            weight.chunks(case.in_features).map(|w| dot(x, &mut w.iter().copied())).collect();
        for n in t * case.top_k..(t + 1) * case.top_k {
            let e = &inputs.experts[inputs.topk_ids[n] as usize];
            let wide = |row: &[f32]| row.iter().map(|&v| f64::from(v)).collect::<Vec<f64>>();
            let h: Vec<f64> =
                e.lora_a.chunks(case.in_features).map(|a| dot(x, &mut wide(a).into_iter())).collect();
            let factor = f64::from(inputs.topk_weights[n]) * f64::from(e.scaling);
            for (y, b) in row.iter_mut().zip(e.lora_b.chunks(e.rank)) {
                *y += factor * dot(&h, &mut wide(b).into_iter());
            }
        }
        y.append(&mut row);
    }
    y
}

/// The largest relative L2 error of a row, and the root of the mean square of all.
fn errors(subject: &dyn Subject, inputs: &Inputs, form: Form, want: &[f64]) -> (f64, f64) {
    let mut inputs = inputs.clone();
    inputs.case.form = Some(form);
    let (mut y, width) = (inputs.y.clone(), inputs.case.out_features);
    subject.fused(&inputs, &mut y).unwrap_or_else(|e| panic!("{}: {e}", inputs.case));
    let norm = |row: &mut dyn Iterator<Item = f64>| row.map(|v| v * v).sum::<f64>().sqrt();
    let rows = y.dense();
    let relative = rows.chunks(width).zip(want.chunks(width)).map(|(got, want)| {
        norm(&mut got.iter().zip(want).map(|(&g, w)| f64::from(g) - w)) / norm(&mut want.iter().copied())
    });
    let relative: Vec<f64> = relative.collect();
    let mean = relative.iter().map(|v| v * v).sum::<f64>() / relative.len() as f64;
    (relative.into_iter().fold(0.0, f64::max), mean.sqrt())
}

/// Sizes and magnitudes of a layer: experts that change y by half of it, and by a twentieth.
fn problems(element: ElementType) -> impl Iterator<Item = (Inputs, f32)> {
    [(1, 1.0), (2, 1.0), (3, 0.1), (4, 0.1)].into_iter().map(move |(seed, scaling)| {
        let sizes = Case { in_features: 256, out_features: 256, tokens: 16, seed, ..Case::new(Op::Fused) };
        let mut inputs = Inputs::new(&sizes.element(element));
        inputs.experts.iter_mut().for_each(|e| e.scaling *= scaling);
        (inputs, scaling)
    })
}

/// What adding some hundred terms one after another in f32 costs a row: eight roundings. Separate launches may add in an order
/// that costs half of it.
const IN_ORDER: f64 = 8.0 / (1u64 << 24) as f64;

/// In 16 bits a fused form's worst row is no worse than the separate launches', which round y twice. In f32 there is but the
/// order of the sums between them.
#[test]
fn fused_forms_are_no_less_exact_than_separate_launches() {
    let mut wrong = Vec::new();
    println!("device | element | experts x | seed | form | worst row | of separate | mean | of separate");
    for subject in subjects().unwrap_or_else(|why| panic!("{why}")) {
        for element in ElementType::ALL {
            for (inputs, scaling) in problems(element) {
                let want = oracle(&inputs);
                let (worst, mean) = errors(subject.as_ref(), &inputs, Form::Beside, &want);
                for form in Form::ALL {
                    let case = Case { form: Some(form), ..inputs.case.clone() };
                    if subject.unsupported(&case).is_some() {
                        continue;
                    }
                    let (form_worst, form_mean) = errors(subject.as_ref(), &inputs, form, &want);
                    let line = format!(
                        "{} | {element} | {scaling} | {} | {} | {form_worst:.3e} | {worst:.3e} | {form_mean:.3e} | {mean:.3e}",
                        subject.name(),
                        case.seed,
                        form.name()
                    );
                    println!("{line}");
                    let limit = if element == ElementType::F32 { IN_ORDER.max(2.0 * worst) } else { worst };
                    if form_worst > limit {
                        wrong.push(line);
                    }
                }
            }
        }
    }
    assert!(wrong.is_empty(), "less exact than the separate launches:\n{}", wrong.join("\n"));
}
