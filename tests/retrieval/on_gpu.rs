//! The same search by a GPU's router.

use crate::{Adapters, adapters, expected, judge, real, whole};
use molora::host::Device;
use molora::retrieval::{ExactOn, Hit, Index, Metric, Query};
use molora_check::rng::Rng;

/// An empty index on every GPU found.
fn indexes(dims: usize, metric: Metric) -> Vec<Box<dyn Index>> {
    let index = |device: &Device| -> Option<Box<dyn Index>> {
        match device {
            #[cfg(feature = "wgpu")]
            Device::Wgpu(wgpu) => Some(Box::new(ExactOn::new(wgpu, dims, metric).unwrap())),
            #[cfg(feature = "cuda")]
            Device::Cuda(cuda) => Some(Box::new(ExactOn::new(cuda, dims, metric).unwrap())),
            Device::Cpu(_) => None,
        }
    };
    crate::devices::devices().iter().filter_map(index).collect()
}

fn filled(index: &mut dyn Index, adapters: &Adapters) {
    for (id, embedding) in adapters {
        assert!(!index.insert(*id, embedding).unwrap());
    }
    assert_eq!(index.len(), adapters.len());
}

/// Small whole numbers: the CPU's answers to the last tie, in blocks that are filled in and out of order.
#[test]
fn whole_numbers_give_the_definition_to_the_last_tie() {
    let mut rng = Rng::new(11);
    for (count, dims) in [(0, 3), (1, 1), (33, 17), (1024, 2), (1025, 5), (2500, 3)] {
        let mut adapters = adapters(&mut rng, count, dims, whole);
        if count == 1025 {
            adapters.sort_by_key(|(id, _)| *id);
        }
        let rows: Vec<Vec<f32>> = (0..9).map(|_| whole(&mut rng, dims)).collect();
        let queries: Vec<Query> = rows.iter().map(|q| Query::new(q)).collect();
        for mut index in indexes(dims, Metric::InnerProduct) {
            filled(&mut *index, &adapters);
            for top_k in [0, 1, 10, 40] {
                let hits = index.search(&queries, top_k).unwrap();
                for (n, query) in queries.iter().enumerate() {
                    let want = expected(Metric::InnerProduct, &adapters, query, top_k);
                    assert_eq!(hits[n], want, "{count} x {dims}, top {top_k}, query {n}");
                }
            }
        }
    }
}

#[test]
fn cosines_are_the_definitions() {
    let mut rng = Rng::new(12);
    for (count, dims) in [(100, 1), (700, 384)] {
        let adapters = adapters(&mut rng, count, dims, real);
        for mut index in indexes(dims, Metric::Cosine) {
            filled(&mut *index, &adapters);
            for top_k in [1, 7, 50] {
                let q = real(&mut rng, dims);
                let query = Query::new(&q);
                judge(&index.search(&[query], top_k).unwrap()[0], Metric::Cosine, &adapters, &query, top_k);
            }
        }
    }
}

#[test]
fn lists_are_each_querys_own() {
    let mut rng = Rng::new(13);
    let adapters = adapters(&mut rng, 1300, 12, whole);
    let ids: Vec<u64> = adapters.iter().map(|(id, _)| *id).collect();
    let q = whole(&mut rng, 12);
    let best: Vec<u64> =
        expected(Metric::InnerProduct, &adapters, &Query::new(&q), 20).iter().map(|hit| hit.id).collect();
    let unknown = [u64::MAX - 1, best[3], best[3], best[0]];
    let some: Vec<u64> = ids.iter().copied().rev().step_by(3).collect();
    let queries = [
        Query::new(&q),
        Query::new(&q).deny(&best),
        Query::new(&q).allow(&unknown),
        Query::new(&q).allow(&[]),
        Query::new(&q).allow(&some).deny(&best[..10]),
        Query::new(&q).deny(&ids),
        Query::new(&q).deny(&ids[2..]),
        Query::new(&q).allow(&ids),
    ];
    for mut index in indexes(12, Metric::InnerProduct) {
        filled(&mut *index, &adapters);
        let hits = index.search(&queries, 12).unwrap();
        for (n, query) in queries.iter().enumerate() {
            assert_eq!(hits[n], expected(Metric::InnerProduct, &adapters, query, 12), "query {n}");
        }
    }
}

#[test]
fn adapters_come_and_go() {
    let (mut rng, dims) = (Rng::new(14), 5);
    for mut index in indexes(dims, Metric::InnerProduct) {
        let mut held = std::collections::BTreeMap::<u64, Vec<f32>>::new();
        for step in 0..5000 {
            let id = rng.below(1900) as u64 * 7;
            // Grows beyond one block, then shrinks again.
            if rng.below(10) < if step < 3500 { 8 } else { 1 } {
                let embedding = whole(&mut rng, dims);
                assert_eq!(index.insert(id, &embedding).unwrap(), held.insert(id, embedding).is_some());
            } else {
                assert_eq!(index.remove(id).unwrap(), held.remove(&id).is_some());
            }
            assert_eq!((index.len(), index.contains(id)), (held.len(), held.contains_key(&id)));
            if step % 499 == 0 {
                let adapters: Adapters = held.iter().map(|(id, e)| (*id, e.clone())).collect();
                let q = whole(&mut rng, dims);
                let query = Query::new(&q);
                let want = expected(Metric::InnerProduct, &adapters, &query, 15);
                assert_eq!(index.search(&[query], 15).unwrap(), [want], "step {step}");
            }
        }
        assert!(held.len() < 1000);
        held.keys().for_each(|id| assert!(index.remove(*id).unwrap()));
        assert!(index.is_empty());
        assert_eq!(index.search(&[Query::new(&[1.0; 5])], 4).unwrap(), [Vec::<Hit>::new()]);
    }
}

#[test]
fn what_cannot_be_searched_is_refused() {
    for mut index in indexes(1, Metric::Cosine) {
        for id in 0..300 {
            index.insert(id, &[1.0]).unwrap();
        }
        let error = index.search(&[Query::new(&[1.0])], 257).unwrap_err().to_string();
        assert_eq!(error, "retrieval: top_k: expected at most 256 on a GPU, got 257");
        let hits = index.search(&[Query::new(&[2.0])], 256).unwrap().remove(0);
        assert!(hits.iter().zip(0..).all(|(hit, id)| *hit == Hit { id, score: 1.0 }) && hits.len() == 256);
        assert!(index.search(&[Query::new(&[0.0])], 1).unwrap_err().to_string().contains("queries[0]"));
        assert!(index.insert(u64::MAX, &[1.0]).is_err() && index.insert(3, &[f32::NAN]).is_err());
        assert_eq!(index.len(), 300);
    }
}
