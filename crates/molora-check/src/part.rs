//! Some of a case's tokens as a case of their own: what batch invariance is tested with, and how the answer of a
//! large case is judged without hours of its definition.

use crate::case::{Case, Op};
use crate::grouped;
use crate::guarded::{Guarded, Tensor};
use crate::inputs::Inputs;
use bytemuck::Pod;

impl<T: Pod> Guarded<T> {
    /// Rows `first .. first + rows`, guards and padding of the same patterns.
    pub fn part(&self, first: usize, rows: usize) -> Self {
        assert!(first + rows <= self.rows, "rows that are there");
        Self::new((rows, self.width, self.stride), self.all[0], |row, column| self.at(first + row, column))
    }
}

impl Tensor {
    /// See [`Guarded::part`].
    pub fn part(&self, first: usize, rows: usize) -> Self {
        match self {
            Self::F32(g) => Self::F32(g.part(first, rows)),
            Self::F16(g) => Self::F16(g.part(first, rows)),
            Self::Bf16(g) => Self::Bf16(g.part(first, rows)),
        }
    }
}

impl Inputs {
    /// The inputs of the tokens `first .. first + tokens`.
    pub fn part(&self, first: usize, tokens: usize) -> Self {
        let Case { op, top_k, .. } = self.case;
        let mut part = Self { case: Case { tokens, ..self.case.clone() }, ..self.clone() };
        if !self.topk_ids.is_empty() {
            let routes = first * top_k..(first + tokens) * top_k;
            part.topk_ids = self.topk_ids[routes.clone()].to_vec();
            if op == Op::Grouped {
                part.lora_ids = self.lora_ids[routes.clone()].to_vec();
            }
            part.topk_weights = self.topk_weights[routes].to_vec();
        }
        if !matches!(op, Op::Plan) {
            let a_token = if op == Op::Grouped && self.case.group.x_per_route { top_k } else { 1 };
            part.x = self.x.part(first * a_token, tokens * a_token);
        }
        if op.reads_h() {
            let rows = |tokens| self.case.output.h_rows(tokens, top_k);
            part.h = self.h.part(rows(first), rows(tokens));
        }
        if op.uses().out_features {
            part.y = self.y.part(self.case.y_rows(first), self.case.y_rows(tokens));
        }
        part
    }
}

impl Case {
    /// Rows of h or y that so many tokens have.
    pub fn y_rows(&self, tokens: usize) -> usize {
        match self.op {
            Op::Base | Op::Layer | Op::Fused | Op::Attend => tokens,
            Op::Grouped => grouped::y_rows(self, tokens),
            Op::Shrink => self.output.h_rows(tokens, self.top_k),
            _ => self.output.y_rows(tokens, self.top_k),
        }
    }
}
