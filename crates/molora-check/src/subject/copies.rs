//! How often a timed case lies in memory: as an engine's next layer finds its weights, so does the next call, not in a cache.

use crate::case::Op;
use crate::inputs::Inputs;
use crate::machine;

/// Bytes of all copies together, at least and at most; between them twice the processor's last cache.
const BYTES: [u64; 2] = [256 << 20, 640 << 20];
/// Bytes with all that goes along with the copies, on a GPU.
const MOST: u64 = 4 << 30;
/// Smaller copies than this many make time to prepare and no difference.
const MOST_COPIES: u64 = 256;

/// Bytes that a call reads of what an engine keeps: weights, a router, the factors of the adapters.
pub(crate) fn kept(inputs: &Inputs) -> u64 {
    let case = &inputs.case;
    let (rows, columns) = inputs.weight_shape();
    let ranks: usize =
        if case.op.uses().adapters { (0..case.slots()).map(|e| case.rank(e)).sum() } else { 0 };
    let wide = match case.op {
        Op::Shrink => case.in_features,
        Op::Expand => case.out_features,
        Op::Attend => case.router_rank,
        _ => case.in_features + case.out_features,
    };
    let router = if case.op == Op::Route { 4 * case.experts * case.in_features } else { 0 };
    (rows * columns * case.x.bytes() + ranks * wide * case.adapters.bytes() + router) as u64
}

/// Copies for a device whose memory is the processor's (`host`) or its own; `carried`: x, y and h are copied too.
pub(crate) fn copies_of(inputs: &Inputs, host: bool, carried: bool) -> usize {
    let (kept, case) = (kept(inputs), &inputs.case);
    if kept == 0 {
        return 1;
    }
    let wanted = if host { (2 * machine::last_level_cache()).clamp(BYTES[0], BYTES[1]) } else { BYTES[1] };
    let most = if host { machine::memory_available() / 4 } else { MOST };
    let rows = case.tokens * (case.in_features + case.out_features) * case.x.bytes();
    let one = kept + if carried { (rows + 4 * case.routes() * case.max_rank()) as u64 } else { 0 };
    wanted.div_ceil(kept).min(most / one).clamp(1, MOST_COPIES) as usize
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::case::Case;

    #[test]
    fn copies_pass_the_caches_within_memory() {
        let base = Case { in_features: 1024, out_features: 1024, ..Case::new(Op::Base) };
        let inputs = Inputs::new(&base);
        assert_eq!(kept(&inputs), 4 * 1024 * 1024);
        let copies = copies_of(&inputs, true, false) as u64;
        let bounds = BYTES.map(|bytes| bytes / kept(&inputs));
        assert!((bounds[0]..=bounds[1]).contains(&copies), "{copies} of {bounds:?}");
        assert_eq!(copies_of(&inputs, false, true) as u64, bounds[1]);
        assert_eq!(copies_of(&Inputs::new(&Case::new(Op::Plan)), true, true), 1);
        let shrink = Inputs::new(&Case { ranks: vec![4, 8], experts: 2, ..Case::new(Op::Shrink) });
        assert_eq!(kept(&shrink), 4 * 12 * 64);
    }
}
