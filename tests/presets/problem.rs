//! The numbers of one problem, rounded to the element type, for the library and in f64.

use crate::dense::{Expert, Matrix};
use molora::adapter::Lora;
use molora::adapter::slots::PoolSizes;
use molora::element::Element;
use molora::host::{Device, HostLayer};
use molora::preset::System;
use molora_check::rng::Rng;

/// Sizes of a problem.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    pub tokens: usize,
    pub in_features: usize,
    pub out_features: usize,
}

/// A linear with experts.
pub struct Linear<X> {
    pub in_features: usize,
    pub out_features: usize,
    weight: Vec<X>,
    loras: Vec<Lora>,
    attention: Option<Lora>,
    /// The same in f64.
    pub base: Matrix,
    pub experts: Vec<Expert>,
}

/// Values below `scale`, rounded to the element.
pub fn values<X: Element>(name: &str, len: usize, scale: f32) -> Vec<X> {
    let mut rng = Rng::named(name, 0);
    (0..len).map(|_| X::from_f32(rng.value(scale))).collect()
}

pub fn wide<X: Element>(values: &[X]) -> Vec<f64> {
    values.iter().map(|v| f64::from(v.to_f32())).collect()
}

impl<X: Element> Linear<X> {
    /// `one_a` repeats the first expert's A.
    pub fn new(name: &str, (inputs, outputs): (usize, usize), ranks: &[usize], one_a: bool) -> Self {
        let weight: Vec<X> = values(&format!("{name} weight"), inputs * outputs, 0.5);
        let (mut loras, mut experts) = (Vec::new(), Vec::new());
        for (e, &rank) in ranks.iter().enumerate() {
            let scaling = 0.5 + e as f32 / 4.0;
            let a_of = if one_a { 0 } else { e };
            let a: Vec<X> = values(&format!("{name} a {a_of}"), rank * inputs, 0.6);
            let b: Vec<X> = values(&format!("{name} b {e}"), rank * outputs, 0.6);
            loras.push(Lora::new(inputs, outputs, rank, scaling, &a, &b).unwrap());
            let (a, b) = (Matrix::new(inputs, wide(&a)), Matrix::new(rank, wide(&b)));
            experts.push(Expert { scaling: f64::from(scaling), a, b });
        }
        let base = Matrix::new(inputs, wide(&weight));
        let (in_features, out_features) = (inputs, outputs);
        Self { in_features, out_features, weight, loras, attention: None, base, experts }
    }

    /// With a router adapter (RAMoLE), which is given in f64.
    pub fn attend(&mut self, name: &str, rank: usize) -> Expert {
        let a: Vec<X> = values(&format!("{name} a_r"), rank * self.in_features, 0.6);
        let b: Vec<X> = values(&format!("{name} b_r"), rank * self.out_features, 0.6);
        // Its scaling counts for nothing.
        self.attention = Some(Lora::new(self.in_features, self.out_features, rank, 7.0, &a, &b).unwrap());
        Expert { scaling: 1.0, a: Matrix::new(self.in_features, wide(&a)), b: Matrix::new(rank, wide(&b)) }
    }

    pub fn loras(&self) -> Vec<&Lora> {
        self.loras.iter().collect()
    }

    /// The layer on a device, with all its experts.
    pub fn layer(&self, device: &Device, system: System) -> HostLayer<X> {
        let sizes = PoolSizes {
            in_features: self.in_features,
            out_features: self.out_features,
            experts: self.loras.len(),
            rank_capacity: self.loras.iter().map(Lora::rank).sum(),
            element: X::TYPE,
        };
        let layer = HostLayer::new(device, sizes, system.router, self.weight.clone(), None).unwrap();
        let mut layer = layer.with_output(system.output);
        if let Some(router) = &self.attention {
            layer.set_attention(router).unwrap();
        }
        self.loras.iter().enumerate().for_each(|(slot, lora)| layer.put(slot, lora).unwrap());
        layer
    }
}
