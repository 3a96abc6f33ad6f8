//! HydraLoRA with its A once: two pools, one row of h a token, on every device against the formula in float64.

mod common;

use common::devices;
use molora::adapter::slots::PoolSizes;
use molora::device::cpu;
use molora::host::Device;
use molora::ops::{Output, expand, plan, shrink};
use molora::{ElementType, Lora, Result, preset};
use molora_check::rng::Rng;

const EXPERTS: usize = 5;
const RANK: usize = 6;

fn values(name: &str, len: usize) -> Vec<f32> {
    let mut rng = Rng::named(name, 0);
    (0..len).map(|_| rng.value(0.6)).collect()
}

/// What a call is made of.
struct Problem {
    tokens: usize,
    inner: usize,
    outer: usize,
    x: Vec<f32>,
    /// `[tokens, EXPERTS]`, every expert of every token.
    weights: Vec<f32>,
    a: Lora,
    bs: Vec<Lora>,
}

impl Problem {
    fn new(tokens: usize, inner: usize, outer: usize) -> Self {
        let (a, b) = (values("a", RANK * inner), values("b", EXPERTS * outer * RANK));
        let bs: Vec<&[f32]> = b.chunks(outer * RANK).collect();
        let (a, bs) = preset::split_shared_a((inner, outer, RANK), 0.5, &a, &bs).unwrap();
        let (x, weights) = (values("x", tokens * inner), values("w", tokens * EXPERTS));
        Self { tokens, inner, outer, x, weights, a, bs }
    }

    fn pools(&self) -> [PoolSizes; 2] {
        let sizes = |(in_features, out_features), experts| {
            let element = ElementType::F32;
            PoolSizes { in_features, out_features, experts, rank_capacity: experts * RANK, element }
        };
        [sizes((self.inner, 1), 1), sizes((1, self.outer), EXPERTS)]
    }

    /// Every expert, one after the other.
    fn ids(&self) -> Vec<i32> {
        (0..self.tokens * EXPERTS).map(|n| (n % EXPERTS) as i32).collect()
    }

    fn plans(&self) -> [plan::Sizes; 2] {
        [(1, 1), (EXPERTS, EXPERTS)].map(|(top_k, experts)| plan::Sizes {
            tokens: self.tokens,
            top_k,
            experts,
        })
    }

    fn shrink(&self) -> shrink::Sizes {
        let (tokens, in_features, output) = (self.tokens, self.inner, Output::Sum);
        shrink::Sizes { tokens, top_k: 1, in_features, x_stride: in_features, h_stride: RANK, output }
    }

    fn expand(&self) -> expand::Sizes {
        let (out_features, output) = (self.outer, Output::RankSum);
        expand::Sizes {
            tokens: self.tokens,
            top_k: EXPERTS,
            out_features,
            h_stride: RANK,
            y_stride: out_features,
            output,
            accumulate: false,
        }
    }

    /// `y_t = sum_e w_te scaling B_e (A x_t)`, every expert's product on its own.
    fn formula(&self) -> Vec<f64> {
        let wide = |values: &mut dyn Iterator<Item = f32>| values.map(f64::from).collect::<Vec<f64>>();
        let times = |rows: &[f64], x: &[f64]| -> Vec<f64> {
            rows.chunks(x.len()).map(|row| row.iter().zip(x).map(|(w, x)| w * x).sum()).collect()
        };
        let (a, mut y) = (wide(&mut self.a.a()), Vec::new());
        for (x, weights) in self.x.chunks(self.inner).zip(self.weights.chunks(EXPERTS)) {
            let mut row = vec![0.0; self.outer];
            for (b, &w) in self.bs.iter().zip(weights) {
                let v = times(&wide(&mut b.b()), &times(&a, &wide(&mut x.iter().copied())));
                row.iter_mut().zip(v).for_each(|(y, v)| *y += f64::from(w) * 0.5 * v);
            }
            y.extend(row);
        }
        y
    }

    fn run(&self, device: &Device) -> Result<Vec<f32>> {
        match device {
            Device::Cpu(cpu) => self.on_cpu(cpu),
            #[cfg(feature = "cuda")]
            Device::Cuda(cuda) => self.on_cuda(cuda),
            #[cfg(feature = "wgpu")]
            Device::Wgpu(wgpu) => self.on_wgpu(wgpu),
        }
    }

    fn on_cpu(&self, cpu: &molora::Cpu) -> Result<Vec<f32>> {
        let [mut a, mut b] = self.pools().map(|sizes| cpu::Pool::new(sizes).unwrap());
        a.put(0, &self.a)?;
        self.bs.iter().try_for_each(|lora| b.add(lora).map(drop))?;
        let [of_a, of_b] = self.plans();
        let (mut h, mut y) = (vec![f32::NAN; self.tokens * RANK], vec![f32::NAN; self.tokens * self.outer]);
        let ones = vec![1.0; self.tokens];
        let plan = cpu.plan(&of_a, &a, &vec![0; self.tokens])?;
        cpu.shrink(&self.shrink(), &plan, &a, &self.x, &ones, &mut h)?;
        let plan = cpu.plan(&of_b, &b, &self.ids())?;
        cpu.expand(&self.expand(), &plan, &b, &h, &self.weights, &mut y)?;
        Ok(y)
    }

