//! The text of a case: `shrink/wgpu/f16/t256_k2_e8_r16_i4096_zipf1.5`. Running with it reruns the case.

use crate::case::{Case, Op, Scores, Threshold};
use crate::routing::Routing;
use molora::element::ElementType;
use molora::ops::fused::Form;
use molora::ops::{Output, grouped, route::Weighting};
use std::fmt;
use std::str::FromStr;

/// The word for an x with a row a route.
const X_PER_ROUTE: &str = "x_per_route";
/// The word for allow-lists.
const MASKED: &str = "masked";

impl Case {
    /// The text with the device in it.
    pub fn label(&self, device: &str) -> String {
        format!("{}/{device}/{}/{}", self.op.name(), self.elements(), self.sizes())
    }

    fn elements(&self) -> String {
        match self.x == self.adapters {
            true => self.x.to_string(),
            false => format!("{}+{}", self.x, self.adapters),
        }
    }

    fn sizes(&self) -> String {
        let uses = self.op.uses();
        let mut parts = vec![format!("t{}", self.tokens)];
        if uses.routing {
            parts.push(format!("k{}", self.top_k));
            parts.extend((self.op == Op::Grouped).then(|| format!("g{}", self.group.experts)));
            parts.push(format!("e{}", self.experts));
        }
        if uses.adapters {
            let ranks: Vec<String> = self.ranks.iter().map(usize::to_string).collect();
            parts.push(format!("r{}", ranks.join("-")));
        }
        parts.extend((self.op == Op::Attend).then(|| format!("q{}", self.router_rank)));
        parts.extend(uses.in_features.then(|| format!("i{}", self.in_features)));
        parts.extend(uses.out_features.then(|| format!("o{}", self.out_features)));
        parts.extend(uses.routing.then(|| self.routing.name().into()));
        if self.op == Op::Grouped {
            parts.push(self.group.rows.name().into());
            parts.extend(self.group.x_per_route.then(|| X_PER_ROUTE.into()));
        }
        parts.extend((self.output != Output::Sum).then(|| self.output.name().into()));
        parts.extend(self.form.map(|form| form.name().into()));
        parts.extend((self.slices > 1).then(|| format!("s{}", self.slices)));
        if self.op == Op::Route {
            let scoring = self.scoring;
            parts.push(self.weighting.name().into());
            parts.extend((scoring.scores != Scores::Linear).then(|| scoring.scores.name().into()));
            parts.extend((scoring.threshold != Threshold::None).then(|| scoring.threshold.name().into()));
            parts.extend(scoring.masked.then(|| MASKED.into()));
            parts.extend((scoring.shared > 0).then(|| format!("shared{}", scoring.shared)));
        }
        parts.extend((self.accumulate && self.op != Op::Delta).then(|| "add".into()));
        parts.extend(self.bias.then(|| "bias".into()));
        parts.extend((self.padding > 0).then(|| format!("pad{}", self.padding)));
        parts.extend((self.seed > 0).then(|| format!("seed{}", self.seed)));
        parts.join("_")
    }
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.op.name(), self.elements(), self.sizes())
    }
}

/// A case and, where the text names one, the device that shall run it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Named {
    /// The case.
    pub case: Case,
    /// `cpu`, `wgpu`, ..
    pub device: Option<String>,
}

impl FromStr for Named {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = |what: &str| format!("case {text:?}: {what}");
        let mut parts: Vec<&str> = text.trim().split('/').collect();
        let device = (parts.len() == 4).then(|| parts.remove(1).to_string());
        let [op, elements, sizes] = parts[..] else {
            return Err(wrong("expected op/elements/sizes or op/device/elements/sizes"));
        };
        let op = named(&Op::ALL, Op::name, op).ok_or_else(|| wrong("unknown operation"))?;
        let element = |name| named(&ElementType::ALL, ElementType::name, name);
        let (x, adapters) = elements.split_once('+').unwrap_or((elements, elements));
        let (Some(x), Some(adapters)) = (element(x), element(adapters)) else {
            return Err(wrong("elements are f32, f16 or bf16, or two of them with + between"));
        };
        let mut case = Case { x, adapters, ..Case::new(op) };
        let mut rest = sizes;
        while !rest.is_empty() {
            rest = take(&mut case, rest).ok_or_else(|| wrong(&format!("cannot read {rest:?}")))?;
            rest = match rest.strip_prefix('_') {
                Some(more) => more,
                None if rest.is_empty() => rest,
                None => return Err(wrong(&format!("expected _ before {rest:?}"))),
            };
        }
        Ok(Self { case, device })
    }
}

