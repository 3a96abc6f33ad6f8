//! The numbers of grouped cases and what must come out of them.

use crate::case::{Case, Op};
use crate::expect::{Numbers, Roundings};
use crate::guarded::Tensor;
use crate::inputs::Inputs;
use crate::judge::Expected;
use crate::rng::Rng;
use molora::error::Result;
use molora::ops::grouped::{self, Rows, Sizes};
use molora::ops::{Expert, Output, plan, shrink};

/// Rows of x.
pub(crate) fn x_rows(case: &Case) -> usize {
    if case.op == Op::Grouped && case.group.x_per_route { case.routes() } else { case.tokens }
}

/// Rows of y that so many tokens have.
pub(crate) fn y_rows(case: &Case, tokens: usize) -> usize {
    if case.group.rows == Rows::Combined { tokens } else { tokens * case.top_k }
}

/// Columns of y.
pub fn width(case: &Case) -> usize {
    if case.group.rows == Rows::Gated { case.out_features / 2 } else { case.out_features }
}

/// Every token's adapter, and its slots for the base experts of its routes: one token of four has none, and one route of
/// eight is left alone by its token's.
pub(crate) fn lora_ids(case: &Case, topk_ids: &[i32], rng: &mut Rng) -> Vec<i32> {
    let mut ids = Vec::with_capacity(topk_ids.len());
    for row in topk_ids.chunks(case.top_k.max(1)) {
        let none = rng.below(4) == 0 || case.experts == 0;
        let adapter = if none { None } else { Some(rng.below(case.experts)) };
        for &e in row {
            let alone = rng.below(8) == 0 || e < 0;
            let slot = adapter.map(|a| (a * case.group.experts) as i32 + e);
            ids.push(slot.filter(|_| !alone).unwrap_or(-1));
        }
    }
    ids
}

/// NaN everywhere: what is not written stays so.
pub(crate) fn start_of_y(case: &Case) -> Tensor {
    let width = width(case);
    Tensor::output(case.x, (y_rows(case, case.tokens), width, case.stride(width)), |_, _| f32::NAN)
}

impl Inputs {
    /// The sizes of the case's grouped product.
    pub fn grouped_sizes(&self) -> Sizes {
        let Case { tokens, top_k, in_features, out_features, group, .. } = self.case;
        Sizes {
            tokens,
            top_k,
            experts: group.experts,
            in_features,
            out_features,
            x_stride: self.case.stride(in_features),
            h_stride: self.h_stride(),
            y_stride: self.case.stride(width(&self.case)),
            x_per_route: group.x_per_route,
            rows: group.rows,
        }
    }

    /// The sizes of the plan over the base experts.
    pub fn group_plan_sizes(&self) -> plan::Sizes {
        plan::Sizes { experts: self.case.group.experts, ..self.plan_sizes() }
    }

    /// The sizes of the plan over the adapters' slots, whose tokens are the rows of x.
    pub fn lora_plan_sizes(&self) -> plan::Sizes {
        let Case { tokens, top_k, group, .. } = self.case;
        let (tokens, top_k) = if group.x_per_route { (tokens * top_k, 1) } else { (tokens, top_k) };
        plan::Sizes { tokens, top_k, experts: self.case.slots() }
    }

    /// The sizes of the shrink over that plan.
    pub fn lora_shrink_sizes(&self) -> shrink::Sizes {
        let plan::Sizes { tokens, top_k, .. } = self.lora_plan_sizes();
        shrink::Sizes { tokens, top_k, output: Output::Sum, ..self.shrink_sizes() }
    }
}

/// The definition's rows of these numbers, dense; NaN where there is no base expert.
pub(crate) fn rows(inputs: &Inputs, numbers: &Numbers, rows: Rows) -> Result<Vec<f32>> {
    let (case, experts) = (&inputs.case, numbers.experts(inputs));
    let slots = case.slots();
    let slices = |slot: usize| experts[slot..].iter().step_by(slots).copied().collect();
    let loras: Vec<Vec<Expert<f32>>> = (0..slots).map(slices).collect();
    definition(inputs, numbers, rows, &loras, &numbers.weight, case.out_features)
}

/// Gate or up alone: the rows of one slice before anything is made of them.
fn half(inputs: &Inputs, numbers: &Numbers, slice: usize) -> Result<Vec<f32>> {
    let (case, experts) = (&inputs.case, numbers.experts(inputs));
    let slots = case.slots();
    let loras: Vec<Vec<Expert<f32>>> = (0..slots).map(|slot| vec![experts[slice * slots + slot]]).collect();
    let part = case.out_features / 2 * case.in_features;
    let weight: Vec<f32> =
        numbers.weight.chunks(2 * part).flat_map(|w| w[slice * part..][..part].to_vec()).collect();
    definition(inputs, numbers, Rows::Plain, &loras, &weight, case.out_features / 2)
}

fn definition(
    inputs: &Inputs,
    numbers: &Numbers,
    rows: Rows,
    loras: &[Vec<Expert<f32>>],
    weight: &[f32],
    out_features: usize,
) -> Result<Vec<f32>> {
    let x_stride = inputs.case.in_features;
    let mut sizes = Sizes { rows, x_stride, out_features, ..inputs.grouped_sizes() };
    sizes.y_stride = sizes.width();
    let mut y = vec![f32::NAN; sizes.y_rows() * sizes.width()];
    let (ids, lora_ids) = (&inputs.topk_ids, &inputs.lora_ids);
    grouped::definition(&sizes, ids, lora_ids, loras, weight, &numbers.x, &numbers.topk_weights, &mut y)?;
    Ok(y)
}

