//! What the shared table of cases does not ask of the grouped product on WebGPU: ids and weights that count for nothing,
//! slots that change, outputs where nothing is live, devices of the fewest bindings.
#![cfg(feature = "wgpu")]

use half::f16;
use molora::adapter::slots::PoolSizes;
use molora::device::wgpu::{Pool, Status, View};
use molora::error::Result;
use molora::ops::grouped::{Rows, Sizes, definition, wgpu::scratch_len};
use molora::ops::{Expert, plan};
use molora::{Element, Lora, Wgpu};
use wgpu::Buffer;

const TOKENS: usize = 70;
const TOP_K: usize = 2;
const EXPERTS: usize = 3;
const SLOTS: usize = 4;
const RANK: usize = 5;
const INNER: usize = 12;
const WIDTH: usize = 40;
/// What y holds before a call.
const UNTOUCHED: f32 = 7.0;

/// Every adapter that opens, with a browser's limits; fails where `MOLORA_REQUIRE` names one that is not there.
fn devices() -> Vec<Wgpu> {
    let subjects = molora_check::subjects().unwrap_or_else(|why| panic!("{why}"));
    let expected = subjects.iter().filter(|s| s.kind() == "wgpu").count();
    let open = |adapter: &wgpu::Adapter| {
        let least = Wgpu::open_with(adapter, wgpu::Limits::default());
        // An adapter that offers less than a browser: with what it has.
        least.or_else(|_| Wgpu::open(adapter)).ok()
    };
    let devices: Vec<Wgpu> = Wgpu::adapters().iter().filter_map(open).collect();
    assert!(devices.len() >= expected, "{} of {expected} adapters open", devices.len());
    if devices.is_empty() {
        println!("not tested: no WebGPU adapter here");
    }
    devices
}

