//! A contender that runs as a process and serves.

use serde_json::{Value, json};
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

/// How to start a contender.
#[derive(Debug, Clone)]
pub struct Start {
    /// Its name in the table.
    pub name: String,
    /// The program.
    pub program: PathBuf,
    /// Its arguments.
    pub arguments: Vec<String>,
    /// A file without which it cannot run, and how to get it.
    pub needs: Vec<(PathBuf, String)>,
}

/// A contender that runs.
#[derive(Debug)]
pub struct Process {
    /// Its name in the table.
    pub name: String,
    /// What it says of itself.
    pub version: String,
    child: Child,
    requests: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
    log: PathBuf,
}

impl Process {
    /// Starts a contender and greets it; the error is the reason why it is absent.
    pub fn start(start: &Start, threads: usize, folder: &Path) -> Result<Self, String> {
        if let Some((path, how)) = start.needs.iter().find(|(path, _)| !path.exists()) {
            return Err(format!("{} is not there: {how}", path.display()));
        }
        let log = folder.join(format!("{}.log", start.name));
        let errors = File::create(&log).map_err(|why| format!("{}: {why}", log.display()))?;
        let mut command = Command::new(&start.program);
        command.args(&start.arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(errors);
        for name in ["PEERS_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS"] {
            command.env(name, threads.to_string());
        }
        if std::thread::available_parallelism().is_ok_and(|n| n.get() == threads) {
            command.envs([("PEERS_PIN", "1"), ("OMP_PROC_BIND", "true"), ("OMP_PLACES", "threads")]);
        }
        let mut child = command.spawn().map_err(|why| format!("{}: {why}", start.program.display()))?;
        let (Some(requests), Some(answers)) = (child.stdin.take(), child.stdout.take()) else {
            return Err("no pipes".into());
        };
        let name = start.name.clone();
        let answers = BufReader::new(answers);
        let mut process =
            Self { name, version: String::new(), child, requests: Some(requests), answers, log };
        let hello = process.ask(&json!({"do": "hello"}))?;
        process.version = hello["version"].as_str().unwrap_or("?").into();
        Ok(process)
    }

    /// Its number, by which the system counts its time.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// One request, one answer.
    pub fn ask(&mut self, request: &Value) -> Result<Value, String> {
        let Some(requests) = &mut self.requests else { return Err("it has ended".into()) };
        let mut line = String::new();
        let asked = writeln!(requests, "{request}").and_then(|()| requests.flush());
        match asked.and_then(|()| self.answers.read_line(&mut line)) {
            Err(_) | Ok(0) => {
                self.requests = None;
                Err(format!("it ended: {}", self.last_words()))
            }
            Ok(_) => {
                let answer: Value =
                    serde_json::from_str(&line).map_err(|why| format!("its answer: {why}"))?;
                match answer["error"].as_str() {
                    Some(why) => Err(why.into()),
                    None => Ok(answer),
                }
            }
        }
    }

    /// The last line that it wrote of its errors.
    fn last_words(&self) -> String {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        let last = text.lines().rev().find(|line| !line.trim().is_empty());
        last.map_or_else(|| "without a word".into(), |line| line.trim().chars().take(300).collect())
    }
}

impl Drop for Process {
    /// Without requests it ends by itself; after a while it is ended.
    fn drop(&mut self) {
        self.requests = None;
        let start = Instant::now();
        while start.elapsed() < Duration::from_secs(10) {
            match self.child.try_wait() {
                Ok(None) => std::thread::sleep(Duration::from_millis(20)),
                _ => return,
            }
        }
        // Nothing is left to be done where these fail.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
