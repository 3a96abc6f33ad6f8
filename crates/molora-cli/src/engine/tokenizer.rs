//! The tokenizer that a GGUF file describes in its metadata: byte-level BPE, digits one by one.

use anyhow::{Context, Result, anyhow, bail};
use candle_core::quantized::gguf_file::{Content, Value};
use std::collections::HashMap;
use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::{AddedToken, PreTokenizerWrapper, Tokenizer};

/// GGUF's mark of a control token.
const CONTROL: i64 = 3;

/// Text to ids and back.
pub struct Text {
    tokenizer: Tokenizer,
    /// Ids that end a text.
    ends: Vec<u32>,
}

impl Text {
    /// Builds it from the file's metadata; `file` is its name in messages.
    pub fn from_gguf(content: &Content, file: &str) -> Result<Self> {
        let metadata = &content.metadata;
        let strings = |key: &str| -> Result<Vec<String>> {
            list(metadata, key, file)?.iter().map(|v| Ok(v.to_string()?.clone())).collect()
        };
        match metadata.get("tokenizer.ggml.model") {
            Some(Value::String(model)) if model == "gpt2" => {}
            other => bail!("{file}: tokenizer.ggml.model: expected gpt2, got {other:?}"),
        }
        let tokens = strings("tokenizer.ggml.tokens")?;
        let merges = strings("tokenizer.ggml.merges")?
            .iter()
            .map(|merge| match merge.split_once(' ') {
                Some((left, right)) => Ok((left.to_owned(), right.to_owned())),
                None => bail!("{file}: tokenizer.ggml.merges: expected two parts, got {merge:?}"),
            })
            .collect::<Result<Vec<_>>>()?;
        let types = list(metadata, "tokenizer.ggml.token_type", file)?;
        let control: Vec<u32> = (0u32..)
            .zip(types)
            .filter(|(_, value)| matches!(value, Value::I32(kind) if i64::from(*kind) == CONTROL))
            .map(|(id, _)| id)
            .collect();
        let special = control.iter().filter_map(|&id| tokens.get(id as usize));
        let special: Vec<AddedToken> = special.map(|token| AddedToken::from(token.clone(), true)).collect();
        let vocabulary: Vocab = tokens.into_iter().zip(0..).collect();
        let bpe = BPE::builder()
            .vocab_and_merges(vocabulary, merges)
            .build()
            .map_err(|e| anyhow!("{file}: {e}"))?;
        let mut tokenizer = Tokenizer::new(bpe);
        let byte_level = ByteLevel::default().add_prefix_space(false);
        tokenizer.with_pre_tokenizer(Some(Sequence::new(vec![
            PreTokenizerWrapper::Digits(Digits::new(true)),
            PreTokenizerWrapper::ByteLevel(byte_level),
        ])));
        tokenizer.with_decoder(Some(byte_level));
        tokenizer.add_special_tokens(special).map_err(|e| anyhow!("{file}: {e}"))?;
        let mut ends: Vec<u32> = tokenizer.token_to_id("<|endoftext|>").into_iter().collect();
        if let Some(Value::U32(id)) = metadata.get("tokenizer.ggml.eos_token_id") {
            ends.push(*id);
        }
        Ok(Self { tokenizer, ends })
    }

    /// The ids of a text, without marks of beginning or end.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let encoding = self.tokenizer.encode(text, false).map_err(|e| anyhow!("prompt: {e}"))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// The text of some ids.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        self.tokenizer.decode(ids, false).map_err(|e| anyhow!("ids: {e}"))
    }

    /// Whether a text ends here.
    pub fn is_end(&self, id: u32) -> bool {
        self.ends.contains(&id)
    }
}

fn list<'a>(metadata: &'a HashMap<String, Value>, key: &str, file: &str) -> Result<&'a Vec<Value>> {
    let value = metadata.get(key).with_context(|| format!("{file}: {key}: expected a list, got nothing"))?;
    value.to_vec().with_context(|| format!("{file}: {key}: expected a list"))
}