/// Seeded multiples of 1/8 in -1..1: sums of them are exact.
fn values<E: Element>(seed: usize, len: usize) -> Vec<E> {
    let mixed = |i: usize| (i as u64 * 31 + seed as u64 * 977 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 60;
    (0..len).map(|i| E::from_f32(mixed(i) as f32 / 8.0 - 1.0)).collect()
}

/// A call on a device.
struct Call<X> {
    wgpu: Wgpu,
    /// h is made by the call, not given.
    shrinks: bool,
    sizes: Sizes,
    pool: Pool,
    markers: Pool,
    ids: Vec<i32>,
    lora_ids: Vec<i32>,
    weights: Vec<f32>,
    weight: Vec<X>,
    x: Vec<X>,
    /// Given, or NaN where the call makes it; what it is after a run.
    h: Vec<f32>,
}

impl<X: Element> Call<X> {
    fn new(wgpu: &Wgpu, rows: Rows) -> Self {
        let slices = if rows == Rows::Gated { 2 } else { 1 };
        let (out_features, h_stride) = (slices * WIDTH, slices * RANK);
        let sizes = Sizes {
            tokens: TOKENS,
            top_k: TOP_K,
            experts: EXPERTS,
            in_features: INNER,
            out_features,
            x_stride: INNER,
            h_stride,
            y_stride: WIDTH,
            x_per_route: false,
            rows,
        };
        let pool_sizes = PoolSizes {
            in_features: INNER,
            out_features,
            experts: SLOTS,
            rank_capacity: SLOTS * h_stride,
            element: X::TYPE,
        };
        let mut pool = Pool::packed(wgpu, pool_sizes, &vec![WIDTH; slices]).unwrap();
        (0..SLOTS).for_each(|slot| put::<X>(&mut pool, slot));
        let routes = TOKENS * TOP_K;
        Self {
            wgpu: wgpu.with_own_status(),
            shrinks: false,
            sizes,
            pool,
            markers: Pool::markers(wgpu, EXPERTS).unwrap(),
            ids: (0..routes).map(|n| if n / TOP_K == 3 { -1 } else { (n % EXPERTS) as i32 }).collect(),
            lora_ids: (0..routes).map(|n| (n / 3 % (SLOTS + 1)) as i32 - 1).collect(),
            weights: (0..routes).map(|n| [0.5, -0.25, 1.0][n % 3]).collect(),
            weight: values(1, EXPERTS * out_features * INNER),
            x: values(2, TOKENS * INNER),
            h: values(3, routes * h_stride),
        }
    }

    /// Records, lets `between` change the pool, runs; y and the status.
    fn run(&mut self, between: impl FnOnce(&mut Pool)) -> Result<(Vec<f32>, Status)> {
        let (wgpu, sizes) = (&self.wgpu, &self.sizes);
        let len = sizes.y_rows() * sizes.y_stride;
        let y = wgpu.upload(&vec![X::from_f32(UNTOUCHED); len])?;
        let scratch = wgpu.upload(&vec![f32::NAN; scratch_len(sizes).max(1)])?;
        let (ids, lora_ids) = (wgpu.upload(&self.ids)?, wgpu.upload(&self.lora_ids)?);
        let (weights, weight) = (wgpu.upload(&self.weights)?, wgpu.upload(&self.weight)?);
        if self.shrinks {
            self.h.fill(f32::NAN);
        }
        let (x, h) = (wgpu.upload(&self.x)?, wgpu.upload(&self.h)?);
        fn view<T>(buffer: &Buffer, len: usize) -> View<'_, T> {
            View::new(buffer, 0, len).unwrap()
        }
        let mut encoder = wgpu.encoder();
        let plan_sizes = plan::Sizes { tokens: sizes.tokens, top_k: sizes.top_k, experts: EXPERTS };
        let plan = wgpu.plan(&mut encoder, &plan_sizes, &self.markers, view(&ids, self.ids.len()))?;
        let lora_sizes = plan::Sizes { experts: SLOTS, ..plan_sizes };
        let loras = wgpu.plan(&mut encoder, &lora_sizes, &self.pool, view(&lora_ids, self.lora_ids.len()))?;
        let product = if self.shrinks { Wgpu::grouped_with_shrink::<X> } else { Wgpu::grouped::<X> };
        product(
            wgpu,
            &mut encoder,
            sizes,
            &plan,
            &self.pool,
            &loras,
            view::<X>(&weight, self.weight.len()),
            view(&x, self.x.len()),
            view(&h, self.h.len()),
            view(&weights, self.weights.len()),
            view(&scratch, scratch_len(sizes)),
            view(&y, len),
        )?;
        between(&mut self.pool);
        wgpu.queue().submit([encoder.finish()]);
        let y: Vec<X> = wgpu.download(&y, len)?;
        self.h = wgpu.download(&h, self.h.len())?;
        Ok((y.iter().map(|v| v.to_f32()).collect(), wgpu.take_status()?))
    }

    /// The same call where these routes have no LoRA.
    fn without(&self, dead: impl Fn(usize) -> bool) -> Vec<f32> {
        let mut other = Self { shrinks: self.shrinks, ..Self::new(&self.wgpu, self.sizes.rows) };
        for (n, id) in other.lora_ids.iter_mut().enumerate() {
            *id = if dead(n) { -1 } else { *id };
        }
        let (y, status) = other.run(|_| {}).unwrap();
        assert!(status.is_ok(), "{status}");
        y
    }
}

/// A LoRA for every slice of the pool.
fn put<E: Element>(pool: &mut Pool, slot: usize) {
    let slices = pool.slots().slices().len();
    let lora = |s: usize| {
        let (a, b) =
            (values::<E>(30 + slot + 50 * s, RANK * INNER), values(10 + slot + 50 * s, WIDTH * RANK));
        Lora::new(INNER, WIDTH, RANK, 0.5, &a, &b).unwrap()
    };
    let loras: Vec<Lora> = (0..slices).map(lora).collect();
    pool.put_packed(slot, &loras.iter().map(Some).collect::<Vec<_>>()).unwrap();
}

