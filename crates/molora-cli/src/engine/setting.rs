//! Which experts a token gets, and what was chosen.

use molora::preset::Given;
use std::fmt;

/// How the experts of every adapted linear are chosen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Setting {
    /// No expert: the bare model.
    Base,
    /// One expert for every token, with weight 1.
    Expert {
        /// Its row in the routers.
        id: usize,
        /// Its name.
        name: String,
    },
    /// The linear's own router takes this many; softmax over those.
    Top(usize),
    /// Every expert with the same weight.
    Uniform,
    /// The linear's gates, as PHATGOOSE scores them.
    Phatgoose(Gates),
    /// Every sequence of a call takes its own experts, with the same weight each; none is the bare model.
    Requests(Vec<Vec<usize>>),
    /// The same, weighed token by token by RAMoLE's attention.
    Attended(Vec<Vec<usize>>),
}

/// Which of a linear's gates.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Gates {
    /// By the published recipe, with the language model's loss.
    Trained,
    /// By logistic regression on their own inputs.
    Logistic,
}

impl Setting {
    /// All settings that the demo compares, in the order of its table.
    pub fn all(experts: &[String]) -> Vec<Self> {
        let mut all = vec![Self::Base];
        all.extend(experts.iter().enumerate().map(|(id, name)| Self::Expert { id, name: name.clone() }));
        all.push(Self::Top(1));
        // With one expert there is no second to take.
        if experts.len() > 1 {
            all.push(Self::Top(2));
        }
        all.push(Self::Uniform);
        all
    }
}

impl fmt::Display for Setting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Base => f.write_str("base"),
            Self::Expert { name, .. } => write!(f, "expert:{name}"),
            Self::Top(k) => write!(f, "top{k}"),
            Self::Uniform => f.write_str("uniform"),
            Self::Phatgoose(Gates::Trained) => f.write_str("phatgoose"),
            Self::Phatgoose(Gates::Logistic) => f.write_str("phatgoose-logistic"),
            Self::Requests(_) => f.write_str("per-request"),
            Self::Attended(_) => f.write_str("ramole"),
        }
    }
}

/// The experts that one linear took for a batch of tokens.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Routing {
    /// Experts for each token.
    pub top_k: usize,
    /// `[tokens, top_k]`, the best first.
    pub ids: Vec<i32>,
    /// `[tokens, top_k]`.
    pub weights: Vec<f32>,
}

impl Routing {
    /// The experts of one token with their weights, the best first.
    pub fn of(&self, token: usize) -> impl Iterator<Item = (usize, f32)> + '_ {
        let range = token * self.top_k..(token + 1) * self.top_k;
        let of = self.ids[range.clone()].iter().zip(&self.weights[range]);
        of.filter_map(|(&id, &weight)| Some((usize::try_from(id).ok()?, weight)))
    }

    /// Ids and weights with each token's largest weight first, which an attention does not leave so.
    pub fn best_first(&self) -> (Vec<i32>, Vec<f32>) {
        let mut routes: Vec<(i32, f32)> =
            self.ids.iter().copied().zip(self.weights.iter().copied()).collect();
        for token in routes.chunks_mut(self.top_k.max(1)) {
            token.sort_by(|a, b| (b.0 >= 0).cmp(&(a.0 >= 0)).then(b.1.total_cmp(&a.1)));
        }
        routes.into_iter().unzip()
    }

    /// The experts of each of some sequences of as many tokens, with the same weight each.
    pub fn fill_sequences(&mut self, tokens: usize, sets: &[Vec<usize>]) -> molora::Result<()> {
        let mut given = Given::new(sets.iter().map(Vec::len).max().unwrap_or(0));
        for set in sets {
            given.push_evenly(tokens / sets.len(), set)?;
        }
        self.top_k = given.top_k();
        (self.ids, self.weights) = (given.topk_ids().to_vec(), given.topk_weights().to_vec());
        Ok(())
    }

    /// The same experts and weights for every one of `tokens`.
    pub fn fill(&mut self, tokens: usize, choice: &[(usize, f32)]) {
        self.top_k = choice.len();
        self.ids.clear();
        self.weights.clear();
        for _ in 0..tokens {
            self.ids.extend(choice.iter().map(|c| c.0 as i32));
            self.weights.extend(choice.iter().map(|c| c.1));
        }
    }
}
