//! One problem: an operation and its sizes.

use crate::routing::Routing;
use molora::element::ElementType;
use molora::ops::fused::{Form, cost};
use molora::ops::{
    Output, grouped,
    route::{Rule, Select, Weighting},
};

/// What is run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Op {
    /// Scores to ids and weights.
    Route,
    /// Ids to sorted routes.
    Plan,
    /// x to h.
    Shrink,
    /// x and h to weights.
    Attend,
    /// h to y.
    Expand,
    /// The frozen product.
    Base,
    /// The layer's experts alone, added to y.
    Delta,
    /// Base product and experts, in the form that the cost model chooses.
    Layer,
    /// Base product and experts in one demanded form.
    Fused,
    /// The product whose base is a set of experts, with adapters on them.
    Grouped,
}

impl Op {
    /// In the order in which data flows.
    pub const ALL: [Self; 10] = [
        Self::Route,
        Self::Plan,
        Self::Shrink,
        Self::Attend,
        Self::Expand,
        Self::Base,
        Self::Delta,
        Self::Layer,
        Self::Fused,
        Self::Grouped,
    ];

    /// The name in case strings.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Route => "route",
            Self::Plan => "plan",
            Self::Shrink => "shrink",
            Self::Attend => "attend",
            Self::Expand => "expand",
            Self::Base => "base",
            Self::Delta => "delta",
            Self::Layer => "layer",
            Self::Fused => "fused",
            Self::Grouped => "grouped",
        }
    }

    /// Which of the case's sizes the operation has; the others stay at [`Case::new`]'s.
    pub(crate) const fn uses(self) -> Uses {
        let (adapters, routing) = match self {
            Self::Route => (false, true),
            Self::Plan => (false, true),
            Self::Base => (false, false),
            Self::Shrink
            | Self::Attend
            | Self::Expand
            | Self::Delta
            | Self::Layer
            | Self::Fused
            | Self::Grouped => (true, true),
        };
        Uses {
            adapters,
            routing,
            in_features: !matches!(self, Self::Plan | Self::Expand),
            out_features: matches!(
                self,
                Self::Expand | Self::Base | Self::Delta | Self::Layer | Self::Fused | Self::Grouped
            ),
        }
    }

    /// Whether h is an input.
    pub(crate) const fn reads_h(self) -> bool {
        matches!(self, Self::Expand | Self::Attend)
    }

    /// Whether y begins as one base product for all tokens, so that each one's row is written whether it has experts or not.
    pub(crate) const fn has_base(self) -> bool {
        matches!(self, Self::Base | Self::Layer | Self::Fused)
    }
}

/// See [`Op::uses`].
pub(crate) struct Uses {
    pub adapters: bool,
    pub routing: bool,
    pub in_features: bool,
    pub out_features: bool,
}

/// The base experts of [`Op::Grouped`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Group {
    /// How many.
    pub experts: usize,
    /// What becomes of a route's row.
    pub rows: grouped::Rows,
    /// x has a row for every route, not for every token.
    pub x_per_route: bool,
}

/// What a route's threshold is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Threshold {
    /// There is none.
    #[default]
    None,
    /// A number.
    Fixed,
    /// A score of the router's last row.
    Learned,
}

impl Threshold {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::None, Self::Fixed, Self::Learned];

    /// The name in case strings.
    pub const fn name(self) -> &'static str {
        match self {
            Self::None => "no_threshold",
            Self::Fixed => "threshold",
            Self::Learned => "learned_threshold",
        }
    }
}

/// How scores are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Scores {
    /// `x weight^T + bias`.
    #[default]
    Linear,
    /// Prototypes, all standardised.
    Prototypes,
    /// Prototypes, the product's absolute value.
    Absolute,
}

impl Scores {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Linear, Self::Prototypes, Self::Absolute];

    /// The name in case strings.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Linear => "linear",
            Self::Prototypes => "prototypes",
            Self::Absolute => "absolute",
        }
    }
}

