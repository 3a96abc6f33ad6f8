//! What a launch hands over: the structs of `kernels/params.cuh`, field by field.

use crate::adapter::slots::Slot;
use crate::ops::route::{Select, Weighting};
use bytemuck::{Pod, Zeroable};

/// Routes of one expert in a tile of the plan.
pub(crate) const TILE_ROUTES: u32 = 64;
/// Most routes in a chunk: whole tokens.
pub(crate) const CHUNK_ROUTES: u32 = 512;
/// Most tokens in a chunk.
pub(crate) const CHUNK_TOKENS: u32 = 64;

/// Most routes of a call of fused_few.
pub(crate) const FEW_ROUTES: u32 = 256;

/// Tokens of a block of route_many.
pub(crate) const ROUTE_TOKENS: u32 = 8;
/// Most selected experts of a call of route_many.
pub(crate) const ROUTE_TOP_K: u32 = 64;

/// Most rows of A of a call of fused_gate.
pub(crate) const GATE_ROWS: u32 = 512;
/// Most scores of a router in a call of fused_gate.
pub(crate) const GATE_EXPERTS: u32 = 64;

/// An address in device memory, as a kernel's pointer.
pub(crate) type Address = u64;

/// A plan in device memory, and the pool that its ids name.
#[derive(Debug, Clone, Copy, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct PlanParams {
    pub(crate) words: Address,
    pub(crate) clock: Address,
    pub(crate) slots: Address,
    pub(crate) status: Address,
    pub(crate) live_tokens: Address,
    pub(crate) topk_ids: Address,
    pub(crate) tokens: u32,
    pub(crate) top_k: u32,
    pub(crate) routes: u32,
    pub(crate) experts: u32,
    pub(crate) chunk_routes: u32,
    pub(crate) chunks: u32,
    pub(crate) stamp: u32,
    pub(crate) max_rank: u32,
    pub(crate) at_ids: u32,
    pub(crate) at_chunks: u32,
    pub(crate) at_places: u32,
    pub(crate) at_counts: u32,
    pub(crate) at_sorted: u32,
    pub(crate) at_offsets: u32,
    pub(crate) at_tile_offsets: u32,
    pub(crate) at_tiles: u32,
}

/// One call of route.
#[derive(Debug, Clone, Copy, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct RouteParams {
    pub(crate) x: Address,
    pub(crate) weight: Address,
    pub(crate) bias: Address,
    pub(crate) offsets: Address,
    pub(crate) lists: Address,
    pub(crate) topk_ids: Address,
    pub(crate) topk_weights: Address,
    pub(crate) status: Address,
    pub(crate) live_tokens: Address,
    pub(crate) tokens: u32,
    pub(crate) in_features: u32,
    pub(crate) x_stride: u32,
    pub(crate) experts: u32,
    pub(crate) top_k: u32,
    pub(crate) shared: u32,
    pub(crate) requests: u32,
    pub(crate) select: u32,
    pub(crate) weighting: u32,
    pub(crate) sums_all: u32,
    pub(crate) standardised: u32,
    pub(crate) absolute: u32,
    pub(crate) threshold: f32,
    pub(crate) x_vector: u32,
    pub(crate) w_vector: u32,
    pub(crate) unused: u32,
}

/// One launch of shrink.
#[derive(Debug, Clone, Copy, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct ShrinkParams {
    pub(crate) plan: PlanParams,
    pub(crate) x: Address,
    pub(crate) a: Address,
    pub(crate) topk_weights: Address,
    pub(crate) routes_h: Address,
    pub(crate) h: Address,
    pub(crate) in_features: u32,
    pub(crate) x_stride: u32,
    pub(crate) a_stride: u32,
    pub(crate) h_stride: u32,
    pub(crate) rank_blocks: u32,
    pub(crate) x_vector: u32,
    pub(crate) output: u32,
    pub(crate) unused: u32,
}

/// One call of attend.
#[derive(Debug, Clone, Copy, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct AttendParams {
    pub(crate) plan: PlanParams,
    pub(crate) x: Address,
    pub(crate) a: Address,
    pub(crate) k: Address,
    pub(crate) h: Address,
    pub(crate) topk_weights: Address,
    pub(crate) in_features: u32,
    pub(crate) x_stride: u32,
    pub(crate) a_stride: u32,
    pub(crate) h_stride: u32,
    pub(crate) router_rank: u32,
    pub(crate) x_vector: u32,
}

