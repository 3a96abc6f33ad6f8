//! The definitions against formulas of their own: dense matrices in f64, gates for the chosen experts, 0 elsewhere.

use approx::assert_relative_eq;
use half::{bf16, f16};
use molora::ops::{Expert, Output, expand, plan, shrink};
use molora_check::inputs::ExpertValues;
use molora_check::{Case, Inputs, Op, Routing};

/// A dense matrix.
struct Matrix {
    columns: usize,
    cells: Vec<f64>,
}

impl Matrix {
    fn new(columns: usize, cells: &[f32]) -> Self {
        Self { columns, cells: cells.iter().copied().map(f64::from).collect() }
    }

    fn row(&self, r: usize) -> &[f64] {
        &self.cells[r * self.columns..(r + 1) * self.columns]
    }

    fn times(&self, v: &[f64]) -> Vec<f64> {
        self.cells.chunks(self.columns).map(|row| row.iter().zip(v).map(|(a, b)| a * b).sum()).collect()
    }
}

/// `(A, B scaled)` of every expert.
fn matrices(inputs: &Inputs) -> Vec<(Matrix, Matrix)> {
    let pair = |e: &ExpertValues| {
        let scaled: Vec<f32> = e.lora_b.iter().map(|b| b * e.scaling).collect();
        (Matrix::new(inputs.case.in_features, &e.lora_a), Matrix::new(e.rank, &scaled))
    };
    inputs.experts.iter().map(pair).collect()
}

/// Every expert on every token, then gates: the way of a layer that knows no routes.
fn dense(inputs: &Inputs) -> Vec<Vec<f64>> {
    let case = &inputs.case;
    let (x, experts) = (Matrix::new(case.in_features, &inputs.x.dense()), matrices(inputs));
    let add = |sum: &mut Vec<f64>, gate: f64, v: &[f64]| {
        sum.resize(v.len(), 0.0);
        sum.iter_mut().zip(v).for_each(|(s, v)| *s += gate * v);
    };
    let mut rows = Vec::new();
    for t in 0..case.tokens {
        let slots = t * case.top_k..(t + 1) * case.top_k;
        // The sum of the weights with which a token asks for an expert: one-hot rows, added up.
        let gate = |e: usize| -> f64 {
            let asked = slots.clone().filter(|&n| inputs.topk_ids[n] == e as i32);
            asked.map(|n| f64::from(inputs.topk_weights[n])).sum()
        };
        match case.output {
            Output::Sum => {
                let mut y = vec![0.0; case.out_features];
                for (e, (a, b)) in experts.iter().enumerate() {
                    add(&mut y, gate(e), &b.times(&a.times(x.row(t))));
                }
                rows.push(y);
            }
            Output::RankSum => {
                // The experts' matrices are mixed before they see x.
                let chosen =
                    || (0..experts.len()).filter(|&e| slots.clone().any(|n| inputs.topk_ids[n] == e as i32));
                let (mut a, mut b) = (Vec::new(), Vec::new());
                for e in chosen() {
                    add(&mut a, gate(e), &experts[e].0.cells);
                    add(&mut b, gate(e), &experts[e].1.cells);
                }
                let rank = chosen().next().map_or(0, |e| inputs.experts[e].rank);
                let mixed = Matrix { columns: case.in_features, cells: a }.times(x.row(t));
                rows.push(match rank {
                    0 => vec![0.0; case.out_features],
                    _ => Matrix { columns: rank, cells: b }.times(&mixed),
                });
            }
            Output::PerRoute => rows.extend(slots.map(|n| match usize::try_from(inputs.topk_ids[n]) {
                Ok(e) => experts[e].1.times(&experts[e].0.times(x.row(t))),
                Err(_) => vec![0.0; case.out_features],
            })),
        }
    }
    rows
}

