//! Traces: which adapters each token took in each layer, with which weights; counters over them; JSON lines.
//!
//! A trace is recorded on the host from the routing that a call leaves in the engine's memory:
//!
//! ```
//! # fn main() -> molora::Result<()> {
//! let mut trace = molora::trace::Trace::new(["law", "clinic"]);
//! trace.record("layers.0.up_proj", 2, &[1, 0, 0, -1], &[0.75, 0.25, 1.0, 0.0])?; // two tokens
//! assert_eq!(trace.counters()[0].routes, 2);
//! trace.write_jsonl(std::io::sink())
//! # }
//! ```
//!
//! The first line of a file names the adapters, `{"molora_trace":1,"names":["law","clinic"]}`; then come, in any order, one
//! line for each layer and token, `{"layer":"layers.0.up_proj","token":0,"experts":[1,0],"weights":[0.75,0.25]}`, best
//! first, a layer's tokens counted from 0; and one for each part of the tokens that has labels,
//! `{"part":"prompt","tokens":["Hello"," you"]}`.

use crate::error::{Error, Result};
use crate::ops::check_len;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io::{BufRead, Write};

const OP: &str = "trace";
const VERSION: u32 = 1;

/// What some layers chose for some tokens.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Trace {
    names: Vec<String>,
    layers: Vec<LayerTrace>,
    places: BTreeMap<String, usize>,
    parts: Vec<Part>,
}

/// One layer's choices, token after token.
#[derive(Debug, Clone, PartialEq)]
pub struct LayerTrace {
    name: String,
    /// Where each token's routes begin, and where the last one's end.
    starts: Vec<usize>,
    ids: Vec<u32>,
    weights: Vec<f32>,
}

/// Some tokens that belong together, such as a prompt's; the parts' tokens follow one another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// What they are.
    pub title: String,
    /// One for each token.
    pub labels: Vec<String>,
}

/// How much one adapter had to do, over all layers and tokens.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Counter {
    /// The adapter.
    pub name: String,
    /// How often it was chosen.
    pub routes: u64,
    /// The sum of its weights.
    pub weight: f64,
    /// How often it was a token's first choice.
    pub first: u64,
}

impl Trace {
    /// An empty trace; the names are those of the ids 0, 1, ..
    pub fn new(names: impl IntoIterator<Item = impl Into<String>>) -> Self {
        Self { names: names.into_iter().map(Into::into).collect(), ..Self::default() }
    }

    /// The adapters, in the order of their ids.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// The layers, in the order in which they were first recorded.
    pub fn layers(&self) -> &[LayerTrace] {
        &self.layers
    }

    /// The parts, in the order in which they were added.
    pub fn parts(&self) -> &[Part] {
        &self.parts
    }

    /// Tokens that every layer has seen.
    pub fn tokens(&self) -> usize {
        self.layers.iter().map(LayerTrace::tokens).min().unwrap_or(0)
    }

    /// Names the next tokens, for a picture.
    pub fn add_part(&mut self, title: impl Into<String>, labels: Vec<String>) {
        self.parts.push(Part { title: title.into(), labels });
    }

    /// Appends the routing of one call of one layer: `ids` and `weights` `[tokens, top_k]`, best first, -1 for no expert.
    ///
    /// Refuses lengths that do not fit, ids without a name and weights that are not finite; the trace is then as it was.
    pub fn record(&mut self, layer: &str, top_k: usize, ids: &[i32], weights: &[f32]) -> Result<()> {
        if top_k == 0 {
            return Err(Error::argument(OP, "top_k", "at least 1", top_k));
        }
        if !ids.len().is_multiple_of(top_k) {
            return Err(Error::argument(OP, "topk_ids", format!("a multiple of top_k, {top_k}"), ids.len()));
        }
        check_len(OP, "topk_weights", ids.len(), weights.len())?;
        for (i, (&id, &weight)) in ids.iter().zip(weights).enumerate() {
            if id < -1 || usize::try_from(id).is_ok_and(|id| id >= self.names.len()) {
                let expected = format!("-1 or an id below {}", self.names.len());
                return Err(Error::argument(OP, format!("topk_ids[{i}]"), expected, id));
            }
            if id >= 0 && !weight.is_finite() {
                return Err(Error::argument(OP, format!("topk_weights[{i}]"), "a finite weight", weight));
            }
        }
        let layer = self.layer_mut(layer);
        for (ids, weights) in ids.chunks_exact(top_k).zip(weights.chunks_exact(top_k)) {
            let live = ids.iter().zip(weights).filter(|(id, _)| **id >= 0);
            layer.push(live.map(|(&id, &weight)| (id as u32, weight)));
        }
        Ok(())
    }

    fn layer_mut(&mut self, name: &str) -> &mut LayerTrace {
        let place = match self.places.get(name) {
            Some(&place) => place,
            None => {
                let empty = LayerTrace {
                    name: name.to_owned(),
                    starts: vec![0],
                    ids: Vec::new(),
                    weights: Vec::new(),
                };
                self.layers.push(empty);
                self.places.insert(name.to_owned(), self.layers.len() - 1);
                self.layers.len() - 1
            }
        };
        &mut self.layers[place]
    }

