//! What the shared table of cases does not ask: refusals, bits, the engine's own product, experts that were not chosen.

use super::super::{Form, Sizes, definition};
use crate::adapter::{Lora, slots::PoolSizes};
use crate::device::cpu::{Cpu, Pool, Weight};
use crate::element::ElementType;
use crate::error::Result;
use crate::layer::{MoeLora, Router};
use crate::ops::{Expert, Output, plan, shrink};

const IN: usize = 300;
const OUT: usize = 70;
const TOP_K: usize = 2;

fn noise(seed: usize, len: usize) -> Vec<f32> {
    (0..len).map(|i| ((i * 7919 + seed * 104_729) as f32 * 0.613).sin() * 0.5).collect()
}

struct Setup {
    cpu: Cpu,
    pool: Pool,
    weight: Weight<f32>,
}

impl Setup {
    /// Adapters of ranks 3, 16 and 5; the fourth was evicted.
    fn new() -> Self {
        let cpu = Cpu::new().unwrap();
        let (experts, rank_capacity, element) = (4, 40, ElementType::F32);
        let sizes = PoolSizes { in_features: IN, out_features: OUT, experts, rank_capacity, element };
        let mut pool = Pool::new(sizes).unwrap();
        for (slot, rank) in [3, 7, 16, 5].into_iter().enumerate() {
            let (a, b) = (noise(slot + 2, rank * IN), noise(slot + 9, rank * OUT));
            pool.put(slot, &Lora::new(IN, OUT, rank, 0.5, &a, &b).unwrap()).unwrap();
        }
        pool.evict(1).unwrap();
        let weight = cpu.pack(OUT, IN, &noise(1, OUT * IN)).unwrap();
        Self { cpu, pool, weight }
    }

    fn sizes(&self, tokens: usize, h_stride: usize) -> Sizes {
        Sizes {
            tokens,
            top_k: TOP_K,
            in_features: IN,
            out_features: OUT,
            x_stride: IN,
            y_stride: OUT,
            h_stride,
            output: Output::Sum,
        }
    }

    fn sparse(&self, ids: &[i32], weights: &[f32], x: &[f32], y: &mut [f32]) -> Result<()> {
        let sizes = self.sizes(ids.len() / TOP_K, 16);
        let Sizes { tokens, top_k, in_features, x_stride, h_stride, output, .. } = sizes;
        let plan = self.cpu.plan(&plan::Sizes { tokens, top_k, experts: 4 }, &self.pool, ids)?;
        let shrink = shrink::Sizes { tokens, top_k, in_features, x_stride, h_stride, output };
        let mut h = vec![f32::NAN; tokens * top_k * h_stride];
        self.cpu.shrink(&shrink, &plan, &self.pool, x, weights, &mut h)?;
        self.cpu.fused_sparse(&sizes, &plan, &self.pool, &self.weight, None, x, &h, weights, y)
    }

    fn gate(&self, ids: &mut [i32], weights: &mut [f32], x: &[f32]) -> Result<Vec<f32>> {
        let (tokens, rows) = (ids.len() / TOP_K, self.pool.slots().used_rows());
        let mut z = vec![f32::NAN; tokens * rows];
        self.cpu.fused_gate(&self.sizes(tokens, rows), &self.pool, None, x, ids, weights, &mut z)?;
        Ok(z)
    }
}

fn routing(tokens: usize) -> (Vec<i32>, Vec<f32>) {
    let ids = (0..tokens * TOP_K).map(|n| [0, 2, 3, -1, 3, 0, 2][n * 3 % 7]).collect();
    (ids, noise(40, tokens * TOP_K))
}

#[test]
fn few_has_the_bits_of_sparse() {
    let (setup, tokens) = (Setup::new(), 5);
    let ((ids, weights), x) = (routing(tokens), noise(50, tokens * IN));
    let (mut sparse, mut few) = (vec![0f32; tokens * OUT], vec![0f32; tokens * OUT]);
    setup.sparse(&ids, &weights, &x, &mut sparse).unwrap();
    let (sizes, mut h) = (setup.sizes(tokens, 16), vec![f32::NAN; tokens * TOP_K * 16]);
    let Setup { cpu, pool, weight } = &setup;
    cpu.fused_few(&sizes, pool, weight, None, &x, &ids, &weights, &mut h, &mut few).unwrap();
    assert_eq!(sparse, few);
}

