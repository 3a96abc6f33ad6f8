//! Where the demo's files are, and how they are read.

use super::perplexity::{HeldOut, Perplexity};
use anyhow::{Context, Result, bail, ensure};
use candle_core::{DType, Device, Tensor};
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// A file given by the user, or the crate's own. `option` is the option that names another one.
pub fn given_or_own(given: Option<&Path>, own: &str, option: &str) -> Result<PathBuf> {
    let path = match given {
        Some(path) => path.to_owned(),
        None => Path::new(env!("CARGO_MANIFEST_DIR")).join("data").join(own),
    };
    if path.exists() {
        return Ok(path);
    }
    match given {
        Some(_) => bail!("--{option}: expected a path that exists, got {}", path.display()),
        None => bail!(
            "{}: the demo's own data is not there (this binary was built from sources that have moved); \
             run it beside its sources, or name the data with --experts, --routers, --heldout, --golden and --expected",
            path.display()
        ),
    }
}

/// Token ids of any integer type.
pub fn ids(tensor: &Tensor) -> Result<Vec<u32>> {
    let ids = tensor.to_dtype(DType::I64)?.flatten_all()?.to_vec1::<i64>()?;
    ids.into_iter().map(|id| u32::try_from(id).with_context(|| format!("expected an id, got {id}"))).collect()
}

/// Reads `[sequences, tokens]` ids for each domain.
pub fn held_out(path: &Path) -> Result<HeldOut> {
    let file = path.display();
    let tensors = candle_core::safetensors::load(path, &Device::Cpu)
        .with_context(|| format!("{file}: cannot be read as safetensors"))?;
    let mut held_out = HeldOut::new();
    for (domain, tensor) in tensors {
        let (sequences, tokens) =
            tensor.dims2().with_context(|| format!("{file}: {domain}: expected [sequences, tokens]"))?;
        ensure!(
            sequences > 0 && tokens > 1,
            "{file}: {domain}: expected at least [1, 2], got [{sequences}, {tokens}]"
        );
        let ids = ids(&tensor).with_context(|| format!("{file}: {domain}"))?;
        held_out.insert(domain, ids.chunks_exact(tokens).map(<[u32]>::to_vec).collect());
    }
    ensure!(!held_out.is_empty(), "{file}: expected at least one domain, got none");
    Ok(held_out)
}

/// Some sequences of some domains (none named: of all), and their first tokens.
pub fn cut(all: &HeldOut, sequences: Range<usize>, domains: &[String], tokens: usize) -> Result<HeldOut> {
    ensure!(tokens > 1, "--tokens: expected at least 2, of which the second is predicted; got {tokens}");
    if let Some(unknown) = domains.iter().find(|domain| !all.contains_key(*domain)) {
        let known: Vec<&str> = all.keys().map(String::as_str).collect();
        bail!("--domains: expected some of {}, got {unknown}", known.join(", "));
    }
    let asked = all.iter().filter(|(domain, _)| domains.is_empty() || domains.contains(domain));
    let part = |all: &Vec<Vec<u32>>| -> Vec<Vec<u32>> {
        let some = &all[sequences.start.min(all.len())..sequences.end.min(all.len())];
        some.iter().map(|ids| ids[..ids.len().min(tokens)].to_vec()).collect()
    };
    Ok(asked.map(|(domain, all)| (domain.clone(), part(all))).collect())
}

/// Reads the perplexities of an independent implementation: `perplexity` or `perplexity_first4`.
pub fn expected(path: &Path) -> Result<Perplexity> {
    #[derive(serde::Deserialize)]
    struct Expected {
        #[serde(alias = "perplexity_first4")]
        perplexity: BTreeMap<String, BTreeMap<String, f64>>,
    }
    let text =
        std::fs::read_to_string(path).with_context(|| format!("{}: cannot be read", path.display()))?;
    let expected: Expected =
        serde_json::from_str(&text).with_context(|| format!("{}: expected perplexities", path.display()))?;
    Ok(expected.perplexity)
}
