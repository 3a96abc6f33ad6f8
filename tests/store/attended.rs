//! RAMoLE in a living pool: what a store lends attends over the adapters of the lease.

use crate::devices::Engine;
use crate::{IN, OUT, adapter, lora, sizes, values};
use molora::adapter::store::{Limits, Served, Store};
use molora::{Cpu, Lora};

#[test]
fn leases_attend_on_the_cpu() {
    leases_attend::<Cpu>();
}

#[cfg(feature = "wgpu")]
#[test]
fn leases_attend_on_webgpu() {
    leases_attend::<molora::Wgpu>();
}

#[cfg(feature = "cuda")]
#[test]
fn leases_attend_on_cuda() {
    leases_attend::<molora::Cuda>();
}

/// `base x + sum softmax(<A_r x, B_r^T v_i> / sqrt(r_r)) v_i`, `v_i = scaling_i B_i A_i x`, of one token in f64.
fn published(base: &[f32], router: &Lora, set: &[&Lora], x: &[f32]) -> Vec<f64> {
    let times = |rows: &mut dyn Iterator<Item = f32>, x: &[f64]| -> Vec<f64> {
        let rows: Vec<f64> = rows.map(f64::from).collect();
        rows.chunks(x.len()).map(|row| row.iter().zip(x).map(|(w, x)| w * x).sum()).collect()
    };
    let x: Vec<f64> = x.iter().copied().map(f64::from).collect();
    let v = |lora: &&Lora| -> Vec<f64> {
        let v = times(&mut lora.b(), &times(&mut lora.a(), &x));
        v.iter().map(|v| v * f64::from(lora.scaling())).collect()
    };
    let (v, q) = (set.iter().map(v).collect::<Vec<_>>(), times(&mut router.a(), &x));
    let b: Vec<f64> = router.b().map(f64::from).collect();
    let score = |v: &Vec<f64>| -> f64 {
        let terms = v.iter().zip(b.chunks(q.len())).map(|(v, b)| {
            let own: f64 = b.iter().zip(&q).map(|(b, q)| b * q).sum();
            v * own
        });
        (terms.sum::<f64>() / (q.len() as f64).sqrt()).exp()
    };
    let scores: Vec<f64> = v.iter().map(score).collect();
    let (total, mut y) = (scores.iter().sum::<f64>(), times(&mut base.iter().copied(), &x));
    for (v, score) in v.iter().zip(&scores) {
        y.iter_mut().zip(v).for_each(|(y, v)| *y += score / total * v);
    }
    y
}

fn leases_attend<D: Engine>() {
    for device in D::found() {
        let small = values(91, 3 * IN).iter().map(|v| v / 16.0).collect::<Vec<_>>();
        let router = Lora::new(IN, OUT, 3, 7.0, &small, &values(92, 3 * OUT)).unwrap();
        let layer = device.layer(sizes(4, 40), 2, Some(&router));
        let store = Store::new(Limits::default(), vec![Served::new("m", layer)]).unwrap();
        let of = [(1, 4), (2, 7), (3, 16), (4, 20)];
        for (seed, rank) in of {
            store.register(&seed.to_string(), adapter(seed, rank)).unwrap();
        }
        let (x, base) = (values(5, 3 * IN), values(6, OUT * IN));
        // 40 ranks: later pairs take the rows, and the keys, of earlier ones.
        for pair in [[0usize, 1], [2, 0], [3, 1], [1, 2]] {
            let loras = pair.map(|i| lora(of[i].0, (IN, OUT, of[i].1)));
            let lease = store.acquire(&pair.map(|i| of[i].0.to_string())).unwrap();
            let [one, two] = [0, 1].map(|i| lease.id(i, 0).unwrap());
            // Both, the second alone, none.
            let y = D::run(&lease.layer(0).unwrap(), &base, &x, &[one, two, two, -1, -1, -1]);
            assert_eq!(D::skipped(store.layer(0).unwrap()), None);
            let sets = [vec![&loras[0], &loras[1]], vec![&loras[1]], vec![]];
            for ((y, x), set) in y.chunks(OUT).zip(x.chunks(IN)).zip(&sets) {
                for (got, want) in y.iter().zip(published(&base, &router, set, x)) {
                    assert!((f64::from(*got) - want).abs() < 1e-3, "{pair:?}: expected {want}, got {got}");
                }
            }
        }
        assert!(store.counters().evictions > 0);
    }
}