fn every_kind(check: impl Fn(Call<f32>, Call<f16>)) {
    for wgpu in devices() {
        for rows in Rows::ALL {
            check(Call::new(&wgpu, rows), Call::new(&wgpu, rows));
        }
        let mut with_shrink = (Call::new(&wgpu, Rows::Combined), Call::new(&wgpu, Rows::Combined));
        (with_shrink.0.shrinks, with_shrink.1.shrinks) = (true, true);
        check(with_shrink.0, with_shrink.1);
    }
}

#[test]
fn shrink_writes_the_ranks_of_live_routes_alone() {
    for wgpu in devices() {
        let mut call = Call::<f32>::new(&wgpu, Rows::Combined);
        call.shrinks = true;
        call.sizes.h_stride = RANK + 3;
        call.h = vec![f32::NAN; TOKENS * TOP_K * call.sizes.h_stride];
        assert!(call.run(|_| {}).unwrap().1.is_ok());
        for (n, h) in call.h.chunks(RANK + 3).enumerate() {
            let written = h.iter().take_while(|v| v.is_finite()).count();
            assert!(h[written..].iter().all(|v| v.is_nan()), "route {n}: {h:?}");
            let rank = if call.lora_ids[n] < 0 { 0 } else { RANK };
            assert!(written == rank || call.ids[n] < 0 && written == 0, "route {n}: {written} ranks");
        }
    }
}

#[test]
fn an_id_out_of_range_is_skipped_and_told() {
    every_kind(|mut call, _| {
        let dead = |n: usize| n % 9 == 4;
        for (n, id) in call.lora_ids.iter_mut().enumerate().filter(|(n, _)| dead(*n)) {
            *id = [SLOTS as i32, -2, i32::MAX, i32::MIN][n % 4];
        }
        let (y, status) = call.run(|_| {}).unwrap();
        assert_eq!(status, Status::ID_OUT_OF_RANGE);
        assert!(y == call.without(dead), "{:?}: another result than without a LoRA", call.sizes.rows);
    });
}

#[test]
fn a_slot_that_changed_is_skipped_and_told() {
    every_kind(|mut call, mut halves| {
        let ids = call.lora_ids.clone();
        let (y, status) = call.run(|pool| pool.evict(2).unwrap()).unwrap();
        assert_eq!(status, Status::STALE_SLOT);
        assert!(y == call.without(|n| ids[n] == 2), "{:?}: an empty slot changes y", call.sizes.rows);
        let (y, status) = halves
            .run(|pool| {
                pool.evict(1).unwrap();
                put::<f16>(pool, 1);
            })
            .unwrap();
        assert_eq!(status, Status::STALE_SLOT);
        assert!(y == halves.without(|n| ids[n] == 1), "{:?}: a newer adapter changes y", call.sizes.rows);
    });
}

#[test]
fn a_weight_that_is_not_finite_is_skipped_and_told() {
    for wgpu in devices() {
        let mut call = Call::<f16>::new(&wgpu, Rows::Combined);
        let zero = |call: &mut Call<f16>, value: f32| {
            (0..call.weights.len()).filter(|n| n % 7 == 2).for_each(|n| call.weights[n] = value);
        };
        zero(&mut call, 0.0);
        let (want, status) = call.run(|_| {}).unwrap();
        assert!(status.is_ok(), "{status}");
        for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            zero(&mut call, value);
            let (y, status) = call.run(|_| {}).unwrap();
            assert_eq!(status, Status::WEIGHT_NOT_FINITE);
            assert!(y == want, "{value}: another result than with weight 0");
        }
        // Other rows do not read the weights.
        let mut call = Call::<f16>::new(&wgpu, Rows::Gated);
        zero(&mut call, f32::NAN);
        assert!(call.run(|_| {}).unwrap().1.is_ok());
    }
}

/// h of rows without a LoRA is whatever lay there.
#[test]
fn h_of_rows_without_a_lora_is_not_read() {
    every_kind(|mut call, _| {
        let want = call.run(|_| {}).unwrap().0;
        let stride = call.sizes.h_stride;
        for n in (0..call.lora_ids.len()).filter(|&n| call.lora_ids[n] < 0) {
            call.h[n * stride..][..stride].fill(f32::NAN);
        }
        let (y, status) = call.run(|_| {}).unwrap();
        assert!(status.is_ok() && y == want, "{:?}: {status}", call.sizes.rows);
    });
}

