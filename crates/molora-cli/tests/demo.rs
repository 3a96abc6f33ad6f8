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

#[test]
fn a_trace_is_counted_and_drawn() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (file, picture) = (path("trace.jsonl"), path("trace.svg"));
    let mut trace = molora::trace::Trace::new(["law", "clinic"]);
    trace.record("layers.3.up_proj", 1, &[1, 1, 0], &[1.0; 3]).unwrap();
    trace.write_jsonl(std::fs::File::create(&file).unwrap()).unwrap();
    for (options, cells) in [(&[][..], 1 + 2 + 3), (&["--kind", "shares"], 1 + 2)] {
        let output = molora(&[&["trace", &file, "--json", "--picture", &picture], options].concat());
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let got: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(got["counters"][0]["name"], "clinic");
        assert_eq!(got["counters"][0]["routes"], 2);
        let svg = std::fs::read_to_string(&picture).unwrap();
        assert_eq!(svg.matches("<rect").count(), cells, "background, legend where there is one, cells");
        assert!(svg.contains("3 up"));
    }
    refused(&["trace", "not/there"], &["not/there"]);
    refused(&["trace", &picture], &["trace.svg", "line 1"]);
    refused(&["trace", &file, "--kind", "shares"], &["--picture"]);
}

/// The whole demo against the figures of an independent implementation.
#[test]
#[ignore = "fetches a model of 98 MB once and computes for a minute; run with --release"]
fn demo_matches_expected() {
    let folder = tempfile::tempdir().unwrap();
    let (picture, trace) = (folder.path().join("demo.svg"), folder.path().join("demo.jsonl"));
    let files = ["--picture", picture.to_str().unwrap(), "--trace", trace.to_str().unwrap()];
    let output = molora(&[&["demo", "--json"][..], &files].concat());
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
    let trace = std::io::BufReader::new(std::fs::File::open(&trace).unwrap());
    let trace = molora::trace::Trace::read_jsonl(trace).unwrap();
    assert_eq!((trace.names().len(), trace.parts().len()), (5, 5));
    assert_eq!(trace.tokens(), trace.parts().iter().map(|part| part.labels.len()).sum::<usize>());
}

/// The published systems of the demo, on the device of `MOLORA_DEVICE` (wgpu without it) as on the CPU, over as many sequences,
/// tokens and domains as the machine has time for: `MOLORA_DEMO="--sequences 1 --tokens 16 --domains law"`.
#[test]
#[ignore = "fetches models of 98 and 83 MB once and computes for minutes; run with --release"]
fn systems_agree_with_the_cpu() {
    let device = std::env::var("MOLORA_DEVICE").unwrap_or_else(|_| "wgpu".into());
    let cut = std::env::var("MOLORA_DEMO").unwrap_or_else(|_| "--sequences 1 --tokens 64".into());
    let perplexity = |device: &str| -> serde_json::Value {
        let own = ["demo", "--json", "--system", "ming,phatgoose,ramole,per-request", "--device", device];
        let output = molora(&own.into_iter().chain(cut.split_whitespace()).collect::<Vec<_>>());
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let said: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(said["device"], device);
        said["perplexity"].clone()
    };
    let (want, got) = (perplexity("cpu"), perplexity(&device));
    let mut largest = 0f64;
    for (line, domains) in want.as_object().unwrap() {
        for (domain, want) in domains.as_object().unwrap() {
            let (want, got) = (want.as_f64().unwrap(), got[line][domain].as_f64().unwrap());
            let difference = ((got - want) / want).abs();
            println!("{line} {domain}: {got:.4}, on the CPU {want:.4}");
            assert!(difference < 5e-5, "{line} {domain}: {got} {want}");
            largest = largest.max(difference);
        }
    }
    println!("largest relative difference on {device}: {largest:.1e}");
}
