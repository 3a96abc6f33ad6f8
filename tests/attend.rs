//! Attend on every device: RAMoLE's weights in rank space, and the layer that takes them.

mod common;

use common::{devices, refuses};
use molora::adapter::LinearRouter;
use molora::adapter::slots::PoolSizes;
use molora::device::cpu::Pool;
use molora::host::{Device, HostLayer};
use molora::layer::{MoeLora, Router, Routing};
use molora::ops::fused::Form;
use molora::ops::route::AllowLists;
use molora::ops::{Output, attend, plan};
use molora::{Cpu, ElementType, Lora, Result};
use molora_check::rng::Rng;
use molora_check::{Op, check_all};

#[test]
fn every_case_on_every_device() {
    check_all(Op::Attend);
}

fn values(name: &str, len: usize, scale: f32) -> Vec<f32> {
    let mut rng = Rng::named(name, 0);
    (0..len).map(|_| rng.value(scale)).collect()
}

/// One adapter's factors, as its `Lora` and as the published formula read them.
#[derive(Clone)]
struct Factors {
    rank: usize,
    scaling: f32,
    a: Vec<f32>,
    b: Vec<f32>,
}

impl Factors {
    fn new(name: &str, (inner, outer): (usize, usize), rank: usize, scaling: f32) -> Self {
        let a = values(name, rank * inner, 1.0 / (inner as f32).sqrt());
        let b = values(&format!("{name} b"), rank * outer, 2.0 / (rank as f32).sqrt());
        Self { rank, scaling, a, b }
    }

    fn lora(&self) -> Lora {
        let (inner, outer) = (self.a.len() / self.rank, self.b.len() / self.rank);
        Lora::new(inner, outer, self.rank, self.scaling, &self.a, &self.b).unwrap()
    }
}

/// `rows [n, width] * x`, in f64.
fn rows_times(rows: &[f32], x: &[f64]) -> Vec<f64> {
    rows.chunks(x.len()).map(|row| row.iter().zip(x).map(|(&w, x)| f64::from(w) * x).sum()).collect()
}

/// One token by the published formula: `v_i = scaling_i B_i A_i x`, `q = A_r x`, `k_i = B_r^T v_i`,
/// `a = softmax(<q, k_i> / sqrt(r_r))`; adds `sum a_i v_i` to y and returns a.
fn published(set: &[Option<&Factors>], router: &Factors, x: &[f64], y: &mut [f64]) -> Vec<f64> {
    let q = rows_times(&router.a, x);
    let (mut scores, mut products) = (Vec::new(), Vec::new());
    for expert in set.iter().flatten() {
        let mut v = rows_times(&expert.b, &rows_times(&expert.a, x));
        v.iter_mut().for_each(|v| *v *= f64::from(expert.scaling));
        let k = |c: usize| -> f64 {
            v.iter().enumerate().map(|(o, v)| f64::from(router.b[o * router.rank + c]) * v).sum()
        };
        let score: f64 = q.iter().enumerate().map(|(c, q)| q * k(c)).sum();
        scores.push(score / (router.rank as f64).sqrt());
        products.push(v);
    }
    let total: f64 = scores.iter().map(|z| z.exp()).sum();
    let mut weights = scores.iter().map(|z| z.exp() / total).collect::<Vec<_>>().into_iter();
    let mut products = products.into_iter();
    let mut all = Vec::new();
    for expert in set {
        let weight = if expert.is_some() { weights.next().unwrap() } else { 0.0 };
        if expert.is_some() {
            y.iter_mut().zip(products.next().unwrap()).for_each(|(y, v)| *y += weight * v);
        }
        all.push(weight);
    }
    all
}

/// A layer of random numbers and what its calls take.
struct Problem {
    sizes: PoolSizes,
    tokens: usize,
    top_k: usize,
    router: Factors,
    experts: Vec<Factors>,
    weight: Vec<f32>,
    x: Vec<f32>,
    ids: Vec<i32>,
}

