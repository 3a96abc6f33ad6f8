//! `molora contend` through the program: the served protocol from end to end on small cases, and what it refuses.

use molora_check::contest::{Case, cases, judge};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

fn program() -> Command {
    Command::new(env!("CARGO_BIN_EXE_molora"))
}

struct Served {
    child: Child,
    requests: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
}

impl Served {
    fn new() -> Self {
        let mut command = program();
        command.args(["contend", "--serve"]).env("PEERS_THREADS", "2");
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (requests, answers) = (child.stdin.take(), BufReader::new(child.stdout.take().unwrap()));
        Self { child, requests, answers }
    }

    fn line(&mut self, text: &str) -> Value {
        writeln!(self.requests.as_mut().unwrap(), "{text}").unwrap();
        let mut answer = String::new();
        self.answers.read_line(&mut answer).unwrap();
        serde_json::from_str(&answer).unwrap()
    }

    fn ask(&mut self, request: Value) -> Value {
        self.line(&request.to_string())
    }

    fn prepare(&mut self, case: &Case, data: &Path) -> Value {
        self.ask(json!({"do": "prepare", "case": case, "data": data}))
    }

    /// It ends well when nobody asks any more.
    fn end(mut self) {
        self.requests = None;
        assert!(self.child.wait().unwrap().success());
    }
}

/// Small, of every kind and choice, with 16 bits too.
fn small() -> Vec<Case> {
    let mut all = vec![
        cases::layer((3, 24, 40), (4, 2, 3), "uniform"),
        cases::layer((70, 33, 19), (6, 3, 5), "zipf"),
        cases::layer((5, 16, 16), (8, 1, 2), "own"),
        cases::grouped(9, 24, 20, (4, 2)),
    ];
    all.iter_mut().for_each(|case| (case.copies.w, case.copies.ab) = (2, 3));
    all[0].tags = vec!["bf16".into()];
    all
}

fn error(answer: &Value) -> &str {
    answer["error"].as_str().unwrap_or_else(|| panic!("expected an error, got {answer}"))
}

#[test]
fn every_series_is_right_and_timed() {
    let folder = tempfile::tempdir().unwrap();
    let (data, out) = (folder.path(), folder.path().join("y.npy"));
    let mut served = Served::new();
    let hello = served.ask(json!({"do": "hello"}));
    assert_eq!(hello["name"], "molora");
    assert!(hello["version"].as_str().unwrap().contains("2 threads"), "{hello}");
    let expected = [
        vec![
            "base/packed",
            "base/packed_bf16",
            "base/packed_f16",
            "full/fused",
            "layer/fused",
            "layer/fused_bf16",
            "layer/fused_f16",
            "layer/separate",
            "lora/delta",
        ],
        vec!["base/packed", "full/fused", "layer/fused", "layer/separate", "lora/delta"],
        vec!["base/packed", "layer/fused", "layer/separate", "lora/delta"],
        vec!["ggemm/grouped"],
    ];
    for (case, expected) in small().iter().zip(expected) {
        cases::make(case, data).unwrap();
        let answer = served.prepare(case, data);
        let texts = |pair: &Value| [0, 1].map(|i| pair[i].as_str().unwrap().to_string());
        let mut series: Vec<[String; 2]> = answer["series"].as_array().unwrap().iter().map(texts).collect();
        series.sort();
        assert_eq!(series.iter().map(|s| s.join("/")).collect::<Vec<_>>(), expected, "{}", case.id);
        for [op, variant] in series {
            // Every copy gives the same: the first, and those of the timed calls.
            for _ in 0..2 {
                let checked = served.ask(json!({"do": "check", "op": op, "variant": variant, "out": out}));
                assert!(checked["ok"] == true && checked["s"].as_f64().unwrap() > 0.0, "{checked}");
                let error = judge::error(case, &op, data, &out).unwrap();
                assert!(error <= judge::tolerance(&variant), "{} {op} {variant}: {error}", case.id);
                let request = json!({"do": "time", "op": op, "variant": variant, "budget": 0.001, "min": 4});
                let timed = served.ask(request);
                let (s, c) = (timed["s"].as_array().unwrap(), timed["c"].as_array().unwrap());
                assert!(s.len() >= 4 && s.len() == c.len(), "{timed}");
                assert!(s.iter().all(|s| s.as_f64().unwrap() > 0.0), "{timed}");
            }
        }
    }
    assert_eq!(served.ask(json!({"do": "drop"})), json!({"ok": true}));
    let request = json!({"do": "check", "op": "ggemm", "variant": "grouped", "out": out});
    assert!(error(&served.ask(request)).contains("expected a prepared case"));
    served.end();
}

