//! Answers a prompt with the routed mixture.

use crate::engine::host::with_slice;
use crate::engine::linear::Seen;
use crate::engine::model::{Model, Pass};
use crate::engine::setting::Setting;
use crate::engine::tokenizer::Text;
use anyhow::{Result, ensure};
use molora::trace::Trace;
use std::time::{Duration, Instant};

/// How to answer.
pub struct Sampling {
    /// Tokens at most.
    pub max_tokens: usize,
    /// 0 takes the most likely token.
    pub temperature: f64,
    /// Start of the random numbers.
    pub seed: u64,
}

/// A prompt and its answer.
pub struct Answer {
    /// Ids of the prompt and of the answer.
    pub ids: Vec<u32>,
    /// How many of them are the prompt's.
    pub prompt_tokens: usize,
    /// The answer.
    pub text: String,
    /// The experts taken; the last token of the answer was never fed back, so it has none.
    pub trace: Trace,
    /// Time of the prompt.
    pub prompt_time: Duration,
    /// Time of the answer.
    pub answer_time: Duration,
}

/// Continues the prompt; `shown` gets the text as it grows.
pub fn answer(
    model: &mut Model,
    text: &Text,
    experts: &[String],
    prompt: &str,
    setting: &Setting,
    sampling: &Sampling,
    mut shown: impl FnMut(&str),
) -> Result<Answer> {
    let mut ids = text.encode(prompt)?;
    let prompt_tokens = ids.len();
    ensure!(prompt_tokens > 0, "--prompt: expected at least one token, got none");
    let room = model.config().context.saturating_sub(prompt_tokens);
    ensure!(room > 0, "--prompt: expected fewer than {} tokens, got {prompt_tokens}", model.config().context);
    let mut random = Random(sampling.seed);
    let mut cache = model.cache();
    let mut trace = Trace::new(experts);
    let (start, mut prompt_time) = (Instant::now(), Duration::ZERO);
    let mut answer = String::new();
    for step in 0..sampling.max_tokens.min(room) {
        let fed = cache.tokens();
        let x = model.embed(&[&ids[fed..]])?;
        let mut observe = |seen: Seen| seen.record("", &mut trace);
        let mut pass = Pass { setting, cache: Some(&mut cache), observer: Some(&mut observe) };
        let h = model.run(0..model.config().layers, x, &mut pass)?;
        cache.advance(ids.len() - fed);
        let logits = model.logits(&h.get(0)?.narrow(0, ids.len() - fed - 1, 1)?)?;
        let next = with_slice(&logits, |logits| sample(logits, sampling.temperature, &mut random))?;
        if step == 0 {
            prompt_time = start.elapsed();
        }
        if text.is_end(next) {
            break;
        }
        ids.push(next);
        // Decoded as a whole: a letter may be spread over several tokens.
        let all = text.decode(&ids[prompt_tokens..])?;
        if let Some(new) = all.strip_prefix(&answer).filter(|new| !new.ends_with('\u{fffd}')) {
            shown(new);
            answer = all;
        }
    }
    let answer = text.decode(&ids[prompt_tokens..])?;
    Ok(Answer {
        ids,
        prompt_tokens,
        text: answer,
        trace,
        prompt_time,
        answer_time: start.elapsed() - prompt_time,
    })
}

/// The most likely id, or a random one by the softmax of the logits over the temperature.
fn sample(logits: &[f32], temperature: f64, random: &mut Random) -> u32 {
    let best = (0..logits.len()).fold(0, |best, id| if logits[id] > logits[best] { id } else { best });
    if temperature <= 0.0 {
        return best as u32;
    }
    let weight = |value: f32| (f64::from(value - logits[best]) / temperature).exp();
    let mut left = random.next() * logits.iter().map(|&value| weight(value)).sum::<f64>();
    for (id, &value) in logits.iter().enumerate() {
        left -= weight(value);
        if left <= 0.0 {
            return id as u32;
        }
    }
    best as u32
}

/// Splitmix64: small, and the same on every machine.
struct Random(u64);

impl Random {
    /// Between 0 and 1.
    fn next(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_temperature_takes_the_first_of_the_best() {
        let mut random = Random(1);
        assert_eq!(sample(&[1.0, 3.0, 3.0, 2.0], 0.0, &mut random), 1);
    }

    #[test]
    fn temperature_follows_the_softmax() {
        let mut random = Random(1);
        // Odds 3 to 1.
        let logits = [0.0, 3f32.ln()];
        let ones = (0..4000).filter(|_| sample(&logits, 1.0, &mut random) == 1).count();
        assert!((2850..3150).contains(&ones), "{ones}");
        let ones = (0..100).filter(|_| sample(&logits, 0.05, &mut random) == 1).count();
        assert_eq!(ones, 100);
    }
}
