//! What the benchmarks measure a device's ceilings with: multiply-adds in registers, and a read of memory. No operation of a
//! layer needs these.

use super::params::CeilingParams;
use super::{Cuda, Entry, Kernel, Launch, View, ViewMut};
use crate::element::ElementType;
use crate::error::{Error, Result};
use crate::ops::Form;

const OP: &str = "ceiling";

/// Threads of a block: each writes one sum.
pub const CEILING_THREADS: usize = 256;

/// f32 words that a thread reads in a step.
const READ_WORDS: usize = 16;

impl Cuda {
    /// Enqueues `steps` steps of multiply-adds in each of `sums.len() / 256` blocks, on tensor cores where `element` is f16 or
    /// bf16, and returns how many operations that is, two a multiply-add.
    ///
    /// `sums` gets what every thread's chains end at: in f32 16 chains that begin at 0 to 15 and add 1 in each of 8
    /// multiply-adds a step, else 32 sums that add 1 in each of 4 products a step. Of an element that the device has no
    /// tensor cores for, or of a length that is no multiple of 256, it is an error.
    pub fn ceiling_multiply(&self, element: ElementType, steps: u32, sums: &mut ViewMut<f32>) -> Result<f64> {
        let half = element != ElementType::F32;
        if half && !self.offer().has_mma(element, element) {
            let expected = "an element that the device has tensor cores for";
            return Err(Error::argument(OP, "element", expected, element));
        }
        let (kernel, value) = if half { (Kernel::CeilingMma, 0.25) } else { (Kernel::CeilingMultiply, 1.0) };
        let blocks = self.ceiling(Entry::of(kernel, element), steps, value, None, sums)?;
        // 16 chains of 8 multiply-adds a thread; 8 chains of 4 products of 16 x 8 x 16 a warp.
        let a_block = if half { 8 * 8 * 4 * 16 * 8 * 16 } else { CEILING_THREADS * 16 * 8 };
        Ok(2.0 * a_block as f64 * f64::from(steps) * blocks as f64)
    }

    /// Enqueues a read of `memory` once, side by side in `sums.len() / 256` blocks, and returns how many bytes that is. `sums`
    /// gets the sum of what each thread read. The memory's length must be a multiple of 16 words a thread.
    pub fn ceiling_read(&self, memory: &View<f32>, sums: &mut ViewMut<f32>) -> Result<f64> {
        let a_step = sums.len().max(1) * READ_WORDS;
        let steps = u32::try_from(memory.len() / a_step).ok().filter(|_| memory.len().is_multiple_of(a_step));
        let expected = || format!("a multiple of {a_step} words");
        let steps = steps.ok_or_else(|| Error::argument(OP, "memory", expected(), memory.len()))?;
        if !memory.address().is_multiple_of(16) {
            return Err(Error::argument(
                OP,
                "memory",
                "a multiple of 16 bytes as its place",
                memory.address(),
            ));
        }
        self.ceiling(Entry::plain(Kernel::CeilingRead), steps, 0.0, Some(memory), sums)?;
        Ok(memory.len() as f64 * 4.0)
    }

    fn ceiling(
        &self,
        entry: Entry,
        steps: u32,
        value: f32,
        memory: Option<&View<f32>>,
        sums: &mut ViewMut<f32>,
    ) -> Result<usize> {
        if !sums.len().is_multiple_of(CEILING_THREADS) {
            let expected = format!("a multiple of {CEILING_THREADS}");
            return Err(Error::argument(OP, "sums", expected, sums.len()));
        }
        let streams = [("memory", memory.and_then(|m| m.stream())), ("sums", sums.stream())];
        self.check_streams(OP, streams)?;
        let (a, b) = (value, if value == 0.25 { 0.25 } else { 1.0 });
        let memory = memory.map_or(0, View::address);
        let params = CeilingParams { memory, sums: sums.address(), steps, unused: 0, a, b };
        let groups = sums.len() / CEILING_THREADS;
        self.launch(OP, &Launch::over(entry, Form::Many, groups, 1, 1), &params)?;
        Ok(groups)
    }
}