/// Token 3 has no expert: its rows stay, or sum to zero.
#[test]
fn rows_without_an_expert() {
    every_kind(|mut call, _| {
        let (y, status) = call.run(|_| {}).unwrap();
        assert!(status.is_ok(), "{status}");
        let (rows, value) = match call.sizes.rows {
            Rows::Combined => (3..4, 0.0),
            Rows::Plain | Rows::Gated => (3 * TOP_K..4 * TOP_K, UNTOUCHED),
        };
        for (row, y) in y.chunks(WIDTH).enumerate() {
            let same = y.iter().all(|v| *v == value);
            assert_eq!(same, rows.contains(&row), "{:?}, row {row}", call.sizes.rows);
        }
    });
}

#[test]
fn tokens_without_routes_are_zero() {
    for wgpu in devices() {
        let mut call = Call::<f16>::new(&wgpu, Rows::Combined);
        call.sizes.top_k = 0;
        (call.ids, call.lora_ids, call.weights, call.h) = Default::default();
        let (y, status) = call.run(|_| {}).unwrap();
        assert!(status.is_ok() && y.iter().all(|v| *v == 0.0), "{status}");
    }
}

/// Gates far from 0, where exponentials overflow, and a product that is exact.
#[test]
fn large_gates_do_not_overflow() {
    for wgpu in devices() {
        let mut call = Call::<f32>::new(&wgpu, Rows::Gated);
        call.weight.iter_mut().for_each(|w| *w *= 64.0);
        call.lora_ids.fill(-1);
        let (y, _) = call.run(|_| {}).unwrap();
        let mut want = vec![UNTOUCHED; y.len()];
        let none: [Vec<Expert<'_, f32>>; 0] = [];
        let Call { sizes, ids, lora_ids, weight, x, weights, .. } = &call;
        definition(sizes, ids, lora_ids, &none, weight, x, weights, &mut want).unwrap();
        assert!(want.iter().any(|v| v.abs() > 1e4) && want.iter().any(|v| v.abs() < 1e-20));
        for (i, (y, want)) in y.iter().zip(&want).enumerate() {
            // An exponential's error grows with its argument; below the smallest normal number devices may give zero.
            let near = (y - want).abs() <= 4e-5 * want.abs() + 2e-38 * 1e4;
            assert!(near, "element {i}: {y:e}, expected {want:e}");
        }
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    for wgpu in devices() {
        let refused = |change: &dyn Fn(&mut Call<f16>), rows: Rows, part: &str| {
            let mut call = Call::new(&wgpu, rows);
            change(&mut call);
            let why = call.run(|_| {}).unwrap_err().to_string();
            assert!(why.contains(part), "{why:?} does not name {part}");
        };
        refused(&|call| call.sizes.out_features = WIDTH + 1, Rows::Gated, "out_features");
        refused(&|call| call.lora_ids.truncate(3), Rows::Plain, "topk_ids");
        refused(&|call| call.weight.truncate(3), Rows::Plain, "weight");
        refused(&|call| call.sizes.h_stride = RANK - 1, Rows::Combined, "h");
        refused(&|call| call.sizes.experts += 1, Rows::Plain, "weight");
        refused(&|call| call.sizes.y_stride = WIDTH + 1, Rows::Plain, "y_stride");
        refused(&|call| call.shrinks = true, Rows::Gated, "combined");
        // A pool of another product.
        let plain = |call: &mut Call<f16>| call.pool = Call::<f16>::new(&call.wgpu, Rows::Plain).pool;
        refused(&plain, Rows::Gated, "pool.out_features");
        let other = |call: &mut Call<f16>| {
            let sizes = *call.pool.slots().sizes();
            call.pool = Pool::new(&call.wgpu, sizes).unwrap();
        };
        refused(&other, Rows::Gated, "slices");
    }
}
