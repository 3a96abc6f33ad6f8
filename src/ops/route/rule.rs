//! What a router takes of a token's scores, and what weights it gives.

use super::OP;
use crate::error::{Error, Result};

/// How selected scores become weights. p is softmax over all experts that the token may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Weighting {
    /// Softmax over the selected: the same function as softmax over all, renormalised.
    SoftmaxSelected,
    /// p: the selected keep their share, which sums to less than 1.
    SoftmaxAll,
    /// p, divided by the selected shares' sum.
    SoftmaxAllRenormalised,
    /// Softmax over the selected of p (HMoRA, X-LoRA).
    SoftmaxTwice,
    /// What p has above the [threshold](Select::Threshold), divided by the selected ones' sum (AdaMoLE).
    AboveThreshold,
    /// `1 / (1 + exp(-z))`.
    Sigmoid,
    /// 1 / the number of selected.
    Uniform,
    /// The score itself (retrieval).
    Score,
}

impl Weighting {
    /// All of them, in the order of the tests' tables.
    pub const ALL: [Self; 8] = [
        Self::SoftmaxSelected,
        Self::SoftmaxAll,
        Self::SoftmaxAllRenormalised,
        Self::SoftmaxTwice,
        Self::AboveThreshold,
        Self::Sigmoid,
        Self::Uniform,
        Self::Score,
    ];

    /// Those that a [plain](Rule::is_plain) choice may have.
    pub const PLAIN: [Self; 3] = [Self::SoftmaxSelected, Self::SoftmaxAll, Self::SoftmaxAllRenormalised];

    /// The name in case strings.
    pub const fn name(self) -> &'static str {
        match self {
            Self::SoftmaxSelected => "softmax_selected",
            Self::SoftmaxAll => "softmax_all",
            Self::SoftmaxAllRenormalised => "softmax_all_renormalised",
            Self::SoftmaxTwice => "softmax_twice",
            Self::AboveThreshold => "above_threshold",
            Self::Sigmoid => "sigmoid",
            Self::Uniform => "uniform_weights",
            Self::Score => "score",
        }
    }
}

/// Which of the best scores are taken.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub enum Select {
    /// The `top_k` best.
    TopK,
    /// Of the `top_k` best those whose p is above this; may be none.
    Threshold(f32),
    /// Of the `top_k` best those whose p is above this number times the sigmoid of the router's last row's score, which is
    /// no expert's; may be none (AdaMoLE).
    LearnedThreshold(f32),
}

impl Select {
    /// Rows that the router has behind its experts'.
    pub const fn rows(self) -> usize {
        matches!(self, Self::LearnedThreshold(_)) as usize
    }

    /// The threshold of p, from the score of the last row; `None` where there is none.
    pub(super) fn threshold(self, last: impl FnOnce() -> f32) -> Option<f32> {
        match self {
            Self::TopK => None,
            Self::Threshold(threshold) => Some(threshold),
            Self::LearnedThreshold(most) => Some(most * sigmoid(last())),
        }
    }
}

/// From scores to a token's ids and weights: a mask (see [`Allow`](super::Allow)), then the `top_k` best, best first, ties to
/// the lowest expert, then `select`, then `weighting`, then the shared experts.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rule {
    /// Experts selected by score, at most; all of them where it is the number of experts.
    pub top_k: usize,
    /// Which of these.
    pub select: Select,
    /// Scores to weights.
    pub weighting: Weighting,
    /// Experts that every token takes with weight 1 (MedCare): the slots behind the router's experts, in the last columns.
    pub shared: usize,
}

/// Scores that are looked at together.
const SCORES: usize = 16;

impl Rule {
    /// The `top_k` best.
    pub const fn top_k(top_k: usize, weighting: Weighting) -> Self {
        Self { top_k, select: Select::TopK, weighting, shared: 0 }
    }

    /// Columns of ids and weights. A place that stays empty is id -1, weight 0.
    pub const fn width(&self) -> usize {
        self.top_k.saturating_add(self.shared)
    }

    /// Whether the choice is the best scores of all experts under a softmax, as the dense form's first product makes it too.
    pub fn is_plain(&self) -> bool {
        self.select == Select::TopK && self.shared == 0 && Weighting::PLAIN.contains(&self.weighting)
    }

    /// Refuses a threshold that is no share, and weights of a threshold without one.
    pub(crate) fn check(&self) -> Result<()> {
        match self.select {
            Select::TopK if self.weighting == Weighting::AboveThreshold => {
                let expected = "select by threshold, or another weighting";
                Err(Error::argument(OP, "weighting", expected, self.weighting.name()))
            }
            Select::Threshold(t) | Select::LearnedThreshold(t) if !(0.0..=1.0).contains(&t) => {
                Err(Error::argument(OP, "select", "a threshold from 0 to 1", t))
            }
            _ => Ok(()),
        }
    }