#[test]
fn the_engines_own_product_of_the_pair_is_the_layer() {
    let (setup, tokens) = (Setup::new(), 9);
    let ((mut ids, mut weights), x) = (routing(tokens), noise(50, tokens * IN));
    let mut layer = vec![0f32; tokens * OUT];
    setup.sparse(&ids, &weights, &x, &mut layer).unwrap();
    let z = setup.gate(&mut ids, &mut weights, &x).unwrap();
    let (rows, stride) = (setup.pool.slots().used_rows(), IN + 40);
    let mut concat = vec![7f32; OUT * stride];
    setup.cpu.fused_concat(&setup.pool, &noise(1, OUT * IN), stride, &mut concat).unwrap();
    for t in 0..tokens {
        for o in 0..OUT {
            let xz = x[t * IN..][..IN].iter().chain(&z[t * rows..][..rows]);
            let product: f64 =
                xz.zip(&concat[o * stride..]).map(|(x, w)| f64::from(*x) * f64::from(*w)).sum();
            let got = f64::from(layer[t * OUT + o]);
            assert!((product - got).abs() < 1e-4, "[{t}, {o}]: {got} for {product}");
        }
    }
    assert!(concat[IN + rows..stride].iter().all(|&v| v == 7.0), "behind a row");
}

#[test]
fn experts_that_were_not_chosen_do_not_leak() {
    let (setup, tokens) = (Setup::new(), 3);
    let mut x = noise(50, tokens * IN);
    x[IN] = f32::INFINITY;
    let (mut ids, mut weights) = (vec![0, -1, 2, -1, -1, -1], vec![0.5, f32::NAN, 1.0, 0.0, 0.0, f32::NAN]);
    let rows = setup.pool.slots().used_rows();
    let z = setup.gate(&mut ids, &mut weights, &x).unwrap();
    for (at, &z) in z.iter().enumerate() {
        let (t, slot) = (at / rows, [0, 2][(at / rows).min(1)]);
        let own = setup.pool.slots().slots()[slot];
        let chosen = t < 2 && (own.row..own.row + own.rank).contains(&((at % rows) as u32));
        assert!(chosen || z == 0.0, "token {t}, row {}: {z}", at % rows);
    }
    assert!(z[rows + 10].is_infinite(), "the chosen expert's rows say what x was");
}

#[test]
fn refused_calls_leave_y_alone() {
    let (setup, tokens) = (Setup::new(), 3);
    let ((ids, weights), x) = (routing(tokens), noise(50, tokens * IN));
    let refuse = |ids: &[i32], weights: &[f32], x: &[f32], len: usize| {
        let mut y = vec![7f32; len];
        let error = setup.sparse(ids, weights, x, &mut y).unwrap_err().to_string();
        let sizes = setup.sizes(tokens, 16);
        let (mut h, pool, weight) = (vec![0f32; tokens * TOP_K * 16], &setup.pool, &setup.weight);
        let few = setup.cpu.fused_few(&sizes, pool, weight, None, x, ids, weights, &mut h, &mut y);
        let few = few.unwrap_err().to_string();
        assert!(y.iter().all(|&y| y == 7.0), "{error}");
        assert_eq!(few.split_once(": ").unwrap().1, error.split_once(": ").unwrap().1);
        error
    };
    let full = tokens * OUT;
    let with =
        |at: usize, id: i32| ids.iter().enumerate().map(|(n, &i)| if n == at { id } else { i }).collect();
    let evicted: Vec<i32> = with(3, 1);
    let expected = "plan: topk_ids[1, 1]: expected the id of a slot that holds an adapter, got 1";
    assert_eq!(refuse(&evicted, &weights, &x, full), expected);
    let outside: Vec<i32> = with(3, 4);
    assert_eq!(
        refuse(&outside, &weights, &x, full),
        "plan: topk_ids[1, 1]: expected -1 or an id below 4, got 4"
    );
    let mut nan = weights.clone();
    nan[0] = f32::NAN;
    assert_eq!(refuse(&ids, &nan, &x, full), "fused: topk_weights[0, 0]: expected a finite weight, got NaN");
    let short = refuse(&ids, &weights, &x, full - 1);
    assert_eq!(short, "fused: y: expected at least 210 elements (3 rows of 70, stride 70), got 209");
    let mut y = vec![7f32; full];
    let (cpu, pool) = (&setup.cpu, &setup.pool);
    let other: Weight<f32> = cpu.pack(OUT, IN - 1, &noise(1, OUT * (IN - 1))).unwrap();
    let mut h = vec![0f32; tokens * TOP_K * 16];
    let refused =
        cpu.fused_few(&setup.sizes(tokens, 16), pool, &other, None, &x, &ids, &weights, &mut h, &mut y);
    let expected = "fused: weight.in_features: expected 300, got 299";
    assert_eq!(refused.unwrap_err().to_string(), expected);
    assert!(y.iter().all(|&y| y == 7.0));
}

