//! Grouped products against their definition.

use super::super::{Rows, Sizes, definition};
use crate::adapter::{Lora, slots::PoolSizes};
use crate::device::cpu::{Cpu, Pool};
use crate::element::Element;
use crate::ops::plan::{self, Plan};
use crate::ops::{Expert, Output, shrink};
use half::{bf16, f16};

/// Rank, A, B.
type Factors = (usize, Vec<f32>, Vec<f32>);

/// Four base experts and adapters of mixed ranks; slot 1 leaves the second slice alone where there are two.
struct Case<X> {
    cpu: Cpu,
    sizes: Sizes,
    topk_ids: Vec<i32>,
    lora_ids: Vec<i32>,
    topk_weights: Vec<f32>,
    /// Of every slot and slice.
    loras: Vec<Vec<Factors>>,
    pool: Pool,
    weight: Vec<X>,
    x: Vec<X>,
}

fn noise<E: Element>(seed: usize, len: usize) -> Vec<E> {
    (0..len).map(|i| E::from_f32(((i * 7919 + seed * 104729) as f32 * 0.613).sin() * 0.5)).collect()
}

impl<X: Element> Case<X> {
    fn new(rows: Rows, tokens: usize, out_features: usize, x_per_route: bool) -> Self {
        let (top_k, experts, in_features) = (2, 4, 37);
        let mut sizes = Sizes {
            tokens,
            top_k,
            experts,
            in_features,
            out_features,
            x_stride: in_features + 3,
            h_stride: 9,
            y_stride: out_features + 1,
            x_per_route,
            rows,
        };
        sizes.y_stride = sizes.width() + 1;
        let slices = if rows == Rows::Gated { vec![out_features / 2; 2] } else { vec![out_features] };
        let ranks = [[3, 5], [0, 4], [1, 2]];
        let pool_sizes = PoolSizes {
            in_features,
            out_features,
            experts: 3,
            rank_capacity: 20,
            element: crate::ElementType::F32,
        };
        let mut pool = Pool::packed(pool_sizes, &slices).unwrap();
        let mut loras = Vec::new();
        for (slot, ranks) in ranks.iter().enumerate() {
            let parts: Vec<Factors> = slices
                .iter()
                .zip(ranks.iter().rev())
                .map(|(&width, &rank)| {
                    (rank, noise(slot + 7, rank * in_features), noise(slot + 11, width * rank))
                })
                .collect();
            let lora = |(rank, a, b): &Factors, width: usize| {
                (*rank > 0).then(|| Lora::new(in_features, width, *rank, 0.5, a, b).unwrap())
            };
            let made: Vec<Option<Lora>> =
                parts.iter().zip(&slices).map(|(part, &width)| lora(part, width)).collect();
            pool.put_packed(slot, &made.iter().map(Option::as_ref).collect::<Vec<_>>()).unwrap();
            loras.push(parts);
        }
        let routes = tokens * top_k;
        // Expert 2 gets nothing; some routes have no base expert, some no adapter.
        let topk_ids = (0..routes).map(|n| [0, 3, 1, -1, 0, 3, 3][n * 5 % 7]).collect();
        let lora_ids = (0..routes).map(|n| [0, 1, -1, 2, 1][n * 3 % 5]).collect();
        Self {
            cpu: Cpu::new().unwrap(),
            sizes,
            topk_ids,
            lora_ids,
            topk_weights: noise(5, routes),
            loras,
            pool,
            weight: noise(1, experts * out_features * in_features),
            x: noise(2, sizes.x_rows() * sizes.x_stride),
        }
    }

    /// The shrink's plan, whose routes are tokens of their own where x has a row for each.
    fn loras(&self) -> crate::Result<Plan> {
        let Sizes { tokens, top_k, x_per_route, .. } = self.sizes;
        let (tokens, top_k) = if x_per_route { (tokens * top_k, 1) } else { (tokens, top_k) };
        let sizes = plan::Sizes { tokens, top_k, experts: self.pool.slots().sizes().experts };
        self.cpu.plan(&sizes, &self.pool, &self.lora_ids)
    }

    fn run(&self, sizes: &Sizes, topk_ids: &[i32], y: &mut [X]) -> crate::Result<()> {
        let Sizes { tokens, top_k, experts, in_features, out_features, x_stride, h_stride, .. } = *sizes;
        let weight = self.cpu.pack(experts * out_features, in_features, &self.weight)?;
        let plan = plan::Sizes { tokens, top_k, experts };
        let plan = self.cpu.plan(&plan, &Pool::markers(experts)?, topk_ids)?;
        let loras = self.loras()?;
        let plan::Sizes { tokens, top_k, .. } = *loras.sizes();
        let shrink = shrink::Sizes { tokens, top_k, in_features, x_stride, h_stride, output: Output::Sum };
        let mut h = vec![f32::NAN; sizes.routes() * h_stride];
        self.cpu.shrink(&shrink, &loras, &self.pool, &self.x, &self.topk_weights, &mut h)?;
        self.cpu.grouped(sizes, &plan, &self.pool, &loras, &weight, &self.x, &h, &self.topk_weights, y)
    }

