//! `molora-peers gemm|faer|candle`: serves as a contender (see `molora_check::contest`) on PEERS_THREADS threads.

mod candle;
mod experts;
mod multiply;

use molora_check::contest::{self, Arrays, Case, Contender, Series};
use multiply::{Faer, Gemm};
use std::process::ExitCode;

const USAGE: &str = "usage: molora-peers gemm|faer|candle";

/// Makes a case's series on some threads.
type Prepare = fn(&Case, Arrays, usize) -> Result<Vec<Series>, String>;

struct Peer {
    name: &'static str,
    version: &'static str,
    threads: usize,
    prepare: Prepare,
}

impl Contender for Peer {
    fn hello(&self) -> (String, String) {
        (self.name.into(), self.version.into())
    }

    fn prepare(&mut self, case: &Case, arrays: Arrays) -> Result<Vec<Series>, String> {
        (self.prepare)(case, arrays, self.threads)
    }
}

fn main() -> ExitCode {
    let name = std::env::args().nth(1).unwrap_or_default();
    let (name, version, prepare): (_, _, Prepare) = match name.as_str() {
        "gemm" => ("gemm", "0.19", |case, arrays, threads| Ok(experts::series(Gemm, case, arrays, threads))),
        "faer" => ("faer", "0.24", |case, arrays, threads| Ok(experts::series(Faer, case, arrays, threads))),
        "candle" => ("candle", "0.11", |case, arrays, _| candle::series(case, arrays)),
        _ => {
            eprintln!("{USAGE}");
            return ExitCode::FAILURE;
        }
    };
    let served = threads().and_then(|threads| {
        let mut peer = Peer { name, version, threads, prepare };
        contest::serve(&mut peer, std::io::stdin().lock(), std::io::stdout().lock())
            .map_err(|why| why.to_string())
    });
    match served {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("error: {why}");
            ExitCode::FAILURE
        }
    }
}

/// Starts rayon's threads, as many as PEERS_THREADS says, each on a processor of its own where PEERS_PIN is 1.
fn threads() -> Result<usize, String> {
    let wanted = match std::env::var("PEERS_THREADS") {
        Ok(text) => text.parse().map_err(|_| format!("PEERS_THREADS: expected a number, got {text:?}"))?,
        Err(_) => 0,
    };
    let pin = std::env::var("PEERS_PIN").is_ok_and(|value| value == "1");
    let cores = if pin { core_affinity::get_core_ids().unwrap_or_default() } else { Vec::new() };
    let start = move |thread: usize| {
        if !cores.is_empty() {
            core_affinity::set_for_current(cores[thread % cores.len()]);
        }
    };
    let pool = rayon::ThreadPoolBuilder::new().num_threads(wanted).start_handler(start);
    pool.build_global().map_err(|why| why.to_string())?;
    Ok(rayon::current_num_threads())
}
