//! Grouped: the fused product where the base itself is a set of experts (Mixtral, Qwen3-MoE), with a LoRA per (adapter,
//! expert).
//!
//! Route n of token t goes to base expert e(n) = `topk_ids[n]` and, where `lora_ids[n]` is not -1, to that slot of a LoRA
//! pool (an engine with adapters a numbers the slots `a * experts + e`):
//!
//! ```text
//! row_n    = weight[e(n)] x_m + scaling B A x_m              m = n / top_k (a token's row) or n (a route's own row)
//! plain    y_n = row_n                                       weight [experts, out_features, in_features]
//! gated    y_n = silu(row_n[..width]) * row_n[width..]       weight [experts, 2 width, in_features]: w1's rows (gate),
//!                                                            then w3's (up); a pool of two slices [width, width]
//! combined y_t = sum over its routes n, in slot order, of w_n row_n
//! ```
//!
//! A block of a SwiGLU mixture is: shrink (both slices' A), grouped gated, shrink (rows of routes), grouped
//! combined. Rows of routes without a base expert (id -1) are not written, and add nothing where combined. Routes of one
//! expert share a tile whatever their adapters: inside a tile the product runs on over the adapters that it uses, ranks
//! exact, none padded; WebGPU adds the LoRAs of combined rows where these are combined. h is `[routes, h_stride]`,
//! [`shrink`](super::shrink)'s. Sums are f32; y is rounded once (combined: after the sum over the routes).
//!
//! The base experts' plan is an ordinary plan over `topk_ids` and a pool of markers (`Pool::markers`), whose slots are all
//! live and hold nothing. `loras` is the plan of `lora_ids` over the LoRA pool that shrink had: a slot that was emptied or
//! replaced since then is refused on the host and skipped on a device, so that no h of an older adapter meets a newer one's B.
//! A route without a base expert adds nothing, whatever LoRA it names.

mod cpu;
#[cfg(feature = "cuda")]
pub mod cuda;
#[cfg(feature = "wgpu")]
pub mod wgpu;

use super::{Expert, check_equal, check_len, check_rows};
use crate::adapter::slots::Slots;
use crate::element::Element;
use crate::error::{Error, Result};

const OP: &str = "grouped";

/// Sizes of a grouped product.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Sizes {
    /// Tokens.
    pub tokens: usize,
    /// Routes per token.
    pub top_k: usize,
    /// Base experts.
    pub experts: usize,
    /// Columns of x.
    pub in_features: usize,
    /// Rows of one expert's weight: `2 width` where gated.
    pub out_features: usize,
    /// Elements from one row of x to the next.
    pub x_stride: usize,
    /// Elements from one row of h to the next.
    pub h_stride: usize,
    /// Elements from one row of y to the next.
    pub y_stride: usize,
    /// x has a row for every route, not for every token.
    pub x_per_route: bool,
    /// What becomes of a route's row.
    pub rows: Rows,
}

/// What becomes of a route's row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Rows {
    /// `y_n = row_n`, `[routes, out_features]`.
    Plain,
    /// `y_n = silu(gate) * up`, `[routes, out_features / 2]`.
    Gated,
    /// `y_t = sum_n w_n row_n`, `[tokens, out_features]`.
    Combined,
}

impl Rows {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Plain, Self::Gated, Self::Combined];

    /// The name in case strings.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Gated => "gated",
            Self::Combined => "combined",
        }
    }
}

impl Sizes {
    /// Routes, live or not.
    pub const fn routes(&self) -> usize {
        self.tokens.saturating_mul(self.top_k)
    }

    /// Columns of y.
    pub const fn width(&self) -> usize {
        match self.rows {
            Rows::Gated => self.out_features / 2,
            Rows::Plain | Rows::Combined => self.out_features,
        }
    }

    /// Rows of x.
    pub const fn x_rows(&self) -> usize {
        if self.x_per_route { self.routes() } else { self.tokens }
    }

    /// Rows of y.
    pub const fn y_rows(&self) -> usize {
        match self.rows {
            Rows::Combined => self.tokens,
            Rows::Plain | Rows::Gated => self.routes(),
        }
    }

    /// Which row of x route n reads.
    pub const fn x_row(&self, n: usize) -> usize {
        if self.x_per_route { n } else { n / self.top_k }
    }

    /// Refuses lengths that do not fit; lengths in elements, `max_rank` over the LoRA pool's live slots.
    pub fn check(&self, max_rank: usize, lens: &Lens) -> Result<()> {
        super::check_routes(OP, self.tokens, self.top_k)?;
        if self.rows == Rows::Gated && !self.out_features.is_multiple_of(2) {
            return Err(Error::argument(OP, "out_features", "an even number where gated", self.out_features));
        }
        let all = self.out_features.checked_mul(self.in_features).and_then(|n| n.checked_mul(self.experts));
        let expected = all.ok_or_else(|| {
            let got = format!("{} * {} * {}", self.experts, self.out_features, self.in_features);
            Error::argument(OP, "experts * out_features * in_features", "a size that fits memory", got)
        })?;
        check_len(OP, "weight", expected, lens.weight)?;
        check_equal(OP, "loras.routes", self.routes(), lens.loras)?;
        check_len(OP, "topk_weights", self.routes(), lens.topk_weights)?;
        check_rows(OP, "x", (self.x_rows(), self.in_features, self.x_stride), lens.x)?;
        check_rows(OP, "h", (self.routes(), max_rank, self.h_stride), lens.h)?;
        check_rows(OP, "y", (self.y_rows(), self.width(), self.y_stride), lens.y)
    }
}

