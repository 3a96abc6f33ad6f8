//! Writes every variant of every shader, as it is compiled, to a folder: `dump_shaders DIR`. The test command pushes
//! them through a second WGSL compiler.

use half::{bf16, f16};
use molora::adapter::slots::PoolSizes;
use molora::adapter::{LinearRouter, Prototypes};
use molora::device::wgpu::{Pool, Tuning, View};
use molora::ops::route::{Allow, Rule, Select, Weighting, WgpuRouter};
use molora::ops::{Output, attend, base, expand, fused, grouped, plan, route, shrink};
use molora::{Element, ElementType, Lora, Wgpu};

type Failure = Box<dyn std::error::Error>;

fn main() -> Result<(), Failure> {
    let folder = std::env::args().nth(1).ok_or("usage: dump_shaders DIR")?;
    let adapters = Wgpu::adapters();
    // What a browser gives: the texts are those for the fewest bindings.
    let wgpu = Wgpu::open_with(adapters.first().ok_or("no adapter")?, wgpu::Limits::default())?;
    for element in ElementType::ALL {
        for batch_invariant in [false, true] {
            // Both kinds of rows: read by fours, and one by one.
            for width in [8, 6] {
                // What no device lacks, in both tiles, and what this one takes.
                let plain = Tuning { class: wgpu.tuning().class, ..Tuning::plain() };
                for tuning in [plain, Tuning { wide_tiles: true, wide_fused: true, ..plain }] {
                    let wgpu = wgpu.batch_invariant(batch_invariant).tuned(tuning)?;
                    variants::<f32>(&wgpu, element, width)?;
                    variants::<f16>(&wgpu, element, width)?;
                    variants::<bf16>(&wgpu, element, width)?;
                }
                // Adapters of the layer's own element are enough here: each text takes its driver a while.
                let own = wgpu.batch_invariant(batch_invariant);
                match element {
                    ElementType::F32 => variants::<f32>(&own, element, width)?,
                    ElementType::F16 => variants::<f16>(&own, element, width)?,
                    ElementType::Bf16 => variants::<bf16>(&own, element, width)?,
                }
            }
        }
    }
    std::fs::create_dir_all(&folder)?;
    let texts = wgpu.shader_texts();
    for (name, text) in &texts {
        std::fs::write(format!("{folder}/{name}.wgsl"), text)?;
    }
    println!("{} shaders", texts.len());
    Ok(())
}

/// Records every operation once for each of its constants.
pub fn variants<X: Element>(wgpu: &Wgpu, element: ElementType, width: usize) -> Result<(), Failure> {
    const TOKENS: usize = 2;
    const TOP_K: usize = 2;
    let mut encoder = wgpu.encoder();
    let storage = |len: usize| wgpu.upload(&vec![0f32; len]);
    let (x, y, h) = (storage(256)?, storage(256)?, storage(4096)?);
    let (ids, weights, w) = (storage(TOKENS * TOP_K)?, storage(TOKENS * TOP_K)?, storage(256)?);
    let (x, y, w) = (View::<X>::new(&x, 0, 64)?, View::<X>::new(&y, 0, 64)?, &w);
    let (ids, weights) = (View::whole(&ids), View::whole(&weights));

    for bias in [None, Some(View::<X>::new(w, 128, width)?)] {
        let (x_stride, y_stride) = (width, width);
        let sizes =
            base::Sizes { tokens: TOKENS, in_features: width, out_features: width, x_stride, y_stride };
        wgpu.base(&mut encoder, &sizes, View::new(w, 0, width * width)?, bias, x, y)?;
    }
    route_variants::<X>(wgpu, &mut encoder, width)?;
    for slices in [&[width][..], &[width - 2, 2]] {
        for rank in [4, 5] {
            fused_variants::<X>(wgpu, &mut encoder, element, (slices, rank))?;
        }
    }
    grouped_variants::<X>(wgpu, &mut encoder, element, width)?;
    // Rows of K read by fours, and one by one.
    for rank in [4, 5, 16] {
        let (in_features, out_features, experts) = (width, width, 1);
        let mut pool =
            Pool::new(wgpu, PoolSizes { in_features, out_features, experts, rank_capacity: 4, element })?;
        pool.set_attention(&zeros(element, (width, width), rank)?)?;
        pool.put(0, &zeros(element, (width, width), 4)?)?;
        let (tokens, top_k, x_stride, h_stride) = (TOKENS, TOP_K, width, 4);
        let plan = wgpu.plan(&mut encoder, &plan::Sizes { tokens, top_k, experts }, &pool, ids)?;
        let sizes = attend::Sizes { tokens, top_k, in_features, x_stride, h_stride };
        wgpu.attend(&mut encoder, &sizes, &plan, &pool, x, View::whole(&h), weights)?;
    }
    for rank in [1, 16, 17, 64] {
        let (in_features, out_features, experts) = (width, width, 1);
        let sizes = PoolSizes { in_features, out_features, experts, rank_capacity: rank, element };
        let mut pool = Pool::new(wgpu, sizes)?;
        pool.put(0, &zeros(element, (width, width), rank)?)?;
        let (tokens, top_k, x_stride, y_stride, h_stride) = (TOKENS, TOP_K, width, width, rank);
        let plan = wgpu.plan(&mut encoder, &plan::Sizes { tokens, top_k, experts }, &pool, ids)?;
        for output in Output::ALL {
            let sizes = shrink::Sizes { tokens, top_k, in_features, x_stride, h_stride, output };
            let h = View::whole(&h);
            wgpu.shrink(&mut encoder, &sizes, &plan, &pool, x, weights, h)?;
            for accumulate in [false, true] {
                let sizes =
                    expand::Sizes { tokens, top_k, out_features, h_stride, y_stride, output, accumulate };
                wgpu.expand(&mut encoder, &sizes, &plan, &pool, h, weights, y)?;
            }
        }
    }
    Ok(())
}