/// What must come out of a grouped product.
pub(crate) fn expected(inputs: &Inputs, roundings: Roundings) -> Result<Expected> {
    let case = &inputs.case;
    let (values, magnitudes) = (Numbers::new(inputs, |v| v), Numbers::new(inputs, f32::abs));
    let mut experts = Numbers::new(inputs, f32::abs);
    experts.weight.fill(0.0);
    let want = rows(inputs, &values, case.group.rows)?;
    let (terms, mut h_rounding) = match case.group.rows {
        Rows::Gated => (gated(inputs, &values, &magnitudes)?, gated(inputs, &values, &experts)?),
        plain => (rows(inputs, &magnitudes, plain)?, rows(inputs, &experts, plain)?),
    };
    h_rounding.iter_mut().for_each(|v| *v *= roundings.h as f32);
    let combined = if case.group.rows == Rows::Combined { case.top_k } else { 0 };
    Ok(Expected {
        rows: y_rows(case, case.tokens),
        width: width(case),
        want,
        terms,
        length: case.in_features + case.max_rank() + combined + 1,
        between: Vec::new(),
        h_rounding: if roundings.h > 0.0 { h_rounding } else { Vec::new() },
    })
}

/// What errors of gate and up, as large as these magnitudes, make of `silu(gate) * up`, whose own roundings are those of a
/// term: |silu'| is at most 1.1.
fn gated(inputs: &Inputs, values: &Numbers, magnitudes: &Numbers) -> Result<Vec<f32>> {
    let halves = |numbers: &Numbers| Ok((half(inputs, numbers, 0)?, half(inputs, numbers, 1)?));
    let ((gate, up), (gate_terms, up_terms)) = (halves(values)?, halves(magnitudes)?);
    let silu = |v: f32| v / (1.0 + (-v).exp());
    let one = |i: usize| {
        let s = silu(gate[i]).abs();
        1.1 * up[i].abs() * gate_terms[i] + s * up_terms[i] + s * up[i].abs()
    };
    Ok((0..gate.len()).map(one).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::routing::Routing;

    fn case(rows: Rows) -> Case {
        let mut case = Case { routing: Routing::WithGaps, tokens: 9, experts: 3, ..Case::new(Op::Grouped) };
        case.group.rows = rows;
        case
    }

    #[test]
    fn a_gated_product_is_made_of_its_halves() {
        let inputs = Inputs::new(&case(Rows::Gated));
        let values = Numbers::new(&inputs, |v| v);
        let (gate, up) = (half(&inputs, &values, 0).unwrap(), half(&inputs, &values, 1).unwrap());
        let want = expected(&inputs, Roundings::default()).unwrap();
        let mut live = 0;
        for (i, (&want, &terms)) in want.want.iter().zip(&want.terms).enumerate() {
            let got = gate[i] / (1.0 + (-gate[i]).exp()) * up[i];
            assert_eq!(want.is_nan(), got.is_nan());
            live += usize::from(!want.is_nan());
            assert!(
                want.is_nan() || (want - got).abs() < 1e-5 && terms >= want.abs(),
                "{i}: {want} {got} {terms}"
            );
        }
        assert!(live > 0 && live < want.want.len());
    }

    #[test]
    fn a_combined_product_is_the_weighted_sum_of_plain_ones() {
        let inputs = Inputs::new(&case(Rows::Combined));
        let (case, values) = (&inputs.case, Numbers::new(&inputs, |v| v));
        let (plain, sum) =
            (rows(&inputs, &values, Rows::Plain).unwrap(), rows(&inputs, &values, Rows::Combined).unwrap());
        for t in 0..case.tokens {
            for o in 0..case.out_features {
                let live = (t * case.top_k..(t + 1) * case.top_k).filter(|&n| inputs.topk_ids[n] >= 0);
                let term = |n: usize| inputs.topk_weights[n] * plain[n * case.out_features + o];
                let want: f32 = live.map(term).sum();
                assert!((want - sum[t * case.out_features + o]).abs() < 1e-5);
            }
        }
    }

    #[test]
    fn adapters_go_with_their_tokens() {
        let case = Case { tokens: 200, top_k: 3, ..case(Rows::Plain) };
        let inputs = Inputs::new(&case);
        let g = case.group.experts as i32;
        for (ids, slots) in inputs.topk_ids.chunks(3).zip(inputs.lora_ids.chunks(3)) {
            let adapters: Vec<i32> = slots.iter().filter(|s| **s >= 0).map(|s| s / g).collect();
            assert!(adapters.iter().all(|a| *a == adapters[0]), "{slots:?}");
            assert!(ids.iter().zip(slots).all(|(e, s)| *s < 0 || s % g == *e), "{ids:?} {slots:?}");
        }
        let bare = inputs.topk_ids.iter().zip(&inputs.lora_ids).filter(|(e, s)| **e >= 0 && **s < 0).count();
        assert!(bare > 0 && bare < inputs.lora_ids.iter().filter(|s| **s >= 0).count());
    }
}