impl Problem {
    fn new(
        (tokens, top_k): (usize, usize),
        (in_features, out_features): (usize, usize),
        router_rank: usize,
        ranks: &[usize],
    ) -> Self {
        let (shape, experts) = ((in_features, out_features), ranks.len());
        let rank_capacity = ranks.iter().sum();
        let element = ElementType::F32;
        let mut rng = Rng::named("ids", tokens as u64);
        // Every set names its adapters once, with places left empty.
        let mut ids = Vec::new();
        for _ in 0..tokens {
            let first = rng.below(experts);
            ids.extend((0..top_k).map(|j| match rng.below(4) {
                0 => -1,
                _ => ((first + j) % experts) as i32,
            }));
        }
        Self {
            sizes: PoolSizes { in_features, out_features, experts, rank_capacity, element },
            tokens,
            top_k,
            router: Factors::new("router", shape, router_rank, 5.0),
            experts: ranks
                .iter()
                .enumerate()
                .map(|(e, &rank)| Factors::new(&e.to_string(), shape, rank, [1.0, 0.5, 2.0][e % 3]))
                .collect(),
            weight: values("weight", in_features * out_features, 0.1),
            x: values("x", tokens * in_features, 1.0),
            ids,
        }
    }

    fn router(&self) -> Router<LinearRouter> {
        Router::RankAttention { top_k: self.top_k }
    }

    fn layer(&self, device: &Device) -> HostLayer<f32> {
        let mut layer = HostLayer::new(device, self.sizes, self.router(), self.weight.clone(), None).unwrap();
        layer.set_attention(&self.router.lora()).unwrap();
        self.experts.iter().enumerate().for_each(|(e, f)| layer.put(e, &f.lora()).unwrap());
        layer
    }

    /// y and the weights, with the base product or added to `start`.
    fn run(&self, layer: &mut HostLayer<f32>, start: Option<&[f32]>) -> Result<(Vec<f32>, Vec<f32>)> {
        let (mut ids, mut weights) = (self.ids.clone(), vec![f32::NAN; self.ids.len()]);
        let mut y = start.map_or(vec![f32::NAN; self.tokens * self.sizes.out_features], <[f32]>::to_vec);
        let routing = Routing::new(&mut ids, &mut weights);
        match start {
            None => layer.forward(self.tokens, &self.x, routing, &mut y)?,
            Some(_) => layer.forward_delta(self.tokens, &self.x, routing, &mut y)?,
        }
        assert_eq!(ids, self.ids, "ids are the engine's");
        Ok((y, weights))
    }

    /// y and the weights as published.
    fn published(&self, start: Option<&[f32]>) -> (Vec<f64>, Vec<f64>) {
        let (inner, outer) = (self.sizes.in_features, self.sizes.out_features);
        let (mut y, mut weights) = (Vec::new(), Vec::new());
        for t in 0..self.tokens {
            let x: Vec<f64> = self.x[t * inner..][..inner].iter().map(|&v| f64::from(v)).collect();
            let mut row = match start {
                None => rows_times(&self.weight, &x),
                Some(start) => start[t * outer..][..outer].iter().map(|&v| f64::from(v)).collect(),
            };
            let set = &self.ids[t * self.top_k..][..self.top_k];
            let set: Vec<Option<&Factors>> =
                set.iter().map(|&id| usize::try_from(id).ok().map(|id| &self.experts[id])).collect();
            weights.extend(published(&set, &self.router, &x, &mut row));
            y.extend(row);
        }
        (y, weights)
    }
}

fn assert_close(device: &Device, what: &str, got: &[f32], want: &[f64]) {
    assert_eq!(got.len(), want.len());
    for (i, (&got, want)) in got.iter().zip(want).enumerate() {
        let error = (f64::from(got) - want).abs();
        // Written so that NaN fails.
        let close = error <= 2e-5 * (1.0 + want.abs());
        assert!(close, "{}: {what}[{i}]: expected {want}, got {got}", device.describe());
    }
}

