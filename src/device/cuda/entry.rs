//! The table of kernels, as `kernels/README.md` has it, and a launch as a pure value.

use crate::element::ElementType;
use crate::error::{Error, Result};
use crate::ops::Form;

/// A row of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kernel {
    /// Scores, selection, weights: a token.
    RouteFew,
    /// 8 tokens.
    RouteMany,
    /// A plan of at most one chunk.
    PlanOne,
    /// The first of three steps: every chunk sorted.
    PlanChunks,
    /// The second: prefix sums over the chunks.
    PlanScan,
    /// The third: routes to their places.
    PlanPlace,
    /// A tile of the plan and 8 ranks.
    ShrinkFew,
    /// A tile of the plan and 32 ranks in f32.
    ShrinkMany,
    /// The same on tensor cores.
    ShrinkMma,
    /// Rows of routes to one row per token.
    ShrinkRankSum,
    /// Weights from h: a block per token.
    Attend,
    /// A row of y and 512 columns.
    ExpandFew,
    /// A chunk and 128 columns in f32.
    ExpandMany,
    /// The same on tensor cores.
    ExpandMma,
    /// 8 tokens and 8 columns.
    BaseFew,
    /// 64 tokens and 64 columns in f32.
    BaseMany,
    /// 128 tokens and 128 columns on tensor cores.
    BaseMma,
    /// Few tokens: 16 columns, or 16 ranks of a route.
    FusedFew,
    /// The same on tensor cores, or 32 columns.
    FusedFewMma,
    /// A tile of the plan and 64 rows of its expert's weight in f32.
    GroupedMany,
    /// A tile of the plan and 128 rows of its expert's weight on tensor cores.
    GroupedMma,
    /// 128 tokens, 128 columns and the tile's experts on tensor cores.
    FusedSparseMma,
    /// The same with all rows of z.
    FusedDenseMma,
    /// 64 tokens and 64 columns of either in f32.
    FusedMany,
    /// 16 tokens and all rows of A, router and gates included, of any elements.
    FusedGate,
    /// The same on tensor cores.
    FusedGateMma,
    /// 32 rows of weight and B side by side.
    FusedConcat,
    /// Chains of multiply-adds in f32.
    CeilingMultiply,
    /// The same on tensor cores.
    CeilingMma,
    /// A read of memory.
    CeilingRead,
}

/// Which element types are part of a kernel's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Named {
    Nothing,
    /// `_{x}`.
    X,
    /// `_{x}_{a}`.
    XAndA,
    /// `_{x}`, f16 and bf16 alone.
    Half,
}

impl Kernel {
    /// The table's rows in its order.
    pub const ALL: [Self; 30] = [
        Self::RouteFew,
        Self::RouteMany,
        Self::PlanOne,
        Self::PlanChunks,
        Self::PlanScan,
        Self::PlanPlace,
        Self::ShrinkFew,
        Self::ShrinkMany,
        Self::ShrinkMma,
        Self::ShrinkRankSum,
        Self::Attend,
        Self::ExpandFew,
        Self::ExpandMany,
        Self::ExpandMma,
        Self::BaseFew,
        Self::BaseMany,
        Self::BaseMma,
        Self::FusedFew,
        Self::FusedFewMma,
        Self::GroupedMany,
        Self::GroupedMma,
        Self::FusedSparseMma,
        Self::FusedDenseMma,
        Self::FusedMany,
        Self::FusedGate,
        Self::FusedGateMma,
        Self::FusedConcat,
        Self::CeilingMultiply,
        Self::CeilingMma,
        Self::CeilingRead,
    ];

    /// Name without element types, threads of a block, and which element types follow the name.
    const fn row(self) -> (&'static str, u32, Named) {
        match self {
            Self::RouteFew => ("route_few", 256, Named::X),
            Self::RouteMany => ("route_many", 256, Named::X),
            Self::PlanOne => ("plan_one", 256, Named::Nothing),
            Self::PlanChunks => ("plan_chunks", 256, Named::Nothing),
            Self::PlanScan => ("plan_scan", 1024, Named::Nothing),
            Self::PlanPlace => ("plan_place", 256, Named::Nothing),
            Self::ShrinkFew => ("shrink_few", 256, Named::XAndA),
            Self::ShrinkMany => ("shrink_many", 128, Named::XAndA),
            Self::ShrinkMma => ("shrink_mma", 256, Named::Half),
            Self::ShrinkRankSum => ("shrink_rank_sum", 128, Named::Nothing),
            Self::Attend => ("attend", 256, Named::X),
            Self::ExpandFew => ("expand_few", 256, Named::XAndA),
            Self::ExpandMany => ("expand_many", 128, Named::XAndA),
            Self::ExpandMma => ("expand_mma", 256, Named::Half),
            Self::BaseFew => ("base_few", 256, Named::X),
            Self::BaseMany => ("base_many", 256, Named::X),
            Self::BaseMma => ("base_mma", 256, Named::Half),
            Self::FusedFew => ("fused_few", 256, Named::XAndA),
            Self::FusedFewMma => ("fused_few_mma", 256, Named::Half),
            Self::GroupedMany => ("grouped_many", 256, Named::XAndA),
            Self::GroupedMma => ("grouped_mma", 128, Named::Half),
            Self::FusedSparseMma => ("fused_sparse_mma", 256, Named::Half),
            Self::FusedDenseMma => ("fused_dense_mma", 256, Named::Half),
            Self::FusedMany => ("fused_many", 256, Named::XAndA),
            Self::FusedGate => ("fused_gate", 256, Named::Nothing),
            Self::FusedGateMma => ("fused_gate_mma", 256, Named::Half),
            Self::FusedConcat => ("fused_concat", 256, Named::Nothing),
            Self::CeilingMultiply => ("ceiling_multiply", 256, Named::Nothing),
            Self::CeilingMma => ("ceiling_mma", 256, Named::Half),
            Self::CeilingRead => ("ceiling_read", 256, Named::Nothing),
        }
    }