/// Both forms of route, plain and with everything else.
fn route_variants<X: Element>(
    wgpu: &Wgpu,
    encoder: &mut wgpu::CommandEncoder,
    width: usize,
) -> Result<(), Failure> {
    let storage = |len: usize| wgpu.upload(&vec![0f32; len]);
    let (x, words, ids, weights) = (storage(128)?, storage(16)?, storage(64)?, storage(64)?);
    let plain = Weighting::PLAIN.map(|weighting| (Rule::top_k(2, weighting), None));
    let rule = |select, weighting, shared| Rule { select, shared, ..Rule::top_k(3, weighting) };
    let (fixed, learned) = (Select::Threshold(0.1), Select::LearnedThreshold(0.1));
    let standardised = Prototypes::phatgoose(width);
    let others = [
        (rule(learned, Weighting::AboveThreshold, 1), Some(standardised)),
        (rule(fixed, Weighting::SoftmaxTwice, 0), Some(Prototypes::arrow())),
        (rule(Select::TopK, Weighting::Sigmoid, 0), Some(standardised)),
        (rule(fixed, Weighting::Uniform, 2), None),
        (Rule { shared: 1, ..Rule::top_k(0, Weighting::Score) }, None),
    ];
    for (n, (rule, prototypes)) in plain.into_iter().chain(others).enumerate() {
        for (experts, tokens) in [(3, 2), (40, 9), (70, 9)] {
            let rows = experts + rule.select.rows();
            let weight = vec![0f32; rows * width];
            let linear = match prototypes {
                Some(how) => LinearRouter::prototypes(rows, width, &weight, how)?,
                None => LinearRouter::new(rows, width, &weight, None)?,
            };
            let router = WgpuRouter::new(wgpu, linear)?;
            let (in_features, x_stride) = (width, width);
            let sizes = route::Sizes { tokens, in_features, x_stride, experts, rule };
            let masked = n >= plain.len() && n % 2 == 1;
            let offsets = View::new(&words, 0, 2)?;
            let lists = View::new(&words, 4, route::words(experts))?;
            let allow = masked.then_some(Allow { offsets, lists });
            let routes = tokens * rule.width();
            let (ids, weights) = (View::new(&ids, 0, routes)?, View::new(&weights, 0, routes)?);
            wgpu.route(encoder, &sizes, &router, View::<X>::new(&x, 0, 128)?, allow, ids, weights)?;
        }
    }
    Ok(())
}