#[test]
fn rank_space_is_the_published_form() {
    let problems = [
        Problem::new((1, 1), (7, 5), 1, &[3]),
        Problem::new((9, 3), (33, 17), 8, &[4, 1, 16, 5]),
        Problem::new((40, 3), (64, 48), 6, &[8; 12]),
        Problem::new((17, 24), (40, 70), 33, &[2, 6, 8, 3, 17, 1, 8, 8].repeat(3)),
        Problem::new((3, 2), (128, 65), 64, &[128, 7, 64]),
    ];
    for device in devices() {
        for problem in &problems {
            let mut layer = problem.layer(&device);
            let (y, weights) = problem.run(&mut layer, None).unwrap();
            let want = problem.published(None);
            assert_close(&device, "weights", &weights, &want.1);
            assert_close(&device, "y", &y, &want.0);
            let start = values("y", y.len(), 1.0);
            let (y, weights) = problem.run(&mut layer, Some(&start)).unwrap();
            let want = problem.published(Some(&start));
            assert_close(&device, "weights", &weights, &want.1);
            assert_close(&device, "y", &y, &want.0);
        }
    }
}

#[test]
fn one_adapter_has_all_the_weight_and_none_has_nothing() {
    for device in devices() {
        let mut problem = Problem::new((2, 3), (12, 10), 4, &[3, 5]);
        problem.ids = vec![-1, 1, -1, -1, -1, -1];
        let (y, weights) = problem.run(&mut problem.layer(&device), None).unwrap();
        assert_eq!(weights, [0.0, 1.0, 0.0, 0.0, 0.0, 0.0], "{}", device.describe());
        let router = Router::External { top_k: 1 };
        let mut external =
            HostLayer::new(&device, problem.sizes, router, problem.weight.clone(), None).unwrap();
        external.put(1, &problem.experts[1].lora()).unwrap();
        let (mut ids, mut ones, mut want) = ([1, -1], [1.0, 0.0], vec![f32::NAN; 20]);
        external.forward(2, &problem.x, Routing::new(&mut ids, &mut ones), &mut want).unwrap();
        let want: Vec<f64> = want.into_iter().map(f64::from).collect();
        assert_close(&device, "y", &y, &want);
    }
}

#[test]
fn equal_adapters_share_the_weight() {
    for device in devices() {
        let mut problem = Problem::new((3, 4), (12, 10), 4, &[3; 4]);
        problem.experts = vec![problem.experts[0].clone(); 4];
        problem.ids = vec![0, 1, 2, 3, 3, 1, -1, 2, 2, 0, -1, -1];
        let weights = problem.run(&mut problem.layer(&device), None).unwrap().1;
        let third = 1.0f64 / 3.0;
        let want = [0.25, 0.25, 0.25, 0.25, third, third, 0.0, third, 0.5, 0.5, 0.0, 0.0];
        assert_close(&device, "weights", &weights, &want);
    }
}

/// Rows of K come and go with their adapters, also where another one's were.
#[test]
fn adapters_come_and_go() {
    for device in devices() {
        let mut problem = Problem::new((6, 3), (12, 10), 4, &[3, 5, 2, 4]);
        let mut layer = problem.layer(&device);
        layer.evict(0).unwrap();
        layer.evict(1).unwrap();
        // Slot 1 takes the rows that slot 0 had, and some of its own.
        for (slot, rank) in [(1, 6), (0, 2)] {
            problem.experts[slot] = Factors::new(&format!("new {slot}"), (12, 10), rank, 1.5);
            layer.put(slot, &problem.experts[slot].lora()).unwrap();
        }
        let (y, weights) = problem.run(&mut layer, None).unwrap();
        let want = problem.published(None);
        assert_close(&device, "weights", &weights, &want.1);
        assert_close(&device, "y", &y, &want.0);
    }
}

