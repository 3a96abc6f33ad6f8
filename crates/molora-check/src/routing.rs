//! The shapes of routing that tests and benches name.

use crate::rng::Rng;

/// Which experts the tokens choose.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Routing {
    /// Every token chooses the same experts.
    Identical,
    /// Route n goes to expert n, round and round: as many experts as possible.
    Distinct,
    /// Every token draws different experts, all equally likely.
    Uniform,
    /// Expert e is drawn in proportion to `1 / (e + 1)^1.5`.
    Zipf,
    /// Nine tokens of ten choose expert 0 first.
    Skewed,
    /// All routes go to one expert, so tokens repeat it.
    OneExpert,
    /// Only every fourth expert is drawn.
    EmptyExperts,
    /// Uniform, with -1 anywhere and tokens of nothing else.
    WithGaps,
    /// Every token repeats one expert in all its slots, each token another.
    Repeated,
    /// -1 everywhere.
    NoExpert,
    /// For `route`: scores of small integers, full of exact ties.
    Ties,
}

impl Routing {
    /// All that make ids, in the order of the tests' tables.
    pub const ALL: [Self; 10] = [
        Self::Identical,
        Self::Distinct,
        Self::Uniform,
        Self::Zipf,
        Self::Skewed,
        Self::OneExpert,
        Self::EmptyExperts,
        Self::WithGaps,
        Self::Repeated,
        Self::NoExpert,
    ];

    /// The name in case strings.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Identical => "identical",
            Self::Distinct => "distinct",
            Self::Uniform => "uniform",
            Self::Zipf => "zipf1.5",
            Self::Skewed => "skewed",
            Self::OneExpert => "one_expert",
            Self::EmptyExperts => "empty_experts",
            Self::WithGaps => "with_gaps",
            Self::Repeated => "repeated",
            Self::NoExpert => "no_expert",
            Self::Ties => "ties",
        }
    }

    /// `topk_ids [tokens, top_k]`.
    pub fn ids(self, tokens: usize, top_k: usize, experts: usize, rng: &mut Rng) -> Vec<i32> {
        if experts == 0 || self == Self::NoExpert {
            return vec![-1; tokens * top_k];
        }
        let fixed = draw(top_k, experts, rng, |rng| rng.below(experts));
        let weights: Vec<f64> = (0..experts).map(|e| ((e + 1) as f64).powf(-1.5)).collect();
        let total: f64 = weights.iter().sum();
        let zipf = |rng: &mut Rng| {
            let mut left = f64::from(rng.unit()) * total;
            weights.iter().position(|w| (left -= w, left < 0.0).1).unwrap_or(experts - 1)
        };
        let mut ids = Vec::with_capacity(tokens * top_k);
        for t in 0..tokens {
            let mut row = match self {
                Self::Identical => fixed.clone(),
                Self::Distinct => (0..top_k).map(|j| (t * top_k + j) % experts).collect(),
                Self::Zipf => draw(top_k, experts, rng, zipf),
                Self::OneExpert => vec![experts / 2; top_k],
                Self::Repeated => vec![rng.below(experts); top_k],
                Self::EmptyExperts => {
                    let used = experts.div_ceil(4);
                    draw(top_k, used, rng, |rng| rng.below(used)).into_iter().map(|e| e * 4).collect()
                }
                _ => draw(top_k, experts, rng, |rng| rng.below(experts)),
            };
            if self == Self::Skewed && rng.below(10) < 9 {
                // Expert 0 comes first; where it was already chosen the two change places.
                match row.iter().position(|&e| e == 0) {
                    Some(j) => row.swap(0, j),
                    None => row.iter_mut().take(1).for_each(|e| *e = 0),
                }
            }
            let empty = self == Self::WithGaps && t % 5 == 3;
            ids.extend(row.into_iter().map(|e| {
                let gap = self == Self::WithGaps && rng.below(3) == 0;
                if gap || empty { -1 } else { e as i32 }
            }));
        }
        ids
    }
}

/// `top_k` draws, different ones for as long as there are any left.
fn draw(top_k: usize, experts: usize, rng: &mut Rng, mut one: impl FnMut(&mut Rng) -> usize) -> Vec<usize> {
    let mut row: Vec<usize> = Vec::with_capacity(top_k);
    for j in 0..top_k {
        let round = &row[j / experts * experts..];
        let mut e = one(rng);
        // A steep distribution may repeat itself for long: after a few draws take the next free one.
        for _ in 0..16 {
            if !round.contains(&e) {
                break;
            }
            e = one(rng);
        }
        while round.contains(&e) {
            e = (e + 1) % experts;
        }
        row.push(e);
    }
    row
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_are_what_they_say() {
        let ids = |shape: Routing, k: usize, e: usize| shape.ids(200, k, e, &mut Rng::new(5));
        for shape in Routing::ALL {
            for (k, e) in [(1, 1), (2, 8), (8, 8), (5, 3), (2, 0)] {
                let ids = ids(shape, k, e);
                assert_eq!(ids.len(), 200 * k);
                assert!(ids.iter().all(|&id| id >= -1 && id < e.max(1) as i32), "{shape:?} {k} of {e}");
            }
        }
        assert!(ids(Routing::Uniform, 2, 8).chunks(2).all(|row| row[0] != row[1]));
        assert!(
            ids(Routing::Identical, 2, 8).chunks(2).all(|row| row == &ids(Routing::Identical, 2, 8)[..2])
        );
        assert!(ids(Routing::Repeated, 2, 8).chunks(2).all(|row| row[0] == row[1]));
        assert!(ids(Routing::EmptyExperts, 2, 8).iter().all(|id| id % 4 == 0));
        assert!(ids(Routing::WithGaps, 2, 8).chunks(2).any(|row| row == [-1, -1]));
        assert!(ids(Routing::WithGaps, 2, 8).chunks(2).any(|row| row[0] == -1 && row[1] >= 0));
        let firsts = ids(Routing::Skewed, 2, 8).chunks(2).filter(|row| row[0] == 0).count();
        assert!((170..=199).contains(&firsts), "{firsts}");
        let zipf = ids(Routing::Zipf, 1, 64);
        let count = |e| zipf.iter().filter(|&&id| id == e).count();
        assert!(count(0) > 50 && count(0) > count(1) && count(1) > count(20));
    }
}