/// z of a pool without adapters has no columns, and so needs no elements, wherever its rows would begin.
#[test]
fn an_empty_pool_has_an_empty_z() {
    let (mut setup, tokens) = (Setup::new(), 3);
    [0, 2, 3].into_iter().for_each(|slot| setup.pool.evict(slot).unwrap());
    let (x, mut y, mut base) = (noise(50, tokens * IN), vec![0f32; tokens * OUT], vec![0f32; tokens * OUT]);
    let (mut ids, mut weights) = (vec![-1; tokens * TOP_K], vec![0f32; tokens * TOP_K]);
    let Setup { cpu, pool, weight } = &setup;
    for h_stride in [0, 8, usize::MAX] {
        let sizes = setup.sizes(tokens, h_stride);
        cpu.fused_gate::<_, f32>(&sizes, pool, None, &x, &mut ids, &mut weights, &mut []).unwrap();
        cpu.fused_dense::<_, f32>(&sizes, pool, weight, None, &x, &[], &mut y).unwrap();
        setup.sparse(&ids, &weights, &x, &mut base).unwrap();
        assert_eq!(y, base);
    }
}

#[test]
fn few_is_the_same_form_on_every_device() {
    let (setup, tokens) = (Setup::new(), 2);
    let ((ids, weights), x) = (routing(tokens), noise(50, tokens * IN));
    let sizes = Sizes { output: Output::RankSum, ..setup.sizes(tokens, 16) };
    let (mut h, mut y) = (vec![0f32; tokens * TOP_K * 16], vec![7f32; tokens * OUT]);
    let Setup { cpu, pool, weight } = &setup;
    let refused = cpu.fused_few(&sizes, pool, weight, None, &x, &ids, &weights, &mut h, &mut y);
    let expected = "fused: output: expected sum for the few form, got rank_sum";
    assert_eq!(refused.unwrap_err().to_string(), expected);
    assert!(y.iter().all(|&y| y == 7.0));
}

#[test]
fn the_pair_has_one_element_type() {
    let setup = Setup::new();
    let rows = setup.pool.slots().used_rows();
    let half = vec![half::f16::ZERO; OUT * IN];
    let mut concat = vec![half::f16::ZERO; OUT * (IN + rows)];
    let refused = setup.cpu.fused_concat(&setup.pool, &half, IN + rows, &mut concat).unwrap_err();
    assert_eq!(refused.to_string(), "fused: pool's element: expected f16, the weight's, got f32");
    let weight = noise(1, OUT * IN);
    let concat = |stride: usize, len: usize| {
        setup.cpu.fused_concat(&setup.pool, &weight, stride, &mut vec![0f32; len]).unwrap_err().to_string()
    };
    let stride = concat(IN + rows - 1, OUT * (IN + rows));
    assert_eq!(stride, format!("fused: row_stride: expected at least {}, got {}", IN + rows, IN + rows - 1));
    let short = concat(IN + rows, OUT * (IN + rows) - 1);
    assert!(short.starts_with("fused: concat: expected at least"), "{short}");
}

