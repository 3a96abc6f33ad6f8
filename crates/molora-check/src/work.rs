//! What a case must do at least: operations, and bytes that cross the memory's bus once.

use crate::Inputs;
use crate::case::Op;
use molora::ops::Output;
use serde::{Deserialize, Serialize};

/// What a case must do at least.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Work {
    /// Additions and multiplications.
    pub flops: f64,
    /// Bytes that must be read or written once.
    pub bytes: f64,
}

impl std::ops::Add for Work {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        Self { flops: self.flops + other.flops, bytes: self.bytes + other.bytes }
    }
}

/// Operations and bytes of a case: every input that a live route needs read once, every output written once; what adds to y
/// reads it too.
pub fn work(inputs: &Inputs) -> Work {
    let case = &inputs.case;
    let live: Vec<usize> = inputs.topk_ids.iter().filter_map(|&id| usize::try_from(id).ok()).collect();
    if case.op == Op::Grouped {
        return grouped_work(inputs);
    }
    let mut used = vec![false; case.experts];
    live.iter().for_each(|&e| used[e] = true);
    let ranks =
        |experts: &mut dyn Iterator<Item = usize>| experts.map(|e| case.rank(e)).sum::<usize>() as f64;
    let route_ranks = ranks(&mut live.iter().copied());
    let pool_ranks = ranks(&mut (0..case.experts).filter(|&e| used[e]));
    let h_bytes = 4.0
        * match case.output {
            Output::RankSum => route_ranks / case.top_k.max(1) as f64,
            Output::Sum | Output::PerRoute => route_ranks,
        };
    let [tokens, input, output, experts] =
        [case.tokens, case.in_features, case.out_features, case.experts].map(|n| n as f64);
    let (x, a) = (case.x.bytes() as f64, case.adapters.bytes() as f64);
    let routes = case.routes() as f64;
    let plan = Work { flops: 0.0, bytes: 4.0 * (2.0 * routes + experts + 1.0) };
    let shrink = Work {
        flops: 2.0 * input * route_ranks,
        bytes: tokens * input * x + pool_ranks * input * a + h_bytes,
    };
    let y_rows = case.output.y_rows(case.tokens, case.top_k) as f64;
    // Who adds to y reads it too.
    let adds = if case.accumulate { 2.0 } else { 1.0 };
    let expand = Work {
        flops: 2.0 * output * route_ranks,
        bytes: h_bytes + pool_ranks * output * a + adds * y_rows * output * x,
    };
    let parts = live.iter().flat_map(|&e| (0..case.slices).map(move |s| (e, s)));
    let widths = case.slice_widths();
    let columns: usize = parts.map(|(e, s)| case.part_rank(e, s) * widths[s]).sum();
    // What a layer's experts ask for beside x and y: h and plans need not leave the caches.
    let experts_alone = Work {
        flops: 2.0 * (input * route_ranks + columns as f64),
        bytes: pool_ranks * (input + output) * a + 8.0 * routes,
    };
    let base = Work {
        flops: 2.0 * tokens * input * output,
        bytes: (input * output + tokens * (input + output)) * x,
    };
    match case.op {
        Op::Route => Work {
            flops: 2.0 * tokens * input * experts,
            bytes: tokens * input * x + experts * input * 4.0 + routes * 8.0,
        },
        Op::Plan => plan,
        Op::Shrink => shrink,
        Op::Attend => {
            let query = case.router_rank as f64;
            Work {
                flops: 2.0 * query * (tokens * input + route_ranks),
                bytes: tokens * input * x + 4.0 * query * (input + pool_ranks) + h_bytes + 4.0 * routes,
            }
        }
        Op::Expand => expand,
        Op::Base => base,
        Op::Delta => {
            let bytes = (tokens * input + adds * y_rows * output) * x;
            experts_alone + Work { flops: 0.0, bytes }
        }
        Op::Grouped => unreachable!("it has base experts"),
        Op::Layer | Op::Fused => experts_alone + base,
    }
}

/// As [`work`]: every base expert and adapter that a live route needs read once.
fn grouped_work(inputs: &Inputs) -> Work {
    let case = &inputs.case;
    let (widths, slots) = (case.slice_widths(), case.slots());
    let distinct = |ids: &[i32], all: usize| {
        let mut used = vec![false; all];
        ids.iter().filter_map(|&id| usize::try_from(id).ok()).for_each(|id| used[id] = true);
        (0..all).filter(|&id| used[id]).collect::<Vec<_>>()
    };
    // Elements of A and of B of one slot, which are the multiply-adds of a route to it too.
    let factors = |slot: usize| {
        let columns: usize = (0..widths.len()).map(|s| case.part_rank(slot, s) * widths[s]).sum();
        (case.rank(slot) * case.in_features + columns) as f64
    };
    let slots_of = |ids: &[i32]| ids.iter().filter_map(|&id| usize::try_from(id).ok()).collect::<Vec<_>>();
    let live = inputs.topk_ids.iter().filter(|&&id| id >= 0).count() as f64;
    let weight = (case.in_features * case.out_features) as f64;
    let routed: f64 = slots_of(&inputs.lora_ids).into_iter().map(factors).sum();
    let held: f64 = distinct(&inputs.lora_ids, slots).into_iter().map(factors).sum();
    let sizes = inputs.grouped_sizes();
    let rows = (sizes.x_rows() * case.in_features + sizes.y_rows() * sizes.width()) as f64;
    let weights = distinct(&inputs.topk_ids, case.group.experts).len() as f64 * weight;
    let (x, a) = (case.x.bytes() as f64, case.adapters.bytes() as f64);
    Work { flops: 2.0 * (live * weight + routed), bytes: (weights + rows) * x + held * a }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Case;
    use crate::routing::Routing;

    fn of(case: &Case) -> Work {
        work(&Inputs::new(case))
    }

    #[test]
    fn the_least_is_counted_as_peers_count_it() {
        // Two of eight experts for all tokens: used factors once, x once, y once or, where it is added to, twice.
        let sized = |op| Case {
            tokens: 5,
            in_features: 96,
            out_features: 32,
            routing: Routing::Identical,
            ..Case::new(op)
        };
        let (experts, routing) = (4.0 * 2.0 * 16.0 * (96.0 + 32.0), 8.0 * 10.0);
        let (x, y, weight) = (4.0 * 5.0 * 96.0, 4.0 * 5.0 * 32.0, 4.0 * 96.0 * 32.0);
        let (delta, base) = (of(&sized(Op::Delta)), of(&sized(Op::Base)));
        assert_eq!(delta.bytes, experts + routing + x + 2.0 * y);
        assert_eq!(delta.flops, 2.0 * 5.0 * 2.0 * 16.0 * (96.0 + 32.0));
        assert_eq!((base.flops, base.bytes), (2.0 * 5.0 * 96.0 * 32.0, weight + x + y));
        let layer = of(&sized(Op::Layer));
        assert_eq!(
            (layer.flops, layer.bytes),
            (delta.flops + base.flops, experts + routing + weight + x + y)
        );
        assert_eq!(of(&sized(Op::Fused)), layer);
        let added = of(&Case { accumulate: true, ..sized(Op::Expand) });
        assert_eq!(added.bytes - of(&sized(Op::Expand)).bytes, 4.0 * 5.0 * 32.0);
        assert_eq!(of(&Case { routing: Routing::NoExpert, ..sized(Op::Delta) }).flops, 0.0);
    }
}
