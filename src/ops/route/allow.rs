//! Which experts the tokens of each request may take.

use super::OP;
use crate::error::{Error, Result};

/// Allow-lists of requests, each of which owns a run of consecutive tokens. `L` is a slice or a device's view.
#[derive(Debug, Clone, Copy)]
pub struct Allow<L> {
    /// `[requests + 1]`: request r owns tokens `offsets[r]..offsets[r + 1]`; ascending from 0. Tokens behind the last request
    /// may take nothing.
    pub offsets: L,
    /// `[requests, words]`, `words = experts.div_ceil(32)`: bit `e % 32` of word `e / 32` lets the request's tokens take e.
    pub lists: L,
}

/// Words of one request's list.
pub const fn words(experts: usize) -> usize {
    experts.div_ceil(32)
}

impl<L> Allow<L> {
    /// Requests, from the lengths of the two; refuses lengths that do not fit.
    pub(super) fn requests(&self, experts: usize, len: impl Fn(&L) -> usize) -> Result<usize> {
        let Some(requests) = len(&self.offsets).checked_sub(1) else {
            return Err(Error::argument(OP, "allow.offsets", "requests + 1 elements", 0));
        };
        let expected = requests.saturating_mul(words(experts));
        crate::ops::check_len(OP, "allow.lists", expected, len(&self.lists))?;
        Ok(requests)
    }
}

impl<'a> Allow<&'a [u32]> {
    /// Refuses lengths that do not fit, and runs that are not ascending from 0.
    pub(crate) fn check(&self, experts: usize) -> Result<()> {
        self.requests(experts, |l| l.len())?;
        let ascending = self.offsets.windows(2).all(|w| w[0] <= w[1]) && self.offsets[0] == 0;
        if !ascending {
            let got = format!("{:?}", &self.offsets[..self.offsets.len().min(8)]);
            return Err(Error::argument(OP, "allow.offsets", "ascending from 0", got));
        }
        Ok(())
    }

    /// The list of a token's request; empty behind the last.
    pub(super) fn list(&self, experts: usize, token: usize) -> &'a [u32] {
        // Offsets begin with 0: some request begins at or before the token, of empty ones the last.
        let request = self.offsets.partition_point(|&first| first as usize <= token) - 1;
        self.lists.chunks(words(experts).max(1)).nth(request).unwrap_or_default()
    }
}

/// Whether a list holds an expert; an empty one holds none.
pub(super) fn holds(list: &[u32], e: usize) -> bool {
    list.get(e / 32).is_some_and(|word| word >> (e % 32) & 1 == 1)
}

/// The memory of an [`Allow`], filled request by request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AllowLists {
    experts: usize,
    offsets: Vec<u32>,
    lists: Vec<u32>,
}

impl AllowLists {
    /// No request yet, of a router with so many experts.
    pub fn new(experts: usize) -> Self {
        Self { experts, offsets: vec![0], lists: Vec::new() }
    }

    /// The next request: its tokens, and the experts that they may take.
    pub fn push(&mut self, tokens: usize, experts: impl IntoIterator<Item = usize>) -> Result<()> {
        let last = self.offsets[self.offsets.len() - 1];
        let end = u32::try_from(tokens).ok().and_then(|tokens| last.checked_add(tokens));
        let end = end.ok_or_else(|| Error::argument(OP, "allow.tokens", "below 2^32 in sum", tokens))?;
        let mut list = vec![0; words(self.experts)];
        for e in experts {
            if e >= self.experts {
                let expected = format!("an expert below {}", self.experts);
                return Err(Error::argument(OP, "allow.experts", expected, e));
            }
            list[e / 32] |= 1 << (e % 32);
        }
        self.offsets.push(end);
        self.lists.extend(list);
        Ok(())
    }

    /// The next request, whose tokens may take every expert.
    pub fn push_all(&mut self, tokens: usize) -> Result<()> {
        self.push(tokens, 0..self.experts)
    }

    /// What a CPU router reads, and what a device's buffers are filled from.
    pub fn as_allow(&self) -> Allow<&[u32]> {
        Allow { offsets: &self.offsets, lists: &self.lists }
    }
}
