//! `molora retrieve`: which adapters suit a text, by their sample texts.

use crate::demo::files;
use crate::encoder::Encoder;
use anyhow::{Context, Result, bail, ensure};
use clap::{Args, ValueEnum};
use molora::Cpu;
use molora::retrieval::{Exact, Hit, Index, Metric, Query};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Which adapters suit a text: the sentence embeddings of their sample texts, averaged, against that of the text
#[derive(Debug, Clone, Args)]
pub struct RetrieveArgs {
    /// What is asked; may be given again
    #[arg(long, value_name = "TEXT", required = true)]
    pub query: Vec<String>,
    /// ADAPTER.txt with one sample text a line, or a folder of such files; may be given again [default: the demo's experts]
    #[arg(long, value_name = "PATH")]
    pub texts: Vec<PathBuf>,
    /// Adapters to list for each query, at most
    #[arg(long, value_name = "N", default_value_t = 3)]
    pub top_k: usize,
    /// Only these adapters
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    pub allow: Option<Vec<String>>,
    /// None of these adapters
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    pub deny: Vec<String>,
    /// What scores mean
    #[arg(long, value_enum, default_value_t = Score::Cosine)]
    pub metric: Score,
    /// Another sentence encoder: a folder with config.json, tokenizer.json and model.safetensors [default: fetched once]
    #[arg(long, value_name = "DIR")]
    pub encoder: Option<PathBuf>,
    /// Print one JSON object instead of a table
    #[arg(long)]
    pub json: bool,
}

/// [`Metric`] on the command line.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum Score {
    /// Cosine of the angle
    Cosine,
    /// Inner product with the mean of unit embeddings
    InnerProduct,
}

impl From<Score> for Metric {
    fn from(score: Score) -> Self {
        match score {
            Score::Cosine => Self::Cosine,
            Score::InnerProduct => Self::InnerProduct,
        }
    }
}

/// Adapters found by text.
pub struct Library {
    encoder: Encoder,
    /// An adapter's id in the index is its place here.
    names: Vec<String>,
    index: Exact,
}

impl Library {
    /// Embeds every adapter's sample texts; ids follow the order of the adapters.
    pub fn new(encoder: Encoder, adapters: &BTreeMap<String, Vec<String>>, metric: Metric) -> Result<Self> {
        let mut index = Exact::new(&Cpu::new()?, encoder.dims(), metric)?;
        for (id, (name, texts)) in (0..).zip(adapters) {
            index.insert(id, &encoder.adapter(texts)?).with_context(|| format!("adapter {name}"))?;
        }
        Ok(Self { encoder, names: adapters.keys().cloned().collect(), index })
    }

    /// The adapters' names; ids are places in this list.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// The index itself.
    pub fn index(&self) -> &Exact {
        &self.index
    }

    /// The encoder itself.
    pub fn encoder(&self) -> &Encoder {
        &self.encoder
    }

    /// Names and scores of the best adapters for every text, best first; `allow` and `deny` are ids.
    pub fn search(
        &self,
        texts: &[impl AsRef<str>],
        (allow, deny): (Option<&[u64]>, &[u64]),
        top_k: usize,
    ) -> Result<Vec<Vec<(&str, f32)>>> {
        let embeddings = self.encoder.embed(texts)?;
        let queries = embeddings.chunks_exact(self.encoder.dims());
        let queries: Vec<Query> = queries.map(|embedding| Query { embedding, allow, deny }).collect();
        let hits = self.index.search(&queries, top_k)?;
        let named = |hits: Vec<_>| hits.into_iter().map(|hit: Hit| self.named(hit)).collect();
        Ok(hits.into_iter().map(named).collect())
    }

    fn named(&self, hit: Hit) -> (&str, f32) {
        (&self.names[hit.id as usize], hit.score)
    }

