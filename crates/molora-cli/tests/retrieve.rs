//! `molora retrieve`: with a tiny random encoder from files, and with the real one on the demo's held-out texts.

use molora_cli::demo::files;
use molora_cli::encoder::Encoder;
use molora_cli::engine::tokenizer::Text;
use molora_cli::retrieve::{Library, own_texts, sample_texts};
use serde_json::Value;
use std::path::Path;
use std::process::{Command, Output};

const TINY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/tiny-bert");

fn retrieve(folder: &Path, args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_molora"));
    command.args(["retrieve", "--encoder", TINY, "--texts"]).arg(folder).args(args);
    command.output().expect("molora starts")
}

/// A folder of three adapters.
fn adapters() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
    write("law.txt", "the law of the court\n");
    write("doctor.txt", "\n the doctors said \n\na new doctor\n");
    write("words.txt", "a new wording, an old wording!\n");
    write("notes.md", "not an adapter");
    folder
}

#[test]
fn a_sample_text_finds_its_adapter() {
    let folder = adapters();
    let query = ["--query", "The LAW of the court", "--query", "a new wording, an old wording!"];
    let output = retrieve(folder.path(), &[&query[..], &["--json", "--top-k", "2"]].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let said: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(said["metric"], "cosine");
    assert_eq!(said["sample_texts"], serde_json::json!({ "doctor": 2, "law": 1, "words": 1 }));
    for (n, name) in [(0, "law"), (1, "words")] {
        let hits = said["queries"][n]["hits"].as_array().unwrap();
        assert_eq!((hits.len(), &hits[0]["adapter"]), (2, &Value::from(name)));
        assert!(
            (hits[0]["score"].as_f64().unwrap() - 1.0).abs() < 1e-6
                && hits[1]["score"].as_f64() < Some(0.9999)
        );
    }
    let output = retrieve(folder.path(), &["--query", "the law of the court", "--deny", "law"]);
    let table = String::from_utf8(output.stdout).unwrap();
    let lines: Vec<&str> = table.lines().collect();
    assert_eq!((lines.len(), lines[0]), (3, "the law of the court"));
    assert!(lines[1].contains("   1  ") && lines[2].contains("   2  "), "{table}");
    assert!(!lines[1].contains("law") && !lines[2].contains("law"), "{table}");
    let output =
        retrieve(folder.path(), &["--query", "the law", "--allow", "words,doctor", "--deny", "words"]);
    let table = String::from_utf8(output.stdout).unwrap();
    assert!(table.lines().count() == 2 && table.contains("doctor"), "{table}");
}

#[test]
fn wrong_arguments_are_named() {
    let folder = adapters();
    let refused = |folder: &Path, args: &[&str], expected: &[&str]| {
        let output = retrieve(folder, &[&["--query", "x"], args].concat());
        assert!(!output.status.success(), "{args:?} was accepted");
        let said = String::from_utf8_lossy(&output.stderr);
        for text in expected {
            assert!(said.contains(text), "{args:?}: {text} is not in: {said}");
        }
    };
    refused(folder.path(), &["--deny", "nobody"], &["--deny", "nobody", "doctor, law, words"]);
    refused(folder.path(), &["--top-k", "0"], &["--top-k", "at least 1"]);
    refused(folder.path(), &["--metric", "luck"], &["luck", "cosine"]);
    refused(Path::new("not/there"), &[], &["--texts", "not/there"]);
    let again = folder.path().join("law.txt");
    refused(folder.path(), &["--texts", again.to_str().unwrap()], &["law.txt", "a second one"]);
    std::fs::write(folder.path().join("empty.txt"), " \n\n").unwrap();
    refused(folder.path(), &[], &["empty.txt", "at least one text"]);
    let none = tempfile::tempdir().unwrap();
    refused(none.path(), &[], &["NAME.txt"]);
}

#[test]
fn the_demos_experts_have_sample_texts() {
    let texts = sample_texts(&[own_texts().unwrap()]).unwrap();
    assert_eq!(texts.keys().collect::<Vec<_>>(), ["clinic", "everyday", "law", "medexam", "pubmed"]);
    assert!(texts.values().all(|texts| texts.len() == 16));
}

/// Every held-out sequence of 256 tokens, which begins and ends anywhere in a document, asks for an adapter.
#[test]
#[ignore = "fetches models of 91 and 98 MB once"]
fn held_out_texts_find_their_experts() {
    let model = molora_cli::fetch::model().unwrap();
    let mut file = std::fs::File::open(&model).unwrap();
    let content = candle_core::quantized::gguf_file::Content::read(&mut file).unwrap();
    let text = Text::from_gguf(&content, "the model").unwrap();
    let texts = sample_texts(&[own_texts().unwrap()]).unwrap();
    let encoder = Encoder::load(&molora_cli::fetch::encoder().unwrap()).unwrap();
    let library = Library::new(encoder, &texts, molora::retrieval::Metric::Cosine).unwrap();
    let path = files::given_or_own(None, "heldout.safetensors", "heldout").unwrap();
    let (mut right, mut second, mut all) = (0, 0, 0);
    for (domain, sequences) in files::held_out(&path).unwrap() {
        let queries: Vec<String> = sequences.iter().map(|ids| text.decode(ids).unwrap()).collect();
        // Samples are one line each.
        let flat: Vec<String> =
            queries.iter().map(|query| query.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
        for sample in texts.values().flatten() {
            assert!(flat.iter().all(|query| !query.contains(sample)), "held out: {sample}");
        }
        let hits = library.search(&queries, (None, &[]), 2).unwrap();
        let at = |rank: usize| hits.iter().filter(|hits| hits[rank].0 == domain).count();
        println!("{domain}: {} of {} first, {} second", at(0), hits.len(), at(1));
        (right, second, all) = (right + at(0), second + at(1), all + hits.len());
    }
    println!("all: {right} of {all} first, {second} second");
    assert!(right * 10 >= all * 9, "{right} of {all}");
}
