//! Every contender of this program gives the formulas' numbers.

use molora_check::contest::{cases, judge};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};

#[test]
fn every_series_is_right() {
    let folder = tempfile::tempdir().unwrap();
    let (data, out) = (folder.path(), folder.path().join("y.npy"));
    let mut all = [
        cases::layer((1, 24, 40), (4, 2, 3), "uniform"),
        cases::layer((70, 33, 19), (6, 3, 5), "zipf"),
        cases::layer((5, 16, 16), (8, 1, 2), "own"),
        cases::grouped(9, 24, 20, (4, 2)),
    ];
    all.iter_mut().for_each(|case| (case.copies.w, case.copies.ab) = (2, 3));
    all.iter().for_each(|case| cases::make(case, data).unwrap());
    for name in ["gemm", "faer", "candle"] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_molora-peers"));
        command.arg(name).env("PEERS_THREADS", "2").stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut requests = child.stdin.take().unwrap();
        let mut answers = BufReader::new(child.stdout.take().unwrap());
        let mut ask = |request: Value| -> Value {
            writeln!(requests, "{request}").unwrap();
            let mut line = String::new();
            answers.read_line(&mut line).unwrap();
            serde_json::from_str(&line).unwrap()
        };
        assert_eq!(ask(json!({"do": "hello"}))["name"], name);
        for case in &all {
            let answer = ask(json!({"do": "prepare", "case": case, "data": data}));
            let series = answer["series"].as_array().unwrap();
            assert_eq!(series.len(), if case.rank == 0 { 1 } else { 5 }, "{answer}");
            for series in series {
                let (op, variant) = (series[0].as_str().unwrap(), series[1].as_str().unwrap());
                // The scratch memory of one call must not show in the next.
                for _ in 0..2 {
                    let answer = ask(json!({"do": "check", "op": op, "variant": variant, "out": out}));
                    assert_eq!(answer["ok"], true, "{name} {answer}");
                    let error = judge::error(case, op, data, &out).unwrap();
                    assert!(error < 1e-5, "{name} {} {op} {variant}: {error}", case.id);
                    let answer = ask(json!({"do": "time", "op": op, "variant": variant, "budget": 0.0}));
                    assert_eq!(answer["s"].as_array().unwrap().len(), 1, "{answer}");
                }
            }
        }
        drop(requests);
        assert!(child.wait().unwrap().success());
    }
    let output = Command::new(env!("CARGO_BIN_EXE_molora-peers")).arg("abacus").output().unwrap();
    assert!(!output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("gemm|faer|candle"));
}
