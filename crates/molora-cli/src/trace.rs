//! `molora trace`: what a recorded trace holds, as counters and as a picture.

use crate::picture::{self, Kind};
use anyhow::{Context, Result};
use molora::trace::{Counter, Trace};
use serde_json::json;
use std::fmt::Write;
use std::fs::File;
use std::io::{BufReader, BufWriter};
use std::path::{Path, PathBuf};

/// With more tokens the picture shows shares, unless --kind says otherwise.
const MAX_TOKENS: usize = 256;

/// Print how often each adapter was chosen in a recorded trace (JSON lines), and draw it
#[derive(Debug, Clone, clap::Args)]
pub struct TraceArgs {
    /// The trace, as `molora demo --trace` or the library writes it
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// Where to draw it, as SVG
    #[arg(long, value_name = "FILE")]
    pub picture: Option<PathBuf>,
    /// What to draw [default: tokens, or shares where there are more than 256 tokens]
    #[arg(long, value_enum, requires = "picture")]
    pub kind: Option<Kind>,
    /// Print one JSON object instead of a table
    #[arg(long)]
    pub json: bool,
}

/// Runs the command.
pub fn run(args: &TraceArgs) -> Result<()> {
    let trace = read(&args.file)?;
    if let Some(path) = &args.picture {
        let kind = args.kind.unwrap_or(if trace.tokens() > MAX_TOKENS { Kind::Shares } else { Kind::Tokens });
        let title = match kind {
            Kind::Tokens => "The adapter that each layer took first for each token (pale: little weight)",
            Kind::Shares => "Share of each layer's weights in %",
        };
        picture::draw(path, kind, title, &trace)?;
        tracing::info!("picture: {}", path.display());
    }
    let text = if args.json { serde_json::to_string_pretty(&summary(&trace))? } else { table(&trace) };
    println!("{text}");
    Ok(())
}

/// Reads a trace's file.
pub fn read(path: &Path) -> Result<Trace> {
    let file = File::open(path).with_context(|| format!("{}: cannot be read", path.display()))?;
    Trace::read_jsonl(BufReader::new(file)).with_context(|| path.display().to_string())
}

/// Writes a trace's file.
pub fn write(path: &Path, trace: &Trace) -> Result<()> {
    let file = File::create(path).with_context(|| format!("{}: cannot be written", path.display()))?;
    trace.write_jsonl(BufWriter::new(file)).with_context(|| path.display().to_string())?;
    tracing::info!("trace: {}", path.display());
    Ok(())
}

/// For each adapter, how often it came first, as a share of all first choices.
pub fn first_shares(trace: &Trace) -> Vec<f64> {
    let counters = trace.counters();
    let all = counters.iter().map(|counter| counter.first).sum::<u64>();
    counters.iter().map(|counter| share(counter.first as f64, all as f64)).collect()
}

fn share(part: f64, all: f64) -> f64 {
    if all != 0.0 { part / all } else { 0.0 }
}

/// The counters, the most chosen first, with their shares of all routes and of all weights.
fn ranked(trace: &Trace) -> Vec<(Counter, f64, f64)> {
    let mut counters = trace.counters();
    let routes = counters.iter().map(|counter| counter.routes).sum::<u64>() as f64;
    let weight = counters.iter().map(|counter| counter.weight).sum::<f64>();
    // The order of the ids among equals.
    counters.sort_by_key(|counter| std::cmp::Reverse(counter.routes));
    let with_shares = |counter: Counter| {
        let of_routes = share(counter.routes as f64, routes);
        let of_weight = share(counter.weight, weight);
        (counter, of_routes, of_weight)
    };
    counters.into_iter().map(with_shares).collect()
}

fn summary(trace: &Trace) -> serde_json::Value {
    let counters: Vec<_> = ranked(trace)
        .into_iter()
        .map(|(counter, of_routes, of_weight)| {
            json!({
                "name": counter.name, "routes": counter.routes, "route_share": of_routes,
                "weight": counter.weight, "weight_share": of_weight, "first": counter.first,
            })
        })
        .collect();
    json!({ "layers": trace.layers().len(), "tokens": trace.tokens(), "counters": counters })
}

fn table(trace: &Trace) -> String {
    let ranked = ranked(trace);
    let longest = ranked.iter().map(|(counter, ..)| counter.name.chars().count()).max().unwrap_or(0);
    let first = longest.max("adapter".len());
    let (layers, tokens) = (trace.layers().len(), trace.tokens());
    let mut text = format!("{layers} layers, {tokens} tokens\n\n");
    let _ = write!(
        text,
        "{:first$} | {:>10} | {:>7} | {:>12} | {:>8} | {:>10}",
        "adapter", "routes", "share", "weight", "share", "first"
    );
    for (counter, of_routes, of_weight) in ranked {
        let Counter { name, routes, weight, first: firsts } = counter;
        let (of_routes, of_weight) = (100.0 * of_routes, 100.0 * of_weight);
        let _ = write!(
            text,
            "\n{name:first$} | {routes:>10} | {of_routes:>5.1} % | {weight:>12.3} | {of_weight:>6.1} % | {firsts:>10}"
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trace() -> Trace {
        let mut trace = Trace::new(["law", "clinic", "idle"]);
        trace.record("layers.0.up_proj", 2, &[1, 0, 1, -1], &[0.75, 0.25, 1.0, 0.0]).unwrap();
        trace
    }

    #[test]
    fn the_most_chosen_comes_first_with_its_shares() {
        let json = summary(&trace());
        assert_eq!((json["layers"].as_u64(), json["tokens"].as_u64()), (Some(1), Some(2)));
        let first = &json["counters"][0];
        assert_eq!((first["name"].as_str(), first["routes"].as_u64()), (Some("clinic"), Some(2)));
        assert_eq!((first["weight"].as_f64(), first["weight_share"].as_f64()), (Some(1.75), Some(0.875)));
        assert_eq!(first["first"].as_u64(), Some(2));
        assert_eq!(json["counters"][2]["route_share"].as_f64(), Some(0.0));
        assert_eq!(first_shares(&trace()), [0.0, 1.0, 0.0]);
        assert_eq!(first_shares(&Trace::new(["a"])), [0.0]);
    }

    #[test]
    fn the_table_has_a_line_for_each_adapter() {
        let table = table(&trace());
        assert_eq!(table.lines().count(), 3 + 3, "{table}");
        assert!(
            table.contains("clinic  |          2 |  66.7 % |        1.750 |   87.5 % |          2"),
            "{table}"
        );
    }

    #[test]
    fn files_are_read_back_and_named_where_they_are_wrong() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("trace.jsonl");
        write(&path, &trace()).unwrap();
        assert_eq!(read(&path).unwrap(), trace());
        std::fs::write(&path, "{}\n").unwrap();
        let said = format!("{:#}", read(&path).unwrap_err());
        assert!(said.contains("trace.jsonl") && said.contains("line 1"), "{said}");
        assert!(read(&folder.path().join("none")).is_err());
    }
}
