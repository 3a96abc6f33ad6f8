//! Retrieval against its definition: ties, lists, adapters that come and go, sizes around every edge.

#[path = "../common/devices.rs"]
mod devices;
mod on_gpu;

use molora::adapter::LinearRouter;
use molora::device::Cpu;
use molora::ops::route::{AllowLists, CpuRouter, Rule, Sizes, Weighting};
use molora::retrieval::{Exact, Hit, Index, MAX_NORM, Metric, Query, definition, mean};
use molora_check::rng::Rng;

/// A judged value's error, against scores of at most 1.
const TOLERANCE: f32 = 2e-6;

/// Adapters by id, as the definition takes them.
type Adapters = Vec<(u64, Vec<f32>)>;

/// Whole numbers so small that every product of two embeddings is exact: the order is then known to the last tie.
fn whole(rng: &mut Rng, dims: usize) -> Vec<f32> {
    (0..dims).map(|_| rng.below(5) as f32 - 2.0).collect()
}

fn real(rng: &mut Rng, dims: usize) -> Vec<f32> {
    (0..dims).map(|_| rng.value(1.0)).collect()
}

/// Ids that are neither dense nor ascending.
fn adapters(rng: &mut Rng, count: usize, dims: usize, row: fn(&mut Rng, usize) -> Vec<f32>) -> Adapters {
    let mut adapters = Adapters::new();
    while adapters.len() < count {
        let id = if adapters.len().is_multiple_of(2) { rng.bits() } else { adapters.len() as u64 };
        if adapters.iter().all(|(held, _)| *held != id) {
            adapters.push((id, row(rng, dims)));
        }
    }
    adapters
}

fn index(adapters: &Adapters, dims: usize, metric: Metric) -> Exact {
    let mut index = Exact::new(&Cpu::new().unwrap(), dims, metric).unwrap();
    for (id, embedding) in adapters {
        assert!(!index.insert(*id, embedding).unwrap());
    }
    assert_eq!(index.len(), adapters.len());
    index
}

fn expected(metric: Metric, adapters: &Adapters, query: &Query, top_k: usize) -> Vec<Hit> {
    let rows: Vec<(u64, &[f32])> = adapters.iter().map(|(id, e)| (*id, e.as_slice())).collect();
    definition(metric, &rows, query, top_k).unwrap()
}

/// Rank by rank the definition's score; every hit's own score; no adapter twice.
fn judge(got: &[Hit], metric: Metric, adapters: &Adapters, query: &Query, top_k: usize) {
    let all = expected(metric, adapters, query, usize::MAX);
    let want = &all[..all.len().min(top_k)];
    assert_eq!(got.len(), want.len());
    for (got, want) in got.iter().zip(want) {
        assert!((got.score - want.score).abs() <= TOLERANCE, "{got:?}, expected {want:?}");
        let own = all.iter().find(|hit| hit.id == got.id).expect("an adapter that may answer");
        assert!((got.score - own.score).abs() <= TOLERANCE, "{got:?}, its own score is {own:?}");
    }
    for (n, hit) in got.iter().enumerate() {
        assert!(got[..n].iter().all(|other| other.id != hit.id), "{} twice", hit.id);
    }
}

#[test]
fn whole_numbers_give_the_definition_to_the_last_tie() {
    let mut rng = Rng::new(1);
    for (count, dims) in
        [(0, 3), (1, 1), (31, 1), (32, 7), (33, 16), (257, 2), (1023, 5), (1024, 17), (1025, 384), (2049, 3)]
    {
        let adapters = adapters(&mut rng, count, dims, whole);
        let index = index(&adapters, dims, Metric::InnerProduct);
        let queries: Vec<Vec<f32>> = (0..33).map(|_| whole(&mut rng, dims)).collect();
        let queries: Vec<Query> = queries.iter().map(|q| Query::new(q)).collect();
        for top_k in [0, 1, 2, 10, count, count + 5] {
            let hits = index.search(&queries, top_k).unwrap();
            for (n, query) in queries.iter().enumerate() {
                let want = expected(Metric::InnerProduct, &adapters, query, top_k);
                assert_eq!(hits[n], want, "{count} x {dims}, top {top_k}, query {n}");
            }
        }
    }
}