/// The parts of [`Op::Route`] that its other sizes do not say.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Scoring {
    /// How scores are made.
    pub scores: Scores,
    /// What selects among the best.
    pub threshold: Threshold,
    /// Requests of uneven lengths with allow-lists of their own, some empty, and tokens behind the last.
    pub masked: bool,
    /// Experts that every token takes.
    pub shared: usize,
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
    /// Slots of the pool, all filled; grouped: adapters, each with a LoRA for every base expert.
    pub experts: usize,
    /// Ranks of the experts, repeated over them; of an expert's slices they follow each other.
    pub ranks: Vec<usize>,
    /// Attend: rank of the router adapter.
    pub router_rank: usize,
    /// Columns of x.
    pub in_features: usize,
    /// Columns of y.
    pub out_features: usize,
    /// Who goes where; for `route`, which scores tie.
    pub routing: Routing,
    /// Grouped: the base experts.
    pub group: Group,
    /// What the experts' products become.
    pub output: Output,
    /// Layer and fused: the form; `None` leaves it to the cost model.
    pub form: Option<Form>,
    /// Fused: slices of the output, uneven ones, of a packed pool; 1 where it is not packed.
    pub slices: usize,
    /// Expand: add to y instead of overwriting it. Delta always does.
    pub accumulate: bool,
    /// Base, layer and route: with a bias.
    pub bias: bool,
    /// Route: scores to weights.
    pub weighting: Weighting,
    /// Route: how scores are made, and which may be taken.
    pub scoring: Scoring,
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
            router_rank: 8,
            in_features: if op.uses().in_features { 64 } else { 8 },
            out_features: if op.uses().out_features { 64 } else { 8 },
            routing: Routing::Uniform,
            group: Group { experts: 4, rows: grouped::Rows::Plain, x_per_route: false },
            output: Output::Sum,
            form: matches!(op, Op::Fused).then_some(Form::Sparse),
            slices: 1,
            accumulate: matches!(op, Op::Delta),
            bias: false,
            weighting: Weighting::SoftmaxSelected,
            scoring: Scoring::default(),
            padding: 0,
            seed: 0,
        }
    }

    /// One element type for everything.
    pub fn element(mut self, element: ElementType) -> Self {
        (self.x, self.adapters) = (element, element);
        self
    }

    /// Slots of the pool: of grouped a * g + e for adapter a and base expert e of g.
    pub fn slots(&self) -> usize {
        if self.op == Op::Grouped { self.experts * self.group.experts } else { self.experts }
    }

    /// Slices of the pool's output: gate and up of a gated product.
    pub fn slices(&self) -> usize {
        match (self.op, self.group.rows) {
            (Op::Grouped, grouped::Rows::Gated) => 2,
            _ => self.slices,
        }
    }

    /// Rank of one expert, its slices together.
    pub fn rank(&self, expert: usize) -> usize {
        (0..self.slices()).map(|slice| self.part_rank(expert, slice)).sum()
    }

    /// Rank of one slice of an expert; 0 where the expert leaves the slice alone, as some do where there are several.
    pub fn part_rank(&self, expert: usize, slice: usize) -> usize {
        // Ranks within a token are equal for RankSum, in every slice.
        let alone = self.slices() > 1 && self.output != Output::RankSum;
        if alone && expert % (self.slices() + 1) == slice + 1 {
            return 0;
        }
        self.ranks[(expert + slice) % self.ranks.len()]
    }

    /// Columns of every slice: each wider than the one before it, wherever tiles end; gate and up are equals.
    pub fn slice_widths(&self) -> Vec<usize> {
        if self.op == Op::Grouped {
            return vec![self.out_features / self.slices(); self.slices()];
        }
        // Even widths of an even number of columns, which every device takes in 16 bits too; odd ones of an odd number.
        let step = if self.out_features.is_multiple_of(2) && self.out_features >= 40 { 2 } else { 1 };
        let part = |s: usize| self.out_features * s * (s + 1) / (self.slices * (self.slices + 1));
        let end = |s: usize| if s == self.slices { self.out_features } else { part(s) / step * step };
        (0..self.slices).map(|s| end(s + 1) - end(s)).collect()
    }

    /// What the cost model is asked of the case's layer, whose pool is filled from its first row on.
    pub fn problem(&self) -> cost::Problem {
        let ranks = (0..self.experts).map(|e| self.rank(e)).sum();
        cost::Problem {
            tokens: self.tokens,
            top_k: self.top_k,
            in_features: self.in_features,
            out_features: self.out_features,
            x: self.x,
            adapters: self.adapters,
            live: self.experts,
            ranks,
            used_rows: ranks,
            router_experts: 0,
            packed: self.slices > 1,
            output: self.output,
        }
    }

    /// Largest rank of any expert.
    pub fn max_rank(&self) -> usize {
        (0..self.slots()).map(|e| self.rank(e)).max().unwrap_or(0)
    }

    /// Elements from one row of x or y to the next: rows of 16-bit elements begin at even places, since WGSL reads
    /// them two at a time.
    pub fn stride(&self, columns: usize) -> usize {
        let stride = columns + self.padding;
        if self.x == ElementType::F32 { stride } else { stride.next_multiple_of(2) }
    }

    /// Routes, live or not.
    pub fn routes(&self) -> usize {
        self.tokens * (self.top_k + self.scoring.shared)
    }

    /// Route: what is taken of the scores. Thresholds lie where some tokens take all, some a few, and some none.
    pub fn rule(&self) -> Rule {
        let even = 1.0 / self.experts.max(1) as f32;
        let select = match self.scoring.threshold {
            Threshold::None => Select::TopK,
            Threshold::Fixed => Select::Threshold((1.5 * even).min(1.0)),
            Threshold::Learned => Select::LearnedThreshold((3.0 * even).min(1.0)),
        };
        Rule { top_k: self.top_k, select, weighting: self.weighting, shared: self.scoring.shared }
    }
}