/// Nothing is computed from a size before it is checked.
#[test]
fn absurd_sizes_are_refused() {
    let (setup, huge) = (Setup::new(), usize::MAX);
    let Setup { cpu, pool, weight } = &setup;
    for sizes in [
        Sizes { tokens: huge, ..setup.sizes(1, 16) },
        Sizes { tokens: huge, top_k: 0, ..setup.sizes(1, 16) },
        Sizes { top_k: huge, ..setup.sizes(1, 16) },
        Sizes { x_stride: huge, ..setup.sizes(2, 16) },
        Sizes { y_stride: huge, ..setup.sizes(2, 16) },
        Sizes { h_stride: huge, ..setup.sizes(2, 16) },
        Sizes { x_stride: IN - 1, ..setup.sizes(2, 16) },
        Sizes { y_stride: OUT - 1, ..setup.sizes(2, 16) },
        Sizes { h_stride: 15, ..setup.sizes(2, 16) },
        Sizes { in_features: huge, out_features: huge, ..setup.sizes(2, 16) },
    ] {
        let (tokens, x, mut h) = (sizes.tokens.min(2), noise(1, 2 * IN), vec![0f32; 2 * 2 * 16]);
        let ((mut ids, mut weights), mut y) = (routing(tokens), vec![0f32; 2 * OUT]);
        let few = cpu.fused_few(&sizes, pool, weight, None, &x, &ids, &weights, &mut h, &mut y);
        assert!(few.is_err(), "few: {sizes:?}");
        let dense = cpu.fused_dense(&sizes, pool, weight, None, &x, &h, &mut y);
        assert!(dense.is_err(), "dense: {sizes:?}");
        let planned = plan::Sizes { tokens, top_k: TOP_K, experts: 4 };
        let plan = cpu.plan(&planned, pool, &ids).unwrap();
        let sparse = cpu.fused_sparse(&sizes, &plan, pool, weight, None, &x, &h, &weights, &mut y);
        assert!(sparse.is_err(), "sparse: {sizes:?}");
        if (sizes.y_stride, sizes.out_features) == (OUT, OUT) {
            let gate = cpu.fused_gate(&sizes, pool, None, &x, &mut ids, &mut weights, &mut h);
            assert!(gate.is_err(), "gate: {sizes:?}");
        }
    }
    assert!(cpu.pack::<f32>(huge, 0, &[]).is_err());
    assert_eq!(cpu.pack::<f32>(1 << 40, 0, &[]).unwrap().out_features(), 1 << 40);
    for form in [None].into_iter().chain(Form::ALL.map(Some)) {
        let layer = MoeLora::<Cpu>::new(cpu, Setup::new().pool, Router::External { top_k: huge }).unwrap();
        let layer = layer.with_form(form);
        let _ = (layer.choose::<f32>(huge), layer.workspace_len(huge));
    }
}

/// Memory for no adapters is no licence for rows of any length.
#[test]
fn rows_of_a_pool_have_a_bound() {
    for (in_features, out_features) in
        [(usize::MAX - 20, 1), (1, usize::MAX - 20), (1 << 32, 1), (1, 1 << 32)]
    {
        let sizes =
            PoolSizes { in_features, out_features, experts: 1, rank_capacity: 0, element: ElementType::F32 };
        let refused = Pool::new(sizes).unwrap_err().to_string();
        assert!(refused.contains("below 2^32"), "{refused}");
    }
}

#[test]
fn the_definition_refuses_what_the_devices_refuse() {
    let (setup, tokens) = (Setup::new(), 2);
    let sizes = setup.sizes(tokens, 16);
    let plan =
        plan::definition(&plan::Sizes { tokens, top_k: TOP_K, experts: 1 }, &[0, -1, 0, 0], 0).unwrap();
    let (a, b) = (noise(1, IN), noise(2, OUT));
    let expert = [Expert { rank: 1, scaling: 1.0, lora_a: &a, lora_b: &b }];
    let (weight, x, weights) = (noise(3, OUT * IN), noise(4, tokens * IN), vec![0.5f32; tokens * TOP_K]);
    let run = |sizes: &Sizes, weight: &[f32], bias: Option<&[f32]>, x: &[f32], len: usize| {
        definition(sizes, &plan, &expert, weight, bias, x, &weights, &mut vec![0f32; len])
    };
    let full = tokens * OUT;
    run(&sizes, &weight, None, &x, full).unwrap();
    for refused in [
        run(&sizes, &weight[1..], None, &x, full),
        run(&sizes, &weight, Some(&b[1..]), &x, full),
        run(&sizes, &weight, None, &x[1..], full),
        run(&sizes, &weight, None, &x, full - 1),
        run(&Sizes { tokens: 3, ..sizes }, &weight, None, &noise(4, 3 * IN), 3 * OUT),
        run(&Sizes { output: Output::PerRoute, ..sizes }, &weight, None, &x, full),
        run(&Sizes { x_stride: IN - 1, ..sizes }, &weight, None, &x, full),
    ] {
        assert!(refused.is_err());
    }
}
