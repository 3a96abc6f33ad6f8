//! What tests share: a small pool on the CPU, values whose sums are exact. Cases, subjects and the judge are molora-check's.
#![allow(dead_code, reason = "every test file takes its part")]

#[cfg(feature = "cuda")]
pub mod cuda;

use molora::adapter::Lora;
use molora::adapter::slots::PoolSizes;
use molora::device::{Cpu, cpu::Pool};
use molora::element::{Element, ElementType};
use molora::error::Result;
use molora::host::Device;
use molora::ops::plan::{self, Plan};

/// A pool of f32 adapters with 5 columns in and 7 out.
pub struct Small {
    pub cpu: Cpu,
    pub pool: Pool,
}

impl Small {
    /// With adapters of these ranks in the first slots; rank 0 leaves a slot empty.
    pub fn new<const N: usize>(ranks: [usize; N]) -> Self {
        let sizes = PoolSizes {
            in_features: 5,
            out_features: 7,
            experts: N,
            rank_capacity: ranks.iter().sum(),
            element: ElementType::F32,
        };
        let mut small = Self { cpu: Cpu::new().unwrap(), pool: Pool::new(sizes).unwrap() };
        for (slot, rank) in ranks.into_iter().enumerate().filter(|&(_, rank)| rank > 0) {
            small.put(slot, rank);
        }
        small
    }

    /// Puts an adapter of ones into an empty slot.
    pub fn put(&mut self, slot: usize, rank: usize) {
        let lora = Lora::new(5, 7, rank, 1.0, &vec![1f32; rank * 5], &vec![1f32; rank * 7]).unwrap();
        self.pool.put(slot, &lora).unwrap();
    }

    /// A plan of two slots a token.
    pub fn plan(&self, topk_ids: &[i32]) -> Plan {
        self.try_plan(topk_ids).unwrap()
    }

    /// As [`Self::plan`], which may be refused.
    pub fn try_plan(&self, topk_ids: &[i32]) -> Result<Plan> {
        let sizes =
            plan::Sizes { tokens: topk_ids.len() / 2, top_k: 2, experts: self.pool.slots().sizes().experts };
        self.cpu.plan(&sizes, &self.pool, topk_ids)
    }
}

/// The CPU and every GPU that is there; fails where `MOLORA_REQUIRE` names a device that is not.
pub fn devices() -> Vec<Device> {
    molora_check::subjects().unwrap_or_else(|why| panic!("{why}"));
    #[allow(unused_mut, reason = "without a GPU's feature there is but one")]
    let mut devices = vec![Device::Cpu(Cpu::new().unwrap())];
    #[cfg(feature = "cuda")]
    devices.extend(molora::Cuda::new(0).ok().map(Device::Cuda));
    #[cfg(feature = "wgpu")]
    devices
        .extend(molora::Wgpu::adapters().iter().filter_map(|a| molora::Wgpu::open(a).ok()).map(Device::Wgpu));
    devices
}

/// The message of a call that must be refused.
pub fn refuses<T>(result: Result<T>) -> String {
    match result {
        Ok(_) => panic!("the call was accepted"),
        Err(e) => e.to_string(),
    }
}

/// Seeded multiples of 1/8 in -1..1: sums of them are exact.
pub fn values<E: Element>(seed: usize, len: usize) -> Vec<E> {
    (0..len)
        .map(|i| {
            let mixed = (i as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15)
                ^ (seed as u64).wrapping_mul(0x2545_f491_4f6c_dd1d);
            E::from_f32((mixed.wrapping_mul(0xbf58_476d_1ce4_e5b9) >> 60) as f32 / 8.0 - 1.0)
        })
        .collect()
}