/// Refuses a pool of LoRAs that is not for this product: two slices, gate and up, or one.
fn check_pool(sizes: &Sizes, slots: &Slots) -> Result<()> {
    check_equal(OP, "pool.in_features", sizes.in_features, slots.sizes().in_features)?;
    check_equal(OP, "pool.out_features", sizes.out_features, slots.sizes().out_features)?;
    let width = sizes.width();
    let expected: &[usize] = if sizes.rows == Rows::Gated { &[width, width] } else { &[width] };
    if slots.slices() != expected {
        let got = format!("{:?}", slots.slices());
        return Err(Error::argument(OP, "pool", format!("slices {expected:?}"), got));
    }
    Ok(())
}

/// Refuses ids that are neither -1 nor a slot's.
fn check_loras(top_k: usize, lora_ids: &[i32], slots: usize) -> Result<()> {
    match lora_ids.iter().position(|&id| id != -1 && !usize::try_from(id).is_ok_and(|id| id < slots)) {
        None => Ok(()),
        Some(n) => {
            let argument = format!("lora_ids[{}, {}]", n / top_k, n % top_k);
            Err(Error::argument(OP, argument, format!("-1 or a slot below {slots}"), lora_ids[n]))
        }
    }
}

/// Lengths of a call's arguments, in elements.
#[derive(Debug, Clone, Copy)]
pub struct Lens {
    /// Of the experts' weights.
    pub weight: usize,
    /// Of x.
    pub x: usize,
    /// Of h.
    pub h: usize,
    /// Routes of the LoRAs' plan.
    pub loras: usize,
    /// Of the weights.
    pub topk_weights: usize,
    /// Of y.
    pub y: usize,
}

/// The definition: every sum in f64, y rounded once. `loras[slot]` holds one [`Expert`] for every slice of the output, gate
/// and up where gated, else one.
#[expect(clippy::too_many_arguments, reason = "sizes, ids, experts, inputs, output: the order of every room")]
pub fn definition<X: Element, A: Element>(
    sizes: &Sizes,
    topk_ids: &[i32],
    lora_ids: &[i32],
    loras: &[Vec<Expert<A>>],
    weight: &[X],
    x: &[X],
    topk_weights: &[f32],
    y: &mut [X],
) -> Result<()> {
    let slices = if sizes.rows == Rows::Gated { 2 } else { 1 };
    let (inner, slice_width) = (sizes.in_features, sizes.out_features / slices);
    let (weights, h) = (topk_weights.len(), 0);
    let lens = Lens {
        weight: weight.len(),
        x: x.len(),
        h,
        loras: lora_ids.len(),
        topk_weights: weights,
        y: y.len(),
    };
    sizes.check(0, &lens)?;
    super::plan::Sizes { tokens: sizes.tokens, top_k: sizes.top_k, experts: sizes.experts }
        .check_ids(topk_ids)?;
    if sizes.rows == Rows::Combined {
        super::plan::check_weights(OP, sizes.top_k, topk_ids, topk_weights)?;
    }
    check_loras(sizes.top_k, lora_ids, loras.len())?;
    for (slot, parts) in loras.iter().enumerate() {
        check_len(OP, &format!("loras[{slot}]"), slices, parts.len())?;
        for part in parts {
            let [a, b] = [inner, slice_width].map(|width| part.rank.saturating_mul(width));
            check_len(OP, &format!("loras[{slot}].lora_a"), a, part.lora_a.len())?;
            check_len(OP, &format!("loras[{slot}].lora_b"), b, part.lora_b.len())?;
        }
    }
    let dot = |a: &mut dyn Iterator<Item = f64>, x: &[X]| -> f64 {
        a.zip(x).map(|(a, x)| a * f64::from(x.to_f32())).sum()
    };
    for t in 0..sizes.tokens {
        let mut combined = vec![0f64; sizes.out_features];
        for n in t * sizes.top_k..(t + 1) * sizes.top_k {
            let Ok(e) = usize::try_from(topk_ids[n]) else { continue };
            let x = &x[sizes.x_row(n) * sizes.x_stride..][..inner];
            let weight = &weight[e * sizes.out_features * inner..][..sizes.out_features * inner];
            let row_of =
                |o: usize| dot(&mut weight[o * inner..][..inner].iter().map(|w| f64::from(w.to_f32())), x);
            let mut row: Vec<f64> = (0..sizes.out_features).map(row_of).collect();
            if let Ok(slot) = usize::try_from(lora_ids[n]) {
                for (s, lora) in loras[slot].iter().enumerate() {
                    for r in 0..lora.rank {
                        let a = &lora.lora_a[r * inner..][..inner];
                        let h =
                            f64::from(lora.scaling) * dot(&mut a.iter().map(|a| f64::from(a.to_f32())), x);
                        for o in 0..slice_width {
                            row[s * slice_width + o] +=
                                f64::from(lora.lora_b[o * lora.rank + r].to_f32()) * h;
                        }
                    }
                }
            }
            for o in 0..sizes.width() {
                match sizes.rows {
                    Rows::Plain => y[n * sizes.y_stride + o] = X::from_f32(row[o] as f32),
                    Rows::Gated => {
                        let gated = row[o] / (1.0 + (-row[o]).exp()) * row[slice_width + o];
                        y[n * sizes.y_stride + o] = X::from_f32(gated as f32);
                    }
                    Rows::Combined => combined[o] += f64::from(topk_weights[n]) * row[o],
                }
            }
        }
        if sizes.rows == Rows::Combined {
            for (o, sum) in combined.into_iter().enumerate() {
                y[t * sizes.y_stride + o] = X::from_f32(sum as f32);
            }
        }
    }
    Ok(())
}
