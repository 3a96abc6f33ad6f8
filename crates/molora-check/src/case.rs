//! One problem: an operation and its sizes.

use crate::routing::Routing;
use molora::element::ElementType;
use molora::ops::{Output, route::Weighting};

/// What is run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Op {
    /// Scores to ids and weights.
    Route,
    /// Ids to sorted routes.
    Plan,
    /// x to h.
    Shrink,
    /// h to y.
    Expand,
    /// The frozen product.
    Base,
    /// The layer's experts alone, added to y.
    Delta,
    /// Base product and experts.
    Layer,
}

impl Op {
    /// In the order in which data flows.
    pub const ALL: [Self; 7] =
        [Self::Route, Self::Plan, Self::Shrink, Self::Expand, Self::Base, Self::Delta, Self::Layer];

    /// The name in case strings.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Route => "route",
            Self::Plan => "plan",
            Self::Shrink => "shrink",
            Self::Expand => "expand",
            Self::Base => "base",
            Self::Delta => "delta",
            Self::Layer => "layer",
        }
    }

    /// Which of the case's sizes the operation has; the others stay at [`Case::new`]'s.
    pub(crate) const fn uses(self) -> Uses {
        let (adapters, routing) = match self {
            Self::Route => (false, true),
            Self::Plan => (false, true),
            Self::Base => (false, false),
            Self::Shrink | Self::Expand | Self::Delta | Self::Layer => (true, true),
        };
        Uses {
            adapters,
            routing,
            in_features: !matches!(self, Self::Plan | Self::Expand),
            out_features: matches!(self, Self::Expand | Self::Base | Self::Delta | Self::Layer),
        }
    }
}

/// See [`Op::uses`].
pub(crate) struct Uses {
    pub adapters: bool,
    pub routing: bool,
    pub in_features: bool,
    pub out_features: bool,
}

/// One problem. Its text (`Display`, `FromStr`) names it in test failures, bench ids and results.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Case {
    /// What is run.
    pub op: Op,
    /// Elements of x, weight and y.
    pub x: ElementType,
    /// Elements of `lora_a` and `lora_b`.
    pub adapters: ElementType,
    /// Rows of x.
    pub tokens: usize,
    /// Routes per token.
    pub top_k: usize,
    /// Slots of the pool, all filled.
    pub experts: usize,
    /// Ranks of the experts, repeated over them.
    pub ranks: Vec<usize>,
    /// Columns of x.
    pub in_features: usize,
    /// Columns of y.
    pub out_features: usize,
    /// Who goes where; for `route`, which scores tie.
    pub routing: Routing,
    /// What the experts' products become.
    pub output: Output,
    /// Expand: add to y instead of overwriting it. Delta always does.
    pub accumulate: bool,
    /// Base, layer and route: with a bias.
    pub bias: bool,
    /// Route: scores to weights.
    pub weighting: Weighting,
    /// Elements between the end of a row and the next.
    pub padding: usize,
    /// Which numbers.
    pub seed: u64,
}

impl Case {
    /// A small case of an operation; change what matters.
    pub fn new(op: Op) -> Self {
        Self {
            op,
            x: ElementType::F32,
            adapters: ElementType::F32,
            tokens: 33,
            top_k: 2,
            experts: 8,
            ranks: vec![16],
            in_features: if op.uses().in_features { 64 } else { 8 },
            out_features: if op.uses().out_features { 64 } else { 8 },
            routing: Routing::Uniform,
            output: Output::Sum,
            accumulate: matches!(op, Op::Delta),
            bias: false,
            weighting: Weighting::SoftmaxSelected,
            padding: 0,
            seed: 0,
        }
    }

    /// One element type for everything.
    pub fn element(mut self, element: ElementType) -> Self {
        (self.x, self.adapters) = (element, element);
        self
    }

    /// Rank of one expert.
    pub fn rank(&self, expert: usize) -> usize {
        self.ranks[expert % self.ranks.len()]
    }

    /// Largest rank of any expert.
    pub fn max_rank(&self) -> usize {
        (0..self.experts.min(self.ranks.len())).map(|e| self.rank(e)).max().unwrap_or(0)
    }

    /// Elements from one row of x or y to the next: rows of 16-bit elements begin at even places, since WGSL reads
    /// them two at a time.
    pub fn stride(&self, columns: usize) -> usize {
        let stride = columns + self.padding;
        if self.x == ElementType::F32 { stride } else { stride.next_multiple_of(2) }
    }

    /// Routes, live or not.
    pub fn routes(&self) -> usize {
        self.tokens * self.top_k
    }
}
