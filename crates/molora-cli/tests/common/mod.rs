//! A tiny random model with a tiny random mixture: no file needed.

#[path = "../../../../tests/common/devices.rs"]
mod devices;

use candle_core::{Device, Tensor};
use molora::adapter::{LinearRouter, Lora};
use molora::host::Device as LoraDevice;
use molora_cli::engine::config::Config;
use molora_cli::engine::mixture::{Mixture, Module};
use molora_cli::engine::model::Model;
use molora_cli::engine::projection::Projection;

#[allow(unused_imports, reason = "every test file takes its part")]
pub use devices::devices;

/// Ids of the tiny model.
pub const VOCABULARY: usize = 40;
/// Width of its feed-forward part.
pub const FEED_FORWARD: usize = 24;

/// Values between -1 and 1 that depend on the seed only.
pub fn random(seed: u64, count: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    // The first values of close seeds are close.
    (0..16).for_each(|_| _ = next());
    (0..count).map(|_| next()).collect()
}

/// Three layers, four query heads on two key heads.
pub fn config() -> Config {
    Config {
        layers: 3,
        hidden: 16,
        heads: 4,
        kv_heads: 2,
        head_dim: 4,
        context: 32,
        rope_base: 10000.0,
        norm_eps: 1e-5,
    }
}

/// `(out, in)` of one linear of the tiny model.
pub fn shape(projection: Projection) -> (usize, usize) {
    let config = config();
    match projection {
        Projection::Q | Projection::O => (config.hidden, config.hidden),
        Projection::K | Projection::V => (config.kv_heads * config.head_dim, config.hidden),
        Projection::Gate | Projection::Up => (FEED_FORWARD, config.hidden),
        Projection::Down => (config.hidden, FEED_FORWARD),
    }
}

/// Three experts of ranks 1, 4 and 2, of which the last leaves this linear alone where `sparse`.
pub fn module(seed: u64, out_features: usize, in_features: usize, sparse: bool) -> Module {
    let lora = |expert: usize, rank: usize| {
        let a = random(seed * 10 + expert as u64, rank * in_features);
        let b = random(seed * 20 + expert as u64, out_features * rank);
        Lora::new(in_features, out_features, rank, 0.5 + expert as f32, &a, &b).unwrap()
    };
    let (weight, bias) = (random(seed * 30, 3 * in_features), random(seed * 40, 3));
    let router = LinearRouter::new(3, in_features, &weight, Some(&bias)).unwrap();
    Module {
        experts: vec![Some(lora(0, 1)), Some(lora(1, 4)), (!sparse).then(|| lora(2, 2))],
        router,
        attention: None,
    }
}

/// Experts on the query of layer 1, and on gate and down of layer 2.
pub fn mixture() -> Mixture {
    let places = [(1, Projection::Q), (2, Projection::Gate), (2, Projection::Down)];
    let modules = places.into_iter().enumerate().map(|(index, at)| {
        let (out_features, in_features) = shape(at.1);
        (at, module(index as u64 + 1, out_features, in_features, index == 1))
    });
    Mixture { names: vec!["a".into(), "b".into(), "c".into()], modules: modules.collect() }
}

/// The device of these tests.
pub fn device() -> LoraDevice {
    LoraDevice::by_name("cpu").unwrap()
}

/// The tiny model with these experts, computed on the CPU.
pub fn model(mixture: &Mixture) -> Model {
    model_on(&device(), mixture)
}

/// The tiny model with these experts.
pub fn model_on(device: &LoraDevice, mixture: &Mixture) -> Model {
    let config = config();
    Model::new(config.clone(), mixture, device, |key| {
        let seed = key.bytes().fold(7u64, |seed, byte| seed.wrapping_mul(31).wrapping_add(byte.into()));
        if key == "output.weight" {
            return Ok(None);
        }
        let shape = match key.split('.').rev().nth(1) {
            Some("token_embd") => vec![VOCABULARY, config.hidden],
            Some(name) => match Projection::ALL.into_iter().find(|projection| projection.gguf() == name) {
                Some(projection) => vec![shape(projection).0, shape(projection).1],
                None => vec![config.hidden],
            },
            None => panic!("{key}"),
        };
        Ok(Some(Tensor::from_vec(random(seed, shape.iter().product()), shape, &Device::Cpu)?))
    })
    .unwrap()
}
