//! Fused on WebGPU.

mod concat;
mod dense;
mod few;
mod sparse;

use super::{OP, cost};
use crate::adapter::slots::{MAX_SLICES, Slots};
use crate::device::wgpu::{Binding, Launch, Path, View, Wgpu};
use crate::element::{Element, ElementType};
use crate::error::{Error, Result};
use crate::ops::word;

pub use dense::{GATE_EXPERTS, GATE_TOP_K};
pub use few::FEW_TOKENS;

const _: () = assert!(GATE_TOP_K == 8, "as the reason for no dense form says");

/// A weight's bias, spelt where there is none.
const NO_BIAS: &str = "fn bias_of(o: u32) -> f32 { return 0.0; }\n";
const BIAS: &str = "fn bias_of(o: u32) -> f32 { return bias_at(o); }\n";
const COLUMNS: &str = include_str!("../../../shaders/fused_columns.wgsl");

impl Wgpu {
    /// What the cost model knows of this device.
    pub fn fused_limits(&self, problem: &cost::Problem) -> cost::Limits {
        // Software: about what two cores do. Hardware: a middle-sized card; only ratios decide.
        let software = self.info().device_type == wgpu::DeviceType::Cpu;
        let (bandwidth, rate, launch_s) = if software { (5e9, 3e9, 5e-5) } else { (5e11, 5e12, 1e-5) };
        // Every block of the pool's rows routes for itself: the dense form is for few of them.
        cost::Limits {
            bandwidth,
            rate,
            launch_s,
            tile_tokens: 1,
            rank_step: 4,
            few_tokens: FEW_TOKENS,
            few_launches: 2,
            plan_launches: 3,
            dense_rows: 512,
            dense_refused: (problem.top_k > GATE_TOP_K).then_some("top_k is above 8"),
            dense_on_demand: (self.tuning().path == Path::Lanes)
                .then_some("its sums run in longer chains than the base product's on lanes"),
            dense_experts: GATE_EXPERTS,
            sparse: true,
            batch_invariant: self.is_batch_invariant(),
        }
    }

    /// The routing weights and the bias as a kernel's text reads them: bound each for itself, or from one buffer that a
    /// small dispatch fills, where the device has too few bindings beside the `others`.
    fn side(
        &self,
        encoder: &mut wgpu::CommandEncoder,
        routes: usize,
        topk_weights: View<f32>,
        bias: View<impl Element>,
    ) -> Result<wgpu::Buffer> {
        let words = routes + bias.len();
        let side = self.storage("side", words as u64 * 4)?;
        let launch = Launch {
            op: OP,
            entry: "fused_side",
            body: &[include_str!("../../../shaders/fused_side.wgsl")],
            constants: &[],
            params: &[
                ("routes", word(OP, "tokens", routes)?),
                ("out_features", word(OP, "out_features", bias.len())?),
            ],
            bindings: &[
                Binding::read("topk_weights", topk_weights),
                Binding::read("bias", bias),
                Binding::write("side", View::<f32>::whole(&side)),
            ],
            groups: word(OP, "tokens", words.div_ceil(64))?,
        };
        self.launch(encoder, &launch)?;
        Ok(side)
    }
}

/// Blocks of `width` columns over the slices; none straddles two.
pub fn column_blocks(slices: &[usize], width: usize) -> usize {
    slices.iter().map(|columns| columns.div_ceil(width)).sum()
}

/// The column where each block of `width` columns over the slices begins, and where the last ends.
fn block_begins(slices: &[usize], width: usize) -> Vec<usize> {
    let (mut begins, mut end) = (Vec::with_capacity(column_blocks(slices, width) + 1), 0);
    for columns in slices {
        begins.extend((end..end + columns).step_by(width));
        end += columns;
    }
    begins.push(end);
    begins
}

/// Refuses slices that begin in the middle of a word of y.
fn check_slices(y: ElementType, packed: bool, slices: &[usize]) -> Result<()> {
    let odd = slices.iter().rev().skip(1).find(|columns| !columns.is_multiple_of(2));
    match odd {
        Some(columns) if packed && y != ElementType::F32 => {
            let expected = format!("slices of an even number of columns for packed {y} rows");
            Err(Error::argument(OP, "slices", expected, columns))
        }
        _ => Ok(()),
    }
}

/// Where each slice ends, as `fused_columns.wgsl` reads it.
fn slice_ends(slots: &Slots) -> Result<[(&'static str, u32); MAX_SLICES]> {
    let mut ends = [("slice_end_0", 0), ("slice_end_1", 0), ("slice_end_2", 0), ("slice_end_3", 0)];
    let mut end = 0;
    for ((_, place), columns) in ends.iter_mut().zip(slots.slices()) {
        end += columns;
        *place = word(OP, "out_features", end)?;
    }
    Ok(ends)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_do_not_straddle_slices() {
        assert_eq!(column_blocks(&[64], 64), 1);
        assert_eq!(column_blocks(&[65], 64), 2);
        assert_eq!(column_blocks(&[64, 1, 130], 64), 1 + 1 + 3);
        assert_eq!(column_blocks(&[10, 6], 8), 2 + 1);
        assert_eq!(block_begins(&[64, 1, 130], 64), [0, 64, 65, 129, 193, 195]);
        assert_eq!(block_begins(&[10, 6], 8), [0, 8, 10, 16]);
        assert_eq!((block_begins(&[0], 8), column_blocks(&[0], 8)), (vec![0], 0));
    }

    #[test]
    fn slices_begin_at_whole_words() {
        assert!(check_slices(ElementType::F32, true, &[3, 5]).is_ok());
        assert!(check_slices(ElementType::F16, true, &[4, 5]).is_ok(), "the last may end anywhere");
        let refused = check_slices(ElementType::Bf16, true, &[4, 3, 2]).unwrap_err().to_string();
        assert!(refused.contains("an even number of columns"), "{refused}");
        assert!(check_slices(ElementType::F16, false, &[5]).is_ok());
    }
}
