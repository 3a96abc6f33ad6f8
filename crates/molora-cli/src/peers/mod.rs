//! `molora peers`: the library beside the systems that one would use instead, alternating, in one run.

mod limits;
mod noise;
mod process;
mod report;
mod rounds;

use crate::fetch::cache_base;
use anyhow::{Context, Result, anyhow, bail};
use indicatif::{ProgressBar, ProgressStyle};
use limits::Limits;
use molora_check::contest::{Case, cases, judge};
use molora_check::machine;
use molora_check::record::{FORMAT, Line, Machine, Record};
use molora_check::report::OURS;
use process::{Process, Start};
use rounds::Entry;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Time the library beside PyTorch, PEFT, ggml, candle, the gemm crate and faer on the CPU
///
/// Every answer is checked against a float64 reference first. The floor is max(operations / rate, least bytes / bandwidth), both
/// measured in the same run; every weight that is used, x and y count once. `x ours` is the series' time over ours, the median of
/// alternating pairs; ratios closer to 1 than 1.3 come from at least 30. `~` marks times during which other processes worked.
#[derive(clap::Args)]
pub struct PeersArgs {
    /// Contenders; one that cannot run is named with the reason
    #[arg(long, value_delimiter = ',', default_values = KNOWN)]
    against: Vec<String>,
    /// Only cases with one of these in their name
    #[arg(long, value_delimiter = ',')]
    cases: Vec<String>,
    /// Only these operations (`base`, `lora`, `layer`, `full`, `ggemm`)
    #[arg(long, value_delimiter = ',')]
    ops: Vec<String>,
    /// Turns of every series
    #[arg(long, default_value_t = 6)]
    rounds: usize,
    /// Seconds of calls of a turn
    #[arg(long, default_value_t = 0.12)]
    budget: f64,
    /// Threads of every contender; 0: one for every processor
    #[arg(long, default_value_t = 0)]
    threads: usize,
    /// Write the run's record to this file
    #[arg(long)]
    out: Option<PathBuf>,
    /// Folder of the inputs and references, up to 2 GB [default: peers in the cache]
    #[arg(long)]
    data: Option<PathBuf>,
    /// Virtual environment of the Python contenders, made by benches/peers/setup.sh
    #[arg(long, default_value = "benches/peers/venv")]
    venv: PathBuf,
    /// Folder of the Python contenders
    #[arg(long, default_value = "benches/peers")]
    scripts: PathBuf,
    /// Print the cases' names and end
    #[arg(long)]
    list: bool,
}

const KNOWN: [&str; 6] = ["torch", "ggml", "gemm", "faer", "candle", "peft"];

/// Runs the command.
pub fn run(args: &PeersArgs) -> Result<ExitCode> {
    let wanted = |case: &Case| args.cases.is_empty() || args.cases.iter().any(|part| case.id.contains(part));
    let cases: Vec<Case> = cases::all().into_iter().filter(wanted).collect();
    if args.list {
        cases.iter().for_each(|case| println!("{}", case.id));
        return Ok(ExitCode::SUCCESS);
    }
    check(args, &cases)?;
    let data = match &args.data {
        Some(data) => data.clone(),
        None => cache_base().context("no place for the inputs: say --data")?.join("peers"),
    };
    std::fs::create_dir_all(&data).with_context(|| data.display().to_string())?;
    // Contenders that run elsewhere read it too.
    let data = data.canonicalize().with_context(|| data.display().to_string())?;
    let threads = match args.threads {
        0 => std::thread::available_parallelism().map_or(1, |n| n.get()),
        threads => threads,
    };
    let style = ProgressStyle::with_template("{wide_bar} {pos}/{len} {msg}")?;
    let bar = ProgressBar::new((cases.len() * (args.rounds + 1)) as u64).with_style(style);
    let mut contenders = start(args, threads, &data, &bar)?;
    cases::write_list(&data, &cases).map_err(|why| anyhow!(why))?;
    let plan = rounds::Plan { rounds: args.rounds, budget: args.budget, ops: args.ops.clone() };
    let mut run = Run { limits: Limits::new(threads), done: Vec::new() };
    say(&bar, &report::heading());
    for case in cases {
        bar.set_message(format!("{}: inputs and references", case.id));
        cases::make(&case, &data).map_err(|why| anyhow!(why))?;
        let used = judge::used(&case, &data).map_err(|why| anyhow!(why))?;
        run.limits.measure()?;
        bar.inc(1);
        let (entries, missing) = rounds::run(&case, &data, &plan, &mut contenders, &bar);
        run.limits.measure()?;
        missing.iter().for_each(|why| say(&bar, &format!("absent: {why}")));
        say(&bar, report::table(&case, &entries, used, &run.limits.ceiling()?).trim_end());
        run.done.push(Done { case, entries, used });
        // After every case, so that an interrupted run leaves what it has.
        if let Some(out) = &args.out {
            run.record(threads)?.write(out).map_err(|why| anyhow!(why))?;
        }
    }
    bar.finish_and_clear();
    let ceiling = run.limits.ceiling()?;
    let (gflop_per_s, gb_per_s) = (ceiling.gflop_per_s, ceiling.gb_per_s);
    println!("\n{threads} threads; ceilings of this run: {gflop_per_s:.0} GFLOP/s, {gb_per_s:.1} GB/s");
    for done in &run.done {
        print!("{}", report::summary(&done.case, &done.entries, done.used, &ceiling));
    }
    Ok(ExitCode::SUCCESS)
}

