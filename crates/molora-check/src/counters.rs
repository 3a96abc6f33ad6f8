//! What a machine that counts (the PTX machine) says of one call: a line a kernel, each figure better when smaller.

use crate::subject::Subject;
use crate::{Inputs, Op};
use molora::error::{Error, Result};
use serde_json::Value;
use std::collections::BTreeMap;
use std::sync::Mutex;

/// The figures of a [`Row`].
pub const COLUMNS: [&str; 8] = [
    "launches",
    "warp_instructions",
    "mma_per_useful",
    "sectors_read",
    "sectors_read_per_unique",
    "loads_of_2_bytes",
    "wavefronts",
    "wavefronts_per_ideal",
];

/// One kernel's figures in one call, under [`COLUMNS`]: launches; warp instructions; tensor-core instructions issued as a
/// share of those that the problem needs; 32-byte sectors read from global memory, and as a share of the distinct ones;
/// load requests of 2 bytes a lane; wavefronts of shared memory, and as a share of those without bank conflicts.
pub type Row = [f64; COLUMNS.len()];

/// The counters of one call by kernel, as the machine gives them; none where the device does not count.
pub fn count(subject: &dyn Subject, inputs: &Inputs) -> Result<Option<BTreeMap<String, Value>>> {
    // The machine counts for the whole process.
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _one = ONE_AT_A_TIME.lock().unwrap_or_else(|p| p.into_inner());
    let mut once = subject.timer(inputs)?;
    subject.take_counters()?;
    once(1)?;
    let Some(text) = subject.take_counters()? else { return Ok(None) };
    serde_json::from_str(&text)
        .map(Some)
        .map_err(|e| Error::Device { device: subject.name(), reason: format!("counters: {e}") })
}

/// A kernel's figures from its counters.
pub fn row(inputs: &Inputs, kernel: &str, counters: &Value) -> Row {
    let number = |value: &Value| value.as_f64().unwrap_or_default();
    let ratio = |a: f64, b: f64| if b == 0.0 { 0.0 } else { (a / b * 1000.0).round() / 1000.0 };
    let widths = |access: &str| -> f64 {
        let widths = counters[access].as_object();
        widths.into_iter().flatten().map(|(_, width)| number(&width["sectors"])).sum()
    };
    let shared = |field: &str| -> f64 {
        ["shared_loads", "shared_stores", "shared_copies"]
            .iter()
            .map(|kind| number(&counters[kind][field]))
            .sum()
    };
    let sectors = widths("global_loads") + widths("async_copies");
    [
        number(&counters["launches"]),
        number(&counters["warp_instructions"]),
        ratio(number(&counters["mma_issued"]), useful_mma(inputs, kernel)),
        sectors,
        ratio(sectors, number(&counters["unique_read"]["sectors"])),
        number(&counters["global_loads"]["2"]["requests"]),
        shared("wavefronts"),
        ratio(shared("wavefronts"), shared("ideal")),
    ]
}

/// Products of 16 x 8 x 16 that the problem itself needs of a kernel: the base product, and each route's own ranks; of the
/// dense form all experts' for every token, which is what it multiplies by its definition.
fn useful_mma(inputs: &Inputs, kernel: &str) -> f64 {
    let case = &inputs.case;
    let grouped = case.op == Op::Grouped;
    let (ids, rows) = match grouped {
        true => (&inputs.lora_ids, inputs.topk_ids.iter().filter(|&&id| id >= 0).count()),
        false => (&inputs.topk_ids, case.tokens),
    };
    let live = || ids.iter().filter_map(|&id| usize::try_from(id).ok());
    let ranks: usize = live().map(|e| case.rank(e)).sum();
    let all = case.tokens * (0..case.experts).map(|e| case.rank(e)).sum::<usize>();
    let base = rows * case.in_features * case.out_features;
    let widths = case.slice_widths();
    let parts = |e: usize| widths.iter().enumerate().map(move |(s, width)| case.part_rank(e, s) * width);
    let multiplied = match kernel.split("_mma").next() {
        // The experts' second product is f32 arithmetic there.
        Some("fused_few") => base + ranks * case.in_features,
        Some("fused_gate") => all * case.in_features,
        Some("fused_dense") => base + all * case.out_features,
        Some("fused_sparse" | "grouped") => base + live().flat_map(parts).sum::<usize>(),
        Some("shrink") => ranks * case.in_features,
        Some("expand") => ranks * case.out_features,
        Some("base") => base,
        _ => 0,
    };
    multiplied as f64 / 2048.0
}