    /// Threads of a block.
    pub const fn threads(self) -> u32 {
        self.row().1
    }

    pub(crate) const fn named(self) -> Named {
        self.row().2
    }

    /// Whether it needs tensor cores.
    pub const fn is_mma(self) -> bool {
        matches!(self.named(), Named::Half)
    }
}

/// A kernel for given element types.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Entry {
    /// The row of the table.
    pub kernel: Kernel,
    /// Elements of x, weight and y.
    pub x: ElementType,
    /// Elements of the adapters.
    pub a: ElementType,
}

impl Entry {
    /// A kernel without element types in its name.
    pub(crate) const fn plain(kernel: Kernel) -> Self {
        Self { kernel, x: ElementType::F32, a: ElementType::F32 }
    }

    /// A kernel named by one element type.
    pub(crate) const fn of(kernel: Kernel, x: ElementType) -> Self {
        Self { kernel, x, a: x }
    }

    /// The entry point's name.
    pub fn name(&self) -> String {
        let (stem, _, named) = self.kernel.row();
        match named {
            Named::Nothing => stem.to_string(),
            Named::X | Named::Half => format!("{stem}_{}", self.x),
            Named::XAndA => format!("{stem}_{}_{}", self.x, self.a),
        }
    }

    /// All entries that the table describes.
    pub fn all() -> impl Iterator<Item = Self> {
        Kernel::ALL.into_iter().flat_map(|kernel| {
            let pairs = ElementType::ALL.into_iter().flat_map(|x| ElementType::ALL.map(|a| (x, a)));
            pairs
                .filter(move |&(x, a)| match kernel.named() {
                    Named::Nothing => (x, a) == (ElementType::F32, ElementType::F32),
                    Named::X => x == a,
                    Named::Half => x == a && x != ElementType::F32,
                    Named::XAndA => true,
                })
                .map(move |(x, a)| Self { kernel, x, a })
        })
    }

    /// Its place in a table of all kernels and pairs of element types.
    pub(crate) const fn index(&self) -> usize {
        (self.kernel as usize * 3 + self.x as usize) * 3 + self.a as usize
    }

    /// Places of such a table.
    pub(crate) const COUNT: usize = Kernel::ALL.len() * 9;
}

/// Which kernel runs over how many blocks: a pure function of sizes, alignment and the device's kernels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Launch {
    /// The kernel.
    pub entry: Entry,
    /// The path.
    pub form: Form,
    /// Columns (ranks, or columns of y) that one block takes.
    pub columns: usize,
    /// Blocks along the columns.
    pub blocks: usize,
    /// Blocks of the grid.
    pub groups: usize,
}

impl Launch {
    /// `rows` rows of blocks that take `columns` of `width` each.
    pub(crate) fn over(entry: Entry, form: Form, rows: usize, width: usize, columns: usize) -> Self {
        let blocks = width.div_ceil(columns);
        Self { entry, form, columns, blocks, groups: rows.saturating_mul(blocks) }
    }

    /// Blocks as a one-dimensional grid takes them.
    pub(crate) fn grid(&self, op: &'static str) -> Result<u32> {
        match u32::try_from(self.groups) {
            Ok(groups) if groups <= i32::MAX as u32 => Ok(groups),
            _ => Err(Error::argument(op, "tokens", "a launch of fewer than 2^31 blocks", self.groups)),
        }
    }
}

/// What a device offers to the choice of a kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Offer {
    /// One form for every batch size.
    pub batch_invariant: bool,
    /// Tensor cores for f16.
    pub mma_f16: bool,
    /// Tensor cores for bf16.
    pub mma_bf16: bool,
}

impl Offer {
    /// Whether products of these elements may run on tensor cores.
    pub fn has_mma(&self, x: ElementType, a: ElementType) -> bool {
        x == a
            && match x {
                ElementType::F32 => false,
                ElementType::F16 => self.mma_f16,
                ElementType::Bf16 => self.mma_bf16,
            }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn entries_have_names_and_places_of_their_own() {
        let all: Vec<Entry> = Entry::all().collect();
        let names: HashSet<String> = all.iter().map(Entry::name).collect();
        let places: HashSet<usize> = all.iter().map(Entry::index).collect();
        assert_eq!((names.len(), places.len()), (all.len(), all.len()));
        assert!(places.iter().all(|&i| i < Entry::COUNT));
        assert!(names.contains("shrink_few_f32_bf16") && names.contains("base_mma_f16"));
        assert!(!names.contains("base_mma_f32"));
    }

    #[test]
    fn grids_of_too_many_blocks_are_refused() {
        let launch =
            |groups| Launch { groups, ..Launch::over(Entry::plain(Kernel::PlanScan), Form::Many, 0, 1, 1) };
        assert_eq!(launch(i32::MAX as usize).grid("base").unwrap(), i32::MAX as u32);
        let refused = launch(i32::MAX as usize + 1).grid("base").unwrap_err().to_string();
        assert_eq!(refused, "base: tokens: expected a launch of fewer than 2^31 blocks, got 2147483648");
    }
}
