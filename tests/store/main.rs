//! A living pool: adapters come and go while batches run, on every device.

mod attended;
mod books;
mod devices;
mod living;
mod stress;

use molora::adapter::store::{Limits, Served, Store};
use molora::adapter::{Adapter, slots::PoolSizes};
use molora::{ElementType, Lora};
use std::collections::BTreeMap;
use std::sync::Arc;

const IN: usize = 24;
const OUT: usize = 20;

/// Pools of these tests: f32, `IN` to `OUT`.
fn sizes(experts: usize, rank_capacity: usize) -> PoolSizes {
    PoolSizes { in_features: IN, out_features: OUT, experts, rank_capacity, element: ElementType::F32 }
}

/// Seeded multiples of 1/8 from -1 up to below 1: all sums of these tests are exact in f32, in any order.
fn values(seed: u64, len: usize) -> Vec<f32> {
    let mix = |i: u64| {
        let z = (seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ i).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        (z ^ (z >> 29)).wrapping_mul(0x94d0_49bb_1331_11eb) >> 60
    };
    (0..len as u64).map(|i| mix(i + 1) as f32 / 8.0 - 1.0).collect()
}

/// A LoRA of these sizes whose weights the seed decides.
fn lora(seed: u64, (inputs, outputs, rank): (usize, usize, usize)) -> Lora {
    let (a, b) = (values(2 * seed, rank * inputs), values(2 * seed + 1, rank * outputs));
    Lora::new(inputs, outputs, rank, 0.5, &a, &b).unwrap()
}

/// An adapter of one module, `m`, `IN` to `OUT`.
fn adapter(seed: u64, rank: usize) -> Arc<Adapter> {
    of_modules(&[("m", lora(seed, (IN, OUT, rank)))])
}

fn of_modules(modules: &[(&str, Lora)]) -> Arc<Adapter> {
    let modules: BTreeMap<_, _> =
        modules.iter().map(|(name, lora)| (name.to_string(), lora.clone())).collect();
    Arc::new(Adapter::new("adapter", modules))
}

/// A store of one layer, module `m`, of per-request adapters.
fn store<D: devices::Engine>(device: &D, limits: Limits, sizes: PoolSizes) -> Store<D> {
    Store::new(limits, vec![Served::new("m", device.layer(sizes, 1, None))]).unwrap()
}

/// The formula in f64: `base x + scaling B (A x)` for every token, each with one LoRA or none.
fn reference(base: &[f32], x: &[f32], loras: &[Option<&Lora>]) -> Vec<f32> {
    let mut y = Vec::new();
    for (x, lora) in x.chunks(IN).zip(loras) {
        let dot = |row: &[f32]| row.iter().zip(x).map(|(w, x)| f64::from(*w) * f64::from(*x)).sum::<f64>();
        let (a, b): (Vec<f32>, Vec<f32>) =
            lora.map_or_else(Default::default, |l| (l.a().collect(), l.b().collect()));
        let h: Vec<f64> = a.chunks(IN).map(dot).collect();
        for (o, row) in base.chunks(IN).enumerate() {
            let terms = lora.map_or(&[][..], |lora| &b[o * lora.rank()..][..lora.rank()]);
            let delta: f64 = terms.iter().zip(&h).map(|(b, h)| f64::from(*b) * h).sum();
            y.push((dot(row) + delta * lora.map_or(0.0, |lora| f64::from(lora.scaling()))) as f32);
        }
    }
    y
}

/// The message of a call that must be refused.
fn refuses<T>(result: molora::Result<T>) -> String {
    match result {
        Ok(_) => panic!("the call was accepted"),
        Err(e) => e.to_string(),
    }
}