/// The forms of the fused product on a pool of these slices.
fn fused_variants<X: Element>(
    wgpu: &Wgpu,
    encoder: &mut wgpu::CommandEncoder,
    element: ElementType,
    (slices, rank): (&[usize], usize),
) -> Result<(), Failure> {
    let (width, experts): (usize, usize) = (slices.iter().sum(), 1);
    let (in_features, out_features, rank_capacity) = (width, width, slices.len() * rank);
    let sizes = PoolSizes { in_features, out_features, experts, rank_capacity, element };
    let mut pool = Pool::packed(wgpu, sizes, slices)?;
    let loras: Vec<Lora> =
        slices.iter().map(|&columns| zeros(element, (width, columns), rank)).collect::<Result<_, _>>()?;
    pool.put_packed(0, &loras.iter().map(Some).collect::<Vec<_>>())?;
    let storage = |len: usize| wgpu.upload(&vec![0f32; len]);
    let (x, y, w, h) = (storage(512)?, storage(512)?, storage(256)?, storage(4096)?);
    let (x, y, h) = (View::<X>::new(&x, 0, 256)?, View::<X>::new(&y, 0, 256)?, View::whole(&h));
    let (x_stride, y_stride, h_stride) = (width, width, rank_capacity);
    for (tokens, top_k) in [(2, 2), (9, 1), (16, 3), (4, 7), (1, 2)] {
        let (ids, weights) = (storage(tokens * top_k)?, storage(tokens * top_k)?);
        let ids = View::new(&ids, 0, tokens * top_k)?;
        let weights = View::new(&weights, 0, tokens * top_k)?;
        let plan = wgpu.plan(encoder, &plan::Sizes { tokens, top_k, experts }, &pool, ids)?;
        let sum = fused::Sizes {
            tokens,
            top_k,
            in_features,
            out_features,
            x_stride,
            y_stride,
            h_stride,
            output: Output::Sum,
        };
        let weight = View::new(&w, 0, width * width)?;
        for bias in [None, Some(View::<X>::new(&w, 128, width)?)] {
            wgpu.fused_few(encoder, &sum, &pool, weight, bias, x, ids, weights, h, y)?;
            if [2, 7].contains(&top_k) {
                wgpu.fused_sparse(encoder, &sum, &plan, &pool, weight, bias, x, h, weights, y)?;
            }
        }
        if top_k == 2 && slices.len() == 1 {
            let sizes = fused::Sizes { output: Output::RankSum, ..sum };
            wgpu.fused_sparse(encoder, &sizes, &plan, &pool, weight, None, x, h, weights, y)?;
        }
    }
    if let [_] = slices {
        dense_variants::<X, X>(wgpu, encoder, &pool)?;
        dense_variants::<X, f32>(wgpu, encoder, &pool)?;
    }
    Ok(())
}

/// The grouped product, for every kind of rows.
fn grouped_variants<X: Element>(
    wgpu: &Wgpu,
    encoder: &mut wgpu::CommandEncoder,
    element: ElementType,
    width: usize,
) -> Result<(), Failure> {
    let (tokens, top_k, experts, rank) = (2, 2, 1, 4);
    let markers = Pool::markers(wgpu, experts)?;
    let storage = |len: usize| wgpu.upload(&vec![0f32; len]);
    let (ids, weights) = (storage(tokens * top_k)?, storage(tokens * top_k)?);
    let (ids, weights) = (View::whole(&ids), View::whole(&weights));
    let (x, y, w, h, rows) = (storage(256)?, storage(256)?, storage(256)?, storage(256)?, storage(256)?);
    let plan = wgpu.plan(encoder, &plan::Sizes { tokens, top_k, experts }, &markers, ids)?;
    for kind in grouped::Rows::ALL {
        let gated = kind == grouped::Rows::Gated;
        let slices = if gated { vec![width; 2] } else { vec![width] };
        let (in_features, out_features, rank_capacity) = (width, slices.iter().sum(), 2 * rank);
        let sizes = PoolSizes { in_features, out_features, experts, rank_capacity, element };
        let mut pool = Pool::packed(wgpu, sizes, &slices)?;
        let lora = zeros(element, (width, width), rank)?;
        pool.put_packed(0, &vec![Some(&lora); slices.len()])?;
        let sizes = grouped::Sizes {
            tokens,
            top_k,
            experts,
            in_features,
            out_features,
            x_stride: width,
            h_stride: rank_capacity,
            y_stride: width,
            x_per_route: false,
            rows: kind,
        };
        let loras = wgpu.plan(encoder, &plan::Sizes { tokens, top_k, experts }, &pool, ids)?;
        let (x, y) = (View::<X>::new(&x, 0, 128)?, View::<X>::new(&y, 0, 128)?);
        let (w, h, rows) = (View::new(&w, 0, out_features * width)?, View::whole(&h), View::whole(&rows));
        wgpu.grouped(encoder, &sizes, &plan, &pool, &loras, w, x, h, weights, rows, y)?;
        if kind == grouped::Rows::Combined {
            wgpu.grouped_with_shrink(encoder, &sizes, &plan, &pool, &loras, w, x, h, weights, rows, y)?;
        }
    }
    Ok(())
}

