//! The command itself.

use std::process::{Command, Output};

fn molora(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_molora")).args(args).output().expect("molora starts")
}

fn refused(args: &[&str], expected: &[&str]) {
    let output = molora(args);
    assert!(!output.status.success(), "{args:?} was accepted");
    let said = String::from_utf8_lossy(&output.stderr);
    for text in expected {
        assert!(said.contains(text), "{args:?}: {text} is not in: {said}");
    }
}

#[test]
fn wrong_arguments_are_named() {
    refused(&["demo", "--experts", "not/there"], &["--experts", "not/there"]);
    refused(&["demo", "--routers", "not/there"], &["--routers", "not/there"]);
    refused(&["demo", "--model", "not/there"], &["--model", "not/there"]);
    refused(&["demo", "--order", "nobody"], &["nobody"]);
    refused(&["demo", "--prompt", "x", "--temperature=-1"], &["temperature", "-1"]);
    refused(&["demo", "--max-tokens", "3"], &["--prompt"]);
    refused(&["demo", "--device", "abacus"], &["abacus", "cpu"]);
}

#[test]
fn a_file_that_is_no_model_is_refused() {
    let manifest = concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml");
    refused(&["demo", "--model", manifest], &["Cargo.toml", "GGUF"]);
}

/// The whole demo against the figures of an independent implementation.
#[test]
#[ignore = "fetches a model of 98 MB once and computes for a minute; run with --release"]
fn demo_matches_expected() {
    let folder = tempfile::tempdir().unwrap();
    let picture = folder.path().join("demo.svg");
    let output = molora(&["demo", "--json", "--picture", picture.to_str().unwrap()]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let got: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();

    let expected = std::fs::read(concat!(env!("CARGO_MANIFEST_DIR"), "/data/expected_first4.json")).unwrap();
    let expected: serde_json::Value = serde_json::from_slice(&expected).unwrap();
    let settings = expected["perplexity_first4"].as_object().unwrap();
    assert_eq!(settings.len(), 9);
    for (setting, domains) in settings {
        for (domain, want) in domains.as_object().unwrap() {
            let want = want.as_f64().unwrap();
            let got = got["perplexity"][setting][domain].as_f64().unwrap();
            assert!(((got - want) / want).abs() < 5e-5, "{setting} {domain}: {got} {want}");
        }
        let difference = got["golden"]["max_logit_difference"][setting].as_f64().unwrap();
        assert!(difference < 1e-3, "{setting}: {difference}");
    }
    let forms = got["forms"].as_object().unwrap();
    assert!(!forms.is_empty() && !forms.contains_key("beside"), "every linear ran fused: {forms:?}");
    let golden = &got["golden"];
    assert!(golden["router_lists_compared"].as_u64().unwrap() > 1100);
    assert_eq!(golden["router_lists_different"], 0);
    assert!(golden["max_router_weight_difference"].as_f64().unwrap() < 1e-4);
    assert!(std::fs::read_to_string(&picture).unwrap().contains("medexam"));
}