    #[cfg(feature = "cuda")]
    fn on_cuda(&self, cuda: &molora::Cuda) -> Result<Vec<f32>> {
        use molora::device::cuda::{Pool, View, ViewMut};
        let [mut a, mut b] = self.pools().map(|sizes| Pool::new(cuda, sizes).unwrap());
        a.put(0, &self.a)?;
        self.bs.iter().try_for_each(|lora| b.add(lora).map(drop))?;
        let [of_a, of_b] = self.plans();
        let (x, ones) = (cuda.upload(&self.x)?, cuda.upload(&vec![1f32; self.tokens])?);
        let (zeros, ids) = (cuda.upload(&vec![0i32; self.tokens])?, cuda.upload(&self.ids())?);
        let weights = cuda.upload(&self.weights)?;
        let mut h = cuda.upload(&vec![f32::NAN; self.tokens * RANK])?;
        let mut y = cuda.upload(&vec![f32::NAN; self.tokens * self.outer])?;
        let plan = cuda.plan(&of_a, &a, &View::whole(cuda, &zeros)?, None)?;
        let (x, ones) = (View::<f32>::whole(cuda, &x)?, View::whole(cuda, &ones)?);
        cuda.shrink(&self.shrink(), &plan, &a, &x, &ones, None, &mut ViewMut::whole(cuda, &mut h)?)?;
        let plan = cuda.plan(&of_b, &b, &View::whole(cuda, &ids)?, None)?;
        let (h, weights) = (View::whole(cuda, &h)?, View::whole(cuda, &weights)?);
        cuda.expand::<f32>(&self.expand(), &plan, &b, &h, &weights, &mut ViewMut::whole(cuda, &mut y)?)?;
        assert!(cuda.take_status()?.is_ok());
        cuda.download(&y, self.tokens * self.outer)
    }

    #[cfg(feature = "wgpu")]
    fn on_wgpu(&self, wgpu: &molora::Wgpu) -> Result<Vec<f32>> {
        use molora::device::wgpu::{Pool, View};
        let [mut a, mut b] = self.pools().map(|sizes| Pool::new(wgpu, sizes).unwrap());
        a.put(0, &self.a)?;
        self.bs.iter().try_for_each(|lora| b.add(lora).map(drop))?;
        let [of_a, of_b] = self.plans();
        let (x, ones) = (wgpu.upload(&self.x)?, wgpu.upload(&vec![1f32; self.tokens])?);
        let (zeros, ids) = (wgpu.upload(&vec![0i32; self.tokens])?, wgpu.upload(&self.ids())?);
        let (weights, h) = (wgpu.upload(&self.weights)?, wgpu.upload(&vec![f32::NAN; self.tokens * RANK])?);
        let y = wgpu.upload(&vec![f32::NAN; self.tokens * self.outer])?;
        let mut encoder = wgpu.encoder();
        // Buffers may be larger than what was uploaded.
        let (t, routes) = (self.tokens, self.tokens * EXPERTS);
        let plan = wgpu.plan(&mut encoder, &of_a, &a, View::new(&zeros, 0, t)?)?;
        let (x, ones) = (View::<f32>::new(&x, 0, self.x.len())?, View::new(&ones, 0, t)?);
        let h = View::new(&h, 0, t * RANK)?;
        wgpu.shrink(&mut encoder, &self.shrink(), &plan, &a, x, ones, h)?;
        let plan = wgpu.plan(&mut encoder, &of_b, &b, View::new(&ids, 0, routes)?)?;
        let (weights, y_view) = (View::new(&weights, 0, routes)?, View::<f32>::new(&y, 0, t * self.outer)?);
        wgpu.expand(&mut encoder, &self.expand(), &plan, &b, h, weights, y_view)?;
        wgpu.queue().submit([encoder.finish()]);
        assert!(wgpu.take_status()?.is_ok());
        wgpu.download(&y, self.tokens * self.outer)
    }
}

#[test]
fn one_row_of_h_a_token_serves_every_b() {
    for device in devices() {
        for (tokens, inner, outer) in [(1, 33, 21), (7, 64, 40), (70, 34, 300)] {
            let problem = Problem::new(tokens, inner, outer);
            let (got, want) = (problem.run(&device).unwrap(), problem.formula());
            for (t, (got, want)) in got.chunks(outer).zip(want.chunks(outer)).enumerate() {
                let length = want.iter().map(|w| w * w).sum::<f64>().sqrt();
                let off = got.iter().zip(want).map(|(g, w)| (f64::from(*g) - w).powi(2)).sum::<f64>().sqrt();
                assert!(off <= 5e-6 * length, "{}: row {t} of {tokens}: {off:.1e}", device.describe());
            }
        }
    }
}

/// Numbers kept, by the pools' sizes: A once, and a column of the other factor.
#[test]
fn a_is_kept_once() {
    let problem = Problem::new(1, 4096, 4096);
    let kept = |sizes: &PoolSizes| sizes.rank_capacity * (sizes.in_features + sizes.out_features);
    let apart: usize = problem.pools().iter().map(kept).sum();
    let together = EXPERTS * RANK * (4096 + 4096);
    assert_eq!(apart, RANK * (4096 + 1) + EXPERTS * RANK * (4096 + 1));
    assert!(apart * 100 < together * 61, "{apart} {together}: (1 + {EXPERTS}) / (2 * {EXPERTS})");
}
