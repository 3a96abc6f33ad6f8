//! The committed records, the README's tables made of them, and the commands on a record that was really measured.

use molora_check::record::{FORMAT, Line, Machine, Record};
use molora_check::report::work;
use molora_check::subject::CpuSubject;
use molora_check::{Case, Inputs, Op, Subject};
use molora_cli::record::{markers, table};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

#[test]
fn committed_records_are_read_and_named_by_day_and_machine() {
    for entry in std::fs::read_dir(root().join("benches/record")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "json") {
            continue;
        }
        let record = Record::read(&path).unwrap();
        let stem = path.file_stem().unwrap().to_str().unwrap();
        let expected = format!("{}-{}", record.date, record.machine.name);
        assert!(stem == expected || stem.starts_with(&format!("{expected}-")), "{stem}: expected {expected}");
        table::markdown(&record, &[]).unwrap_or_else(|why| panic!("{stem}: {why}"));
    }
}

#[test]
fn the_readmes_tables_are_what_the_records_give() {
    let root = root();
    markers::check(&root.join("README.md"), &root.join("benches/record"))
        .unwrap_or_else(|why| panic!("{why:#}"));
}

/// Two small cases, timed here and now.
fn measured() -> Record {
    let cpu = CpuSubject::new().unwrap();
    let line = |op: Op| {
        let case = Case { tokens: 3, in_features: 64, out_features: 96, ..Case::new(op) };
        let inputs = Inputs::new(&case);
        let mut timer = cpu.timer(&inputs).unwrap();
        timer(1).unwrap();
        let mut us: Vec<f64> = (0..9).map(|_| timer(20).unwrap().as_secs_f64() * 1e6 / 20.0).collect();
        us.sort_by(f64::total_cmp);
        Line {
            case: case.label(cpu.kind()),
            device: cpu.name(),
            series: "molora".into(),
            latency_us_median: us[4],
            latency_us_quartiles: [us[2], us[6]],
            samples: us.len(),
            clock: "wall".into(),
            work: work(&inputs),
            floor: None,
            ratios: Vec::new(),
            error: None,
        }
    };
    Record {
        format: FORMAT,
        date: "2026-11-23".into(),
        version: env!("CARGO_PKG_VERSION").into(),
        machine: Machine {
            name: "here".into(),
            processor: "unknown".into(),
            threads: 1,
            system: std::env::consts::OS.into(),
        },
        ceilings: Vec::new(),
        lines: vec![line(Op::Base), line(Op::Delta)],
    }
}

fn molora(folder: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_molora")).current_dir(folder).args(arguments).output().unwrap()
}

fn printed(folder: &Path, arguments: &[&str]) -> String {
    let output = molora(folder, arguments);
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{arguments:?}: {error}");
    String::from_utf8(output.stdout).unwrap()
}

fn refusal(folder: &Path, arguments: &[&str]) -> String {
    let output = molora(folder, arguments);
    assert!(!output.status.success(), "{arguments:?} was not refused");
    String::from_utf8(output.stderr).unwrap()
}

#[test]
fn a_measured_record_is_compared_drawn_and_tabulated() {
    let folder = tempfile::tempdir().unwrap();
    let (at, record) = (folder.path(), measured());
    record.write(&at.join("a.json")).unwrap();
    let mut later = record.clone();
    later.lines[0].latency_us_median /= 4.0;
    later.lines[0].latency_us_quartiles = later.lines[0].latency_us_quartiles.map(|us| us / 4.0);
    later.lines.truncate(1);
    later.write(&at.join("b.json")).unwrap();

    let of_record = printed(at, &["record", "compare", "a.json", "b.json"]);
    assert!(of_record.contains("| 4.000 |") && of_record.contains("only in A: 1"), "{of_record}");
    assert_eq!(printed(at, &["bench", "--compare", "a.json", "b.json"]), of_record);
    let json = printed(at, &["bench", "--compare", "a.json", "b.json", "--json"]);
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert!((json["means"][0]["ratio"].as_f64().unwrap() - 4.0).abs() < 1e-9);

    let files = printed(at, &["record", "plot", "a.json"]);
    let files: Vec<&str> = files.lines().collect();
    assert_eq!(files, ["a-roofline.svg", "a-roofline.png"], "no other series: no bars");
    assert!(std::fs::read(at.join(files[1])).unwrap().starts_with(b"\x89PNG"));

    let case = &record.lines[1].case;
    assert!(printed(at, &["record", "table", "a.json", "--op", "delta"]).contains(&format!("| `{case}` |")));
    std::fs::write(at.join("R.md"), "<!-- record:begin a -->\n<!-- record:end -->\n").unwrap();
    let check = ["record", "table", "--check", "R.md", "--records", "."];
    assert!(refusal(at, &check).contains("R.md, line"));
    printed(at, &["record", "table", "--write", "R.md", "--records", "."]);
    printed(at, &check);
}

#[test]
fn records_of_another_format_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let mut record = measured();
    record.write(&at.join("a.json")).unwrap();
    record.format = FORMAT + 1;
    record.write(&at.join("b.json")).unwrap();
    for arguments in [
        &["record", "compare", "a.json", "b.json"][..],
        &["record", "plot", "b.json"],
        &["record", "table", "b.json"],
        &["bench", "--compare", "b.json", "a.json"],
    ] {
        let why = refusal(at, arguments);
        let expected = format!("b.json: expected a record of format {FORMAT}, got format {}", FORMAT + 1);
        assert!(why.contains(&expected), "{arguments:?}: {why}");
    }
}