#[test]
fn given_weights_are_taken_as_they_are() {
    for device in devices() {
        let problem = Problem::new((2, 2), (12, 10), 4, &[3, 5]);
        let run = |layer: &mut HostLayer<f32>, given: bool| {
            let (mut ids, mut weights, mut y) = ([0, 1, 1, -1], [0.25, 2.0, 0.5, 0.0], vec![f32::NAN; 20]);
            let routing = Routing { given, ..Routing::new(&mut ids, &mut weights) };
            layer.forward(2, &problem.x, routing, &mut y).unwrap();
            (y, weights)
        };
        let mut layer = problem.layer(&device);
        let given = run(&mut layer, true);
        assert_eq!(given.1, [0.25, 2.0, 0.5, 0.0]);
        layer.set_router(Router::External { top_k: 2 }).unwrap();
        let external: Vec<f64> = run(&mut layer, false).0.into_iter().map(f64::from).collect();
        assert_close(&device, "y", &given.0, &external);
    }
}

#[test]
fn a_score_that_is_not_finite_is_an_error() {
    for device in devices() {
        let mut problem = Problem::new((3, 2), (12, 10), 4, &[3, 5]);
        problem.ids = vec![0, 1, 1, 0, 0, -1];
        let mut layer = problem.layer(&device);
        problem.x[12..24].fill(1e38);
        let refused = refuses(problem.run(&mut layer, None));
        let cpu = refused.starts_with("attend: score[1, 0]: expected a finite value");
        assert!(cpu || refused.contains("score not finite"), "{}: {refused}", device.describe());
        // No live route of the token names an adapter: its x says nothing.
        problem.ids[2..4].fill(-1);
        let weights = problem.run(&mut layer, None).unwrap().1;
        assert_eq!((weights[2], weights[3], weights[4]), (0.0, 0.0, 1.0), "{}", device.describe());
    }
}

#[test]
fn what_attention_cannot_have_is_refused() {
    for device in devices() {
        let problem = Problem::new((2, 2), (12, 10), 4, &[3, 5]);
        let plain = || {
            HostLayer::new(&device, problem.sizes, problem.router(), problem.weight.clone(), None).unwrap()
        };
        let mut layer = plain();
        layer.put(0, &problem.experts[0].lora()).unwrap();
        layer.put(1, &problem.experts[1].lora()).unwrap();
        assert_eq!(
            refuses(problem.run(&mut layer, None)),
            "attend: pool: expected a pool with attention (set_attention), got one without"
        );
        assert_eq!(
            refuses(layer.set_attention(&problem.router.lora())),
            "pool: pool: expected an empty pool, whose adapters come after the router, got 2 adapters"
        );
        let other = Factors::new("other", (12, 11), 4, 1.0).lora();
        assert_eq!(refuses(plain().set_attention(&other)), "pool: router.out_features: expected 10, got 11");
        let high = Factors::new("high", (12, 10), 1025, 1.0).lora();
        assert_eq!(
            refuses(plain().set_attention(&high)),
            "pool: router.rank: expected at most 1024, got 1025"
        );
        let mut layer = plain();
        layer.set_attention(&problem.router.lora()).unwrap();
        let large = Lora::new(12, 10, 1, 3e38, &[1f32; 12], &[1e30f32; 10]).unwrap();
        let refused = refuses(layer.put(0, &large));
        assert!(refused.starts_with("pool: lora: expected finite scaling B^T B_r, got"), "{refused}");
        layer.put(0, &problem.experts[0].lora()).expect("the slot is still empty");
        let mut lists = AllowLists::new(2);
        lists.push_all(2).unwrap();
        let (mut ids, mut weights, mut y) = ([0, -1, 0, -1], [0.0; 4], vec![0.0; 20]);
        let routing = Routing { allow: Some(lists.as_allow()), ..Routing::new(&mut ids, &mut weights) };
        assert_eq!(
            refuses(layer.forward(2, &problem.x, routing, &mut y)),
            "layer: allow: expected no mask with rank attention, whose ids are the request's own set, got one"
        );
    }
}