/// One call of expand.
#[derive(Debug, Clone, Copy, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct ExpandParams {
    pub(crate) plan: PlanParams,
    pub(crate) h: Address,
    pub(crate) b: Address,
    pub(crate) topk_weights: Address,
    pub(crate) y: Address,
    pub(crate) out_features: u32,
    pub(crate) b_stride: u32,
    pub(crate) h_stride: u32,
    pub(crate) y_stride: u32,
    pub(crate) column_blocks: u32,
    pub(crate) h_vector: u32,
    pub(crate) y_vector: u32,
    pub(crate) output: u32,
    pub(crate) accumulate: u32,
    pub(crate) unused: [u32; 3],
}

/// One call of base.
#[derive(Debug, Clone, Copy, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct BaseParams {
    pub(crate) x: Address,
    pub(crate) weight: Address,
    pub(crate) bias: Address,
    pub(crate) y: Address,
    pub(crate) live_tokens: Address,
    pub(crate) tokens: u32,
    pub(crate) in_features: u32,
    pub(crate) out_features: u32,
    pub(crate) x_stride: u32,
    pub(crate) y_stride: u32,
    pub(crate) column_blocks: u32,
    pub(crate) x_vector: u32,
    pub(crate) w_vector: u32,
    pub(crate) y_vector: u32,
    pub(crate) unused: [u32; 3],
}

/// One call of fused_few.
#[derive(Debug, Clone, Copy, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct FewParams {
    pub(crate) slots: Address,
    pub(crate) status: Address,
    pub(crate) counters: Address,
    pub(crate) live_tokens: Address,
    pub(crate) topk_ids: Address,
    pub(crate) topk_weights: Address,
    pub(crate) x: Address,
    pub(crate) weight: Address,
    pub(crate) bias: Address,
    pub(crate) a: Address,
    pub(crate) b: Address,
    pub(crate) h: Address,
    pub(crate) y: Address,
    pub(crate) tokens: u32,
    pub(crate) top_k: u32,
    pub(crate) experts: u32,
    pub(crate) max_rank: u32,
    pub(crate) in_features: u32,
    pub(crate) out_features: u32,
    pub(crate) x_stride: u32,
    pub(crate) y_stride: u32,
    pub(crate) a_stride: u32,
    pub(crate) b_stride: u32,
    pub(crate) h_stride: u32,
    pub(crate) rank_blocks: u32,
    pub(crate) shrink_jobs: u32,
    pub(crate) x_vector: u32,
    pub(crate) w_vector: u32,
    pub(crate) slices: u32,
    pub(crate) slice_ends: [u32; 4],
    pub(crate) rows: u32,
    pub(crate) unused: u32,
}

/// One call of grouped.
#[derive(Debug, Clone, Copy, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct GroupedParams {
    pub(crate) plan: PlanParams,
    pub(crate) loras: Address,
    pub(crate) lora_plan: Address,
    pub(crate) x: Address,
    pub(crate) weight: Address,
    pub(crate) h: Address,
    pub(crate) b: Address,
    pub(crate) topk_weights: Address,
    pub(crate) scratch: Address,
    pub(crate) counters: Address,
    pub(crate) y: Address,
    pub(crate) slots: u32,
    pub(crate) slices: u32,
    pub(crate) lora_rank: u32,
    pub(crate) in_features: u32,
    pub(crate) out_features: u32,
    pub(crate) width: u32,
    pub(crate) x_stride: u32,
    pub(crate) h_stride: u32,
    pub(crate) b_stride: u32,
    pub(crate) y_stride: u32,
    pub(crate) column_blocks: u32,
    pub(crate) rows: u32,
    pub(crate) x_per_route: u32,
    pub(crate) group_tokens: u32,
    pub(crate) x_vector: u32,
    pub(crate) w_vector: u32,
    pub(crate) h_vector: u32,
    pub(crate) y_vector: u32,
    pub(crate) tiles: u32,
    pub(crate) lora_ids: u32,
    pub(crate) lora_stamp: u32,
    pub(crate) unused: u32,
}