    /// Fills `ids` with the `top_k` best of the allowed experts, best first; how many there are.
    fn list_best(
        &self,
        scores: &[f32],
        experts: usize,
        allowed: &impl Fn(usize) -> bool,
        ids: &mut [i32],
    ) -> usize {
        // What a score must be above to be listed.
        let least = |listed: &[i32]| match listed.last() {
            _ if listed.len() < self.top_k => f32::NEG_INFINITY,
            Some(&worst) => scores[worst as usize],
            None => f32::INFINITY,
        };
        let mut chosen = 0;
        for first in (0..experts).step_by(SCORES) {
            let some = first..experts.min(first + SCORES);
            // Most are worse than the worst of a full list, and are passed over together.
            let bar = least(&ids[..chosen]);
            if !scores[some.clone()].iter().fold(false, |any, &z| any | (z > bar)) {
                continue;
            }
            for e in some.filter(|&e| allowed(e)) {
                if scores[e] <= least(&ids[..chosen]) {
                    continue;
                }
                // Insertion into a list sorted best first; an equal score stays behind the lower expert.
                let better = |&i: &i32| scores[e] > scores[i as usize];
                let place = ids[..chosen].iter().position(better).unwrap_or(chosen);
                let end = chosen.min(self.top_k - 1);
                ids.copy_within(place..end, place + 1);
                ids[place] = e as i32;
                chosen = (chosen + 1).min(self.top_k);
            }
        }
        chosen
    }

    /// Chooses and weighs from one token's finite scores; `allowed` says which experts the token may take.
    ///
    /// `scores` is `[experts + select.rows()]`, `ids` and `weights` are `[width]`.
    pub(super) fn apply(
        &self,
        scores: &[f32],
        allowed: impl Fn(usize) -> bool,
        ids: &mut [i32],
        weights: &mut [f32],
    ) {
        let experts = scores.len() - self.select.rows();
        ids.fill(-1);
        weights.fill(0.0);
        for j in 0..self.shared {
            ids[self.top_k + j] = (experts + j) as i32;
            weights[self.top_k + j] = 1.0;
        }
        let mut chosen = self.list_best(scores, experts, &allowed, ids);
        if chosen == 0 {
            return;
        }
        let largest = scores[ids[0] as usize];
        let total = || (0..experts).filter(|&e| allowed(e)).map(|e| (scores[e] - largest).exp()).sum();
        let share = |id: i32, total: f32| (scores[id as usize] - largest).exp() / total;
        let threshold = self.select.threshold(|| scores[experts]);
        if let Some(threshold) = threshold {
            let total = total();
            let kept = ids[..chosen].iter().take_while(|&&id| share(id, total) > threshold).count();
            ids[kept..chosen].fill(-1);
            chosen = kept;
        }
        let (ids, weights) = (&ids[..chosen], &mut weights[..chosen]);
        let mut each = |weight: &dyn Fn(i32) -> f32| {
            weights.iter_mut().zip(ids).for_each(|(w, &id)| *w = weight(id));
        };
        match self.weighting {
            Weighting::SoftmaxSelected | Weighting::SoftmaxAllRenormalised => each(&|id| share(id, 1.0)),
            Weighting::SoftmaxAll => {
                let total = total();
                each(&|id| share(id, total));
            }
            Weighting::SoftmaxTwice => {
                let total = total();
                each(&|id| share(id, total).exp());
            }
            Weighting::AboveThreshold => {
                let total = total();
                each(&|id| share(id, total) - threshold.unwrap_or(0.0));
            }
            Weighting::Sigmoid => each(&|id| sigmoid(scores[id as usize])),
            Weighting::Uniform => each(&|_| 1.0 / chosen as f32),
            Weighting::Score => each(&|id| scores[id as usize]),
        }
        use Weighting::{AboveThreshold, SoftmaxAllRenormalised, SoftmaxSelected, SoftmaxTwice};
        if [SoftmaxSelected, SoftmaxAllRenormalised, SoftmaxTwice, AboveThreshold].contains(&self.weighting) {
            let sum: f32 = weights.iter().sum();
            weights.iter_mut().for_each(|w| *w /= sum);
        }
    }
}

fn sigmoid(z: f32) -> f32 {
    1.0 / (1.0 + (-z).exp())
}
