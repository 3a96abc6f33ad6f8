//! The approximate index against the exact one: what it finds, and that what it finds is right.

use molora::device::Cpu;
use molora::retrieval::{Approximate, Exact, Hit, Index, Metric, Query};
use molora_check::rng::Rng;
use std::time::Instant;

const DIMS: usize = 64;

/// Nearly normal values: the sum of four even ones.
fn noise(rng: &mut Rng) -> f32 {
    (0..4).map(|_| rng.unit() - 0.5).sum()
}

/// How embeddings lie.
#[derive(Debug, Clone, Copy)]
enum Shape {
    /// Nowhere near each other: the worst case of a graph.
    Scattered,
    /// Around 200 centres, as texts of 200 kinds.
    Clustered,
}

struct Source {
    rng: Rng,
    centres: Vec<f32>,
    shape: Shape,
}

impl Source {
    fn new(shape: Shape) -> Self {
        let mut rng = Rng::new(11);
        let centres = (0..200 * DIMS).map(|_| noise(&mut rng)).collect();
        Self { rng, centres, shape }
    }

    fn next(&mut self) -> Vec<f32> {
        let centre = self.rng.below(200) * DIMS;
        let (near, far) = match self.shape {
            Shape::Scattered => (1.0, 0.0),
            Shape::Clustered => (0.5, 1.0),
        };
        (0..DIMS).map(|i| far * self.centres[centre + i] + near * noise(&mut self.rng)).collect()
    }
}

fn filled(source: &mut Source, metric: Metric, count: u64) -> Approximate {
    let mut index = Approximate::new(&Cpu::new().unwrap(), DIMS, metric).unwrap();
    for n in 0..count {
        assert!(!index.insert(n * 3 + 1, &source.next()).unwrap());
    }
    index
}

/// The share of the exact hits that are found; what is found has the scores and the order of an exact search.
fn recall(index: &Approximate, queries: &[Query], top_k: usize) -> f64 {
    let (got, want) = (index.search(queries, top_k).unwrap(), index.exact().search(queries, top_k).unwrap());
    let (mut found, mut asked) = (0, 0);
    for ((query, got), want) in queries.iter().zip(&got).zip(&want) {
        assert_eq!(got.len(), want.len());
        let again = index.exact().search(&[query.allow(&ids(got))], top_k).unwrap();
        assert_eq!(*got, again[0]);
        found += got.iter().filter(|hit| want.contains(hit)).count();
        asked += want.len();
    }
    found as f64 / asked as f64
}

fn queries(source: &mut Source, count: usize) -> Vec<Vec<f32>> {
    (0..count).map(|_| source.next()).collect()
}

fn open(queries: &[Vec<f32>]) -> Vec<Query<'_>> {
    queries.iter().map(|query| Query::new(query)).collect()
}

#[test]
fn most_of_the_best_are_found() {
    for (shape, metric) in [(Shape::Clustered, Metric::Cosine), (Shape::Scattered, Metric::InnerProduct)] {
        let mut source = Source::new(shape);
        let start = Instant::now();
        let index = filled(&mut source, metric, 20_000);
        let built = start.elapsed();
        let queries = queries(&mut source, 200);
        let start = Instant::now();
        index.search(&open(&queries), 10).unwrap();
        let (walked, start) = (start.elapsed(), Instant::now());
        index.exact().search(&open(&queries), 10).unwrap();
        let read = start.elapsed();
        let recall = recall(&index, &open(&queries), 10);
        println!(
            "{shape:?}, {metric:?}: recall@10 {recall:.4}; built in {built:.1?}, 200 queries {walked:.1?}, exact {read:.1?}"
        );
        assert!(recall >= 0.95, "{shape:?}, {metric:?}: {recall}");
    }
}

#[test]
fn lists_are_kept() {
    let mut source = Source::new(Shape::Clustered);
    let index = filled(&mut source, Metric::Cosine, 6000);
    let queries = queries(&mut source, 50);
    let best: Vec<Vec<u64>> =
        index.exact().search(&open(&queries), 40).unwrap().iter().map(|hits| ids(hits)).collect();
    let denied: Vec<Query> = queries.iter().zip(&best).map(|(q, best)| Query::new(q).deny(best)).collect();
    let recall = recall(&index, &denied, 10);
    assert!(recall >= 0.95, "without the 40 best: {recall}");
    for (hits, best) in index.search(&denied, 10).unwrap().iter().zip(&best) {
        assert!(hits.len() == 10 && ids(hits).iter().all(|id| !best.contains(id)));
    }
    // What a walk cannot answer: an allow list, a deny list of nearly all, more hits than a walk keeps.
    let nearly_all: Vec<u64> = (0..5995).map(|n| n * 3 + 1).collect();
    let q = &queries[0];
    let hard = [
        Query::new(q).allow(&best[1]),
        Query::new(q).deny(&nearly_all),
        Query::new(q).allow(&best[1]).deny(&best[1][..39]),
        Query::new(q).allow(&[]),
    ];
    let mixed = [hard[0], Query::new(&queries[2]), hard[1], hard[2], hard[3]];
    let got = index.search(&mixed, 10).unwrap();
    let want = index.exact().search(&hard, 10).unwrap();
    assert_eq!([&got[0], &got[2], &got[3], &got[4]], [&want[0], &want[1], &want[2], &want[3]]);
    assert_eq!(got[1], index.search(&mixed[1..2], 10).unwrap()[0]);
    assert_eq!(want.iter().map(Vec::len).collect::<Vec<_>>(), [10, 5, 1, 0]);
    assert_eq!(index.search(&hard[..1], 6000).unwrap()[0].len(), 40);
    let all = index.search(&open(&queries[..1]), 7000).unwrap();
    assert_eq!(all, index.exact().search(&open(&queries[..1]), 6000).unwrap());
}