    fn expected(&self) -> Vec<X> {
        let mut y = vec![X::from_f32(7.0); self.sizes.y_rows() * self.sizes.y_stride];
        let mut loras: Vec<Vec<Expert<f32>>> = Vec::new();
        for parts in &self.loras {
            let experts = parts.iter();
            let expert =
                experts.map(|(rank, a, b)| Expert { rank: *rank, scaling: 0.5, lora_a: a, lora_b: b });
            loras.push(expert.collect());
        }
        let (ids, weights) = (&self.topk_ids, &self.topk_weights);
        definition(&self.sizes, ids, &self.lora_ids, &loras, &self.weight, &self.x, weights, &mut y).unwrap();
        y
    }
}

fn check<X: Element>(epsilon: f32) {
    for rows in Rows::ALL {
        for tokens in [1, 2, 9, 33] {
            for (out_features, x_per_route) in [(2, false), (34, true), (64, false), (130, false)] {
                let case = Case::<X>::new(rows, tokens, out_features, x_per_route);
                let expected = case.expected();
                let mut y = vec![X::from_f32(7.0); expected.len()];
                case.run(&case.sizes, &case.topk_ids, &mut y).unwrap();
                for (at, (got, want)) in y.iter().zip(&expected).enumerate() {
                    let (got, want) = (got.to_f32(), want.to_f32());
                    let close = (got - want).abs() <= epsilon * (1.0 + want.abs());
                    assert!(close, "{} {tokens} x {out_features} [{at}]: {got} for {want}", rows.name());
                }
            }
        }
    }
}

#[test]
fn every_kind_of_rows_is_its_definition() {
    check::<f32>(4e-6);
    check::<f16>(1e-3);
    check::<bf16>(8e-3);
}

#[test]
fn a_tokens_bits_do_not_depend_on_its_batch() {
    for rows in Rows::ALL {
        let case = Case::<f32>::new(rows, 33, 66, false);
        let (sizes, top_k) = (&case.sizes, case.sizes.top_k);
        let mut all = vec![0f32; sizes.y_rows() * sizes.y_stride];
        case.run(sizes, &case.topk_ids, &mut all).unwrap();
        for t in [0, 5, 32] {
            let routes = t * top_k..(t + 1) * top_k;
            let mut alone = vec![-1; case.topk_ids.len()];
            alone[routes.clone()].copy_from_slice(&case.topk_ids[routes.clone()]);
            let mut y = vec![0f32; all.len()];
            case.run(sizes, &alone, &mut y).unwrap();
            let own = if rows == Rows::Combined { t..t + 1 } else { routes };
            let own = own.start * sizes.y_stride..own.end * sizes.y_stride;
            assert_eq!(y[own.clone()], all[own], "{} token {t}", rows.name());
        }
    }
}

#[test]
fn refused_calls_leave_y_alone() {
    let mut case = Case::<f32>::new(Rows::Combined, 3, 8, false);
    let refuse = |case: &Case<f32>, sizes: &Sizes| {
        let mut y = vec![7f32; case.sizes.y_rows() * case.sizes.y_stride];
        let error = case.run(sizes, &case.topk_ids, &mut y).unwrap_err().to_string();
        assert!(y.iter().all(|&y| y == 7.0), "{error}");
        error
    };
    let narrow = Sizes { y_stride: 7, ..case.sizes };
    assert_eq!(refuse(&case, &narrow), "grouped: y_stride: expected at least the row's 8 elements, got 7");
    case.topk_weights[0] = f32::NAN;
    let error = refuse(&case, &case.sizes);
    assert_eq!(error, "grouped: topk_weights[0, 0]: expected a finite weight, got NaN");
    let mut y = vec![7f32; case.sizes.y_rows() * case.sizes.y_stride];
    let plan = plan::Sizes { tokens: 3, top_k: 2, experts: 4 };
    let plan = case.cpu.plan(&plan, &Pool::markers(4).unwrap(), &case.topk_ids).unwrap();
    let weight = case.cpu.pack(32, 37, &case.weight).unwrap();
    // h is of the adapter that was in the slot.
    let (loras, h) = (case.loras().unwrap(), vec![0f32; 6 * 9]);
    let other = Lora::new(37, 8, 1, 0.5, &[0f32; 37], &[0f32; 8]).unwrap();
    case.pool.evict(2).unwrap();
    case.pool.put_packed(2, &[Some(&other)]).unwrap();
    let (pool, x) = (&case.pool, &case.x);
    let refused = case.cpu.grouped(&case.sizes, &plan, pool, &loras, &weight, x, &h, &[1.0; 6], &mut y);
    let expected = "grouped: slot 2: expected the adapter that was there when the plan was made, \
                    got one evicted or replaced since";
    assert_eq!(refused.unwrap_err().to_string(), expected);
    assert!(y.iter().all(|&y| y == 7.0));
}