impl FromStr for Case {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Ok(text.parse::<Named>()?.case)
    }
}

fn named<T: Copy>(all: &[T], name: impl Fn(T) -> &'static str, text: &str) -> Option<T> {
    all.iter().copied().find(|&v| name(v) == text)
}

/// Reads one size or word into the case and returns what follows.
fn take<'a>(case: &mut Case, text: &'a str) -> Option<&'a str> {
    // The longest word first: one name may begin another.
    let words = Routing::ALL.iter().chain(&[Routing::Ties]).map(|r| r.name());
    let words = words.chain(Output::ALL.map(Output::name)).chain(Weighting::ALL.map(Weighting::name));
    let words = words.chain(Form::ALL.map(Form::name)).chain(grouped::Rows::ALL.map(grouped::Rows::name));
    let words = words.chain(Scores::ALL.map(Scores::name)).chain(Threshold::ALL.map(Threshold::name));
    let word = words
        .chain(["add", "bias", MASKED, X_PER_ROUTE])
        .filter(|w| text.starts_with(w))
        .max_by_key(|w| w.len());
    if let Some(word) = word {
        let mut all = Routing::ALL.iter().copied().chain([Routing::Ties]);
        if let Some(routing) = all.find(|r| r.name() == word) {
            case.routing = routing;
        }
        case.output = named(&Output::ALL, Output::name, word).unwrap_or(case.output);
        case.weighting = named(&Weighting::ALL, Weighting::name, word).unwrap_or(case.weighting);
        case.form = named(&Form::ALL, Form::name, word).or(case.form);
        case.group.rows = named(&grouped::Rows::ALL, grouped::Rows::name, word).unwrap_or(case.group.rows);
        case.group.x_per_route |= word == X_PER_ROUTE;
        let scoring = &mut case.scoring;
        scoring.scores = named(&Scores::ALL, Scores::name, word).unwrap_or(scoring.scores);
        scoring.threshold = named(&Threshold::ALL, Threshold::name, word).unwrap_or(scoring.threshold);
        scoring.masked |= word == MASKED;
        case.accumulate |= word == "add";
        case.bias |= word == "bias";
        return Some(&text[word.len()..]);
    }
    let digits = text.find(|c: char| c.is_ascii_digit())?;
    let (name, numbers) = text.split_at(digits);
    let end = numbers.find(|c: char| !c.is_ascii_digit() && c != '-').unwrap_or(numbers.len());
    let (numbers, rest) = numbers.split_at(end);
    if name == "r" {
        case.ranks = numbers.split('-').map(|n| n.parse().ok()).collect::<Option<_>>()?;
        return Some(rest);
    }
    let number: usize = numbers.parse().ok()?;
    match name {
        "t" => case.tokens = number,
        "k" => case.top_k = number,
        "g" => case.group.experts = number,
        "e" => case.experts = number,
        "i" => case.in_features = number,
        "o" => case.out_features = number,
        "q" if case.op == Op::Attend => case.router_rank = number,
        "s" => case.slices = number,
        "shared" => case.scoring.shared = number,
        "pad" => case.padding = number,
        "seed" => case.seed = number as u64,
        _ => return None,
    }
    Some(rest)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::{Extent, cases};

    #[test]
    fn every_case_of_the_table_is_read_back() {
        for op in Op::ALL {
            for case in cases(op, Extent::Long) {
                assert_eq!(case.to_string().parse::<Case>(), Ok(case.clone()), "{case}");
                let named = case.label("wgpu").parse::<Named>().unwrap();
                assert_eq!((named.case, named.device.as_deref()), (case, Some("wgpu")));
            }
        }
    }

    #[test]
    fn the_text_is_the_one_of_the_documents() {
        let text = "shrink/wgpu/f16/t256_k2_e8_r16_i4096_zipf1.5";
        assert_eq!(text.parse::<Named>().unwrap().case.label("wgpu"), text);
        for wrong in
            ["", "shrink", "shrink/f64/t1", "swim/f32/t1", "shrink/f32/q1", "shrink/f32/t1x", "plan/f32/t"]
        {
            assert!(wrong.parse::<Case>().is_err(), "{wrong}");
        }
    }
}