#[test]
fn cosines_and_products_are_the_definitions() {
    let mut rng = Rng::new(2);
    for metric in [Metric::Cosine, Metric::InnerProduct] {
        for (count, dims) in [(5, 384), (100, 1), (1030, 63), (300, 513)] {
            // Inner products of at most 1.
            let scale = if metric == Metric::InnerProduct { 1.0 / (dims as f32).sqrt() } else { 3.0 };
            let mut adapters = adapters(&mut rng, count, dims, real);
            adapters.iter_mut().flat_map(|(_, e)| e).for_each(|v| *v = (*v + 1e-3) * scale);
            let index = index(&adapters, dims, metric);
            for top_k in [1, 7, count] {
                let mut q = real(&mut rng, dims);
                q.iter_mut().for_each(|v| *v = (*v + 1e-3) * scale);
                let query = Query::new(&q);
                judge(&index.search(&[query], top_k).unwrap()[0], metric, &adapters, &query, top_k);
            }
        }
    }
}

#[test]
fn a_cosine_takes_any_scale() {
    let mut index = Exact::new(&Cpu::new().unwrap(), 3, Metric::Cosine).unwrap();
    for (id, scale) in [(1, 1e-38), (2, 1e38), (3, 1.0), (4, 1e-44)] {
        index.insert(id, &[scale, 0.0, 0.0]).unwrap();
    }
    index.insert(5, &[-1.0, 0.0, 0.0]).unwrap();
    let hits = index.search(&[Query::new(&[3e38, 0.0, 0.0])], 9).unwrap();
    let want = [(1, 1.0), (2, 1.0), (3, 1.0), (4, 1.0), (5, -1.0)].map(|(id, score)| Hit { id, score });
    assert_eq!(hits, [want]);
}

#[test]
fn lists_are_each_querys_own() {
    let mut rng = Rng::new(3);
    let adapters = adapters(&mut rng, 1500, 24, whole);
    let index = index(&adapters, 24, Metric::InnerProduct);
    let ids: Vec<u64> = adapters.iter().map(|(id, _)| *id).collect();
    let q = whole(&mut rng, 24);
    let best: Vec<u64> = index.search(&[Query::new(&q)], 20).unwrap()[0].iter().map(|hit| hit.id).collect();
    let unknown = [u64::MAX - 1, best[3], best[3], best[0]];
    let some: Vec<u64> = ids.iter().copied().rev().step_by(3).collect();
    let all_but_two = &ids[2..];
    let queries = [
        Query::new(&q),
        Query::new(&q).deny(&best),
        Query::new(&q).allow(&best[5..]),
        Query::new(&q).allow(&unknown),
        Query::new(&q).allow(&[]),
        Query::new(&q).allow(&some).deny(&best[..10]),
        Query::new(&q).deny(&ids),
        Query::new(&q).deny(all_but_two),
        Query::new(&q).allow(&ids),
    ];
    let hits = index.search(&queries, 12).unwrap();
    for (n, query) in queries.iter().enumerate() {
        assert_eq!(hits[n], expected(Metric::InnerProduct, &adapters, query, 12), "query {n}");
    }
    assert_eq!(hits[0], hits[8], "an open query and one that allows all");
    assert!(hits[4].is_empty() && hits[6].is_empty());
    assert_eq!((hits[3].len(), hits[7].len()), (2, 2));
}

/// Real embeddings and near-ties: an allow list takes another way through the index, and must give the same bits.
#[test]
fn scores_have_the_same_bits_alone_in_a_batch_and_by_list() {
    let mut rng = Rng::new(4);
    let adapters = adapters(&mut rng, 1100, 100, real);
    let ids: Vec<u64> = adapters.iter().map(|(id, _)| *id).collect();
    for metric in [Metric::Cosine, Metric::InnerProduct] {
        let index = index(&adapters, 100, metric);
        let queries: Vec<Vec<f32>> = (0..300).map(|_| real(&mut rng, 100)).collect();
        let queries: Vec<Query> = queries.iter().map(|q| Query::new(q)).collect();
        let together = index.search(&queries, 1100).unwrap();
        for n in [0, 1, 31, 32, 255, 256, 299] {
            let alone = index.search(&queries[n..=n], 1100).unwrap();
            let listed = index.search(&[queries[n].allow(&ids)], 1100).unwrap();
            assert_eq!(bits(&alone[0]), bits(&together[n]), "query {n}");
            assert_eq!(bits(&listed[0]), bits(&together[n]), "query {n} by list");
        }
        assert_eq!(index.search(&queries, 1100).unwrap(), together, "a second run");
    }
}

fn bits(hits: &[Hit]) -> Vec<(u64, u32)> {
    hits.iter().map(|hit| (hit.id, hit.score.to_bits())).collect()
}

