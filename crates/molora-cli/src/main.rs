//! `molora`: the library's command line.

use clap::{Parser, Subcommand};
#[cfg(feature = "wgpu")]
use molora_cli::cache;
use molora_cli::{bench, contend, demo, devices, forms, peers, record, retrieve, trace, train, verify};
use std::io::IsTerminal;
use std::process::ExitCode;
use tracing_subscriber::EnvFilter;

/// Fused MoE-LoRA kernels for CUDA, WebGPU and the CPU
#[derive(Parser)]
#[command(name = "molora", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    /// Compile every WebGPU pipeline anew, and keep none for the next command
    #[cfg(feature = "wgpu")]
    #[arg(long, global = true)]
    no_cache: bool,
}

// One line for each command here, and one below.
#[derive(Subcommand)]
enum Command {
    Devices(devices::DevicesArgs),
    Verify(verify::VerifyArgs),
    Bench(bench::BenchArgs),
    Contend(contend::ContendArgs),
    Forms(forms::FormsArgs),
    Peers(peers::PeersArgs),
    Demo(Box<demo::DemoArgs>),
    Retrieve(retrieve::RetrieveArgs),
    Trace(trace::TraceArgs),
    Train(train::TrainArgs),
    Record(record::RecordArgs),
}

fn main() -> ExitCode {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("warn,molora_cli=info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .without_time()
        .with_target(false)
        .init();
    let cli = Cli::parse();
    #[cfg(feature = "wgpu")]
    if cli.no_cache {
        cache::switch_off();
    }
    let result = match cli.command {
        Command::Devices(args) => devices::run(&args),
        Command::Verify(args) => verify::run(&args),
        Command::Bench(args) => bench::run(&args),
        Command::Contend(args) => contend::run(&args),
        Command::Forms(args) => forms::run(&args),
        Command::Peers(args) => peers::run(&args),
        Command::Demo(args) => demo::run(&args).map(|()| ExitCode::SUCCESS),
        Command::Retrieve(args) => retrieve::run(&args),
        Command::Trace(args) => trace::run(&args).map(|()| ExitCode::SUCCESS),
        Command::Train(args) => train::run(&args).map(|()| ExitCode::SUCCESS),
        Command::Record(args) => record::run(&args).map(|()| ExitCode::SUCCESS),
    };
    #[cfg(feature = "wgpu")]
    cache::save();
    match result {
        Ok(code) => code,
        Err(error) => {
            // One line with all causes, and no backtrace: the messages are meant for users.
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
