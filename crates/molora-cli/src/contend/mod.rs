//! `molora contend`: the library's kernels as a contender beside other systems.

mod layer;
mod product;

use anyhow::{Context, Result, anyhow};
use molora::Cpu;
use molora_check::contest::{self, Arrays, Case, Cases, Contender, Kind, Series};
use serde_json::json;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Time the library's kernels as one contender of several (see `molora peers`)
#[derive(clap::Args)]
pub struct ContendArgs {
    /// Answer requests on the standard input, one JSON object a line, until it ends
    #[arg(long, conflicts_with_all = ["cases", "case", "folder", "budget"])]
    serve: bool,
    /// File of cases (`cases.json`)
    #[arg(required_unless_present = "serve")]
    cases: Option<PathBuf>,
    /// The case's id
    #[arg(required_unless_present = "serve")]
    case: Option<String>,
    /// Where results are written
    #[arg(required_unless_present = "serve")]
    folder: Option<PathBuf>,
    /// Seconds of calls of each series
    #[arg(required_unless_present = "serve")]
    budget: Option<f64>,
    /// Threads; 0: one for every processor [default: the environment's PEERS_THREADS, else 0]
    #[arg(long)]
    threads: Option<usize>,
}

/// Runs the command.
pub fn run(args: &ContendArgs) -> Result<ExitCode> {
    let mut ours = Ours { cpu: Cpu::with_threads(threads(args)?)? };
    if args.serve {
        contest::serve(&mut ours, std::io::stdin().lock(), std::io::stdout().lock())?;
        return Ok(ExitCode::SUCCESS);
    }
    let [Some(cases), Some(folder)] = [&args.cases, &args.folder] else {
        return Err(anyhow!("expected CASES CASE FOLDER BUDGET, or --serve"));
    };
    let (id, budget) = (args.case.as_deref().unwrap_or_default(), args.budget.unwrap_or_default());
    match one_shot(&mut ours, cases, id, folder, budget) {
        Ok(answer) => {
            println!("{answer}");
            Ok(ExitCode::SUCCESS)
        }
        // Who reads the standard output alone sees why, too.
        Err(why) => {
            println!("{}", json!({"error": format!("{why:#}")}));
            Err(why)
        }
    }
}

fn threads(args: &ContendArgs) -> Result<usize> {
    match (args.threads, std::env::var("PEERS_THREADS")) {
        (Some(threads), _) => Ok(threads),
        (None, Ok(text)) => {
            text.parse().with_context(|| format!("PEERS_THREADS: expected a number, got {text:?}"))
        }
        (None, Err(_)) => Ok(0),
    }
}

fn one_shot(ours: &mut Ours, file: &Path, id: &str, folder: &Path, budget: f64) -> Result<serde_json::Value> {
    let named = || file.display().to_string();
    let cases: Cases =
        serde_json::from_str(&std::fs::read_to_string(file).with_context(named)?).with_context(named)?;
    let known = cases.cases.iter().map(|case| case.id.as_str()).collect::<Vec<_>>().join(", ");
    let case = cases.cases.into_iter().find(|case| case.id == id);
    let case = case.ok_or_else(|| anyhow!("{}: expected one of {known}, got {id:?}", file.display()))?;
    contest::one_shot(ours, case, Path::new(&cases.data), folder, budget).map_err(|why| anyhow!(why))
}

/// The library on the CPU.
struct Ours {
    cpu: Cpu,
}

impl Contender for Ours {
    fn hello(&self) -> (String, String) {
        ("molora".into(), format!("{} ({})", env!("CARGO_PKG_VERSION"), self.cpu.describe()))
    }

    fn prepare(&mut self, case: &Case, arrays: Arrays) -> Result<Vec<Series>, String> {
        let series = match case.kind {
            Kind::Ggemm => product::grouped(&self.cpu, case, arrays),
            Kind::Molora => layer::series(&self.cpu, case, arrays),
        };
        series.map_err(|why| why.to_string())
    }
}