#[test]
fn hits_depend_neither_on_the_order_of_adapters_nor_on_threads() {
    let mut rng = Rng::new(5);
    let mut adapters = adapters(&mut rng, 2100, 33, real);
    let query = real(&mut rng, 33);
    let first = index(&adapters, 33, Metric::Cosine).search(&[Query::new(&query)], 2100).unwrap();
    for threads in [1, 3] {
        for n in (1..adapters.len()).rev() {
            adapters.swap(n, rng.below(n + 1));
        }
        let mut index = Exact::new(&Cpu::with_threads(threads).unwrap(), 33, Metric::Cosine).unwrap();
        adapters.iter().for_each(|(id, e)| _ = index.insert(*id, e).unwrap());
        assert_eq!(index.search(&[Query::new(&query)], 2100).unwrap(), first, "{threads} threads");
    }
}

#[test]
fn adapters_come_and_go() {
    let mut rng = Rng::new(6);
    let dims = 9;
    let mut index = Exact::new(&Cpu::new().unwrap(), dims, Metric::InnerProduct).unwrap();
    let mut held = std::collections::BTreeMap::<u64, Vec<f32>>::new();
    for step in 0..6000 {
        let id = rng.below(1300) as u64 * 7;
        // Grows beyond one block of rows, then shrinks again.
        if rng.below(10) < if step < 4000 { 7 } else { 2 } {
            let embedding = whole(&mut rng, dims);
            assert_eq!(index.insert(id, &embedding).unwrap(), held.insert(id, embedding).is_some());
        } else {
            assert_eq!(index.remove(id).unwrap(), held.remove(&id).is_some());
        }
        assert_eq!((index.len(), index.contains(id)), (held.len(), held.contains_key(&id)));
        if step % 61 == 0 {
            let adapters: Adapters = held.iter().map(|(id, e)| (*id, e.clone())).collect();
            let q = whole(&mut rng, dims);
            let query = Query::new(&q);
            let want = expected(Metric::InnerProduct, &adapters, &query, 15);
            assert_eq!(index.search(&[query], 15).unwrap(), [want], "step {step}");
        }
    }
    assert_eq!(index.ids(), held.keys().copied().collect::<Vec<_>>());
    for (id, embedding) in &held {
        assert_eq!(index.embedding(*id), Some(embedding.as_slice()));
    }
    let bytes = index.bytes();
    held.keys().for_each(|id| assert!(index.remove(*id).unwrap()));
    assert!(index.is_empty() && index.bytes() <= bytes);
    assert_eq!(index.search(&[Query::new(&[1.0; 9])], 4).unwrap(), [vec![]]);
}

#[test]
fn what_cannot_be_compared_is_refused_and_changes_nothing() {
    let cpu = Cpu::new().unwrap();
    assert!(Exact::new(&cpu, 0, Metric::Cosine).unwrap_err().to_string().contains("dims"));
    assert!(Exact::new(&cpu, usize::MAX, Metric::Cosine).is_err());
    for metric in [Metric::Cosine, Metric::InnerProduct] {
        let mut index = Exact::new(&cpu, 3, metric).unwrap();
        index.insert(4, &[1.0, 2.0, 3.0]).unwrap();
        assert!(index.insert(u64::MAX, &[1.0; 3]).unwrap_err().to_string().contains("id"));
        let zero: &[f32] = &[0.0, -0.0, 0.0];
        let huge: &[f32] = &[0.0, MAX_NORM as f32 * 1.01, 0.0];
        let mut bad: Vec<(&[f32], &str)> = vec![
            (&[1.0, 2.0], "3 elements"),
            (&[1.0; 4], "3 elements"),
            (&[], "3 elements"),
            (&[1.0, f32::NAN, 0.0], "[1]: expected a finite value"),
            (&[1.0, 0.0, f32::INFINITY], "[2]: expected a finite value"),
        ];
        bad.push(if metric == Metric::Cosine { (zero, "above 0") } else { (huge, "at most 1e18") });
        for (embedding, said) in bad {
            for id in [4, 5] {
                let error = index.insert(id, embedding).unwrap_err().to_string();
                assert!(error.contains(said) && error.contains("embedding"), "{error}");
            }
            let queries = [Query::new(&[1.0, 1.0, 1.0]), Query::new(embedding)];
            let error = index.search(&queries, 1).unwrap_err().to_string();
            assert!(error.contains(said) && error.contains("queries[1]"), "{error}");
        }
        assert_eq!(index.ids(), [4]);
        assert_eq!(index.search(&[Query::new(&[1.0, 2.0, 3.0])], 2).unwrap()[0].len(), 1);
    }
    // Zero has an inner product.
    let mut index = Exact::new(&cpu, 1, Metric::InnerProduct).unwrap();
    index.insert(2, &[-0.0]).unwrap();
    index.insert(1, &[0.0]).unwrap();
    let hits = index.search(&[Query::new(&[1.0])], 2).unwrap();
    assert_eq!(hits[0].iter().map(|hit| hit.id).collect::<Vec<_>>(), [1, 2], "both zeros are equal");
}

