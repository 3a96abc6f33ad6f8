//! Weights larger than a device binds at once: one dispatch a part, each with a binding of its own.
//!
//! A weight is `[rows, stride]`, so blocks of columns of y are a run of its bytes. A part changes nothing of what a kernel
//! computes: it counts workgroups and elements as the whole would (`group_index` in `common.wgsl`; `NAME_first` goes below
//! zero and wraps), so its bits are the whole's.

use super::launch::{Binding, Launch};
use super::{Error, Result, Wgpu};
use std::ops::Range;

/// The weight's name in every kernel.
const WEIGHT: &str = "w";

/// Some workgroups of a launch, and the rows of the weight that they read.
struct Part {
    rows: Range<usize>,
    blocks: Range<usize>,
    experts: Range<usize>,
}

/// A weight `[rows, stride]` as a launch's workgroups read it, which are rows of y times `blocks`.
pub(crate) struct Blocks<'a> {
    /// Elements from one row of the weight to the next.
    pub(crate) stride: usize,
    /// Blocks of columns of y.
    pub(crate) blocks: usize,
    /// The row of the weight where a block begins; of `blocks`, where the last ends.
    pub(crate) begin: &'a dyn Fn(usize) -> usize,
}

impl Wgpu {
    /// The same device, which binds at most so many bytes of a weight at once; by default as many as the device allows.
    /// Larger weights take a dispatch a part, with the same bits.
    pub fn with_binding_limit(&self, bytes: u64) -> Self {
        Self { binding_limit: bytes, ..self.clone() }
    }

    /// Records a launch whose weight is `w`, in as many dispatches as that takes.
    pub(crate) fn launch_blocks(
        &self,
        encoder: &mut wgpu::CommandEncoder,
        launch: &Launch,
        blocks: &Blocks,
    ) -> Result<()> {
        let mut parts = Vec::new();
        let all = 0..blocks.blocks;
        self.cut(launch, blocks.stride, all, blocks.begin, |blocks, rows| {
            parts.push(Part { rows, blocks, experts: 0..0 });
        })?;
        self.launch_parts(encoder, launch, blocks, &parts)
    }

    /// As [`Self::launch_blocks`] where `w` is the weights of `experts`, `rows` each, whose blocks `begin` counts from an
    /// expert's first row: whole experts to a part, or blocks of one. `whole` where an expert cannot be cut.
    pub(crate) fn launch_experts(
        &self,
        encoder: &mut wgpu::CommandEncoder,
        launch: &Launch,
        blocks: &Blocks,
        (experts, rows, whole): (usize, usize, bool),
    ) -> Result<()> {
        let (mut parts, all) = (Vec::new(), 0..blocks.blocks);
        let fits = self.fits(launch, blocks.stride, rows);
        if fits || whole {
            self.cut(launch, blocks.stride, 0..experts, &|e| e * rows, |experts, rows| {
                parts.push(Part { rows, blocks: all.clone(), experts });
            })?;
        } else {
            for e in 0..experts {
                let begin = |block: usize| e * rows + (blocks.begin)(block);
                self.cut(launch, blocks.stride, all.clone(), &begin, |blocks, rows| {
                    parts.push(Part { rows, blocks, experts: e..e + 1 });
                })?;
            }
        }
        self.launch_parts(encoder, launch, blocks, &parts)
    }

    /// Runs of `all` whose rows of the weight can be bound at once, as long as possible.
    fn cut(
        &self,
        launch: &Launch,
        stride: usize,
        all: Range<usize>,
        begin: &dyn Fn(usize) -> usize,
        mut put: impl FnMut(Range<usize>, Range<usize>),
    ) -> Result<()> {
        let mut first = all.start;
        while first < all.end {
            let rows = |end: usize| begin(first)..begin(end);
            if !self.fits(launch, stride, rows(first + 1).len()) {
                let expected = format!("parts of at most the binding limit of {} bytes", self.most());
                let got = format!("one of {} rows of {stride} elements", rows(first + 1).len());
                return Err(Error::argument(launch.op, "weight", expected, got));
            }
            // The longest run that fits: fits(end) holds up to some end, and not behind it.
            let (mut fits, mut end) = (first + 1, all.end);
            while fits < end {
                let middle = (fits + end).div_ceil(2);
                if self.fits(launch, stride, rows(middle).len()) { fits = middle } else { end = middle - 1 }
            }
            put(first..fits, rows(fits));
            first = fits;
        }
        Ok(())
    }

    /// Whether so many rows of the weight can be bound at once, from wherever they begin.
    fn fits(&self, launch: &Launch, stride: usize, rows: usize) -> bool {
        let Some(weight) = launch.bindings.iter().find(|binding| binding.name == WEIGHT) else { return true };
        let slack = u64::from(self.limits().min_storage_buffer_offset_alignment) + 4;
        let bytes = weight.element_bytes().saturating_mul(rows).saturating_mul(stride) as u64;
        let all = weight.range.end - weight.range.start;
        // As a whole it needs no slack: what it begins with is known.
        if bytes >= all {
            let bound = weight.bound(slack - 4);
            return bound.end - bound.start <= self.most();
        }
        bytes.saturating_add(slack) <= self.most()
    }

    fn most(&self) -> u64 {
        self.binding_limit.min(self.limits().max_storage_buffer_binding_size)
    }

    fn launch_parts(
        &self,
        encoder: &mut wgpu::CommandEncoder,
        launch: &Launch,
        blocks: &Blocks,
        parts: &[Part],
    ) -> Result<()> {
        let tiles = launch.groups / (blocks.blocks.max(1) as u32);
        for (i, part) in parts.iter().enumerate() {
            let bindings: Vec<Binding> = launch
                .bindings
                .iter()
                .map(|binding| match binding.name {
                    WEIGHT => binding.cut(part.rows.start * blocks.stride..part.rows.end * blocks.stride),
                    _ => binding.clone(),
                })
                .collect();
            let (mut params, mut ahead) = (launch.params.to_vec(), 0);
            for (name, value) in &mut params {
                match *name {
                    "first_expert" => *value = part.experts.start as u32,
                    "end_expert" => *value = part.experts.end as u32,
                    // Workgroups in front that do not read the weight: with its first part.
                    "ahead" if i == 0 => ahead = *value,
                    "ahead" => *value = 0,
                    _ => {}
                }
            }
            let run = part.blocks.len() as u32;
            let launch = Launch { params: &params, bindings: &bindings, ..*launch };
            let own = [part.blocks.start as u32, run, blocks.blocks as u32];
            self.dispatch(encoder, &launch, ahead.saturating_add(tiles * run), own)?;
        }
        Ok(())
    }
}