/// As on every device: the pool's slices are the product's, and nothing is computed from a size before it is checked.
#[test]
fn pools_and_sizes_of_other_products_are_refused() {
    let (gated, plain) =
        (Case::<f32>::new(Rows::Gated, 3, 8, false), Case::<f32>::new(Rows::Plain, 3, 8, false));
    let refuse = |case: &Case<f32>, sizes: &Sizes| {
        let mut y = vec![7f32; 6 * 9];
        let plan = plan::Sizes { tokens: 3, top_k: 2, experts: 4 };
        let plan = case.cpu.plan(&plan, &Pool::markers(4).unwrap(), &case.topk_ids).unwrap();
        let weight = case.cpu.pack(32, 37, &case.weight).unwrap();
        let (h, loras, weights) = (vec![0f32; 6 * 9], case.loras().unwrap(), &case.topk_weights);
        let refused =
            case.cpu.grouped(sizes, &plan, &case.pool, &loras, &weight, &case.x, &h, weights, &mut y);
        let error = refused.unwrap_err().to_string();
        assert!(y.iter().all(|&y| y == 7.0), "{error}");
        error
    };
    let other = Sizes { rows: Rows::Plain, y_stride: 9, ..gated.sizes };
    assert_eq!(refuse(&gated, &other), "grouped: pool: expected slices [8], got [4, 4]");
    let other = Sizes { rows: Rows::Gated, ..plain.sizes };
    assert_eq!(refuse(&plain, &other), "grouped: pool: expected slices [4, 4], got [8]");
    let huge = usize::MAX;
    for sizes in [
        Sizes { tokens: huge, ..plain.sizes },
        Sizes { tokens: huge, top_k: 0, ..plain.sizes },
        Sizes { experts: huge, ..plain.sizes },
        Sizes { experts: huge, in_features: 0, ..plain.sizes },
        Sizes { out_features: huge, ..plain.sizes },
        Sizes { out_features: huge, in_features: 0, ..plain.sizes },
        Sizes { x_stride: huge, ..plain.sizes },
        Sizes { h_stride: huge, ..plain.sizes },
        Sizes { y_stride: huge, ..plain.sizes },
        Sizes { x_per_route: true, ..plain.sizes },
    ] {
        refuse(&plain, &sizes);
    }
    // No rows of no elements: the sizes' product is that of the weight.
    let (sizes, cpu) = (Sizes { experts: huge, in_features: 0, out_features: 2, ..plain.sizes }, &plain.cpu);
    let plan = plan::Sizes { tokens: 3, top_k: 2, experts: 4 };
    let plan = cpu.plan(&plan, &Pool::markers(4).unwrap(), &plain.topk_ids).unwrap();
    let (none, mut y) = (cpu.pack::<f32>(2, 0, &[]).unwrap(), vec![7f32; 6 * 9]);
    let (h, x, loras) = (vec![0f32; 6 * 9], &plain.x, plain.loras().unwrap());
    let refused = cpu.grouped(&sizes, &plan, &plain.pool, &loras, &none, x, &h, &plain.topk_weights, &mut y);
    assert!(refused.is_err());
}

#[test]
fn the_definition_refuses_what_does_not_fit() {
    let case = Case::<f32>::new(Rows::Combined, 3, 8, false);
    let run = |change: &dyn Fn(&mut Case<f32>), y: usize| {
        let mut case = Case::<f32>::new(Rows::Combined, 3, 8, false);
        change(&mut case);
        let loras: Vec<Vec<Expert<f32>>> = (case.loras.iter())
            .map(|parts| {
                let parts = parts.iter();
                parts.map(|(rank, a, b)| Expert { rank: *rank, scaling: 0.5, lora_a: a, lora_b: b }).collect()
            })
            .collect();
        let Case { sizes, topk_ids, lora_ids, topk_weights, weight, x, .. } = &case;
        definition(sizes, topk_ids, lora_ids, &loras, weight, x, topk_weights, &mut vec![0f32; y])
    };
    let full = case.sizes.y_rows() * case.sizes.y_stride;
    run(&|_| (), full).unwrap();
    assert!(run(&|_| (), full - 2).is_err(), "y");
    assert!(run(&|c| c.x.truncate(100), full).is_err(), "x");
    assert!(run(&|c| c.weight.truncate(7), full).is_err(), "weight");
    assert!(run(&|c| c.topk_ids[0] = 4, full).is_err(), "an expert that there is not");
    assert!(run(&|c| c.lora_ids[0] = 3, full).is_err(), "a slot that there is not");
    assert!(run(&|c| c.lora_ids[0] = -2, full).is_err(), "an id that means nothing");
    assert!(run(&|c| c.lora_ids.truncate(5), full).is_err(), "lora_ids");
    assert!(run(&|c| c.topk_weights.truncate(5), full).is_err(), "topk_weights");
    assert!(run(&|c| c.loras[0][0].1.truncate(5), full).is_err(), "A");
    assert!(run(&|c| c.loras[0].clear(), full).is_err(), "slices");
    assert!(run(&|c| c.topk_weights[0] = f32::NAN, full).is_err(), "a weight that is not finite");
}
