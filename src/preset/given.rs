//! A call's ids and weights where something else than the layer chooses.

use super::OP;
use crate::error::{Error, Result};
use crate::layer::Routing;
use crate::ops::check_len;

/// Ids and weights of a call, filled request by request in the order of its tokens.
#[derive(Debug, Clone, PartialEq)]
pub struct Given {
    top_k: usize,
    topk_ids: Vec<i32>,
    topk_weights: Vec<f32>,
}

impl Given {
    /// No token yet; `top_k` is the router's.
    pub const fn new(top_k: usize) -> Self {
        Self { top_k, topk_ids: Vec::new(), topk_weights: Vec::new() }
    }

    /// The next request: its tokens, and the slots that each of them takes with their weights; fewer than `top_k` are fine, and
    /// none is the base alone.
    pub fn push(&mut self, tokens: usize, choice: &[(usize, f32)]) -> Result<()> {
        if choice.len() > self.top_k {
            return Err(Error::argument(
                OP,
                "choice",
                format!("at most top_k = {} slots", self.top_k),
                choice.len(),
            ));
        }
        let id = |&(slot, weight): &(usize, f32)| match i32::try_from(slot) {
            Ok(id) if weight.is_finite() => Ok((id, weight)),
            _ => {
                Err(Error::argument(OP, "choice", "a slot and a finite weight", format!("{slot}, {weight}")))
            }
        };
        let mut row = choice.iter().map(id).collect::<Result<Vec<_>>>()?;
        row.resize(self.top_k, (-1, 0.0));
        for _ in 0..tokens {
            self.topk_ids.extend(row.iter().map(|r| r.0));
            self.topk_weights.extend(row.iter().map(|r| r.1));
        }
        Ok(())
    }

    /// The next request with 1/k for each of its k slots (LoraRetriever), or one slot with weight 1.
    pub fn push_evenly(&mut self, tokens: usize, slots: &[usize]) -> Result<()> {
        let choice: Vec<_> = slots.iter().map(|&slot| (slot, 1.0 / slots.len() as f32)).collect();
        self.push(tokens, &choice)
    }

    /// Every expert of every token, `weights [tokens, experts]` (X-LoRA's scalings of one layer).
    pub fn dense(experts: usize, weights: &[f32]) -> Result<Self> {
        if experts == 0 || !weights.len().is_multiple_of(experts) || i32::try_from(experts).is_err() {
            let expected = format!("tokens x {experts} elements, at least one expert");
            return Err(Error::argument(OP, "weights", expected, weights.len()));
        }
        if let Some(at) = weights.iter().position(|w| !w.is_finite()) {
            return Err(Error::argument(OP, format!("weights[{at}]"), "a finite value", weights[at]));
        }
        let topk_ids = (0..weights.len()).map(|n| (n % experts) as i32).collect();
        Ok(Self { top_k: experts, topk_ids, topk_weights: weights.to_vec() })
    }

    /// Slots per token.
    pub const fn top_k(&self) -> usize {
        self.top_k
    }

    /// `[tokens, top_k]`.
    pub fn topk_ids(&self) -> &[i32] {
        &self.topk_ids
    }

    /// `[tokens, top_k]`.
    pub fn topk_weights(&self) -> &[f32] {
        &self.topk_weights
    }

    /// What a call of RAMoLE's layer takes: the ids; the weights are the layer's to write.
    pub fn retrieved(&mut self) -> Routing<'_> {
        Routing::new(&mut self.topk_ids, &mut self.topk_weights)
    }

    /// What a layer's call takes.
    pub fn routing(&mut self) -> Routing<'_> {
        Routing { given: true, ..Routing::new(&mut self.topk_ids, &mut self.topk_weights) }
    }
}

/// The slots of (adapter, expert) pairs: `topk_ids [tokens, top_k]` are the base model's own choice among `experts`, and each
/// token's adapter is one of `adapters`, -1 for none; -1 in either is none here.
pub fn pairs(topk_ids: &[i32], top_k: usize, adapters: &[i32], experts: usize) -> Result<Vec<i32>> {
    check_len(OP, "topk_ids", adapters.len().saturating_mul(top_k), topk_ids.len())?;
    let slot = |(n, &expert): (usize, &i32)| {
        let adapter = adapters[n / top_k.max(1)];
        if expert < -1 || adapter < -1 || usize::try_from(expert).is_ok_and(|e| e >= experts) {
            let expected = format!("an expert from -1 to {experts} (without it), an adapter from -1");
            let got = format!("expert {expert}, adapter {adapter}");
            return Err(Error::argument(OP, format!("topk_ids[{n}]"), expected, got));
        }
        if expert == -1 || adapter == -1 {
            return Ok(-1);
        }
        let slot = i64::from(adapter) * experts as i64 + i64::from(expert);
        i32::try_from(slot).map_err(|_| Error::argument(OP, "adapters", "slots below 2^31", slot))
    };
    topk_ids.iter().enumerate().map(slot).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_become_rows() {
        let mut given = Given::new(2);
        given.push_evenly(2, &[4, 1]).unwrap();
        given.push(1, &[]).unwrap();
        given.push(1, &[(3, 0.25)]).unwrap();
        assert_eq!(given.topk_ids(), [4, 1, 4, 1, -1, -1, 3, -1]);
        assert_eq!(given.topk_weights(), [0.5, 0.5, 0.5, 0.5, 0.0, 0.0, 0.25, 0.0]);
        assert!(given.push_evenly(1, &[0, 1, 2]).is_err());
        assert!(given.push(1, &[(0, f32::NAN)]).is_err());
        assert!(given.push(1, &[(1 << 40, 1.0)]).is_err());
        assert_eq!(given.topk_ids().len(), 8, "what was refused left nothing");
    }

    #[test]
    fn a_dense_matrix_names_every_expert() {
        let given = Given::dense(3, &[0.1, 0.2, 0.7, 1.0, 0.0, 0.0]).unwrap();
        assert_eq!(given.topk_ids(), [0, 1, 2, 0, 1, 2]);
        assert!(Given::dense(0, &[]).is_err() && Given::dense(3, &[0.0; 4]).is_err());
        assert!(Given::dense(1, &[f32::INFINITY]).is_err());
    }

    #[test]
    fn pairs_are_flat_and_keep_gaps() {
        let slots = pairs(&[0, 2, 1, -1, 3, 0], 2, &[1, 0, -1], 4).unwrap();
        assert_eq!(slots, [4, 6, 1, -1, -1, -1]);
        assert!(pairs(&[4], 1, &[0], 4).is_err() && pairs(&[-2], 1, &[0], 4).is_err());
        assert!(pairs(&[0], 1, &[-2], 4).is_err() && pairs(&[0], 1, &[], 4).is_err());
        assert!(pairs(&[0], 1, &[i32::MAX], 4).is_err());
        assert!(pairs(&[], 0, &[7, 8], 4).unwrap().is_empty());
    }
}