fn ids(hits: &[Hit]) -> Vec<u64> {
    hits.iter().map(|hit| hit.id).collect()
}

#[test]
fn adapters_come_and_go() {
    let mut source = Source::new(Shape::Clustered);
    let mut index = filled(&mut source, Metric::Cosine, 5000);
    let mut rng = Rng::new(12);
    // Every place of the graph is given up and taken again, on average, once and a half.
    for step in 0..15_000u64 {
        let id = rng.below(5000) as u64 * 3 + 1;
        match step % 3 {
            0 => _ = index.remove(id).unwrap(),
            1 => _ = index.insert(id, &source.next()).unwrap(),
            _ => _ = index.insert(100_000 + step, &source.next()).unwrap(),
        }
    }
    let gone: Vec<u64> = (0..5000).map(|n| n * 3 + 1).filter(|id| !index.contains(*id)).collect();
    assert!(gone.len() > 500 && index.len() > 5000, "{} gone, {} held", gone.len(), index.len());
    let queries = queries(&mut source, 100);
    let recall = recall(&index, &open(&queries), 10);
    println!("after 15,000 changes of 5,000 adapters: recall@10 {recall:.4}");
    assert!(recall >= 0.95, "{recall}");
    for id in index.exact().ids() {
        assert!(index.remove(id).unwrap());
    }
    assert!(index.is_empty() && !index.remove(1).unwrap());
    assert_eq!(index.search(&open(&queries[..1]), 3).unwrap(), [vec![]]);
    index.insert(9, &queries[0]).unwrap();
    assert_eq!(ids(&index.search(&open(&queries[..1]), 3).unwrap()[0]), [9]);
}

#[test]
fn the_same_calls_give_the_same_bits() {
    let bits = |hits: Vec<Vec<Hit>>| -> Vec<(u64, u32)> {
        hits.into_iter().flatten().map(|hit| (hit.id, hit.score.to_bits())).collect()
    };
    let mut first = None;
    for threads in [1, 4] {
        let mut source = Source::new(Shape::Scattered);
        // Few candidates: another graph then finds other adapters.
        let mut index = filled(&mut source, Metric::InnerProduct, 3000).candidates(20).unwrap();
        let queries = queries(&mut source, 40);
        // Walks of several threads between insertions must not change what comes after.
        std::thread::scope(|scope| {
            for n in 0..threads {
                let (index, queries) = (&index, &queries);
                scope.spawn(move || index.search(&open(&queries[n * 10..][..10]), 5).unwrap());
            }
        });
        for n in 0..1000 {
            index.insert(n * 3 + 2, &source.next()).unwrap();
        }
        let together = bits(index.search(&open(&queries), 20).unwrap());
        let alone = queries.iter().flat_map(|q| index.search(&[Query::new(q)], 20).unwrap()).collect();
        assert_eq!(bits(alone), together, "alone and in a batch");
        assert_eq!(*first.get_or_insert_with(|| together.clone()), together, "{threads} threads");
    }
}

#[test]
fn it_refuses_what_the_exact_index_refuses() {
    let cpu = Cpu::new().unwrap();
    let mut source = Source::new(Shape::Scattered);
    let mut approximate = filled(&mut source, Metric::Cosine, 400).candidates(50).unwrap();
    let mut exact = Exact::new(&cpu, DIMS, Metric::Cosine).unwrap();
    let (good, mut bad) = (source.next(), source.next());
    bad[3] = f32::NAN;
    for embedding in [&bad[..], &[0.0; DIMS], &[1.0; 3], &[]] {
        let (a, e) = (approximate.insert(1, embedding), exact.insert(1, embedding));
        assert!(a.is_err() && a == e, "{a:?}, {e:?}");
        // The first query is searched exactly, the last one walks.
        let asked = [Query::new(&good).allow(&[1]), Query::new(&good), Query::new(embedding)];
        let (a, e) = (approximate.search(&asked, 1), exact.search(&asked, 1));
        assert!(a.is_err() && a == e, "{a:?}, {e:?}");
    }
    assert_eq!(approximate.insert(u64::MAX, &good), exact.insert(u64::MAX, &good));
    assert!(approximate.insert(u64::MAX, &good).is_err());
    assert_eq!(approximate.len(), 400);
    assert!(Approximate::new(&cpu, 0, Metric::Cosine).is_err());
    assert!(approximate.candidates(0).unwrap_err().to_string().contains("candidates"));
}

#[test]
fn more_candidates_find_more() {
    let mut source = Source::new(Shape::Scattered);
    let index = filled(&mut source, Metric::Cosine, 4000).candidates(10).unwrap();
    let queries = queries(&mut source, 50);
    let few = recall(&index, &open(&queries), 10);
    let many = recall(&index.candidates(300).unwrap(), &open(&queries), 10);
    println!("10 candidates: recall@10 {few:.3}, 300: {many:.3}");
    assert!(few < 0.9 && many > 0.98, "{few}, {many}");
}

/// Its library is compiled with fast mathematics, which must not reach ours: small numbers stay what they are.
#[test]
fn small_numbers_are_not_flushed() {
    let _index = filled(&mut Source::new(Shape::Scattered), Metric::Cosine, 300);
    assert_eq!(std::hint::black_box(f32::MIN_POSITIVE) / 2.0 * 2.0, f32::MIN_POSITIVE);
}
