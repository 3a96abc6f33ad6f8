//! `molora bench` on the CPU: its lines, its record, and a run that is killed and goes on.

use molora_check::Op;
use molora_check::record::{Line, Record};
use molora_check::report::OURS;
use molora_cli::bench::{BenchArgs, measure};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

fn quick(ops: &[Op]) -> BenchArgs {
    BenchArgs { device: Some("cpu".into()), quick: true, op: ops.to_vec(), ..BenchArgs::default() }
}

#[test]
fn a_quick_run_is_judged_by_its_ceilings() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("a.json");
    let args = BenchArgs { out: Some(out.clone()), ..quick(&[Op::Shrink, Op::Delta]) };
    let mut texts = Vec::new();
    let record = measure(&args, |text| texts.push(text)).unwrap();
    assert!(Record::read(&out).unwrap() == record && !out.with_added_extension("part").exists());
    assert_eq!(record.ceilings.len(), 3, "one an element type");
    let cases = args.cases().unwrap();
    assert_eq!(cases.iter().filter(|case| case.op == Op::Shrink).count(), 2);
    let ours: Vec<&Line> = record.lines.iter().filter(|line| line.series == OURS).collect();
    let labels: Vec<&str> = ours.iter().map(|line| line.case.as_str()).collect();
    assert_eq!(labels, cases.iter().map(|case| case.label("cpu")).collect::<Vec<_>>());
    for line in &record.lines {
        let ceiling = record.ceiling(&line.device, "f32").unwrap();
        assert_eq!(line.floor, Some(ceiling.floor(&line.work)));
        // No bound: ceilings measured while the other tests keep the processors busy are lower than the limit.
        assert!(line.limit_share().unwrap() > 0.0, "{line}");
        assert!(texts.iter().any(|text| text.contains(&line.case)), "{texts:?}");
    }
    let beside = record.lines.iter().filter(|line| line.series == "base").count();
    assert_eq!(beside, 2, "the base alone beside both cases of delta");
}

#[test]
fn json_is_an_object_a_line() {
    let mut lines = Vec::new();
    let args = BenchArgs { json: true, tokens: vec![2], ..quick(&[Op::Base]) };
    measure(&args, |text| lines.push(serde_json::from_str::<serde_json::Value>(&text).unwrap())).unwrap();
    assert_eq!(lines.len(), 4, "three ceilings and a case: {lines:?}");
    let case = &lines[3];
    for field in ["latency_us_median", "gflop_per_s", "gb_per_s", "limit_share", "error"] {
        assert!(case[field].is_number(), "{field}: {case}");
    }
}

#[test]
fn choices_are_parts_of_names() {
    let cases = |args: BenchArgs| args.cases().map(|cases| cases.len()).map_err(|e| e.to_string());
    assert_eq!(cases(BenchArgs { case: Some("t64_".into()), ..quick(&[Op::Shrink]) }), Ok(1));
    assert_eq!(cases(BenchArgs { tokens: vec![1, 2, 3], ..quick(&[Op::Shrink]) }), Ok(3));
    assert!(cases(BenchArgs { case: Some("nothing".into()), ..quick(&[]) }).unwrap_err().contains("--list"));
}

/// The lines of a file that is written while it is read.
fn lines_of(file: &Path) -> usize {
    Record::read(file).map_or(0, |record| record.lines.len())
}

#[test]
fn a_killed_run_goes_on_where_it_stopped() {
    let folder = tempfile::tempdir().unwrap();
    let (out, part) = (folder.path().join("a.json"), folder.path().join("a.json.part"));
    let run = |more: &[&std::ffi::OsStr]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_molora"));
        command.args(["bench", "--device", "cpu", "--quick", "--op", "shrink,base", "--tokens", "1,8,64"]);
        command.args(more).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    };
    let mut first = run(&["--out".as_ref(), out.as_ref()]).spawn().unwrap();
    let start = Instant::now();
    while lines_of(&part) < 2 {
        assert!(start.elapsed() < Duration::from_secs(120), "no two lines after two minutes");
        assert!(first.try_wait().unwrap().is_none(), "it ended before it was killed");
        std::thread::sleep(Duration::from_millis(5));
    }
    first.kill().unwrap();
    first.wait().unwrap();
    assert!(!out.exists(), "it was not whole");
    let before = Record::read(&part).unwrap();
    assert!(before.lines.len() < 6, "killed in the middle");

    let again = run(&["--out".as_ref(), out.as_ref()]).output().unwrap();
    let text = String::from_utf8_lossy(&again.stderr);
    assert!(!again.status.success() && text.contains("--resume"), "{text}");

    let second = run(&["--resume".as_ref(), part.as_ref()]).output().unwrap();
    assert!(second.status.success(), "{}", String::from_utf8_lossy(&second.stderr));
    let record = Record::read(&out).unwrap();
    assert!(!part.exists() && record.lines.len() == 6);
    let times =
        |lines: &[Line]| lines.iter().map(|l| (l.case.clone(), l.latency_us_median)).collect::<Vec<_>>();
    assert_eq!(times(&record.lines[..before.lines.len()]), times(&before.lines), "what was measured stays");
}
