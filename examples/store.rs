//! A living pool on the CPU: two requests with adapters of their own, in a pool that has room for one and a half.

use molora::adapter::slots::PoolSizes;
use molora::adapter::store::{Limits, Served, Store};
use molora::adapter::{Adapter, Lora};
use molora::device::cpu::Pool;
use molora::layer::{MoeLora, Router, Routing, Rows};
use molora::{Cpu, ElementType, Result};
use std::collections::BTreeMap;
use std::sync::Arc;

const UP: &str = "model.layers.0.mlp.up_proj";

/// An adapter of ones, of one module. They come from PEFT folders otherwise: `Adapter::from_peft`.
fn adapter(rank: usize, width: usize) -> Result<Arc<Adapter>> {
    let lora = Lora::new(width, width, rank, 1.0, &vec![1f32; rank * width], &vec![1f32; rank * width])?;
    Ok(Arc::new(Adapter::new("ones", BTreeMap::from([(UP.to_string(), lora)]))))
}

fn main() -> Result<()> {
    let (width, top_k, element) = (8, 1, ElementType::F32);
    let sizes =
        PoolSizes { in_features: width, out_features: width, experts: 16, rank_capacity: 24, element };
    let layer = MoeLora::<Cpu>::new(&Cpu::new()?, Pool::new(sizes)?, Router::External { top_k })?;
    let store = Store::new(Limits::default(), vec![Served::new(UP, layer)])?;
    store.register("anna", adapter(16, width)?)?;
    store.register("ben", adapter(12, width)?)?;

    // Threads share the store; every batch names its adapters, runs, and lets them go.
    for keys in [["anna"; 2], ["ben"; 2], ["anna"; 2]] {
        let lease = store.acquire(&keys)?;
        // Two tokens of the request, and one without an adapter.
        let (mut ids, mut weights) = ([lease.id(0, 0)?, lease.id(1, 0)?, -1], [1.0; 3]);
        let layer = lease.layer(0)?;
        let (x, mut y) = (vec![0.5f32; 3 * width], vec![0f32; 3 * width]);
        let mut workspace = vec![0.0; layer.workspace_len(3)];
        let mut routing = Routing::new(&mut ids, &mut weights);
        let rows = Rows { tokens: 3, x_stride: width, y_stride: width };
        layer.forward_delta(&rows, &x, &mut routing, &mut workspace, &mut y)?;
        println!("{}: y[.., 0] = {:?}", keys[0], [y[0], y[width], y[2 * width]]);
    }
    let memory = store.memory();
    for adapter in &memory.device.adapters {
        println!(
            "on the device: {}, {} bytes of its own, {} held",
            adapter.key, adapter.own_bytes, adapter.bytes
        );
    }
    println!("{} of {:?}, {:?}", memory.device.used, memory.rows, store.counters());
    Ok(())
}
