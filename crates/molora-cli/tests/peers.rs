//! `molora peers` through the program, where no other contender is there: ours is checked and timed, the others are named.

use molora_check::record::Record;
use std::process::{Command, Output};

fn peers(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_molora")).arg("peers").args(arguments).output().unwrap()
}

#[test]
fn who_is_absent_is_named_and_the_record_has_the_rest() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    let (data, venv, record) = (path("data"), path("venv"), path("record.json"));
    let output = peers(&[
        "--cases",
        "T8_2048",
        "--ops",
        "lora,base",
        "--rounds",
        "1",
        "--budget",
        "0.001",
        "--against",
        "torch,ggml",
        "--venv",
        &venv,
        "--data",
        &data,
        "--out",
        &record,
    ]);
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{output:?}");
    for name in ["torch", "ggml"] {
        let line = text
            .lines()
            .find(|line| line.starts_with(&format!("absent: {name}: ")))
            .unwrap_or_else(|| panic!("{text}"));
        assert!(line.contains(&venv) && line.contains("setup.sh"), "{line}");
    }
    assert!(text.contains("nobody beside it"), "{text}");
    let record = Record::read(record.as_ref()).unwrap();
    let ours: Vec<&str> = record.lines.iter().map(|line| line.case.as_str()).collect();
    for case in ["base/cpu/T8_2048x2048_E8k2r16", "lora/cpu/T8_2048x2048_E8k2r16"] {
        assert!(ours.contains(&case), "{ours:?}");
    }
    for line in &record.lines {
        assert!(
            line.series.starts_with("molora")
                && line.samples > 0
                && line.ratios.iter().all(|r| r.to != "molora")
        );
        assert!(
            line.error.is_some_and(|error| error < 1e-2) && line.floor.is_some_and(|floor| floor.us() > 0.0)
        );
    }
    // A contender that ends at once says why in its last line.
    let python = folder.path().join("venv/bin/python");
    if cfg!(unix) {
        std::fs::create_dir_all(python.parent().unwrap()).unwrap();
        std::os::unix::fs::symlink("/bin/false", &python).unwrap();
        std::fs::create_dir_all(path("scripts")).unwrap();
        std::fs::write(folder.path().join("scripts/torch_peer.py"), "").unwrap();
        let output = peers(&[
            "--cases",
            "T8_2048",
            "--ops",
            "base",
            "--rounds",
            "1",
            "--budget",
            "0.001",
            "--against",
            "torch",
            "--venv",
            &venv,
            "--scripts",
            &path("scripts"),
            "--data",
            &data,
        ]);
        assert!(String::from_utf8_lossy(&output.stdout).contains("absent: torch: it ended"), "{output:?}");
    }
}

#[test]
fn what_names_nothing_is_refused() {
    for (arguments, part) in [
        (["--cases", "nothing"], "--cases"),
        (["--against", "abacus"], "torch, ggml"),
        (["--ops", "sum"], "base, lora"),
        (["--rounds", "0"], "--rounds"),
    ] {
        let output = peers(&arguments);
        assert!(!output.status.success());
        assert!(String::from_utf8_lossy(&output.stderr).contains(part), "{output:?}");
    }
    let output = peers(&["--list"]);
    assert_eq!(String::from_utf8_lossy(&output.stdout).lines().count(), 17);
}