#[test]
fn wrong_requests_are_answered_by_errors() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path();
    let case = small().remove(0);
    let mut served = Served::new();
    let refused = |answer: Value, part: &str| assert!(error(&answer).contains(part), "{answer}");
    refused(served.line("no json"), "the request");
    refused(served.line("{\"do\":\"dance\"}"), "dance");
    refused(served.line("{\"do\":\"prepare\"}"), "case");
    refused(served.prepare(&case, data), ".x.npy");
    cases::make(&case, data).unwrap();
    for (change, part) in [
        (Case { top_k: 0, ..case.clone() }, "k: expected at least 1"),
        (Case { rank: 0, ..case.clone() }, "r: expected at least 1"),
        (Case { id: "../x".into(), ..case.clone() }, "id: expected letters"),
        (Case { tokens: 4, ..case.clone() }, "expected the shape [4, 24], got [3, 24]"),
        (Case { rank: 2, ..case.clone() }, "expected the shape [4, 2, 24], got [4, 3, 24]"),
        (Case { experts: 1, ..case.clone() }, "expected ids below 1"),
    ] {
        refused(served.prepare(&change, data), part);
    }
    let mut unknown = json!(case);
    unknown["kind"] = "dense".into();
    refused(served.ask(json!({"do": "prepare", "case": unknown, "data": data})), "dense");
    // It goes on after all that.
    assert!(served.prepare(&case, data)["series"].as_array().is_some());
    let ask = |op: &str, variant: &str, out: &Path| json!({"do": "check", "op": op, "variant": variant, "out": out});
    refused(served.ask(ask("layer", "magic", &data.join("y.npy"))), "layer magic");
    refused(served.ask(ask("layer", "fused", &data.join("nowhere/y.npy"))), "nowhere");
    std::fs::write(case.file(data, "w"), "not an array").unwrap();
    refused(served.prepare(&case, data), ".w.npy");
    served.end();
}

#[test]
fn one_shot_prints_every_series_and_leaves_its_results() {
    let folder = tempfile::tempdir().unwrap();
    let (data, out) = (folder.path(), folder.path().join("out"));
    let case = small().remove(0);
    cases::make(&case, data).unwrap();
    cases::write_list(data, std::slice::from_ref(&case)).unwrap();
    let run = |id: &str| {
        let list = data.join("cases.json");
        let mut command = program();
        command.arg("contend").args([&list, Path::new(id), &out, Path::new("0.001")]);
        command.env("PEERS_THREADS", "1").output().unwrap()
    };
    let output = run(&case.id);
    assert!(output.status.success(), "{output:?}");
    let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
    let series = answer["series"].as_array().unwrap();
    assert_eq!(series.len(), 9);
    for row in series {
        let [op, variant, file] = ["op", "variant", "out"].map(|key| row[key].as_str().unwrap());
        let error = judge::error(&case, op, data, &out.join(file)).unwrap();
        assert!(error <= judge::tolerance(variant), "{op} {variant}: {error}");
        assert!(!row["s"].as_array().unwrap().is_empty());
    }
    let output = run("another");
    assert!(!output.status.success());
    let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(error(&answer).contains(&case.id) && error(&answer).contains("another"), "{answer}");
}

#[test]
fn threads_must_be_a_number() {
    let output = program().args(["contend", "--serve"]).env("PEERS_THREADS", "two").output().unwrap();
    assert!(!output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("PEERS_THREADS"), "{output:?}");
}