#[test]
fn an_adapters_embedding_is_the_mean_of_its_texts() {
    assert_eq!(mean(&[1.0, 2.0, 3.0, 6.0, 5.0, 1.0], 2).unwrap(), [3.0, 3.0]);
    assert_eq!(mean(&[7.0], 1).unwrap(), [7.0]);
    for (embeddings, dims) in [(&[][..], 2), (&[1.0], 0), (&[1.0, 2.0, 3.0], 2)] {
        assert!(mean(embeddings, dims).unwrap_err().to_string().contains("rows of"), "{dims}");
    }
}

/// Adapters under the ids 0, 1, .. are the experts of a router that hands out its scores: the same choice by both ways.
#[test]
fn a_router_of_embeddings_is_the_same_search() {
    let (cpu, mut rng, dims) = (Cpu::new().unwrap(), Rng::new(8), 65);
    let (count, tokens, top_k) = (150, 40, 6);
    let rows: Vec<f32> = (0..count).flat_map(|_| whole(&mut rng, dims)).collect();
    let x: Vec<f32> = (0..tokens).flat_map(|_| whole(&mut rng, dims)).collect();
    let mut index = Exact::new(&cpu, dims, Metric::InnerProduct).unwrap();
    (0..).zip(rows.chunks(dims)).for_each(|(id, row)| _ = index.insert(id, row).unwrap());
    // Every token is a request of its own; the first two may take nothing.
    let allowed: Vec<Vec<u64>> = (0..tokens)
        .map(|t| (0..count as u64).filter(|_| t > 1 && rng.below(3) == 0).take(20).collect())
        .collect();
    let mut lists = AllowLists::new(count);
    allowed.iter().for_each(|list| lists.push(1, list.iter().map(|&id| id as usize)).unwrap());
    let queries: Vec<Query> =
        x.chunks(dims).zip(&allowed).map(|(row, list)| Query::new(row).allow(list)).collect();

    let router = LinearRouter::new(count, dims, &rows, None).unwrap();
    let router = CpuRouter::new(&cpu, router).unwrap();
    let rule = Rule::top_k(top_k, Weighting::Score);
    let sizes = Sizes { tokens, in_features: dims, x_stride: dims, experts: count, rule };
    let (mut ids, mut weights) = (vec![7; tokens * top_k], vec![f32::NAN; tokens * top_k]);
    cpu.route(&sizes, &router, &x, Some(lists.as_allow()), &mut ids, &mut weights).unwrap();
    for (t, hits) in index.search(&queries, top_k).unwrap().iter().enumerate() {
        let got = ids[t * top_k..].iter().zip(&weights[t * top_k..]).take(top_k);
        let got: Vec<(i32, f32)> = got.map(|(&id, &weight)| (id, weight)).collect();
        let mut want: Vec<(i32, f32)> = hits.iter().map(|hit| (hit.id as i32, hit.score)).collect();
        assert_eq!(want.len(), if t > 1 { top_k } else { 0 });
        want.resize(top_k, (-1, 0.0));
        assert_eq!(got, want, "token {t}");
    }
}

#[test]
fn a_hundred_thousand_adapters() {
    let (count, dims) = (100_000, 384);
    let mut rng = Rng::new(7);
    let mut index = Exact::new(&Cpu::new().unwrap(), dims, Metric::InnerProduct).unwrap();
    let mut rows: Vec<[i8; 384]> = Vec::with_capacity(count);
    for id in 0..count {
        let row: [i8; 384] =
            std::array::from_fn(
                |i| if i % 8 == 0 { rng.bits() as i8 >> 5 } else { (rng.bits() >> 62) as i8 },
            );
        index.insert(id as u64, &row.map(f32::from)).unwrap();
        rows.push(row);
    }
    let start = std::time::Instant::now();
    let queries: Vec<Vec<f32>> = (0..8).map(|_| whole(&mut rng, dims)).collect();
    let queries: Vec<Query> = queries.iter().map(|q| Query::new(q)).collect();
    let hits = index.search(&queries, 10).unwrap();
    println!("8 queries over {count} x {dims}: {:.1} ms", start.elapsed().as_secs_f64() * 1e3);
    for (query, hits) in queries.iter().zip(hits) {
        let mut all: Vec<(i32, u64)> = Vec::with_capacity(count);
        for (id, row) in (0..).zip(&rows) {
            let score: i32 = row.iter().zip(query.embedding).map(|(&e, &q)| i32::from(e) * q as i32).sum();
            all.push((-score, id));
        }
        all.sort_unstable();
        let want: Vec<Hit> = all[..10].iter().map(|&(s, id)| Hit { id, score: -s as f32 }).collect();
        assert_eq!(hits, want);
    }
}