    /// One counter for each adapter, in the order of their ids.
    pub fn counters(&self) -> Vec<Counter> {
        let zero = |name: &String| Counter { name: name.clone(), routes: 0, weight: 0.0, first: 0 };
        let mut counters: Vec<Counter> = self.names.iter().map(zero).collect();
        for layer in &self.layers {
            for (place, (id, weight)) in layer.all() {
                let counter = &mut counters[id];
                counter.routes += 1;
                counter.weight += f64::from(weight);
                counter.first += u64::from(place == 0);
            }
        }
        counters
    }

    /// Writes JSON lines.
    pub fn write_jsonl(&self, mut to: impl Write) -> Result<()> {
        let mut line = |line: &Line| -> std::io::Result<()> {
            serde_json::to_writer(&mut to, line)?;
            to.write_all(b"\n")
        };
        let mut write = || -> std::io::Result<()> {
            line(&Line::Names { molora_trace: VERSION, names: self.names.clone() })?;
            for Part { title, labels } in &self.parts {
                line(&Line::Part { part: title.clone(), tokens: labels.clone() })?;
            }
            for layer in &self.layers {
                for token in 0..layer.tokens() {
                    let (experts, weights) = layer.of(token).map(|(id, weight)| (id as u32, weight)).unzip();
                    line(&Line::Choice { layer: layer.name.clone(), token, experts, weights })?;
                }
            }
            Ok(())
        };
        write().and_then(|()| to.flush()).map_err(|e| Error::format(OP, "write", "a place to write to", e))
    }

    /// Reads what [`write_jsonl`](Self::write_jsonl) wrote, or what another program wrote like it.
    pub fn read_jsonl(from: impl BufRead) -> Result<Self> {
        let mut trace: Option<Self> = None;
        for (number, text) in from.lines().enumerate() {
            let item = || format!("line {}", number + 1);
            let text = text.map_err(|e| Error::format(OP, item(), "a line of text", e))?;
            let line = serde_json::from_str(&text)
                .map_err(|e| Error::format(OP, item(), "names, a choice or a part", e))?;
            match (&mut trace, line) {
                (None, Line::Names { molora_trace: VERSION, names }) => trace = Some(Self::new(names)),
                (None, Line::Names { molora_trace, .. }) => {
                    return Err(Error::format(OP, item(), format!("version {VERSION}"), molora_trace));
                }
                (None, _) => return Err(Error::format(OP, item(), "the names first", "another line")),
                (Some(_), Line::Names { .. }) => {
                    return Err(Error::format(OP, item(), "the names once", "them again"));
                }
                (Some(trace), Line::Part { part, tokens }) => trace.add_part(part, tokens),
                (Some(trace), Line::Choice { layer, token, experts, weights }) => {
                    trace
                        .read_choice(&layer, token, &experts, &weights)
                        .map_err(|(expected, got)| Error::format(OP, item(), expected, got))?;
                }
            }
        }
        trace.ok_or_else(|| Error::format(OP, "line 1", "the names", "an empty file"))
    }

    /// Appends one line's token, or says what was expected and what came.
    fn read_choice(
        &mut self,
        layer: &str,
        token: usize,
        experts: &[u32],
        weights: &[f32],
    ) -> std::result::Result<(), (String, String)> {
        let adapters = self.names.len();
        if let Some(id) = experts.iter().find(|id| **id as usize >= adapters) {
            return Err((format!("ids below {adapters}"), id.to_string()));
        }
        if experts.len() != weights.len() {
            return Err((format!("{} weights", experts.len()), weights.len().to_string()));
        }
        if let Some(weight) = weights.iter().find(|weight| !weight.is_finite()) {
            return Err(("finite weights".to_owned(), weight.to_string()));
        }
        let next = self.places.get(layer).map_or(0, |&place| self.layers[place].tokens());
        if token != next {
            return Err((format!("token {next} of {layer:?}"), token.to_string()));
        }
        self.layer_mut(layer).push(experts.iter().copied().zip(weights.iter().copied()));
        Ok(())
    }
}

impl LayerTrace {
    /// The layer, as it was named when it was recorded.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Tokens recorded.
    pub fn tokens(&self) -> usize {
        self.starts.len() - 1
    }

    /// The adapters of one token with their weights, best first; none for a token beyond the last.
    pub fn of(&self, token: usize) -> impl Iterator<Item = (usize, f32)> + '_ {
        let range = match self.starts.get(token..token + 2) {
            Some(&[start, end]) => start..end,
            _ => 0..0,
        };
        self.ids[range.clone()].iter().map(|&id| id as usize).zip(self.weights[range].iter().copied())
    }

    /// Every route: its place in its token's list, the adapter and the weight.
    fn all(&self) -> impl Iterator<Item = (usize, (usize, f32))> + '_ {
        (0..self.tokens()).flat_map(|token| self.of(token).enumerate())
    }

    fn push(&mut self, routes: impl Iterator<Item = (u32, f32)>) {
        for (id, weight) in routes {
            self.ids.push(id);
            self.weights.push(weight);
        }
        self.starts.push(self.ids.len());
    }
}

/// One line of a file.
#[derive(Serialize, Deserialize)]
#[serde(untagged, deny_unknown_fields)]
enum Line {
    Names { molora_trace: u32, names: Vec<String> },
    Choice { layer: String, token: usize, experts: Vec<u32>, weights: Vec<f32> },
    Part { part: String, tokens: Vec<String> },
}