#[test]
fn forms_and_outputs_that_have_no_h_are_refused() {
    let (problem, cpu) = (Problem::new((2, 2), (12, 10), 4, &[3, 5]), Cpu::new().unwrap());
    let layer = || {
        let mut pool = Pool::new(problem.sizes).unwrap();
        pool.set_attention(&problem.router.lora()).unwrap();
        problem.experts.iter().for_each(|e| pool.add(&e.lora()).map(drop).unwrap());
        MoeLora::<Cpu>::new(&cpu, pool, problem.router()).unwrap()
    };
    for tokens in [1, 8, 500] {
        let form = layer().choose::<f32>(tokens).unwrap().form;
        assert!(matches!(form, Form::Sparse | Form::Beside), "{tokens}: {}", form.name());
    }
    for form in [Form::Few, Form::Dense] {
        let refused = refuses(layer().with_form(Some(form)).choose::<f32>(2));
        assert!(refused.starts_with("layer: form: expected sparse or beside"), "{refused}");
    }
    let fusion = layer().with_output(Output::RankSum);
    let weight = cpu.pack(10, 12, &problem.weight).unwrap();
    let base = molora::layer::Base { weight: &weight, bias: None };
    let rows = molora::layer::Rows { tokens: 2, x_stride: 12, y_stride: 10 };
    let (mut ids, mut weights, mut y, mut h) = ([0, 1, 1, 0], [0.0; 4], [0.0; 20], [0.0; 64]);
    let routing = &mut Routing::new(&mut ids, &mut weights);
    let refused = refuses(fusion.forward(&rows, base, &problem.x, routing, &mut h, &mut y));
    assert!(refused.starts_with("layer: output: expected sum or per_route with rank attention"), "{refused}");
    let refused = refuses(fusion.forward_delta(&rows, &problem.x, routing, &mut h, &mut y));
    assert!(refused.starts_with("layer: output: expected sum or per_route with rank attention"), "{refused}");
}

#[test]
fn errors_name_operation_argument_expected_and_got() {
    let (problem, cpu) = (Problem::new((2, 2), (12, 10), 4, &[3, 5]), Cpu::new().unwrap());
    let mut pool = Pool::new(problem.sizes).unwrap();
    pool.set_attention(&problem.router.lora()).unwrap();
    problem.experts.iter().for_each(|e| pool.add(&e.lora()).map(drop).unwrap());
    let plan = cpu.plan(&plan::Sizes { tokens: 2, top_k: 2, experts: 2 }, &pool, &[0, 1, 1, -1]).unwrap();
    type Change = dyn Fn(&mut attend::Sizes, &mut Vec<f32>, &mut Vec<f32>, &mut Vec<f32>);
    let call = |change: &Change| {
        let mut sizes = attend::Sizes { tokens: 2, top_k: 2, in_features: 12, x_stride: 12, h_stride: 5 };
        let (mut x, mut h, mut weights) = (vec![1.0; 24], vec![0.5; 20], vec![f32::NAN; 4]);
        change(&mut sizes, &mut x, &mut h, &mut weights);
        cpu.attend(&sizes, &plan, &pool, &x, &h, &mut weights)
    };
    call(&|_, _, _, _| ()).unwrap();
    assert_eq!(
        refuses(call(&|_, x, _, _| x.truncate(23))),
        "attend: x: expected at least 24 elements (2 rows of 12, stride 12), got 23"
    );
    assert_eq!(
        refuses(call(&|_, _, h, _| h.truncate(19))),
        "attend: h: expected at least 20 elements (4 rows of 5, stride 5), got 19"
    );
    assert_eq!(
        refuses(call(&|s, _, _, _| s.h_stride = 4)),
        "attend: h_stride: expected at least the row's 5 elements, got 4"
    );
    assert_eq!(refuses(call(&|_, _, _, w| w.push(0.0))), "attend: topk_weights: expected 4 elements, got 5");
    assert_eq!(refuses(call(&|s, _, _, _| s.in_features = 11)), "attend: in_features: expected 12, got 11");
    assert_eq!(refuses(call(&|s, _, _, _| s.tokens = 3)), "attend: plan.tokens: expected 3, got 2");
    let packed = Pool::packed(PoolSizes { out_features: 12, ..problem.sizes }, &[6, 6]);
    let refused = refuses(packed.unwrap().set_attention(&Factors::new("p", (12, 12), 2, 1.0).lora()));
    assert_eq!(
        refused,
        "pool: pool: expected a pool of one slice (packed pools: the fused layer), got 2 slices"
    );
}