/// Shrink and expand by the definitions.
fn defined(inputs: &Inputs) -> Vec<f32> {
    let case = &inputs.case;
    let experts: Vec<Expert<'_, f32>> = inputs
        .experts
        .iter()
        .map(|e| Expert { rank: e.rank, scaling: e.scaling, lora_a: &e.lora_a, lora_b: &e.lora_b })
        .collect();
    let plan = plan::definition(&inputs.plan_sizes(), &inputs.topk_ids, 0).unwrap();
    let shrink_sizes = inputs.shrink_sizes();
    let expand_sizes = expand::Sizes { accumulate: false, ..inputs.expand_sizes() };
    let mut h = vec![f32::NAN; case.output.h_rows(case.tokens, case.top_k) * inputs.h_stride()];
    let mut y = vec![f32::NAN; case.output.y_rows(case.tokens, case.top_k) * case.out_features];
    shrink::definition(&shrink_sizes, &plan, &experts, &inputs.x.dense(), &inputs.topk_weights, &mut h)
        .unwrap();
    expand::definition(&expand_sizes, &plan, &experts, &h, &inputs.topk_weights, &mut y).unwrap();
    y
}

#[test]
fn definitions_equal_the_dense_formulas() {
    for output in Output::ALL {
        for routing in Routing::ALL {
            for (top_k, ranks) in [(1, vec![3]), (2, vec![1, 4, 2]), (4, vec![5])] {
                let case = Case {
                    output,
                    routing,
                    top_k,
                    ranks,
                    tokens: 11,
                    experts: 6,
                    in_features: 9,
                    out_features: 7,
                    ..Case::new(Op::Delta)
                };
                let inputs = Inputs::new(&case);
                let want: Vec<f64> = dense(&inputs).into_iter().flatten().collect();
                let got = defined(&inputs);
                assert_eq!(want.len(), got.len(), "{case}");
                for (want, got) in want.iter().zip(&got) {
                    assert_relative_eq!(*want, f64::from(*got), epsilon = 1e-6, max_relative = 1e-5);
                }
            }
        }
    }
}

/// The sum of ranks has cross terms: it is another function than the sum.
#[test]
fn rank_sum_is_not_sum() {
    let y = |output| {
        let case = Case { output, tokens: 3, routing: Routing::Uniform, ..Case::new(Op::Delta) };
        defined(&Inputs::new(&case))
    };
    let (sum, rank_sum) = (y(Output::Sum), y(Output::RankSum));
    assert!(sum.iter().zip(&rank_sum).any(|(a, b)| (a - b).abs() > 0.05));
}

/// Outputs in 16 bits are the f32 outputs, rounded.
#[test]
fn definitions_round_to_the_element_once() {
    let inputs = Inputs::new(&Case { tokens: 6, ..Case::new(Op::Delta) });
    let experts: Vec<Expert<'_, f32>> = inputs
        .experts
        .iter()
        .map(|e| Expert { rank: e.rank, scaling: e.scaling, lora_a: &e.lora_a, lora_b: &e.lora_b })
        .collect();
    let plan = plan::definition(&inputs.plan_sizes(), &inputs.topk_ids, 0).unwrap();
    let h: Vec<f32> = (0..12 * 16).map(|i| (i % 13) as f32 / 7.0 - 0.9).collect();
    let sizes = expand::Sizes { accumulate: false, ..inputs.expand_sizes() };
    let weights = &inputs.topk_weights;
    let (mut y, mut y16, mut yb) = (vec![0f32; 6 * 64], vec![f16::ZERO; 6 * 64], vec![bf16::ZERO; 6 * 64]);
    expand::definition(&sizes, &plan, &experts, &h, weights, &mut y).unwrap();
    expand::definition(&sizes, &plan, &experts, &h, weights, &mut y16).unwrap();
    expand::definition(&sizes, &plan, &experts, &h, weights, &mut yb).unwrap();
    assert!(y.iter().zip(&y16).all(|(y, y16)| f16::from_f32(*y) == *y16));
    assert!(y.iter().zip(&yb).all(|(y, yb)| bf16::from_f32(*y) == *yb));
}