    /// The ids of some names; `option` is where they were given.
    pub fn ids(&self, names: &[String], option: &str) -> Result<Vec<u64>> {
        let id = |name: &String| match self.names.iter().position(|own| own == name) {
            Some(id) => Ok(id as u64),
            None => bail!("--{option}: expected adapters of {}, got {name}", self.names.join(", ")),
        };
        names.iter().map(id).collect()
    }
}

/// The folder of the demo's experts' sample texts.
pub fn own_texts() -> Result<PathBuf> {
    files::given_or_own(None, "samples", "texts")
}

/// Reads sample texts, one a line, from `ADAPTER.txt` and from folders of such files; empty lines are passed over.
pub fn sample_texts(paths: &[PathBuf]) -> Result<BTreeMap<String, Vec<String>>> {
    let mut adapters = BTreeMap::new();
    for path in paths {
        ensure!(path.exists(), "--texts: expected a path that exists, got {}", path.display());
        let files = if path.is_dir() { text_files(path)? } else { vec![path.clone()] };
        ensure!(!files.is_empty(), "{}: expected files NAME.txt, got none", path.display());
        for file in files {
            let shown = file.display();
            let text =
                fs::read_to_string(&file).with_context(|| format!("{shown}: cannot be read as text"))?;
            let texts: Vec<String> =
                text.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned).collect();
            ensure!(!texts.is_empty(), "{shown}: expected at least one text, got none");
            let name = file.file_stem().map(|stem| stem.to_string_lossy().into_owned());
            let name = name.with_context(|| format!("{shown}: expected a file's name"))?;
            ensure!(
                adapters.insert(name.clone(), texts).is_none(),
                "{shown}: expected one file for {name}, got a second one"
            );
        }
    }
    Ok(adapters)
}

fn text_files(folder: &Path) -> Result<Vec<PathBuf>> {
    let read = || format!("{}: cannot be read", folder.display());
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).with_context(read)? {
        let path = entry.with_context(read)?.path();
        if path.extension().is_some_and(|extension| extension == "txt") {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

/// Runs the command.
pub fn run(args: &RetrieveArgs) -> Result<ExitCode> {
    ensure!(args.top_k > 0, "--top-k: expected at least 1, got 0");
    let paths = if args.texts.is_empty() { vec![own_texts()?] } else { args.texts.clone() };
    let adapters = sample_texts(&paths)?;
    let folder = match &args.encoder {
        Some(folder) => files::given_or_own(Some(folder), "", "encoder")?,
        None => crate::fetch::encoder()?,
    };
    let library = Library::new(Encoder::load(&folder)?, &adapters, args.metric.into())?;
    let allow = args.allow.as_ref().map(|names| library.ids(names, "allow")).transpose()?;
    let deny = library.ids(&args.deny, "deny")?;
    let hits = library.search(&args.query, (allow.as_deref(), &deny), args.top_k)?;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&json(args, &adapters, &hits))?);
        return Ok(ExitCode::SUCCESS);
    }
    let width = library.names().iter().map(String::len).max().unwrap_or(0);
    for (query, hits) in args.query.iter().zip(hits) {
        println!("{query}");
        for (rank, (name, score)) in (1..).zip(hits) {
            println!("{rank:>4}  {name:width$}  {score:.4}");
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn json(
    args: &RetrieveArgs,
    adapters: &BTreeMap<String, Vec<String>>,
    hits: &[Vec<(&str, f32)>],
) -> serde_json::Value {
    let texts: serde_json::Map<_, _> =
        adapters.iter().map(|(name, texts)| (name.clone(), texts.len().into())).collect();
    let hit = |&(adapter, score): &(&str, f32)| serde_json::json!({ "adapter": adapter, "score": score });
    let queries = args.query.iter().zip(hits).map(|(query, hits)| {
        serde_json::json!({ "query": query, "hits": hits.iter().map(hit).collect::<Vec<_>>() })
    });
    serde_json::json!({
        "metric": match args.metric { Score::Cosine => "cosine", Score::InnerProduct => "inner_product" },
        "sample_texts": texts,
        "queries": queries.collect::<Vec<_>>(),
    })
}
