//! A contender's side of the protocol.

use super::{Arrays, Case, npy};
use serde::Deserialize;
use serde_json::{Value, json};
use std::io::{BufRead, Write};
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Most calls of one batch.
const CALLS_MOST: usize = 2000;

/// What a call leaves behind. Reading it out is not part of the call.
pub trait Answer {
    /// y in f32, row by row.
    fn values(self: Box<Self>) -> Result<Vec<f32>, String>;
}

impl Answer for Vec<f32> {
    fn values(self: Box<Self>) -> Result<Vec<f32>, String> {
        Ok(*self)
    }
}

/// One timed call; the argument counts calls and chooses the copy of the weights.
pub type Call = Box<dyn FnMut(usize) -> Result<Box<dyn Answer>, String>>;

/// One way of computing one operation of a case.
pub struct Series {
    /// `base`, `lora`, `layer`, `full` or `ggemm`.
    pub op: &'static str,
    /// Which way.
    pub variant: &'static str,
    /// The call.
    pub call: Call,
}

impl Series {
    /// From a function of the copy that says why it fails in words of its own.
    pub fn new<A: Answer + 'static, E: std::fmt::Display>(
        op: &'static str,
        variant: &'static str,
        mut call: impl FnMut(usize) -> Result<A, E> + 'static,
    ) -> Self {
        let call: Call = Box::new(move |i| match call(i) {
            Ok(answer) => Ok(Box::new(answer)),
            Err(why) => Err(why.to_string()),
        });
        Self { op, variant, call }
    }
}

/// Who computes.
pub trait Contender {
    /// Name and version.
    fn hello(&self) -> (String, String);

    /// Makes a case ready: copies and packs its weights.
    fn prepare(&mut self, case: &Case, arrays: Arrays) -> Result<Vec<Series>, String>;
}

#[derive(Deserialize)]
#[serde(tag = "do", rename_all = "lowercase")]
enum Request {
    Hello,
    Prepare {
        case: Case,
        data: PathBuf,
    },
    Check {
        op: String,
        variant: String,
        out: PathBuf,
    },
    Time {
        op: String,
        variant: String,
        budget: f64,
        #[serde(default = "yes")]
        warm: bool,
        #[serde(default = "one")]
        min: usize,
    },
    Drop,
}

fn yes() -> bool {
    true
}

fn one() -> usize {
    1
}

/// A case that is ready.
struct Ready {
    case: Case,
    series: Vec<Series>,
}

impl Ready {
    fn new(contender: &mut dyn Contender, case: Case, data: &Path) -> Result<Self, String> {
        let arrays = Arrays::read(&case, data)?;
        let mut series = contender.prepare(&case, arrays)?;
        series.retain(|series| case.ops.iter().any(|op| op == series.op));
        Ok(Self { case, series })
    }

    fn series(&mut self, op: &str, variant: &str) -> Result<&mut Series, String> {
        let found = self.series.iter_mut().find(|s| s.op == op && s.variant == variant);
        found.ok_or_else(|| format!("expected a series of the case, got {op} {variant}"))
    }
}

/// Answers every line until the input ends. Errors are answers; only a broken pipe ends it early.
pub fn serve(
    contender: &mut dyn Contender,
    input: impl BufRead,
    mut output: impl Write,
) -> std::io::Result<()> {
    let mut ready = None;
    for line in input.lines() {
        let answer = answer(contender, &mut ready, &line?).unwrap_or_else(|why| json!({"error": why}));
        writeln!(output, "{answer}")?;
        output.flush()?;
    }
    Ok(())
}

fn answer(contender: &mut dyn Contender, ready: &mut Option<Ready>, line: &str) -> Result<Value, String> {
    let request = serde_json::from_str(line).map_err(|why| format!("the request: {why}"))?;
    let prepared =
        |ready| Option::<&mut Ready>::ok_or_else(ready, || "expected a prepared case, got none".to_string());
    match request {
        Request::Hello => {
            let (name, version) = contender.hello();
            Ok(json!({"name": name, "version": version}))
        }
        Request::Prepare { case, data } => {
            // The memory of the case before is given back first.
            *ready = None;
            let ready = ready.insert(Ready::new(contender, case, &data)?);
            let series: Vec<[&str; 2]> = ready.series.iter().map(|s| [s.op, s.variant]).collect();
            Ok(json!({"series": series}))
        }
        Request::Check { op, variant, out } => {
            let ready = prepared(ready.as_mut())?;
            let s = check(&ready.case.clone(), ready.series(&op, &variant)?, &out)?;
            Ok(json!({"ok": true, "s": s}))
        }
        Request::Time { op, variant, budget, warm, min } => {
            let series = prepared(ready.as_mut())?.series(&op, &variant)?;
            let (s, c) = time(series, budget, warm, min)?;
            Ok(json!({"s": s, "c": c}))
        }
        Request::Drop => {
            *ready = None;
            Ok(json!({"ok": true}))
        }
    }
}

/// One call, its y into a file; seconds of the call.
fn check(case: &Case, series: &mut Series, out: &Path) -> Result<f64, String> {
    let start = Instant::now();
    let answer = (series.call)(0)?;
    let s = start.elapsed().as_secs_f64();
    npy::write(out, &[case.rows(series.op), case.out_features], &answer.values()?)?;
    Ok(s)
}

/// Calls until the budget is spent: seconds of each on the wall, and of the process on all processors.
fn time(series: &mut Series, budget: f64, warm: bool, min: usize) -> Result<(Vec<f64>, Vec<f64>), String> {
    if warm {
        drop((series.call)(1)?);
    }
    let (mut wall, mut processor, start) = (Vec::new(), Vec::new(), Instant::now());
    loop {
        let (spent, begin) = (processor_seconds(), Instant::now());
        let answer = (series.call)(wall.len() + 2)?;
        let last = begin.elapsed().as_secs_f64();
        processor.push(processor_seconds() - spent);
        wall.push(last);
        drop(answer);
        let over = start.elapsed().as_secs_f64() + last > budget;
        if (over && wall.len() >= min) || wall.len() >= CALLS_MOST {
            return Ok((wall, processor));
        }
    }
}

/// Seconds of this process on all processors; 0 where the system does not tell.
fn processor_seconds() -> f64 {
    #[cfg(unix)]
    {
        let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
        time.tv_sec as f64 + time.tv_nsec as f64 * 1e-9
    }
    #[cfg(not(unix))]
    {
        0.0
    }
}

/// All series of one case: checks each into `folder`, times it for the budget, and says so in one object:
/// `{"series":[{"op":..,"variant":..,"s":[..],"c":[..],"out":FILE},..]}`.
pub fn one_shot(
    contender: &mut dyn Contender,
    case: Case,
    data: &Path,
    folder: &Path,
    budget: f64,
) -> Result<Value, String> {
    std::fs::create_dir_all(folder).map_err(|why| format!("{}: {why}", folder.display()))?;
    let mut ready = Ready::new(contender, case, data)?;
    let mut rows = Vec::new();
    for series in &mut ready.series {
        let out = format!("{}_{}.npy", series.op, series.variant);
        check(&ready.case, series, &folder.join(&out))?;
        let (s, c) = time(series, budget, true, 1)?;
        rows.push(json!({"op": series.op, "variant": series.variant, "s": s, "c": c, "out": out}));
    }
    Ok(json!({"series": rows}))
}
