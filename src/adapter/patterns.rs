//! `rank_pattern` and `alpha_pattern`: numbers for the modules whose paths match a key.
//!
//! PEFT has read them in three ways, and configs before 0.18 do not say which PEFT wrote them:
//!
//! - up to 0.13 one key serves both: the first of rank_pattern's and then alpha_pattern's keys that matches behind a dot;
//! - in 0.14 each has a key of its own;
//! - since then a key may also be the whole path, and alternatives in it stay together.

use super::json::Json;
use crate::error::{Error, Result};
use regex_lite::Regex;

/// One entry.
pub(crate) struct Pattern<T> {
    key: String,
    matches: Regex,
    matched: Regex,
    value: T,
}

/// The value of a module today: that of the first key, in the file's order, that matches the path or its last parts.
pub(crate) fn value<T: Copy>(patterns: &[Pattern<T>], module: &str) -> Option<T> {
    patterns.iter().find(|pattern| pattern.matches.is_match(module)).map(|pattern| pattern.value)
}

/// Whether every PEFT read the same two numbers out of the patterns for this module.
pub(crate) fn always_meant_the_same(ranks: &[Pattern<usize>], alphas: &[Pattern<f64>], module: &str) -> bool {
    let rank_keys = || ranks.iter().map(|p| (p.key.as_str(), &p.matched));
    let alpha_keys = || alphas.iter().map(|p| (p.key.as_str(), &p.matched));
    let first = |mut keys: Box<dyn Iterator<Item = (&str, &Regex)> + '_>| {
        keys.find(|(_, matched)| matched.is_match(module))
            .map_or(module.to_owned(), |(key, _)| key.to_owned())
    };
    let shared = first(Box::new(rank_keys().chain(alpha_keys())));
    let separate = (first(Box::new(rank_keys())), first(Box::new(alpha_keys())));
    let of_keys = |rank_key: &str, alpha_key: &str| {
        let rank = ranks.iter().find(|p| p.key == rank_key).map(|p| p.value);
        (rank, alphas.iter().find(|p| p.key == alpha_key).map(|p| p.value))
    };
    let today = (value(ranks, module), value(alphas, module));
    of_keys(&shared, &shared) == today && of_keys(&separate.0, &separate.1) == today
}

/// Reads the option `item`; `read` says what a value may be, `expected` says it in words.
pub(crate) fn read<T>(
    file: &str,
    item: &str,
    value: &Json,
    expected: &str,
    read: impl Fn(&Json) -> Option<T>,
) -> Result<Vec<Pattern<T>>> {
    let entries = match value {
        Json::Null => return Ok(Vec::new()),
        Json::Object(entries) => entries,
        other => return Err(Error::format(file, item, "an object of patterns", other)),
    };
    let one = |(key, value): &(String, Json)| {
        let item = format!("{item}.{key}");
        let value = read(value).ok_or_else(|| Error::format(file, &item, expected, value))?;
        let matches = regex(file, &item, key, &format!(r"^(.*\.)?({key})$"))?;
        let matched = regex(file, &item, key, &format!(r"^(?:.*\.{key}$)"))?;
        Ok(Pattern { key: key.clone(), matches, matched, value })
    };
    entries.iter().map(one).collect()
}

/// Compiles `whole`, which wraps the file's own `pattern`. Look-around and back-references are refused here.
pub(crate) fn regex(file: &str, item: &str, pattern: &str, whole: &str) -> Result<Regex> {
    Regex::new(pattern)
        .and_then(|_| Regex::new(whole))
        .map_err(|e| Error::format(file, item, "a regular expression without look-around", e))
}