/// Refuses what names nothing.
fn check(args: &PeersArgs, cases: &[Case]) -> Result<()> {
    if cases.is_empty() {
        bail!("--cases: expected part of a case's name (--list prints them), got {}", args.cases.join(","));
    }
    if let Some(name) = args.against.iter().find(|name| !KNOWN.contains(&name.as_str())) {
        bail!("--against: expected some of {}, got {name}", KNOWN.join(", "));
    }
    let ops = ["base", "lora", "layer", "full", "ggemm"];
    if let Some(op) = args.ops.iter().find(|op| !ops.contains(&op.as_str())) {
        bail!("--ops: expected some of {}, got {op}", ops.join(", "));
    }
    if args.rounds == 0 || !args.budget.is_finite() || args.budget <= 0.0 {
        bail!("--rounds, --budget: expected more than 0, got {} and {}", args.rounds, args.budget);
    }
    Ok(())
}

/// Above the progress bar, and where there is none too.
fn say(bar: &ProgressBar, text: &str) {
    bar.suspend(|| println!("{text}"));
}

/// A case that was run.
struct Done {
    case: Case,
    entries: Vec<Entry>,
    used: usize,
}

struct Run {
    limits: Limits,
    done: Vec<Done>,
}

impl Run {
    fn record(&self, threads: usize) -> Result<Record> {
        let ceiling = self.limits.ceiling()?;
        let lines =
            |done: &Done| -> Vec<Line> { report::lines(&done.case, &done.entries, done.used, &ceiling) };
        Ok(Record {
            format: FORMAT,
            date: machine::today(),
            version: env!("CARGO_PKG_VERSION").into(),
            machine: Machine { threads, ..Machine::here() },
            lines: self.done.iter().flat_map(lines).collect(),
            ceilings: vec![ceiling.clone()],
        })
    }
}

/// Ours, then those of the others that start. Who does not is named.
fn start(args: &PeersArgs, threads: usize, data: &Path, bar: &ProgressBar) -> Result<Vec<Process>> {
    let program = std::env::current_exe().context("the path of this program")?;
    let arguments = ["contend", "--serve"].map(String::from).to_vec();
    let ours = Start { name: OURS.into(), program, arguments, needs: Vec::new() };
    let mut all = vec![Process::start(&ours, threads, data).map_err(|why| anyhow!("molora contend: {why}"))?];
    for name in &args.against {
        bar.set_message(format!("starting {name}"));
        match Process::start(&how(name, args)?, threads, data) {
            Ok(process) => all.push(process),
            Err(why) => say(bar, &format!("absent: {name}: {why}")),
        }
    }
    all.iter().for_each(|process| say(bar, &format!("{}: {}", process.name, process.version)));
    Ok(all)
}

/// How a contender starts.
fn how(name: &str, args: &PeersArgs) -> Result<Start> {
    if matches!(name, "gemm" | "faer" | "candle") {
        let beside = std::env::current_exe().context("the path of this program")?;
        let file = format!("molora-peers{}", std::env::consts::EXE_SUFFIX);
        let program = beside.with_file_name(file);
        let build = "build it beside this program: benches/peers/README.md has the command";
        let needs = vec![(program.clone(), build.into())];
        return Ok(Start { name: name.into(), program, arguments: vec![name.into()], needs });
    }
    let folder = if cfg!(windows) { "Scripts/python.exe" } else { "bin/python" };
    let (program, script) =
        (args.venv.join(folder), if name == "ggml" { "ggml_peer.py" } else { "torch_peer.py" });
    let script = args.scripts.join(script);
    let setup = format!("make it with `benches/peers/setup.sh {}`, or say --venv", args.venv.display());
    let needs =
        vec![(program.clone(), setup), (script.clone(), "run in the repository, or say --scripts".into())];
    let arguments = vec![script.display().to_string(), name.into()];
    Ok(Start { name: name.into(), program, arguments, needs })
}