/// The dense form, routed and given.
fn dense_variants<X: Element, Z: Element>(
    wgpu: &Wgpu,
    encoder: &mut wgpu::CommandEncoder,
    pool: &Pool,
) -> Result<(), Failure> {
    let (tokens, width) = (2, pool.slots().sizes().in_features);
    let storage = |len: usize| wgpu.upload(&vec![0f32; len]);
    let (x, y, w, z) = (storage(64)?, storage(64)?, storage(256)?, storage(64)?);
    let (x, y, z) = (View::<X>::new(&x, 0, 64)?, View::<X>::new(&y, 0, 64)?, View::<Z>::new(&z, 0, 32)?);
    let linear = WgpuRouter::new(wgpu, LinearRouter::new(1, width, &vec![0f32; width], None)?)?;
    for (top_k, weighting) in
        [(1, Some(Weighting::SoftmaxAll)), (1, Some(Weighting::SoftmaxSelected)), (8, None), (0, None)]
    {
        let sizes = fused::Sizes {
            tokens,
            top_k,
            in_features: width,
            out_features: width,
            x_stride: width,
            y_stride: width,
            h_stride: 8,
            output: Output::Sum,
        };
        let (ids, weights) = (storage(16)?, storage(16)?);
        let (ids, weights) = (View::new(&ids, 0, tokens * top_k)?, View::new(&weights, 0, tokens * top_k)?);
        let router = weighting.map(|weighting| (&linear, weighting));
        wgpu.fused_gate(encoder, &sizes, pool, router, x, ids, weights, z)?;
        if X::TYPE == Z::TYPE {
            pair_variants::<X>(wgpu, encoder, (pool, &sizes), router, ids, weights)?;
        }
        for bias in [None, Some(View::<X>::new(&w, 128, width)?)] {
            let weight = View::new(&w, 0, width * width)?;
            wgpu.fused_dense(encoder, &sizes, pool, weight, bias, x, z, y)?;
        }
    }
    Ok(())
}

/// What an engine multiplies itself: z behind x, and the weight beside B.
fn pair_variants<E: Element>(
    wgpu: &Wgpu,
    encoder: &mut wgpu::CommandEncoder,
    (pool, sizes): (&Pool, &fused::Sizes),
    router: Option<(&WgpuRouter, Weighting)>,
    ids: View<i32>,
    weights: View<f32>,
) -> Result<(), Failure> {
    let (width, stride) = (sizes.in_features, 40);
    let sizes = fused::Sizes { x_stride: stride, h_stride: stride, ..*sizes };
    let (rows, w, concat) =
        (wgpu.upload(&[0f32; 80])?, wgpu.upload(&[0f32; 64])?, wgpu.upload(&[0f32; 320])?);
    let (x, z) = (View::<E>::new(&rows, 0, 80)?, View::<E>::new(&rows, width, 80 - width)?);
    wgpu.fused_gate(encoder, &sizes, pool, router, x, ids, weights, z)?;
    if pool.slots().sizes().element == E::TYPE {
        let (w, concat) = (View::<E>::new(&w, 0, width * width)?, View::new(&concat, 0, stride * width)?);
        wgpu.fused_concat(encoder, pool, w, stride, concat)?;
    }
    Ok(())
}

fn zeros(element: ElementType, (inner, outer): (usize, usize), rank: usize) -> Result<Lora, molora::Error> {
    fn of<E: Element>((inner, outer): (usize, usize), rank: usize) -> Result<Lora, molora::Error> {
        let (a, b) = (vec![E::from_f32(0.0); inner * rank], vec![E::from_f32(0.0); outer * rank]);
        Lora::new(inner, outer, rank, 1.0, &a, &b)
    }
    match element {
        ElementType::F32 => of::<f32>((inner, outer), rank),
        ElementType::F16 => of::<f16>((inner, outer), rank),
        ElementType::Bf16 => of::<bf16>((inner, outer), rank),
    }
}