/// One call of fused, sparse or dense.
#[derive(Debug, Clone, Copy, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct FusedParams {
    pub(crate) base: BaseParams,
    pub(crate) plan: PlanParams,
    pub(crate) h: Address,
    pub(crate) topk_weights: Address,
    pub(crate) b: Address,
    pub(crate) z: Address,
    pub(crate) b_stride: u32,
    pub(crate) h_stride: u32,
    pub(crate) z_stride: u32,
    pub(crate) z_rows: u32,
    pub(crate) output: u32,
    pub(crate) h_vector: u32,
    pub(crate) z_vector: u32,
    pub(crate) dense: u32,
    pub(crate) slices: u32,
    pub(crate) slice_ends: [u32; 4],
    pub(crate) unused: [u32; 3],
}

/// One call of fused_gate.
#[derive(Debug, Clone, Copy, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct GateParams {
    pub(crate) slots: Address,
    pub(crate) status: Address,
    pub(crate) live_tokens: Address,
    pub(crate) topk_ids: Address,
    pub(crate) topk_weights: Address,
    pub(crate) x: Address,
    pub(crate) a: Address,
    pub(crate) router: Address,
    pub(crate) router_bias: Address,
    pub(crate) z: Address,
    pub(crate) tokens: u32,
    pub(crate) top_k: u32,
    pub(crate) experts: u32,
    pub(crate) router_experts: u32,
    pub(crate) in_features: u32,
    pub(crate) columns: u32,
    pub(crate) x_stride: u32,
    pub(crate) a_stride: u32,
    pub(crate) z_stride: u32,
    pub(crate) z_columns: u32,
    pub(crate) x_vector: u32,
    pub(crate) w_vector: u32,
    pub(crate) z_vector: u32,
    pub(crate) softmax_all: u32,
    pub(crate) x_type: u32,
    pub(crate) a_type: u32,
}

/// One call of fused_concat.
#[derive(Debug, Clone, Copy, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct ConcatParams {
    pub(crate) weight: Address,
    pub(crate) b: Address,
    pub(crate) concat: Address,
    pub(crate) in_features: u32,
    pub(crate) out_features: u32,
    pub(crate) columns: u32,
    pub(crate) b_stride: u32,
    pub(crate) stride: u32,
    pub(crate) bytes: u32,
    pub(crate) weight_blocks: u32,
    pub(crate) blocks: u32,
}

/// One call of a ceiling's kernel.
#[derive(Debug, Clone, Copy, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct CeilingParams {
    pub(crate) memory: Address,
    pub(crate) sums: Address,
    pub(crate) steps: u32,
    pub(crate) unused: u32,
    pub(crate) a: f32,
    pub(crate) b: f32,
}

/// The params of a kernel: passed by value, as its only parameter.
pub(crate) trait Params: Pod {}
impl Params for PlanParams {}
impl Params for RouteParams {}
impl Params for ShrinkParams {}
impl Params for AttendParams {}
impl Params for ExpandParams {}
impl Params for BaseParams {}
impl Params for FewParams {}
impl Params for GroupedParams {}
impl Params for FusedParams {}
impl Params for GateParams {}
impl Params for ConcatParams {}
impl Params for CeilingParams {}

/// Values of `select` in [`RouteParams`].
pub(crate) const fn select_word(select: Select) -> u32 {
    match select {
        Select::TopK => 0,
        Select::Threshold(_) => 1,
        Select::LearnedThreshold(_) => 2,
    }
}

/// Values of `weighting` in [`RouteParams`].
pub(crate) const fn weighting_word(weighting: Weighting) -> u32 {
    match weighting {
        Weighting::SoftmaxSelected => 0,
        Weighting::SoftmaxAll => 1,
        Weighting::SoftmaxAllRenormalised => 2,
        Weighting::SoftmaxTwice => 3,
        Weighting::AboveThreshold => 4,
        Weighting::Sigmoid => 5,
        Weighting::Uniform => 6,
        Weighting::Score => 7,
    }
}

/// Values of `output` in [`ShrinkParams`] and [`ExpandParams`].
pub(crate) const fn output_word(output: crate::ops::Output) -> u32 {
    match output {
        crate::ops::Output::Sum => 0,
        crate::ops::Output::PerRoute => 1,
        crate::ops::Output::RankSum => 2,
    }
}

/// Values of `x_type` and `a_type` in [`GateParams`].
pub(crate) const fn type_word(element: crate::ElementType) -> u32 {
    match element {
        crate::ElementType::F32 => 0,
        crate::ElementType::F16 => 1,
        crate::ElementType::Bf16 => 2,
    }
}

/// Slots lie as `params.cuh` reads them.
const _: () = assert!(size_of::<Slot>() == 16);
